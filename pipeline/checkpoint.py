"""Checkpoints: complete or not there, checked when read, newest valid one first.

    checkpoints/step-000012000/
      network.<name>.safetensors      weights and buffers of each network
      ema.<name>.safetensors      its EMA of the weights; power-<width>.<name>.safetensors the power-function ones
      optimizer.<network>.safetensors  moments of each network's optimiser
      state.json                      step and everything else that is a number
      commit.json                     size and sha256 of every file above, written last

A directory is written under a temporary name, flushed and renamed; older ones are removed after that, first out of
sight and then from the disk. So whatever is killed when, at least one whole checkpoint is there.
"""

import hashlib
import json
import re
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.ema import combine, gamma_of, solve_weights
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, fsync_path, read_json, sha256_file, temporary_name, write_json
from pipeline.runtime.run_dir import COMMIT, STATE, RunDir, Step, step_of
from pipeline.runtime.sharding import part

Tensors = dict[str, Tensor]
LATE_SECONDS = 60.0  # how long a network file system may take to show on one node what another has written
_OTHER = "does not have the content that was written (sha256 differs)"


@dataclass
class Snapshot:
    """All of a training state as tensors by file name, and numbers."""

    tensors: dict[str, Tensors]  # file name without suffix -> its tensors
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Completed optimiser steps."""
        return int(self.numbers["step"])


def write(directory: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint to `directory`, atomically. An existing one of the same name is left and raises."""
    with atomic_path(directory) as partial:
        partial.mkdir()
        hashes = {}
        for name, tensors in snapshot.tensors.items():
            hashes[f"{name}.safetensors"] = _save(tensors, partial / f"{name}.safetensors")
        write_json(partial / STATE, snapshot.numbers)
        hashes[STATE] = sha256_file(partial / STATE)
        files = {name: {"bytes": (partial / name).stat().st_size, "sha256": digest} for name, digest in hashes.items()}
        write_json(partial / COMMIT, {"step": snapshot.step, "files": files})


def _save(tensors: Tensors, path: Path) -> str:
    """Write a file; the sha256 that it has to have."""
    packed = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        save_file(packed, path)
    except SafetensorError as error:  # safetensors wraps what the system said, such as a full disk
        code = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(code[1]), str(error)) if code else error) from error
    return _sha256(path, packed)


def _sha256(path: Path, tensors: Tensors) -> str:
    """Hex sha256 of the safetensors file that holds these tensors. Its header alone is read, the rest is in memory.

    The file is the header's size in 8 bytes, the header (JSON: the place of every tensor), and the tensors.
    """
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
    places = {name: entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"}
    digest = hashlib.sha256(size + header)
    for name in sorted(places, key=places.__getitem__):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(directory: Path, *, hashed: bool = True) -> Snapshot:
    """Read a checkpoint whole, each file once. Raises `Incomplete` naming the file and what is wrong with it.

    Not `hashed`: every file is there and has its size; its content is taken as it is.
    """
    records = _records(directory)
    tensors = {
        Path(name).stem: _load(directory / name, record["sha256"] if hashed else None)
        for name, record in records.items()
        if name.endswith(".safetensors")
    }
    if hashed and sha256_file(directory / STATE) != records[STATE]["sha256"]:
        raise _damaged(directory, f"{STATE} {_OTHER}")
    return Snapshot(tensors, read_json(directory / STATE))


def _records(directory: Path) -> dict[str, Any]:
    """Size and sha256 of every file, from the commit record. All of them are there and have their sizes."""
    try:
        records: dict[str, Any] = read_json(directory / COMMIT)["files"]
    except (Incomplete, KeyError, TypeError) as error:
        raise _damaged(directory, f"it has no readable {COMMIT}") from error
    for name, record in records.items():
        file = directory / name
        if not file.is_file():
            raise _damaged(directory, f"{name} is missing")
        if file.stat().st_size != record["bytes"]:
            raise _damaged(directory, f"{name} has {file.stat().st_size} bytes instead of {record['bytes']}")
    return records


def _load(path: Path, sha256: str | None) -> Tensors:
    """Tensors of a file, mapped into memory, and compared with `sha256` there. None: they are not compared."""
    try:
        tensors: Tensors = load_file(path)
        intact = sha256 is None or _sha256(path, tensors) == sha256
    except (SafetensorError, ValueError) as error:  # ValueError: a header that is not Unicode
        raise _damaged(path.parent, f"{path.name} cannot be read, its sha256 differs: {error}") from error
    if not intact:
        raise _damaged(path.parent, f"{path.name} {_OTHER}")
    return tensors


def _load_recorded(path: Path) -> Tensors:
    """Tensors of a file, as its checkpoint's commit record says."""
    return _load(path, _records(path.parent)[path.name]["sha256"])


def _damaged(directory: Path, wrong: str) -> Incomplete:
    return Incomplete(f"{directory} is damaged: {wrong}.")


def read_chosen(directory: Path) -> Snapshot:
    """Read a checkpoint that another process has just checked byte by byte: files and sizes are looked at again.

    Network file systems may show it here some seconds later: it is waited for. Raises `Incomplete` as `read` does.
    """
    end = time.monotonic() + LATE_SECONDS
    while True:
        try:
            return read(directory, hashed=False)
        except Incomplete as error:
            if time.monotonic() >= end:
                raise Incomplete(
                    f"{directory} was chosen by rank 0, but {socket.gethostname()} does not see it whole: {error} Look "
                    "at the file system of the run directory on that node."
                ) from error
        time.sleep(0.1)


def newest_valid(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and a sentence for each damaged one that was passed over."""
    path, _, sentences = read_newest(run)
    return path, sentences


def read_newest(run: RunDir, *, set_aside: bool = False) -> tuple[Path | None, Snapshot | None, list[str]]:
    """`newest_valid`, and what was read to find it.

    `set_aside` renames the damaged ones, so that their step can be written again (one process only).
    """
    sentences: list[str] = []
    found = sorted((step, p) for p in run.checkpoints.glob("step-*") if (step := step_of(p.name)) is not None)
    for _, path in reversed(found):
        try:
            return path, read(path), sentences
        except Incomplete as error:
            sentences.append(f"{error} It is passed over.")
        if set_aside:
            path.rename(path.with_name(f"damaged-{path.name}-{temporary_name(path).name[-6:]}"))
    return None, None, sentences


def rotate(run: RunDir, *, keep_last: int, keep_every: int | None, best: int | None = None) -> None:
    """Remove all but the newest `keep_last`, those at multiples of `keep_every` steps, the `best` one, and those that
    samples or results were made of: a finished run that is trained further keeps the model that was scored."""
    steps = run.steps()
    for step in steps[:-keep_last]:
        if step == best or (keep_every and step % keep_every == 0) or run.is_used(step):
            continue
        gone = temporary_name(run.checkpoint(step))
        run.checkpoint(step).rename(gone)  # out of sight at once; what a kill leaves is swept at the next start
        fsync_path(run.checkpoints)
        shutil.rmtree(gone)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Load weights; a missing, surplus or misshapen tensor raises `UserError` and nothing is loaded."""
    wanted = module.state_dict()
    missing, surplus = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    shapes = [
        f"{k} is {tuple(tensors[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in sorted(wanted.keys() & tensors.keys())
        if wanted[k].shape != tensors[k].shape
    ]
    if missing or surplus or shapes:
        raise UserError(
            f"{what} does not fit the network that the config describes: missing {missing[:3] or 'none'}, surplus "
            f"{surplus[:3] or 'none'}, of another shape {shapes[:3] or 'none'}. Use the config it was made with."
        )
    module.load_state_dict({name: part(tensor, wanted[name]) for name, tensor in tensors.items()}, strict=True)


def step_to_read(run: RunDir, step: Step) -> Path:
    """The checkpoint of `step`, the best one, or the newest valid one."""
    if step == "best" and (step := run.best_step()) is None:
        raise UserError(
            f"{run.path} has no best checkpoint: nothing was measured that could tell (train.early_stop). It has: "
            f"{run.steps() or 'none'}. Choose one of them, or leave the step out for the newest."
        )
    if step is not None:
        if step not in run.steps():
            raise UserError(f"{run.path} has no checkpoint of step {step}. It has: {run.steps() or 'none'}.")
        return run.checkpoint(step)
    path, sentences = newest_valid(run)
    if path is None:
        raise UserError(f"{run.path} has no checkpoint to read. {' '.join(sentences)} Train it first.")
    return path


def load_weights(run: RunDir, *, which: str, network: str, step: int | None = None) -> tuple[Tensors, int]:
    """Weights for inference and the step they belong to.

    Args:
        run: a run directory.
        which: "network" (training weights), "ema" (exponential), or "power:<relative width>": any width, rebuilt
            from the stored power-function EMAs of all kept checkpoints up to that step.
        network: name of the network, such as "denoiser".
        step: of the checkpoint; None is the newest valid one.
    Raises:
        UserError: where there is no such checkpoint or EMA; `Incomplete` where it is damaged.
    """
    directory = step_to_read(run, step)
    found = step_of(directory.name) or 0
    if which.startswith("power:"):
        return _power_ema(run, network, found, float(which.partition(":")[2])), found
    records, name = _records(directory), f"{which}.{network}.safetensors"
    if name not in records:
        there = sorted(Path(n).stem for n in records if n.endswith(".safetensors") and not n.startswith("optimizer"))
        raise UserError(f"{directory} has no '{which}.{network}'. It has: {', '.join(there)}.")
    try:
        return _load_recorded(directory / name), found
    except Incomplete as error:
        raise Incomplete(f"{error} Choose another step: {run.steps()}.") from error


def _power_ema(run: RunDir, network: str, step: int, width: float) -> Tensors:
    stored = [
        (s, float(match[1]), path)
        for s in run.steps()
        if 0 < s <= step
        for path in sorted(run.checkpoint(s).glob(f"power-*.{network}.safetensors"))
        if (match := re.match(r"power-([0-9.]+)\.", path.name))
    ]
    if not stored:
        raise UserError(f"{run.path} keeps no power-function EMA up to step {step} (train.ema.power_widths).")
    coefficients = solve_weights(
        [s for s, _, _ in stored], [gamma_of(w) for _, w, _ in stored], time=step, gamma=gamma_of(width)
    )
    read = [path for (_, _, path), coefficient in zip(stored, coefficients, strict=True) if coefficient]
    return combine(map(_load_recorded, read), coefficients[coefficients != 0])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> Tensors:
    """An optimiser's state as named tensors: "<parameter>|<moment>"."""
    return {
        f"{names[p]}|{key}": value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], tensors: Tensors) -> None:
    """Put moments back where `optimizer_tensors` took them from; `named`: parameter by name."""
    optimizer.state.clear()
    for full, value in tensors.items():
        name, _, key = full.partition("|")
        if name not in named:
            raise Incomplete(f"the optimiser's state has a moment for '{name}', which is no parameter of the network")
        parameter = named[name]
        if key == "step":  # Adam's counter stays on the CPU unless the optimiser is fused
            place = parameter.device if optimizer.param_groups[0].get("fused") else "cpu"
            optimizer.state[parameter][key] = value.to(place, copy=True)
        elif value.shape == parameter.shape:  # a moment: beside its weight, and in the same memory order
            moment = torch.empty_like(parameter, dtype=value.dtype)
            optimizer.state[parameter][key] = moment.copy_(part(value, parameter))
        else:
            raise Incomplete(
                f"the optimiser's state has {full} of shape {tuple(value.shape)}, expected {tuple(parameter.shape)}"
            )
