"""A training that begins with another run's weights."""

import pytest
import tiny
from safetensors.torch import load_file

from pipeline.config.needs import missing
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.train.loop import train


def begun(cfg):
    run = create_run(cfg)
    assert train(cfg, run) == 0
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    tiny.prepare(tiny.config(folder))
    begun(tiny.config(folder, name="first", duration="4 steps", checkpoint_every="2 steps", keep_last=9))
    return folder


def weights(run, step, kind="network"):
    return load_file(run.checkpoint(step) / f"{kind}.denoiser.safetensors")


@pytest.mark.parametrize("place", ["first", "first/checkpoints/step-000000002"])
def test_it_begins_with_the_ema_of_a_run_or_of_a_checkpoint(root, place):
    step = 2 if "step" in place else 4
    first = begun(tiny.config(root, name="first", duration="4 steps", checkpoint_every="2 steps", keep_last=9))
    cfg = tiny.config(root, name=f"next{step}", duration="2 steps", keep_last=9, start_from=root / "runs" / place)
    assert missing(cfg, ["train"]) == []
    found = begun(cfg)
    expected = weights(first, step, "ema")
    for kind in ("network", "ema"):  # step 0 is what training began with
        assert all(tensor.equal(expected[name]) for name, tensor in weights(found, 0, kind).items())
    assert not all(tensor.equal(expected[name]) for name, tensor in weights(found, 2).items())


def test_a_run_that_goes_on_does_not_need_it_any_more(root):
    cfg = tiny.config(root, name="on", duration="2 steps", start_from=root / "runs" / "first")
    run = begun(cfg)
    (run.checkpoints / "finished.json").unlink()
    longer = cfg.model_copy(update={"train": cfg.train.model_copy(update={"start_from": root / "gone"})})
    assert train(longer, run) == 0


def test_other_conditions_begin_anew_and_other_networks_are_refused(root, capsys):
    start = {"duration": "1 steps", "start_from": root / "runs" / "first"}
    plain = tiny.config(root, name="plain", model={**tiny.UNET, "condition": "none"}, **start)
    begun(plain)
    back = {"duration": "1 steps", "start_from": root / "runs" / "plain"}
    capsys.readouterr()
    begun(tiny.config(root, name="told", **back))
    assert "condition" in capsys.readouterr().err
    wide = tiny.config(root, name="wide", model={**tiny.UNET, "width": 2 * tiny.UNET["width"]}, **start)
    with pytest.raises(UserError, match=r"train\.start_from.*does not fit"):
        train(wide, create_run(wide))


def test_what_is_not_a_run_is_said_before_anything_starts(root, tmp_path):
    for place in (tmp_path, root / "runs" / "first" / "checkpoints" / "step-000000099"):
        (problem,) = missing(tiny.config(root, name="no", start_from=place), ["train"])
        assert "train.start_from: found" in problem and "expected a run directory" in problem
