"""Every setting of an experiment. Torch-free: the login node checks a config without loading torch.

Parts stand beside this file: `schema_data`, `schema_sources`, `schema_model`, `schema_objectives`, `schema_diffusion`,
`schema_metrics`, `schema_cluster`; `registry` has what chooses among kinds.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Settings
from pipeline.config.durations import Duration, Interval
from pipeline.config.schema_cluster import ClusterConfig
from pipeline.config.schema_data import DataConfig
from pipeline.config.schema_diffusion import DiffusionConfig, SamplerConfig
from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.config.schema_model import ModelConfig
from pipeline.config.schema_objectives import AdversarialConfig, AutoencoderConfig, ObjectiveConfig

Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]


class OptimConfig(Settings):
    """The optimiser. Its learning rate at a step is a function of the step: see `pipeline.train.optim`."""

    kind: Literal["sgd", "adam", "adamw", "muon"] = "adamw"  # muon: AdamW for what is not a matrix
    lr: float = Field(1e-4, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.99)  # not of sgd
    eps: float = Field(1e-8, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)  # of sgd and muon; None: 0.9 and 0.95
    weight_decay: float | None = Field(0.0, ge=0)  # None: torch's own for the kind, 0.01 of adamw, 0 else
    schedule: Literal["constant", "linear", "cosine", "cosine_then_constant", "inverse_sqrt"] = "constant"
    final_lr: float = Field(0.0, ge=0)  # where linear and cosine end, as a share of lr
    decay_share: float = Field(1.0, gt=0, le=1)  # cosine_then_constant: share of training that decays
    warmup: Duration = "0 steps"
    clip: float | None = Field(1.0, gt=0)  # largest gradient norm; None: no clipping

    @property
    def decay(self) -> float:
        """The weight decay."""
        return float(0.01 * (self.kind == "adamw") if self.weight_decay is None else self.weight_decay)


class EMAConfig(Settings):
    """EMAs of the weights, in fp32, as functions of images seen."""

    half_life: Duration | None = "500 kimg"  # None: no EMA
    ramp_up: float | None = Field(0.05, gt=0)  # half-life is at most this share of images seen (EDM's ramp-up)
    # EDM2's power-function EMAs, as relative widths, such as (0.05, 0.1). Beyond 0.288 they would grow backwards.
    power_widths: tuple[Annotated[float, Field(gt=0, le=0.288)], ...] = ()


class EarlyStopConfig(Settings):
    """Keep the best checkpoint (`sample.step=best`), and end training when it has been the best for long enough."""

    metric: str = Field("valid/loss", pattern="^(valid|in_loop)/")  # as good as its registered direction says
    patience: Duration | None = None  # None: train to the end


class AugmentConfig(Settings):
    """Colour jitter, sharpness, rotation and shift, drawn per image. Samples show what augmentation does to images: a
    model learns turned flowers from turned flowers. The meanings are torchvision's; see `pipeline.data.augment`.

    brightness, contrast, saturation: their factor is uniform in [max(0, 1 - v), 1 + v]. hue: the turn is uniform in
    [-v, v], where 0.5 is half a turn. sharpness: the factor that a share `sharpness_share` of images gets; 1 changes
    nothing, 0 blurs, 2 sharpens. rotation: the angle is uniform in [-v, v] degrees; shift: both ways uniform in [-v, v]
    of the image's side. What comes from outside of the image is its mirror image at the edge.
    """

    share: float = Field(1.0, gt=0, le=1)  # of images that are changed at all
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)
    saturation: float = Field(0.0, ge=0)
    hue: float = Field(0.0, ge=0, le=0.5)
    sharpness: float = Field(1.0, ge=0)
    sharpness_share: float = Field(0.5, ge=0, le=1)
    rotation: float = Field(0.0, ge=0, le=180)
    shift: float = Field(0.0, ge=0, le=0.5)
    # Tell the network (model.kind=unet) what was done, and when sampling that nothing was (Karras et al. 2022, appendix
    # F.2). It learns what unchanged images are from the images that `share` leaves unchanged.
    condition: bool = False

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        jitter = self.brightness or self.contrast or self.saturation or self.hue or self.rotation or self.shift
        return bool(jitter or (self.sharpness != 1 and self.sharpness_share))


class TrainConfig(Settings):
    """One recipe. The global batch stands here; what each GPU does of it is derived."""

    duration: Duration = "50 epochs"
    global_batch: int = Field(128, ge=1)
    start_from: Path | None = None  # a run, or one of its checkpoints, whose EMA weights this training begins with
    micro_batch: int | None = Field(None, ge=1)  # most images on one GPU at once; None: global_batch / GPUs
    precision: Precision = "fp32"  # tf32: fp32, products rounded on a GPU
    compile: bool = False
    # Start forward and backward at once, 1.2 to 4 times as fast on an H100. None: on a single GPU, where it holds
    cuda_graph: bool | None = None
    # fsdp: weights, EMA, gradients and moments are divided over all ranks (torch's FSDP2), for a network whose training
    # does not fit on one GPU. Same results and checkpoints. Not run on more than one GPU so far
    sharding: Literal["none", "fsdp"] = "none"
    activation_checkpointing: bool = False  # less memory, a forward pass more: blocks keep their inputs alone
    optim: OptimConfig = OptimConfig()
    ema: EMAConfig = EMAConfig()
    flip: bool = False  # mirror half of the images, keyed by image number
    augmentation: AugmentConfig = AugmentConfig()  # colour jitter, sharpness, rotation and shift, keyed likewise
    workers: int | None = Field(
        None, ge=0
    )  # threads that read ahead; None: from the CPUs given. No result depends on it
    keep_gib: float = Field(2.0, ge=0)  # decoded images that a rank keeps in memory, where all of them fit; 0: none
    log_every: Duration = "50 steps"
    # Beside TensorBoard: wandb, aim, mlflow, comet_ml, clearml, dvclive, swanlab, trackio. Each needs its own package
    trackers: tuple[str, ...] = ()
    profile: int = Field(0, ge=0)  # record so many steps of rank 0 into RUN/profile, after 10 that warm up
    validate_every: Interval | None = None
    validate_images: int = Field(512, ge=1)
    metric_every: Interval | None = None  # fd-domain and accuracies of samples of fixed seeds, as "in_loop/..."
    metric_images: int = Field(512, ge=2)
    early_stop: EarlyStopConfig | None = None
    preview_every: Interval | None = None
    checkpoint_every: Duration = "1000 steps"
    checkpoint_minutes: float | None = Field(None, gt=0)  # also save when this much time has passed
    keep_last: int = Field(2, ge=1)  # checkpoints; those that samples or results are of stay too
    keep_every: Duration | None = None  # also save at multiples of this, and keep those
    # Training goes on while a checkpoint is written, from a copy in the memory of rank 0's node: as large as the
    # checkpoint, up to twice that beside a GPU. The last save, and that of a stop, are waited for.
    async_save: bool = True
    nonfinite_limit: int = Field(5, ge=1)  # this many skipped steps in a row: back to the last checkpoint
    nonfinite_rollbacks: int = Field(2, ge=0)  # then this often past the offending data, then stop


class SampleConfig(Settings):
    """A set of samples. Image k depends on seed k alone."""

    count: int = Field(1024, ge=1)
    first_seed: int = Field(0, ge=0)
    batch: int = Field(256, ge=1)
    step: Annotated[int, Field(ge=0)] | Literal["best"] | None = None  # of the checkpoint; best: train.early_stop's
    weights: str = "ema"  # "ema", "network", or "power:0.05": a relative width of EDM2's power-function EMA
    # uniform: all in turn; training: as often as in training; or chosen ones in turn, by name or number: [rose, 3]
    classes: Literal["uniform", "training"] | tuple[int | str, ...] = "uniform"
    # training: those of training images, drawn by seed; or chosen ones as {name: 0 or 1}, all others unknown
    attributes: Literal["training"] | dict[str, Annotated[int, Field(ge=0, le=1)]] = "training"
    sampler: SamplerConfig = SamplerConfig()
    images_per_shard: int = Field(1024, ge=1)


class LatentsConfig(Settings):
    """A diffusion model of an autoencoder's latents, which `mudi prepare encode` stores once."""

    autoencoder: Path  # a run directory, a folder written by `mudi export`, or an AutoencoderKL of diffusers
    experiment: str | None = None  # trains the autoencoder at that path, where a submission shall do so
    overrides: tuple[str, ...] = ()  # of that experiment, such as train.duration=200 kimg
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )  # of what is stored; None: the path's last part
    weights: Literal["ema", "network"] = "ema"  # of an autoencoder's run
    step: int | None = Field(None, ge=0)  # of its checkpoint; None: the last one of a finished run
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"  # as stored
    batch: int = Field(32, ge=1)  # images encoded at once: part of the protocol, as sums round differently in others
    images_per_shard: int = Field(1024, ge=1)
    decode_batch: int = Field(16, ge=1)  # images decoded at once
    tile: int | None = Field(None, ge=4)  # decode larger latents in tiles of this side, a quarter overlapping

    @property
    def stored_name(self) -> str:
        """First part of the name of the directory of latents."""
        return self.name or self.autoencoder.name

    def identity(self) -> dict[str, Any]:
        """What decides the stored values, given the autoencoder's weights and the images."""
        return self.model_dump(mode="json", include={"weights", "step", "dtype", "batch", "images_per_shard"})


class Config(Settings):
    """An experiment, complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    plugins: tuple[str, ...] = ()  # modules with kinds of your own, imported first: see docs/extending.md
    seed: int = Field(0, ge=0, lt=2**63)
    data_dir: Path = Path("data")
    runs_dir: Path = Path("runs")
    data: DataConfig
    model: ModelConfig
    latents: LatentsConfig | None = None  # None: pixels
    objective: ObjectiveConfig | None = None  # None: the one that the network is registered with
    diffusion: DiffusionConfig = DiffusionConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig
