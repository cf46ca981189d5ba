"""On a real Slurm: options of users and sites, answers that are lost or refused, jobs that Slurm keeps waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import HERE, ended, logs, profile, slurm_cli, stand_in, wait_for

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_lines
from slurm import cancel, ledger, plan
from slurm.ledger import states_of
from slurm.queue import SlurmAway, limits, listed
from slurm.status import explain
from slurm.submit import submit_graph

pytestmark = pytest.mark.cluster
CALM = {"exclude": "node2,node4"}  # where faults.py takes nodes away


@pytest.fixture(autouse=True)
def _on_the_cluster(cluster):
    """All of these need it."""


def shown(job: str) -> dict[str, str]:
    """What scontrol says of a job."""
    said = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=True).stdout
    return dict(word.partition("=")[::2] for word in said.split() if "=" in word)


def id_of(launch, job: str) -> str:
    """The id of a job's newest submission."""
    return ledger.submissions(launch.run)[job].ids[0]


def sbatch_that(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an sbatch before the real one; `$REAL` is that. No network here loses an answer at the right moment."""
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "sbatch"
    wrapper.write_text(f"#!/bin/bash\nREAL={real} COUNT={folder}/count\necho x >> $COUNT\n{script}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


def test_options_of_user_site_and_graph_stand_beside_each_other(tmp_path, monkeypatch, capfd):
    hold = ["sbatch", "--parsable", "-H", "-o", "/dev/null", "--wrap", "true"]
    other = subprocess.run(hold, capture_output=True, text=True, check=True).stdout.strip()
    options = {"comment": "grant 7", "dependency": f"afterany:{other}", "exclusive": True, "licenses": False}
    cluster = profile("testbed", options=options, nice=50, begin="now+900", train={"exclude": "node2,node4"})
    launch = stand_in(tmp_path, cluster, only=("train", "sample"))
    for name, value in {"PARTITION": "preempt", "TIMELIMIT": "1", "ARRAY_INX": "0-3", "NO_REQUEUE": "1"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    submit_graph(launch)
    train, sample = shown(id_of(launch, "train")), shown(id_of(launch, "sample"))
    said = capfd.readouterr().err
    assert said.count("not used, because cluster=testbed says") == 1 and "SBATCH_PARTITION" in said
    assert (train["Partition"], train["TimeLimit"], train["Requeue"]) == ("main", "01:00:00", "1")
    assert train["ExcNodeList"] == "node[2,4]" and train["Nice"] == "50" and sample["ExcNodeList"] == "(null)"
    assert f"afterany:{other}" in train["Dependency"] and f"afterany:{other}" in sample["Dependency"]
    assert f"afterok:{id_of(launch, 'train')}" in sample["Dependency"] and train["OverSubscribe"] == "NO"
    (job,) = (seen for seen in listed() if seen.id == id_of(launch, "train"))
    assert job.comment.startswith("grant 7 mudi ") and job.mark.endswith(str(launch.run.jobs / "train"))
    path = launch.run.jobs / ledger.LEDGER
    path.unlink()  # the ledger is lost: by the comment, the jobs are known all the same
    submit_graph(launch)
    assert id_of(launch, "train") == job.id
    assert len(cancel.cancel([launch])) == 2
    subprocess.run(["scancel", other], check=True)


def test_jobs_run_without_the_environment_of_who_submits(tmp_path):
    options = CALM | {"export": "NONE"}
    cluster = profile("testbed", options=options, srun_options={"label": True}, setup=(f"export PYTHONPATH={HERE}",))
    launch = stand_in(tmp_path, cluster, only=("train",))
    submit_graph(launch)
    wait_for(launch, ended)
    assert launch.complete()["train"] and "0: " in logs(launch), logs(launch)


def test_a_job_whose_answer_was_lost_is_reconciled_and_runs(tmp_path, monkeypatch, capfd):
    lost = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
    sbatch_that(tmp_path, monkeypatch, f'"$REAL" "$@" > /dev/null\n{lost}')
    array = {"parts": 2, "cpus": 1, "memory_gb": 1}
    launch = stand_in(tmp_path, profile("testbed", options=CALM, sample=array), only=("train", "sample"))
    submit_graph(launch)
    assert (tmp_path / "count").read_text() == "x\nx\n"  # each job was sent once
    assert "Again in" in capfd.readouterr().err
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))


def test_a_controller_that_is_away_is_asked_again_and_in_the_end_said(tmp_path, monkeypatch, capsys):
    refusal = 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    sbatch_that(tmp_path, monkeypatch, f'[ $(wc -l < $COUNT) -lt 4 ] && {{ {refusal}; }}\nexec "$REAL" "$@"')
    launch = stand_in(tmp_path, profile("testbed", options=CALM, submit_patience_s=0.5), only=("train",))
    with pytest.raises(SlurmAway, match=r"Job train is not queued: .*Unable to contact"):
        submit_graph(launch)
    state = states_of([launch])[0]["train"]
    assert state.stuck and (state.status, state.cause) == ("failed", "limit") and "Unable to contact" in state.message
    assert f"mudi retry {launch.run.path}" in explain(launch, state)
    assert slurm_cli("status", str(launch.run.path)).returncode == 1
    patient = stand_in(tmp_path, profile("testbed", options=CALM, submit_patience_s=30), only=("train",))
    submit_graph(patient)
    assert capsys.readouterr().err.count("Again in") >= 2
    wait_for(patient, lambda now: now["train"].status == "complete")


def test_what_the_site_never_grants_is_refused_before_anything_is_queued(tmp_path):
    site = limits()
    assert site.array_size == 10001 and (site.longest or {})["short"] == 1
    launch = stand_in(tmp_path, profile("testbed", train={"partition": "short"}), only=("train",))
    with pytest.raises(UserError, match=r"cluster\.train\.minutes: found 60, expected at most 1, .* partition short"):
        submit_graph(launch)
    assert not ledger.submissions(launch.run)


def test_a_run_of_which_sbatch_takes_no_job_leaves_nothing(tmp_path):
    """Its name is free for the corrected command. A plan asks Slurm too, and queues nothing."""
    where = [f"runs_dir={tmp_path}/runs", f"data_dir={tmp_path}/data", "cluster=slurm_generic", "cluster.train.gpus=0"]
    planned = slurm_cli("plan", "experiment=glyphs16", *where, "cluster.options={no-such-option: 1}")
    assert planned.returncode == 2 and planned.stderr.count("unrecognized option '--no-such-option") == 1, (
        planned.stderr
    )
    assert "prepare, train, sample, evaluate, compare: sbatch" in planned.stderr
    one = ["cluster.partition=main", "cluster.sample.partition=elsewhere"]
    planned = slurm_cli("plan", "experiment=glyphs16", *where, *one)
    assert planned.returncode == 2 and "\nsample: sbatch: error: invalid partition" in planned.stderr, planned.stderr
    assert slurm_cli("plan", "experiment=glyphs16", *where, "cluster.partition=main").returncode == 0
    done = slurm_cli("submit", "experiment=glyphs16", *where, "cluster.partition=nothing_of_this_name")
    assert done.returncode == 2 and "nothing_of_this_name" in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "runs" / "glyphs16").exists()


def test_held_and_suspended_are_told_with_what_to_type(tmp_path):
    later = stand_in(tmp_path / "held", profile("testbed", options=CALM, begin="now+900"), only=("train",))
    there = stand_in(
        tmp_path / "there", profile("testbed", options=CALM), only=("train",), options={"train": "--stall"}
    )
    for launch in (later, there):
        submit_graph(launch)
    job, running = id_of(later, "train"), id_of(there, "train")
    subprocess.run(["scontrol", "uhold", job], check=True)
    now = wait_for(later, lambda now: now["train"].status == "held")
    assert now["train"].active and f"scontrol release {job}" in explain(later, now["train"])
    assert slurm_cli("status", str(later.run.path)).returncode == 1
    wait_for(there, lambda now: now["train"].status == "running" and there.run.starts.exists())
    subprocess.run(["scontrol", "suspend", running], check=True)
    now = wait_for(there, lambda now: now["train"].status == "suspended")
    assert f"scontrol resume {running}" in explain(there, now["train"])
    cancel.cancel([later, there])


def test_scripts_that_were_submitted_twice_are_told(tmp_path):
    launch = stand_in(tmp_path, profile("testbed", options=CALM, begin="now+900"), only=("train",))
    submit = plan.write(launch, tmp_path / "scripts")[-1]
    ids = sorted(subprocess.run([submit], capture_output=True, text=True, check=True).stdout.split()[1] for _ in "ab")
    state = states_of([launch])[0]["train"]
    (other,) = set(ids) - set(state.ids)
    assert f"submitted twice, also as {other}: scancel {other}" in explain(launch, state)
    subprocess.run(["scancel", *ids], check=True)


def test_starts_that_save_nothing_end_after_three(tmp_path):
    options = {"train": "--stall"}
    ours = stand_in(tmp_path / "ours", profile("testbed", options=CALM), only=("train",), options=options)
    by_hand = stand_in(tmp_path / "by_hand", profile("testbed", options=CALM), only=("train",), options=options)
    inside = profile("testbed", options=CALM, python=f"env PATH=/nowhere {sys.executable}")  # as in a container
    contained = stand_in(tmp_path / "contained", inside, only=("train",), options=options)
    for launch in (ours, contained):
        submit_graph(launch)
    subprocess.run([plan.write(by_hand, tmp_path / "scripts")[-1]], capture_output=True, check=True)
    launches = (ours, by_hand, contained)
    states_of(launches)
    for start in (1, 2, 3):
        for launch in launches:
            wait_for(launch, lambda _, n=start, run=launch.run: len(read_lines(run.starts)) == n)
            subprocess.run(["scancel", "--signal=USR2", id_of(launch, "train")], check=True)
    for launch in launches:
        now = wait_for(launch, ended)["train"]
        assert (now.status, now.cause, now.starts) == ("failed", "time_limit", 3), (now, logs(launch))
        assert now.message.startswith("3 starts, no step: more minutes"), now


@pytest.mark.skipif(os.geteuid() != 0, reason="submits as another user: needs root")
def test_jobs_of_a_colleague_who_submitted_the_run_are_seen(tmp_path):
    launch = stand_in(tmp_path, profile("testbed", options=CALM), only=("train",))
    argv = ["sbatch", "--parsable", "--uid=65534", "-H", "-D", "/", "-o", "/dev/null", "--wrap", "true"]
    job = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    row = {"ids": [job], "executor": "slurm", "born": [], "snapshot": "", "user": "nobody"}
    ledger.note(launch.run, "submitted", job="train", **row)
    assert job not in {seen.id for seen in listed()}
    assert job in {seen.id for seen in listed(ledger.users_of([launch.run]))}
    assert states_of([launch])[0]["train"].status == "held"
    subprocess.run(["scancel", job], check=True)
