"""Every reason for which an image is not used: one case each, and none is silent."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared import config, folder_of_pictures, picture, prepare, rejected_of, split_of

from data_prep.stage import finished
from pipeline.config.paths import data_directory
from pipeline.config.prepared import KINDS
from pipeline.runtime.errors import UserError

SIZE = ["data.image_size=16", "data.split.valid=0", "data.max_rejected=0.5"]


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return jpeg(picture(0), exif=exif)


def huge() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""
    whole = bytearray(png(Image.new("L", (1, 1))))
    whole[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


IMAGES: dict[str, tuple[str, Callable[[], bytes], list[str]]] = {
    "unreadable": ("x.png", lambda: b"this is no image", []),
    "truncated": ("x.jpg", lambda: jpeg(picture(0, width=200, height=200))[:-900], []),
    "empty": ("x.png", lambda: b"", []),
    "too_small": ("x.png", lambda: png(picture(0, width=15, height=40)), []),
    "too_large": ("x.png", huge, []),
    "greyscale": ("x.png", lambda: png(Image.new("L", (20, 20))), ["data.convert.greyscale=reject"]),
    "colour": ("x.png", lambda: png(picture(0)), ["data.channels=1", "data.convert.colour=reject"]),
    "alpha": ("x.png", lambda: png(Image.new("RGBA", (20, 20))), ["data.convert.alpha=reject"]),
    "cmyk": ("x.jpg", lambda: jpeg(Image.new("CMYK", (20, 20))), ["data.convert.cmyk=reject"]),
    "sixteen_bit": (
        "x.png",
        lambda: png(Image.fromarray(np.full((20, 20), 999, np.uint16))),
        ["data.convert.sixteen_bit=reject"],
    ),
    "exif_rotation": ("x.jpg", rotated, ["data.convert.exif_rotation=reject"]),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_of_this_kind_is_listed_and_the_others_are_kept(tmp_path: Path, kind: str) -> None:
    name, make, overrides = IMAGES[kind]
    root = tmp_path / "images"
    root.mkdir()
    for number in range(3):  # of a mode that the protocol takes as it is
        image = picture(number).convert("L") if "data.channels=1" in overrides else picture(number)
        image.save(root / f"good{number}.png")
    (root / name).write_bytes(make())
    cfg = config(tmp_path / "data", f"data.source.path={root}", *SIZE, *overrides)
    prepare(cfg)
    why = rejected_of(cfg)
    assert list(why) == [name] and why[name].kind == kind and len(why[name].reason) > 10
    assert split_of(cfg).manifest.count == 3
    assert finished(data_directory(cfg) / "shards")["rejected"] == {kind: 1}


def by_table(tmp_path: Path, rows: list[dict[str, object]], *overrides: str) -> dict[str, str]:
    root = folder_of_pictures(tmp_path / "images", 4, classes=1)
    (root / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = config(tmp_path / "data", f"data.source.path={root}", "data.source.table=labels.jsonl", *SIZE, *overrides)
    prepare(cfg)
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def named(count: int) -> list[dict[str, object]]:
    return [{"file": f"{number:05d}.png", "label": "cat"} for number in range(count)]


def label_without_image(tmp_path: Path) -> dict[str, str]:
    return by_table(tmp_path, [*named(4), {"file": "00009.png", "label": "dog"}])


def image_without_label(tmp_path: Path) -> dict[str, str]:
    return by_table(tmp_path, named(3))


def duplicate_key(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tars").mkdir()
    for name, keys in {"0.tar": "ab", "1.tar": "bc"}.items():
        with tarfile.open(tmp_path / "tars" / name, "w") as archive:
            for key in keys:
                content = png(picture(ord(key)))
                info = tarfile.TarInfo(f"{key}.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path / 'tars'}", *SIZE, data="webdataset")
    prepare(cfg)
    assert split_of(cfg).manifest.count == 3
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def passed_over(tmp_path: Path) -> dict[str, str]:
    root = folder_of_pictures(tmp_path / "images", 4, classes=1)
    for name in ("Thumbs.db", "notes.txt"):
        (root / name).write_bytes(b"x")
    (root / "class0" / "gone.png").symlink_to("/nowhere/x.png")
    (root / "class0" / "again").symlink_to("..")
    cfg = config(tmp_path / "data", f"data.source.path={root}", *SIZE)
    prepare(cfg)
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def sample_without_image(tmp_path: Path) -> dict[str, str]:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in {"a.png": png(picture(1)), "dataset.json": b"{}"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path / 'a.tar'}", *SIZE, data="webdataset")
    prepare(cfg)
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def small_class(tmp_path: Path) -> dict[str, str]:
    root = folder_of_pictures(tmp_path / "images", 6, classes=2)
    (root / "rare").mkdir()
    picture(9).save(root / "rare" / "one.png")
    cfg = config(tmp_path / "data", f"data.source.path={root}", *SIZE, "data.split.min_per_class=2")
    prepare(cfg)
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def not_listed(tmp_path: Path) -> dict[str, str]:
    root = folder_of_pictures(tmp_path / "images", 4, classes=2)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    (tmp_path / "chosen.txt").write_text("\n".join(names[1:]))
    overrides = [f"data.source.path={root}", *SIZE, f"data.split.keep={tmp_path / 'chosen.txt'}"]
    cfg = config(tmp_path / "data", *overrides)
    prepare(cfg)
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def fonts(tmp_path: Path) -> dict[str, str]:
    import matplotlib

    folder = tmp_path / "fonts"
    folder.mkdir()
    ttf = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in ("DejaVuSans", "cmex10", "LastResortHE-Regular", "STIXSizOneSymReg"):
        (folder / f"{name}.ttf").write_bytes((ttf / f"{name}.ttf").read_bytes())
    (folder / "broken.ttf").write_bytes(b"\0\1\0\0" + bytes(40))
    cfg = config(tmp_path / "data", f"data.source.fonts={folder}", "data.split.valid=0", data="glyphs16")
    prepare(cfg)
    return {key: row.kind for key, row in rejected_of(cfg).items()}


def not_in_subset(tmp_path: Path) -> dict[str, str]:
    """Two of three images are asked for."""
    root = folder_of_pictures(tmp_path / "images", 3)
    overrides = [f"data.source.path={root}", "data.image_size=16", "data.split.valid=0", "data.split.subset=2"]
    cfg = config(tmp_path / "data", *overrides)
    prepare(cfg)
    (kind,) = (row.kind for row in rejected_of(cfg).values())
    return {"one of three": kind}


LISTED: dict[Callable[[Path], dict[str, str]], dict[str, str]] = {
    label_without_image: {"00009.png": "label_without_image"},
    image_without_label: {"class0/00003.png": "image_without_label"},
    duplicate_key: {"b": "duplicate_key"},
    passed_over: {
        "Thumbs.db": "hidden",
        "notes.txt": "other_ending",
        "class0/gone.png": "not_a_file",
        "class0/again": "repeated_folder",
    },
    sample_without_image: {"dataset": "sample_without_image"},
    not_listed: {"class0/00000.png": "not_listed"},
    small_class: {"rare/one.png": "small_class"},
    not_in_subset: {"one of three": "not_in_subset"},
    fonts: {
        "font LastResortHE-Regular.ttf": "placeholder_font",
        "font STIXSizOneSymReg.ttf": "missing_glyph",
        "font broken.ttf": "unreadable_font",
        "font cmex10.ttf": "symbol_font",
    },
}


@pytest.mark.parametrize("case", LISTED, ids=lambda case: case.__name__)
def test_what_the_source_itself_shows_to_be_unusable_is_listed(
    tmp_path: Path, case: Callable[[Path], dict[str, str]]
) -> None:
    assert case(tmp_path) == LISTED[case]


def test_every_kind_has_a_case_here() -> None:
    listed = {kind for kinds in LISTED.values() for kind in kinds.values()}
    assert set(IMAGES) | listed == set(KINDS)


def test_more_than_the_allowed_share_is_an_error_that_counts_them(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path / "images", 8)
    for number in range(2):
        (root / "class0" / f"bad{number}.png").write_bytes(b"junk")
    overrides = [f"data.source.path={root}", "data.image_size=16", "data.split.valid=0"]
    cfg = config(tmp_path / "data", *overrides, "data.max_rejected=0.1")
    with pytest.raises(UserError, match=r"2 of 10 images .* \(unreadable: 2\).*data.max_rejected=0.1.*bad0.png"):
        prepare(cfg)
    assert set(rejected_of(cfg)) == {"class0/bad0.png", "class0/bad1.png"}  # listed all the same
    prepare(config(tmp_path / "data", *overrides, "data.max_rejected=0.2"))


def test_rows_of_a_table_without_an_image_are_not_called_images(tmp_path: Path) -> None:
    rows = [*named(4), *({"file": f"gone{number}.png", "label": "dog"} for number in range(3))]
    with pytest.raises(UserError, match=r"3 of 7 rows of the table .*label_without_image: 3.*First: gone0.png"):
        by_table(tmp_path / "rows", rows, "data.max_rejected=0.1")
    with pytest.raises(UserError, match=r"4 of 7 images and rows of the table .*image_without_label: 1"):
        by_table(tmp_path / "both", rows[1:], "data.max_rejected=0.1")


def test_a_data_set_of_nothing_but_junk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"junk")
    overrides = [f"data.source.path={tmp_path / 'images'}", "data.split.valid=0", "data.max_rejected=1"]
    with pytest.raises(UserError, match="1 of 1 images"):
        prepare(config(tmp_path / "data", *overrides))


def test_what_was_converted_is_counted(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path / "images", 2, classes=1)
    Image.new("L", (20, 20), 9).save(root / "class0" / "grey.png")
    cfg = config(tmp_path / "data", f"data.source.path={root}", "data.image_size=16", "data.split.valid=0")
    prepare(cfg)
    assert finished(data_directory(cfg) / "shards")["converted"] == {"greyscale": 1}
    lines = (data_directory(cfg) / "shards" / "converted.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"converted": "greyscale", "key": "class0/grey.png"}
