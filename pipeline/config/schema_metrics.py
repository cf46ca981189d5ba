"""Settings of evaluation."""

from pipeline.config.base import Settings


class EvaluateConfig(Settings):
    """What is measured on a sample set."""

    reference_split: str = "train"
