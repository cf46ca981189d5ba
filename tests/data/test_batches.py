"""A run does not know its hardware: what a step sees is the same for any ranks, micro-batches and threads."""

import itertools
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numbered_shards import label_of, pixels_of, write_latents, write_numbered

from pipeline.config.schema import AugmentConfig
from pipeline.data.batches import LoadedBatch, _ahead, batches, validation_batches
from pipeline.data.reader import Reader
from pipeline.runtime.errors import Incomplete, UserError

JITTER = AugmentConfig(brightness=0.3, contrast=0.3, hue=0.1, sharpness=2.0)


def steps_of(reader: Reader, steps: int, **settings) -> list[list[LoadedBatch]]:
    """The first steps of one rank; the threads are stopped."""
    settings = {"seed": 3, "start_step": 0, "rank": 0, "world_size": 1, **settings}
    stream = batches(reader, **settings)
    result = list(itertools.islice(stream, steps))
    stream.close()
    return result


@dataclass
class Seen:
    """What training sees at some sample indices, and which images they show."""

    images: torch.Tensor
    labels: torch.Tensor
    attributes: torch.Tensor | None
    sample_indices: torch.Tensor
    indices: torch.Tensor


def joined(parts: list[LoadedBatch | Seen]) -> Seen:
    """Batches one after another as a single one."""
    rows = []
    for part in parts:
        its = part if isinstance(part, Seen) else part.to("cpu")
        rows.append((its.images, its.labels, its.attributes, its.sample_indices, part.indices))
    return Seen(*(None if column[0] is None else torch.cat(column) for column in zip(*rows, strict=True)))


def of_all_ranks(reader: Reader, steps: int, *, world_size: int, **settings) -> list[Seen]:
    """The global batch of each step, put together from all ranks."""
    ranks = [steps_of(reader, steps, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    return [joined([part for rank in step for part in rank]) for step in zip(*ranks, strict=True)]


def same(first: Seen, second: Seen) -> bool:
    fields = ("images", "labels", "sample_indices", "indices")
    return all(torch.equal(getattr(first, field), getattr(second, field)) for field in fields)


@st.composite
def layouts(draw):
    sizes = draw(st.lists(st.integers(0, 8), min_size=1, max_size=4).filter(any))
    ranks, micro, parts = draw(st.tuples(*[st.integers(1, 4)] * 3))
    return sizes, ranks, micro, parts, draw(st.integers(0, 3)), draw(st.integers(0, 12))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts())
def test_each_sample_exactly_once_per_epoch_and_any_start_equals_the_tail(tmp_path_factory, layout):
    sizes, ranks, micro, parts, workers, start = layout
    count, batch = sum(sizes), ranks * micro * parts
    reader = Reader(write_numbered(tmp_path_factory.mktemp("shards"), sizes))
    steps = -(-3 * count // batch) + 1
    found = of_all_ranks(
        reader, steps, world_size=ranks, global_batch=batch, micro_batch=micro, workers=workers, flip=True
    )
    everything = joined(found)
    assert torch.equal(everything.sample_indices, torch.arange(steps * batch))
    for epoch in everything.indices.split(count)[: steps * batch // count]:
        assert torch.equal(epoch.sort().values, torch.arange(count))
    for image, label, number in zip(everything.images, everything.labels, everything.indices.tolist(), strict=True):
        pixels = torch.from_numpy(pixels_of(number)).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(image, pixels, atol=1e-6) or torch.allclose(image, pixels.flip(-1), atol=1e-6)
        assert label == (-1 if label_of(number) is None else label_of(number))
    tail = of_all_ranks(reader, 2, world_size=1, start_step=start, global_batch=batch, micro_batch=batch, flip=True)
    whole = of_all_ranks(reader, start + 2, world_size=1, global_batch=batch, micro_batch=batch, flip=True)
    assert all(same(a, b) for a, b in zip(tail, whole[start:], strict=True))


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_one_two_and_four_ranks_see_the_same(encoding, tmp_path):
    """Images bit by bit, with mirroring and jitter, whatever the micro-batch and the threads."""
    reader = Reader(write_numbered(tmp_path, [13, 20, 4], encoding=encoding, attributes=True))
    usual = {"global_batch": 24, "flip": True, "augmentation": JITTER}
    reference = of_all_ranks(reader, 5, world_size=1, micro_batch=24, **usual)
    for world_size, micro, workers in [(1, 6, 1), (2, 12, 0), (2, 4, 3), (4, 6, 1), (4, 1, 2), (3, 8, 2)]:
        found = of_all_ranks(reader, 5, world_size=world_size, micro_batch=micro, workers=workers, **usual)
        assert all(same(a, b) for a, b in zip(found, reference, strict=True))
        assert torch.equal(joined(found).attributes, joined(reference).attributes)
    assert torch.equal(joined(reference).attributes[:, 0], (joined(reference).indices % 2).to(torch.int8))


def test_the_number_of_ranks_may_change_at_every_step(tmp_path):
    reader = Reader(write_numbered(tmp_path, [17]))
    reference = of_all_ranks(reader, 6, world_size=1, global_batch=12, micro_batch=12, flip=True)
    for step, world_size in enumerate((1, 4, 2, 3, 6, 12)):
        part = of_all_ranks(
            reader, 1, start_step=step, world_size=world_size, global_batch=12, micro_batch=1, flip=True
        )
        assert same(part[0], reference[step])


def test_mirroring_belongs_to_the_sample_index(tmp_path):
    reader = Reader(write_numbered(tmp_path, [8]))
    plain = joined(of_all_ranks(reader, 50, world_size=1, global_batch=8, micro_batch=8))
    mixed = joined(of_all_ranks(reader, 50, world_size=1, global_batch=8, micro_batch=8, flip=True))
    mirrored = (mixed.images != plain.images).flatten(1).any(dim=1)
    assert torch.equal(mixed.images[mirrored], plain.images[mirrored].flip(-1))
    assert 150 < mirrored.sum() < 250  # of 400; four standard deviations are 40
    for number in range(8):  # not of the sample: each one is met both ways
        assert 0 < mirrored[plain.indices == number].sum() < 50


def test_pixels_span_minus_one_to_one_exactly(tmp_path):
    reader = Reader(write_numbered(tmp_path, [200]))
    batch = joined(of_all_ranks(reader, 1, world_size=1, global_batch=200, micro_batch=200))
    assert batch.images.min() == -1 and batch.images.max() == 1
    assert batch.images.dtype == torch.float32 and batch.images.is_contiguous()
    pixels = np.stack([pixels_of(number) for number in batch.indices.tolist()])
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), (pixels - np.float32(127.5)) / np.float32(127.5))
    assert torch.equal((batch.images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1), torch.tensor(pixels))


def test_stored_mirror_images_of_latents_are_used(tmp_path):
    values = np.random.default_rng(0).standard_normal((9, 8, 2, 2)).astype(np.float16)  # plain, mirrored along C
    both = Reader(write_latents(tmp_path / "both", values, mirrored=True))
    batch = joined(of_all_ranks(both, 30, world_size=1, global_batch=9, micro_batch=9, flip=True))
    halves = torch.from_numpy(values).float()[batch.indices].split(4, dim=1)
    is_plain = (batch.images == halves[0]).flatten(1).all(dim=1)
    is_mirror = (batch.images == halves[1]).flatten(1).all(dim=1)
    assert torch.equal(is_plain, ~is_mirror) and 90 < is_plain.sum() < 180
    unflipped = joined(of_all_ranks(both, 1, world_size=1, global_batch=9, micro_batch=9))
    assert torch.equal(unflipped.images, torch.from_numpy(values).float()[unflipped.indices][:, :4])
    single = Reader(write_latents(tmp_path / "single", values))
    whole = joined(of_all_ranks(single, 1, world_size=1, global_batch=9, micro_batch=9))
    assert torch.equal(whole.images, torch.from_numpy(values).float()[whole.indices])
    with pytest.raises(UserError, match=r"train\.flip.*unmirrored"):
        batches(single, seed=0, start_step=0, global_batch=9, rank=0, world_size=1, micro_batch=9, flip=True)
    with pytest.raises(UserError, match=r"train\.augmentation.*latents"):
        batches(both, seed=0, start_step=0, global_batch=9, rank=0, world_size=1, micro_batch=9, augmentation=JITTER)


def test_a_batch_that_does_not_divide_names_what_would(tmp_path):
    reader = Reader(write_numbered(tmp_path, [4]))
    usual = {"seed": 0, "start_step": 0, "rank": 0}
    with pytest.raises(UserError, match=r"global_batch: found 100 on 3 ranks.*99 or 102.*\[1, 2, 4, 5, 10, 20"):
        batches(reader, global_batch=100, world_size=3, micro_batch=1, **usual)
    with pytest.raises(UserError, match=r"found 2 on 3 ranks.*batch of 3, or"):
        batches(reader, global_batch=2, world_size=3, micro_batch=1, **usual)
    with pytest.raises(UserError, match=r"micro_batch: found 8.*50 images.*\[1, 2, 5, 10, 25, 50\]"):
        batches(reader, global_batch=100, world_size=2, micro_batch=8, **usual)


def test_nothing_to_train_on_is_said(tmp_path):
    reader = Reader(write_numbered(tmp_path, []))
    with pytest.raises(UserError, match="no samples"):
        batches(reader, seed=0, start_step=0, global_batch=1, rank=0, world_size=1, micro_batch=1)


def test_threads_stop_with_the_iterator(tmp_path):
    reader = Reader(write_numbered(tmp_path, [4]))
    before = threading.active_count()
    stream = batches(reader, seed=0, start_step=0, global_batch=4, rank=0, world_size=1, micro_batch=2, workers=3)
    next(stream)
    assert threading.active_count() > before
    del stream
    assert threading.active_count() == before


def test_damage_met_by_a_thread_reaches_the_training(tmp_path):
    shards = write_numbered(tmp_path, [4])
    reader = Reader(shards)
    with (tmp_path / "000000.tar").open("r+b") as file:
        file.truncate(int(shards.index[3]["offset"]))
    stream = batches(reader, seed=0, start_step=0, global_batch=1, rank=0, world_size=1, micro_batch=1, workers=2)
    with pytest.raises(Incomplete, match=r"sample 'image00003\.npy'"):
        list(itertools.islice(stream, 4))


def test_threads_read_ahead_in_order_and_not_without_limit():
    """Nobody asks for a second item, yet two jobs a thread are done beside the first; then the threads wait."""
    done: list[int] = []
    stream = _ahead(lambda job: done.append(job) or job, iter(range(1000)), workers=3)
    assert next(stream) == 0
    deadline = time.monotonic() + 600
    while len(done) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(done) == list(range(7))
    assert list(stream) == list(range(1, 1000))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_validation_is_one_fixed_pass_spread_over_the_data(world_size, tmp_path):
    reader = Reader(write_numbered(tmp_path, [10, 20]))
    parts = [
        joined(list(validation_batches(reader, count=12, rank=rank, world_size=world_size, batch=3)))
        for rank in range(world_size)
    ]
    found = joined(parts)
    assert found.sample_indices.tolist() == list(range(12))
    assert found.indices.tolist() == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    assert max(len(p.sample_indices) for p in parts) - min(len(p.sample_indices) for p in parts) <= 1
    pixels = np.stack([pixels_of(number) for number in found.indices.tolist()])
    assert np.allclose(found.images.permute(0, 2, 3, 1), pixels / 127.5 - 1, atol=1e-6)


def test_a_batch_moves_whole(tmp_path):
    reader = Reader(write_numbered(tmp_path, [4], attributes=True))
    batch = next(validation_batches(reader, count=4)).to("cpu", torch.float64)
    assert batch.images.dtype == torch.float64
    assert (batch.labels.dtype, batch.attributes.dtype, batch.sample_indices.dtype) == (
        torch.int64,
        torch.int8,
        torch.int64,
    )
