"""Where things lie, as a function of the config."""

import re
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.config.schema_data import DataConfig
from pipeline.runtime.files import TEMPORARY, content_hash

_STAGES = {"source", "shards", "reference", "latents"}  # folders of a data directory


def protocol_hash(data: DataConfig) -> str:
    """Hex sha256 of everything that decides which pixels come out. Travels with every number made from the data."""
    return content_hash(data.identity())


def data_directory(cfg: Config) -> Path:
    """`<data_dir>/<protocol name>-<first 8 digits of its hash>`: other settings are another directory."""
    return cfg.data_dir / f"{cfg.data.name}-{protocol_hash(cfg.data)[:8]}"


def is_data_directory(path: Path) -> bool:
    """Whether data were prepared there. Of a preparation that failed early there is the list of the source, or nothing:
    then the name counts, and that there is nothing else.
    """
    if (path / "shards").is_dir():
        return True
    named = path.is_dir() and re.search("-[0-9a-f]{8}$", path.name) is not None
    return named and {entry.name.partition(TEMPORARY)[0] for entry in path.iterdir()} <= _STAGES


def latents_directory(cfg: Config) -> Path:
    """`<data directory>/latents/<name>-<hash8>`, which holds the splits; the hash is of how they are stored."""
    if cfg.latents is None:
        raise ValueError("a model of pixels has no latents")
    hashed = content_hash({**cfg.latents.identity(), "mirrored": cfg.train.flip})
    return data_directory(cfg) / "latents" / f"{cfg.latents.stored_name}-{hashed[:8]}"


def training_shards(cfg: Config) -> Path:
    """The folder of the splits that a run is trained on: images, or latents of them."""
    return data_directory(cfg) / "shards" if cfg.latents is None else latents_directory(cfg)


def run_directory(cfg: Config) -> Path:
    """`<runs_dir>/<name>`."""
    return cfg.runs_dir / cfg.name


def tiling(cfg: Config) -> dict[str, int]:
    """{"tile": side} where latents are decoded in tiles, which gives other pixels than decoding at once; else {}."""
    return {} if cfg.latents is None or cfg.latents.tile is None else {"tile": cfg.latents.tile}


def sample_set_name(cfg: Config) -> str:
    """Name of a set of samples: readable, and a hash of all that decides an image given its seed.

    Count, batch and cluster are not part of it: more images of the same kind belong to the same set. Sets of one step
    stand in a folder of their own, so the step is none either.
    """
    settings = {**cfg.sample.model_dump(mode="json", exclude={"count", "batch", "step"}), **tiling(cfg)}
    sampler = cfg.sample.sampler
    if not sampler.options:
        del settings["sampler"]["options"]  # of few samplers: the names of all other sets are what they were
    if sampler.truncation == 1:
        del settings["sampler"]["truncation"]  # likewise
    scale = f"{sampler.guidance.scale:g}{'ho' if sampler.guidance.convention == 'ho' else ''}"
    words = f"{sampler.kind}{sampler.steps}-w{scale}-{cfg.sample.weights.replace(':', '')}"
    return f"{words}-{content_hash(settings)[:6]}"
