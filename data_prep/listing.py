"""The first stage: what images there are. Makes `source/`, which the shard stage reads and nothing else."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.fetch import fetch_files
from data_prep.items import Listing, write_items
from data_prep.stage import finished, run_whole
from pipeline.config.paths import data_directory
from pipeline.config.registry import SOURCES
from pipeline.config.schema import Config
from pipeline.config.schema_sources import KnownSource
from pipeline.runtime.errors import UserError

VERSION = 1  # raised when the same settings would list other images


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
        {"source": settings, "found": found, "version": VERSION},
        work=lambda directory: _write(cfg, directory),
    )


def _where(cfg: Config) -> Path | None:
    """The folder or file that a person's source lies in; None for a source that is not theirs, or is downloaded."""
    path = getattr(cfg.data.source, "path", None)
    return Path(path).resolve() if path else None


def fingerprint(path: Path | None) -> dict[str, int] | None:
    """Number, bytes and latest change of all files: enough to notice that a source is not what it was."""
    if path is None or not path.exists():
        return None
    files, size, newest = 0, 0, 0
    for found in [path.stat()] if path.is_file() else _stats(path):
        files, size, newest = files + 1, size + found.st_size, max(newest, found.st_mtime_ns)
    return {"files": files, "bytes": size, "newest": newest // 10**9}


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of every file below a folder; links are followed to files, not to folders."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a link that leads nowhere
                found = Path(directory, name).stat()
                if stat.S_ISREG(found.st_mode):
                    yield found


def _write(cfg: Config, directory: Path) -> Mapping[str, Any]:
    listing = find(cfg, directory)
    count, sha256 = write_items(directory, listing)
    if not count:
        reasons = f" ({len(listing.rejected)} were rejected, first: {listing.rejected[0]})" if listing.rejected else ""
        raise UserError(f"The data set '{cfg.data.name}' is empty: its source lists no usable image{reasons}.")
    return {
        "items": count,
        "classes": len(listing.classes),
        "rejected": len(listing.rejected),
        "sha256": sha256,
        "made_from": listing.made_from,
    }


def find(cfg: Config, directory: Path) -> Listing:
    """The listing of a source; a source may put files of its own into `directory`."""
    source = cfg.data.source
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
