"""What GPUs can compute at most, from their data sheets: what a share of it (MFU) is a share of."""

from typing import NamedTuple


class Peak(NamedTuple):
    """Dense products in TFLOP/s. None: the card has no units for it."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


# By what the card's name holds; the first that fits counts. Variants with a lower clock stand before the usual ones.
_PEAKS = (
    ("H100 PCIe", Peak(bf16=756, fp16=756, tf32=378, fp32=51)),
    ("H100 NVL", Peak(bf16=835, fp16=835, tf32=417, fp32=60)),
    ("H100", Peak(bf16=989, fp16=989, tf32=494, fp32=67)),
    ("H200 NVL", Peak(bf16=835, fp16=835, tf32=417, fp32=60)),
    ("H200", Peak(bf16=989, fp16=989, tf32=494, fp32=67)),
    ("A100", Peak(bf16=312, fp16=312, tf32=156, fp32=19.5)),
    ("V100", Peak(bf16=None, fp16=125, tf32=None, fp32=15.7)),
    ("L40S", Peak(bf16=362, fp16=362, tf32=183, fp32=91.6)),
    ("RTX 4090", Peak(bf16=165, fp16=165, tf32=82.6, fp32=82.6)),
)


def peak_tflops(card: str, precision: str) -> float | None:
    """Of a card by its name, at a `train.precision`; None where it is not known, as for fp64 or a part of a card.

    tf32 is what float32 products run at where the card rounds them, fp32 what they run at elsewhere.
    """
    if "MIG" in card:
        return None
    found = next((peak for name, peak in _PEAKS if name in card), None)
    if found is None or precision not in Peak._fields:
        return None
    if precision == "tf32" and found.tf32 is None:
        return found.fp32
    at: float | None = getattr(found, precision)
    return at
