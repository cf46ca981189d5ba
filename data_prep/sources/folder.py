"""A person's own images: a folder of folders, or a flat one."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.items import Item, Listing
from pipeline.config.schema_sources import FolderSource
from pipeline.runtime.errors import UserError

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def listing(source: FolderSource, directory: Path) -> Listing:
    """Every image file below `source.path`, in the order of their names. Hidden files are passed over.

    `directory` is where a source may put files of its own; a folder needs none. Classes are the sorted names of the
    folders that hold images.
    """
    del directory
    root = source.path.expanduser().resolve()
    if not root.is_dir():
        raise UserError(
            f"data.source.path: '{source.path}' is not a folder (looked at {root}). "
            "Give the folder that holds your images: data.source.path=/path/to/images."
        )
    names = sorted(_image_files(root))
    if not names:
        raise UserError(
            f"data.source.path: '{root}' holds no images. Expected files ending in {', '.join(sorted(ENDINGS))}, "
            "in one folder per class or flat."
        )
    splits = [name.split("/", 1)[0] if source.splits and "/" in name else None for name in names]
    inner = [name.split("/", 1)[1] if split else name for name, split in zip(names, splits, strict=True)]
    labelled = source.labels == "folders" or (source.labels == "auto" and all("/" in name for name in inner))
    if source.labels == "folders" and not all("/" in name for name in inner):
        flat = next(name for name in inner if "/" not in name)
        raise UserError(
            f"data.source.labels=folders, but '{flat}' of {root} lies in no folder. Move it, or use labels=none."
        )
    classes = sorted({_folder(name) for name in inner}) if labelled else []
    number = {name: position for position, name in enumerate(classes)}
    items = (
        Item(name, ("file", name), label=number[_folder(rest)] if labelled else None, split=split)
        for name, rest, split in zip(names, inner, splits, strict=True)
    )
    return Listing(items, classes, root=root, made_from=fingerprint(root, names))


def _folder(name: str) -> str:
    return name.rsplit("/", 1)[0]


def _image_files(root: Path) -> Iterator[str]:
    """Names relative to `root`, with slashes. Links to folders are followed."""
    pending = [root]
    while pending:
        for entry in sorted(pending.pop().iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                pending.append(entry)
            elif entry.suffix.lower() in ENDINGS:
                yield entry.relative_to(root).as_posix()


def fingerprint(root: Path, names: list[str]) -> dict[str, object]:
    """Count, bytes and time of the last change: enough to notice that a folder is not what it was."""
    stats = [(root / name).stat() for name in names]
    return {
        "files": len(names),
        "bytes": sum(stat.st_size for stat in stats),
        "newest": max(stat.st_mtime_ns for stat in stats) // 10**9,
    }
