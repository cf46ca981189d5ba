"""Mixed precision: networks run narrow, losses and averages do not."""

import shutil

import pytest
import tiny
import torch

from pipeline.checkpoint import newest_valid, read
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.train import loss_scale, session
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


PLAIN = session._accelerator


def with_loss_scaling(cfg, device):
    """fp16 on a CPU, which Accelerate refuses to set up: its real autocast, wired as on a GPU."""
    fp32 = cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "fp32"})})
    made = PLAIN(fp32, device)
    made.state._mixed_precision, made.native_amp = "fp16", True
    return made


def test_the_loss_scale_comes_down_is_not_counted_as_failure_and_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_accelerator", with_loss_scaling)
    monkeypatch.setattr(loss_scale, "START", 2.0**40)
    monkeypatch.setattr(loss_scale, "INTERVAL", 5)
    cfg = tiny.config(tmp_path, duration="40 steps", checkpoint_every="10 steps", keep_last=9, nonfinite_limit=3)
    tiny.prepare(cfg)
    fp16 = cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "fp16"})})
    run = create_run(fp16)
    assert train(fp16, run) == 0
    expected, clock = tiny.fingerprint(run, 40), read(run.checkpoint(40)).numbers
    assert 10 < clock["skipped"] < 35 and clock["rollbacks"] == 0  # more in a row than the limit, as was to be expected
    assert clock["loss_scale"] < 2.0**30
    (run.checkpoints / "finished.json").unlink()
    shutil.rmtree(run.checkpoint(40))
    assert train(fp16, run) == 0
    again = read(run.checkpoint(40)).numbers
    assert tiny.fingerprint(run, 40) == expected
    assert (again["loss_scale"], again["loss_scale_streak"]) == (clock["loss_scale"], clock["loss_scale_streak"])
