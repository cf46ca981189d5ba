"""An autoencoder from where it lies: a run directory, a folder that `export` wrote, or diffusers' `AutoencoderKL`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.config.load import CONFIG_FILE, config_from
from pipeline.config.registry import NETWORKS
from pipeline.diffusers_io.folder import DIFFUSERS_WEIGHTS, WEIGHTS, read, read_weights
from pipeline.models.autoencoder import BottleneckAutoencoder, KLAutoencoder
from pipeline.models.build import build_network
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sha256_file
from pipeline.runtime.run_dir import RunDir

Autoencoder = KLAutoencoder | BottleneckAutoencoder


def weights_file(folder: Path, *, weights: str = "ema", step: int | None = None) -> Path:
    """The file that holds the weights: its sha256 says which autoencoder made a latent.

    `weights` ("ema" or "network") and `step` choose among those of a run directory; None is its last step.

    Raises:
        UserError: where there is none, or the run has not ended and no step of it was chosen.
    """
    if (folder / CONFIG_FILE).is_file():
        return _of_run(RunDir(folder), weights, step)
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: found no autoencoder, expected a run directory, {DIFFUSERS_WEIGHTS} (diffusers) or {WEIGHTS}."
    )


def load_autoencoder(
    folder: Path, *, weights: str = "ema", step: int | None = None, sha256: str | None = None
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
    shape: tuple[int, int, int]
    tensors: Mapping[str, Tensor]
    if (folder / CONFIG_FILE).is_file():
        cfg = config_from([str(folder)])
        model, tensors = cfg.model, read_weights(path)
        shape = (cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    else:
        network_at_rest = read(folder)
        model, shape, tensors = network_at_rest.model, network_at_rest.shape, network_at_rest.weights
    if NETWORKS[model.kind].is_a != "autoencoder":
        raise UserError(f"{folder}: found a network of model.kind={model.kind}, expected an autoencoder.")
    network: Autoencoder = build_network(model, shape=shape)  # type: ignore[assignment]  # as its kind says
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def _of_run(run: RunDir, weights: str, step: int | None) -> Path:
    if step is None and not run.finished():
        raise UserError(
            f"{run.path}: this autoencoder's training has not ended (checkpoints of steps {run.steps() or 'none'}). "
            f"Go on with it (mudi train {run.path}), or choose one of its steps by latents.step."
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
