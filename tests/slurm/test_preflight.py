"""What preflight makes of ranks' reports: green where a cluster is right, red with advice where it is not."""

import copy
from pathlib import Path

import pytest
import tiny
from launching import profile

from slurm.preflight import judged
from slurm.preflight_rank import mount_type, reaches


def reports() -> list[dict]:
    """Two ranks on two nodes with a GPU each, as they write them."""
    one = {
        "rank": 0,
        "size": 2,
        "host": "a",
        "gpus": {"count": 1, "names": ["A100"], "mine": "x", "visible": "0"},
        "threads": {"omp": "8", "cores": 8},
        "cache": {"path": "/tmp/c", "type": "ext4", "local": True},
        "disks": [{"path": "/s", "free_gib": 500.0, "type": "lustre"}],
        "met": [0, 1],
        "written_mib_per_s": 400.0,
        "internet": False,
        "reduce": {"backend": "nccl", "gb_per_s": 20.0},
        "signal_s": 0.1,
    }
    other = copy.deepcopy(one) | {"rank": 1, "host": "b", "written_mib_per_s": None}
    return [one, other]


def red(tmp_path, change, **cluster) -> set[str]:
    """The checks that are red after a change of the reports."""
    train = {"nodes": 2, "gpus": 1} | cluster.pop("train", {})
    settings = profile("slurm_generic", train=train, **cluster)
    found = reports()
    change(found)
    cfg = tiny.config(tmp_path).model_copy(update={"cluster": settings})
    findings = list(judged(cfg, found))
    assert all(finding.good or finding.advice for finding in findings)
    return {finding.what for finding in findings if not finding.good}


def unchanged(found: list[dict]) -> None:
    """Leave the reports as they are."""


def test_a_good_cluster_is_green(tmp_path):
    assert red(tmp_path, unchanged) == set()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("ranks", lambda found: found.pop()),
        ("GPUs", lambda found: found[1]["gpus"].update(count=0, names=[], mine=None)),
        ("GPUs", lambda found: found[1].update(gpus={"failed": "ModuleNotFoundError: No module named 'torch'"})),
        ("GPUs", lambda found: found[1].update(host="a")),
        ("shared directory", lambda found: found[1].update(met=[1])),
        ("all-reduce", lambda found: found[0].update(reduce={"failed": "DistBackendError: NCCL timeout"})),
        ("room on disks", lambda found: found[1]["disks"][0].update(free_gib=1.0)),
        ("compile cache local", lambda found: found[1]["cache"].update(type="nfs4", local=False)),
        ("SIGUSR2 reaches ranks", lambda found: found[1].update(signal_s=None)),
    ],
)
def test_what_is_wrong_is_red_and_says_what_to_do(tmp_path, what, change):
    assert what in red(tmp_path, change)


def test_settings_that_do_not_fit_the_cluster_are_red(tmp_path):
    assert red(tmp_path, unchanged, internet=True) == {"internet"}
    assert red(tmp_path, unchanged, signal_lead_s=5) == {"signal lead"}


def test_what_a_rank_finds_out_by_itself(tmp_path):
    assert mount_type(tmp_path) not in ("", "unknown") and mount_type(tmp_path / "proc") != "proc"
    assert mount_type(Path("/proc/self")) == "proc"
    assert not reaches("127.0.0.1:9")
