"""Training ends when validation no longer improves, at the same step however often it was interrupted."""

import pytest
import tiny

from pipeline.checkpoint import newest_valid, read
from pipeline.config.load import config_from, to_yaml
from pipeline.runtime.errors import UserError

STALE = {  # nothing is learned, so the first validation stays the best
    "duration": "100 steps",
    "optim": {"lr": 1e-30},
    "validate_every": "2 steps",
    "early_stop": {"patience": "6 steps"},
}


def test_it_stops_after_its_patience_and_the_run_is_finished(tmp_path):
    cfg = tiny.config(tmp_path, **STALE)
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    clock = read(newest_valid(run)[0]).numbers
    assert (clock["step"], clock["best_step"]) == (8, 2)
    assert run.finished()


def test_it_needs_validation(tmp_path):
    cfg = tiny.config(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    with pytest.raises(UserError, match=r"early_stop.metric: valid/loss needs train.validate_every, which is null"):
        config_from([str(tmp_path), "train.early_stop={patience: 3 steps}"])


def test_the_best_psnr_is_the_largest(tmp_path):
    early = {"metric": "valid/psnr", "patience": "50 steps"}
    cfg = tiny.config(tmp_path, model=tiny.AUTOENCODER, validate_every="2 steps", early_stop=early)
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    seen = [row["valid/psnr"] for row in tiny.history(run) if "valid/psnr" in row]
    assert len(set(seen)) > 3
    assert read(newest_valid(run)[0]).numbers["best"] == pytest.approx(max(seen))
