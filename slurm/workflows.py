"""Which jobs an experiment is, and whether what each of them makes is on the disk.

    prepare -> train -> sample -> evaluate -> compare                            a generator of pixels
    prepare -> train -> reconstruct                                              an autoencoder
    prepare -> encode -> train -> sample -> evaluate -> compare                  a generator of latents
    prepare -> autoencoder -> encode -> ... and autoencoder -> reconstruct       where latents.experiment is named

Each is one command that a person can also type; each skips what it finds done.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.config.autoencoder import missing_autoencoder
from pipeline.config.load import autoencoder_config, config_from, listed, run_named
from pipeline.config.needs import missing
from pipeline.config.overrides import key_of
from pipeline.config.paths import data_directory, latents_directory, run_directory, sample_set_name
from pipeline.config.schema import Config, LatentsConfig
from pipeline.config.schema_cluster import ClusterConfig
from pipeline.config.schema_objectives import objective_kind
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import content_hash, read_json
from pipeline.runtime.run_dir import RunDir, create_run, grows, overrides_for
from slurm.access import check_folder
from slurm.graph import Job, ancestors

MANIFEST = "manifest.json"  # what makes a sample set complete
RECEIPT = "receipt.json"  # what makes a stage of preparation complete
# Settings of the cluster that a job reads itself: what was asked of Slurm now counts, not what the run was made with.
READ_BY_JOBS = (
    *(f"cluster.{name}.gpus" for name in ("train", "autoencoder", "sample", "evaluate")),
    *("cluster.autoencoder", "cluster.rendezvous_s"),
)
COMPARISON = "comparison"  # the folder of a run's comparison, in the run directory


@dataclass(frozen=True)
class Launch:
    """A run and its graph, ready to be submitted or printed."""

    cfg: Config
    run: RunDir
    jobs: tuple[Job, ...]
    overrides: tuple[str, ...]  # what this call says differently from the run's own config
    cwd: Path = field(default_factory=Path.cwd)  # relative paths in the run's config, and so its jobs, start here
    chosen: frozenset[str] | None = None  # jobs that this call may submit; None: all

    def wanted(self) -> tuple[Job, ...]:
        """The jobs that this call may submit."""
        return tuple(job for job in self.jobs if self.chosen is None or job.name in self.chosen)

    def key(self, job: str) -> str:
        """What a job makes, as 16 hex digits: two runs that need the same data, autoencoder or latents share the job.

        The training of an autoencoder has the key that it has in the autoencoder's own graph.
        """
        made = folder_of(self.cfg, self.run, job)
        return content_hash([str(made), "train" if job == "autoencoder" else job])[:16]

    @cached_property
    def autoencoder(self) -> RunDir:
        """The run of the autoencoder: this one, or the one whose latents it is trained on."""
        return self.run if self.cfg.latents is None else RunDir(self.cfg.latents.autoencoder.resolve())

    @cached_property
    def grows(self) -> bool:
        """Whether the run is there with another duration, to which `submit` will take it."""
        return grows(self.run, self.cfg)

    def complete(self) -> dict[str, bool]:
        """Whether what each job makes is complete, in the order of the graph."""
        return {job.name: COMPLETE[job.name](self) for job in self.jobs}

    def trains(self, job: str) -> RunDir | None:
        """The run that a job trains; None where it does something else."""
        return {"train": self.run, "autoencoder": self.autoencoder}.get(job)


def launch_for(cfg: Config, *, make: bool, until: str | None = None, only: str | None = None) -> Launch:
    """The launch of a config. With `make`, the run directory is made, or compared with this config where it exists;
    so is the autoencoder's, where the graph trains one. `until` and `only`: see `part_of`.

    Raises:
        UserError: where a run directory was made with other settings, there is no autoencoder to encode with, or a job
            will not find what it needs: images, weights.
    """
    if make:
        if problems := missing_for(part_of(_launch(cfg), until=until, only=only)):
            raise UserError(listed(problems))
        check_places(cfg)
        if cfg.latents is not None:
            _make_autoencoder(cfg, cfg.latents)
        create_run(cfg)
    return part_of(_launch(cfg), until=until, only=only)


def part_of(launch: Launch, *, until: str | None = None, only: str | None = None) -> Launch:
    """The launch with some of its jobs: one and all before it, or one alone.

    Raises:
        UserError: both are given, or there is no such job.
    """
    if until is not None and only is not None:
        raise UserError("--until and --only: found both, expected one of them.")
    if until is not None:
        job_named(launch, until)
        return replace(launch, chosen=frozenset({until, *ancestors(launch.jobs, until)}))
    return launch if only is None else replace(launch, chosen=frozenset({job_named(launch, only).name}))


def _launch(cfg: Config) -> Launch:
    run = RunDir(run_directory(cfg).resolve())
    overrides = overrides_for(run, cfg) if run.config.is_file() else []
    return Launch(cfg, run, tuple(graph_of(cfg, run, overrides)), tuple(overrides))


def missing_for(launch: Launch) -> list[str]:
    """What the jobs that are still to do will not find: images, weights; a sentence each."""
    to_do = [job for job in launch.wanted() if not launch.complete()[job.name]]
    return [*missing(launch.cfg, [job.name for job in to_do]), *account_missing(launch.cfg.cluster, to_do)]


def account_missing(cluster: ClusterConfig, jobs: Sequence[Job]) -> list[str]:
    """A sentence where the cluster takes jobs with an account alone, and one of these has none; else []."""
    if not cluster.account_required or "SBATCH_ACCOUNT" in os.environ:
        return []
    if all(job.resources.account or cluster.account for job in jobs):
        return []
    return [
        f"cluster.account: found none, but cluster={cluster.name} charges each job to an account. Give yours: "
        "cluster.account=NAME, or `account: NAME` in a copy of the profile (`sacctmgr show user $USER -s` lists them)."
    ]


def check_places(cfg: Config) -> None:
    """Whether the run's directory can be written, and the data's where something of the data has yet to be made.

    Raises:
        UserError: naming the setting and whose folder it is.
    """
    check_folder(run_directory(cfg), "runs_dir")
    data = data_directory(cfg)
    made = [data / "shards", data / "reference", *([latents_directory(cfg)] if cfg.latents is not None else [])]
    if not all((folder / RECEIPT).is_file() for folder in made):
        check_folder(data, "data_dir")


def _make_autoencoder(cfg: Config, latents: LatentsConfig) -> None:
    """The run of the autoencoder that the graph trains; where it trains none, one that can encode must be there."""
    if (own := trained_autoencoder(cfg)) is not None:
        check_folder(run_directory(own), "latents.autoencoder")
        create_run(own, goes_on=False)  # other runs may use its latents
        return
    if missing := missing_autoencoder(cfg):
        raise UserError(missing)
    first_stage, step = RunDir(latents.autoencoder), latents.step
    if first_stage.config.is_file() and step is None and not first_stage.finished():
        raise UserError(
            f"latents.autoencoder: the training of {first_stage.path} has not ended (checkpoints of steps "
            f"{first_stage.steps() or 'none'}). Submit again when it has, name its experiment in latents.experiment so "
            "that this graph waits for it, or choose one of its steps by latents.step."
        )


def trained_autoencoder(cfg: Config) -> Config | None:
    """The config of the autoencoder that this experiment's graph trains; None where it takes one as it is."""
    return autoencoder_config(cfg) if cfg.latents is not None and cfg.latents.experiment is not None else None


def launch_of_run(path: Path, overrides: tuple[str, ...] = (), *, cwd: Path | None = None) -> Launch:
    """The launch of an existing run directory, with the overrides of its last submission or others.

    Args:
        cwd: where it was submitted; None: here.
    """
    cwd = cwd or Path.cwd()
    run, cfg = RunDir(path.resolve()), _seen_from(cwd, meant([str(path), *overrides]))
    return Launch(cfg, run, tuple(graph_of(cfg, run, overrides)), overrides, cwd)


def meant(overrides: Sequence[str]) -> Config:
    """The config that a command line means. A run directory may have been copied or moved: its own name and place
    count, not those in its config.
    """
    cfg, path = config_from(overrides), run_named(overrides)
    if path is None:
        return cfg
    here = path.resolve() if path.name in ("", "..") else path
    return cfg.model_copy(update={"runs_dir": here.parent, "name": here.name})


def _seen_from(cwd: Path, cfg: Config) -> Config:
    """The config with absolute places of its run, its data and its autoencoder."""
    changes: dict[str, object] = {"data_dir": cwd / cfg.data_dir, "runs_dir": cwd / cfg.runs_dir}
    if cfg.latents is not None:
        place = cwd / cfg.latents.autoencoder
        changes["latents"] = cfg.latents.model_copy(update={"autoencoder": place})
    return cfg.model_copy(update=changes)


def folder_of(cfg: Config, run: RunDir, job: str) -> Path:
    """The folder that a job fills: the data's, the latents', or a run's."""
    if job == "prepare":
        return data_directory(cfg).resolve()
    if job == "encode":
        return latents_directory(cfg).resolve()
    if job in ("autoencoder", "reconstruct") and cfg.latents is not None:
        return cfg.latents.autoencoder.resolve()
    return run.path.resolve()


def graph_of(cfg: Config, run: RunDir, overrides: list[str] | tuple[str, ...]) -> list[Job]:
    """The jobs of an experiment. `overrides` are what they are given beside the run directory."""
    return [replace(job, makes=(folder_of(cfg, run, job.name),)) for job in _jobs(cfg, run, overrides)]


def _jobs(cfg: Config, run: RunDir, overrides: list[str] | tuple[str, ...]) -> list[Job]:
    cluster, where = cfg.cluster, str(run.path)
    said = tuple(w for w in overrides if not w.startswith("cluster.") or key_of(w) in READ_BY_JOBS)
    jobs = [Job("prepare", ("data_prep", "all", where, *said), cluster.prepare)]
    if cfg.latents is not None:
        jobs += _latents(cfg, where, said)
    jobs.append(Job("train", ("pipeline", "train", where, *said), cluster.train, after=(jobs[-1].name,)))
    if not objective_kind(cfg).samples:
        return [*jobs, _reconstruct(cluster, where, said, after="train")]
    jobs.append(Job("sample", ("pipeline", "sample", where, *said), cluster.sample, after=("train",)))
    evaluate = Job("evaluate", ("pipeline", "evaluate", where, *said), cluster.evaluate, after=("sample",))
    if evaluate.resources.parts > 1:  # parts compute features; one more job puts them together
        jobs.append(replace(evaluate, name="features"))
        one = evaluate.resources.model_copy(update={"parts": 1})
        evaluate = replace(evaluate, resources=one, after=("features",))
    compare_argv = ("pipeline", "compare", where, "--out", str(run.path / COMPARISON))
    return [*jobs, evaluate, Job("compare", compare_argv, cluster.compare, after=("evaluate",))]


def _latents(cfg: Config, where: str, said: tuple[str, ...]) -> list[Job]:
    """From images to latents; the last of them is what training waits for."""
    cluster, latents = cfg.cluster, cfg.latents
    encode = Job("encode", ("data_prep", "encode", where, *said), cluster.encode, after=("prepare",))
    if latents is None or latents.experiment is None:
        return [encode]
    first_stage = str(latents.autoencoder.resolve())
    there = tuple(w for w in said if w.startswith("cluster."))  # all else stands in its own config
    asked = cluster.autoencoder or cluster.train
    return [
        Job("autoencoder", ("pipeline", "train", first_stage, *there), asked, after=("prepare",)),
        _reconstruct(cluster, first_stage, there, after="autoencoder"),
        replace(encode, after=("autoencoder",)),
    ]


def _reconstruct(cluster: ClusterConfig, where: str, said: tuple[str, ...], *, after: str) -> Job:
    one = cluster.sample.model_copy(update={"parts": 1})
    return Job("reconstruct", ("pipeline", "reconstruct", where, *said), one, after=(after,))


def _prepared(launch: Launch) -> bool:
    data = data_directory(launch.cfg)
    # Other evaluation settings than the run's own may need other reference statistics: preparing finds out.
    asked = any(w.startswith("evaluate.") for w in launch.overrides) and not _evaluated(launch)
    return not asked and all((data / stage / RECEIPT).is_file() for stage in ("shards", "reference"))


def _trained(launch: Launch) -> bool:
    return launch.run.finished() and not launch.grows


def _autoencoder_trained(launch: Launch) -> bool:
    return launch.autoencoder.finished()


def _reconstructed(launch: Launch) -> bool:
    return launch.autoencoder.finished() and reconstruction_of(launch.autoencoder).is_file()


def reconstruction_of(run: RunDir) -> Path:
    """Where the result of an autoencoder's newest checkpoint on the validation images stands, or will."""
    return run.results / f"{run.latest_step() or 0:09d}-reconstruction.json"


def _encoded(launch: Launch) -> bool:
    return (latents_directory(launch.cfg) / RECEIPT).is_file()


def sample_set(launch: Launch) -> Path | None:
    """Where the samples of the checkpoint of `sample.step` stand, or will; None before there is one."""
    step = launch.run.chosen_step(launch.cfg.sample.step)
    return None if step is None else launch.run.samples(step) / sample_set_name(launch.cfg)


def result_of(launch: Launch, samples: Path) -> Path:
    """Where the evaluation of a sample set stands, or will."""
    return launch.run.results / f"{samples.parent.name.removeprefix('step-')}-{samples.name}.json"


def _sampled(launch: Launch) -> bool:
    samples = sample_set(launch)
    if samples is None or not _trained(launch) or not (samples / MANIFEST).is_file():
        return False
    return bool(read_json(samples / MANIFEST)["count"] >= launch.cfg.sample.count)


def _evaluated(launch: Launch) -> bool:
    samples = sample_set(launch)
    return samples is not None and _sampled(launch) and _has_result(launch, samples)


def _has_result(launch: Launch, samples: Path) -> bool:
    path = result_of(launch, samples)
    if not path.is_file():
        return False
    result, free = read_json(path), {"samples", "batch", "block"}
    asked = launch.cfg.evaluate.model_dump(mode="json", exclude=free)
    measured = {k: v for k, v in result["settings"].items() if k not in free}
    return bool(result["samples"]["sha256"] == read_json(samples / MANIFEST)["sha256"] and measured == asked)


def comparison(launch: Launch) -> Path:
    """The table of everything that was measured on the run."""
    return launch.run.path / COMPARISON / "comparison.md"


def _compared(launch: Launch) -> bool:
    table = comparison(launch)
    if not _evaluated(launch) or not table.is_file():
        return False
    return all(path.stat().st_mtime_ns <= table.stat().st_mtime_ns for path in launch.run.results.glob("*.json"))


COMPLETE = {
    "prepare": _prepared,
    "autoencoder": _autoencoder_trained,
    "reconstruct": _reconstructed,
    "encode": _encoded,
    "train": _trained,
    "sample": _sampled,
    "features": _evaluated,
    "evaluate": _evaluated,
    "compare": _compared,
}


def job_named(launch: Launch, name: str) -> Job:
    """The job of that name.

    Raises:
        UserError: naming the jobs that there are.
    """
    found: Mapping[str, Job] = {job.name: job for job in launch.jobs}
    if name not in found:
        raise UserError(f"{launch.run.path} has no job '{name}': its jobs are {', '.join(found)}.")
    return found[name]
