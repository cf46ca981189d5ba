"""What a CUDA graph cannot hold is said when the run is planned."""

import pytest

from pipeline.config.load import config_from
from pipeline.runtime.errors import UserError


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.precision=fp16"],
        ["train.compile=true"],
    ],
    ids=str,
)
def test_a_graph_that_cannot_be_recorded_is_refused(overrides):
    with pytest.raises(UserError, match=r"train\.cuda_graph: found true"):
        config_from(["experiment=glyphs16", "train.cuda_graph=true", *overrides])


@pytest.mark.parametrize("overrides", [["train.precision=bf16"], ["model=stylegan_tiny"]], ids=str)
def test_a_small_model_on_one_gpu_may_use_it(overrides):
    assert config_from(["experiment=glyphs16", "train.cuda_graph=true", *overrides]).train.cuda_graph
