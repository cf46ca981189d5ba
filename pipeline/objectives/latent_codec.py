"""Where diffusion happens: on pixels as they are, or on an autoencoder's latents, normalised to deviation 1."""

from typing import Protocol

import torch
from torch import Tensor

from pipeline.config.autoencoder import facts_in, missing_autoencoder
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.batches import Batch
from pipeline.data.latents import Shape, autoencoder_hash, latent_shape, spread_of
from pipeline.data.shards import Manifest, read_manifest
from pipeline.models.pretrained import Autoencoder, load_autoencoder, weights_file
from pipeline.models.tiles import sliced, tiled
from pipeline.runtime.constants import beside
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json, sha256_file, write_json
from pipeline.runtime.numerics import own_precision
from pipeline.runtime.random import Stream, normal
from pipeline.runtime.run_dir import RunDir

RECORD = "latents.json"  # in a run directory: whose latents it was trained on


class Codec(Protocol):
    """`shape` is [d, h, w] of what the network sees."""

    shape: Shape

    def clean(self, batch: Batch, *, draw: int = 0) -> Tensor:
        """x0 [B, d, h, w] of a batch; the posterior's noise belongs to (sample index, draw)."""
        ...

    def images(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of x0, not clipped."""
        ...


def codec_of(cfg: Config, manifest: Manifest) -> Codec:
    """The codec of the data that a config trains on.

    Raises:
        UserError: for latents of another autoencoder or of other images than those that are there now.
    """
    if (manifest.kind == "latents") != (cfg.latents is not None):
        raise UserError(f"latents: found {cfg.latents}, but the data that was opened are {manifest.kind}.")
    return PixelCodec(manifest) if cfg.latents is None else LatentCodec(cfg, manifest)


class PixelCodec:
    """Images as they are."""

    def __init__(self, manifest: Manifest) -> None:
        self.shape = manifest.layout.shape

    def clean(self, batch: Batch, *, draw: int = 0) -> Tensor:  # noqa: ARG002
        """The images."""
        return batch.images

    def images(self, x: Tensor) -> Tensor:
        """The same."""
        return x


class LatentCodec:
    """Latents drawn from their posteriors per image and normalised per channel; the autoencoder only decodes."""

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """The autoencoder is compared here and loaded when something is to be decoded."""
        if cfg.latents is None:
            raise TypeError("a model of pixels has no latents")
        self._cfg, self._seed = cfg.latents, cfg.seed
        self.shape = latent_shape(manifest)
        spread = spread_of(manifest)
        self._mean, self._std = (torch.tensor(v, dtype=torch.float64) for v in (spread.mean, spread.std))
        self._hash = autoencoder_hash(manifest)
        self._autoencoder: Autoencoder | None = None
        _check_autoencoder(cfg, manifest)
        _check_images(cfg, manifest)

    def clean(self, batch: Batch, *, draw: int = 0) -> Tensor:
        """A draw from the posterior, normalised: [B, d, h, w] with mean 0 and deviation 1 per channel."""
        means, deviations = batch.images.chunk(2, dim=1)
        noise = normal(
            self._seed, Stream.POSTERIOR, batch.sample_indices, shape=self.shape, draw=draw, dtype=means.dtype
        )
        mean, std = self._scales(means)
        return (means + deviations * noise - mean) / std

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """Decoded [B, C, H, W], in float32 whatever runs around it, a few images at a time."""
        if self._autoencoder is None:
            where = self._cfg
            self._autoencoder = load_autoencoder(
                where.autoencoder, weights=where.weights, step=where.step, sha256=self._hash
            )
        self._autoencoder.to(x.device)
        mean, std = self._scales(x.float())
        with own_precision(x):
            return sliced(self._decode, x.float() * std + mean, images=self._cfg.decode_batch)

    def _decode(self, latents: Tensor) -> Tensor:
        if self._autoencoder is None:
            raise RuntimeError("the autoencoder is loaded before anything is decoded")
        tile = self._cfg.tile
        if tile is None:
            return self._autoencoder.decode(latents)
        return tiled(self._autoencoder.decode, latents, tile=tile, overlap=max(tile // 4, 1))

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [d, 1, 1]."""
        return beside(self._mean, like)[:, None, None], beside(self._std, like)[:, None, None]


def remember(run: RunDir, manifest: Manifest, *, write: bool) -> None:
    """Compare the latents with those that a run was trained on; `write` notes them where the run has no note yet.

    Raises:
        UserError: where they are another autoencoder's, with both hashes.
    """
    if manifest.kind != "latents":
        return
    mine = {"autoencoder": manifest.made_from["autoencoder"], "mirrored": manifest.made_from["mirrored"]}
    path = run.path / RECORD
    if not path.is_file():
        if write:
            write_json(path, mine)
        return
    before = read_json(path)["autoencoder"]["sha256"]
    if before != autoencoder_hash(manifest):
        raise UserError(
            f"{run.path} was trained on latents of the autoencoder with sha256 {before}, the latents that are there "
            f"now are of {autoencoder_hash(manifest)} ({mine['autoencoder']['path']}). Restore that autoencoder and "
            "its latents, or train under another name."
        )


def _check_autoencoder(cfg: Config, manifest: Manifest) -> None:
    latents, expected = cfg.latents, autoencoder_hash(manifest)
    missing = missing_autoencoder(cfg)
    if latents is None or missing:
        raise UserError(missing)
    path = weights_file(latents.autoencoder, weights=latents.weights, step=latents.step)
    found = sha256_file(path)
    if found != expected:
        raise UserError(
            f"latents.autoencoder: {path} has sha256 {found}, but the latents were made by weights with sha256 "
            f"{expected}. Neither training on them nor decoding fits another autoencoder: restore that one, or encode "
            f"anew (delete the folder of latents, then mudi prepare encode with the same overrides)."
        )
    known, recorded = facts_in(latents.autoencoder), manifest.made_from["autoencoder"]["config"]
    if known is None or known.settings != recorded:
        raise UserError(
            f"latents.autoencoder: the weights of {latents.autoencoder} are those that made the latents, but the "
            "settings of its network have changed since, so it would decode otherwise. Restore its config."
        )


def _check_images(cfg: Config, manifest: Manifest) -> None:
    shards = data_directory(cfg) / "shards" / manifest.split
    if not (shards / "manifest.json").is_file():  # only the latents were brought here
        return
    found, expected = read_manifest(shards).sha256, manifest.made_from["images"]
    if found != expected:
        raise UserError(
            f"{shards} holds images with sha256 {found}, but the latents were made from images with {expected}: they "
            "have changed since. Delete the folder of latents and run mudi prepare encode with the same overrides."
        )
