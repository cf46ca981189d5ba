"""The first stage: what images there are. Makes `source/`, which the shard stage reads and nothing else."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.archives import walk
from data_prep.fetch import fetch_files
from data_prep.items import Listing, Written, write_items
from data_prep.stage import finished, run_whole
from pipeline.config.paths import data_directory
from pipeline.config.registry import SOURCES
from pipeline.config.schema import Config
from pipeline.config.schema_sources import GlyphSource, KnownSource
from pipeline.runtime.errors import UserError

VERSIONS = {"folder": 2, "webdataset": 2}  # raised when the same settings would list other images, or in another order


def source_directory(cfg: Config) -> Path:
    """Where the listing of a protocol's source lies."""
    return data_directory(cfg) / "source"


def run(cfg: Config) -> Mapping[str, Any]:
    """Fetch and list the source of `cfg.data`, decoding no pixels. The receipt has counts and the hash of the list.

    A source that was listed before and is gone since is not needed any more; one that has changed is refused.
    """
    settings = cfg.data.model_dump(mode="json")["source"]
    receipt = finished(source_directory(cfg))
    found = fingerprint(_where(cfg))
    if receipt and found is None:
        found = receipt["inputs"]["found"]
    return run_whole(
        "fetch",
        source_directory(cfg),
        {"source": settings, "found": found, "version": VERSIONS.get(cfg.data.source.kind, 1)},
        work=lambda directory: _write(cfg, directory),
    )


def _where(cfg: Config) -> Path | None:
    """The folder or file that a person's source lies in; None for a source that is not theirs, or is downloaded."""
    path = getattr(cfg.data.source, "path", None)
    return Path(path).resolve() if path else None


def fingerprint(path: Path | None) -> dict[str, int] | None:
    """Number, bytes and latest change of the files that are listed: enough to notice that a source has changed."""
    if path is None or not path.exists():
        return None
    files, size, newest = 0, 0, 0
    for found in [path.stat()] if path.is_file() else (entry.stat() for _, entry, why in walk(path) if not why):
        files, size, newest = files + 1, size + found.st_size, max(newest, found.st_mtime_ns)
    return {"files": files, "bytes": size, "newest": newest // 10**9}


def _write(cfg: Config, directory: Path) -> Mapping[str, Any]:
    listing = find(cfg, directory)
    written = write_items(directory, listing)
    if not written.items:
        first = next(iter(listing.rejected), None)
        reasons = f" ({len(listing.rejected)} were rejected, first {first.key}: {first.reason})" if first else ""
        raise UserError(f"The data set '{cfg.data.name}' is empty: its source lists no usable image{reasons}.")
    return {
        "items": written.items,
        "classes": _classes(cfg, listing, written),
        "unlabelled": written.labels[None],
        "rejected": dict(sorted(Counter(row.kind for row in listing.rejected).items())),
        "sha256": written.sha256,
        "made_from": listing.made_from,
        "notes": [*listing.notes, *_split_notes(cfg, written)],
    }


def _classes(cfg: Config, listing: Listing, written: Written) -> list[tuple[str, int]]:
    """The classes in order, with the number of their images.

    Numbers that are no classes, such as ids, would make a class of each gap.
    """
    classes = list(listing.classes)
    used = sum(label is not None for label in written.labels)
    if len(classes) > 2 * used + 1000:
        raise UserError(
            f"data.source: found labels up to {classes[-1]}, which makes {len(classes)} classes, but {used} of them "
            f"alone have images; expected numbers from 0 to the number of classes - 1. Ids of '{cfg.data.name}' are no "
            "labels: number its classes from 0, or do without labels."
        )
    return [(name, written.labels[number]) for number, name in enumerate(classes)]


def _split_notes(cfg: Config, written: Written) -> list[str]:
    """Splits of a person's own source that the rule does not use."""
    rule, kind = cfg.data.split.rule, cfg.data.source.kind
    named = {name: count for name, count in sorted(written.splits.items()) if name}
    if rule == "official" or kind not in ("folder", "hub") or len(named) < (2 if kind == "hub" else 1):
        return []
    if unnamed := written.splits[""]:
        named["none"] = unnamed
    there = ", ".join(f"{name} {count}" for name, count in named.items())
    does = "mixes" if rule == "hash" else "ignores"
    return [f"the source has splits ({there}), which split.rule={rule} {does}: data.split.rule=official keeps them"]


def find(cfg: Config, directory: Path) -> Listing:
    """The listing of a source; a source may put files of its own into `directory`."""
    source = cfg.data.source
    if isinstance(source, GlyphSource) and source.needs_internet:
        folder = fetch_files(source.urls, cfg.data_dir / "downloads" / "fonts")
        source = source.model_copy(update={"fonts": folder, "choose": tuple(Path(f.name).stem for f in source.urls)})
    official = (official_files(cfg, source),) if isinstance(source, KnownSource) else ()
    listing: Listing = SOURCES[source.kind].load()(source, directory, *official)
    return listing


def official_files(cfg: Config, source: KnownSource) -> Path:
    """Where the official files of a known data set are: where the person says, or downloaded."""
    if source.path:
        path = source.path.resolve()
        if not path.exists():
            raise UserError(
                f"data.source.path: '{source.path}' does not exist (looked at {path}). "
                f"Give the folder with the official files of {source.kind}, or leave it out to download them."
            )
        return path
    folder = (cfg.data_dir / "downloads" / source.download_name).resolve()
    if not source.urls and not folder.exists():
        raise UserError(
            f"data.source.path: not set, and {source.kind} has no addresses to download from. "
            f"Put the official files into {folder}, or give their folder as data.source.path."
        )
    return fetch_files(source.urls, folder)
