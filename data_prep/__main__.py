"""python -m data_prep <all|STAGE|inspect> (RUN_DIR | data=... | experiment=...) [key=value ...]

python -m data_prep fetch weights [NAME ...] [--into FOLDER]    weights for evaluation, on a login node
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep import listing, shard, verify
from data_prep.fetch import fetch_weights
from data_prep.items import KINDS
from data_prep.stage import denied
from pipeline.config.load import config_from, run_named
from pipeline.config.needs import require
from pipeline.config.paths import data_directory, latents_directory
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.parts import parse_part

STAGES = {
    "all": "fetch, shard, verify, then the references that evaluation needs",
    "fetch": "find, or download, the source and list its images",
    "shard": "crop and encode them into shards",
    "verify": "read every shard again and compare",
    "encode": "images to latents of an autoencoder",
    "reference": "statistics and a classifier of the data set, for evaluation",
    "inspect": "print counts and draw a contact sheet",
}

DEAD_SHARE = 0.02  # of a latent channel's variance that differs between images: below it the channel is noise


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage. Exit codes: 0 done, 2 bad input (a sentence on stderr)."""
    args = _parser().parse_intermixed_args(argv)  # options may stand anywhere
    console = Console(stderr=True, soft_wrap=True)
    try:
        run(args, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace, console: Console) -> None:
    """The stage that the words ask for."""
    if args.stage == "fetch" and args.words[0] == "weights":
        with _rights({"--into": args.into}):
            for word in fetch_weights(args.words[1:], args.into, console, mirror=args.mirror):
                print(word)
        return
    directory = run_named(args.words)
    if directory and args.stage in ("verify", "inspect") and not (directory / "config.yaml").exists():
        with _rights({str(directory): directory}):
            _look(args, directory, console)
        return
    cfg = data_config(args.words)
    source = getattr(cfg.data.source, "path", None)
    with _rights({"data_dir": cfg.data_dir} | ({"data.source.path": source} if source else {})):
        _run(cfg, args, console)


@contextlib.contextmanager
def _rights(settings: Mapping[str, Path]) -> Iterator[None]:
    """Errors about rights as sentences that name the setting."""
    try:
        yield
    except OSError as error:
        raise denied(error, settings) from error


def _run(cfg: Config, args: argparse.Namespace, console: Console) -> None:
    if args.stage == "inspect":
        verify.inspect(data_directory(cfg), console=console)
    if args.stage == "all":
        require(cfg, "prepare")
    for stage in ("fetch", "shard", "verify", "reference") if args.stage == "all" else (args.stage,):
        _run_stage(stage, cfg, args, console)


def _run_stage(stage: str, cfg: Config, args: argparse.Namespace, console: Console) -> None:
    match stage:
        case "fetch":
            receipt = listing.run(cfg)
            console.print(f"fetch: {receipt['items']} images listed in {listing.source_directory(cfg)}")
            _say_listed(receipt, console)
        case "shard":
            receipt = shard.run(cfg, workers=args.workers, part=parse_part(args.part))
            splits = ", ".join(f"{name} {facts['count']}" for name, facts in receipt.get("splits", {}).items())
            console.print(f"shard: {splits or 'this part is done, others are not'} in {shard.shards_directory(cfg)}")
            verify.print_rejected(shard.shards_directory(cfg), console, "shard: ")
        case "verify":
            verify.run(cfg, workers=args.workers)
            console.print(f"verify: every byte of {shard.shards_directory(cfg)} is right")
        case "encode":
            _encode(cfg, args, console)
        case "reference":
            from data_prep import reference  # loads torch

            reference.run(cfg)
            console.print(f"reference: finished in {data_directory(cfg) / 'reference'}")


def _say_listed(receipt: Mapping[str, Any], console: Console) -> None:
    """Classes, and what was decided by rule. Receipts of older versions have numbers in their place."""
    if isinstance(receipt["classes"], list):
        unlabelled = f", {receipt['unlabelled']} images without label" if receipt["unlabelled"] else ""
        console.print(f"fetch: {len(receipt['classes']) or 'no'} classes{unlabelled}", highlight=False)
        verify.print_classes(receipt["classes"], console, "fetch:")
        for kind, count in receipt["rejected"].items():
            console.print(f"fetch: passed over {count} x {kind}: {KINDS[kind]}", highlight=False)
    for note in receipt.get("notes", ()):
        console.print(f"fetch: {note}", highlight=False, markup=False)


def _encode(cfg: Config, args: argparse.Namespace, console: Console) -> None:
    """Imported only here: it loads torch."""
    from data_prep import encode

    receipt = encode.run(cfg, workers=args.workers, part=parse_part(args.part))
    splits = ", ".join(f"{name} {facts['count']}" for name, facts in receipt.get("splits", {}).items())
    console.print(f"encode: {splits or 'this part is done, others are not'} in {latents_directory(cfg)}")
    for channel, share in enumerate(receipt.get("spread", {}).get("informed", ())):
        if share < DEAD_SHARE:
            console.print(f"encode: channel {channel} tells next to nothing of the image ({share:.1%} of its variance)")


def _look(args: argparse.Namespace, directory: Path, console: Console) -> None:
    if args.stage == "inspect":
        verify.inspect(directory, console=console)
        return
    for split in verify.find_splits(directory):
        facts = verify.verify_directory(split, workers=args.workers)
        console.print(f"verify: {split}: {facts['count']} samples in {facts['shards']} shards, every byte is right")


def data_config(words: Sequence[str]) -> Config:
    """The config that the words mean. Data alone needs no network, but a Config has one: it gets one that suits any."""
    data = next((word.partition("=")[2] for word in words if word.startswith("data=")), None)
    given = {word.lstrip("+").partition("=")[0].split(".")[0] for word in words}
    if data is None or "experiment" in given or run_named(words):
        return config_from(words)
    network = [] if "model" in given else ["kind=unet", "condition=none", "multipliers=[1]", "attention=[]"]
    name = [] if "name" in given else [f"++name={data}"]
    return config_from([*words, *name, *(f"++model.{setting}" for setting in network)])


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:10} {text}" for name, text in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="From anything to verified shards.",
        epilog=f"stages:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, metavar="STAGE")
    parser.add_argument("words", nargs="+", help="RUN_DIR, data=... or experiment=..., then key=value; or a directory")
    parser.add_argument(
        "--into", type=Path, default=Path("weights"), help="fetch weights: the folder (default: weights)"
    )
    parser.add_argument("--mirror", metavar="URL", help="fetch weights: from URL/NAME/FILE, not from their own homes")
    parser.add_argument("--workers", type=int, help="processes; the bytes do not depend on it (default: every core)")
    parser.add_argument(
        "--part", default="0/1", metavar="K/N", help="only shards with number %% N == K; or array, in a Slurm array"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
