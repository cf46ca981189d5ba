"""The names of metrics that evaluation and training write, and in which direction each is better. Torch-free.

A name says what is measured, in which feature space and after which resize, and against which split where that is not
the first reference: `fid`, `fid-768-clean`, `fd-dinov2-infinity`, `precision-domain@valid`.
"""

import re

# Kind -> whether the higher value is the better one.
_DIRECTIONS = {
    **dict.fromkeys(("fid", "sfid", "fd", "kid", "cmmd", "copy-rate", "niqe", "brisque", "cnniqa"), False),
    **dict.fromkeys(("loss", "kl", "perceptual", "l1", "l2", "mean_l1", "mean_l2"), False),
    **dict.fromkeys(("is", "precision", "recall", "density", "coverage", "accuracy"), True),
    **dict.fromkeys(("psnr", "ssim", "mean_psnr", "mean_ssim"), True),
}
_IN_A_SPACE = ("precision", "recall", "density", "coverage")
_RESIZE = r"(-(clean|torchmetrics))?"
_LAYER = r"(-(768|192|64))?"
_OTHER = r"-(domain|dinov2)"  # feature networks other than Inception
_OF_RESULTS = re.compile(
    rf"(fid{_LAYER}{_RESIZE}(-infinity)?|sfid{_RESIZE}|fd{_OTHER}(-infinity)?"
    rf"|(kid|precision|recall|density|coverage)({_OTHER}|{_LAYER}{_RESIZE})"
    rf"|is({_RESIZE}|-domain)|accuracy-(domain|attributes)|cmmd|copy-rate(-\w+)*|niqe|brisque|cnniqa)"
)


# For "did you mean".
EXAMPLES = (
    *("fid", "kid", "is", "precision", "recall", "density", "coverage", "fd-domain", "kid-domain", "is-domain"),
    *("accuracy-domain", "accuracy-attributes", "precision-domain", "recall-domain", "fd-dinov2", "cmmd", "niqe"),
    *("brisque", "cnniqa", "copy-rate-pixel"),
)


def is_known(metric: str) -> bool:
    """Whether evaluation writes a metric of this name, where its settings ask for it."""
    return _OF_RESULTS.fullmatch(metric.partition("@")[0]) is not None


def higher_is_better(metric: str) -> bool | None:
    """Whether the higher value of a metric is the better one; None where the name is not known."""
    name = metric.rpartition("/")[2].partition("@")[0]
    kind = "copy-rate" if name.startswith("copy-rate") else name.partition("-")[0]
    return _DIRECTIONS.get(kind)


def needs_inception(metric: str) -> bool:
    """Whether a metric that evaluation writes is one of Inception's features."""
    name = metric.partition("@")[0]
    kind = name.partition("-")[0]
    return kind in ("fid", "sfid", "is", "kid", *_IN_A_SPACE) and not re.search(_OTHER, name)
