"""The metric in training is the metric of evaluation, on any number of ranks, and can end training."""

import json
import os
import signal
import time

import pytest
import tiny

from data_prep import reference
from pipeline.checkpoint import newest_valid, read
from pipeline.config.load import config_from, to_yaml
from pipeline.config.schema_metrics import DomainConfig
from pipeline.evaluate import evaluate
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.run_dir import RunDir, create_run
from pipeline.sample import sample
from pipeline.train.loop import train

DOMAIN = DomainConfig(width=8, features=8, max_images=600)
COUNT = 100  # two blocks, the second not full


def config(root, **settings):
    """An experiment that judges samples at steps 6 and 12."""
    cfg = tiny.config(root, metric_every="6 steps", metric_images=COUNT, **settings)
    return cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"domain": DOMAIN})})


def judged(run):
    return [row for row in tiny.history(run) if "in_loop/fd-domain" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one process, its data and reference."""
    cfg = config(tmp_path_factory.mktemp("sampled"), precision="fp64", preview_every="12 steps")
    tiny.prepare(cfg)
    reference.run(cfg)
    return cfg, tiny.run(cfg)


def test_it_is_the_number_that_evaluation_finds(trained):
    cfg, run = trained
    cfg = cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"count": COUNT})})
    sample(cfg, run)
    (path,) = evaluate(cfg, run)
    found, last = json.loads(path.read_text())["metrics"], judged(run)[-1]
    assert last["in_loop/fd-domain"] == pytest.approx(found["fd-domain"], rel=1e-3)
    assert last["in_loop/accuracy-domain"] == pytest.approx(found["accuracy-domain"], abs=0.011)


def test_two_ranks_find_what_one_finds(trained):
    cfg, run = trained
    found = judged(tiny.run(cfg.model_copy(update={"name": "several"}), world_size=2))
    assert [row["step"] for row in found] == [6, 12]
    for one, two in zip(judged(run), found, strict=True):
        assert two == pytest.approx(one, rel=1e-6)


def test_a_run_that_was_killed_finds_the_same(trained):
    cfg, run = trained
    cut = cfg.model_copy(update={"name": "cut"})
    (rank,) = tiny.start(cut)
    while rank.is_alive() and not judged(RunDir(cut.runs_dir / "cut")):
        time.sleep(0.002)
    os.kill(rank.pid, signal.SIGKILL)
    rank.join()
    assert tiny.history(tiny.run(cut)) == tiny.history(run)


def test_training_ends_when_it_no_longer_improves(trained, tmp_path):
    stop = {"metric": "in_loop/accuracy-domain", "patience": "6 steps"}
    stale = {"optim": {"lr": 1e-30}, "duration": "90 steps"}
    cfg = config(tmp_path, early_stop=stop, checkpoint_every="90 steps", **stale)
    cfg = cfg.model_copy(update={"data_dir": trained[0].data_dir})
    saved = read(newest_valid(tiny.run(cfg))[0]).numbers
    assert (saved["step"], saved["best_step"]) == (12, 6)


def test_what_is_missing_is_said_before_training(tmp_path):
    cfg = config(tmp_path)
    tiny.prepare(cfg)
    with pytest.raises(Incomplete, match=r"domain classifier is not trained\. Run mudi prepare reference"):
        train(cfg, create_run(cfg))
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    for word, said in {
        "train.early_stop={metric: in_loop/fd-domain, patience: 6 steps} train.metric_every=null": "needs train.metr",
        "evaluate.domain.enabled=false": "the domain classifier is what judges",
    }.items():
        overrides = word.replace("} ", "}|").split("|")
        with pytest.raises(UserError, match=said):
            config_from([str(tmp_path), *overrides])
