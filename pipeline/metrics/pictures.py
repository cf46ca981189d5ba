"""The picture of the worst cases: samples beside the training images nearest to them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipeline.metrics.copies import Worst
from pipeline.runtime.files import atomic_path

mpl.rcParams["svg.hashsalt"] = "mudi"
_PAIRS = 4  # in a row


def draw_worst(
    path: Path, worst: Sequence[Worst], *, samples: npt.NDArray[np.uint8], train: npt.NDArray[np.uint8]
) -> None:
    """Write a PNG: each pair is a sample [H, W, C] and its nearest training image, worst first, with numbers.

    A ratio below 1 means: nearer than the threshold, a copy.
    """
    rows = -(-len(worst) // _PAIRS)
    figure = Figure(figsize=(2.6 * _PAIRS, 1.9 * rows), dpi=100)
    axes = figure.subplots(rows, 2 * _PAIRS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for k, (entry, sample, nearest) in enumerate(zip(worst, samples, train, strict=True)):
        for column, (image, title) in enumerate(
            ((sample, f"sample {entry.sample}\n{entry.ratio:.2f}"), (nearest, f"train {entry.train}"))
        ):
            axis = axes[k // _PAIRS, 2 * (k % _PAIRS) + column]
            grey = image.shape[2] == 1
            axis.imshow(image[:, :, 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
            axis.set_title(title, fontsize=11, color="red" if entry.ratio < 1 else "black")
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
