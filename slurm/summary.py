"""What a run has to show: its numbers, its picture, and how to look at its curves."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.runtime.files import read_json
from pipeline.runtime.numbers_text import note, shown
from slurm.workflows import Launch, comparison, reconstruction_of, result_of, sample_set

PICTURES = {"grid.png": "Picture", "strip.png": "Strip"}  # of a sample set: images, and how they came out of noise


def summary(launch: Launch, console: Console) -> None:
    """Print results as a table, the pictures' paths, and the TensorBoard command."""
    samples = sample_set(launch)
    restored = reconstruction_of(launch.autoencoder)
    if any(job.name == "reconstruct" for job in launch.jobs) and restored.is_file():
        show_result(restored, "reconstructions", console)
        console.print(f"Picture:     {restored.with_suffix('.png')}", highlight=False, soft_wrap=True)
    if samples is not None and (path := result_of(launch, samples)).is_file():
        show_result(path, "samples", console)
    for name, what in PICTURES.items():
        if samples is not None and (samples / name).is_file():
            console.print(f"{what + ':':12} {samples / name}", highlight=False, soft_wrap=True)
    if comparison(launch).is_file():
        console.print(f"Comparison:  {comparison(launch)}", highlight=False, soft_wrap=True)
    if launch.run.tensorboard.is_dir():
        command = f"{sys.executable} -m tensorboard.main --logdir {launch.run.tensorboard}"
        console.print(f"TensorBoard: {command}", highlight=False, soft_wrap=True)


def show_result(path: Path, what: str, console: Console) -> None:
    """Print the numbers of a result file as a table below a line that says what they are of."""
    result = read_json(path)
    title = f"{result['samples']['count']} {what} of step {result['step']} ({path})"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("note", overflow="fold")
    for name, value in sorted(result["metrics"].items()):
        table.add_row(name, shown(value, result.get("details", {}).get(name, {})), note(name, value))
    console.print(table)
