"""An autoencoder from where it lies: a run directory, a folder that `export` wrote, or diffusers' `AutoencoderKL`."""

from pathlib import Path

from pipeline.config.load import CONFIG_FILE, config_from
from pipeline.config.registry import NETWORKS, import_plugins
from pipeline.config.schema_model import ModelConfig
from pipeline.models import foreign_autoencoder
from pipeline.models.autoencoder import BottleneckAutoencoder, KLAutoencoder
from pipeline.models.build import build_network
from pipeline.models.foreign import read_weights, understood
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json, sha256_file
from pipeline.runtime.run_dir import RunDir

Autoencoder = KLAutoencoder | BottleneckAutoencoder
THEIR_CONFIG, THEIR_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
OUR_SETTINGS, OUR_WEIGHTS = "settings.json", "model.safetensors"


def weights_file(folder: Path, *, weights: str = "average", step: int | None = None) -> Path:
    """The file that holds the weights: its sha256 says which autoencoder made a latent.

    `weights` ("average" or "network") and `step` choose among those of a run directory; None is its last step.

    Raises:
        UserError: where there is none, or the run has not ended and no step of it was chosen.
    """
    if (folder / CONFIG_FILE).is_file():
        return _of_run(RunDir(folder), weights, step)
    ours, theirs = folder / OUR_WEIGHTS, folder / THEIR_WEIGHTS
    if not ours.is_file() and not theirs.is_file():
        raise UserError(
            f"{folder}: found no autoencoder, expected a run directory, {THEIR_WEIGHTS} (diffusers) or {OUR_WEIGHTS} "
            "(ours)."
        )
    return ours if ours.is_file() else theirs


def load_autoencoder(
    folder: Path, *, weights: str = "average", step: int | None = None, sha256: str | None = None
) -> Autoencoder:
    """The network with its weights, in evaluation mode, without gradients, on the CPU.

    `sha256`: of the file of weights that is expected; None takes any.

    Raises:
        UserError: for a folder that holds something else, or an autoencoder that has no equal among ours.
        Incomplete: for files that are missing or damaged.
    """
    path = weights_file(folder, weights=weights, step=step)
    if sha256 is not None and (found := sha256_file(path)) != sha256:
        raise UserError(
            f"{path} has sha256 {found}, expected {sha256}: it is another autoencoder than when this job began. "
            "Restore that one, or encode and train anew."
        )
    tensors = read_weights(path)
    if (folder / CONFIG_FILE).is_file():
        cfg = config_from([str(folder)])
        network = _built(cfg.model, (cfg.data.channels, cfg.data.image_size, cfg.data.image_size))
        network.load_state_dict(tensors)
    elif path.name == OUR_WEIGHTS:
        settings = read_json(folder / OUR_SETTINGS)
        import_plugins(settings.get("plugins", ()))
        network = _built(NETWORKS.validate(settings["model"]), tuple(settings["shape"]))
        network.load_state_dict(tensors)
    else:
        network = _built(*understood(foreign_autoencoder.from_config, folder / THEIR_CONFIG))
        config = read_json(folder / THEIR_CONFIG)
        network.load_state_dict(foreign_autoencoder.from_weights(tensors, config, network.state_dict()))
    return network.eval().requires_grad_(False)


def _of_run(run: RunDir, weights: str, step: int | None) -> Path:
    if step is None and not run.finished():
        raise UserError(
            f"{run.path}: this autoencoder's training has not ended (checkpoints of steps {run.steps() or 'none'}). "
            f"Go on with it (python -m pipeline train {run.path}), or choose one of its steps by latents.step."
        )
    found = run.latest_step() if step is None else step
    if found not in run.steps():
        raise UserError(f"{run.path} has no checkpoint of step {step}. It has: {run.steps() or 'none'}.")
    path = run.checkpoint(found) / f"{weights}.autoencoder.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no '{path.name}'. It has: {', '.join(p.name for p in _files(path.parent))}."
        )
    return path


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _built(cfg: ModelConfig, shape: tuple[int, int, int]) -> Autoencoder:
    network = build_network(cfg, shape=shape)
    if not isinstance(network, KLAutoencoder | BottleneckAutoencoder):
        raise UserError(f"found a network of model.kind={cfg.kind}, expected kl_autoencoder or bottleneck_autoencoder.")
    return network
