"""What the network is shown in training: every draw belongs to the image's number, whoever else is in the batch."""

from dataclasses import replace

import pytest
import tiny
import torch

from pipeline.config.paths import training_shards
from pipeline.config.schema_diffusion import DiffusionConfig
from pipeline.data.batches import Batch
from pipeline.data.shards import read_manifest
from pipeline.objectives.denoising import Denoising

COUNT, UNKNOWN = 4000, tiny.CLASSES


@pytest.fixture(scope="module", params=["class", "attributes"])
def objective(request, tmp_path_factory):
    """The objective of 8 px squares that hides a quarter of all conditions, and a fifth of single attributes."""
    cfg = tiny.config(tmp_path_factory.mktemp("hidden"), model={**tiny.UNET, "condition": request.param})
    diffusion = DiffusionConfig(label_dropout=0.25, attribute_dropout=0.2 if request.param == "attributes" else 0)
    cfg = cfg.model_copy(update={"diffusion": diffusion})
    tiny.prepare(cfg, attributes=request.param == "attributes")
    return Denoising(cfg, read_manifest(training_shards(cfg) / "train"))


def a_batch(first=0, count=COUNT, *, attributes):
    sample_indices = torch.arange(first, first + count)
    return Batch(
        images=torch.zeros(count, 1, tiny.SIZE, tiny.SIZE),
        labels=sample_indices % tiny.CLASSES,
        attributes=torch.stack([sample_indices // 2**k % 2 for k in range(3)], 1).to(torch.int8)
        if attributes
        else None,
        sample_indices=sample_indices,
    )


def shown(objective, batch, *, validating=False):
    """What a network was given: its input, noise level, condition."""
    seen = []

    def network(x, cond, condition, **_):
        seen.append((x, cond, condition))
        return torch.zeros_like(x)

    if validating:
        objective.validate({"denoiser": network}, batch)
    else:
        objective.loss("denoiser", {"denoiser": network}, replace(batch, draws=objective.draws(batch.sample_indices)))
    return seen[0]


def made_for(objective):
    return a_batch(attributes=objective._conditions.kind == "attributes")


def test_conditions_are_hidden_image_by_image_as_often_as_asked(objective):
    batch = made_for(objective)
    condition = shown(objective, batch)[2]
    if batch.attributes is None:
        hidden = condition == UNKNOWN
        assert torch.equal(condition[~hidden], batch.labels[~hidden])
    else:
        kept = condition >= 0
        assert torch.equal(condition[kept], batch.attributes[kept])
        share = 0.25 + 0.75 * 0.2  # all of an image's, or this one alone
        assert (~kept).double().mean(dim=0).tolist() == pytest.approx([share] * 3, abs=0.03)
        single = ~kept & kept.any(dim=1, keepdim=True)
        assert single.any() and not torch.equal(single[:, 0], single[:, 1])
        hidden = ~kept.any(dim=1)
    whole = 0.25 if batch.attributes is None else 0.25 + 0.75 * 0.2**3
    assert hidden.double().mean().item() == pytest.approx(whole, abs=0.03)
    assert hidden[::3].any() and not hidden[::3].all()  # not by batch, nor by class


def test_every_draw_belongs_to_the_sample_index(objective):
    batch = made_for(objective)
    part = replace(
        batch,
        images=batch.images[70:90],
        labels=batch.labels[70:90],
        attributes=None if batch.attributes is None else batch.attributes[70:90],
        sample_indices=batch.sample_indices[70:90],
    )
    for whole, own in zip(shown(objective, batch), shown(objective, part), strict=True):
        assert torch.equal(whole[70:90], own)
    later = shown(objective, replace(part, sample_indices=part.sample_indices + COUNT))
    assert all(not torch.equal(one, other) for one, other in zip(shown(objective, part), later, strict=True))


def test_validation_shows_every_condition_and_spreads_its_noise_levels_evenly(objective):
    batch = made_for(objective)
    x, cond, condition = shown(objective, batch, validating=True)
    assert (condition == (batch.labels if batch.attributes is None else batch.attributes)).all()
    again = shown(objective, batch, validating=True)
    assert torch.equal(x, again[0]) and torch.equal(cond, again[1])
    places = torch.linspace(0, 1, 102, dtype=torch.float64)[1:-1]
    quantiles = objective.process.draw_sigma(places).log() / 4
    found = torch.quantile(cond.double(), places)
    torch.testing.assert_close(found, quantiles, rtol=0, atol=0.01)


def test_an_unconditional_network_sees_mixtures_of_image_and_uniform_noise(tmp_path):
    """x (1 - a) + noise a with a and noise uniform, and one number for every noise level."""
    cfg = tiny.config(tmp_path, model={**tiny.UNET, "condition": "none"})
    levels = {"kind": "uniform_flow"}
    overrides = {
        "parametrisation": "x0_flow",
        "levels": levels,
        "time_input": "none",
        "noise": "uniform",
        "label_dropout": 0,
    }
    cfg = cfg.model_copy(update={"diffusion": DiffusionConfig(**overrides)})
    tiny.prepare(cfg)
    objective = Denoising(cfg, read_manifest(training_shards(cfg) / "train"))
    x, cond, _ = shown(objective, a_batch(attributes=False))  # of black images: the noise alone, a times
    share = x.abs().amax(dim=(1, 2, 3))
    assert (cond == 0).all() and share.max() <= 1
    assert share.mean().item() == pytest.approx(0.5 * (1 - 1 / (x[0].numel() + 1)), abs=0.02)
    inside = x / share[:, None, None, None]
    assert inside.var().item() == pytest.approx(1 / 3, abs=0.02)
