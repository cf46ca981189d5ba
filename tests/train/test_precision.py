"""Mixed precision: networks run narrow, losses and averages do not."""

import pytest
import tiny
import torch

from pipeline.checkpoint import newest_valid, read
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.train.loop import train


def test_bf16_trains_to_about_the_same_loss(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        cfg = tiny.config(tmp_path, name=precision, precision=precision, duration="40 steps", log_every="40 steps")
        tiny.prepare(cfg) if precision == "fp32" else None
        run = tiny.run(cfg)
        losses[precision] = next(row["loss"] for row in tiny.history(run) if "loss" in row)
        found = read(newest_valid(run)[0])
        assert {t.dtype for t in found.tensors["average.denoiser"].values()} == {torch.float32}
        assert {t.dtype for t in found.tensors["network.denoiser"].values()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]  # it really was narrower


def test_fp16_on_a_cpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which trains in fp16")
    cfg = tiny.config(tmp_path, precision="fp16")
    tiny.prepare(cfg)
    with pytest.raises(UserError, match=r"train.precision: found fp16 on a CPU"):
        train(cfg, create_run(cfg))
