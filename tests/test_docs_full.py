"""Every shell command of the pages on evaluation, GANs and latents, run in the order of the page on small data."""

import gzip
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_end_to_end import mudi

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("evaluation", "gan", "latents")
# What makes an experiment small; a model takes those of its own settings.
COMMON = [
    "cluster=local",
    "data.counts=null",
    "train.global_batch=8",
    "train.log_every=1 steps",
    "train.checkpoint_every=4 steps",
    "sample.count=16",
    "sample.batch=16",
    "sample.images_per_shard=16",
    "sample.sampler.steps=2",
    "evaluate.domain.max_images=400",
    "evaluate.kid_subsets=2",
    "evaluate.kid_subset_size=8",
]
SMALL = {
    "fashion32_vae": ["model.width=8", "train.validate_every=4 steps", "train.preview_every=null"],
    "glyphs16": ["model.width=16", "model.head_channels=16", "data.source.alphabet=OXIL", "train.preview_every=null"],
    "photos16": ["model.width=16", "model.head_channels=16", "train.validate_every=null", "train.preview_every=null"],
    "photos32_ldm_f4": [
        'latents.overrides=["train.duration=4 steps","train.validate_every=null","train.preview_every=null"]',
        "train.validate_every=null",
        "train.preview_every=null",
        "model.width=32",
    ],
    "bedrooms16_gan": [
        "data.split.valid=0.5",
        "model.width=4",
        "model.width_max=8",
        "train.metric_every=2 steps",
        "train.metric_images=16",
        "train.preview_every=null",
        "train.keep_every=2 steps",
        "train.checkpoint_every=2 steps",
    ],
    "bedrooms64_gan": [
        "data=folder",
        "data.image_size=64",
        "data.split.subset=16",
        "data.source.path=/my/bedrooms",
        "model.width=4",
        "model.width_max=8",
        "train.metric_every=4 steps",
        "train.metric_images=16",
        "train.preview_every=null",
        "train.keep_every=2 steps",
        "train.checkpoint_every=2 steps",
    ],
}
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]


def commands(page: str) -> list[str]:
    """Lines of a page that are meant to be typed."""
    blocks = re.findall(r"```(?:sh|text)\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def my(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for /my: flowers with a table of labels, bedrooms, clothes in the format of MNIST, any images."""
    root, rng = tmp_path_factory.mktemp("my"), np.random.default_rng(0)
    for name, count in (("flowers", 1100), ("bedrooms", 24), ("images/a", 12), ("images/b", 12)):
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / name / f"{k:04}.jpg")
    rows = [f"{k:04}.jpg,{1 + k % 3}" for k in range(1100)]
    (root / "flowers" / "labels.csv").write_text("\n".join(["file,label_1based", *rows]))
    (root / "fashion").mkdir()
    for name, count in (("train", 400), ("t10k", 100)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (root / "fashion" / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
        head = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (root / "fashion" / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels))
    return root


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, my, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    weights = shared / "weights"
    for line in commands(page):
        line = line.replace("/my/weights", str(weights)).replace("cluster=mine", "cluster=local")
        argv = shlex.split(line.replace("/my/", f"{my}/"))
        if line.startswith("python benchmarks/"):
            subprocess.run([sys.executable, ROOT / argv[1], *argv[2:]], check=True)
            continue
        if not line.startswith(("mudi ", "python -m ")):
            subprocess.run(["bash", "-c", line.replace("/my/", f"{my}/")], check=True)
            continue
        program, argv = ("mudi", argv[1:]) if argv[0] == "mudi" else (argv[2], argv[3:])
        mudi(program, *small(argv, my))


def small(argv: list[str], my: Path) -> list[str]:
    """A command's arguments with those that make it quick. A sweep's rows have their own lengths: it is planned."""
    if "sweep" in argv:
        return [
            "sweep",
            "plan",
            *(w for w in argv[argv.index("submit") + 1 :]),
            "sweep.seeds=1",
            "sweep.metric=fd-domain",
        ]
    if "submit" in argv or "all" in argv:
        (experiment,) = (w.partition("=")[2] for w in argv if w.startswith("experiment="))
        longer = [w for w in argv if w.startswith("train.") and "kimg" in w]
        extra = [*SMALL.get(experiment, []), *(f"{w.partition('=')[0]}=4 steps" for w in longer)]
        extra = [w.replace("/my/", f"{my}/") for w in extra]
        return [*(w for w in argv if w not in longer), *COMMON, "train.duration=4 steps", *extra]
    return ["fd-domain" if w == "fid" else w for w in argv]  # fid needs a network that is not everywhere
