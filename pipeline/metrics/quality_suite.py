"""No-reference quality of a sample set, image by image, beside that of held-out images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config.schema_metrics import QualityConfig
from pipeline.metrics.copies import Images
from pipeline.metrics.inception_weights import checked_file
from pipeline.metrics.quality import Brisque, CnnIqa, Niqe
from pipeline.metrics.suite import Measured
from pipeline.runtime.files import sha256_file

Score = Callable[[npt.NDArray[np.uint8]], float]
_SMALL = 96  # pixels below which the scores are far from what they were fitted to


def measure_quality(samples: Images, held_out: Images | None, *, cfg: QualityConfig) -> Measured:
    """`niqe`, `brisque` and `cnniqa`, whichever have weights: the mean over images, and each image's in the details."""
    out = Measured()
    for name, path in (("niqe", cfg.niqe), ("brisque", cfg.brisque), ("cnniqa", cfg.cnniqa)):
        if path is not None:
            found = checked_file(f"evaluate.quality.{name}", path, None)
            _measure(out, name, found, samples=samples, held_out=held_out, cfg=cfg)
    return out


def _measure(
    out: Measured, name: str, path: Path, *, samples: Images, held_out: Images | None, cfg: QualityConfig
) -> None:
    score, accepts = _metric(name, path)
    count = min(samples.count, cfg.images)
    images = samples.read(np.arange(count, dtype=np.int64))
    height, width = images.shape[1:3]
    if not accepts(height, width):
        out.words.append(f"{name} was not measured: images of {width} x {height} pixels are too small for it")
        return
    values = np.array([score(image) for image in images])
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        out.words.append(f"{name} was not measured: every image is flat")
        return
    beside = None
    if held_out is not None:
        real = held_out.read(np.arange(min(held_out.count, cfg.images), dtype=np.int64))
        beside = float(np.nanmean([score(image) for image in real]))
    out.add(
        name,
        float(finite.mean()),
        std=float(finite.std()),
        count=len(finite),
        held_out=beside,
        values=[round(float(v), 6) if np.isfinite(v) else None for v in values],
        sha256=sha256_file(path),
    )
    if min(height, width) < _SMALL:
        out.words.append(
            f"{name} was fitted to photographs of several hundred pixels: on {width} x {height} compare it only with "
            f"the held-out images' {'(none here)' if beside is None else f'{beside:.4g}'}"
        )


def _metric(name: str, path: Path) -> tuple[Score, Callable[[int, int], bool]]:
    if name == "niqe":
        niqe = Niqe(path)
        return niqe, niqe.accepts
    if name == "cnniqa":
        network = CnnIqa(path)
        return network.score, network.accepts
    return Brisque(path), lambda height, width: min(height, width) >= 8
