"""An autoencoder from a folder: diffusers' `AutoencoderKL`, or one of ours as `export` wrote it."""

from pathlib import Path

from pydantic import TypeAdapter

from pipeline.config.schema_model import ModelConfig
from pipeline.models import foreign_autoencoder
from pipeline.models.autoencoder import BottleneckAutoencoder, KLAutoencoder
from pipeline.models.build import build_network
from pipeline.models.foreign import from_foreign, read_weights, understood
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json

Autoencoder = KLAutoencoder | BottleneckAutoencoder
THEIR_CONFIG, THEIR_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
OUR_SETTINGS, OUR_WEIGHTS = "settings.json", "model.safetensors"


def weights_file(folder: Path) -> Path:
    """The file that holds the weights: its sha256 says which autoencoder made a latent."""
    ours, theirs = folder / OUR_WEIGHTS, folder / THEIR_WEIGHTS
    if not ours.is_file() and not theirs.is_file():
        raise UserError(
            f"{folder}: found no autoencoder, expected {THEIR_WEIGHTS} (diffusers) or {OUR_WEIGHTS} (ours)."
        )
    return ours if ours.is_file() else theirs


def load_autoencoder(folder: Path) -> Autoencoder:
    """The network with its weights, in evaluation mode, without gradients, on the CPU.

    Raises:
        UserError: for a folder that holds something else, or an autoencoder that has no equal among ours.
        Incomplete: for files that are missing or damaged.
    """
    path = weights_file(folder)
    weights = read_weights(path)
    if path.name == OUR_WEIGHTS:
        settings = read_json(folder / OUR_SETTINGS)
        adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
        network = _built(adapter.validate_python(settings["model"]), tuple(settings["shape"]))
        network.load_state_dict(weights)
    else:
        network = _built(*understood(foreign_autoencoder.from_config, folder / THEIR_CONFIG))
        network.load_state_dict(from_foreign(weights, foreign_autoencoder.theirs, network.state_dict()))
    return network.eval().requires_grad_(False)


def _built(cfg: ModelConfig, shape: tuple[int, int, int]) -> Autoencoder:
    network = build_network(cfg, shape=shape)
    if not isinstance(network, KLAutoencoder | BottleneckAutoencoder):
        raise UserError(f"found a network of model.kind={cfg.kind}, expected kl_autoencoder or bottleneck_autoencoder.")
    return network
