"""Mixed precision: networks run narrow, losses and EMAs do not."""

import shutil

import pytest
import tiny
import torch
from test_nonfinite import Poisoned

from pipeline.checkpoint import newest_valid, read
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.train import setup, state
from pipeline.train.loop import train


def test_bf16_trains_to_about_the_same_loss(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        cfg = tiny.config(tmp_path, name=precision, precision=precision, duration="40 steps", log_every="40 steps")
        tiny.prepare(cfg) if precision == "fp32" else None
        run = tiny.run(cfg)
        losses[precision] = next(row["loss"] for row in tiny.history(run) if "loss" in row)
        found = read(newest_valid(run)[0])
        assert {t.dtype for t in found.tensors["ema.denoiser"].values()} == {torch.float32}
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


PLAIN = setup._accelerator


def fp16_on_a_cpu(monkeypatch, *, scale):
    """fp16 on a CPU, which Accelerate refuses to set up: its real autocast, wired as on a GPU. The scale starts at
    `scale`, and doubles after 5 good steps."""

    def made(cfg, run, device):
        plain = cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "fp32"})})
        found = PLAIN(plain, run, device)
        found.state._mixed_precision, found.native_amp = "fp16", True
        return found

    monkeypatch.setattr(setup, "_accelerator", made)
    monkeypatch.setattr(state, "START", scale)
    monkeypatch.setattr(state, "INTERVAL", 5)


def test_the_loss_scale_comes_down_is_not_counted_as_failure_and_is_resumed(tmp_path, monkeypatch):
    fp16_on_a_cpu(monkeypatch, scale=2.0**40)
    cfg = tiny.config(tmp_path, duration="40 steps", checkpoint_every="10 steps", keep_last=9, nonfinite_limit=3)
    tiny.prepare(cfg)
    fp16 = cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "fp16"})})
    run = create_run(fp16)
    assert train(fp16, run) == 0
    expected, saved = tiny.fingerprint(run, 40), read(run.checkpoint(40)).numbers
    assert 10 < saved["skipped"] < 35 and saved["rollbacks"] == 0  # more in a row than the limit, as was to be expected
    assert saved["loss_scale"] < 2.0**30
    (run.checkpoints / "finished.json").unlink()
    shutil.rmtree(run.checkpoint(40))
    assert train(fp16, run) == 0
    again = read(run.checkpoint(40)).numbers
    assert tiny.fingerprint(run, 40) == expected
    assert (again["loss_scale"], again["loss_scale_streak"]) == (saved["loss_scale"], saved["loss_scale_streak"])


def test_a_rollback_takes_the_loss_scale_back_too(tmp_path, monkeypatch):
    """Four bad steps: 2 becomes 1 while they may be the scale's fault, and then they count."""
    fp16_on_a_cpu(monkeypatch, scale=2.0)
    monkeypatch.setattr(setup, "build_objective", Poisoned)
    monkeypatch.setattr(Poisoned, "steps", range(4, 8))
    cfg = tiny.config(tmp_path, duration="12 steps", checkpoint_every="4 steps", nonfinite_limit=3)
    tiny.prepare(cfg)
    run = create_run(cfg)
    assert train(cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "fp16"})}), run) == 0
    before, after = (read(run.checkpoint(step)).numbers for step in (8, 12))
    assert (after["rollbacks"], after["data_offset"]) == (1, 4)
    # Step 4 had 2 and a streak of 4. The scale doubles after 5 good steps: at 5 and at 10.
    assert (before["loss_scale"], before["loss_scale_streak"]) == (4.0, 3)
    assert (after["loss_scale"], after["loss_scale_streak"]) == (8.0, 2)


def test_a_rollback_to_the_beginning_takes_back_the_first_loss_scale(tmp_path, monkeypatch):
    fp16_on_a_cpu(monkeypatch, scale=0.5)
    monkeypatch.setattr(setup, "build_objective", Poisoned)
    monkeypatch.setattr(Poisoned, "steps", range(3))
    cfg = tiny.config(tmp_path, duration="4 steps", checkpoint_every="4 steps", nonfinite_limit=3)
    tiny.prepare(cfg)
    run = create_run(cfg)
    assert train(cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "fp16"})}), run) == 0
    numbers = read(run.checkpoint(4)).numbers
    assert (numbers["rollbacks"], numbers["loss_scale"], numbers["loss_scale_streak"]) == (1, 0.5, 4)
