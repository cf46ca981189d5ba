"""The export job: a checkpoint's weights as a folder that diffusers loads, or as one safetensors file with settings.

mudi export RUN_DIR                       RUN_DIR/exports/step-000012000-ema-diffusers/
mudi export RUN_DIR --format safetensors --to FOLDER sample.weights=network
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from pipeline import checkpoint
from pipeline.config.autoencoder import require_latents
from pipeline.config.paths import training_shards
from pipeline.config.schema import Config
from pipeline.data.latents import image_shape, spread_of
from pipeline.data.shards import Manifest, read_manifest
from pipeline.diffusers_io.folder import (
    SETTINGS,
    TRAINING_ONLY,
    Format,
    Latents,
    Network,
    settings_of,
    write_diffusers,
    write_safetensors,
)
from pipeline.model_card import CARD, write_card
from pipeline.models.pretrained import load_autoencoder
from pipeline.objectives.latent_codec import codec_of, remember
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json
from pipeline.runtime.run_dir import COMMIT, RunDir, Step, existing_run, parse_step, step_name, step_of

NETWORKS = ("denoiser", "autoencoder")


def main(argv: list[str]) -> int:
    """`mudi export RUN_DIR [--step N] [--format diffusers|safetensors] [--to FOLDER] [key=value ...]`."""
    parser = argparse.ArgumentParser(prog="mudi export", description=main.__doc__)
    parser.add_argument("--step", help="of the checkpoint: a number, or best; default: sample.step, or else the newest")
    parser.add_argument("--format", choices=get_args(Format), default="diffusers")
    parser.add_argument("--to", type=Path, help="the folder to write; default: inside the run directory")
    options, rest = parser.parse_known_args(argv)
    run, cfg = existing_run(rest)
    folder, notes = export(cfg, run, step=parse_step(options.step), form=options.format, to=options.to)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(folder)
    return 0


def export(
    cfg: Config, run: RunDir, *, step: Step = None, form: Format = "diffusers", to: Path | None = None
) -> tuple[Path, list[str]]:
    """Write the weights that `cfg.sample.weights` names, and a model card. Returns the folder, and in what it samples
    differently.

    A folder that is there and was made from the same checkpoint with the same settings is left as it is.

    Raises:
        UserError: for a run without checkpoints, a network without an equal in diffusers, a folder that is taken.
    """
    found = step_of(checkpoint.step_to_read(run, cfg.sample.step if step is None else step).name) or 0
    weights_name = cfg.sample.weights.replace(":", "")
    folder = to or run.path / "exports" / f"{step_name(found)}-{weights_name}-{form}"
    network = at_rest(cfg, run, step=found)
    if (folder / SETTINGS).is_file() and read_json(folder / SETTINGS) == settings_of(network):
        if not (folder / CARD).is_file():  # killed in between
            write_card(cfg, run, folder, step=found, form=form, classes=network.class_names)
        print(f"{folder} is complete: nothing to do", file=sys.stderr)
        return folder, []
    if folder.exists():
        raise UserError(f"{folder} exists and holds something else. Give another folder by --to, or remove it.")
    notes: list[str] = []
    if form == "safetensors":
        write_safetensors(folder, network)
    else:
        notes = write_diffusers(folder, network)
    write_card(cfg, run, folder, step=found, form=form, classes=network.class_names)
    return folder, notes


def at_rest(cfg: Config, run: RunDir, *, step: int) -> Network:
    """What a checkpoint knows of its network: weights, settings, classes, and the hashes of the files they are from."""
    require_latents(cfg)
    manifest = read_manifest(training_shards(cfg) / "train")
    remember(run, manifest, write=False)
    shape = codec_of(cfg, manifest).shape
    name = _network_name(run.checkpoint(step))
    stored, _ = checkpoint.load_weights(run, which=cfg.sample.weights, network=name, step=step)
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith(TRAINING_ONLY)}
    return Network(
        model=cfg.model,
        shape=shape,
        weights=weights,
        classes=len(manifest.classes),
        class_names=tuple(manifest.classes),
        attributes=len(manifest.attributes),
        attribute_names=tuple(manifest.attributes),
        outputs=2 * shape[0] if cfg.diffusion.learned_variance else None,
        diffusion=None if cfg.model.is_a == "autoencoder" else cfg.diffusion,
        sampler=cfg.sample.sampler,
        seed=cfg.seed,
        precision=cfg.train.precision,
        plugins=cfg.plugins,
        latents=_latents(cfg, manifest),
        made_from={
            "run": cfg.name,
            "step": step,
            "weights": cfg.sample.weights,
            "checkpoint": read_json(run.checkpoint(step) / COMMIT)["files"],
        },
    )


def _latents(cfg: Config, manifest: Manifest) -> Latents | None:
    """The autoencoder that a model of latents needs, which leaves with it."""
    if cfg.latents is None:
        return None
    where = cfg.latents
    module = load_autoencoder(where.autoencoder, weights=where.weights, step=where.step)
    made_from = manifest.made_from["autoencoder"]
    autoencoder = Network(
        model=module.cfg, shape=image_shape(manifest), weights=module.state_dict(), made_from=made_from
    )
    spread = spread_of(manifest)
    return Latents(autoencoder=autoencoder, mean=spread.mean, std=spread.std)


def _network_name(directory: Path) -> str:
    """The network that makes images: one that is known by its name, or the only one of which an EMA is kept."""
    for kind in ("ema", "network"):
        names = sorted(path.name.split(".")[1] for path in directory.glob(f"{kind}.*.safetensors"))
        known = [name for name in NETWORKS if name in names]
        if known or len(names) == 1:
            return known[0] if known else names[0]
    raise UserError(
        f"{directory} holds several networks, and none is called {' or '.join(NETWORKS)}: there is nothing to export."
    )
