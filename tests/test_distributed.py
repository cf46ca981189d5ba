"""What a run computes does not depend on how many processes computed it."""

import os
import signal
import sys
import time

import pytest
import tiny
from safetensors.torch import load_file

from pipeline.runtime.run_dir import RunDir
from pipeline.train import graphs, loop, setup
from pipeline.train.evaluation import PREVIEW_IMAGES, preview_part

STEPS = 12


def largest_difference(one: RunDir, other: RunDir, *, step: int = STEPS) -> float:
    """Over all tensors of the last checkpoints: weights, EMAs, moments."""
    worst = 0.0
    for path in sorted(one.checkpoint(step).glob("*.safetensors")):
        a, b = load_file(path), load_file(other.checkpoint(step) / path.name)
        assert a.keys() == b.keys()
        worst = max([worst, *((a[k].double() - b[k].double()).abs().max().item() for k in a)])
    return worst


@pytest.fixture
def single(tmp_path):
    def make(**train):
        cfg = tiny.config(tmp_path, name="single", **train)
        tiny.prepare(cfg)
        return tiny.run(cfg)

    return make


@pytest.mark.parametrize("world_size", [2, 4])
def test_float64_weights_are_those_of_one_process(tmp_path, single, world_size):
    expected = single(precision="fp64")
    found = tiny.run(tiny.config(tmp_path, name="several", precision="fp64", workers=2), world_size=world_size)
    assert largest_difference(expected, found) < 1e-9


def test_the_balance_of_losses_is_learned_by_all_ranks(tmp_path):
    """It is trained along with the network but called outside of it, where a DDP wrapper sees only its gradients."""

    def balanced(name):
        return tiny.revalidated(
            tiny.config(tmp_path, name=name, precision="fp64"), diffusion={"learned_uncertainty": True}
        )

    tiny.prepare(balanced("one"))
    one, several = tiny.run(balanced("one")), tiny.run(balanced("several"), world_size=2)
    assert largest_difference(one, several) < 1e-9
    assert load_file(one.checkpoint(STEPS) / "network.denoiser.safetensors")["balance.head.weight"].abs().max() > 0


def test_float32_losses_are_those_of_one_process(tmp_path, single):
    expected = tiny.history(single(log_every="1 steps"))
    found = tiny.history(tiny.run(tiny.config(tmp_path, name="several", log_every="1 steps"), world_size=2))
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


def unhurried(cfg, rank):
    """A step takes long enough for a busy test to notice it."""
    del rank
    step = loop.launch_step

    def launch_step(*args, **kwargs):
        time.sleep(0.1)
        return step(*args, **kwargs)

    loop.launch_step = launch_step
    return cfg


def test_number_of_ranks_may_change_at_every_restart(tmp_path, single):
    steps = 40  # a start takes about five before it has heard the signal and stopped
    train = {
        "precision": "fp64",
        "duration": f"{steps} steps",
        "checkpoint_every": "1000 steps",
        "log_every": "1 steps",
    }
    expected, cfg = single(**train), tiny.config(tmp_path, name="elastic", **train)
    run = RunDir(cfg.runs_dir / cfg.name)
    for world_size in (4, 1, 2):
        before = run.latest_step() or 0
        ranks = tiny.start(cfg, world_size=world_size, change=unhurried)
        while all(r.is_alive() for r in ranks) and max([0, *(row["step"] for row in tiny.history(run))]) <= before:
            time.sleep(0.002)
        os.kill(ranks[-1].pid, signal.SIGUSR2)  # one rank alone is told: all agree
        for r in ranks:
            r.join()
        assert len({r.exitcode for r in ranks}) == 1
    assert largest_difference(expected, tiny.run(cfg, world_size=2), step=steps) < 1e-9


def test_fewer_validation_images_than_ranks(tmp_path, single):
    often = {"precision": "fp64", "validate_every": "4 steps", "validate_images": 2}
    expected = [row for row in tiny.history(single(**often)) if "valid/loss" in row]
    run = tiny.run(tiny.config(tmp_path, name="several", **often), world_size=4)
    found = [row for row in tiny.history(run) if "valid/loss" in row]
    assert [row["valid/loss"] for row in found] == pytest.approx([row["valid/loss"] for row in expected], rel=1e-9)


@pytest.mark.parametrize("size", [1, 3, 64, 65, 200])
def test_previews_are_shared_by_any_number_of_ranks(size):
    """Every image is somebody's, and nobody computes an empty batch."""
    parts = [range(PREVIEW_IMAGES)[preview_part(rank, size)] for rank in range(size)]
    assert all(parts)
    assert sorted(n for part in parts[:PREVIEW_IMAGES] for n in part) == list(range(PREVIEW_IMAGES))


def test_dropout_masks_belong_to_images(tmp_path):
    model = {**tiny.UNET, "dropout": 0.3}
    one = tiny.config(tmp_path, name="one", model=model, precision="fp64")
    several = tiny.config(tmp_path, name="several", model=model, precision="fp64", micro_batch=2)
    tiny.prepare(one)
    assert largest_difference(tiny.run(one), tiny.run(several, world_size=2)) < 1e-9


def test_accumulation_and_read_ahead_change_nothing(tmp_path, single):
    expected = single(precision="fp64")
    cfg = tiny.config(tmp_path, name="small_batches", precision="fp64", micro_batch=2, workers=3)
    assert largest_difference(expected, tiny.run(cfg, world_size=2)) < 1e-9


class PlayedAgain:
    """Stands for a CUDA graph where there is no GPU: a replay computes again, and leaves results in the same places."""

    def __init__(self, work, forget):
        self.work, self.forget, self.parameters = work, forget, work.__self__._parameters
        self.asked = [p.requires_grad for p in self.parameters]
        self.sums = work()
        self.gradients = [p.grad for p in self.parameters]

    def pool(self):
        """Its memory: there is none to share."""

    def replay(self):
        self.forget()
        for parameter, asked in zip(self.parameters, self.asked, strict=True):
            parameter.requires_grad_(asked)
        for name, value in self.work().items():
            self.sums[name].copy_(value)
        for parameter, place in zip(self.parameters, self.gradients, strict=True):
            if place is not None:
                place.copy_(parameter.grad)


def graphed(cfg, rank):
    del rank

    def recorded(work, *, after_warm_up, pool):
        del pool
        graph = PlayedAgain(work, after_warm_up)
        return graph, graph.sums

    setup.uses_graph = lambda cfg, device: True  # noqa: ARG005
    graphs.recorded = recorded
    return cfg


@pytest.mark.parametrize(
    ("model", "micro_batch"),
    [(tiny.UNET, 2), (tiny.GAME, 4), (tiny.AUTOENCODER, 2)],
    ids=["denoiser", "game", "autoencoder"],
)
def test_a_graphs_gradients_are_accumulated_and_averaged_over_ranks(tmp_path, model, micro_batch):
    """No network in it has a DDP wrapper. Each way that a loss goes has a graph of its own: a game has penalties in
    some steps alone, an autoencoder's discriminator joins in the middle of one. Real graphs: tests/gpu.
    """
    one = tiny.config(tmp_path, name="one", model=model, precision="fp64")
    cfg = tiny.config(tmp_path, name="graph", model=model, precision="fp64", micro_batch=micro_batch)
    tiny.prepare(one)
    assert largest_difference(tiny.run(one), tiny.run(cfg, world_size=2, change=graphed)) < 1e-9


@pytest.mark.parametrize(
    ("model", "world_size"),
    [(tiny.GAME, 4), (tiny.AUTOENCODER, 2), (tiny.VAE, 2)],
    ids=["game", "autoencoder", "vae"],
)
def test_other_objectives_on_several_ranks(tmp_path, model, world_size):
    """The game's discriminator sees how images of a group differ: groups follow image numbers, not ranks. What is
    compared has augmentation's p, the mean path length and the average style in it. An autoencoder's discriminator
    counts as much as each image's own gradients say."""
    one = tiny.config(tmp_path, name="one", model=model, precision="fp64")
    several = tiny.config(tmp_path, name="several", model=model, precision="fp64", micro_batch=2)
    tiny.prepare(one)
    assert largest_difference(tiny.run(one), tiny.run(several, world_size=world_size)) < 1e-9


def unwilling(cfg, rank):
    """No thread is given the interpreter before the main thread waits for something: as on a calm machine, but more."""
    del rank
    sys.setswitchinterval(1000)
    return cfg


def end(root, number):
    tiny.run(tiny.config(root, name=f"end{number}", duration="1 steps"), world_size=2, change=unwilling)


def test_ranks_end_cleanly(tmp_path):
    """Every run of these tests ends as an interpreter does, and its exit code is looked at; here it is provoked."""
    tiny.prepare(tiny.config(tmp_path))
    for number in range(2):
        end(tmp_path, number)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_hundred_clean_ends(tmp_path):
    tiny.prepare(tiny.config(tmp_path))
    for number in range(100):
        end(tmp_path, number)
