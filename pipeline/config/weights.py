"""Where the weights of evaluation's networks lie: one folder for all experiments, named once.

`cluster.weights` of a profile, or the environment variable MUDI_WEIGHTS, names the folder. Configs ask for a file of it
by `${weights:niqe}`. Torch-free.
"""

import os
import zipfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

VARIABLE = "MUDI_WEIGHTS"
FILES = {  # by the names of `mudi prepare fetch weights`; the first that is there is taken
    "inception": ("pt_inception-2015-12-05-6726825d.pth", "inception-2015-12-05.pt"),
    "cnniqa": ("CNNIQA-LIVE.pth",),
    "cnniqa-koniq": ("CNNIQA_koniq10k-e6f14c91.pth",),
    "niqe": ("niqe_pris_params.npz",),
    "brisque": ("brisque_allmodel",),
}


def no_folder(*names: str) -> str:
    """What to do where nobody names the folder of these weights."""
    return (
        f"Name the folder of the weights once: {VARIABLE}=/my/weights in the environment, or `weights:` in the "
        f"cluster's profile (mudi prepare fetch weights {' '.join(names)} --into /my/weights brings them)."
    )


def weights_file(name: str, folder: Path) -> Path:
    """The file in `folder`, or in a folder of its own below it, as `mudi prepare fetch weights` makes it. Where none is
    there: where that command would put it, so that an error names that place."""
    places = [base / file for file in FILES[name] for base in (folder / name, folder / f"{name}-nvidia", folder)]
    return next((place for place in places if place.is_file()), places[0])


def inception_outputs(path: Path) -> tuple[str, ...]:
    """The features that a file of FID's network reaches, without loading it. Of a .pth, all are expected."""
    if path.suffix == ".pt":
        return ("2048", "logits")
    if path.suffix != ".npz":
        return ("64", "192", "spatial", "768", "2048", "logits")
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    reached = {"spatial": "mixed_6_", "768": "mixed_7_", "2048": "mixed_10_", "logits": "softmax/w"}
    return ("64", "192", *(o for o, first in reached.items() if any(name.startswith(first) for name in names)))


def weights_folder(of_cluster: object = None) -> Path | None:
    """The folder that the profile names, else the environment; None: nobody does."""
    named = of_cluster or os.environ.get(VARIABLE)
    return Path(str(named)).expanduser() if named else None


def _resolve(name: str, *, _root_: DictConfig) -> str | None:
    folder = weights_folder(OmegaConf.select(_root_, "cluster.weights"))
    return None if folder is None else str(weights_file(name, folder))


def register() -> None:
    """Make `${weights:NAME}` known to OmegaConf."""
    OmegaConf.register_new_resolver("weights", _resolve, replace=True)
