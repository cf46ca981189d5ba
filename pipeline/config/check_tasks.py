"""Jobs that one process does: several tasks of them would do all of the work each, over each other's files."""

from collections.abc import Iterator

from pipeline.config.schema import Config

ONE_TASK = ("prepare", "compare")


def check_tasks(cfg: Config) -> Iterator[str]:
    """What is wrong where such a job is to start as several tasks."""
    for name in ONE_TASK:
        asked = getattr(cfg.cluster, name)
        if (tasks := asked.nodes * asked.tasks_per_node) > 1:
            yield (
                f"cluster.{name}: found {tasks} tasks (nodes={asked.nodes}, tasks={asked.tasks}, gpus={asked.gpus}), "
                f"expected one: tasks cannot share this job. Set nodes=1 and tasks=1, and at most one GPU."
            )
