"""Which image goes where: pure functions of names and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import config, folder_of_pictures, image_of, prepare, split_of

from data_prep import verify
from data_prep.items import Item, Items, Listing, write_items
from data_prep.shard import hash_place, hash_splits, make_plan
from pipeline.config.load import groups
from pipeline.config.schema_data import DataConfig, SplitRule
from pipeline.runtime.errors import UserError


def protocol(**split: object) -> DataConfig:
    source = {"kind": "folder", "path": "unused"}
    return DataConfig.model_validate({"name": "x", "source": source, "image_size": 16, "split": split})


def items(count: int, **facts: object) -> list[Item]:
    return [Item(f"image{number}", ("file", "x"), **facts) for number in range(count)]


@given(st.integers(1, 400), st.integers(1, 50))
def test_every_item_is_in_exactly_one_shard(count: int, per_shard: int) -> None:
    plan = make_plan(items(count), protocol(rule="all"), [])
    numbers = [number for job in plan.jobs(per_shard) for number in job.items]
    assert numbers == list(range(count))


def test_an_image_stays_in_its_split_when_others_come() -> None:
    few = make_plan(items(500), protocol(valid=0.2, test=0.1), [])
    many = make_plan(items(1000), protocol(valid=0.2, test=0.1), [])
    for name in ("train", "valid", "test"):
        assert set(few.splits[name]) == {number for number in many.splits[name] if number < 500}
    assert 0.15 < len(many.splits["valid"]) / 1000 < 0.25 and 0.06 < len(many.splits["test"]) / 1000 < 0.14


def test_the_rule_is_the_same_on_every_machine_and_for_ever() -> None:
    assert hash_place("image0") == pytest.approx(0.0306370407, abs=1e-9)


@given(st.lists(st.integers(0, 3), min_size=60, max_size=200), st.floats(0.1, 0.4))
def test_by_class_every_class_gives_its_share(labels: list[int], share: float) -> None:
    places = np.array([hash_place(str(number)) for number in range(len(labels))])
    found = hash_splits(places, np.array(labels, dtype=np.int32), SplitRule(valid=share, by_class=True))
    for label in set(labels):
        count = labels.count(label)
        taken = sum(split == "valid" for split, other in zip(found, labels, strict=True) if other == label)
        assert abs(taken - share * count) <= 1


def test_a_group_is_never_divided() -> None:
    grouped = [Item(f"{number}", ("file", "x"), group=f"g{number // 10}") for number in range(400)]
    for by_class in (False, True):
        plan = make_plan(grouped, protocol(valid=0.3, by_class=by_class), [])
        train = {number // 10 for number in plan.splits["train"]}
        assert train and not train & {number // 10 for number in plan.splits["valid"]}


def test_official_splits_are_joined_and_renamed() -> None:
    rows = [Item(f"{n}", ("file", "x"), split=("train", "val", "test")[n % 3]) for n in range(9)]
    plan = make_plan(rows, protocol(rule="official"), [])
    assert {name: len(numbers) for name, numbers in plan.splits.items()} == {"test": 3, "train": 3, "valid": 3}
    joined = make_plan(rows, protocol(rule="official", merge={"train": ["train", "valid"]}), [])
    assert {name: len(numbers) for name, numbers in joined.splits.items()} == {"train": 6}
    with pytest.raises(UserError, match="the source does not say which split 'image0' is in"):
        make_plan(items(3), protocol(rule="official"), [])


def test_an_empty_split_is_an_error_that_says_how_to_go_on() -> None:
    with pytest.raises(UserError, match=r"no image is in 'valid' \(found train: 2\).*data\.split\.valid=0"):
        make_plan(items(2), protocol(valid=1e-9), [])


def test_small_classes_are_left_out_with_their_number() -> None:
    rows = [Item(f"{n}", ("file", "x"), label=0 if n < 9 else 1) for n in range(10)]
    plan = make_plan(rows, protocol(rule="all", min_per_class=2), ["many", "few"])
    assert plan.splits["train"].tolist() == list(range(9))
    assert [(row.key, row.reason) for row in plan.left_out] == [
        ("9", "class 'few' has 1 images, split.min_per_class is 2")
    ]
    assert plan.labels == (0,)


def test_a_list_of_keys_chooses_images_before_small_classes_are_dropped(tmp_path: Path) -> None:
    rows = [Item(f"{n}", ("file", "x"), label=n % 3) for n in range(12)]
    keep = tmp_path / "chosen.txt"
    keep.write_text("0\n3\n\n6\n1\n4\n5\n")  # three of class 0, two of 1, one of 2
    plan = make_plan(rows, protocol(rule="all", keep=keep, min_per_class=2), ["a", "b", "c"])
    assert (plan.splits["train"].tolist(), plan.labels) == ([0, 1, 3, 4, 6], (0, 1))
    assert {(row.key, row.kind) for row in plan.left_out} >= {("2", "not_listed"), ("5", "small_class")}
    keep.write_text("0\n4\n")
    assert make_plan(rows, protocol(rule="all", keep=keep), ["a", "b", "c"]).labels == (0, 1)
    chosen = protocol(rule="all", keep=keep).identity()
    keep.write_text("4\n0")  # the same images
    assert protocol(rule="all", keep=keep).identity() == chosen != protocol(rule="all").identity()
    keep.write_text("0\nrose.jpg\n")
    with pytest.raises(UserError, match=r"1 of 2 keys are of no image, such as 'rose.jpg'; the first image .* is '0'"):
        make_plan(rows, protocol(rule="all", keep=keep), ["a", "b", "c"])
    keep.unlink()
    with pytest.raises(UserError, match=r"data.split.keep: found no file"):
        protocol(rule="all", keep=keep).identity()


def test_a_subset_is_chosen_by_hashes_before_images_are_divided() -> None:
    rows = [Item(f"{n}", ("file", "x"), label=n % 3) for n in range(400)]

    def chosen(subset: float | None, **rule: Any) -> set[int]:
        plan = make_plan(rows, protocol(subset=subset, **{"rule": "all", **rule}), ["a", "b", "c"])
        assert sum(row.kind == "not_in_subset" for row in plan.left_out) == 400 - sum(map(len, plan.splits.values()))
        return {number for numbers in plan.splits.values() for number in numbers.tolist()}

    assert len(chosen(100)) == 100 and len(chosen(0.05)) == 20
    assert chosen(0.05) < chosen(100) < chosen(None) == set(range(400))  # a smaller one is part of a larger one
    assert chosen(100) == chosen(0.25) == chosen(100, rule="hash", valid=0.5)
    divided = make_plan(rows, protocol(rule="hash", valid=0.5, subset=100), ["a", "b", "c"]).splits
    assert 30 < len(divided["valid"]) < 70  # the two hashes do not follow one another
    assert protocol(rule="all", subset=100).identity() != protocol(rule="all").identity()
    assert "subset" not in protocol(rule="all").identity()["split"]  # whole data sets keep their names
    with pytest.raises(UserError, match=r"data.split.subset: found 500, but there are 400 images"):
        chosen(500)


def test_a_dropped_class_leaves_the_list_of_classes_and_labels_are_counted_without_it(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path / "images", 9, classes=3)
    for path in sorted((root / "class1").iterdir())[1:]:
        path.unlink()
    overrides = [f"data.source.path={root}", "data.image_size=16", "data.split.valid=0", "data.split.min_per_class=2"]
    cfg = config(tmp_path / "data", *overrides)
    prepare(cfg, workers=2)
    train = split_of(cfg)
    assert train.manifest.classes == ["class0", "class2"] and train.manifest.class_counts == [3, 3]
    assert train.index["label"].tolist() == [0, 0, 0, 1, 1, 1]
    verify.run(cfg, workers=1)  # labels beside the images are those of the index
    whole = config(tmp_path / "data", *overrides[:-1])
    prepare(whole)
    assert split_of(whole).manifest.class_counts == [3, 1, 3]
    assert np.array_equal(image_of(train, 5), image_of(split_of(whole), 6))


def test_a_label_beyond_the_classes_is_refused_with_its_key() -> None:
    rows = [Item("a", ("file", "a"), label=0), Item("b", ("file", "b"), label=2)]
    with pytest.raises(UserError, match=r"'b' has label 2, expected 0 to 1"):
        make_plan(rows, protocol(rule="all"), ["cat", "dog"])


def test_the_filtered_flowers_drop_what_they_say(shared: Path, tmp_path: Path) -> None:
    from scipy.io import loadmat

    labels = loadmat(shared / "data" / "imagelabels.mat")["labels"][0].astype(int) - 1
    rows = [Item(f"image_{n:05d}.jpg", ("file", "x"), label=int(label)) for n, label in enumerate(labels, 1)]
    plan = make_plan(rows, config(tmp_path, data="flowers128_filtered").data, [str(n) for n in range(102)])
    assert len(plan.labels) == 60 and sum(map(len, plan.splits.values())) == 6190
    found = make_plan(rows, config(tmp_path, data="flowers64_valid").data, [str(n) for n in range(102)])
    assert {name: len(numbers) for name, numbers in found.splits.items()} == {"train": 7373, "valid": 816}


def test_keys_that_python_hashes_alike_are_two_keys(tmp_path: Path) -> None:
    """Python's hash of text differs between processes: what it rejects one day it may take the next."""

    class Key(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return 1

    rows = [Item(Key(name), ("file", name)) for name in ("a", "b", "a")]
    listing = Listing(rows)
    assert write_items(tmp_path, listing).items == 2
    assert [row.key for row in listing.rejected] == ["a"]


@given(st.data())
def test_a_listing_is_read_back_in_any_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.text(min_size=1, max_size=9), max_size=20, unique=True))
    rows = [Item(key, ("range", "a.tar", n, 5), label=n % 2 or None, meta={"n": n}) for n, key in enumerate(keys)]
    directory: Path = tmp_path_factory.mktemp("listing")
    write_items(directory, Listing(iter(rows), classes=["a", "b"]))
    found = Items(directory)
    assert list(found) == rows and len(found) == len(rows)
    order = data.draw(st.permutations(range(len(rows))))
    assert list(found.take(order)) == [rows[number] for number in order]


def test_the_list_s_hash_does_not_know_where_the_bytes_lie(tmp_path: Path) -> None:
    for name, at in {"a": ("file", "x"), "b": ("range", "y.tar", 512, 9)}.items():
        (tmp_path / name).mkdir()
        listing = Listing([Item("key", at, label=1)])
        (tmp_path / name / "sha").write_text(write_items(tmp_path / name, listing).sha256)
    assert (tmp_path / "a" / "sha").read_text() == (tmp_path / "b" / "sha").read_text()


def test_a_protocol_does_not_know_where_a_known_data_set_lies(tmp_path: Path) -> None:
    """A person's own folder is told apart by its path; CelebA is CelebA, and a tolerance changes no pixel."""
    known = [config(tmp_path, f"data.source.path={place}", data="celeba64_crop140") for place in ("/a", "/b")]
    tolerant = config(tmp_path, "data.max_rejected=0.5", data="celeba64_crop140")
    assert known[0].data.identity() == known[1].data.identity() == tolerant.data.identity()
    other = config(tmp_path, "data.crop.size=138", data="celeba64_crop140")
    assert other.data.identity() != known[0].data.identity()
    own = [config(tmp_path, f"data.source.path={place}") for place in ("/a", "/b")]
    assert own[0].data.identity() != own[1].data.identity()


def test_the_protocols_of_the_field_have_names() -> None:
    promised = {
        "celeba64_crop178_lanczos", "celeba64_crop140", "celeba64_squash", "celeba128", "celeba256",
        "flowers64_all8189", "flowers64_trainval", "flowers128_filtered", "cifar10", "mnist32", "fashion32",
        "lsun_bedroom64", "glyphs16", "glyphs32", "glyphs128_ah", "folder", "webdataset", "hub",
    }  # fmt: skip
    assert promised <= set(groups()["data"])
