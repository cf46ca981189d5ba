"""A training step, sampling, decoding and features never ask the device for a value.

Proven without a GPU: on torch's `meta` device there are no values, so whatever reads one (`item`, `cpu`, `bool`, a
comparison in an `if`) or mixes devices raises.
"""

import contextlib
import copy
import itertools
from types import SimpleNamespace

import pytest
import tiny
import torch
from copies import copied_again
from kinds import PROCESSES, SAMPLERS

from pipeline import visualize
from pipeline.config.paths import training_shards
from pipeline.config.schema_diffusion import DiffusionConfig, SamplerConfig
from pipeline.data.batches import batches, validation_batches
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.metrics.domain import LABELS, DomainClassifier, Shape
from pipeline.metrics.resize import resize
from pipeline.models.build import build_network
from pipeline.objectives.build import build_objective
from pipeline.runtime.random import Stream, normal
from pipeline.train.loop import launch_step
from pipeline.train.optim import build_optimizer
from pipeline.train.setup import Session
from pipeline.train.state import LossScale, State

META = torch.device("meta")
DIT = {"kind": "dit", "condition": "class", "width": 16, "depth": 2, "heads": 2, "patch": 2, "dropout": 0.1}
SIMPLE = {"kind": "simple_unet", "condition": "class", "width": 8, "multipliers": [1, 2], "attention": [4], "heads": 1}
DROPOUT = {**tiny.UNET, "condition": "class", "dropout": 0.1}
ATTRIBUTES = {**tiny.UNET, "condition": "attributes"}
BOTTLENECK = {"kind": "bottleneck_autoencoder", "width": 8, "multipliers": [1, 2], "latent_channels": 2, "groups": 4}
COLOURS = {"flip": True, "augmentation": {"brightness": 0.3, "contrast": 0.3, "hue": 0.1, "sharpness": 2.0}}
MODELS = {
    "unet": (tiny.UNET, {}),
    "unet-dropout": (DROPOUT, {"micro_batch": 4}),
    "unet-attributes": (ATTRIBUTES, COLOURS),
    "unet-fp16": (DROPOUT, {"precision": "fp16"}),
    "unet-sgd": (tiny.UNET, {"optim": {"kind": "sgd", "lr": 0.1}}),
    "unet-muon": (tiny.UNET, {"optim": {"kind": "muon", "lr": 1e-3}}),
    "dit": (DIT, {}),
    "simple_unet": (SIMPLE, {}),
    "game": (tiny.GAME, {}),
    "autoencoder": (tiny.AUTOENCODER, {}),
    "bottleneck": (BOTTLENECK, {}),
    "vae": (tiny.VAE, {}),
}


class OnMeta(torch.optim.AdamW):
    """Fused optimisers have no kernel on this device, and the others do not know a loss scaler's protocol."""

    found_inf = grad_scale = None

    def step(self, closure=None):
        assert self.found_inf.is_meta and (self.grad_scale is None or self.grad_scale.is_meta)
        self.found_inf = self.grad_scale = None
        return super().step(closure)


def session_of(cfg):
    """What a step is given, with every tensor on the meta device but those of the data."""
    reader = Reader(open_shards(training_shards(cfg) / "train"))
    objective = build_objective(cfg, reader.manifest)
    for network in objective.networks.values():
        network.to(META)
    made = {name: build_optimizer(objective.networks[name], cfg.train.optim) for name in objective.trained}
    optimizers = {
        name: optimizer if cfg.train.optim.kind == "muon" else OnMeta(objective.networks[name].parameters())
        for name, optimizer in made.items()
    }
    scale = LossScale(META) if cfg.train.precision == "fp16" else None
    state = State(
        objective.networks, optimizers, ema_networks=objective.ema_networks, cfg=cfg.train.ema, loss_scale=scale
    )
    accelerator = SimpleNamespace(no_sync=lambda _: contextlib.nullcontext(), backward=lambda loss: loss.backward())
    return Session(
        cfg=cfg,
        run=None,
        world=None,
        plan=SimpleNamespace(total_steps=100, warmup_steps=10, half_life_images=1000),
        accelerator=accelerator,
        device=META,
        objective=objective,
        networks={name: objective.networks[name] for name in objective.trained},
        state=state,
        train_data=reader,
        valid_data=None,
        recorder=None,
        saver=None,
    )


def batches_of(s, *, micro_batch=8):
    cfg = s.cfg
    return batches(
        s.train_data,
        seed=cfg.seed,
        start_step=4,  # the discriminator of the autoencoder has joined
        global_batch=8,
        rank=0,
        world_size=1,
        micro_batch=micro_batch,
        flip=cfg.train.flip,
        augmentation=cfg.train.augmentation,
        draws=s.objective.draws,
    )


def steps(s, *, micro_batch=8):
    data = itertools.islice(batches_of(s, micro_batch=micro_batch), 2)
    return [launch_step(s, batch, stop_asked=False, save_asked=False) for batch in data]


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_every_network_and_objective(name, tmp_path, monkeypatch):
    model, settings = MODELS[name]
    if name == "unet-muon":  # its other half is torch's AdamW, of which there is no fused kernel here
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    cfg = tiny.config(tmp_path, model=model, **settings)
    tiny.prepare(cfg, attributes=model.get("condition") == "attributes")
    s = session_of(cfg)
    launched = steps(s, micro_batch=cfg.train.micro_batch or 8)
    for found in launched[-1].found.values():
        assert found._values.is_meta  # nobody read it


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("unet-sgd", "unet-muon")])
def test_the_loss_of_every_objective_copies_nothing_from_the_host(name, tmp_path):
    model, settings = MODELS[name]
    cfg = tiny.config(tmp_path, model=model, **settings)
    tiny.prepare(cfg, attributes=model.get("condition") == "attributes")
    s = session_of(cfg)
    batch = next(batches_of(s))[0].to(META, s.dtype)
    for network in s.objective.trained:
        called = s.networks_for(network)

        def work(network=network, called=called):
            s.objective.loss(network, called, batch)["loss"].sum().backward()

        assert copied_again(work) == []


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_of_every_process(name, tmp_path):
    cfg = tiny.config(tmp_path, model=DROPOUT)
    diffusion = DiffusionConfig.model_validate({"label_dropout": 0.1, **PROCESSES[name]})
    cfg = cfg.model_copy(update={"diffusion": diffusion})
    tiny.prepare(cfg)
    steps(session_of(cfg))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cfg = tiny.config(tmp_path_factory.mktemp("meta"), model=DROPOUT)
    tiny.prepare(cfg)
    return session_of(cfg)


@contextlib.contextmanager
def evaluating(s):
    for network in s.objective.networks.values():
        network.eval()
    yield
    for network in s.objective.networks.values():
        network.train()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_with_and_without_guidance(name, trained):
    numbers = torch.arange(4, device=META)
    sampler = SamplerConfig.model_validate({"steps": 4, **SAMPLERS[name]})
    with torch.no_grad(), evaluating(trained):
        images = trained.objective.generate(trained.objective.networks, numbers, numbers % 3, sampler=sampler)
    assert images.is_meta and images.shape == (4, 1, tiny.SIZE, tiny.SIZE)


@pytest.fixture
def _no_pixels(monkeypatch):
    """Pictures stay on the device, which has no pixels to give, nor autocast."""
    monkeypatch.setattr(visualize, "to_uint8", lambda images: images)
    monkeypatch.setattr(visualize, "autocast", lambda *_: contextlib.nullcontext())


@pytest.fixture
def model(trained, _no_pixels):
    """What `visualize` and the demo draw with."""
    with evaluating(trained):
        yield visualize.Model(trained.cfg, trained.objective, None, open_shards(trained.train_data.path), META)


def test_pictures_of_a_model(model):
    seeds, one = torch.arange(3), (1, tiny.SIZE, tiny.SIZE)
    assert visualize.strip(model, seeds, frames=4, show="both").shape == (24, *one)
    assert visualize.interpolation(model, seeds, frames=4).shape == (8, *one)
    assert visualize.interpolation(model, seeds, frames=4, kind="linear").shape == (8, *one)
    assert visualize.between_classes(model, seeds, (0, 2), frames=4).shape == (12, *one)
    assert visualize.edited(model, torch.zeros(one), seeds, sigmas=[0.5, 2.0]).shape == (9, *one)
    assert visualize.inpainted(model, torch.zeros(one), seeds, mask=torch.ones(one[1:])).shape == (4, *one)


@pytest.mark.usefixtures("_no_pixels")
@pytest.mark.parametrize("name", ["game", "vae"])
def test_pictures_between_vectors(name, tmp_path):
    cfg = tiny.config(tmp_path, model=MODELS[name][0])
    tiny.prepare(cfg)
    s = session_of(cfg)
    model = visualize.AtOnce(cfg, s.objective, open_shards(s.train_data.path), META)
    for space in ("z", "w") if name == "game" else ("z",):
        request = visualize.Request("interpolate", [], frames=4, space=space)
        with evaluating(s):
            made = visualize.between_vectors(model, torch.arange(3), request)
        assert made.shape == (8, 1, tiny.SIZE, tiny.SIZE)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_bound_of_a_likelihood(variance, tmp_path):
    cfg = tiny.config(tmp_path, model=DROPOUT)
    process = PROCESSES["ddpm-learned" if variance == "learned" else "ddpm"]
    cfg = cfg.model_copy(update={"diffusion": DiffusionConfig.model_validate(process)})
    tiny.prepare(cfg)
    s = session_of(cfg)
    (batch,) = validation_batches(s.train_data, count=8, batch=8)
    with torch.no_grad(), evaluating(s):
        bound = s.objective.bound(s.objective.networks, batch.to(META), variance=variance, clip=1.0)
    assert bound.terms.is_meta


def test_validation_of_every_objective(tmp_path):
    for name in ("unet", "dit", "game", "autoencoder", "vae"):
        cfg = tiny.config(tmp_path / name, model=MODELS[name][0])
        tiny.prepare(cfg)
        s = session_of(cfg)
        (batch,) = validation_batches(s.train_data, count=8, batch=8)
        with torch.no_grad(), evaluating(s):
            s.objective.validate(s.objective.networks, batch.to(META))


def test_decoding_and_features(tmp_path):
    model = tiny.config(tmp_path, model={**tiny.AUTOENCODER, "latent_channels": 3}).model
    network = build_network(model, shape=(3, 16, 16)).to(META)
    noise = normal(0, Stream.POSTERIOR, torch.arange(4, device=META), shape=(3, 8, 8))
    images = network.decode(noise)
    assert images.is_meta
    shape = Shape(channels=3, size=32, classes=4, width=8, features=16, task=LABELS)
    found = DomainClassifier(shape).to(META)(resize(images, 32, "tf1"))
    assert all(value.is_meta for value in found.values())


def test_the_device_does_raise_where_a_step_would_wait(trained):
    """The proof can fail: an objective that looks at its loss is found out."""
    s = copy.copy(trained)
    plain = s.objective
    s.objective = SimpleNamespace(
        trained=plain.trained,
        networks=plain.networks,
        draws=plain.draws,
        loss=lambda *args: {name: value * float(value.detach().sum()) for name, value in plain.loss(*args).items()},
    )
    with pytest.raises(RuntimeError, match="meta"):
        steps(s)
