"""Rules across fields. Each returns sentences; all of them are reported together, on the login node."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.config.autoencoder import Facts
from pipeline.config.check_training import check_training
from pipeline.config.durations import to_images
from pipeline.config.registry import METRICS, NETWORKS, SAMPLERS, SOURCES, Kind
from pipeline.config.schema import Config
from pipeline.config.schema_data import attribute_names, class_count, split_names
from pipeline.config.schema_diffusion import sampling_problems
from pipeline.config.schema_model import UNetConfig, check_model
from pipeline.config.schema_objectives import check_objective, objective_kind
from pipeline.runtime.errors import did_you_mean

MOST_TURNS = 200  # of Fourier features over all noise levels: EDM's, of deviation 16, turn 42 times


def check(cfg: Config, autoencoder: Facts | None = None, *, trained: bool = False) -> list[str]:
    """Everything that is wrong with a config whose single fields are right.

    Args:
        autoencoder: whose latents it is trained on; None where it is trained on pixels, or nothing is known of it yet.
        trained: whether its training is finished, so that what training needs does not matter.
    """
    rules = [problem for rule in RULES if not (trained and rule is check_training) for problem in rule(cfg)]
    return [*rules, *_latents(cfg, autoencoder), *_model(cfg, autoencoder)]


def _batch(cfg: Config) -> Iterator[str]:
    train = cfg.train
    if train.micro_batch and train.global_batch % train.micro_batch:
        yield (
            f"train.micro_batch: found {train.micro_batch}, expected a divisor of train.global_batch="
            f"{train.global_batch}. Divisors: {', '.join(map(str, _divisors(train.global_batch)))}."
        )


def _schedule(cfg: Config) -> Iterator[str]:
    optim = cfg.train.optim
    if optim.schedule != "cosine_then_constant" and optim.decay_share != 1.0:
        yield (
            f"train.optim.decay_share: found {optim.decay_share}, but train.optim.schedule={optim.schedule} has no "
            "constant tail. Use schedule=cosine_then_constant or leave decay_share at 1."
        )
    if optim.schedule == "inverse_sqrt" and not to_images(optim.warmup, batch=1, train_images=10**6):
        yield (
            "train.optim.warmup: found none, but train.optim.schedule=inverse_sqrt falls as sqrt(warmup / step): the "
            "rate would be a tenth after 100 steps. Set a warm-up, such as '2 kimg'."
        )


def _metric(cfg: Config) -> Iterator[str]:
    if cfg.train.metric_every and not cfg.evaluate.domain.enabled:
        yield "train.metric_every: set, but evaluate.domain.enabled is false: the domain classifier is what judges."
    if cfg.train.metric_every and not objective_kind(cfg).samples:
        yield f"train.metric_every: set, but a {cfg.model.kind} makes no samples. Leave it at null."


def _augmentation(cfg: Config) -> Iterator[str]:
    augmentation = cfg.train.augmentation
    if augmentation.condition and not (augmentation.active and isinstance(cfg.model, UNetConfig)):
        yield (
            f"train.augmentation.condition: found true with model.kind={cfg.model.kind} and "
            f"{'some' if augmentation.active else 'no'} augmentation, expected model.kind=unet and some, such as "
            "train.augmentation.brightness=0.2. Set them, or condition=false."
        )


def _step(cfg: Config) -> Iterator[str]:
    if cfg.sample.step == "best" and cfg.train.early_stop is None:
        yield (
            "sample.step: found best, but train.early_stop is null, so no checkpoint is kept for being the best. Set "
            "train.early_stop={metric: valid/loss} (with train.validate_every), give a number, or leave the step out."
        )


def _references(cfg: Config) -> Iterator[str]:
    names, known = cfg.evaluate.reference_splits, split_names(cfg.data)
    if not names or (known is not None and names[0] not in known):
        there = "train" if known is None else ", ".join(known)
        yield (
            f"evaluate.reference_splits: found {list(names)}, expected first a split that {cfg.data.name} has, to "
            f"compare with: {there}."
        )


def _model(cfg: Config, autoencoder: Facts | None) -> list[str]:
    """The network for what it is trained on: images, or latents, whose size the autoencoder decides."""
    names = attribute_names(cfg.data)
    attributes, classes = None if names is None else len(names), class_count(cfg.data)
    if cfg.latents is None:
        return check_model(cfg.model, cfg.data.image_size, classes=classes, attributes=attributes)
    if autoencoder is None or cfg.data.image_size % autoencoder.factor:
        return []
    size = cfg.data.image_size // autoencoder.factor
    said = f"latents of {cfg.data.image_size} px images have {size} x {size}"
    problems = check_model(cfg.model, size, classes=classes, attributes=attributes)
    return [f"{problem} ({said})" for problem in problems]


def _classes(cfg: Config) -> Iterator[str]:
    if isinstance(cfg.sample.classes, tuple) and cfg.model.condition != "class":
        yield (
            f"sample.classes: found {cfg.sample.classes}, but model.condition={cfg.model.condition}: the model cannot "
            "be asked for a class. Use sample.classes=uniform, or train with model.condition=class."
        )
    elif (
        isinstance(cfg.sample.classes, tuple) and (names := cfg.data.source.class_names()) and not cfg.data.split.least
    ):
        yield from classes_problems(cfg.sample.classes, names)
    elif isinstance(cfg.sample.classes, tuple) and (classes := class_count(cfg.data)):
        numbers = [c for c in cfg.sample.classes if isinstance(c, int)]  # names are known once the data is prepared
        yield from classes_problems(numbers, [""] * classes)


def classes_problems(asked: Sequence[int | str], names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the classes asked for by number or name, where the data has those `names`."""
    if wrong := [c for c in asked if isinstance(c, int) and not 0 <= c < len(names)]:
        yield f"sample.classes: found {wrong}, but the data has classes 0 to {len(names) - 1}."
    for name in asked:
        if isinstance(name, str) and (names.count(name) != 1):
            some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            hint = did_you_mean(name, names) or f" It has {some}."
            known = f"{names.count(name)} classes of the data have that name: give a number." if name in names else ""
            yield f"sample.classes: found '{name}', " + (known or f"which the data has not.{hint}")


def _attributes(cfg: Config) -> Iterator[str]:
    asked, names = cfg.sample.attributes, attribute_names(cfg.data)
    if isinstance(asked, dict) and asked and cfg.model.condition != "attributes":
        yield (
            f"sample.attributes: found {asked}, but model.condition={cfg.model.condition}: the model cannot be asked "
            "for attributes. Leave them out, or train with model.condition=attributes."
        )
    elif isinstance(asked, dict) and names:
        yield from attributes_problems(asked, names)
        setting = "attribute_dropout" if asked else "label_dropout"
        if cfg.model.is_a == "denoiser" and len(asked) < len(names) and not getattr(cfg.diffusion, setting):
            yield (
                f"sample.attributes: found {len(asked)} of {len(names)}, so the others are unknown, but "
                f"diffusion.{setting} is 0: the model has never seen an image with {'some' if asked else 'all'} of "
                f"them hidden. Train with {setting}=0.1, or give all {len(names)}."
            )


def attributes_problems(asked: Mapping[str, int], names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the attributes asked for, where the data has those `names`."""
    for name in asked:
        if name not in names:
            hint = did_you_mean(name, names) or f" It has {', '.join(names)}."
            yield f"sample.attributes: found '{name}', which the data has not.{hint}"


def _sampler(cfg: Config) -> Iterator[str]:
    conditional = cfg.model.condition != "none"
    yield from (f"sample.{p}" for p in sampling_problems(cfg.sample.sampler, cfg.diffusion, conditional=conditional))
    if cfg.sample.sampler.truncation != 1 and cfg.model.is_a != "generator":
        yield (
            f"sample.sampler.truncation: found {cfg.sample.sampler.truncation:g}, but model.kind={cfg.model.kind} has "
            "no styles. Set it to 1, or use model.kind=stylegan."
        )


def _embedding(cfg: Config) -> Iterator[str]:
    """Random frequencies suit what moves by about 1: over a thousand timesteps nothing can be learned from them."""
    model, levels, time_input = cfg.model, cfg.diffusion.levels, cfg.diffusion.network_time_input
    if not isinstance(model, UNetConfig) or model.embedding != "fourier":
        return
    timesteps = levels.timesteps if levels.kind == "ddpm" else 1
    reach = {"log_sigma": math.log(levels.sigma_max / levels.sigma_min) / 4, "flow_time": 1000, "timestep": timesteps}
    turns = model.embedding_scale * reach[time_input]
    if turns > MOST_TURNS:
        yield (
            f"model.embedding_scale: found {model.embedding_scale:g}, but the time input is {time_input}, which moves "
            f"by {reach[time_input]:.3g}: features of model.embedding=fourier turn {turns:.0f} times on the way, "
            f"expected at most {MOST_TURNS}, or noise levels look unrelated. Use "
            f"embedding_scale={16 / reach[time_input]:.2g}, or diffusion.time_input=log_sigma, or embedding=sinusoidal."
        )


def _ema(cfg: Config) -> Iterator[str]:
    ema, weights = cfg.train.ema, cfg.sample.weights
    if weights == "ema" and ema.half_life is None:
        yield "sample.weights: found 'ema', but train.ema.half_life is null. Use sample.weights=network."
    elif weights.startswith("power:") and not ema.power_widths:
        yield f"sample.weights: found '{weights}', but train.ema.power_widths is empty: train with two widths."
    elif weights.startswith("power:"):
        yield from _power(weights)
    elif weights not in ("ema", "network"):
        yield f"sample.weights: found '{weights}', expected ema, network or power:<relative width>."


def _power(weights: str) -> Iterator[str]:
    text = weights.removeprefix("power:")
    try:
        fits = 0 < float(text) <= 0.288
    except ValueError:
        fits = False
    if not fits:
        yield f"sample.weights: found '{weights}', expected a relative width above 0 and at most 0.288: power:0.05."


def _tasks(cfg: Config) -> Iterator[str]:
    """Jobs that one process does: several tasks of them would do all of the work each, over each other's files."""
    for name in ("prepare", "compare"):
        asked = getattr(cfg.cluster, name)
        if (tasks := asked.nodes * asked.tasks_per_node) > 1:
            yield (
                f"cluster.{name}: found {tasks} tasks (nodes={asked.nodes}, tasks={asked.tasks}, gpus={asked.gpus}), "
                f"expected one: tasks cannot share this job. Set nodes=1 and tasks=1, and at most one GPU."
            )


def _latents(cfg: Config, autoencoder: Facts | None) -> Iterator[str]:
    """Everything that is wrong with training on latents; `autoencoder` is None where nothing is known of it yet."""
    if cfg.latents is None:
        return
    yield from _pixels_only(cfg)
    if autoencoder is not None:
        yield from _first_stage(cfg, autoencoder)


def _pixels_only(cfg: Config) -> Iterator[str]:
    if cfg.model.is_a != "denoiser":
        yield (
            f"latents: set, but model.kind={cfg.model.kind} is not trained on latents. Use one of "
            f"{', '.join(NETWORKS.names(lambda kind: kind.is_a == 'denoiser'))}, or latents=null."
        )
    if cfg.train.augmentation.active:
        yield (
            f"train.augmentation: found {cfg.train.augmentation}, but latents are of images as they are. Leave its "
            "settings at their defaults, or use latents=null."
        )
    process = cfg.diffusion
    if "edm" in (process.parametrisation, process.weighting) and process.sigma_data != 1:
        yield (
            f"diffusion.sigma_data: found {process.sigma_data:g}, but latents are normalised to a deviation of 1. Set "
            "diffusion.sigma_data=1."
        )
    if cfg.sample.sampler.clip is not None:
        yield (
            f"sample.sampler.clip: found {cfg.sample.sampler.clip:g}, but latents have no bound as pixels have. Set "
            "sample.sampler.clip=null."
        )
    if cfg.latents and cfg.latents.overrides and cfg.latents.experiment is None:
        yield "latents.overrides: set, but latents.experiment is null, so no autoencoder is trained. Set it too."


def _first_stage(cfg: Config, known: Facts) -> Iterator[str]:
    latents, size = cfg.latents, cfg.data.image_size
    if latents is None:
        return
    if not known.latent_channels:
        kinds = ", ".join(NETWORKS.names(lambda kind: kind.is_a == "autoencoder"))
        yield f"latents.autoencoder: {latents.autoencoder} is a {known.kind}, expected one of {kinds}."
        return
    if known.channels != cfg.data.channels:
        yield (
            f"data.channels: found {cfg.data.channels}, but the autoencoder {latents.autoencoder} takes images of "
            f"{known.channels}. Set data.channels={known.channels}, or choose another autoencoder."
        )
    if size % known.factor:
        below = size // known.factor * known.factor
        near = " or ".join(str(n) for n in (below, below + known.factor) if n)
        yield (
            f"data.image_size: found {size}, but the autoencoder {latents.autoencoder} shrinks images {known.factor} "
            f"times, and {size} is not a multiple of {known.factor}. Use {near}."
        )
    if latents.weights == "ema" and not known.has_ema:
        yield (
            f"latents.weights: found 'ema', but {latents.autoencoder} keeps no EMA "
            "(train.ema.half_life=null). Use latents.weights=network."
        )


def _places(cfg: Config) -> Iterator[str]:
    """Implementations of plug-ins' kinds that a job would not find."""
    chosen: list[Kind] = [SOURCES[cfg.data.source.kind], NETWORKS[cfg.model.kind], objective_kind(cfg)]
    chosen += [SAMPLERS[cfg.sample.sampler.kind], *METRICS]
    yield from (f"plugins: {problem}" for kind in chosen if kind.added and (problem := kind.missing()))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    _batch,
    _schedule,
    _metric,
    _augmentation,
    _step,
    _references,
    _classes,
    _attributes,
    _sampler,
    _embedding,
    _ema,
    check_objective,
    check_training,
    _tasks,
    _places,
)
