"""What a submission would do, and what follows from the config; the graph as scripts that a person submits."""

import math
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from pipeline.config.durations import needs_images
from pipeline.config.load import listed
from pipeline.config.needs import looked_at
from pipeline.config.paths import data_directory
from pipeline.config.plan import plan_for
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import Resources
from pipeline.config.schema_objectives import objective_kind
from pipeline.config.weights import no_folder
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json, write_text
from slurm import ledger, snapshot
from slurm.access import check_file, check_folder
from slurm.costs import estimates, in_all, shipped_cost
from slurm.executor import allocation, batch_script, notice_of, python_of, sbatch_options, variables_over, would_take
from slurm.graph import Job, ordered
from slurm.progress import duration
from slurm.queue import LimitReached, Limits, SlurmAway, limits
from slurm.score import ScoreLaunch
from slurm.workflows import Launch, trained_autoencoder

WARNINGS = ("noise", "warm-up")  # rows that say what may go wrong; there only where it may
QUALITY_SIZE = 96  # pixels from which measures of single images say something
BRIGHTNESS = 0.2  # standard deviation of whole images' means, in [-1, 1]; of Oxford Flowers 0.17


def show(launch: Launch, console: Console, *, overrides: Sequence[str] = ()) -> None:
    """Print the graph with what is complete already, then the derived quantities. Commands stay in one line.
    `overrides` may name an experiment.

    Raises:
        UserError: as `quantities`; before anything is printed, unless the site is in the way.
    """
    rows, complete = followed(launch), launch.complete()
    costs = estimates(launch.cfg, launch.jobs, train_images=train_images(launch.cfg))
    _say(console, f"{launch.run.path} on cluster={launch.cfg.cluster.name}", "")
    jobs, limited = ordered(launch.jobs), launch.cfg.cluster.executor == "slurm"
    for job in jobs:
        after = f", after {', '.join(job.parents)}" if job.parents else ""
        _say(console, f"{job.name}: {'complete: skipped' if complete[job.name] else 'to do'}{after}")
        _say(console, f"  {job.command()}", f"  {asked(job.resources, limited=limited)}")
        _say(console, "" if complete[job.name] or job.name not in costs else f"  estimate: {costs[job.name]}\n")
    check_gpus(launch.cfg, launch.jobs)
    unknown = _unknown(launch.cfg, overrides) if not costs and not all(complete.values()) else {}
    to_do = [job for job in jobs if not complete[job.name]]
    total = in_all(launch.cfg, to_do, train_images=train_images(launch.cfg))
    total = {name: said for name, said in total.items() if limited or name != "in all"}
    site = limits() if limited else None
    for name, value in (rows | unknown | total | _limits(launch, site)).items():
        _say(console, f"{name:14s} {value}")
    if objective_kind(launch.cfg).samples and launch.cfg.evaluate.inception.weights is None:
        quality = launch.cfg.data.image_size >= QUALITY_SIZE and not launch.cfg.evaluate.quality.weights()
        names = ("inception", *(("niqe", "brisque", "cnniqa") if quality else ()))
        more = "Nor is the quality of single images. " if quality else ""
        _say(console, f"FID and IS     not measured: no weights. {more}{no_folder(*names)}")
    train = f"mudi train {shlex.join(overrides or [str(launch.run.path)])} --dry-run"
    _say(console, f"parameters     `{train}` counts them, with the size of a checkpoint")
    if refused := [*beyond(launch.cfg, to_do, site), *_not_taken(launch, to_do, site)] if site is not None else []:
        raise UserError(f"submit would refuse this:\n{listed(refused)}")


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _unknown(cfg: Config, overrides: Sequence[str]) -> dict[str, str]:
    """Said where nothing like any job was measured."""
    cost = shipped_cost(overrides)
    said = f"nothing like these jobs was measured; they come from runs in {cfg.runs_dir}"
    return {"estimates": said} | ({"cost": cost} if cost else {})


def _limits(launch: Launch, site: Limits | None) -> dict[str, str]:
    """The site's limits, and what of the graph they do not allow."""
    if site is None:
        return {}
    said = [str(site), *beyond(launch.cfg, launch.jobs, site), crowded(launch.jobs, site)]
    return {"limits": "; ".join(filter(None, said))}


def asked(resources: Resources, *, limited: bool = True) -> str:
    """Resources in words. `limited`: with the time limit, which is wide where jobs run on this machine."""
    nodes = f"{resources.nodes} nodes x " if resources.nodes > 1 else ""
    parts = [nodes + _counted(resources.tasks_per_node, "process", "processes")]
    parts += [_counted(resources.gpus, "GPU", "GPUs") + (" a node" if nodes else "")] if resources.gpus else []
    parts += [_counted(resources.cpus, "core", "cores") + " each"] if resources.cpus else []
    parts += [f"{resources.memory_gb:g} GB"] if resources.memory_gb else []
    parts += [f"{duration(60 * resources.minutes)} at most"] if limited else []
    parts += [f"{resources.parts} parts"] if resources.parts > 1 else []
    return ", ".join(parts)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def quantities(launch: Launch) -> dict[str, str]:
    """What follows from the config, and from that of the autoencoder which the graph trains.

    Raises:
        UserError: as `derived`, and as `check_gpus`.
    """
    check_gpus(launch.cfg, launch.jobs)
    return followed(launch)


def followed(launch: Launch) -> dict[str, str]:
    """`quantities` without a look at this machine's GPUs."""
    if isinstance(launch, ScoreLaunch):
        return {}
    own = trained_autoencoder(launch.cfg)
    first_stage = {f"autoencoder: {k}": v for k, v in derived(own).items()} if own is not None else {}
    return first_stage | derived(launch.cfg)


def check_gpus(cfg: Config, jobs: Sequence[Job]) -> None:
    """Refuse GPUs that this machine does not have, where jobs run here: they would run on the CPU.

    Raises:
        UserError: naming the settings, and how many GPUs torch sees.
    """
    asked = {f"cluster.{job.name}.gpus": job.resources.gpus for job in jobs if job.resources.gpus}
    if cfg.cluster.inside:
        allocation()
    if cfg.cluster.executor != "local" or cfg.cluster.inside or not asked:  # srun refuses what was not allocated
        return
    # The job's own Python is asked: this package's launcher does not load torch.
    argv = [*shlex.split(python_of(cfg.cluster)), "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = int(done.stdout) if done.returncode == 0 else 0
    if short := [f"{name}={number}" for name, number in asked.items() if number > found]:
        raise UserError(
            f"{', '.join(short)}: found {found} GPUs on this machine, where cluster={cfg.cluster.name} runs its jobs. "
            "Ask for as many as there are (0: on the CPU), or name a cluster that has them."
        )


def derived(cfg: Config) -> dict[str, str]:
    """Quantities that follow from the config, in words. Those that need the data say so until it is prepared.

    Raises:
        UserError: a global batch that does not divide over the ranks, or exceeds the training split.
    """
    train, images = cfg.train, train_images(cfg)
    ranks = cfg.cluster.train.nodes * cfg.cluster.train.tasks_per_node
    plan = plan_for(cfg, train_images=images or train.global_batch, world_size=ranks)
    share = f"{train.global_batch} = {ranks} process(es) x {plan.accumulate} micro-batch(es) x {plan.micro_batch}"
    found = looked_at(cfg)
    rows = ({"data": found.said} if found is not None else {}) | {"global batch": share}
    if left := image_left(cfg):
        rows["noise"] = (
            f"after the last time step {left:.0%} of the image is left, but samples begin from noise alone: all will "
            "be about equally bright. diffusion.levels.rescale_betas=true, or more timesteps, leave less"
        )
    samples = {"samples": _samples(cfg)} if objective_kind(cfg).samples else {}
    if needs_images(train.duration) and images is None:
        waiting = f"{train.duration}; in steps once the data is prepared ({data_directory(cfg)})"
        return rows | {"training": waiting} | samples
    seen = plan.total_steps * train.global_batch
    epochs = f", {seen / images:.1f} epochs of {images}" if images else ""
    rows["training"] = f"{plan.total_steps} steps, {seen / 1000:g} thousand images{epochs}"
    if plan.warmup_steps > plan.total_steps:
        rows["warm-up"] = (
            f"{plan.warmup_steps} steps (train.optim.warmup={train.optim.warmup}), longer than the training: the rate "
            f"ends at {train.optim.lr * plan.total_steps / plan.warmup_steps:.2g} and never reaches {train.optim.lr:g}"
        )
    if images or not needs_images(train.checkpoint_every):
        also = f", and one each {train.keep_every}" if train.keep_every else ""
        rows["checkpoints"] = f"every {plan.checkpoint_every} steps, the last {train.keep_last} kept{also}"
    return rows | samples


def _samples(cfg: Config) -> str:
    """How many, and how they are drawn where that takes more than one call of the network."""
    sampler = cfg.sample.sampler
    drawn = f", {sampler.steps} steps of {sampler.kind}" if objective_kind(cfg).diffusion else ""
    return f"{cfg.sample.count}{drawn}"


def image_left(cfg: Config) -> float:
    """Share of an image that is left after a DDPM's last time step, sqrt(alpha bar); 0 where it does not matter.

    It matters where a network can tell how bright the image is: what is left of its brightness stands out from the
    average of the noise over all pixels (Lin et al. 2024, "Common diffusion noise schedules and
    sample steps are flawed").
    """
    levels, side = cfg.diffusion.levels, cfg.data.image_size
    if not objective_kind(cfg).diffusion or levels.kind != "ddpm" or cfg.latents is not None:
        return 0.0
    left = 1 / math.hypot(1, levels.sigma_max)
    return left if left * BRIGHTNESS > 1 / side else 0.0


def train_images(cfg: Config) -> int | None:
    """The size of the training split; None while it is not prepared."""
    try:
        return int(read_json(data_directory(cfg) / "shards" / "train" / "manifest.json")["count"])
    except (Incomplete, NotADirectoryError):
        return None


# Limits of the site


def beyond(cfg: Config, jobs: Sequence[Job], site: Limits) -> Iterator[str]:
    """What jobs ask for that the site never grants; a sentence each."""
    longest = site.longest or {}
    for job in jobs:
        asked = job.resources
        for name in (asked.partition or cfg.cluster.partition or "").split(","):
            if name in longest and asked.minutes > longest[name]:
                yield (
                    f"cluster.{job.name}.minutes: found {asked.minutes}, expected at most {longest[name]}, the longest "
                    f"time of partition {name or '(the default)'}. A training that is cut goes on in its next start"
                )
        if site.array_size is not None and asked.parts > site.array_size:
            yield f"cluster.{job.name}.parts: found {asked.parts}, expected at most {site.array_size} (MaxArraySize)"


def _not_taken(launch: Launch, jobs: Sequence[Job], site: Limits) -> Iterator[str]:
    """What Slurm says against jobs that are shown to it, not submitted: a partition or an option that is not there."""
    said: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for job in () if site.silent else jobs:
            try:
                would_take(job, ledger.context_of(launch, job, code=Path(folder)), Path(folder))
            except (SlurmAway, LimitReached):
                continue  # of this moment: it may be taken later
            except UserError as error:
                said.setdefault("; ".join(str(error).partition(": ")[2].splitlines()), []).append(job.name)
    for complaint, names in said.items():
        yield f"{', '.join(names)}: {complaint}. Correct cluster.<job> for one of them, or cluster for all"


def crowded(jobs: Sequence[Job], site: Limits) -> str:
    """Said where the graph has more jobs than the site lets a user have in the queue; else ""."""
    count = sum(job.resources.parts * job.resources.starts for job in jobs)
    if site.submitted is None or count <= site.submitted:
        return ""
    return f"{count} jobs, but only {site.submitted} at a time in the queue: submit again when some have ended"


# Scripts to submit by hand


def write(launch: Launch, folder: Path) -> list[Path]:
    """Write one script for each job, and `submit.sh`, which submits them with their dependencies.

    The code is copied to `folder/code`; the run's config must have been written. The run's ledger says that there are
    scripts: `status` then looks for what was submitted of them.
    """
    folder = folder.resolve()
    check_folder(folder, "--sbatch")
    check_file(launch.run.jobs / ledger.LEDGER, "the ledger of submissions")
    code = snapshot.take(folder / "code")
    written: list[Path] = []
    lines = ["#!/bin/bash", "set -euo pipefail", f"cd {shlex.quote(str(launch.cwd))}", *_unset_lines(launch, code=code)]
    for number, job in enumerate(ordered(launch.jobs), 1):
        path = folder / f"{number}-{job.name}.sbatch"
        write_text(path, script(launch, job, code=code))
        written.append(path)
        waits = [f"afterok:${parent}" for parent in job.after] + [f"afterany:${parent}" for parent in job.after_any]
        if waits and (own := launch.cfg.cluster.options.get("dependency")):
            waits.append(str(own))  # the option of the command line is the only one that counts
        option = f' --dependency="{",".join(waits)}"' if waits else ""
        lines += [f"{job.name}=$(sbatch --parsable{option} {shlex.quote(str(path))})", f'echo "{job.name} ${job.name}"']
    write_text(folder / "submit.sh", "\n".join(lines) + "\n")
    (folder / "submit.sh").chmod(0o777 & (folder / "submit.sh").stat().st_mode | 0o111)
    ledger.note(launch.run, ledger.SCRIPTS, folder=str(folder), overrides=launch.overrides, cwd=str(launch.cwd))
    return [*written, folder / "submit.sh"]


def _unset_lines(launch: Launch, *, code: Path) -> list[str]:
    """Unset, and say so, what sbatch would take before the scripts' own options."""
    options = {n for job in launch.jobs for n in sbatch_options(job, ledger.context_of(launch, job, code=code))}
    return [
        f"for name in {' '.join(sorted(variables_over(options)))}; do",
        f'  if [ "${{!name+set}}" ]; then echo "{notice_of(["$name"], launch.cfg.cluster)}" >&2; unset "$name"; fi',
        "done",
    ]


def script(launch: Launch, job: Job, *, code: Path) -> str:
    """One sbatch script: the same options, set-up, command and epilogue as a submission has."""
    context = ledger.context_of(launch, job, code=code)
    context.record.mkdir(parents=True, exist_ok=True)
    return batch_script(job, context)
