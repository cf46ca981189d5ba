"""Rules of what training needs, for runs that are still to be trained. Torch-free; each returns sentences."""

from collections.abc import Iterator

from pipeline.config.check_latents import DENOISERS
from pipeline.config.known_data import split_names
from pipeline.config.metric_names import EXAMPLES, is_known, needs_inception
from pipeline.config.schema import Config
from pipeline.runtime.errors import did_you_mean

BLOCKS = (*DENOISERS, "kl_autoencoder")  # kinds of networks made of blocks, see pipeline.models.blocks


def check_training(cfg: Config) -> Iterator[str]:
    """Everything that would make training fail, or waste it, though the settings are valid one by one."""
    if cfg.train.early_stop is not None:
        yield from (f"train.early_stop.metric: {p}" for p in metric_problems(cfg, cfg.train.early_stop.metric))
    yield from _tail(cfg)
    yield from _double_backward(cfg)
    yield from _graph(cfg)
    yield from _without_blocks(cfg)


def _graph(cfg: Config) -> Iterator[str]:
    """What a CUDA graph cannot hold: a scale that changes, two networks that take turns, several GPUs."""
    asked = cfg.cluster.train
    if not cfg.train.cuda_graph:
        return
    if cfg.model.kind not in DENOISERS or cfg.train.precision == "fp16" or cfg.train.compile:
        yield (
            f"train.cuda_graph: found true with model.kind={cfg.model.kind}, train.precision={cfg.train.precision} and "
            f"train.compile={cfg.train.compile}, expected a diffusion model, another precision than fp16, and no "
            "compilation. Set it to false, or change that."
        )
    if asked.nodes * asked.tasks_per_node > 1:
        yield (
            f"train.cuda_graph: found true with cluster.train.nodes={asked.nodes} and {asked.tasks_per_node} tasks on "
            "each, expected one GPU. Set it to false."
        )


def metric_problems(cfg: Config, metric: str) -> Iterator[str]:
    """Why a metric will not exist where early stopping, or the choice among trials, is led by it."""
    kind, slash, _ = metric.partition("/")
    if not slash:
        yield from _of_results(cfg, metric)
        return
    if kind == "valid" and not cfg.train.validate_every:
        yield f"{metric} needs train.validate_every, which is null."
    if kind == "sampled" and not cfg.train.metric_every:
        yield f"{metric} needs train.metric_every, which is null."
    if kind == "valid" and (problem := _no_split(cfg, "valid")):
        yield (
            f"{metric} needs a validation split, but {problem}. Use a metric of samples, such as sampled/fd-domain, or "
            "another protocol: data.split.rule=hash data.split.valid=0.1 data.counts=null under a data.name of its own."
        )
    if metric not in (known := measured_in_training(cfg)):
        yield (
            f"found '{metric}', but with model.kind={cfg.model.kind} and model.condition={cfg.model.condition} what is "
            f"measured while training is {' or '.join(known)}. Use one of them."
        )


def measured_in_training(cfg: Config) -> tuple[str, ...]:
    """What training measures at its validations and of its samples, where the settings ask for it."""
    accuracy = {"class": ("sampled/accuracy-domain",), "attributes": ("sampled/accuracy-attributes",)}
    samples = ("sampled/fd-domain", *accuracy.get(cfg.model.condition, ()))
    if cfg.model.kind == "stylegan":  # a game has no loss that says how good its images are
        return samples
    if cfg.model.kind in DENOISERS:
        return ("valid/loss", *samples)
    weights = cfg.autoencoder
    parts = [weights.reconstruction, *(["perceptual"] if weights.perceptual.weight else [])]
    if cfg.model.kind == "vae":
        parts += ["kl", *(f"mean_{name}" for name in ("psnr", "ssim", "l1", "l2"))]
        return tuple(f"valid/{name}" for name in ("loss", *parts)) + samples
    parts += ["kl"] if cfg.model.kind == "kl_autoencoder" else []
    return tuple(f"valid/{name}" for name in dict.fromkeys(("loss", *parts, "psnr", "ssim", "l1", "l2")))


def _of_results(cfg: Config, metric: str) -> Iterator[str]:
    """Of a metric that evaluation measures."""
    evaluate, (name, _, split) = cfg.evaluate, metric.partition("@")
    if not is_known(metric):
        yield f"found '{metric}', which evaluation does not measure.{did_you_mean(name, EXAMPLES)}"
        return
    if name.endswith("-domain") and not evaluate.domain.enabled:
        yield f"{metric} needs evaluate.domain.enabled=true."
    if needs_inception(metric) and evaluate.inception.weights is None:
        yield f"{metric} needs evaluate.inception.weights, which is null. fd-domain needs no weights."
    if name.startswith("fd-dinov2") and evaluate.dinov2.weights is None:
        yield f"{metric} needs evaluate.dinov2.weights, which is null."
    if name.startswith("cmmd") and evaluate.clip.weights is None:
        yield f"{metric} needs evaluate.clip.weights, which is null."
    if split and split not in evaluate.reference_splits:
        yield f"{metric} needs '{split}' among evaluate.reference_splits, which are {list(evaluate.reference_splits)}."
    elif split and (problem := _no_split(cfg, split)):
        yield f"{metric} needs the split '{split}', but {problem}."


def _no_split(cfg: Config, name: str) -> str | None:
    """Why the data will not have a split; None where it will, or where only its source can tell."""
    known = split_names(cfg.data)
    if known is None or name in known:
        return None
    return f"data.split of {cfg.data.name} makes only {', '.join(known)}"


def _tail(cfg: Config) -> Iterator[str]:
    optim = cfg.train.optim
    if optim.schedule == "cosine_then_constant" and optim.decay_share < 1 and optim.final_lr == 0:
        yield (
            f"train.optim.final_lr: found 0, so after {optim.decay_share:.0%} of training the rate is 0 and nothing is "
            "learned. Set train.optim.final_lr to a share of the rate, such as 0.1, or use schedule=cosine."
        )


def _double_backward(cfg: Config) -> Iterator[str]:
    if cfg.model.kind == "stylegan" and cfg.adversarial.r1_gamma and cfg.train.compile:
        yield (
            "train.compile: found true, but the gradient penalty (adversarial.r1_gamma="
            f"{cfg.adversarial.r1_gamma:g}) takes the gradient of a gradient, which a compiled network has not. Set "
            "train.compile=false, or adversarial.r1_gamma=0."
        )


def _without_blocks(cfg: Config) -> Iterator[str]:
    if cfg.train.activation_checkpointing and cfg.model.kind not in BLOCKS:
        yield (
            f"train.activation_checkpointing: found true with model.kind={cfg.model.kind}, which has no blocks to "
            f"compute again ({', '.join(BLOCKS)} have). Set it to false, or lower train.micro_batch."
        )
