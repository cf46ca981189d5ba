"""Random numbers are functions of (seed, stream, number), and they are the published generator's."""

import itertools
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.runtime import random
from pipeline.runtime.random import Stream, chosen, normal, philox, uniform

ROOT = Path(__file__).resolve().parents[2]

# Random123 1.14, tests/kat_vectors, the lines "philox4x32 10": counter, key, expected words.
KNOWN_ANSWERS = [
    "00000000 00000000 00000000 00000000 00000000 00000000   6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff   408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0   d16cfe09 94fdcceb 5001e420 24126ea1",
]
DRAWS = (uniform, normal)


def philox_by_the_paper(counter: list[int], key: list[int]) -> list[int]:
    """Python integers, one counter, straight from the paper: a second way to the same words."""
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            second >> 32 ^ counter[1] ^ key[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ counter[3] ^ key[1],
            first & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_published_known_answers(line):
    words = [int(word, 16) for word in line.split()]
    found = philox(torch.tensor([[words[:4]]]), (words[4], words[5]))
    assert found.flatten().tolist() == words[6:]
    assert found.shape == (1, 1, 4)


word = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), word, word)
def test_every_counter_agrees_with_python_integers(counters, k0, k1):
    found = philox(torch.tensor(counters), (k0, k1)).tolist()
    assert found == [philox_by_the_paper(list(counter), [k0, k1]) for counter in counters]


def test_counter_layout_is_block_number_stream_and_draw():
    seed, number, draw = 2**62 + 12345, 2**40 + 7, 3
    values = uniform(seed, Stream.NOISE, torch.tensor([number]), shape=(8,), draw=draw, dtype=torch.float64)[0]
    for block in (0, 1):
        counter = [block, number & 0xFFFFFFFF, number >> 32, int(Stream.NOISE) + 256 * draw]
        words = philox_by_the_paper(counter, [seed & 0xFFFFFFFF, seed >> 32])
        assert values[4 * block : 4 * block + 4].tolist() == [(word + 0.5) / 2**32 for word in words]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_does_not_know_its_batch(draw, dtype, monkeypatch):
    numbers = torch.arange(40) + 4711
    whole = draw(5, Stream.NOISE, numbers, shape=(3, 5, 7), dtype=dtype)
    for size in (1, 3, 16):
        pieces = [draw(5, Stream.NOISE, part, shape=(3, 5, 7), dtype=dtype) for part in numbers.split(size)]
        assert torch.equal(torch.cat(pieces), whole)
    backwards = draw(5, Stream.NOISE, numbers.flip(0), shape=(3, 5, 7), dtype=dtype)
    assert torch.equal(backwards.flip(0), whole)
    for tile in (1, 5, 27, 64):
        monkeypatch.setattr(random, "_TILE", tile)
        assert torch.equal(draw(5, Stream.NOISE, numbers, shape=(3, 5, 7), dtype=dtype), whole)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_value_does_not_know_the_number_of_threads(draw):
    numbers, threads = torch.arange(9), torch.get_num_threads()
    whole = draw(5, Stream.NOISE, numbers, shape=(3, 64, 63))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(draw(5, Stream.NOISE, numbers, shape=(3, 64, 63)), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_longer_draw_begins_with_the_shorter(draw):
    numbers = torch.arange(5)
    longest = draw(1, Stream.SIGMA, numbers, shape=(21,))
    for length in (1, 2, 4, 7, 20):
        assert torch.equal(draw(1, Stream.SIGMA, numbers, shape=(length,)), longest[:, :length])
    assert torch.equal(draw(1, Stream.SIGMA, numbers), longest[:, 0])
    assert draw(1, Stream.SIGMA, numbers[:0], shape=(3,)).shape == (0, 3)
    assert draw(1, Stream.SIGMA, numbers, shape=(0, 3)).shape == (5, 0, 3)


def test_seed_stream_draw_and_number_all_matter():
    keys = itertools.product((0, 1, 2**32, 2**63 - 1), (Stream.NOISE, Stream.SIGMA), (0, 1, 2**24 - 1))
    numbers = torch.tensor([0, 1, 2**32, 2**33, 2**62])
    values = torch.stack([uniform(s, stream, numbers, draw=d, dtype=torch.float64) for s, stream, d in keys])
    assert values.unique().numel() == values.numel()


def test_streams_keep_their_numbers():
    """Results depend on them: a new one may be added at the end, none may change."""
    first = "ORDER SIGMA NOISE LABEL_DROP FLIP AUGMENT POSTERIOR DROPOUT SAMPLE_START SAMPLE_STEP CLASSES VALIDATION"
    assert [stream.name for stream in sorted(Stream)][:12] == first.split()
    assert [int(stream) for stream in sorted(Stream)] == list(range(len(Stream)))
    assert max(Stream) < 256


def test_uniform_stays_inside_the_open_interval_at_the_extreme_words():
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])
    for dtype in (torch.float32, torch.float64):
        out = torch.empty(1, 4, dtype=dtype)
        random._uniform_words(tuple(words[:, None]), out)
        assert out.min() > 0 and out.max() < 1
        assert torch.allclose(out[0, [0, 3]].sum(), torch.tensor(1.0, dtype=dtype))  # symmetric about 1/2


def test_normal_is_finite_and_bounded_at_the_extreme_words():
    for first, second in itertools.product((0, 1, 2**31, 2**32 - 1), repeat=2):
        words = [torch.tensor([w]) for w in (first, second, second, first)]
        for dtype in (torch.float32, torch.float64):
            out = torch.empty(1, 4, dtype=dtype)
            random._normal_words(tuple(words), out)
            assert out.isfinite().all() and out.abs().max() <= math.sqrt(66 * math.log(2)) + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distribution_across_elements_and_across_numbers(dtype):
    """Kolmogorov-Smirnov at a fixed seed, along a number's elements and along the numbers."""
    for numbers, shape in ((torch.tensor([3]), (200_000,)), (torch.arange(200_000), ())):
        u = uniform(11, Stream.SIGMA, numbers, shape=shape, dtype=dtype).flatten().double().numpy()
        z = normal(11, Stream.NOISE, numbers, shape=shape, dtype=dtype).flatten().double().numpy()
        assert stats.kstest(u, "uniform").pvalue > 0.01
        assert stats.kstest(z, "norm").pvalue > 0.01
        assert abs((z**4).mean() - 3) < 0.1  # the fourth moment sees the tails


def test_neighbouring_numbers_streams_seeds_and_elements_are_uncorrelated():
    numbers = torch.arange(1000)
    z = normal(11, Stream.NOISE, numbers, shape=(64,), dtype=torch.float64)
    others = [
        normal(11, Stream.NOISE, numbers + 1, shape=(64,), dtype=torch.float64),
        normal(12, Stream.NOISE, numbers, shape=(64,), dtype=torch.float64),
        normal(11, Stream.SAMPLE_START, numbers, shape=(64,), dtype=torch.float64),
        normal(11, Stream.NOISE, numbers, shape=(64,), draw=1, dtype=torch.float64),
        z.roll(1, dims=1),
        z.roll(2, dims=1),
    ]
    for other in others:
        for f in (lambda t: t, torch.square):
            a, b = f(z).flatten(), f(other).flatten()
            correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
            assert abs(correlation) < 4.5 / math.sqrt(a.numel())


def test_both_precisions_agree():
    numbers = torch.arange(100)
    for draw, tolerance in ((uniform, 2.0**-23), (normal, 1e-4)):
        low = draw(0, Stream.NOISE, numbers, shape=(50,))
        high = draw(0, Stream.NOISE, numbers, shape=(50,), dtype=torch.float64)
        assert (low.double() - high).abs().max() <= tolerance


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_choices_have_their_share_and_do_not_know_their_batch(share):
    numbers = torch.arange(40)
    whole = chosen(3, Stream.DROPOUT, numbers, share=share, shape=(5, 501))
    assert whole.dtype == torch.bool and whole.shape == (40, 5, 501)
    deviation = math.sqrt(share * (1 - share) / whole.numel())
    assert abs(whole.double().mean() - share) <= 4 * deviation
    parts = [chosen(3, Stream.DROPOUT, part, share=share, shape=(5, 501)) for part in numbers.split(7)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(chosen(3, Stream.DROPOUT, numbers, share=share, shape=(13,)), whole.flatten(1)[:, :13])


def test_neighbouring_choices_are_independent():
    """Of 2**18 pairs of a word's halves, a quarter is both chosen."""
    pairs = chosen(3, Stream.DROPOUT, torch.arange(256), share=0.5, shape=(1024, 2))
    assert abs(pairs.all(dim=-1).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2**18)


def test_a_type_that_would_round_to_one_is_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        uniform(0, Stream.NOISE, torch.arange(3), dtype=torch.bfloat16)


def test_one_graph_for_a_compiler():
    """No graph break, no data-dependent branch: a compiler may fuse it into one kernel. Same bits."""
    numbers = torch.arange(6)

    def step(numbers):
        return normal(3, Stream.NOISE, numbers, shape=(3, 8, 8))

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(numbers), step(numbers))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with CUDA builds of torch: not installed")
def test_kernels_of_a_gpu_in_tritons_interpreter():
    """The same tests as on a GPU, on CPU tensors. A process of its own: Triton reads the variable once."""
    command = [sys.executable, "-m", "pytest", "-rA", ROOT / "tests/gpu/test_kernels.py"]
    found = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True)
    assert found.returncode == 0, found.stdout.decode()
    assert b"test_uniform_values_are_the_same_bits" in found.stdout  # not skipped as a whole
