"""The inception network equals a plain one, torch-fidelity's own where it can be loaded, and real features."""

import importlib
import importlib.util
import io
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain_inception import PlainInception

from pipeline.config.schema_metrics import InceptionConfig
from pipeline.metrics.inception import InceptionV3, convolutions
from pipeline.metrics.inception_weights import (
    from_pytorch,
    inception_extractor,
    load_inception,
    prepare,
    script_features,
    tensorflow_names,
)
from pipeline.runtime.errors import UserError

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 48), dtype=np.uint8))


@pytest.fixture(scope="module")
def plain() -> PlainInception:
    return PlainInception(0)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def test_folded_and_joined_it_gives_the_features_of_the_plain_network(plain: PlainInception) -> None:
    ours = InceptionV3(*from_pytorch(plain.state_dict()))
    x = prepare(IMAGES, "tf1")
    found, expected = ours(x), plain(x)
    assert set(found) == set(ours.outputs) == set(expected)
    for output, value in expected.items():
        assert relative(found[output], value) < 1e-5, output


@torch.inference_mode()
def test_without_the_fused_operator_the_features_are_the_same(plain: PlainInception, monkeypatch) -> None:
    ours = InceptionV3(*from_pytorch(plain.state_dict()))
    x = prepare(IMAGES, "tf1")
    fused = ours(x, ["768"])["768"]
    monkeypatch.setattr("pipeline.metrics.inception._FUSED", None)
    assert relative(ours(x, ["768"])["768"], fused) < 1e-5


@torch.inference_mode()
def test_torch_fidelity_gives_the_same_features(plain: PlainInception, tmp_path: Path) -> None:
    found = importlib.util.find_spec("torch_fidelity")
    if found is None or not found.submodule_search_locations:
        pytest.skip("torch-fidelity is not installed (it is not in the lock: it needs torchvision)")
    # Its package imports torchvision; the one module that is needed here does not.
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    finally:
        del sys.modules["torch_fidelity"]
    torch.save(plain.state_dict(), tmp_path / "random.pth")
    outputs = ["64", "192", "768", "2048", "logits_unbiased"]
    theirs = module.FeatureExtractorInceptionV3("x", outputs, str(tmp_path / "random.pth"))(IMAGES)
    ours = load_inception(tmp_path / "random.pth")(prepare(IMAGES, "tf1"))
    for output, value in zip(outputs, theirs, strict=True):
        assert relative(ours["logits" if output == "logits_unbiased" else output], value) < 1e-4, output


@pytest.mark.parametrize("count", [24, pytest.param(64, marks=pytest.mark.full)])
@torch.inference_mode()
def test_real_weights_give_the_published_features_of_real_flowers(shared: Path, count: int) -> None:
    with np.load(shared / "weights" / "inception2015_check_features.npz") as file:
        expected = {name: file[name] for name in file.files}
    with tarfile.open(shared / "data" / "flowers102_64.tar") as tar:
        members = {Path(m.name).name: m for m in tar.getmembers()}
        files = [tar.extractfile(members[name]).read() for name in expected["names"].tolist()[:count]]
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    network = load_inception(shared / "weights" / "inception2015_to_mixed_6e_fp32.npz")
    found = network(prepare(torch.from_numpy(images).permute(0, 3, 1, 2), "tf1"))
    for output in ("64", "192", "768"):
        reference = torch.from_numpy(expected[f"dim{output}"][:count])
        assert relative(found[output], reference) < 1e-4, output
        assert float((found[output] - reference).norm() / reference.norm()) < 1e-5, output
    assert network.outputs == ("64", "192", "spatial", "768")


def test_every_convolution_has_one_name_in_the_graph(plain: PlainInception) -> None:
    names = tensorflow_names()
    assert sorted(names) == sorted(convolutions()) == sorted(from_pytorch(plain.state_dict())[0])
    assert len(set(names.values())) == len(names) == 94
    assert names["Mixed_7b.branch3x3dbl_3b"] == "mixed_9_tower_1_mixed_conv_1"


def test_a_file_of_another_hash_kind_or_depth_is_refused(tmp_path: Path, shared: Path) -> None:
    weights = shared / "weights" / "inception2015_to_mixed_6e_fp32.npz"
    with pytest.raises(UserError, match="expected 00"):
        inception_extractor(InceptionConfig(weights=weights, sha256="00"), device="cpu")
    with pytest.raises(UserError, match="reaches only 64, 192"):
        inception_extractor(InceptionConfig(weights=weights, features=("2048",)), device="cpu")
    with pytest.raises(UserError, match="expected a local file"):
        inception_extractor(InceptionConfig(weights=tmp_path / "none.pth"), device="cpu")


class Scripted(torch.nn.Module):
    """The interface of NVIDIA's torchscript file over four numbers an image."""

    def forward(self, x: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        features = x.to(torch.float32).mean(dim=(2, 3))
        logits = features if no_output_bias else features + 1
        return features if return_features else logits.softmax(dim=1)


def test_a_torchscript_file_is_asked_for_features_and_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Scripted()).save(str(path))
    extractor = inception_extractor(InceptionConfig(weights=path), device="cpu")
    found = extractor.run(IMAGES)
    mean = IMAGES.float().mean((2, 3))
    torch.testing.assert_close(found["2048"], mean)
    torch.testing.assert_close(found["logits"].softmax(1), mean.softmax(1))
    resized = script_features(torch.jit.load(str(path)), "clean", ["2048"])(IMAGES)["2048"]
    torch.testing.assert_close(resized, mean, rtol=0.02, atol=0)
