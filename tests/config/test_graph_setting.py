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


@pytest.mark.parametrize("experiment", ["glyphs16", "glyphs16_gan", "glyphs16_vae", "celeba64_kl_f4"])
def test_every_objective_may_use_it(experiment):
    assert config_from([f"experiment={experiment}", "train.cuda_graph=true", "train.precision=bf16"]).train.cuda_graph
