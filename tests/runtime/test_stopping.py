"""A signal sets a flag and nothing else; the launcher's handler comes after the state is safe."""

import os
import signal
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


def test_the_end_of_the_job_asks_too(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert Stop(lead_seconds=200).asked
    assert not Stop(lead_seconds=10).asked


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
