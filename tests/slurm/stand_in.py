"""Stands in for the pipeline's commands where a test is about launching: small programs that leave the same files.

    python -m stand_in KIND RUN_DIR [--steps N] [--pace SECONDS] [--hold] [--fail CLASS] [--part k/n] [--deaf] [--abort]
        [--stall]

`train` counts steps with a chain of hashes, saves the way real training does when it is asked to stop, and goes on
from its last save. Each step that it keeps is a line in steps.txt: a step that was trained twice would be there twice.
"""

import argparse
import atexit
import hashlib
import os
import signal
import sys
import time
import types
from pathlib import Path

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory, latents_directory, sample_set_name
from pipeline.runtime.errors import NonFiniteError, UserError
from pipeline.runtime.files import append_line, read_json, read_lines, write_json, write_text
from pipeline.runtime.run_dir import COMMIT, FINISHED, RunDir
from pipeline.runtime.stopping import Stop
from slurm.rank import ATTEMPTS

CODE = "as submitted"  # a test edits this line after submitting


def main() -> int:
    """Do what KIND does; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("train", "autoencoder", *QUICK))
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pace", type=float, default=0.05)
    parser.add_argument("--hold", action="store_true", help="the first start waits before the last step to be cut")
    parser.add_argument("--fail", default="")
    parser.add_argument("--once", action="store_true", help="fail at the first start alone")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--deaf", action="store_true", help="ignore signals")
    parser.add_argument("--stall", action="store_true", help="train nothing until it is cut, and save nothing")
    parser.add_argument("--abort", action="store_true", help="rank 0 aborts when everything has ended well")
    args = parser.parse_args()
    (args.run / f"{args.kind}.code").write_text(CODE)
    (args.run / f"{args.kind}.python_path").write_text(sys.modules["pipeline"].__path__[0])
    (args.run / f"{args.kind}.threads").write_text(os.environ["OMP_NUM_THREADS"])
    failed = args.run / f"{args.kind}.failed"
    if not (args.once and failed.exists()):
        failed.touch()
        fail(args.fail)
    if args.abort:
        abort_at_the_end(args.run / "jobs" / args.kind)
    if args.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        time.sleep(900)
    if args.kind == "train":
        return train(args, args.run)
    if args.kind == "autoencoder":
        return train(args, autoencoder(args))
    time.sleep(args.pace)
    QUICK[args.kind](args)
    return 0


def fail(kind: str) -> None:
    """Fail in one of the ways in which jobs fail."""
    if kind == "bad_config":
        raise UserError("train.optim.lr: found -1, expected a positive number.")
    if kind == "non_finite":
        raise NonFiniteError("the loss was not finite 5 times in a row")
    if kind == "out_of_memory":
        bytearray(2**50)
    if kind == "memory":  # as far as the kernel allows: rank 1 alone, where there is one
        eaten: list[bytearray] = []
        while os.environ.get("SLURM_PROCID", "0") == str(int(os.environ.get("SLURM_NTASKS", "1")) - 1):
            eaten.append(bytearray(16 * 2**20))
            time.sleep(0.01)
        time.sleep(900)  # srun ends it when its partner has been killed
        raise RuntimeError("Connection closed by peer")  # what its partner sees then
    if kind == "killed":
        os.kill(os.getpid(), 9)
    if kind == "disk_full":
        with Path("/dev/full").open("w") as full:
            full.write("x" * 10_000)
    if kind == "lost":  # rank 1 is killed from outside; its partner hangs
        if os.environ.get("SLURM_PROCID") == "1":
            os.kill(os.getpid(), 9)
        time.sleep(900)
    if kind == "error":
        raise RuntimeError("the file system went away for a moment")


def abort_at_the_end(record: Path) -> None:
    """Abort on rank 0 as torch may: as its process group is taken apart, or else at the interpreter's exit.

    The ranks of a real training leave together, so rank 1 gets some seconds to end as well.
    """

    def abort() -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            rows = read_lines(record / ATTEMPTS) if (record / ATTEMPTS).exists() else []
            if any(row["rank"] == 1 and row["event"] == "end" for row in rows):
                break
            time.sleep(0.05)
        os.abort()

    if os.environ.get("SLURM_PROCID", "0") == "0":
        group = types.SimpleNamespace(
            is_available=lambda: True, is_initialized=lambda: True, destroy_process_group=abort
        )
        sys.modules["torch.distributed"] = group  # type: ignore[assignment]
        atexit.register(abort)


def train(args: argparse.Namespace, path: Path) -> int:
    """Steps, one after the other; stops where it is asked to, at a step boundary, after a save."""
    run, state = RunDir(path), path / "state.json"
    now = read_json(state) if state.exists() else {"step": 0, "chain": ""}
    hold = args.hold and not run.starts.exists()
    append_line(run.starts, {"time": time.time(), "step": now["step"], "plan": {"total_steps": args.steps}})
    with Stop() as stop:
        while now["step"] < args.steps:
            time.sleep(args.pace)
            if args.stall:
                if stop.asked:
                    return stop.hand_over()
                continue
            if hold and now["step"] == args.steps - 1 and not stop.asked:
                continue
            chain = hashlib.sha256(f"{now['chain']} {now['step']}".encode()).hexdigest()
            now = {"step": now["step"] + 1, "chain": chain}
            with (path / "steps.txt").open("a") as file:
                file.write(f"{now['step']}\n")
            append_line(run.metrics, {"step": now["step"], "images": 32 * now["step"], "loss": 1 / now["step"]})
            if stop.asked:
                write_json(state, now)
                return stop.hand_over()
    write_json(state, now)
    write_json(run.checkpoint(args.steps) / COMMIT, {"step": args.steps})
    write_json(run.checkpoints / FINISHED, {"step": args.steps})
    return 0


def prepare(args: argparse.Namespace) -> None:
    """Receipts of the two stages."""
    data = data_directory(config_from([str(args.run)]))
    for stage in ("shards", "reference"):
        write_json(data / stage / "receipt.json", {"stage": stage})


def sample(args: argparse.Namespace) -> None:
    """A part; whoever finds every part there writes the manifest."""
    run, cfg = RunDir(args.run), config_from([str(args.run)])
    number, count = map(int, args.part.split("/"))
    directory = run.samples(run.latest_step() or 0) / sample_set_name(cfg)
    write_json(directory / f"part-{number}.json", {})
    if len(list(directory.glob("part-*.json"))) == count:
        write_json(directory / "manifest.json", {"count": cfg.sample.count, "sha256": "0"})


def evaluate(args: argparse.Namespace) -> None:
    """A result with the settings that it was measured with."""
    run, cfg = RunDir(args.run), config_from([str(args.run)])
    step = run.latest_step() or 0
    settings = cfg.evaluate.model_dump(mode="json")
    result = {"settings": settings, "samples": {"sha256": "0", "count": 1}, "step": step, "metrics": {}}
    write_json(run.results / f"{step:09d}-{sample_set_name(cfg)}.json", result)


def compare(args: argparse.Namespace) -> None:
    """A table."""
    write_text(args.run / "comparison" / "comparison.md", "| run |\n")


def autoencoder(args: argparse.Namespace) -> Path:
    """The run of the autoencoder whose latents are trained on; it is one itself without any."""
    latents = config_from([str(args.run)]).latents
    return args.run if latents is None else latents.autoencoder


def reconstruct(args: argparse.Namespace) -> None:
    """A result of the autoencoder's."""
    run = RunDir(autoencoder(args))
    write_json(run.results / f"{run.latest_step() or 0:09d}-reconstruction.json", {})


def encode(args: argparse.Namespace) -> None:
    """A part; whoever finds every part there writes the receipt."""
    number, count = map(int, args.part.split("/"))
    directory = latents_directory(config_from([str(args.run)]))
    assert RunDir(autoencoder(args)).finished(), "there is nothing to encode with"
    write_json(directory / f"part-{number}.json", {})
    if len(list(directory.glob("part-*.json"))) == count:
        write_json(directory / "receipt.json", {})


QUICK = {
    "prepare": prepare,
    "encode": encode,
    "sample": sample,
    "evaluate": evaluate,
    "compare": compare,
    "reconstruct": reconstruct,
}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except NonFiniteError as problem:
        print(f"not finite: {problem}", file=sys.stderr)
        sys.exit(76)
