"""Samples by number: what was written comes back, in any order, and damage has a name."""

import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numbered_shards import SHAPE, label_of, pixels_of, write_latents, write_numbered
from PIL import Image

from pipeline.data.images import decode, encode
from pipeline.data.reader import Reader
from pipeline.data.shards import INDEX, Layout, Sample, finish, open_shards, shard_name, write_shard
from pipeline.runtime.errors import Incomplete

LOSSLESS = ("raw", "png")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
@pytest.mark.parametrize("encoding", LOSSLESS)
def test_what_was_written_comes_back_in_any_order(encoding, data, sizes, tmp_path_factory):
    reader = Reader(write_numbered(tmp_path_factory.mktemp("shards"), sizes, encoding=encoding))
    wanted = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=30))
    found = reader.read(np.array(wanted, dtype=np.int64))
    assert found.shape == (len(wanted), 4, 5, 3) and found.dtype == np.uint8
    for number, pixels in zip(wanted, found, strict=True):
        assert np.array_equal(pixels, pixels_of(number))
    labels = [-1 if label_of(number) is None else label_of(number) for number in wanted]
    assert reader.labels(np.array(wanted, dtype=np.int64)).tolist() == labels


@pytest.mark.parametrize("encoding", [*LOSSLESS, "jpeg"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 4, 5), (1, 16, 16), (3, 17, 33)])
def test_every_encoding_and_shape(encoding, shape, tmp_path):
    reader = Reader(write_numbered(tmp_path, [5, 3], encoding=encoding, shape=shape))
    for number, pixels in enumerate(reader.read(np.arange(8))):
        assert np.array_equal(pixels, decode(encode(pixels_of(number, shape), encoding), encoding, shape))


def test_attributes_follow_their_samples(tmp_path):
    reader = Reader(write_numbered(tmp_path / "with", [3, 4], attributes=True))
    assert reader.attributes(np.array([6, 1, 2])).tolist() == [[0, -1], [1, -1], [0, -1]]
    assert Reader(write_numbered(tmp_path / "without", [3])).attributes(np.array([0])) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_latents_come_back_as_float32(dtype, tmp_path):
    values = np.random.default_rng(0).standard_normal((7, 8, 4, 4)).astype(dtype)
    found = Reader(write_latents(tmp_path, values)).read(np.array([6, 0, 3]))
    assert found.dtype == np.float32
    assert np.array_equal(found, values[[6, 0, 3]].astype(np.float32))


def test_bfloat16_latents_are_the_upper_half_of_a_float32(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)
    upper = values.view(np.uint32) >> 16
    shards = write_latents(tmp_path, upper.astype(np.uint16))
    shards = replace(shards, manifest=replace(shards.manifest, dtype="bfloat16"))
    found = Reader(shards).read(np.arange(3))
    assert np.array_equal(found.view(np.uint32), upper << 16)
    assert np.abs(found - values).max() < 2.0**-6


def test_real_images_from_real_files(shared, tmp_path):
    """Photographs through raw and png shards equal what Pillow reads from the file that was sharded."""
    with tarfile.open(shared / "data/flowers102_64.tar") as archive:
        members = [member for member in archive if member.name.endswith(".jpg")][:40]
        photographs = np.stack([np.asarray(Image.open(archive.extractfile(member))) for member in members])
    for encoding in LOSSLESS:
        layout = Layout(encoding, (3, 64, 64))
        path = tmp_path / encoding
        path.mkdir()
        samples = [Sample(f"{k}", encode(p, encoding), layout.extension) for k, p in enumerate(photographs)]
        records = [write_shard(path / shard_name(n), samples[n::2], layout) for n in range(2)]
        finish(path, records, layout, classes=[], protocol={"name": "f", "hash": "0"}, split="train")
        found = Reader(open_shards(path)).read(np.arange(40))
        assert np.array_equal(found, np.concatenate([photographs[0::2], photographs[1::2]]))


def test_threads_read_at_once(tmp_path):
    reader = Reader(write_numbered(tmp_path, [5] * 8, encoding="png"))
    orders = [np.random.default_rng(k).permutation(40) for k in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(reader.read, orders), strict=True):
            assert all(np.array_equal(found[k], pixels_of(number)) for k, number in enumerate(order))


def damaged(path: Path, *, at: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_any_damaged_byte_gives_an_image_or_a_name(encoding, place, value, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    shards = write_numbered(path, [2, 3], encoding=encoding)
    row = shards.index[3]
    damaged(path / "000001.tar", at=int(row["offset"] + place * row["size"]), value=value)
    reader = Reader(open_shards(path))
    message = None
    try:
        found = reader.read(np.array([3]))
    except Incomplete as error:
        message = str(error)
    if message is None:
        assert found.shape == (1, 4, 5, 3)
    else:
        assert "000001.tar, sample 'image00003." in message and "manifest.json" in message
    assert len(reader.read(np.array([0, 1, 2, 4]))) == 4  # the others are not touched by it


@pytest.mark.parametrize("encoding", [*LOSSLESS, "jpeg"])
def test_a_shard_cut_while_training_reads_it_is_named(encoding, tmp_path):
    """A memory map would kill the process with SIGBUS here."""
    shards = write_numbered(tmp_path, [3], encoding=encoding)
    reader = Reader(shards)
    os.truncate(tmp_path / "000000.tar", int(shards.index[2]["offset"]) + 7)
    assert len(reader.read(np.array([0, 1]))) == 2
    with pytest.raises(Incomplete, match=r"000000.tar, sample 'image00002\.\w+': its shard ends \d+ bytes early"):
        reader.read(np.array([0, 2]))


def test_a_record_of_another_size_is_named(tmp_path):
    shards = write_numbered(tmp_path, [3])
    index = np.array(shards.index)
    index["size"][1] += 1
    reader = Reader(replace(shards, index=index))
    with pytest.raises(Incomplete, match=r"'image00001\.npy': its record has 61 bytes, expected 60"):
        reader.read(np.arange(3))


def test_too_many_shards_for_the_process(tmp_path):
    """A real process with a real limit."""
    write_numbered(tmp_path, [1] * 40)
    program = (
        "import resource, sys, numpy, pathlib\n"
        "from pipeline.data.reader import Reader\n"
        "from pipeline.data.shards import open_shards\n"
        "reader = Reader(open_shards(pathlib.Path(sys.argv[1])))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        "reader.read(numpy.arange(40))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "UserError" in done.stderr and "the directory has 40 shards" in done.stderr and "ulimit" in done.stderr


def test_files_are_closed_with_the_reader(tmp_path):
    shards = write_numbered(tmp_path, [1] * 5)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    reader = Reader(shards)
    reader.read(np.arange(5))
    assert len(os.listdir("/proc/self/fd")) == before + 5  # noqa: PTH208
    del reader
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_opening_a_large_set_keeps_nothing(tmp_path):
    """1.3 M samples: the index stays on the disk; a batch in the middle reads what it needs of it."""
    count = 1_300_000
    small = write_numbered(tmp_path, [100])
    index = np.zeros(count, dtype=INDEX)
    index[:] = np.resize(np.array(small.index), count)
    np.save(tmp_path / "index.npy", index)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "count": count}))
    del index, small
    tracemalloc.start()
    try:
        reader = Reader(open_shards(tmp_path))
        found = reader.read(np.arange(700_000, 700_256))
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
    assert np.array_equal(found[5], pixels_of(5))
    assert reader.count == count


@pytest.mark.parametrize("encoding", ["png", "jpeg", "raw"])
def test_decoded_images_stay_in_memory_where_all_of_them_fit(encoding, tmp_path):
    """Read by several threads at once, in part, then again after the files are gone: the same pixels."""
    shards = write_numbered(tmp_path / encoding, [40, 30], encoding=encoding)
    expected = Reader(shards).read(np.arange(70))
    size = expected.nbytes
    orders = [np.random.default_rng(k).permutation(70)[:50] for k in range(8)]
    for keep, kept in ((size, encoding != "raw"), (size - 1, False)):
        reader = Reader(shards, keep_bytes=keep)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(reader.read, [*orders, np.arange(70)]))
        assert all(np.array_equal(a, expected[order]) for a, order in zip(found, orders, strict=False))
        reader.close()
        for path in (tmp_path / encoding).glob("*.tar"):
            path.rename(path.with_suffix(".gone"))
        if kept:
            assert np.array_equal(reader.read(np.arange(70)[::-1]), expected[::-1])
        else:
            with pytest.raises(FileNotFoundError):
                reader.read(np.arange(70))
        for path in (tmp_path / encoding).glob("*.gone"):
            path.rename(path.with_suffix(".tar"))
