"""Oxford Flowers 102: images in a tgz, labels and splits in two MATLAB files (Nilsback and Zisserman 2008)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.archives import check_archive, choose, images, unpacked
from data_prep.items import Item, Listing, Rejected
from pipeline.config.schema_sources import FlowersSource

SPLITS = {"trnid": "train", "valid": "valid", "tstid": "test"}


def listing(source: FlowersSource, directory: Path, folder: Path) -> Listing:
    """Images by number, with label and official split. The tgz is unpacked to a tar beside the listing.

    Classes are "001" to "102": number n of the files is position n - 1.
    """
    packed, label_file, split_file = files(source, folder)
    labels = _load(label_file)["labels"].ravel().astype(int).tolist()
    sets = _load(split_file)
    splits = {int(number): split for key, split in SPLITS.items() for number in sets[key].ravel()}
    packed = unpacked(packed, directory) if packed.is_file() else packed
    root = directory if packed.is_relative_to(directory) else folder
    rejected: list[Rejected] = []
    return Listing(
        _items(packed, root, labels, splits, rejected),
        classes=[f"{number:03d}" for number in range(1, max(labels) + 1)],
        root=None if root == directory else root,
        rejected=rejected,
        made_from={"images": packed.name, "labels": len(labels)},
    )


def files(source: FlowersSource, folder: Path) -> tuple[Path, Path, Path]:
    """Images, labels and splits."""
    names = (source.images,) if source.images else ("102flowers.tgz", "102flowers.tar", "jpg")
    packed = choose(folder, names, what="images")
    labels, splits = choose(folder, ("imagelabels.mat",), what="labels"), choose(folder, ("setid.mat",), what="splits")
    return packed, labels, splits


def _load(path: Path) -> Any:
    from scipy.io import loadmat

    check_archive(path)
    return loadmat(path)


def _items(
    packed: Path, root: Path, labels: list[int], splits: dict[int, str], rejected: list[Rejected]
) -> Iterator[Item]:
    found = {_number(member.name): member for member in images(packed, root=root, rejected=rejected)}
    for number, member in sorted(found.items()):
        name = member.name.rsplit("/", 1)[-1]
        if not 1 <= number <= len(labels):
            rejected.append(Rejected(name, "image_without_label", f"imagelabels.mat has {len(labels)} labels"))
            continue
        yield Item(name, member.at, label=labels[number - 1] - 1, split=splits.get(number))
    for number in range(1, len(labels) + 1):
        if number not in found:
            rejected.append(Rejected(f"image_{number:05d}.jpg", "label_without_image", f"not in {packed.name}"))


def _number(name: str) -> int:
    """image_00042.jpg -> 42; 0 for a name of another kind."""
    digits = "".join(character for character in name.rsplit("/", 1)[-1] if character.isdigit())
    return int(digits) if digits else 0
