"""The search itself, without jobs: what is chosen, that it is a function of its history, that nothing is lost."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import optuna
import pytest
from optuna.trial import TrialState
from sweeping import base, toy_value, work

from slurm.ledger import State, note
from slurm.queue import Seen
from slurm.sweep import driver, trials
from slurm.sweep.driver import Outcome, Step, dimensions_of
from slurm.sweep.folder import SweepDir, settings_from
from slurm.sweep.runs import Run, make, runs_of, stages
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Dimension, Params, dimension

LR, WIDTH, KIND = (
    dimension("lr", "tag(log, interval(1e-6, 1))"),
    dimension("width", "interval(8, 256)"),
    dimension("kind", "sgd,adam,adamw,lion"),
)
SPACE = (LR, WIDTH, KIND)


def known(params: Params) -> float:
    """A bowl in three settings, of which one is a choice; 0 at lr 1e-3, width 64, adam."""
    rate = math.log10(float(params["lr"]) / 1e-3) ** 2
    width = math.log2(float(params["width"]) / 64) ** 2
    return rate + 0.5 * width + {"sgd": 2.0, "adam": 0.0, "adamw": 0.2, "lion": 1.0}[str(params["kind"])]


def settings(kind: str, *, seed: int = 0, **more: object) -> SweepSettings:
    space = {d.key: "1" for d in SPACE}
    values = {"name": "s", "space": space, "strategy": {"kind": kind, "seed": seed}, "trials": 40, **more}
    return SweepSettings.model_validate(values)


def search(
    path: Path | None, how: SweepSettings, *, count: int, order: int = 1, space: tuple[Dimension, ...] = SPACE
) -> list:
    """Run a search with `at_once` trials in flight; `order` says which of them ends first (1: the oldest)."""
    study = optuna.create_study(direction=how.direction) if path is None else trials.open_study(path, how)
    flying: list = []
    while len(study.get_trials(deepcopy=False)) < count or flying:
        while len(flying) < how.at_once and len(study.get_trials(deepcopy=False)) < count:
            params = trials.next_params(study.get_trials(deepcopy=False), how, space)
            if params is None:
                break
            flying.append(trials.add(study, params, space))
        trial = flying.pop(0 if order == 1 else -1)
        trials.tell(study, trial, "complete", value=known(trial.params), notes={})
    return study.get_trials(deepcopy=False)


def test_tpe_beats_random_search_on_a_known_function_over_20_seeds():
    best = {
        kind: [min(t.value for t in search(None, settings(kind, seed=seed, at_once=2), count=25)) for seed in range(20)]
        for kind in ("random", "tpe")
    }
    wins = sum(t < r for t, r in zip(best["tpe"], best["random"], strict=True))
    assert median(best["tpe"]) < 0.5 * median(best["random"]), best
    assert wins >= 15, best  # by chance, 15 of 20 or more come in 2 % of the cases


def test_a_search_does_not_depend_on_which_trial_ends_first(tmp_path):
    how = settings("tpe", at_once=3)
    oldest_first = search(tmp_path / "a", how, count=16)
    newest_first = search(tmp_path / "b", how, count=16, order=-1)
    assert [t.params for t in oldest_first] == [t.params for t in newest_first]
    free = [
        search(tmp_path / f"free{o}", settings("tpe", at_once=3, reproducible=False), count=16, order=o)
        for o in (1, -1)
    ]
    assert [t.params for t in free[0]] != [t.params for t in free[1]]


def test_a_grid_is_gone_through_once_and_an_extended_one_adds_what_is_new(tmp_path):
    how = SweepSettings(name="g", space={"a": "1,2", "b": "x,y"})
    space = (dimension("a", "1,2"), dimension("b", "x,y"))
    study = trials.open_study(tmp_path / "j", how)
    while params := trials.next_params(study.get_trials(deepcopy=False), how, space):
        trials.add(study, params, space)
    assert [t.params for t in study.trials] == [{"a": a, "b": b} for a in "12" for b in "xy"]
    more = SweepSettings(name="g", space={"a": "1,2,3", "b": "x,y"})
    wider = (dimension("a", "1,2,3"), dimension("b", "x,y"))
    while params := trials.next_params(study.get_trials(deepcopy=False), more, wider):
        trials.add(study, params, wider)
    assert [t.params for t in study.trials[4:]] == [{"a": "3", "b": "x"}, {"a": "3", "b": "y"}]
    assert len(trials.remade(study.trials, more, wider).trials) == 6


def test_failed_trials_do_not_change_where_the_search_goes_on(tmp_path):
    how = settings("tpe", at_once=1)
    study = trials.open_study(tmp_path / "j", how)
    for number in range(30):
        trial = trials.add(study, trials.next_params(study.get_trials(deepcopy=False), how, SPACE), SPACE)
        failed = number % 3 == 0
        word, value = ("failed", None) if failed else ("complete", known(trial.params))
        trials.tell(study, trial, word, value=value, notes={"cause": "killed"} if failed else {})
    states = [t.state for t in study.trials]
    assert states.count(TrialState.FAIL) == 10 and states.count(TrialState.COMPLETE) == 20
    assert study.best_value < 1.0


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from test_sweep_search import SPACE, settings
from slurm.sweep import trials
how = settings("random", at_once=1)
study = trials.open_study(Path(sys.argv[1]), how, repair=True)
while True:
    params = trials.next_params(study.get_trials(deepcopy=False), how, SPACE)
    trial = trials.add(study, params, SPACE)
    trials.tell(study, trial, "complete", value=1.0, notes={"values": [1.0]})
    print("told", flush=True)
"""


def test_a_journal_whose_writers_are_killed_has_every_trial_whole_or_not_at_all(tmp_path):
    here = Path(__file__).resolve()
    journal, how = tmp_path / "j", settings("random", at_once=1)
    numbers = 0
    for cut in range(3):
        words = [sys.executable, "-c", WRITER, str(journal), str(here.parent), str(here.parents[2])]
        env = os.environ | {"PYTHONPATH": f"{here.parents[2]}:{here.parents[1]}:{here.parent}"}
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, env=env)
        assert writer.stdout.readline() == b"told\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.1 + 0.07 * cut)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        with journal.open("a") as file:
            file.write('{"op_code":4,"worker_id":"cut')  # what a dying file server may leave
        found = trials.open_study(journal, how, repair=True).trials
        assert [t.number for t in found] == list(range(len(found))) and len(found) > numbers
        assert all(set(t.params) == {"lr", "width", "kind"} for t in found)
        assert sum(t.state == TrialState.RUNNING for t in found[numbers:]) <= 1
        numbers = len(found)


def test_what_waited_for_data_that_never_came_was_not_a_try(tmp_path):
    how = settings("random", retries=1)
    sweep = SweepDir(tmp_path)
    run, step = Run(sweep, 0, 0), Step(sweep, how, by_hand=False, local=False)
    blocked = State("train", "blocked", cause="upstream")
    words = []
    for number, state in enumerate([blocked, blocked, *[State("train", "failed", cause="killed")] * 2]):
        submitted = {"job": "train", "batch": f"batch-{number:04d}", "ids": [str(number)], "born": [], "snapshot": ""}
        note(run.records, "submitted", executor="slurm", **submitted)
        outcome = Outcome(run, "open")
        step._judge(outcome, replace(state, ids=(str(number),)))
        words.append(outcome.word)
    assert words == ["open", "open", "open", "failed"]
    assert run.final()["tries"] == 2


def test_a_run_that_ends_while_slurm_is_asked_has_its_value_and_has_not_failed(tmp_path, monkeypatch):
    how = settings_from([*base(tmp_path), "cluster=local", "name=one", "train.optim.lr=1e-3,2e-3", "sweep.retries=0"])
    sweep = SweepDir(how.path)
    sweep.write(how)
    study, space = trials.open_study(sweep.journal, how), dimensions_of(how)
    trial = trials.add(study, trials.next_params([], how, space) or {}, space)
    (run,) = runs_of(sweep, trial.number, how.seeds)
    launch = make(sweep, how, trial.params, run=run)
    row = {"executor": "slurm", "born": [], "snapshot": "", "batch": "batch-0000", "ids": ["7"]}
    for stage in stages(launch):
        note(run.records, "submitted", job=stage, **row)

    def ends_meanwhile(_ids):
        work(launch)
        return {"7": Seen("7", "COMPLETED")}

    monkeypatch.setattr(driver, "look", ends_meanwhile)
    step = Step(sweep, how, by_hand=False, local=True)
    step._look()
    (outcome,) = step.open[trial.number]
    assert (outcome.word, outcome.value) == ("complete", pytest.approx(toy_value(how, trial)))


def test_median_pruning_ends_the_worse_half(tmp_path):
    how = settings("random", at_once=1, pruning={"kind": "median", "first_kimg": 1, "startup": 3})
    study = trials.open_study(tmp_path / "j", how)
    for value in (1.0, 2.0, 3.0):
        trial = trials.add(study, trials.next_params(study.trials, how, SPACE), SPACE)
        for images in (1000, 2000):
            assert not trials.report(study, trial.number, images=images, value=value)
        trials.tell(study, trial, "complete", value=value, notes={})
    better = trials.add(study, trials.next_params(study.trials, how, SPACE), SPACE)
    assert not trials.report(study, better.number, images=1000, value=1.5)
    worse = trials.add(study, trials.next_params(study.trials, how, SPACE), SPACE)
    assert not trials.report(study, worse.number, images=500, value=9.0)  # before the first rung
    assert trials.report(study, worse.number, images=1000, value=2.5)


@pytest.mark.parametrize("kind", ["halving", "hyperband"])
def test_halving_lets_one_in_eta_go_on(tmp_path, kind):
    how = settings("random", at_once=1, pruning={"kind": kind, "first_kimg": 1, "eta": 3})
    study = trials.open_study(tmp_path / "j", how)
    ended = 0
    for number in range(18):
        trial = trials.add(study, trials.next_params(study.trials, how, SPACE), SPACE)
        value = float((7 * number) % 18)
        for images in (1000, 3000, 9000, 27000):
            if trials.report(study, trial.number, images=images, value=value):
                ended += 1
                trials.tell(study, trial, "pruned", value=None, notes={})
                break
        else:
            trials.tell(study, trial, "complete", value=value, notes={})
    assert ended >= 6 and study.best_value == 0.0
