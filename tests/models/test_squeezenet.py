"""SqueezeNet's features against a second evaluation of the same weights, and what the distance in them says."""

import itertools

import numpy as np
import pytest
import torch
from copies import copied_again
from torch.nn import functional

from pipeline.config.load import validated
from pipeline.config.schema import Config
from pipeline.config.schema_objectives import SMALLEST
from pipeline.models.squeezenet import SqueezeNet
from pipeline.objectives.perceptual import Perceptual, distance
from pipeline.runtime.errors import UserError

WEIGHTS, HEADS = "weights/squeezenet_v1.0_fp16.npz", "weights/lpips_v0.1_squeeze.pth"
WIDTHS = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}


def random_weights(version: str) -> dict[str, np.ndarray]:
    """Arrays of the published shapes (Iandola et al. 2016, table 1)."""
    rng = np.random.default_rng(0)
    first = (96, 3, 7, 7) if version == "1.0" else (64, 3, 3, 3)
    shapes, inputs = {"conv1": first}, first[0]
    for number, (squeeze, expand) in WIDTHS.items():
        shapes[f"fire{number}/conv1x1_1"] = (squeeze, inputs, 1, 1)
        shapes[f"fire{number}/conv1x1_2"] = (expand, squeeze, 1, 1)
        shapes[f"fire{number}/conv3x3_2"] = (expand, squeeze, 3, 3)
        inputs = 2 * expand
    arrays = {f"{n}/w": rng.normal(0, 1 / np.sqrt(np.prod(s[1:])), s) for n, s in shapes.items()}
    return {**arrays, **{f"{n}/b": rng.normal(0, 0.1, s[0]) for n, s in shapes.items()}}


def published(arrays: dict[str, np.ndarray], x: torch.Tensor, version: str) -> list[torch.Tensor]:
    """The network written out once more, in float64, with convolutions as sums over taps."""

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight, bias = (torch.from_numpy(arrays[f"{name}/{p}"].astype(np.float64)) for p in "wb")
        size = weight.shape[2]
        x = functional.pad(x, (1,) * 4) if name.endswith("3x3_2") else x
        side = (x.shape[2] - size) // stride + 1
        out = torch.zeros(len(x), len(weight), side, side, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                tap = x[:, :, i : i + stride * (side - 1) + 1 : stride, j : j + stride * (side - 1) + 1 : stride]
                out += torch.einsum("bchw,oc->bohw", tap, weight[:, :, i, j])
        return (out + bias[:, None, None]).clamp_min(0)

    x = conv(x, "conv1", stride=2)
    maps, pools = [x], {"1.0": (2, 5, 9), "1.1": (2, 4, 6)}[version]
    for number in range(2, 10):
        if number in pools:
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = conv(x, f"fire{number}/conv1x1_1")
        x = torch.cat([conv(x, f"fire{number}/conv1x1_2"), conv(x, f"fire{number}/conv3x3_2")], dim=1)
        if number in (3, 5, 6, 7, 8, 9):
            maps.append(x)
    return maps


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("scale", ["imagenet", "caffe"])
def test_features_are_those_of_the_published_network(version, scale):
    torch.manual_seed(0)
    arrays, images = random_weights(version), torch.rand(2, 3, 35, 35, dtype=torch.float64) * 2 - 1
    bytes_ = (images + 1) / 2 * 255
    if scale == "caffe":
        seen = bytes_.flip(1) - torch.tensor([104.0, 117, 123])[:, None, None]
    else:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        seen = (bytes_ / 255 - mean[:, None, None]) / std[:, None, None]
    network = SqueezeNet(arrays, scale=scale).double()
    found, expected = network(images), published(arrays, seen, version)
    assert (
        [f.shape[1] for f in found]
        == network.channels
        == [96 if version == "1.0" else 64, 128, 256, 384, 384, 512, 512]
    )
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-5 * other.abs().max()  # weights are stored in float32


def test_all_maps_are_there_from_the_smallest_size_on():
    network = SqueezeNet(random_weights("1.0"), scale="imagenet")
    assert all(m.shape[2] >= 1 for m in network(torch.zeros(1, 1, SMALLEST, SMALLEST)))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 1, SMALLEST - 1, SMALLEST - 1))


def test_weights_of_another_network_are_refused():
    arrays = random_weights("1.0")
    with pytest.raises(UserError, match="conv1/w of shape"):
        SqueezeNet({**arrays, "conv1/w": np.zeros((32, 3, 3, 3))}, scale="imagenet")
    del arrays["fire7/conv3x3_2/b"]
    with pytest.raises(UserError, match="fire7/conv3x3_2/b"):
        SqueezeNet(arrays, scale="imagenet")


def test_the_distance_is_equation_1_by_hand():
    one = [torch.tensor([3.0, 4.0])[None, :, None, None]]
    other = [torch.tensor([0.0, 2.0])[None, :, None, None]]
    assert distance(one, other).item() == pytest.approx(0.6**2 + 0.2**2, rel=1e-5)
    assert distance(one, other, [torch.tensor([2.0, 0.5])]).item() == pytest.approx(2 * 0.36 + 0.5 * 0.04, rel=1e-5)


def config(tmp_path, **perceptual) -> Config:
    return validated(
        {
            "name": "x",
            "data_dir": str(tmp_path),
            "data": {"name": "d", "source": {"kind": "glyphs"}, "image_size": 64},
            "model": {"kind": "kl_autoencoder"},
            "autoencoder": {"perceptual": {"weight": 1.0, **perceptual}},
            "cluster": {"name": "local"},
        }
    )


def test_the_distance_of_real_features(shared, tmp_path):
    perceptual = Perceptual(config(tmp_path, weights=str(shared / WEIGHTS), scale="caffe"))
    torch.manual_seed(0)
    images, noise = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 3, 64, 64)
    images = functional.interpolate(images[:, :, ::8, ::8], scale_factor=8.0, mode="bilinear")
    steps = [perceptual(images, (images + s * noise).clamp(-1, 1)) for s in (0.0, 0.05, 0.2, 0.8)]
    assert steps[0].tolist() == [0, 0]
    assert all((b > a).all() for a, b in itertools.pairwise(steps))
    there, back = perceptual(images[:1], images[1:]), perceptual(images[1:], images[:1])
    assert there.item() == pytest.approx(back.item(), rel=1e-5) and there.item() > 0
    assert perceptual.about["sha256"] and perceptual.name == "squeezenet"


def test_heads_belong_to_version_1_1(shared, tmp_path):
    for version in ("1.0", "1.1"):
        np.savez(tmp_path / f"{version}.npz", **random_weights(version))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    fits = Perceptual(config(tmp_path, weights=str(tmp_path / "1.1.npz"), heads=str(shared / HEADS)))
    stored = torch.load(shared / HEADS, map_location="cpu", weights_only=True)
    maps = [published(random_weights("1.1"), _seen(x), "1.1") for x in images[:, None].double()]
    expected = sum(
        ((_unit(a) - _unit(b)) ** 2 * stored[f"lin{k}.model.1.weight"]).sum(1).mean()
        for k, (a, b) in enumerate(zip(*maps, strict=True))
    )
    assert fits(images[:1], images[1:]).item() == pytest.approx(expected.item(), rel=1e-4)
    wrong = Perceptual(config(tmp_path, weights=str(tmp_path / "1.0.npz"), heads=str(shared / HEADS)))
    with pytest.raises(UserError, match=r"does not belong to SqueezeNet 1\.0"):
        wrong(images, images)


def test_a_distance_with_heads_copies_nothing_from_the_host(tmp_path):
    files = {"weights": tmp_path / "squeezenet.npz", "heads": tmp_path / "heads.pth"}
    np.savez(files["weights"], **random_weights("1.1"))
    channels = SqueezeNet(random_weights("1.1"), scale="imagenet").channels
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(channels)}, files["heads"])
    measure = Perceptual(config(tmp_path, **{name: str(path) for name, path in files.items()}))
    one, other = (torch.empty(2, 3, 32, 32, device="meta") for _ in range(2))
    assert copied_again(lambda: measure(one, other)) == []


def _seen(image: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((image + 1) / 2 - mean[:, None, None]) / std[:, None, None]


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-10)


@pytest.mark.parametrize("kept", [30, 3_000, 2_500_000])
def test_a_file_that_was_cut_is_named(tmp_path, kept):
    np.savez(tmp_path / "whole.npz", **random_weights("1.1"))
    layers = {
        f"lin{k}.model.1.weight": torch.ones(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 384, 384, 512, 512))
    }
    torch.save(layers, tmp_path / "whole.pth")
    for name in ("whole.npz", "whole.pth"):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:kept])
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(UserError, match=r"perceptual\.weights: .*cut-whole\.npz"):
        Perceptual(config(tmp_path, weights=str(tmp_path / "cut-whole.npz")))(images, images)
    if kept < (tmp_path / "whole.pth").stat().st_size:
        heads = str(tmp_path / "cut-whole.pth")
        with pytest.raises(UserError, match=r"perceptual\.heads: .*cut-whole\.pth"):
            Perceptual(config(tmp_path, weights=str(tmp_path / "whole.npz"), heads=heads))(images, images)


def test_missing_and_wrong_files_are_said_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match=r"autoencoder\.perceptual\.weights: found no file"):
        Perceptual(config(tmp_path, weights=str(tmp_path / "none.npz")))
    (tmp_path / "other.npz").write_bytes(b"something")
    with pytest.raises(UserError, match=r"has sha256 .* expected 123"):
        Perceptual(config(tmp_path, weights=str(tmp_path / "other.npz"), sha256="123"))
    broken = Perceptual(config(tmp_path, weights=str(tmp_path / "other.npz")))
    with pytest.raises(UserError, match=r"other\.npz"):
        broken(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
