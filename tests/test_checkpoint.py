"""Checkpoints: whole or not there; damage is recognised and named; the one before is used."""

import errno
import os
from pathlib import Path

import pytest
import tiny
import torch

from pipeline import checkpoint
from pipeline.checkpoint import Snapshot
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, disk_error, read_json, sha256_file, write_json
from pipeline.runtime.run_dir import COMMIT, RunDir


def snapshot(step, value=None):
    weights = {"w": torch.full((4, 4), float(step if value is None else value)), "n": torch.tensor(step)}
    return Snapshot({"network.net": weights, "ema.net": {"w": weights["w"] / 2}}, {"step": step})


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path)
    for step in (2, 4, 6):
        checkpoint.write(run.checkpoint(step), snapshot(step))
    return run


def test_what_is_written_is_read_back(run):
    found = checkpoint.read(run.checkpoint(4))
    assert found.step == 4
    assert torch.equal(found.tensors["network.net"]["w"], torch.full((4, 4), 4.0))
    assert found.tensors.keys() == {"network.net", "ema.net"}


DAMAGE = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-7]), "bytes instead of"),
    "bit flipped": (lambda f: f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1])), "sha256 differs"),
    "missing": (lambda f: f.unlink(), "is missing"),
    "empty": (lambda f: f.write_bytes(b""), "0 bytes instead of"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_used(run, kind):
    harm, message = DAMAGE[kind]
    harm(run.checkpoint(6) / "network.net.safetensors")
    path, sentences = checkpoint.newest_valid(run)
    assert path == run.checkpoint(4)
    assert len(sentences) == 1
    assert message in sentences[0]
    assert "network.net.safetensors" in sentences[0]
    with pytest.raises(Incomplete, match="step-000000006"):
        checkpoint.read(run.checkpoint(6))


def test_no_byte_of_a_tensor_file_may_differ(run):
    """The header's names, places and shapes too, whatever the reader makes of them."""
    file = run.checkpoint(6) / "ema.net.safetensors"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(Incomplete, match=r"step-000000006 is damaged: ema.net.safetensors .*sha256 differs"):
            checkpoint.read(run.checkpoint(6))


KINDS = {
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "bfloat16": torch.arange(7, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "channels_last": torch.arange(48.0).reshape(2, 3, 4, 2).to(memory_format=torch.channels_last),
    "gradient": torch.nn.Parameter(torch.arange(3.0)),
    "ümlaut": torch.arange(5, dtype=torch.uint8),
}


@pytest.mark.parametrize("tensors", [KINDS, {}], ids=["all kinds", "none"])
def test_the_recorded_hash_is_that_of_the_file(tmp_path, tensors):
    checkpoint.write(tmp_path / "step-000000001", Snapshot({"network.net": tensors}, {"step": 1}))
    for name, record in read_json(tmp_path / "step-000000001" / COMMIT)["files"].items():
        assert record["sha256"] == sha256_file(tmp_path / "step-000000001" / name)
    found = checkpoint.read(tmp_path / "step-000000001").tensors["network.net"]
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def bytes_read():
    """What this process has read so far; pages of mapped files are not counted."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_file_is_not_read_again_for_its_hash(tmp_path):
    """Writing hashes what is in memory; reading hashes what is mapped."""
    large = Snapshot({"network.net": {"w": torch.ones(1 << 20)}}, {"step": 1})
    checkpoint.write(tmp_path / "checkpoints" / "step-000000001", large)  # whatever is loaded at a first call
    before = bytes_read()
    checkpoint.write(tmp_path / "checkpoints" / "step-000000002", Snapshot(large.tensors, {"step": 2}))
    _, found, _ = checkpoint.read_newest(RunDir(tmp_path))
    weights, _ = checkpoint.load_weights(RunDir(tmp_path), which="network", network="net")
    assert torch.equal(found.tensors["network.net"]["w"], weights["w"])
    assert bytes_read() - before < 1 << 20


def test_weights_that_are_asked_for_by_step_are_verified(run):
    file = run.checkpoint(4) / "ema.net.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(Incomplete, match=r"ema.net.safetensors .*sha256 differs.*Choose another step: \[2, 4, 6\]"):
        checkpoint.load_weights(run, which="ema", network="net", step=4)


def test_a_checkpoint_without_a_commit_record_is_none(run):
    (run.checkpoint(6) / COMMIT).unlink()
    assert run.latest_step() == 4
    assert checkpoint.newest_valid(run)[0] == run.checkpoint(4)


def test_a_damaged_one_is_set_aside_so_that_its_step_can_be_written_again(run):
    (run.checkpoint(6) / "state.json").write_text("{}")
    checkpoint.read_newest(run, set_aside=True)
    checkpoint.write(run.checkpoint(6), snapshot(6))
    assert checkpoint.newest_valid(run) == (run.checkpoint(6), [])


def test_a_whole_one_is_never_overwritten(run):
    with pytest.raises(Incomplete, match="never overwritten"):
        checkpoint.write(run.checkpoint(4), snapshot(4, value=9))
    assert torch.equal(checkpoint.read(run.checkpoint(4)).tensors["network.net"]["w"], torch.full((4, 4), 4.0))


def test_rotation_keeps_the_newest_and_the_milestones(run):
    checkpoint.rotate(run, keep_last=1, keep_every=4)
    assert run.steps() == [4, 6]


def test_rotation_keeps_what_samples_or_results_were_made_of(run):
    write_json(run.samples(2) / "heun" / "manifest.json", {})
    write_json(run.results / "000000004-heun.json", {})
    checkpoint.rotate(run, keep_last=1, keep_every=None)
    assert run.steps() == [2, 4, 6]
    (run.samples(2) / "heun" / "manifest.json").unlink()  # a set that was never finished
    checkpoint.rotate(run, keep_last=1, keep_every=None)
    assert run.steps() == [4, 6]


def test_a_failed_write_leaves_nothing(run):
    class Full(dict):
        def items(self):
            yield "network.net", {"w": torch.zeros(2)}
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"No space left while writing .*step-000000008"):
        checkpoint.write(run.checkpoint(8), Snapshot(Full(), {"step": 8}))
    assert run.steps() == [2, 4, 6]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [f"step-00000000{s}" for s in (2, 4, 6)]


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path):
    error = PermissionError(errno.EACCES, "no")
    assert disk_error(error, tmp_path) is error
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file") as partial:
        partial.write_text(str(1 / partial.write_text("")))
    assert list(tmp_path.iterdir()) == []


def test_loading_is_strict(run):
    net = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"missing \['bias', 'weight'\], surplus \['n', 'w'\]"):
        checkpoint.load_strictly(net, checkpoint.read(run.checkpoint(2)).tensors["network.net"], what="step 2")


def test_a_step_counter_stays_on_the_cpu_beside_a_parameter_without_dimensions():
    """Adam wants it there, whatever the device of the weights: here one that computes nothing."""
    strength = torch.nn.Parameter(torch.zeros((), device="meta"))
    stored = {f"strength|{key}": torch.tensor(3.0) for key in ("step", "exp_avg", "exp_avg_sq")}
    optimizer = torch.optim.AdamW([strength])
    checkpoint.restore_optimizer(optimizer, {"strength": strength}, stored)
    devices = {key: value.device.type for key, value in optimizer.state[strength].items()}
    assert devices == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_a_moment_of_another_shape_is_named():
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(Incomplete, match=r"w\|exp_avg of shape \(3,\), expected \(2,\)"):
        checkpoint.restore_optimizer(torch.optim.AdamW([weight]), {"w": weight}, {"w|exp_avg": torch.zeros(3)})


def test_asking_for_what_is_not_there_says_what_is(run):
    with pytest.raises(UserError, match=r"no checkpoint of step 5. It has: \[2, 4, 6\]"):
        checkpoint.load_weights(run, which="network", network="net", step=5)
    with pytest.raises(UserError, match=r"no 'power-0.1.net'. It has: ema.net, network.net"):
        checkpoint.load_weights(run, which="power-0.1", network="net")


def test_training_passes_over_a_damaged_checkpoint(tmp_path):
    whole, hurt = (tiny.config(tmp_path, name=name) for name in ("whole", "hurt"))
    tiny.prepare(whole)
    expected = tiny.run(whole)
    run = tiny.run(hurt)
    (run.checkpoints / "finished.json").unlink()
    file = run.checkpoint(12) / "optimizer.denoiser.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    tiny.run(hurt)
    assert tiny.fingerprint(run, 12) == tiny.fingerprint(expected, 12)
    assert "optimizer.denoiser.safetensors has 100 bytes instead of" in (hurt.runs_dir / "hurt.log").read_text()
