"""Sets of images as people have them, read by number: folders, archives, arrays, prepared data, sample sets.

`open_set` says what a path is. Images come as uint8 [B, H, W, 3 or 1]. Nothing is cropped or resized unless a size is
asked for: then the largest central square is cut out, and resized by Lanczos with antialiasing.
"""

import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.data.reader import Reader
from pipeline.data.shards import BLOCK, Manifest, open_shards
from pipeline.metrics.moments import Moments
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import content_hash
from pipeline.runtime.progress import progress

Pixels = npt.NDArray[np.uint8]
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
KINDS = (
    "a folder or zip or tar of images, webdataset tars, an .npy or .npz of images [N, H, W, C], a prepared data set, a "
    "sample set, a run directory, or an .npz with mu and sigma"
)


@dataclass(frozen=True)
class ImageSet:
    """`read(numbers)` -> uint8 [B, H, W, C]. `identity`: equal for equal images, without reading them all."""

    name: str
    count: int
    size: tuple[int, int]  # height, width
    identity: str
    read: Callable[[npt.NDArray[np.int64]], Pixels]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """The mean and covariance of features that somebody published, in place of images."""

    name: str
    moments: Moments
    identity: str


@dataclass(frozen=True)
class _File:
    """One encoded image: where its bytes are, and what tells it from another version of itself."""

    name: str
    data: Callable[[], bytes]
    stamp: tuple[int, ...]


@dataclass
class _Listing:
    files: list[_File] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, data: Callable[[], bytes], *stamp: int) -> None:
        """Take a file in, or count it by its ending."""
        if any(part.startswith((".", "__MACOSX")) for part in Path(name).parts):
            self.passed_over["hidden"] += 1
        elif name.lower().endswith(ENDINGS):
            self.files.append(_File(name, data, stamp))
        else:
            self.passed_over[Path(name).suffix.lower() or "no ending"] += 1


def open_set(path: Path, *, size: int | None = None) -> ImageSet | Statistics:
    """What a path holds. `size`: crop and resize to so many pixels.

    Raises:
        UserError: a path that is none of KINDS, images of several sizes without `size`, an image that does not open.
    """
    return _looked_at(path)(size)


def open_sets(*paths: Path, size: int | None = None) -> list[ImageSet | Statistics]:
    """What the paths hold, as `open_set` says it. All are looked at before the images of one are opened, which for many
    images takes minutes.
    """
    return [opened(size) for opened in [_looked_at(path) for path in paths]]


def _looked_at(path: Path) -> Callable[[int | None], ImageSet | Statistics]:
    """What a path is, as a function of the size that opens it; of its images the first alone is opened."""
    if not path.exists():
        raise UserError(f"{path} does not exist. Expected {KINDS}.")
    try:
        if path.suffix in (".npz", ".npy") and path.is_file():
            return _array(path)
        if path.is_dir() and (shards := _shards(path)) is not None:
            return partial(_prepared, path, shards)
        listing = _listed(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}). Expected {KINDS}.") from error
    if not listing.files:
        there = ", ".join(f"{count} x {ending}" for ending, count in listing.passed_over.most_common(5)) or "nothing"
        raise UserError(f"{path} has no images. It has {there}. Expected {KINDS}.")
    _opened(path, listing.files[0]).close()
    return partial(_files, path, listing)


def _shards(path: Path) -> Path | None:
    """The shard directory that a path is or holds; of a run, the newest sample set."""
    if (path / "manifest.json").is_file():
        return path
    if (path / "shards" / "train" / "manifest.json").is_file():
        return path / "shards" / "train"
    if (path / "config.yaml").is_file():
        if not (found := _sample_sets(path)):
            raise UserError(f"{path} is a run without a finished sample set. Run: mudi sample {path}")
        return found[-1]
    return None


def _sample_sets(run: Path) -> list[Path]:
    """The finished sample sets of a run: those of the last checkpoint last, of each the one made last."""
    found = run.glob("samples/step-*/*/manifest.json")
    return [path.parent for path in sorted(found, key=lambda path: (path.parts[-3], path.stat().st_mtime_ns))]


def _prepared(path: Path, shards: Path, size: int | None) -> ImageSet:
    opened = open_shards(shards)
    manifest, reader = opened.manifest, Reader(opened)
    if manifest.kind != "images":
        raise UserError(f"{shards} holds {manifest.kind}, expected images.")
    notes = () if shards == path else (_which(path, shards, manifest),)
    read, cut = _resized(reader.read, size, manifest.shape[1:])
    identity = content_hash([manifest.sha256, cut])
    return ImageSet(str(path), manifest.count, cut, identity, read, notes)


def _which(path: Path, shards: Path, manifest: Manifest) -> str:
    """Which shards of a directory were read, and what a sample set leaves out."""
    said = f"of {path}, {shards.relative_to(path)} was read"
    if (others := len(_sample_sets(path)) - 1) > 0:
        said += f", the last of {others + 1} sample sets: give the path of another to score that"
    drawn = [name for name, count in zip(manifest.classes, manifest.class_counts, strict=True) if count]
    if drawn and len(drawn) < len(manifest.classes):
        named = ", ".join(drawn[:8]) + (", ..." if len(drawn) > 8 else "")
        said += f"; it has images of {len(drawn)} of {len(manifest.classes)} classes: {named}"
    return said


def _array(path: Path) -> Callable[[int | None], ImageSet | Statistics]:
    stat = path.stat()
    stamp = [path.name, stat.st_size, stat.st_mtime_ns]
    images: npt.NDArray[Any]
    if path.suffix == ".npz":
        with np.load(path) as file:
            names = file.files
            if "arr_0" not in names and {"mu", "sigma"} <= set(names):
                found = _statistics(path, file["mu"], file["sigma"])
                return lambda size: found  # noqa: ARG005
        images = _member(path, _of_images(path, names))
    else:
        images = np.load(path, mmap_mode="r")
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(f"{path} has {images.dtype} of shape {images.shape}, expected uint8 [N, H, W, 1 or 3].")

    def opened(size: int | None) -> ImageSet:
        read, cut = _resized(lambda numbers: np.asarray(images[numbers]), size, images.shape[1:3])
        return ImageSet(str(path), len(images), cut, content_hash([stamp, cut]), read)

    return opened


def _of_images(path: Path, names: list[str]) -> str:
    """The array of an .npz that holds the images: labels and the like may lie beside it."""
    if "arr_0" in names or len(names) == 1:
        return "arr_0" if "arr_0" in names else names[0]
    with zipfile.ZipFile(path) as archive:
        headers = {name: _header(archive, archive.getinfo(f"{name}.npy")) for name in names}
    found = [name for name, (shape, _, dtype, _) in headers.items() if dtype == np.uint8 and len(shape) == 4]
    if len(found) != 1:
        raise UserError(
            f"{path} has arrays {names}, expected images in arr_0, or in one array alone of uint8 [N, H, W, C], or mu "
            "and sigma."
        )
    return found[0]


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns come first, and type of an array; and where in its file the values begin."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return *header(file), file.tell()


def _member(path: Path, name: str) -> npt.NDArray[Any]:
    """An array of an .npz without reading it all, where it is stored as it is; a compressed one comes into memory."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            with np.load(path) as file:
                return np.asarray(file[name])
        shape, fortran, dtype, inside = _header(archive, info)
    with path.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # of a zip's local header: lengths of the name and of the extra field
        lengths = raw.read(4)
    start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return np.memmap(path, dtype, "r", start + inside, shape, order="F" if fortran else "C")


def _statistics(path: Path, mean: npt.NDArray[Any], covariance: npt.NDArray[Any]) -> Statistics:
    width = len(mean) if mean.ndim == 1 else 0
    if not width or covariance.shape != (width, width):
        raise UserError(f"{path} has mu {mean.shape} and sigma {covariance.shape}, expected [D] and [D, D].")
    found = Moments(2, mean.astype(np.float64), covariance.astype(np.float64))  # scatter / (2 - 1)
    return Statistics(str(path), found, content_hash([mean.tolist(), covariance[0].tolist()]))


def _listed(path: Path) -> _Listing:
    """Every file below a folder or in an archive, in the order of their names."""
    found = _Listing()
    if path.is_dir():
        for folder, folders, names in os.walk(path, followlinks=True, onerror=_raise):
            folders.sort()
            for name in sorted(names):
                file = Path(folder) / name
                if not file.is_file():
                    found.passed_over["not a file"] += 1
                    continue
                stat = file.stat()
                if file.suffix == ".tar" and not file.name.startswith("."):
                    _tar(file, found, f"{file.relative_to(path)}/")
                else:
                    found.add(str(file.relative_to(path)), file.read_bytes, stat.st_size, stat.st_mtime_ns)
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir():
                found.add(info.filename, lambda name=info.filename: archive.read(name), info.file_size, info.CRC)  # type: ignore[misc]
    elif tarfile.is_tarfile(path):
        _tar(path, found, "")
    else:
        raise UserError(f"{path} is not {KINDS}.")
    return found


def _raise(error: OSError) -> None:
    """A folder that cannot be read is not passed over: the set would be another."""
    raise error


def _tar(path: Path, found: _Listing, prefix: str) -> None:
    """Members of a tar, read where they lie. A compressed one, which can only be read in order, is refused."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
    except tarfile.ReadError as error:
        with path.open("rb") as file:
            compressed = file.read(6).startswith(COMPRESSED)
        wrong = "is compressed. Unpack it first" if compressed else f"is cut short or damaged ({error}). Copy it again"
        raise UserError(f"{path} {wrong}.") from error
    handle, stamp = path.open("rb"), path.stat().st_mtime_ns
    end = max((member.offset_data + -(-member.size // BLOCK) * BLOCK for member in members), default=0)
    if os.pread(handle.fileno(), BLOCK, end) != bytes(BLOCK):
        raise UserError(f"{path} is cut short: after its last whole member it has no end mark. Copy it again.")
    for member in sorted(members, key=lambda member: member.name):
        start, length = member.offset_data, member.size
        read = lambda start=start, length=length: os.pread(handle.fileno(), length, start)  # noqa: E731
        found.add(f"{prefix}{member.name}", read, length, stamp)


def _files(path: Path, listing: _Listing, size: int | None) -> ImageSet:
    files, notes = listing.files, []
    sizes: Counter[tuple[int, int]] = Counter()
    transparent = 0
    with progress(f"sizes of the images of {path.name}", len(files)) as tick:
        for file in files:
            with _opened(path, file) as image:
                sizes[(image.height, image.width)] += 1
                transparent += image.has_transparency_data
            tick(1)
    if len(sizes) > 1 and size is None:
        some = ", ".join(f"{count} of {width} x {height}" for (height, width), count in sizes.most_common(4))
        raise UserError(
            f"{path} has images of {len(sizes)} sizes: {some}. Say --size N, to cut out the central square of each and "
            "resize it, or give images of one size: how they are resized decides the numbers."
        )
    if listing.passed_over:
        said = ", ".join(f"{count} {ending}" for ending, count in listing.passed_over.most_common())
        notes.append(f"{path}: files passed over: {said}")
    if transparent:
        notes.append(f"{path}: {transparent} of {len(files)} images may be transparent in parts: these become white")
    shape = next(iter(sizes)) if size is None else (size, size)

    def read(numbers: npt.NDArray[np.int64]) -> Pixels:
        return np.stack([_pixels(path, files[n], size) for n in numbers.tolist()])

    identity = content_hash([[file.name, file.stamp] for file in files] + [size])
    return ImageSet(str(path), len(files), shape, identity, read, tuple(notes))


def _opened(path: Path, file: _File) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file.data()))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: {file.name} is no image that can be read ({error}). Remove or replace it.") from error


def _pixels(path: Path, file: _File, size: int | None) -> Pixels:
    """One image, uint8 [H, W, 3]. Transparent parts become white."""
    with _opened(path, file) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(
                f"{path}: {file.name} has {image.mode} pixels, of more than 8 bits. How they become 8 bits decides the "
                "numbers: convert them first."
            )
        try:
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            plain = image.convert("RGB")
        except OSError as error:
            raise UserError(f"{path}: {file.name} is damaged ({error}). Remove or replace it.") from error
    return np.asarray(plain if size is None else square(plain, size))


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest central square of an image, at `size` x `size` pixels by Lanczos."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.crop((left, top, left + side, top + side))
    return cut if side == size else cut.resize((size, size), Image.Resampling.LANCZOS)


def _resized(
    read: Callable[[npt.NDArray[np.int64]], Pixels], size: int | None, shape: Sequence[int]
) -> tuple[Callable[[npt.NDArray[np.int64]], Pixels], tuple[int, int]]:
    """A way to read, cropped and resized where a size is asked for that the images do not have."""
    height, width = shape
    if size is None or (height, width) == (size, size):
        return read, (height, width)

    def resized(numbers: npt.NDArray[np.int64]) -> Pixels:
        return np.stack([np.asarray(square(image, size)).reshape(size, size, -1) for image in _images(read(numbers))])

    return resized, (size, size)


def _images(pixels: Pixels) -> Iterator[Image.Image]:
    for one in pixels:
        yield Image.fromarray(np.ascontiguousarray(one[:, :, 0] if one.shape[2] == 1 else one))
