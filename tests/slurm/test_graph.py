"""Order of jobs: every job after its parents, whatever order they were given in."""

import random

import pytest
import tiny

from pipeline.config.load import config_from
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import COMMIT, FINISHED, create_run
from slurm.graph import Job, ancestors, downstream, ordered
from slurm.workflows import launch_for


def diamond() -> list[Job]:
    """a -> b, c -> d, and e alone."""
    return [
        Job("a", ("true",)),
        Job("b", ("true",), after=("a",)),
        Job("c", ("true",), after_any=("a",)),
        Job("d", ("true",), after=("b", "c")),
        Job("e", ("true",)),
    ]


def test_every_job_comes_after_its_parents_in_any_shuffle():
    rng = random.Random(0)
    for _ in range(50):
        jobs = diamond()
        rng.shuffle(jobs)
        place = {job.name: k for k, job in enumerate(ordered(jobs))}
        assert sorted(place) == list("abcde")
        assert all(place[parent] < place[job.name] for job in jobs for parent in job.parents)


def test_downstream_is_everything_that_waits_for_a_job():
    assert downstream(diamond(), "a") == ["b", "c", "d"]
    assert downstream(diamond(), "c") == ["d"]
    assert downstream(diamond(), "e") == []


def test_ancestors_are_the_other_way_round():
    assert ancestors(diamond(), "d") == {"a", "b", "c"} and ancestors(diamond(), "a") == set()


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Job("a", (), after=("b",)), Job("b", (), after=("a",))], "a -> b -> a"),
        ([Job("a", ()), Job("a", ())], "Two jobs are called a"),
        ([Job("train", ()), Job("sample", (), after=("trian",))], "Did you mean 'train'"),
    ],
    ids=["circle", "twice", "unknown parent"],
)
def test_a_graph_that_cannot_run_says_why(jobs, message):
    with pytest.raises(UserError, match=message):
        ordered(jobs)


def test_a_part_of_an_array_gets_its_share():
    job = Job("sample", ("pipeline", "sample", "r"), Job("x", ()).resources.model_copy(update={"parts": 3}))
    assert [job.part_argv(k)[-1] for k in range(3)] == ["0/3", "1/3", "2/3"]
    assert Job("sample", ("pipeline",)).part_argv(0) == ("pipeline",)


def test_a_longer_duration_makes_a_finished_training_open_again(tmp_path):
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    run = create_run(cfg)
    run.checkpoint(12).mkdir(parents=True)
    (run.checkpoint(12) / COMMIT).write_text("{}")
    (run.checkpoints / FINISHED).write_text("{}")
    longer = tiny.revalidated(cfg, train={"duration": "24 steps"})
    assert launch_for(cfg, make=False).complete()["train"]
    assert not launch_for(longer, make=False).complete()["train"] and run.finished()  # a plan changes nothing
    assert not launch_for(longer, make=True).complete()["train"] and not run.finished()
    assert config_from([str(run.path)]).train.duration == "24 steps"
