"""Weights of feature networks and quality measures: what there is, where its home is, what its hash is.

    python -m data_prep fetch weights                          the list
    python -m data_prep fetch weights inception niqe [--into FOLDER] [--mirror URL]

Evaluation reads local paths alone; this brings the files there, on a login node, and prints the settings that point at
them. Addresses of repositories name a commit, so the file behind one does not change. Where no hash of a file
is known, that of the one that came first is written down, and every later call compares with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.fetch import fetch_file
from pipeline.config.schema_sources import Download
from pipeline.runtime.errors import Incomplete, UserError, did_you_mean
from pipeline.runtime.files import read_json, sha256_file, write_json

FIRST_SEEN = "sha256.json"  # hashes that were not known before: file name -> sha256


@dataclass(frozen=True)
class Weights:
    """Files that belong together, and the settings that use them: (setting, file; "" for the folder)."""

    about: str
    size_mb: int
    files: tuple[Download, ...]
    settings: tuple[tuple[str, str], ...] = ()
    hashed: str | None = None  # the setting that pins the hash, and of which file: "evaluate.x.sha256"


def _file(url: str, name: str, sha256: str | None = None) -> Download:
    return Download(url=url, name=name, checksum=f"sha256:{sha256}" if sha256 else None)


_GITHUB = "https://raw.githubusercontent.com"
_CNNIQA = f"{_GITHUB}/lidq92/CNNIQA/fb36830fc6491ef8db2dc651aaad94cdbee131fa/models"
_BASICSR = f"{_GITHUB}/XPixelGroup/BasicSR/8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a/basicsr/metrics"
_BIQ = f"{_GITHUB}/dsoellinger/blind_image_quality_toolbox/4d12c43c77bba538f684df0b62621e9350854c43/%2Bbrisque"
_LPIPS = f"{_GITHUB}/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1"
_DINOV2 = "https://huggingface.co/facebook/dinov2-large/resolve/47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
_CLIP = "https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/ce19dc912ca5cd21c8a653c79e251e808ccabcd1"

WEIGHTS: dict[str, Weights] = {
    "inception": Weights(
        "FID's InceptionV3, the file of pytorch-fid and torch-fidelity",
        96,
        (
            _file(
                "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth",
                "pt_inception-2015-12-05-6726825d.pth",
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            ),
        ),
        (("evaluate.inception.weights", "pt_inception-2015-12-05-6726825d.pth"),),
        "evaluate.inception.sha256",
    ),
    "inception-nvidia": Weights(
        "the same as NVIDIA's torchscript (StyleGAN2-ADA, EDM, clean-fid)",
        96,
        (
            _file(
                "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
                "inception-2015-12-05.pt",
                "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
            ),
        ),
        (("evaluate.inception.weights", "inception-2015-12-05.pt"),),
        "evaluate.inception.sha256",
    ),
    "dinov2": Weights(
        "DINOv2 ViT-L/14 for FD-DINOv2; needs the library transformers",
        1218,
        (
            _file(
                f"{_DINOV2}/config.json",
                "config.json",
                "12df51c069a2dc1305e34ba71ef58bc2407ea553b75f4722a1715c1bce3bbed0",
            ),
            _file(
                f"{_DINOV2}/model.safetensors",
                "model.safetensors",
                "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
            ),
        ),
        (("evaluate.dinov2.weights", ""),),
        "evaluate.dinov2.sha256",
    ),
    "clip": Weights(
        "CLIP ViT-L/14 at 336 pixels for CMMD; needs the library transformers",
        1712,
        (
            _file(
                f"{_CLIP}/config.json",
                "config.json",
                "51b1c14aabcdf639c4a0370eeda1010b773bbe1df78319c7d0f5882c22ac0ac0",
            ),
            _file(
                f"{_CLIP}/pytorch_model.bin",
                "pytorch_model.bin",
                "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
            ),
        ),
        (("evaluate.clip.weights", ""),),
        "evaluate.clip.sha256",
    ),
    "cnniqa": Weights(
        "CNN-IQA trained on LIVE (D. Li's implementation)",
        3,
        (
            _file(
                f"{_CNNIQA}/CNNIQA-LIVE",
                "CNNIQA-LIVE.pth",
                "79cc404d0da3e76e51b6680c4d6edd7332399ba7ed8af3306bdd16e95c7bda7e",
            ),
        ),
        (("evaluate.quality.cnniqa", "CNNIQA-LIVE.pth"),),
    ),
    "niqe": Weights(
        "NIQE's model of undistorted photographs",
        1,
        (
            _file(
                f"{_BASICSR}/niqe_pris_params.npz",
                "niqe_pris_params.npz",
                "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
            ),
        ),
        (("evaluate.quality.niqe", "niqe_pris_params.npz"),),
    ),
    "brisque": Weights(
        "BRISQUE with 774 support vectors; scores of other models do not compare",
        1,
        (
            _file(
                f"{_BIQ}/allmodel",
                "brisque_allmodel",
                "8b04d6045f1b27261610c8ab1730fdcc14ec80bfab0f1ab5f703bbc2927314de",
            ),
            _file(
                f"{_BIQ}/allrange",
                "brisque_allrange",
                "e47d753d96b631e1aa2dbac8c4e51ade767f2def8ce678c7130b6b3f90ee915f",
            ),
        ),
        (("evaluate.quality.brisque", "brisque_allmodel"),),
    ),
    "squeezenet": Weights(
        "SqueezeNet 1.0 on ImageNet: a small perceptual feature network",
        5,
        (_file("https://download.pytorch.org/models/squeezenet1_0-b66bff10.pth", "squeezenet1_0-b66bff10.pth"),),
    ),
    "lpips": Weights(
        "LPIPS 0.1: the linear heads over AlexNet, SqueezeNet 1.1 and VGG16; SqueezeNet 1.1 itself",
        5,
        (
            _file(
                f"{_LPIPS}/alex.pth",
                "lpips_v0.1_alex.pth",
                "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
            ),
            _file(
                f"{_LPIPS}/squeeze.pth",
                "lpips_v0.1_squeeze.pth",
                "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
            ),
            _file(
                f"{_LPIPS}/vgg.pth",
                "lpips_v0.1_vgg.pth",
                "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
            ),
            _file(
                "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
                "squeezenet1_1-b8a52dc0.pth",
                "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
            ),
        ),
    ),
    "vgg16": Weights(
        "VGG16 on ImageNet, for LPIPS",
        553,
        (
            _file(
                "https://download.pytorch.org/models/vgg16-397923af.pth",
                "vgg16-397923af.pth",
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            ),
        ),
    ),
}


def fetch_weights(names: Sequence[str], into: Path, console: Console, *, mirror: str | None = None) -> list[str]:
    """Bring the named weights into `into/<name>/`; returns the settings that use them. No names: print the list.

    Args:
        mirror: fetch `<mirror>/<name>/<file>` instead of from the files' own homes.
    Raises:
        UserError: a name that is not in the list, or a server that cannot be reached.
        Incomplete: what came, or what lies there already, is not the file.
    """
    if not names:
        console.print(listed())
        return []
    for name in names:
        if name not in WEIGHTS:
            known = ", ".join(WEIGHTS)
            raise UserError(f"fetch weights: found '{name}', expected some of {known}.{did_you_mean(name, WEIGHTS)}")
    return [word for name in dict.fromkeys(names) for word in _fetch(name, into / name, console, mirror=mirror)]


def listed() -> Table:
    """What can be fetched."""
    table = Table("name", "MB", "what", "hash", title="python -m data_prep fetch weights NAME... --into FOLDER")
    for name, weights in WEIGHTS.items():
        known = all(file.checksum for file in weights.files)
        table.add_row(name, str(weights.size_mb), weights.about, "known" if known else "trusted on first use")
    return table


def _fetch(name: str, folder: Path, console: Console, *, mirror: str | None) -> list[str]:
    weights, found = WEIGHTS[name], {}
    folder.mkdir(parents=True, exist_ok=True)
    for file in weights.files:
        address = file.url if mirror is None else f"{mirror.rstrip('/')}/{name}/{file.name}"
        fetch_file(file.model_copy(update={"url": address}), folder / file.name)
        found[file.name] = _checked(file, folder, console)
    console.print(f"{name}: {', '.join(found)} in {folder}", highlight=False)
    return _settings(weights, folder.resolve(), found)


def _checked(file: Download, folder: Path, console: Console) -> str:
    """The file's hash, if it is the known one, or else the one that was seen first."""
    found, path = sha256_file(folder / file.name), folder / FIRST_SEEN
    seen = read_json(path) if path.exists() else {}
    expected = file.checksum.partition(":")[2] if file.checksum else seen.get(file.name)
    if expected is None:
        write_json(path, {**seen, file.name: found})
        console.print(
            f"{file.name}: sha256 {found}. None was known before: trusted on first use and written into {path}.",
            highlight=False,
        )
    elif found != expected:
        raise Incomplete(
            f"{folder / file.name} has sha256 {found}, expected {expected} "
            f"({'known' if file.checksum else f'first seen, {path}'}). Delete it and fetch it again."
        )
    return found


def _settings(weights: Weights, folder: Path, found: Mapping[str, str]) -> list[str]:
    """The words for a command line or, as they are, an experiment's overrides."""
    words = [f"{setting}={folder / file if file else folder}" for setting, file in weights.settings]
    if weights.hashed:
        words.append(f"{weights.hashed}={found[weights.files[-1].name]}")
    return words
