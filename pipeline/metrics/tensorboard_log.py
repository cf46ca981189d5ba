"""Results in TensorBoard: scalars by step, and a row of the HParams table."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


def write_tensorboard(directory: Path, result: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write a result into a TensorBoard folder of its own; an earlier one of the same sample set is replaced.

    Args:
        settings: what the HParams table shows of the experiment; nested keys become `a.b`.
    """
    name = result["samples"]["set"]
    folder = directory / f"{result['step']}-{name.rsplit('-', 1)[-1]}"  # short: TensorBoard lists it beside each curve
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        # Single points: the name puts them behind the curves of training.
        metrics = {f"scores/{name}": value for name, value in sorted(result["metrics"].items())}
        shown = {"step": result["step"], "images": result["samples"]["count"], **_flat(settings)}
        writer.add_hparams(shown, metrics, run_name=".", global_step=result["step"])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Only what the table can hold: numbers, text and truth values; anything else as text."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
