"""LSUN: one category from its lmdb export, or from its images (Yu et al. 2015)."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.archives import check_archive, choose, images, unpacked
from data_prep.items import Item, Listing, Rejected
from pipeline.config.schema_sources import LsunSource
from pipeline.runtime.errors import UserError


def listing(source: LsunSource, directory: Path, folder: Path) -> Listing:
    """Every image of the category, without labels. Order: the database's keys, or the names, or the archive's order."""
    name = f"{source.category}_train_lmdb"
    found = folder
    if folder.is_dir() and not (folder / "data.mdb").exists():
        candidates = (name, f"{name}.zip", f"{source.category}.zip", f"{source.category}.tar", source.category)
        found = next((folder / word for word in candidates if (folder / word).exists()), folder)
    if found.suffix.lower() == ".zip":
        found = _database_in_zip(found, directory) or found
    elif found.is_file():
        found = unpacked(found, directory)
    if (found / "data.mdb").exists():
        return Listing(_database_items(found), root=found.parent, made_from={"database": found.name})
    root = found if found.is_dir() else found.parent
    rejected: list[Rejected] = []
    items = (Item(member.name, member.at) for member in images(found, root=root, rejected=rejected))
    return Listing(items, root=root, rejected=rejected, made_from={"images": found.name})


def _database_in_zip(path: Path, directory: Path) -> Path | None:
    """The official zip's database, unpacked beside the listing; None for a zip of images."""
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        inside = next((name for name in archive.namelist() if name.endswith("data.mdb")), None)
        if inside is None:
            return None
        archive.extract(inside, directory)
    return (directory / inside).parent


def _database_items(path: Path) -> Iterator[Item]:
    try:
        import lmdb
    except ImportError as error:
        raise UserError("LSUN's own exports are lmdb databases: pip install lmdb (or mudi[lsun]).") from error
    choose(path, ("data.mdb",), what="lmdb database")
    with lmdb.open(str(path), readonly=True, lock=False, readahead=False) as base, base.begin() as transaction:
        for key in transaction.cursor().iternext(values=False):
            yield Item(key.decode("ascii", "backslashreplace"), ("lmdb", path.name, key.hex()))
