"""The shard format: whatever is written is read back, by us and by others, and damage is found."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.images import encode
from pipeline.data.shards import (
    INDEX,
    Layout,
    Manifest,
    Sample,
    finish,
    open_shards,
    read_record,
    records_of,
    shard_name,
    verify_shards,
    write_shard,
)
from pipeline.runtime.errors import Incomplete

KEYS = st.text(st.characters(exclude_characters="./\\\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[Layout, list[list[Sample]], int]:
    """Layout, the samples of each shard, and the number of attributes."""
    shape = draw(st.tuples(st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6)))
    layout = Layout(draw(st.sampled_from(["raw", "png", "jpeg"])), shape)
    width = draw(st.integers(0, 3))
    shards = []
    for _ in range(draw(st.integers(1, 3))):
        samples = []
        for key in draw(st.lists(KEYS, max_size=4, unique=True)):
            seed = draw(st.integers(0, 2**32 - 1))
            pixels = np.random.default_rng(seed).integers(0, 256, layout.array_shape, dtype=np.uint8)
            label = draw(st.none() | st.integers(0, 4))
            attributes = tuple(draw(st.lists(st.integers(-1, 1), min_size=width, max_size=width)))
            meta = draw(st.dictionaries(st.sampled_from(["source", "font", "caption"]), st.text(max_size=9)))
            samples.append(Sample(key, encode(pixels, layout.encoding), layout.extension, label, meta, attributes))
        shards.append(samples)
    return layout, shards, width


def write(directory: Path, layout: Layout, shards: list[list[Sample]], attributes: int = 0) -> Manifest:
    records = [write_shard(directory / shard_name(n), samples, layout) for n, samples in enumerate(shards)]
    names = [f"a{number}" for number in range(attributes)]
    protocol = {"name": "any", "hash": "0"}
    return finish(
        directory, records[::-1], layout, classes=list("abcde"), protocol=protocol, split="train", attributes=names
    )


def some_images(count: int, encoding: str = "png", size: int = 8, seed: int = 0) -> tuple[Layout, list[Sample]]:
    layout = Layout(encoding, (3, size, size))
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return layout, [
        Sample(f"{k:08d}", encode(p, encoding), layout.extension, k % 5, {"source": f"f/{k}"})
        for k, p in enumerate(pixels)
    ]


@settings(max_examples=25, deadline=None)
@given(data_sets())
def test_whatever_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, made: tuple) -> None:
    layout, shards, width = made
    directory = tmp_path_factory.mktemp("shards")
    manifest = write(directory, layout, shards, width)
    opened = verify_shards(directory)
    samples = [sample for shard in shards for sample in shard]
    assert opened.manifest == manifest and opened.index.dtype == INDEX and len(opened.index) == len(samples)
    values = []
    for row, sample in zip(opened.index, samples, strict=True):
        content = opened.shard_path(int(row["shard"])).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert content == sample.data
        values.append(layout.decode(content))
        assert row["label"] == (-1 if sample.label is None else sample.label)
    if width:
        assert np.array_equal(opened.attributes, [sample.attributes for sample in samples] or np.zeros((0, width)))
    counts = [sum(sample.label == label for sample in samples) for label in range(5)]
    assert manifest.class_counts == counts
    if values:
        exact = np.stack(values).astype(np.float64) / 127.5 - 1
        np.testing.assert_allclose(manifest.mean, exact.mean(axis=(0, 1, 2)), atol=1e-12)
        np.testing.assert_allclose(manifest.std, exact.std(axis=(0, 1, 2)), atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(data_sets())
def test_tarfile_reads_every_member_with_fixed_metadata(tmp_path_factory: pytest.TempPathFactory, made: tuple) -> None:
    layout, shards, _ = made
    directory = tmp_path_factory.mktemp("shards")
    write_shard(directory / "000000.tar", shards[0], layout)
    with tarfile.open(directory / "000000.tar", "r:") as archive:
        members = archive.getmembers()
        for sample, image, text in zip(shards[0], members[::2], members[1::2], strict=True):
            assert image.name == f"{sample.key}.{layout.extension}" and text.name == f"{sample.key}.json"
            facts = (image.mode, image.mtime, image.uid, image.gid, image.uname, image.type)
            assert facts == (0o644, 0, 0, 0, "", tarfile.REGTYPE)
            inside = archive.extractfile(image).read()
            value = np.load(io.BytesIO(inside)) if layout.extension == "npy" else layout.decode(inside)
            assert np.array_equal(value, layout.decode(sample.data))
            assert json.loads(archive.extractfile(text).read())["label"] == sample.label


def test_the_bytes_are_those_that_tarfile_would_write(tmp_path: Path) -> None:
    layout, samples = some_images(3)
    write_shard(tmp_path / "ours.tar", samples, layout)
    ustar = tarfile.USTAR_FORMAT
    with (
        tarfile.open(tmp_path / "theirs.tar", "w", format=ustar) as archive,
        tarfile.open(tmp_path / "ours.tar") as ours,
    ):
        for member in ours:
            archive.addfile(member, ours.extractfile(member))
    theirs = (tmp_path / "theirs.tar").read_bytes()  # tarfile pads the end to 10 KiB
    ours_bytes = (tmp_path / "ours.tar").read_bytes()
    assert theirs.startswith(ours_bytes) and not any(theirs[len(ours_bytes) :])


@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
def test_webdataset_opens_the_tars(tmp_path: Path, encoding: str) -> None:
    layout, samples = some_images(7, encoding)
    manifest = write(tmp_path, layout, [samples[:4], samples[4:]])
    urls = [str(tmp_path / shard["name"]) for shard in manifest.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in samples]
    for theirs, ours in zip(read, samples, strict=True):
        assert np.array_equal(theirs[layout.extension], layout.decode(ours.data))
        assert theirs["json"] == {"label": ours.label, "source": ours.meta["source"]}


def test_datasets_opens_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    layout, samples = some_images(5)
    write(tmp_path / "shards", layout, [samples])
    files = str(tmp_path / "shards" / "*.tar")
    rows = list(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert [row["json"]["label"] for row in rows] == [sample.label for sample in samples]
    assert all(
        np.array_equal(np.asarray(row["png"]), layout.decode(sample.data))
        for row, sample in zip(rows, samples, strict=True)
    )


def test_latents_of_sixteen_bits_are_read_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 8, 2, 2)).astype(np.float32)
    for dtype, stored in {"float16": values.astype("<f2"), "float32": values}.items():
        layout = Layout("latent", (8, 2, 2), dtype)
        samples = [Sample(f"{k}", stored[k].tobytes(), "npy") for k in range(4)]
        manifest = write(tmp_path / dtype, layout, [samples])
        assert manifest.kind == "latents" and manifest.dtype == dtype
        np.testing.assert_allclose(manifest.mean, stored.astype(float).mean(axis=(0, 2, 3)), atol=1e-12)
    halves = (values.view("<u4") >> 16).astype("<u2")
    decoded = Layout("latent", (8, 2, 2), "bfloat16").decode(halves[0].tobytes())
    assert np.abs(decoded - values[0]).max() <= np.abs(values[0]).max() / 128


def test_equal_samples_give_equal_bytes_in_any_order_of_records(tmp_path: Path) -> None:
    layout, samples = some_images(9)
    for name in ("a", "b"):
        write(tmp_path / name, layout, [samples[:4], samples[4:8], samples[8:]])
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert len(list((tmp_path / "a").iterdir())) == 3 + 2  # no records are left


def test_an_interrupted_writer_finds_its_finished_shards(tmp_path: Path) -> None:
    layout, samples = some_images(4)
    path = tmp_path / shard_name(0)
    assert read_record(path) is None
    record = write_shard(path, samples, layout, notes=[{"key": "x", "kind": "empty", "reason": "no bytes"}])
    assert read_record(path) == record
    os.truncate(path, record.bytes - 1)
    assert read_record(path) is None


@pytest.mark.parametrize("key", ["a.b", "", "x" * 81, "twice"])
def test_a_key_that_would_mix_samples_is_refused(tmp_path: Path, key: str) -> None:
    layout, samples = some_images(1)
    other = Sample(key, samples[0].data, "png")
    with pytest.raises(ValueError, match="keys are unique"):
        write_shard(tmp_path / "000000.tar", [Sample("twice", samples[0].data, "png"), other], layout)
    assert not list(tmp_path.iterdir())


def test_an_empty_shard_is_left_out(tmp_path: Path) -> None:
    layout, samples = some_images(3)
    manifest = write(tmp_path, layout, [samples[:1], [], samples[1:]])
    assert [shard["name"] for shard in manifest.shards] == ["000000.tar", "000002.tar"]
    assert open_shards(tmp_path).index["shard"].tolist() == [0, 1, 1]
    assert not (tmp_path / "000001.tar").exists()


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    layout, samples = some_images(4)
    with pytest.raises(Incomplete, match=r"not a finished shard directory: manifest\.json is missing"):
        open_shards(tmp_path)
    write(tmp_path, layout, [samples[:2], samples[2:]])
    path = tmp_path / shard_name(1)
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    open_shards(tmp_path)  # sizes are right: opening is quick and does not notice
    with pytest.raises(Incomplete, match=r"000001\.tar has sha256"):
        verify_shards(tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(Incomplete, match=r"000001\.tar has \d+ bytes, the manifest says"):
        open_shards(tmp_path)
    path.unlink()
    with pytest.raises(Incomplete, match=r"000001\.tar is missing"):
        open_shards(tmp_path)


@pytest.mark.parametrize("width", [0, 2])
def test_the_records_of_a_finished_directory_are_those_of_its_writers(tmp_path, width):
    layout, generator, written = Layout("raw", (3, 2, 2)), np.random.default_rng(0), []
    for number, count in enumerate((3, 0, 20, 1)):
        samples = [
            Sample(f"{number}-{k}", generator.bytes(12), "npy", label=k % 5, attributes=(k % 2, -1)[:width])
            for k in range(count)
        ]
        written.append(write_shard(tmp_path / shard_name(number), samples, layout))
    names = ["a", "b"][:width]
    finish(tmp_path, written, layout, classes=list("abcde"), protocol={}, split="train", attributes=names)
    assert records_of(tmp_path) == [record for record in written if record.count]
