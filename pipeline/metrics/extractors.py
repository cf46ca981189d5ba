"""The feature networks that a config asks for, built from local files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema_metrics import DomainConfig, EvaluateConfig
from pipeline.metrics.domain import domain_features, load_classifier
from pipeline.metrics.features import Extractor
from pipeline.metrics.inception_weights import inception_extractor
from pipeline.metrics.library import clip_extractor, dinov2_extractor
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import content_hash, read_json, sha256_file

DOMAIN_VERSION = 2  # raise it when the network or its training changes: old references are then not used
CLASSIFIER = "classifier.safetensors"


def domain_protocol(cfg: DomainConfig, images: Mapping[str, str]) -> dict[str, Any]:
    """What decides the domain classifier, known before it is trained. `images`: sha256 of the shards by split."""
    settings = cfg.model_dump(mode="json", exclude={"enabled"})
    return {"kind": "domain", "version": DOMAIN_VERSION, "settings": settings, "trained_on": dict(images)}


def classifier_directory(reference: Path, cfg: DomainConfig, images: Mapping[str, str]) -> Path:
    """Where the classifier of these images stands or will stand."""
    return reference / f"classifier-{content_hash(domain_protocol(cfg, images))[:8]}"


def domain_extractor(reference: Path, cfg: DomainConfig, images: Mapping[str, str], *, device: str) -> Extractor:
    """The trained domain classifier.

    Raises:
        Incomplete: it was not trained yet, or its file is not the one that was written.
    """
    directory = classifier_directory(reference, cfg, images)
    record_path = directory / "classifier.json"
    if not record_path.exists():
        raise Incomplete(
            f"{record_path} does not exist: the domain classifier is not trained. Run mudi prepare reference."
        )
    record, weights = read_json(record_path), directory / CLASSIFIER
    if sha256_file(weights) != record["sha256"]:
        raise Incomplete(f"{weights} is not the file that was written ({record['sha256']}). Delete {directory}.")
    network = load_classifier(weights, device)
    protocol = {**domain_protocol(cfg, images), "task": record["task"], "weights": record["sha256"]}
    heads = {"logits": network.shape.classes, "attributes": network.shape.attributes}
    outputs = ("features", *(name for name, size in heads.items() if size))
    return Extractor("domain", protocol, outputs, domain_features(network), about=record)


def build_extractors(
    cfg: EvaluateConfig, reference: Path, images: Mapping[str, str], *, device: str
) -> list[Extractor]:
    """Every network that is switched on. `reference`: the data set's reference folder; `images`: hashes by split."""
    found: list[Extractor] = []
    if cfg.domain.enabled:
        found.append(domain_extractor(reference, cfg.domain, images, device=device))
    if cfg.inception.weights is not None:
        found.append(inception_extractor(cfg.inception, device=device))
    if cfg.dinov2.weights is not None:
        found.append(dinov2_extractor(cfg.dinov2, device=device))
    if cfg.clip.weights is not None:
        found.append(clip_extractor(cfg.clip, device=device))
    return found
