"""On a real Slurm: graphs are submitted at once, survive their submitter, run the code that was submitted."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import begun, kill_node
from launching import (
    HERE,
    LIMIT,
    SMALL,
    ended,
    kept_steps,
    latent,
    profile,
    slurm_cli,
    stand_in,
    states,
    wait_for,
    with_stand_ins,
)

from slurm import cancel, ledger, plan
from slurm.ledger import LEDGER
from slurm.queue import listed
from slurm.rank import ATTEMPTS
from slurm.status import explain, log_of
from slurm.submit import submit_all, submit_graph
from slurm.workflows import comparison, launch_of_run

pytestmark = pytest.mark.cluster
CALM = {"exclude": "node2,node4"}  # where faults.py takes nodes away
ROOT = HERE.parents[1]
PIXELS = (
    "data=glyphs16",
    "model=unet_tiny",
    "data.source.alphabet=AB",
    "evaluate.domain.enabled=false",
    "diffusion.sigma_data=1",
    "train.duration=6 steps",
    "train.global_batch=8",
    "sample.count=8",
    "sample.sampler.steps=2",
    "sample.sampler.clip=null",
    "sample.images_per_shard=4",
)
TINY = (*PIXELS, "model.attention=[4]", "latents.experiment=glyphs16", "latents.images_per_shard=64")


@pytest.fixture(autouse=True, scope="module")
def _beside_the_faults(request):
    """Where one process runs all tests, the scenarios of faults.py wait while these run."""
    request.getfixturevalue("cluster" if "PYTEST_XDIST_WORKER" in os.environ else "faults")


def first_event(launch, job: str, event: str) -> float:
    """When a job first started, or last ended."""
    rows = [json.loads(line) for line in (launch.run.jobs / job / ATTEMPTS).read_text().splitlines()]
    times = [row["time"] for row in rows if row["event"] == event]
    return min(times) if event == "start" else max(times)


@pytest.fixture(scope="module")
def copied_code(tmp_path_factory) -> Path:
    """A checkout of the code that a test may edit."""
    root = tmp_path_factory.mktemp("checkout")
    for part in ("pipeline", "slurm", "data_prep", "configs"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def real_run(copied_code, tmp_path_factory):
    """Autoencoder, latents, model, samples, numbers: all with their own commands, training on two nodes, submitted
    by one command, which is killed as soon as the last job is in the queue; then the code is broken."""
    root = tmp_path_factory.mktemp("real")
    overrides = ["cluster=testbed", "cluster.train.nodes=2", "cluster.internet=false", "cluster.encode.parts=2"]
    its = json.dumps([*(w for w in SMALL if w != "model.condition=none"), "evaluate.domain.enabled=false"])
    overrides += [f"latents.autoencoder={root}/runs/letters", f"latents.overrides={its}"]
    later = [
        f"++cluster.options.{key}={value}" for key, value in {"begin": "now+3", "exclude": "node2\\,node4"}.items()
    ]
    where = [f"data_dir={root}/data", f"runs_dir={root}/runs", "name=real"]
    env = os.environ | {"PYTHONPATH": str(copied_code), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "slurm", "submit", *TINY, *overrides, *later, *where]
    shell = subprocess.Popen(command, cwd=root, env=env, stderr=subprocess.PIPE, text=True, process_group=0)
    ledger_file, end = root / "runs" / "real" / "jobs" / LEDGER, time.monotonic() + LIMIT
    while not (ledger_file.exists() and '"compare"' in ledger_file.read_text()):
        assert time.monotonic() < end and shell.poll() is None, shell.stderr.read()
        time.sleep(0.02)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    done = slurm_cli("cancel", f"{root}/runs/real", "--job", "compare")
    assert done.stdout.startswith("cancelled real/compare"), done.stderr
    for path in ("pipeline/__main__.py", "data_prep/__main__.py", "slurm/payload.py"):
        (copied_code / path).write_text("raise SystemExit('this was edited after the submission')\n")
    return launch_of_run(root / "runs" / "real")


def test_graph_runs_in_order_and_an_array_in_parts(tmp_path):
    cluster = profile("testbed", options=CALM, sample={"parts": 4, "at_once": 2, "cpus": 1, "memory_gb": 1})
    launch = stand_in(tmp_path, cluster)
    submit_graph(launch)
    ids = ledger.submissions(launch.run)["sample"].ids
    assert len(ids) == 4 and len({i.partition("_")[0] for i in ids}) == 1
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    names = [job.name for job in launch.jobs]
    for before, after in itertools.pairwise(names):
        assert first_event(launch, before, "end") <= first_event(launch, after, "start")


def test_submitting_again_keeps_what_runs_and_skips_what_is_complete(tmp_path):
    cluster = profile("testbed", options=CALM)
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options={"train": "--steps 60 --pace 0.1"})
    submit_graph(launch)
    first = {name: s.ids for name, s in ledger.submissions(launch.run).items()}
    submit_graph(launch)
    wait_for(launch, lambda now: now["train"].status == "running")
    submit_graph(launch)
    assert {name: s.ids for name, s in ledger.submissions(launch.run).items()} == first
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    before = submit_graph(launch)
    assert {s.status for s in before.values()} == {"complete"}
    assert {name: s.ids for name, s in ledger.submissions(launch.run).items()} == first


def test_a_job_that_the_ledger_missed_is_reconciled_not_doubled(tmp_path):
    """The submitter died after sbatch and before it could write the id down."""
    cluster = profile("testbed", options=CALM)
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options={"train": "--steps 9000 --pace 0.1"})
    submit_graph(launch)
    path = launch.run.jobs / LEDGER
    first = {name: s.ids for name, s in ledger.submissions(launch.run).items()}
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"sample"' not in line))
    submit_graph(launch)
    assert {name: s.ids for name, s in ledger.submissions(launch.run).items()} == first
    assert {seen.id for seen in listed() if seen.active and str(launch.run.path) in seen.comment} <= {
        i for ids in first.values() for i in ids
    }
    cancel.cancel([launch])


def test_two_runs_on_the_same_data_share_its_preparation(tmp_path):
    cluster = profile("testbed", options=CALM)
    only, options = ("prepare", "train"), {"prepare": "--pace 4"}
    one = stand_in(tmp_path, cluster, name="one", only=only, options=options)
    two = stand_in(tmp_path, cluster, name="two", only=only, options=options)
    with ThreadPoolExecutor() as pool:  # at the same time: one waits for the other
        list(pool.map(submit_graph, (one, two)))
    assert ledger.submissions(one.run)["prepare"].ids == ledger.submissions(two.run)["prepare"].ids
    for launch in (one, two):
        wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))


def test_shells_that_submit_at_once_all_succeed_and_what_is_cancelled_may_be_corrected(
    tmp_path,
):
    overrides = [*PIXELS, "cluster=testbed", "++cluster.options.begin=now+900"]
    overrides += [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    with ThreadPoolExecutor() as pool:  # each waits for a process of its own
        done = list(pool.map(lambda name: slurm_cli("submit", *overrides, f"name={name}"), ("one", "one", "two")))
    assert [shell.returncode for shell in done] == [0, 0, 0], done
    one, two = (launch_of_run(tmp_path / "runs" / name) for name in ("one", "two"))
    ids = {name: s.ids for name, s in ledger.submissions(one.run).items()}
    assert len({i for part in ids.values() for i in part}) == len(ids) == 5
    assert ledger.submissions(two.run)["prepare"].ids == ids["prepare"]
    assert {s.id for s in listed() if s.active and str(one.run.path) in s.comment} <= {i for (i,) in ids.values()}
    slower = [*overrides, "name=one", "train.optim.lr=7e-4"]
    refused = slurm_cli("submit", *slower)
    assert refused.returncode == 2 and f"mudi cancel {one.run.path}" in refused.stderr
    cancel.cancel([one, two])
    wait_for(one, ended)
    done = slurm_cli("submit", *slower)
    assert done.returncode == 0 and "nothing is trained yet" in done.stdout, done
    assert launch_of_run(one.run.path).cfg.train.optim.lr == 7e-4
    cancel.cancel([one])


def test_runs_on_the_same_latents_share_their_autoencoder_and_the_array_that_encodes(tmp_path):
    settings = {"site": "testbed", "options": CALM, "encode": {"parts": 3, "cpus": 1, "memory_gb": 1}}
    one, two = (
        with_stand_ins(latent(tmp_path, name=name, **settings), options={"autoencoder": "--steps 20 --pace 0.2"})
        for name in ("one", "two")
    )
    submit_all([one, two])
    ids = [{name: s.ids for name, s in ledger.submissions(launch.run).items()} for launch in (one, two)]
    assert {n for n in ids[0] if ids[0][n] == ids[1][n]} == {"prepare", "autoencoder", "reconstruct", "encode"}
    assert len(ids[0]["encode"]) == 3
    wait_for(two, lambda now: now["autoencoder"].status == "running" and "step" in explain(two, now["autoencoder"]))
    assert cancel.cancel([two], job="compare") == [f"cancelled two/compare ({ids[1]['compare'][0]})"]
    assert explain(two, states(two)["encode"]).startswith("0 of 3 parts done, waits for autoencoder")
    assert sum(line.startswith("left alone") for line in cancel.cancel([one])) == 3  # two waits for these
    wait_for(two, ended)
    for launch in (one, two):
        submit_graph(launch)
        wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    assert log_of(two, "encode")[1].parent == one.run.jobs / "encode"
    first = first_event(one, "reconstruct", "start")
    assert first_event(one, "autoencoder", "end") <= min(first, first_event(one, "encode", "start"))
    assert first_event(one, "encode", "end") <= first_event(two, "train", "start")


def test_a_failed_autoencoder_leaves_everything_after_it_explained(tmp_path):
    launch = with_stand_ins(
        latent(tmp_path, site="testbed", options=CALM), options={"autoencoder": "--fail non_finite"}
    )
    submit_graph(launch)
    now = wait_for(launch, ended)
    assert {name: (s.status, s.cause) for name, s in now.items()} == {
        "prepare": ("complete", None),
        "autoencoder": ("failed", "non_finite"),
        **dict.fromkeys(("reconstruct", "encode", "train", "sample", "evaluate", "compare"), ("blocked", "upstream")),
    }
    again = with_stand_ins(launch_of_run(launch.run.path))  # what `retry` does, and this time it goes well
    submit_graph(again)
    wait_for(again, lambda now: all(s.status == "complete" for s in now.values()))


def test_everything_completes_though_the_submitter_is_killed(tmp_path):
    script = f"""
import os, sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
from pathlib import Path
from launching import profile, stand_in
from slurm.submit import submit_graph
submit_graph(stand_in(Path({str(tmp_path)!r}), profile("testbed", options={CALM!r}), only=("train", "sample")))
os.kill(os.getpid(), 9)
"""
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"}
    done = subprocess.run([sys.executable, "-c", script], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    launch = stand_in(tmp_path, profile("testbed"), only=("train", "sample"))
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    shell = slurm_cli("status", str(launch.run.path))
    assert shell.returncode == 1 and shell.stdout.count("complete") >= 2  # nobody submitted its preparation
    assert "-> mudi submit" in shell.stdout


def test_cancel_then_retry_ends_where_it_would_have(tmp_path):
    cluster = profile("testbed", options=CALM)
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options={"train": "--steps 80 --pace 0.1"})
    submit_graph(launch)
    wait_for(launch, lambda now: now["train"].status == "running" and (launch.run.path / "steps.txt").exists())
    assert len(cancel.cancel([launch])) == 2
    now = wait_for(launch, ended)
    assert {name: s.status for name, s in now.items()} == {"train": "cancelled", "sample": "cancelled"}
    submit_graph(launch)  # what `retry` does
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    steps = [int(line) for line in (launch.run.path / "steps.txt").read_text().split()]
    assert steps == list(range(1, 81))


def test_what_slurm_holds_back_is_said_and_retry_puts_it_back(tmp_path):
    later = stand_in(tmp_path, profile("testbed", options=CALM | {"begin": "now+600"}), only=("train", "sample"))
    submit_graph(later)
    (first,) = ledger.submissions(later.run)["train"].ids
    subprocess.run(["scontrol", "hold", first], check=True)
    now = wait_for(later, lambda now: now["train"].cause == "held")
    assert now["train"].status == "held" and "retry puts it back" in now["train"].advice
    launch = stand_in(tmp_path, profile("testbed", options=CALM), only=("train", "sample"))
    submit_graph(launch)  # what `retry` does
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    queue = subprocess.run(["squeue", "-h", "-j", first, "-o", "%T"], capture_output=True, text=True, check=False)
    assert queue.stdout.strip() in ("", "CANCELLED")


def test_without_accounting_status_knows_from_disk_and_queue(tmp_path, cluster, monkeypatch):
    directory = Path(f"/tmp/mudi-plain-{os.getpid()}")
    up, down = HERE.parent / "cluster" / "up", HERE.parent / "cluster" / "down"
    subprocess.run([up, "--dir", directory, "--no-accounting"], check=True, capture_output=True)
    try:
        monkeypatch.setenv("SLURM_CONF", str(directory / "etc" / "slurm.conf"))
        array = profile("testbed", sample={"parts": 2, "cpus": 1, "memory_gb": 1})
        good = stand_in(tmp_path / "good", array, only=("train", "sample"))
        bad = stand_in(
            tmp_path / "bad", profile("testbed"), only=("train", "sample"), options={"train": "--fail killed"}
        )
        for launch in (good, bad):
            submit_graph(launch)
        wait_for(good, lambda now: all(s.status == "complete" for s in now.values()))
        now = wait_for(bad, ended)
        assert (now["train"].cause, now["sample"].cause) == ("killed", "upstream")
        assert subprocess.run(["sacct"], capture_output=True, check=False).returncode != 0
        lost = stand_in(tmp_path / "lost", profile("testbed"), only=("train",), options={"train": "--steps 9 --hold"})
        submit_graph(lost)
        wait_for(lost, lambda _: begun(lost))
        for node in range(1, 5):
            kill_node(f"node{node}")
        subprocess.run(["kill", "-9", (directory / "run" / "slurmctld.pid").read_text().split()[0]], check=True)
        shutil.rmtree(directory / "ctld")  # a power cut, and the controller has lost its memory
        subprocess.run([up, "--dir", directory], check=True, capture_output=True)
        now = wait_for(lost, ended)
        assert (now["train"].status, now["train"].cause) == ("failed", "vanished")
    finally:
        monkeypatch.setenv("SLURM_CONF", str(cluster / "etc" / "slurm.conf"))
        subprocess.run([down, "--dir", directory, "--wipe"], check=True, capture_output=True)


def test_preflight_is_green(tmp_path):
    overrides = [
        "cluster=testbed",
        "cluster.train.nodes=2",
        "cluster.internet_probe=127.0.0.1:9",
        "++cluster.options.exclude=node2\\,node4",
    ]
    done = slurm_cli("preflight", *overrides, "cluster.internet=false", f"runs_dir={tmp_path}", f"data_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("2 of 2 on node1, node3", "every rank sees every rank's file", "GB/s", "SIGUSR2"):
        assert check in done.stdout


def test_real_latent_diffusion_on_two_nodes_runs_the_code_that_was_submitted(real_run, copied_code):
    path = str(real_run.run.path)
    followed = slurm_cli("logs", path, "autoencoder", "-f")  # also where it has yet to start
    assert "==> autoencoder: complete" in followed.stderr and "step" in followed.stdout
    now = wait_for(real_run, ended)
    assert {name: s.status for name, s in now.items() if s.status != "complete"} == {"compare": "cancelled"}
    assert slurm_cli("retry", path).returncode == 0
    now = wait_for(real_run, lambda now: all(s.status == "complete" for s in now.values()))
    assert list(now) == ["prepare", "autoencoder", "reconstruct", "encode", "train", "sample", "evaluate", "compare"]
    for run in (real_run.run, real_run.autoencoder):
        assert json.loads(run.starts.read_text().splitlines()[0])["world_size"] == 2
    shell = slurm_cli("status", path)
    assert shell.returncode == 0 and shell.stdout.count("complete") == 8 and "psnr" in shell.stdout
    assert "comparison.md" in shell.stdout and "| real |" in comparison(real_run).read_text()
    assert "edited" in (copied_code / "pipeline" / "__main__.py").read_text()
    snapshot = Path(ledger.submissions(real_run.run)["train"].snapshot)
    assert (snapshot / "pipeline" / "__main__.py").read_bytes() == (ROOT / "pipeline" / "__main__.py").read_bytes()
    starts = [json.loads(line) for line in (real_run.run.jobs / "train" / ATTEMPTS).read_text().splitlines()]
    assert len({row["node"] for row in starts if row["event"] == "start"}) == 2


def test_sbatch_scripts_are_submitted_by_hand_and_need_no_launcher(tmp_path):
    two = {"parts": 2, "cpus": 1, "memory_gb": 1}
    launch = latent(tmp_path, site="testbed", options=CALM, encode=two, sample=two)
    launch = with_stand_ins(launch, options={"train": "--steps 20 --pace 0.05 --hold"})
    *_, submit = plan.write(launch, tmp_path / "scripts")
    done = subprocess.run([submit], capture_output=True, text=True, check=True)
    ids = dict(line.split() for line in done.stdout.splitlines())
    assert list(ids) == [job.name for job in launch.jobs]
    submit_graph(launch)  # it finds them in the queue, and submits none of them twice
    found = ledger.submissions(launch.run)
    assert {name: ids[name] for name in found} == {name: ledger.one_word(s.ids) for name, s in found.items()}
    assert "train" in found and str(launch.run.path) in " ".join(s.comment for s in listed() if s.id == ids["train"])
    wait_for(launch, lambda _: (launch.run.path / "steps.txt").exists())
    # What Slurm sends before a time limit; the script queues itself again when training has saved.
    subprocess.run(["scancel", "--signal=USR2", ids["train"]], check=True)
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    assert kept_steps(launch) == list(range(1, 21))
