"""The study of a sweep, without jobs: what is chosen, that it is chosen once, and what is told, whoever is killed."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from pipeline.runtime.files import read_json
from slurm.sweep import study
from slurm.sweep.runs import params_file
from slurm.sweep.settings import Params, SweepDir, SweepSettings

SPACE = {"lr": "tag(log, interval(1e-6, 1))", "width": "int(interval(8, 256))", "kind": "sgd,adam,adamw,lion"}


def settings(kind: str, *, seed: int = 0, **more: object) -> SweepSettings:
    values = {"name": "s", "space": SPACE, "strategy": {"kind": kind, "seed": seed}, "trials": 40, **more}
    return SweepSettings.model_validate(values)


def bowl(params: Params) -> float:
    """0 at lr 1e-3, width 64, adam."""
    rate = math.log10(float(params["lr"]) / 1e-3) ** 2
    width = math.log2(float(params["width"]) / 64) ** 2
    return rate + 0.5 * width + {"sgd": 2.0, "adam": 0.0, "adamw": 0.2, "lion": 1.0}[str(params["kind"])]


def search(how: SweepSettings, count: int) -> list[float]:
    found: list[optuna.trial.FrozenTrial] = []
    for number in range(count):
        params = study.choose(found, how, number)
        attributes = {study.TRIAL: number, study.PARAMS: params}
        found.append(create_trial(value=bowl(params), user_attrs=attributes))
    return [t.value for t in found]


def test_tpe_beats_random_search_on_a_known_function_over_20_seeds():
    best = {kind: [min(search(settings(kind, seed=seed), 25)) for seed in range(20)] for kind in ("random", "tpe")}
    assert median(best["tpe"]) < 0.5 * median(best["random"]), best
    assert sum(t < r for t, r in zip(best["tpe"], best["random"], strict=True)) >= 15, best  # by chance in 2 %


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_what_need_not_depend_on_the_order_of_tasks_does_not(tmp_path, kind):
    chosen = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        sweep = SweepDir(tmp_path / str(order[0]))
        sweep.path.mkdir()
        found = {n: study.params_of(sweep, settings(kind), n) for n in order}
        assert found == {n: study.params_of(sweep, settings(kind), n) for n in order}  # asked again
        chosen.append([found[n] for n in range(4)])
    assert chosen[0] == chosen[1] and len({str(p) for p in chosen[0]}) == 4


ASKER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from test_sweep_study import settings
from slurm.sweep import study
from slurm.sweep.settings import SweepDir
sweep, how = SweepDir(Path(sys.argv[1])), settings("tpe", seeds=2)
first, count = int(sys.argv[3]), int(sys.argv[4])
for number in range(first, first + count):
    study.params_of(sweep, how, number)
    print("asked", flush=True)
    for seed in range(2):
        study.Reporter(sweep, how, number).tell(seed, float(number + seed))
"""


def asker(root: Path, first: int, count: int) -> "subprocess.Popen[bytes]":
    here = Path(__file__).resolve()
    env = os.environ | {"PYTHONPATH": f"{here.parents[2]}:{here.parents[1]}:{here.parent}"}
    argv = [sys.executable, "-c", ASKER, str(root), str(here.parent), str(first), str(count)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, env=env)


def test_askers_that_are_killed_and_start_again_leave_every_trial_once(tmp_path):
    sweep, how, journal = SweepDir(tmp_path), settings("tpe", seeds=2), tmp_path / study.JOURNAL
    for cut in range(2):
        pair = [asker(tmp_path, first, 12) for first in (0, 12)]  # two at a time, as tasks of an array
        for process in pair:
            assert process.stdout is not None and process.stdout.readline() == b"asked\n"
        time.sleep(0.1 * cut)
        for process in pair:
            process.send_signal(signal.SIGKILL)
            process.wait()
        with journal.open("a") as file:
            file.write('{"op_code":4,"worker_id":"cut')  # what a dying file server may leave
        for lock in tmp_path.glob("*.journal.lock"):
            lock.unlink()  # as Optuna does 30 s after its holder died
    before = {n: read_json(params_file(sweep, n)) for n in range(24) if params_file(sweep, n).is_file()}
    pair = [asker(tmp_path, first, 12) for first in (0, 12)]
    assert [process.wait() for process in pair] == [0, 0]
    trials = study.open_study(sweep, how).trials
    assert sorted(t.user_attrs[study.TRIAL] for t in trials) == list(range(24))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert all(t.value == t.user_attrs[study.TRIAL] + 0.5 for t in trials)  # the mean of two seeds
    for t in trials:
        number = t.user_attrs[study.TRIAL]
        assert t.user_attrs[study.PARAMS] == read_json(params_file(sweep, number))
        assert number not in before or before[number] == t.user_attrs[study.PARAMS]


def test_told_again_nothing_changes_and_choices_are_not_written_into_the_journal(tmp_path):
    choices = ",".join(f"value{n}" for n in range(400))
    how = SweepSettings(name="s", space={"a": choices, "b": "1,2"}, strategy={"kind": "tpe"}, trials=30)
    sweep = SweepDir(tmp_path)
    for number in range(30):
        study.params_of(sweep, how, number)
        reporter = study.Reporter(sweep, how, number)
        for value in (1.0, 2.0):
            reporter.tell(0, value)
    assert {t.value for t in study.open_study(sweep, how).trials} == {1.0}
    size = (tmp_path / study.JOURNAL).stat().st_size
    assert size < 30 * 1500, size


def test_an_extended_space_keeps_the_trials_that_lie_in_it():
    old = settings("tpe", trials=8)
    found = [
        create_trial(value=bowl(p), user_attrs={study.PARAMS: dict(p)})
        for p in (study.choose([], old, n) for n in range(8))
    ]
    wider = settings("tpe", space=SPACE | {"kind": SPACE["kind"] + ",muon"})
    narrow = settings("tpe", space=SPACE | {"width": "int(interval(8, 9))"})
    assert len(study.remade(found, wider, optuna.samplers.RandomSampler()).trials) == 8
    assert len(study.remade(found, narrow, optuna.samplers.RandomSampler()).trials) < 8


def reported(sweep: SweepDir, how: SweepSettings, number: int, values: dict[int, float]) -> bool:
    """Whether a trial with these values, by images seen, is pruned; it is told of its end."""
    study.params_of(sweep, how, number)
    reporter = study.Reporter(sweep, how, number)
    for images, value in values.items():
        if reporter.report(images, value):
            reporter.tell_pruned()
            return True
    reporter.tell(0, list(values.values())[-1])
    return False


def test_median_pruning_ends_the_worse_half(tmp_path):
    how = settings("random", pruning={"kind": "median", "first_kimg": 1, "startup": 3})
    sweep = SweepDir(tmp_path)
    for number, value in enumerate((1.0, 2.0, 3.0)):
        assert not reported(sweep, how, number, {1000: value, 2000: value})
    assert not reported(sweep, how, 3, {1000: 1.5})
    assert not reported(sweep, how, 4, {500: 9.0})  # before the first look
    assert reported(sweep, how, 5, {1000: 2.5})
    assert study.open_study(sweep, how).trials[5].state == TrialState.PRUNED


@pytest.mark.parametrize("kind", ["halving", "hyperband"])
def test_halving_lets_one_in_eta_go_on(tmp_path, kind):
    how, sweep = settings("random", pruning={"kind": kind, "first_kimg": 1, "eta": 3}), SweepDir(tmp_path)
    values = [float((7 * number) % 18) for number in range(18)]
    ended = [reported(sweep, how, n, dict.fromkeys((1000, 3000, 9000, 27000), value)) for n, value in enumerate(values)]
    assert sum(ended) >= 6 and not ended[values.index(0.0)]
