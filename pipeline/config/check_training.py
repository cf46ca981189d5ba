"""Rules of what training needs, for runs that are still to be trained. Torch-free; each returns sentences."""

from collections.abc import Iterator

from pipeline.config.registry import METRICS, NETWORKS, known_metric
from pipeline.config.schema import Config
from pipeline.config.schema_data import split_names
from pipeline.config.schema_metrics import in_loop_metrics, network_of
from pipeline.config.schema_objectives import objective_kind, objective_of
from pipeline.config.weights import no_folder
from pipeline.runtime.errors import did_you_mean

# What Accelerate knows beside TensorBoard; each name is that of its package.
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")


def check_training(cfg: Config) -> Iterator[str]:
    """Everything that would make training fail, or waste it, though the settings are valid one by one."""
    if cfg.train.early_stop is not None:
        yield from (f"train.early_stop.metric: {p}" for p in metric_problems(cfg, cfg.train.early_stop.metric))
    yield from _trackers(cfg)
    yield from _tail(cfg)
    yield from _graph(cfg)
    yield from _sharding(cfg)
    yield from _without_blocks(cfg)


def _trackers(cfg: Config) -> Iterator[str]:
    for name in cfg.train.trackers:
        if name not in TRACKERS:
            hint = " It is always written: leave it out." if name == "tensorboard" else did_you_mean(name, TRACKERS)
            yield f"train.trackers: found '{name}', expected one of {', '.join(TRACKERS)}.{hint}"


def _graph(cfg: Config) -> Iterator[str]:
    """What a CUDA graph cannot hold: a scale that changes, compiled code, an objective that was not tried."""
    train = cfg.train
    if train.cuda_graph and (not objective_kind(cfg).graphs or train.precision == "fp16" or train.compile):
        yield (
            f"train.cuda_graph: found true with model.kind={cfg.model.kind}, train.precision={train.precision} and "
            f"train.compile={train.compile}, expected an objective that was tried with it, no fp16, and no "
            "compilation. Leave it out, or change that."
        )


def _sharding(cfg: Config) -> Iterator[str]:
    """What does not work on divided weights, or was never tried on them."""
    train = cfg.train
    if train.sharding == "none":
        return
    reasons = {
        f"model.kind={cfg.model.kind}: only a diffusion model is one network that is called as a whole": (
            not objective_kind(cfg).diffusion
        ),
        f"train.optim.kind={train.optim.kind}: expected adam or adamw, whose steps torch takes on divided weights": (
            train.optim.kind not in ("adam", "adamw")
        ),
        "train.precision=fp16: its loss scale was not tried on divided gradients. Use bf16": train.precision == "fp16",
        "train.cuda_graph=true: a graph does not hold the exchange of weights. Leave it out": bool(train.cuda_graph),
        "train.compile=true: it was not tried. Set it to false": train.compile,
    }
    for reason, holds in reasons.items():
        if holds:
            yield f"train.sharding: found fsdp with {reason}, or set train.sharding=none."


def metric_problems(cfg: Config, metric: str) -> Iterator[str]:
    """Why a metric will not exist where early stopping, or the choice among trials, is led by it."""
    kind, slash, _ = metric.partition("/")
    if not slash:
        yield from _of_results(cfg, metric)
        return
    if kind == "valid" and not cfg.train.validate_every:
        yield f"{metric} needs train.validate_every, which is null."
    if kind == "in_loop" and not cfg.train.metric_every:
        yield f"{metric} needs train.metric_every, which is null."
    if kind == "valid" and (problem := _no_split(cfg, "valid")):
        yield (
            f"{metric} needs a validation split, but {problem}. Use a metric of samples, such as in_loop/fd-domain, or "
            "another protocol: data.split.rule=hash data.split.valid=0.1 data.counts=null under a data.name of its own."
        )
    if metric not in (known := measured_in_training(cfg)):
        yield (
            f"found '{metric}', but with model.kind={cfg.model.kind} and model.condition={cfg.model.condition} what is "
            f"measured while training is {' or '.join(known)}. Use one of them."
        )


def measured_in_training(cfg: Config) -> tuple[str, ...]:
    """What training measures at its validations and of its samples, where the settings ask for it."""
    found = [f"valid/{name}" for name in objective_of(cfg).measures(cfg)]
    if objective_kind(cfg).samples:
        found += [f"in_loop/{name}" for name in in_loop_metrics(cfg.model.condition)]
    return tuple(found)


def _of_results(cfg: Config, metric: str) -> Iterator[str]:
    """Of a metric that evaluation measures."""
    evaluate, split = cfg.evaluate, metric.partition("@")[2]
    kind, network = known_metric(metric), network_of(metric)
    if kind is None:
        names = [name for kind in METRICS for name in (kind.name, *kind.also, *kind.usual)]
        yield f"{metric} is no metric: {METRICS.unknown(metric)}{did_you_mean(metric, names)}"
        return
    if kind.needs == "image" and kind.name not in evaluate.quality.weights():
        yield f"{metric} needs {evaluate.quality.setting(kind.name)}, which is null. {no_folder(kind.name)}"
    if cfg.data.image_size < kind.least_size:
        yield f"{metric} needs images of {kind.least_size} pixels, but data.image_size is {cfg.data.image_size}."
    if network is not None and not evaluate.measures_in(network):
        setting = "domain.enabled=true." if network == "domain" else f"{network}.weights, which is null."
        hint = f" {no_folder('inception')} fd-domain needs no weights." if network == "inception" else ""
        yield f"{metric} needs evaluate.{setting}{hint}"
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


def _without_blocks(cfg: Config) -> Iterator[str]:
    if cfg.train.activation_checkpointing and not NETWORKS[cfg.model.kind].blocks:
        have = ", ".join(NETWORKS.names(lambda kind: kind.blocks))
        yield (
            f"train.activation_checkpointing: found true with model.kind={cfg.model.kind}, which has no blocks to "
            f"compute again ({have} have). Set it to false, or lower train.micro_batch."
        )
