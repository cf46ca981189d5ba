"""No-reference quality of a sample set, image by image, beside that of held-out images.

Images are scored in blocks, each a file written at once, as features are: a killed job goes on where it was, and
several processes share the blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.config.registry import METRICS
from pipeline.config.schema_metrics import QualityConfig
from pipeline.metrics.extraction import Read, Work, all_features, blocks_to_do, save_features
from pipeline.metrics.inception_weights import checked_file
from pipeline.metrics.quality import Niqe, Score
from pipeline.metrics.suite import Measured
from pipeline.runtime.files import content_hash, sha256_file
from pipeline.runtime.parts import WHOLE

BLOCK = 64  # images of one restartable piece of work
SAID = {  # what a reader has to know of a scale
    "cnniqa": "cnniqa is the network trained on LIVE: it predicts distortion, 0 to about 100, lower is better; scores "
    "of cnniqa-koniq, trained on KonIQ-10k (0 to 1, higher is better), do not compare",
    "cnniqa-koniq": "cnniqa-koniq is the network that pyiqa trained on KonIQ-10k: it predicts quality, 0 to 1, higher "
    "is better; scores of cnniqa, trained on LIVE, do not compare",
}
_SMALL = 96  # pixels below which the scores are far from what they were fitted to


@dataclass(frozen=True)
class Scorer:
    """One measure: an image [H, W, C] -> a number, nan for a flat one; `accepts(height, width)` says of which sizes."""

    name: str
    sha256: str
    score: Score
    accepts: Callable[[int, int], bool]


def build_scorers(cfg: QualityConfig) -> list[Scorer]:
    """The registered measures of single images, whichever have weights."""
    found = []
    for name, path in cfg.weights().items():
        file = checked_file(cfg.setting(name), path, None)
        found.append(Scorer(name, sha256_file(file), *METRICS[name].load()(file)))
    return found


def quality_work(directory: Path, scorers: Sequence[Scorer], *, count: int, most: int) -> Work:
    """The blocks of a set's first images, at most `most`. Other weights are another folder."""
    key = content_hash([scorer.sha256 for scorer in scorers])[:8]
    return Work(directory.with_name(f"{directory.name}-{key}"), min(count, most), BLOCK, BLOCK)


def score_blocks(work: Work, read: Read, scorers: Sequence[Scorer], *, of: str, part: tuple[int, int] = WHOLE) -> None:
    """As `extraction.extract`, with the scores of single images."""
    for path, indices in blocks_to_do(work, part=part, label=f"quality of {of}"):
        images = read(indices)
        scores = {s.name: [[s.score(image)] for image in images] for s in scorers if s.accepts(*images.shape[1:3])}
        if scores:
            save_features(path, {k: torch.tensor(v, dtype=torch.float64) for k, v in scores.items()})


def measure_quality(
    samples: Work, held_out: Work | None, scorers: Sequence[Scorer], *, size: tuple[int, int]
) -> Measured:
    """The mean over images of each measure, and every image's in the details, from finished blocks.

    Args:
        size: height and width of the images.
    """
    out, (height, width) = Measured(), size
    for scorer in scorers:
        if not scorer.accepts(height, width):
            out.notes.append(
                f"{scorer.name} was not measured: images of {width} x {height} pixels are too small for it"
            )
            continue
        values = all_features(samples, scorer.name)[:, 0]
        finite = values[np.isfinite(values)]
        if len(finite) == 0:
            out.notes.append(f"{scorer.name} was not measured: every image is flat")
            continue
        beside = None if held_out is None else float(np.nanmean(all_features(held_out, scorer.name)))
        out.add(
            scorer.name,
            float(finite.mean()),
            std=float(finite.std()),
            count=len(finite),
            held_out=beside,
            values=[round(float(v), 6) if np.isfinite(v) else None for v in values],
            sha256=scorer.sha256,
        )
        if said := SAID.get(scorer.name):
            out.notes.append(said)
        if scorer.name == "niqe" and Niqe.overlaps(height, width):
            out.notes.append(
                f"niqe reads images of {width} x {height} in overlapping blocks of 96 pixels, as fewer than two fit "
                "side by side: it compares with images of that size alone"
            )
        if min(height, width) < _SMALL:
            beside_it = "held-out images have no score here" if beside is None else f"held-out images have {beside:.4g}"
            out.notes.append(
                f"{scorer.name} was fitted to photographs of several hundred pixels: at {width} x {height} it compares "
                f"with images of that size alone; {beside_it}"
            )
    return out
