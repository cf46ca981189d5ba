"""What the commands of `python -m data_prep` do: see `pipeline.runtime.commands` for their arguments and options."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep import listing, shard, verify
from data_prep.fetch import fetch_weights
from data_prep.stage import denied
from pipeline.config.labels import label_problems
from pipeline.config.load import config_from, listed, run_named
from pipeline.config.needs import require
from pipeline.config.paths import data_directory, latents_directory
from pipeline.config.prepared import KINDS, classes_without_images
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.parts import WHOLE, Part

CONSOLE = Console(stderr=True, soft_wrap=True)
DEAD_SHARE = 0.02  # of a latent channel's variance that differs between images: below it the channel is noise


def prepare(overrides: Sequence[str], *, workers: int | None = None) -> None:
    """All stages that a training on pixels needs."""
    with _settings(overrides) as cfg:
        require(cfg, "prepare")
    fetch(overrides)
    make_shards(overrides, workers=workers)
    check_shards(overrides, workers=workers)
    make_reference(overrides)


def fetch(overrides: Sequence[str]) -> None:
    """The source and its list of images.

    Raises:
        UserError: where the network is conditioned on classes or attributes that the images turn out not to have.
    """
    with _settings(overrides) as cfg:
        receipt = listing.run(cfg)
        CONSOLE.print(f"fetch: {receipt['items']} images listed in {listing.source_directory(cfg)}")
        _say_listed(receipt)
        if problems := list(label_problems(cfg)):
            raise UserError(listed(problems))


def make_shards(overrides: Sequence[str], *, workers: int | None = None, part: Part = WHOLE) -> None:
    """Shards of images."""
    with _settings(overrides) as cfg:
        receipt, directory = shard.run(cfg, workers=workers, part=part), shard.shards_directory(cfg)
        CONSOLE.print(f"shard: {_splits(receipt)} in {directory}")
        verify.print_rejected(directory, CONSOLE, "shard: ")


def check_shards(overrides: Sequence[str], *, workers: int | None = None) -> None:
    """Verify the shards of a config, or those in a directory."""
    if (directory := _directory(overrides)) is None:
        with _settings(overrides) as cfg:
            verify.run(cfg, workers=workers)
            CONSOLE.print(f"verify: every byte of {shard.shards_directory(cfg)} is right")
        return
    with _rights({str(directory): directory}):
        for split in verify.find_splits(directory):
            facts = verify.verify_directory(split, workers=workers)
            count, shards = facts["count"], facts["shards"]
            CONSOLE.print(f"verify: {split}: {count} samples in {shards} shards, every byte is right")


def inspect(overrides: Sequence[str]) -> None:
    """Look at the shards of a config, or at those in a directory."""
    if (directory := _directory(overrides)) is None:
        with _settings(overrides) as cfg:
            verify.inspect(data_directory(cfg), console=CONSOLE)
        return
    with _rights({str(directory): directory}):
        verify.inspect(directory, console=CONSOLE)


def make_reference(overrides: Sequence[str]) -> None:
    """Reference statistics."""
    from data_prep import reference  # loads torch

    with _settings(overrides) as cfg:
        reference.run(cfg)
        CONSOLE.print(f"reference: finished in {data_directory(cfg) / 'reference'}")


def weights(names: Sequence[str], *, into: Path = Path("weights"), mirror: str | None = None) -> None:
    """Weights for evaluation; without names, the list of them."""
    with _rights({"--into": into}):
        for word in fetch_weights(names, into, CONSOLE, mirror=mirror):
            print(word)


def _directory(overrides: Sequence[str]) -> Path | None:
    """The directory of shards that is given in place of a run or settings."""
    path = run_named(overrides)
    return None if path is None or (path / "config.yaml").exists() else path


@contextlib.contextmanager
def _settings(overrides: Sequence[str]) -> Iterator[Config]:
    """The config of a command line; errors about rights name the setting."""
    cfg = data_config(overrides)
    source = getattr(cfg.data.source, "path", None)
    with _rights({"data_dir": cfg.data_dir} | ({"data.source.path": source} if source else {})):
        yield cfg


@contextlib.contextmanager
def _rights(settings: Mapping[str, Path]) -> Iterator[None]:
    """Errors about rights as sentences that name the setting."""
    try:
        yield
    except OSError as error:
        raise denied(error, settings) from error


def _splits(receipt: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {facts['count']}" for name, facts in receipt.get("splits", {}).items())
    return counts or "this part is done, others are not"


def _say_listed(receipt: Mapping[str, Any]) -> None:
    """Classes, and what was decided by rule. Receipts of older versions have numbers in their place."""
    if isinstance(receipt["classes"], list):
        unlabelled = f", {receipt['unlabelled']} images without label" if receipt["unlabelled"] else ""
        CONSOLE.print(f"fetch: {len(receipt['classes']) or 'no'} classes{unlabelled}", highlight=False)
        verify.print_classes(receipt["classes"], CONSOLE, "fetch:")
        if said := classes_without_images(receipt["classes"]):
            CONSOLE.print(f"fetch: {said}", highlight=False, markup=False)
        for kind, count in receipt["rejected"].items():
            CONSOLE.print(f"fetch: passed over {count} x {kind}: {KINDS[kind]}", highlight=False)
    for note in receipt.get("notes", ()):
        CONSOLE.print(f"fetch: {note}", highlight=False, markup=False)


def make_latents(overrides: Sequence[str], *, workers: int | None = None, part: Part = WHOLE) -> None:
    """Latents of an autoencoder."""
    from data_prep import encode  # loads torch

    with _settings(overrides) as cfg:
        receipt = encode.run(cfg, workers=workers, part=part)
        CONSOLE.print(f"encode: {_splits(receipt)} in {latents_directory(cfg)}")
        for channel, share in enumerate(receipt.get("spread", {}).get("informed", ())):
            if share < DEAD_SHARE:
                told = f"tells next to nothing of the image ({share:.1%} of its variance)"
                CONSOLE.print(f"encode: channel {channel} {told}")


def data_config(overrides: Sequence[str]) -> Config:
    """The config of the overrides. Data alone needs no network, but a Config has one: it gets one that suits any."""
    data = next((override.partition("=")[2] for override in overrides if override.startswith("data=")), None)
    given = {override.lstrip("+").partition("=")[0].split(".")[0] for override in overrides}
    if data is None or "experiment" in given or run_named(overrides):
        return config_from(overrides)
    network = [] if "model" in given else ["kind=unet", "condition=none", "multipliers=[1]", "attention=[]"]
    name = [] if "name" in given else [f"++name={data}"]
    return config_from([*overrides, *name, *(f"++model.{setting}" for setting in network)])
