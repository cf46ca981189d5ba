"""A signal sets a flag and nothing else; the launcher's handler comes after the state is safe."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.runtime.stopping import STOPPED, Stop


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_the_launchers_handler_runs_at_hand_over(number):
    seen = []
    before = signal.signal(number, lambda got, _: seen.append(got))
    try:
        with Stop() as stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert stop.asked and seen == []
            assert stop.hand_over() == STOPPED
        assert seen == [number]
    finally:
        signal.signal(number, before)


def test_without_a_launcher_the_exit_code_says_it_wants_to_go_on():
    before = signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.hand_over() == 75
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(("inside", "code"), [({"SLURM_PROCID": "1"}, STOPPED), ({}, -signal.SIGTERM)], ids=str)
def test_a_rank_on_its_way_out_is_not_hurried_by_srun(inside, code):
    """As soon as one rank has left with 75, srun sends SIGTERM to the others: their code, 143, would be the step's."""
    script = """
import os, signal, sys
from pipeline.runtime.stopping import Stop
with Stop() as stop:
    os.kill(os.getpid(), signal.SIGUSR2)
    code = stop.hand_over()
os.kill(os.getpid(), signal.SIGTERM)
sys.exit(code)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | inside
    assert subprocess.run([sys.executable, "-c", script], env=env, check=False).returncode == code


def test_the_end_of_the_job_asks_too(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert Stop(lead_seconds=200).asked
    assert not Stop(lead_seconds=10).asked


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
