"""Classes of failure: told from exceptions and exit codes as they really come, and the cause told from its echoes."""

import re
import subprocess
import sys

import pytest
import torch

from pipeline.config.load import config_from
from pipeline.config.schema_cluster import RetryConfig
from pipeline.runtime.errors import Incomplete, NonFiniteError, RendezvousError, UserError
from slurm.failures import CHANGE, POLICIES, class_of, class_of_exit, last_words, retries_allowed, root_cause


def raised(act) -> BaseException:
    """The exception that `act` really raises."""
    with pytest.raises(BaseException) as info:  # noqa: PT011 (whatever it is)
        act()
    return info.value


def test_real_exceptions_have_their_class():
    assert class_of(raised(lambda: bytearray(2**60))) == "out_of_memory"
    assert class_of(raised(lambda: torch.empty(2**60))) == "out_of_memory"
    assert class_of(raised(lambda: open("/dev/full", "w").write("x" * 99999))) in ("disk_full", "error")  # noqa: PTH123, SIM115
    assert class_of(OSError(28, "No space left on device")) == "disk_full"
    assert class_of(NonFiniteError("loss")) == "non_finite"
    assert class_of(UserError("train.lr")) == class_of(Incomplete("no shards")) == "bad_config"
    assert class_of(RendezvousError("After 300 s, ranks [3] of 4 have not arrived (here: 0 on a)")) == "rendezvous"
    assert class_of(ValueError("x")) == "error"


def test_exit_codes_of_the_pipeline_have_their_class():
    codes = {1: "error", 2: "bad_config", 76: "non_finite", 77: "out_of_memory", 78: "rendezvous", 137: "killed"}
    assert {code: class_of_exit(code) for code in codes} == codes
    done = subprocess.run([sys.executable, "-m", "pipeline", "trian"], capture_output=True, check=False)
    assert class_of_exit(done.returncode) == "bad_config"


def test_the_cause_is_told_from_its_echoes():
    """Rank 1 ran out of memory; the others lost their partner, and one of them was quicker to say so."""
    told = [
        {"class": "error", "message": "Connection closed by peer", "time": 1.0},
        {"class": "out_of_memory", "message": "rank 1", "time": 2.0},
        {"class": "error", "message": "Connection closed by peer", "time": 3.0},
    ]
    assert root_cause(told)["message"] == "rank 1"
    assert root_cause(told[::2])["time"] == 1.0
    assert root_cause([]) is None


def test_only_passing_troubles_are_tried_again_and_every_class_says_what_to_do():
    retry = RetryConfig(error=2, rendezvous=5)
    assert {name: retries_allowed(name, retry) for name in POLICIES if retries_allowed(name, retry)} == {
        "error": 2,
        "rendezvous": 5,
    }
    assert all(policy.advice for policy in POLICIES.values())


def test_advice_can_be_followed():
    """It is shown where a job has failed: nothing goes on by itself then, and `retry` takes no settings."""
    for name, policy in POLICIES.items():
        assert "by itself" not in policy.advice, name
        if re.search(r"(smaller|lower|more|fewer) \w+\.|=", policy.advice):
            assert "submit" in policy.advice, name


def test_the_setting_of_an_example_is_there():
    for name, policy in POLICIES.items():
        named = name in ("bad_config", "error")  # their messages name the setting
        assert (CHANGE in policy.commands) == (bool(policy.example) or named), name
        if policy.example:
            config_from(["experiment=glyphs16", policy.example.format(group="train")])


def test_last_words_are_the_end_of_a_log_of_any_size(tmp_path):
    log = tmp_path / "log"
    log.write_text("x" * 1_000_000 + "\nthe end\n")
    assert last_words(log, size=100).endswith("the end") and len(last_words(log, size=100)) <= 100
    assert last_words(tmp_path / "none") == ""
