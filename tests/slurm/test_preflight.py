"""What preflight makes of ranks' reports: green where a cluster is right, red with advice where it is not."""

import copy
import os
import socket
from pathlib import Path

import pytest
import tiny
import tiny_latents
from launching import SMALL, latent, profile

from slurm.__main__ import main
from slurm.preflight import judged, mount_type, needed, reaches, readable


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
        "rights": {"groups": sorted({os.getegid(), *os.getgroups()}), "written": True},
        "needed": {},
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
        ("ranks", lambda found: found.pop(0)),
        ("cores", lambda found: found[1]["threads"].update(cores=1)),
        ("GPUs", lambda found: found[1]["gpus"].update(count=0, names=[], mine=None)),
        ("GPUs", lambda found: found[1].update(gpus={"failed": "ModuleNotFoundError: No module named 'torch'"})),
        ("GPUs", lambda found: found[1].update(host="a")),
        ("shared directory", lambda found: found[1].update(met=[1])),
        ("all-reduce", lambda found: found[0].update(reduce={"failed": "DistBackendError: NCCL timeout"})),
        ("all-reduce", lambda found: found[1]["reduce"].update(gb_per_s=0.1)),
        ("room on disks", lambda found: found[1]["disks"][0].update(free_gib=1.0)),
        ("room on disks", lambda found: found[1].update(disks={"failed": "FileNotFoundError: /scratch/data"})),
        ("signal lead", lambda found: found[0].update(written_mib_per_s={"failed": "OSError: Read-only file system"})),
        ("compile cache local", lambda found: found[1]["cache"].update(type="nfs4", local=False)),
        ("SIGUSR2 reaches ranks", lambda found: found[1].update(signal_s=None)),
    ],
)
def test_what_is_wrong_is_red_and_says_what_to_do(tmp_path, what, change):
    assert what in red(tmp_path, change)


def test_settings_that_do_not_fit_the_cluster_are_red(tmp_path):
    assert red(tmp_path, unchanged, internet=True) == {"internet"}
    assert red(tmp_path, unchanged, signal_lead_s=5) == {"signal lead"}


def test_weights_that_a_node_does_not_see_are_named(tmp_path):
    weights = tmp_path / "inception.npz"
    cfg = tiny.config(tmp_path)
    evaluate = cfg.evaluate.model_copy(
        update={"inception": cfg.evaluate.inception.model_copy(update={"weights": weights})}
    )
    cfg = cfg.model_copy(update={"evaluate": evaluate, "cluster": profile("slurm_generic")})
    assert needed(cfg)["evaluate.inception.weights"] == weights
    found = reports()
    for report, seen in zip(found, (True, False), strict=True):
        report["needed"] = dict.fromkeys(needed(cfg), True) | {"evaluate.inception.weights": seen}
    (row,) = (finding for finding in judged(cfg, found) if finding.what == "weights and files")
    assert not row.good and f"evaluate.inception.weights={weights} (on b)" in row.found and "fetch" in row.advice
    found[1]["needed"] = found[0]["needed"]
    assert all(finding.good for finding in judged(cfg, found) if finding.what == "weights and files")


def test_what_jobs_make_is_not_needed_before(tmp_path):
    weights = f"evaluate.inception.weights={tmp_path}/inception.npz"
    trained = latent(tmp_path, overrides=(*SMALL, weights)).cfg
    assert needed(trained)["autoencoder: evaluate.inception.weights"] == tmp_path / "inception.npz"
    assert "latents.autoencoder" not in needed(trained)
    cfg = tiny_latents.config(tmp_path, tiny_latents.autoencoder(tiny.config(tmp_path)).path)
    assert "latents.autoencoder" in needed(cfg)


def test_what_a_rank_finds_out_by_itself(tmp_path):
    assert mount_type(tmp_path) not in ("", "unknown") and mount_type(tmp_path / "proc") != "proc"
    assert mount_type(Path("/proc/self")) == "proc"
    assert not reaches("127.0.0.1:9") and not reaches("no-such-host.invalid:443")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert reaches(f"127.0.0.1:{server.getsockname()[1]}")
    (tmp_path / "weights").touch()
    assert readable(tmp_path / "weights") and readable(tmp_path) and not readable(tmp_path / "none")


WITHOUT_CLUSTER = """\
sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
sbatch: error: fetch_config: DNS SRV lookup failed
sbatch: error: _establish_config_source: failed to fetch config
sbatch: fatal: Could not establish a configuration source
"""


def test_where_no_controller_answers_one_sentence_says_so(tmp_path, monkeypatch, capsys):
    """An sbatch that says what Debian's says on a machine without a cluster: one may be up here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/bash\ncat >&2 <<'END'\n{WITHOUT_CLUSTER}END\nexit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    assert main(["preflight", "cluster=slurm_generic", f"runs_dir={runs}", f"data_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "no Slurm controller answers sbatch" in said and "login node" in said and said.count("\n") == 1
    assert not list(runs.iterdir())
