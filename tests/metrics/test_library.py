"""DINOv2 and CLIP through `transformers`: with random weights where it is installed, a sentence where it is not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema_metrics import LibraryConfig
from pipeline.metrics.library import clip_extractor, dinov2_extractor
from pipeline.metrics.suite import feature_sets
from pipeline.runtime.errors import UserError

INSTALLED = importlib.util.find_spec("transformers") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="transformers is not installed (it is not in the lock)")
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate.dinov2.weights: found .*config.json"):
        dinov2_extractor(LibraryConfig(weights=tmp_path), device="cpu")


@pytest.mark.skipif(INSTALLED, reason="transformers is installed")
def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="pip install transformers"):
        clip_extractor(LibraryConfig(weights=tmp_path), device="cpu")
    with pytest.raises(UserError, match="expected 00"):
        clip_extractor(LibraryConfig(weights=tmp_path, sha256="00"), device="cpu")


@needs_library
@torch.inference_mode()
def test_dinov2_features_are_the_class_token_of_images_of_any_size(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(**TINY, image_size=518, patch_size=14)).eval()
    network.save_pretrained(tmp_path)
    extractor = dinov2_extractor(LibraryConfig(weights=tmp_path), device="cpu")
    found = extractor.run(IMAGES)["features"]
    assert found.shape == (3, 32) and feature_sets(extractor)["features"].frechet == "fd-dinov2"
    torch.testing.assert_close(found[1:2], extractor.run(IMAGES[1:2])["features"], rtol=1e-4, atol=1e-5)
    flat = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    expected = network(pixel_values=x).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor.run(flat)["features"], expected, rtol=1e-4, atol=1e-4)


@needs_library
@torch.inference_mode()
def test_clip_embeddings_are_the_projected_ones(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(**TINY, intermediate_size=64, projection_dim=24, image_size=56, patch_size=14)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    extractor = clip_extractor(LibraryConfig(weights=tmp_path), device="cpu")
    assert extractor.run(IMAGES)["features"].shape == (3, 24)
    assert extractor.protocol["size"] == 56 and len(extractor.protocol["sha256"]) == 64


@needs_library
@torch.inference_mode()
def test_a_whole_clip_in_a_bin_file_gives_its_image_half(tmp_path: Path) -> None:
    """As OpenAI's 336-pixel CLIP is published: both halves, saved by torch."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = {**TINY, "intermediate_size": 64, "image_size": 56, "patch_size": 14, "projection_dim": 24}
    text = {**TINY, "intermediate_size": 64, "vocab_size": 99}
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    found = clip_extractor(LibraryConfig(weights=tmp_path), device="cpu").run(IMAGES)["features"]
    (tmp_path / "pytorch_model.bin").unlink()
    network.save_pretrained(tmp_path)
    again = clip_extractor(LibraryConfig(weights=tmp_path), device="cpu").run(IMAGES)["features"]
    torch.testing.assert_close(found, again)
    torch.save({k: v for k, v in network.state_dict().items() if "projection" not in k}, tmp_path / "model.bin")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.bin").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin lacks visual_projection\.weight"):
        clip_extractor(LibraryConfig(weights=tmp_path), device="cpu")
