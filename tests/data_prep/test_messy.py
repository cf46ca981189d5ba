"""Messy input as people have it: what is said, what is used, what is refused. No traceback, and nothing is silent.

The first test runs through the data preparation cases of `cases.tgz` in the shared folder; the others make their own.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared import config, image_of, picture, prepare, rejected_of, split_of

from data_prep import listing
from data_prep.__main__ import main
from data_prep.items import Items, in_order
from data_prep.sources.folder import look
from pipeline.config.paths import protocol_hash
from pipeline.config.prepared import prepared_notes
from pipeline.runtime.errors import Incomplete, UserError

Capture = pytest.CaptureFixture[str]
SIZE = ["data.image_size=16", "data.split.valid=0"]
OFFICIAL = ["data.split.rule=official"]
NAMED = [f"p{number:03d}.png" for number in range(8)]


def prepared(
    capsys: Capture, data_dir: Path, *overrides: str, data: str = "folder", stages: Iterable[str] = ("fetch", "shard")
) -> tuple[int, str]:
    """Exit code and console text of the stages."""
    capsys.readouterr()
    for stage in stages:
        workers = ["--workers=1"] if stage == "shard" else []
        code = main([stage, *workers, f"data={data}", f"data_dir={data_dir}", *SIZE, *overrides])
        if code:
            break
    return code, capsys.readouterr().err


# Each case: path (under folders, zips, wds), overrides, exit code, and what the console says, in this order.
WRONG, RIGHT = 2, 0
OWN: list[tuple[str, list[str], int, str]] = [
    ("folders/othertypes", [], RIGHT, r"3 x hidden.*shard: train 33.*noending38, noending39, noending40.*iphone\.heic"),
    (
        "folders/splits_layout",
        [],
        WRONG,
        r"train \(20 images\), val \(20 images\).*splits=true data\.split\.rule=official",
    ),
    ("folders/splits_layout", ["data.source.splits=true", *OFFICIAL], RIGHT, r"2 classes.*cat +20.*train 20, valid 20"),
    ("folders/splits_layout", ["data.source.splits=false"], RIGHT, r"4 classes.*train/cat +10"),
    ("folders/splits_flat", [], WRONG, r"test \(12 images\), train \(12 images\)"),
    ("folders/numeric", [], RIGHT, r"12 classes.*0 +1 +8.*1 +2 +8.*9 +10 +8.*11 +12 +8"),
    ("folders/latin1", [], RIGHT, r"shard: train 11"),
    ("folders/loop", [], RIGHT, r"2 classes.*1 x repeated_folder.*train 20.*a/all"),
    ("folders/linkedclass", [], RIGHT, r"b +10.*train 20"),
    (
        "folders/stray",
        [],
        WRONG,
        r"1 images in no folder \('cover\.png'\) and 20 in 2 folders \(cat, dog\).*labels=none",
    ),
    ("zips/hiddenfolder.zip", [], RIGHT, r"1 classes.*a +20.*20 x hidden.*train 20.*\.thumbnails/p0\.png"),
    ("zips/links.tar", [], RIGHT, r"train 20"),
    ("zips/macfolder.tar", [], RIGHT, r"20 x hidden.*train 20"),
    ("zips/t.tar.bz2", [], RIGHT, r"train 20"),
    ("zips/t.tar.xz", [], RIGHT, r"train 20"),
    ("zips/upper.ZIP", [], RIGHT, r"my photos +20.*train 20"),
    ("zips/winpath.zip", [], RIGHT, r"1 classes.*cats +20"),
    ("zips/cut.zip", [], WRONG, r"cut\.zip is a truncated zip"),
    ("zips/cut.tar.gz", [], WRONG, r"cut\.tar\.gz is a truncated or damaged archive"),
]
NONE = ["data.source.labels=none"]
ATTRIBUTES = ["data.source.attribute_columns=[Smiling,Male]"]
TABLES: list[tuple[str, list[str], int, str]] = [
    *(
        (f"{name}.csv", [], RIGHT, r"2 classes.*cat +10.*dog +10")
        for name in ("plain", "bom_crlf", "semicolon", "utf16")
    ),
    *((f"{name}.csv", [], RIGHT, r"2 classes.*cat +10.*dog +10") for name in ("spaces", "capital", "blank", "comment")),
    *((f"{name}.csv", [], RIGHT, r"2 classes.*cat +10.*dog +10") for name in ("trailing", "dotslash")),
    *((f"array.{ending}", [], RIGHT, r"2 classes.*cat +10.*dog +10") for ending in ("json", "jsonl")),
    ("tab.tsv", [], RIGHT, r"2 classes.*cat +10.*dog +10"),
    ("latin1.csv", [], RIGHT, r"café +10.*line 3: found no UTF-8; the table is read as Windows-1252"),
    ("floats.csv", [], RIGHT, r"0 +0\.0 .*2 +2\.0 .*10 +10\.0"),
    ("numbers.csv", [], RIGHT, r"2 +2 .*10 +10 .*11 +11"),
    ("intlabel.jsonl", [], RIGHT, r"2 +2 .*10 +10 .*11 +11"),
    ("negative.csv", [], RIGHT, r"0 +-1 +10.*1 +1 +10"),
    ("boollabel.jsonl", [], RIGHT, r"False +10.*True +10"),
    ("emptylabel.csv", [], RIGHT, r"2 classes, 2 images without label"),
    ("firstmissing.jsonl", [], RIGHT, r"2 classes, 1 images without label"),
    *((f"{name}.jsonl", NONE, RIGHT, r"train 20") for name in ("plain", "u2028", "nel")),
    ("captions5.jsonl", NONE, RIGHT, r"80 further rows of images named before: first captions are used.*train 20"),
    *((f"{name}.csv", ATTRIBUTES, RIGHT, r"train 20") for name in ("attrs", "attrs_tf")),
    ("missing1.csv", [], RIGHT, r"1 x image_without_label.*train 19.*p019\.png"),
    ("missing3.csv", [], WRONG, r"3 of 20 images .* \(image_without_label: 3\).*p017\.png: the table has no row"),
    ("basename_twice.csv", [], WRONG, r"image_without_label: 10"),
    ("twice.csv", [], WRONG, r"line 22: found label 'cat' for 'p000\.png', expected 'dog' as in line 2"),
    ("short.csv", [], WRONG, r"line 21: found 1 values \(p019\.png\), expected 2 as in the header"),
    ("noheader.csv", [], WRONG, r"line 1: found the row .*p000\.png.*, expected a header such as file_name,label"),
    ("empty.csv", [], WRONG, r"has no rows"),
    ("headonly.csv", [], WRONG, r"has no rows"),
    ("missingfield.jsonl", NONE, WRONG, r"line 6: found no 'file_name', expected the name of an image"),
    ("lists.jsonl", [], WRONG, r"line 1: found \[.*, expected an object"),
    ("listlabel.jsonl", [], WRONG, r"line 1: found the label \[0, 1\], expected one label"),
    ("noext.csv", [], WRONG, r"line 2: found 'p000', expected a name such as 'p000\.png'"),
    ("case.csv", [], WRONG, r"line 2: found 'P000\.PNG', expected a name such as 'p000\.png'"),
    ("backslash.csv", [], WRONG, r"line 2: found 'images/p000\.png', expected a name such as 'p000\.png'"),
    ("prefix.csv", [], WRONG, r"line 2: found '/home/me/images/p000\.png', expected a name such as 'p000\.png'"),
    ("split.csv", OFFICIAL, RIGHT, r"test 5, train 15"),
    ("split.csv", [], RIGHT, r"has splits \(Test 5, Train 15\), which split\.rule=hash mixes"),
    (
        "splitna.csv",
        OFFICIAL,
        WRONG,
        r"does not say which split 'p015\.png' is in.*column 'split' with a word in each row",
    ),
]
CLASSES = "data.source.classes=[cat,dog]"
WDS: list[tuple[str, list[str], int, str]] = [
    *((f"{name}.tar", [], RIGHT, r"1 +1 +20.*train 20") for name in ("dots2", "dotslash", "upper", "cls_float")),
    ("plain.tar", [], RIGHT, r"3 classes.*train 20"),
    ("img2dataset.tar", [], RIGHT, r"no classes.*train 20"),
    *((f"{name}.tar", [], RIGHT, r"0 +0 +10.*1 +1 +10") for name in ("cls_newline", "json_bool", "json_float")),
    ("cls_name.tar", [], RIGHT, r"0 +cat +10.*1 +dog +10"),
    ("cls_name.tar", [CLASSES], RIGHT, r"0 +cat +10.*1 +dog +10"),
    ("cls_neg.tar", [], RIGHT, r"10 images without label"),
    ("json_strlabel.tar", [], RIGHT, r"12 classes.*2 +2 .*10 +10 "),
    (
        "json_strlabel.tar",
        [CLASSES],
        WRONG,
        r"json_strlabel\.tar, key '0002': found label 2, expected 0 to 1, or one of",
    ),
    ("mac.tar", [], RIGHT, r"40 x hidden.*train 20"),
    ("meta.tar", [], RIGHT, r"1 x sample_without_image.*train 20"),
    ("twoimages.tar", [], RIGHT, r"not used of the samples: mask\.png \(20\).*train 20"),
    ("twoimages2.tar", [], RIGHT, r"not used of the samples: jpg \(20\).*train 20"),
    ("cut.tar", [], WRONG, r"cut\.tar is a truncated or damaged tar"),
    ("dots.tar", [], WRONG, r"dots\.tar has only 0000\.cls, 0000\.png.*up to the first dot"),
    ("doublext.tar", [], WRONG, r"doublext\.tar has only image\.png, label\.cls of it.*up to the first dot"),
    ("dup", [], WRONG, r"20 of 40.*duplicate_key: 20.*another sample of the 2 tars has the same key.*first dot"),
    ("separated.tar", [], WRONG, r"label_without_image: 20.*separated\.tar has only cls of it.*follow one another"),
    ("cls_empty.tar", [], WRONG, r"cls_empty\.tar, key '0005': found an empty label, expected a number from 0 on"),
    ("json_bad.tar", [], WRONG, r"json_bad\.tar, key '0005': found no JSON in \.json"),
    ("json_list.tar", [], WRONG, r"json_list\.tar, key '0000': found \[1, 2\] in \.json, expected an object"),
    ("json_onehot.tar", [], WRONG, r"json_onehot\.tar, key '0000': found label \[0, 1\], expected a number"),
    ("json_big.tar", [], WRONG, r"labels up to 1000019, which makes 1000020 classes, but 20 of them"),
]


def test_every_case_of_the_shared_archive_is_right(tmp_path: Path, capsys: Capture) -> None:
    path = Path(os.environ.get("MUDI_SHARED", Path(__file__).parents[3] / "shared")) / "cases.tgz"
    if not path.is_file():
        pytest.skip(
            f"the messy inputs in {path} (set MUDI_SHARED): the kinds are tested by the other tests of this file"
        )
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    cases = [(tmp_path / name, overrides, code, said, "folder") for name, overrides, code, said in OWN]
    cases += [(tmp_path / "wds" / name, overrides, code, said, "webdataset") for name, overrides, code, said in WDS]
    for name, overrides, code, said in TABLES:
        table = f"data.source.table={tmp_path / 'tables' / name}"
        cases.append((tmp_path / "images", [table, *overrides], code, said, "folder"))
    for number, (source, overrides, code, said, data) in enumerate(cases):
        place, where = tmp_path / "data" / str(number), f"data.source.path={source}"
        stages = ("fetch", "shard") if code or "train" in said else ("fetch",)  # what fetch says needs no shards
        found = prepared(capsys, place, where, *overrides, data=data, stages=stages)
        assert found[0] == code and re.search(said, found[1].replace("\n", " ")), (source.name, overrides, found)
    told = {Path(name).parts[-1] for name, *_ in (*OWN, *TABLES, *WDS)}
    there = [p for folder in ("folders", "zips", "tables", "wds") for p in (tmp_path / folder).iterdir()]
    assert {p.name for p in there} - told == {"elsewhere"}  # which linkedclass links to
    linked = [name for name, *_ in OWN].index("folders/linkedclass")
    picture(1).save(tmp_path / "folders" / "elsewhere" / "new.png")
    again = [f"data.source.path={tmp_path / 'folders' / 'linkedclass'}"]
    assert "found.files: was 20, now 21" in prepared(capsys, tmp_path / "data" / str(linked), *again)[1]
    for name in (tmp_path / "kaggle").iterdir():
        kaggle(tmp_path / "celeba", name.name, name.read_text())
    check_kaggle(tmp_path / "celeba", capsys)


def kaggle(root: Path, name: str, text: str) -> None:
    """One of Kaggle's tables, and the images that it names, in a folder within a folder of the same name."""
    inner = root / "img_align_celeba" / "img_align_celeba"
    inner.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    for number, line in enumerate(text.split("\n")[1:]):
        if line:
            picture(number).save(inner / line.split(",")[0])


def check_kaggle(root: Path, capsys: Capture) -> None:
    overrides = [f"data.source.path={root}", "data.counts=null", "data.crop.size=18", "data.max_rejected=1"]
    code, said = prepared(capsys, root / "data", *overrides, data="celeba64_crop178_lanczos")
    assert code == 0 and re.search(r"test \d+, train \d+, valid \d+|train \d+", said), said


def test_kaggle_s_celeba_is_taken_as_it_comes(tmp_path: Path, capsys: Capture) -> None:
    rows = [f"{number:06d}.jpg" for number in range(1, 13)]
    partition = "image_id,partition\n" + "".join(f"{name},{n % 3}\n" for n, name in enumerate(rows))
    attributes = "image_id,Smiling,Male\n" + "".join(f"{name},-1,1\n" for name in rows)
    kaggle(tmp_path, "list_attr_celeba.csv", attributes)
    overrides = [f"data.source.path={tmp_path}", "data.counts=null", "data.crop.size=18"]
    code, said = prepared(capsys, tmp_path / "none", *overrides, data="celeba64_crop178_lanczos")
    assert code == 2 and "Put list_eval_partition.txt (Kaggle: .csv) beside the images" in said
    kaggle(tmp_path, "list_eval_partition.csv", partition)
    assert (
        "test 4, train 4, valid 4" in prepared(capsys, tmp_path / "d", *overrides, data="celeba64_crop178_lanczos")[1]
    )
    (tmp_path / "list_eval_partition.csv").write_text(partition + "000099.jpg,7\n")
    code, said = prepared(capsys, tmp_path / "bad", *overrides, data="celeba64_crop178_lanczos")
    assert code == 2 and "list_eval_partition.csv, line 14: found 000099.jpg 7, expected an image and 0, 1 or 2" in said


def flat(root: Path, names: Iterable[str] = NAMED) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name, "PNG")
    return root


def test_every_file_that_is_passed_over_is_listed_with_its_kind(tmp_path: Path, capsys: Capture) -> None:
    root = flat(tmp_path / "images", [f"{kind}/{number}.png" for kind in "ab" for number in range(10)])
    for name in ("a/.DS_Store", "a/Thumbs.db", "a/notes.txt", "a/.thumbnails/x.png", "__MACOSX/a/0.png"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(b"x")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "gone.png").symlink_to("/nowhere/x.png")
    (root / "a" / "all").symlink_to("..")
    (root / "b" / "again").symlink_to(root / "a")
    (tmp_path / "elsewhere").mkdir()
    picture(50).save(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    with (root / os.fsdecode(b"a/caf\xe9.png")).open("wb") as file:
        picture(51).save(file, "PNG")
    overrides = [f"data.source.path={root}", *SIZE, "data.max_rejected=0.1"]
    cfg = config(tmp_path / "data", *overrides)
    prepare(cfg)
    kinds = {key: row.kind for key, row in rejected_of(cfg).items()}
    hidden = dict.fromkeys(("a/.DS_Store", "a/Thumbs.db", "a/.thumbnails", "__MACOSX"), "hidden")
    pipes = dict.fromkeys(("a/pipe.png", "a/gone.png"), "not_a_file")
    folders = dict.fromkeys(("a/all", "b/again", "c/round"), "repeated_folder")
    assert kinds == {**hidden, **pipes, **folders, "a/notes.txt": "other_ending"}
    train = split_of(cfg)
    assert dict(zip(train.manifest.classes, train.manifest.class_counts, strict=True)) == {"a": 11, "b": 10, "c": 1}
    assert "a/caf\\xe9.png" in [item.key for item in Items(listing.source_directory(cfg))]
    picture(52).save(tmp_path / "elsewhere" / "new.png")
    code, said = prepared(capsys, tmp_path / "data", *overrides)
    assert code == 2 and "found.files: was 23, now 24" in said, said


def test_a_model_of_classes_is_refused_where_images_without_labels_are_listed(tmp_path: Path, capsys: Capture) -> None:
    root = flat(tmp_path / "images")
    overrides = [f"data.source.path={root}", "experiment=glyphs16", "name=x"]
    expected = f"model.condition: found class, but the 8 images of {root} have no labels. Set model.condition=none "
    expected += "with sample.sampler.guidance.scale=1, or put each class"
    for _ in range(2):  # listed anew, and listed before
        code, said = prepared(capsys, tmp_path / "data", *overrides, stages=["fetch"])
        assert code == 2 and "fetch: 8 images listed" in said and expected in said and "looks like" not in said, said
    without = [*overrides, "model.condition=none", "sample.sampler.guidance.scale=1"]
    assert prepared(capsys, tmp_path / "data", *without, stages=["fetch"])[0] == 0
    (root / "labels.csv").write_text("file_name,label\n" + "".join(f"{name},{name[3]}\n" for name in NAMED))
    code, said = prepared(capsys, tmp_path / "more", *overrides, stages=["fetch"])
    assert code == 2 and "labels.csv looks like one: data.source.table=labels.csv" in said, said
    labelled = [*overrides, "data.source.table=labels.csv"]
    assert prepared(capsys, tmp_path / "more", *labelled, stages=["fetch"])[0] == 0
    asked = [*overrides[:1], "model=unet_tiny", "name=x", "data.source.labels=none", "model.condition=class"]
    assert "the data set has no labels" in prepared(capsys, tmp_path / "more", *asked, stages=["fetch"])[1]
    tar = wds(tmp_path / "a.tar", [{}, {}])
    told = ["model=unet_tiny", "name=x", "model.condition=attributes"]
    code, said = prepared(capsys, tmp_path / "tar", *tar, *told, data="webdataset", stages=["fetch"])
    assert code == 2 and "model.condition: found attributes, but the 2 images of" in said, said


def packed(root: Path, kind: str) -> Path:
    """A folder's files in an archive of some kind, with hidden ones, and links where it knows any."""
    path = root.with_name(f"{root.name}.{kind}")
    files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    files |= {f"__MACOSX/{name}": b"x" for name in list(files)[:2]} | {".cache/x.png": b"x"}
    buffer = io.BytesIO()
    if kind.lower() == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name.replace("/", "\\") if kind == "ZIP" else name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    press: Callable[[bytes], bytes] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(
        kind[-3:].lstrip("."), bytes
    )
    path.write_bytes(press(buffer.getvalue()))
    return path


def test_archives_of_any_kind_are_read_and_refused_where_they_are_cut(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", [f"{kind}/{number}.png" for kind in "ab" for number in range(2)])
    whole = listing.run(config(tmp_path / "folder", f"data.source.path={root}", *SIZE))
    assert whole["items"] == 4
    for kind in ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "ZIP"):
        path = packed(root, kind)
        overrides = [f"data.source.path={path}", *SIZE]
        receipt = listing.run(config(tmp_path / kind, *overrides))
        assert receipt["sha256"] == whole["sha256"], kind  # the same keys, labels and order
        assert receipt["rejected"] == {"hidden": 3}
        content = path.read_bytes()
        for share in (0.3, 0.9):
            path.write_bytes(content[: int(len(content) * share)] if kind != "tar" else content[: int(8 * share) * 512])
            with pytest.raises(Incomplete, match=rf"{re.escape(path.name)} is (a truncated|not a readable tar)"):
                listing.run(config(tmp_path / f"{kind}{share}", *overrides))
    tar = packed(root, "tar")
    tar.write_bytes(tar.read_bytes() * 2)
    with pytest.raises(Incomplete, match="goes on after its end mark"):
        listing.run(config(tmp_path / "two", f"data.source.path={tar}", *SIZE))
    tar.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(99))
    with pytest.raises(UserError, match=r"packed by zstd, expected .* Give it unpacked"):
        listing.run(config(tmp_path / "zstd", f"data.source.path={tar}", *SIZE))


def test_a_table_or_an_image_in_the_place_of_the_folder_is_called_so(tmp_path: Path, capsys: Capture) -> None:
    root = flat(tmp_path / "images", ["a.png"])
    (root / "labels.csv").write_text("file,label\na.png,cat\n")
    for name, what in (("labels.csv", "a table"), ("a.png", "an image")):
        overrides = [f"data.source.path={root / name}", *SIZE]
        said = f"{name} is {what}. Give the folder that holds the images"
        with pytest.raises(UserError, match=said):
            look(config(tmp_path / "seen", *overrides).data.source, root / name)
        code, text = prepared(capsys, tmp_path / "data", f"data.source.path={root / name}")
        assert code == 2 and said in text and "Get it again" not in text
    code, _ = prepared(capsys, tmp_path / "data", f"data.source.path={root}", f"data.source.table={root}/labels.csv")
    assert code == 0


def test_links_in_a_tar_are_followed_or_listed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("d/a.png")
        info.size = len(buffer.getvalue())
        archive.addfile(info, io.BytesIO(buffer.getvalue()))
        links = {"d/hard.png": (tarfile.LNKTYPE, "d/a.png"), "d/soft.png": (tarfile.SYMTYPE, "a.png")}
        links |= {"d/chain.png": (tarfile.SYMTYPE, "soft.png"), "d/lost.png": (tarfile.SYMTYPE, "../none.png")}
        links |= {"d/round.png": (tarfile.SYMTYPE, "round.png"), "d/pipe.png": (tarfile.FIFOTYPE, "")}
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path / 'a.tar'}", *SIZE, "data.max_rejected=0.5")
    prepare(cfg)
    train = split_of(cfg)
    assert train.manifest.count == 4 and all(np.array_equal(image_of(train, 0), image_of(train, k)) for k in range(4))
    assert {key: row.kind for key, row in rejected_of(cfg).items()} == dict.fromkeys(
        ("d/lost.png", "d/round.png", "d/pipe.png"), "not_a_file"
    )


def test_folders_named_like_splits_are_asked_about(tmp_path: Path, capsys: Capture) -> None:
    """Also within one folder around everything, and by other names; never silently classes, nor silently mixed."""
    around = flat(
        tmp_path / "a", [f"pets/{s}/{c}/{n}.png" for s in ("Training", "VAL") for c in "xy" for n in range(3)]
    )
    overrides = [f"data.source.path={around}"]
    code, said = prepared(capsys, tmp_path / "d", *overrides)
    assert code == 2 and re.search(r"Training \(6 images\), VAL \(6 images\) in '.*/a/pets/'", said)
    code, said = prepared(capsys, tmp_path / "d", *overrides, "data.source.splits=true")
    assert code == 2 and "expected split.rule=official" in said
    code, said = prepared(capsys, tmp_path / "d", *overrides, "data.source.splits=true", *OFFICIAL)
    assert code == 0 and "train 6, valid 6" in said and "2 classes" in said
    one = flat(tmp_path / "b", [f"{name}/{n}.png" for name in ("train", "car") for n in range(3)])
    code, said = prepared(capsys, tmp_path / "d", f"data.source.path={one}")
    assert code == 0 and re.search(r"0 +car +3.*1 +train +3", said, re.DOTALL)  # a train may be a train
    told = [config(tmp_path, *overrides, f"data.source.splits={value}").data for value in ("null", "false")]
    assert protocol_hash(told[0]) == protocol_hash(told[1])


def test_names_of_classes_that_are_numbers_stand_by_value() -> None:
    assert in_order(["10", "9", "b", "-1", "2.5", "a", "9", "1e3"]) == ["-1", "2.5", "9", "10", "1e3", "a", "b"]
    assert in_order(["x/10", "x/9", "w/11"]) == ["w/11", "x/9", "x/10"]


def table(name: str, head: str, row: Callable[[int, str], str], encoding: str = "utf-8") -> tuple[str, bytes]:
    return name, (head + "".join(row(k, n) for k, n in enumerate(NAMED))).encode(encoding)


GOOD = [
    table("a.csv", "file_name,label\n", lambda k, n: f"./{n},{'xy'[k % 2]}\n"),
    table("b.csv", "File_Name ; Label\r\n", lambda k, n: f"{n} ; {'xy'[k % 2]} \r\n", "utf-8-sig"),
    table("c.tsv", "# mine\nlabel\tfile\n", lambda k, n: f'"{"xy"[k % 2]}"\t"{n}"\n', "utf-16"),
    table("d.txt", "path|class\n", lambda k, n: f"{n}|{'xy'[k % 2]}\n\n", "utf-16-le"),
    table("e.txt", "image label\n", lambda k, n: f"{n}  {'xy'[k % 2]}\n"),
    table("f.csv", "file,label\r", lambda k, n: f"{n},{'xy'[k % 2]}\r"),
    table("g.jsonl", "", lambda k, n: json.dumps({"file": n, "label": "xy"[k % 2]}) + "\r\n"),
    ("h.json", json.dumps([{"file": n, "label": "xy"[k % 2], "text": "\x85"} for k, n in enumerate(NAMED)]).encode()),
]
BAD = {
    'file,label\np000.png,"x\n': "line 2: found quoting that does not end",
    "file,label\np000.png,x,y\n": r"line 2: found 3 values \(p000.png, x, y\), expected 2",
    "file,label,split\np000.png,x,a\n\np000.png,x,b\n": "line 4: found split 'b' for 'p000.png', expected 'a'",
    "file,label\n,x\n": "line 2: found no 'file', expected the name of an image",
    "file,label\nq.png,x\n": "line 2: found 'q.png', expected a name such as 'p000.png'",
    "file,tag\np000.png,x\n": "none of the columns label, class; it has file, tag",
}


def test_tables_of_any_delimiter_encoding_and_quoting_are_read(tmp_path: Path) -> None:
    root = flat(tmp_path / "images")
    for name, content in GOOD:
        (tmp_path / name).write_bytes(content)
        overrides = [f"data.source.path={root}", f"data.source.table={tmp_path / name}", *SIZE]
        receipt = listing.run(config(tmp_path / f"{name}.data", *overrides))
        assert receipt["classes"] == [["x", 4], ["y", 4]], name
    for number, (content, said) in enumerate(BAD.items()):
        (tmp_path / "t.csv").write_text(content)
        overrides = [f"data.source.path={root}", f"data.source.table={tmp_path / 't.csv'}", *SIZE]
        with pytest.raises(UserError, match=said) as caught:
            listing.run(config(tmp_path / str(number), *overrides))
        assert "t.csv" in str(caught.value)
    (tmp_path / "t.csv").write_bytes(b"file,label\np000.png,\x81\n")
    with pytest.raises(UserError, match="line 2: found the byte 0x81, expected text in UTF-8, UTF-16 or Windows-1252"):
        listing.run(config(tmp_path / "byte", *overrides))


def test_splits_of_a_table_that_no_rule_uses_are_said(tmp_path: Path, capsys: Capture) -> None:
    root = flat(tmp_path / "images")
    overrides = [f"data.source.path={root}", "data.source.table=labels.csv"]
    for splits, there in (("ab" * 4, "a 4, b 4"), ("a" * 3 + " " * 5, "a 3, none 5")):
        rows = [f"{name},x,{split}" for name, split in zip(NAMED, splits, strict=True)]
        (root / "labels.csv").write_text("\n".join(["file,label,Split", *rows]))
        for rule, does in (("hash", "mixes"), ("all", "ignores"), ("official", "")):
            data = tmp_path / f"data{there}{rule}"
            said = prepared(capsys, data, *overrides, f"data.split.rule={rule}", stages=["fetch"])[1]
            line = f"fetch: the source has splits ({there}), which split.rule={rule} {does}: data.split.rule=official"
            assert (line in said) == (rule != "official") and said.count("has splits") == (rule != "official"), said


def attributes_of(tmp_path: Path, root: Path, name: str, content: str) -> list[tuple[int, ...]]:
    (tmp_path / name).write_text(content)
    overrides = [f"data.source.path={root}", f"data.source.table={tmp_path / name}", *SIZE]
    cfg = config(tmp_path / f"{name}.data", *overrides, "data.source.attribute_columns=[cat,dog]")
    listing.run(cfg)
    return [item.attributes for item in Items(listing.source_directory(cfg))]


def test_attributes_come_from_wide_and_long_tables_and_from_lists(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", NAMED[:3])
    wide = "file,cat,dog\np000.png,yes,0\np001.png,-1,True\np002.png,,1\n"
    assert attributes_of(tmp_path, root, "wide.csv", wide) == [(1, 0), (0, 1), (-1, 1)]
    long = "file,label\np000.png,cat\np001.png,dog\np001.png,cat\np002.png,bird\n"
    assert attributes_of(tmp_path, root, "long.csv", long) == [(1, 0), (1, 1), (0, 0)]
    rows = {"p000.png": ["cat"], "p001.png": ["dog", "cat"], "p002.png": []}
    lists = "".join(json.dumps({"file": name, "label": labels}) + "\n" for name, labels in rows.items())
    assert attributes_of(tmp_path, root, "lists.jsonl", lists) == [(1, 0), (1, 1), (0, 0)]
    with pytest.raises(UserError, match=r"bad\.csv', line 3: found '0\.7' in column dog, expected 1, 0, -1, true"):
        attributes_of(tmp_path, root, "bad.csv", "file,cat,dog\np000.png,1,1\np001.png,1,0.7\n")


def test_an_image_with_two_labels_is_refused_whoever_says_them(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", ["cat/a.png", "dog/b.png", "dog/c.png"])
    for content, said in {
        "file,label\na.png,cat\nb.png,cat\nc.png,dog\n": "line 3: found label 'cat' for 'dog/b.png', expected 'dog'",
        "file,label\na.png,cat\na.png,dog\n": "line 3: found label 'dog' for 'a.png', expected 'cat' as in line 2",
    }.items():
        (root / "t.csv").write_text(content)
        overrides = [f"data.source.path={root}", "data.source.table=t.csv", *SIZE]
        with pytest.raises(UserError, match=said):
            listing.run(config(tmp_path / said[5], *overrides))
    (root / "t.csv").write_text("file,label\na.png,cat\nb.png,cat\nc.png,dog\n")
    overrides.append("data.source.label_column=label")  # a person who names the column means the table
    receipt = listing.run(config(tmp_path / "told", *overrides))
    assert receipt["classes"] == [["cat", 2], ["dog", 1]]
    flat(root, ["cat/b.png"])
    with pytest.raises(
        UserError, match=r"found 'b\.png', which is both 'cat/b\.png' and 'dog/b\.png', expected the path"
    ):
        listing.run(config(tmp_path / "twice", *overrides))


def wds(path: Path, rows: list[dict[str, bytes]]) -> list[str]:
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows):
            buffer = io.BytesIO()
            picture(number).save(buffer, "PNG")
            for ending, content in {"png": buffer.getvalue(), **row}.items():
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return [f"data.source.path={path}"]


def test_labels_of_tars_are_checked_with_tar_and_key(tmp_path: Path, capsys: Capture) -> None:
    for number, (label, overrides, said) in enumerate([
        (b"7", [CLASSES], r"x\.tar, key '0001': found label 7, expected 0 to 1, or one of \['cat', 'dog'\]"),
        (b"bird", [CLASSES], r"x\.tar, key '0001': found label 'bird', expected one of \['cat', 'dog'\]"),
        (b"bird", [], r"found the labels 0 in x\.tar, key '0000' and 'bird' in x\.tar, key '0001', expected numbers"),
        (b"-3", [], r"x\.tar, key '0001': found label -3, expected a number from 0 on"),
        (b" ", [], r"x\.tar, key '0001': found an empty label"),
        (b"0.5", [], r"found the labels 0 in .* and '0\.5'"),
        (b"987654", [], r"labels up to 987654, which makes 987655 classes, but 2 of them alone have images"),
    ]):  # fmt: skip
        source = wds(tmp_path / "x.tar", [{"cls": b"0"}, {"cls": label}])
        code, text = prepared(capsys, tmp_path / str(number), *source, *overrides, data="webdataset")
        assert code == 2 and re.search(said, text), (label, text)


def test_what_is_rejected_or_converted_is_said_with_counts_and_examples(tmp_path: Path, capsys: Capture) -> None:
    root = flat(tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(root / "turned.jpg", exif=exif)
    picture(2).convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(np.full((20, 20), 999, np.uint16)).save(root / "deep.png")
    palette = picture(3).quantize(4)
    palette.save(root / "palette.png", transparency=0)
    frames = [picture(number) for number in range(3)]
    for ending in ("gif", "png", "webp"):
        frames[0].save(root / f"moving.{ending}", save_all=True, append_images=frames[1:])
    for number in range(5):
        (root / f"junk{number}.png").write_bytes(b"junk")
    code, said = prepared(capsys, tmp_path / "data", f"data.source.path={root}", "data.max_rejected=0.5")
    assert code == 0
    assert re.search(r"rejected: 5 x unreadable \(.*\): junk0\.png, junk1\.png, junk2\.png, \.\.\.", said), said
    for kind, names in {
        "3 x animated": "moving.gif, moving.png, moving.webp",
        "1 x exif_rotation": "turned.jpg",
        "1 x cmyk": "cmyk.jpg",
        "1 x sixteen_bit": "deep.png",
        "1 x alpha": "palette.png",
    }.items():
        assert f"converted: {kind}: {names}" in said, (kind, said)


def test_classes_without_images_are_counted_in_the_log_and_after_it(tmp_path: Path, capsys: Capture) -> None:
    """A table may have more classes than there are images of: a model of them learns nothing of the others."""
    root = flat(tmp_path / "images")
    rows = [f"{path.name},cat" for path in sorted(root.iterdir())] + [f"gone{n}.png,class{n}" for n in range(5)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    (root / ".DS_Store").write_bytes(b"left out by a rule, so not worth a word")
    overrides = [f"data.source.path={root}", f"data.source.table={tmp_path / 'labels.csv'}", "data.max_rejected=0.9"]
    code, said = prepared(capsys, tmp_path / "data", *overrides)
    assert code == 0 and "5 of 6 classes have no image, such as class0, class1, class2" in said, said
    classes, passed = prepared_notes(config(tmp_path / "data", *SIZE, *overrides))
    assert classes == "5 of 6 classes have no image in train, such as class0, class1, class2"
    assert "passed over 5 x label_without_image (the labels name an image" in passed and "rejected.jsonl" in passed
    assert "hidden" in said and "hidden" not in passed
