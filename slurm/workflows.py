"""Which jobs an experiment is, and whether what each of them makes is on the disk.

prepare -> train -> sample -> evaluate. Each is one command that a person can also type; each skips what it finds done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory, run_directory, sample_set_name
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import content_hash, read_json
from pipeline.runtime.run_dir import RunDir, create_run, overrides_for
from slurm.job import Job

MANIFEST = "manifest.json"  # what makes a sample set complete


@dataclass(frozen=True)
class Launch:
    """A run and its graph, ready to be submitted or printed."""

    cfg: Config
    run: RunDir
    jobs: tuple[Job, ...]
    words: tuple[str, ...]  # what this call says differently from the run's own config

    def key(self, job: str) -> str:
        """What a job makes, as 16 hex digits: two runs that prepare the same data share that job."""
        made = data_directory(self.cfg) if job == "prepare" else self.run.path
        return content_hash([str(made.resolve()), job])[:16]

    def complete(self) -> dict[str, bool]:
        """Whether what each job makes is complete, in the order of the graph."""
        return {job.name: COMPLETE[job.name](self) for job in self.jobs}


def launch_for(cfg: Config, *, make: bool) -> Launch:
    """The launch of a config. With `make`, the run directory is made, or compared with this config where it exists.

    Raises:
        UserError: where the run directory was made with other settings.
    """
    run = create_run(cfg) if make else RunDir(run_directory(cfg))
    run = RunDir(run.path.resolve())
    words = overrides_for(run, cfg) if run.config.is_file() else []
    return Launch(cfg, run, tuple(graph_of(cfg, run, words)), tuple(words))


def launch_of_run(path: Path, words: tuple[str, ...] = ()) -> Launch:
    """The launch of an existing run directory, with the words of its last submission or others."""
    cfg = config_from([str(path), *words])
    run = RunDir(path.resolve())
    return Launch(cfg, run, tuple(graph_of(cfg, run, words)), words)


def graph_of(cfg: Config, run: RunDir, words: list[str] | tuple[str, ...]) -> list[Job]:
    """The jobs of an experiment. `words` are overrides that they are given beside the run directory."""
    cluster, where = cfg.cluster, str(run.path)
    said = tuple(w for w in words if not w.startswith("cluster."))
    sections = {
        "prepare": ("data_prep", "all", where),
        "train": ("pipeline", "train", where),
        "sample": ("pipeline", "sample", where),
        "evaluate": ("pipeline", "evaluate", where),
    }
    jobs = [
        Job("prepare", (*sections["prepare"], *said), cluster.prepare),
        Job("train", (*sections["train"], *said), cluster.train, after=("prepare",)),
        Job("sample", (*sections["sample"], *said), cluster.sample, after=("train",)),
    ]
    last = cluster.evaluate
    if last.parts > 1:  # parts compute features; one more job puts them together
        jobs.append(Job("features", (*sections["evaluate"], *said), last, after=("sample",)))
    one = last.model_copy(update={"parts": 1})
    jobs.append(Job("evaluate", (*sections["evaluate"], *said), one, after=(jobs[-1].name,)))
    return jobs


def _prepared(launch: Launch) -> bool:
    data = data_directory(launch.cfg)
    # Other evaluation settings than the run's own may need other reference statistics: preparing finds out.
    asked = any(w.startswith("evaluate.") for w in launch.words) and not _evaluated(launch)
    return not asked and all((data / stage / "receipt.json").is_file() for stage in ("shards", "reference"))


def _trained(launch: Launch) -> bool:
    return launch.run.finished()


def sample_set(launch: Launch) -> Path | None:
    """Where the samples of the newest checkpoint stand, or will; None before there is one."""
    step = launch.run.latest_step()
    return None if step is None else launch.run.samples(step) / sample_set_name(launch.cfg)


def result_of(launch: Launch, samples: Path) -> Path:
    """Where the evaluation of a sample set stands, or will."""
    return launch.run.results / f"{samples.parent.name.removeprefix('step-')}-{samples.name}.json"


def _sampled(launch: Launch) -> bool:
    samples = sample_set(launch)
    if samples is None or not launch.run.finished() or not (samples / MANIFEST).is_file():
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


COMPLETE = {
    "prepare": _prepared,
    "train": _trained,
    "sample": _sampled,
    "features": _evaluated,
    "evaluate": _evaluated,
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
