"""The first stage: what images there are. Makes `source/`, which the shard stage reads and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.items import Listing, write_items
from data_prep.stage import run_stage
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.config.schema_data import DataConfig
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sha256_file

VERSION = 1  # raised when the same settings would list other images


def source_directory(cfg: Config) -> Path:
    """Where the listing of a protocol's source lies."""
    return data_directory(cfg) / "source"


def run(cfg: Config) -> Mapping[str, Any]:
    """List the source of `cfg.data`, reading no pixels. The receipt has counts and the hash of the list."""
    return run_stage(
        "fetch",
        source_directory(cfg),
        {"source": cfg.data.model_dump(mode="json")["source"], "version": VERSION},
        work=lambda directory: _write(cfg.data, directory),
    )


def _write(data: DataConfig, directory: Path) -> Mapping[str, Any]:
    listing = find(data, directory)
    count = write_items(directory, listing)
    if not count:
        raise UserError(f"The data set '{data.name}' is empty: its source ({data.source.kind}) lists no images.")
    return {
        "items": count,
        "classes": len(listing.classes),
        "rejected": len(listing.rejected),
        "sha256": sha256_file(directory / "items.jsonl"),
        "made_from": listing.made_from,
    }


def find(data: DataConfig, directory: Path) -> Listing:
    """The listing of a source; a source may put files of its own into `directory`."""
    match data.source.kind:
        case "glyphs":
            from data_prep.sources import glyphs

            return glyphs.listing(data.source, directory)
        case "folder":
            from data_prep.sources import folder

            return folder.listing(data.source, directory)
