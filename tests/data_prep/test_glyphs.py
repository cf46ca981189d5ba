"""Letters from fonts: which fonts draw letters, and where the ink lies."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from prepared import config, image_of, prepare, rejected_of, split_of

from data_prep import listing
from data_prep.sources.glyphs import check_font, draw
from pipeline.runtime.errors import Incomplete, UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="session")
def fonts() -> Path:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="session")
def glyphs16(tmp_path_factory: pytest.TempPathFactory):
    cfg = config(tmp_path_factory.mktemp("glyphs"), data="glyphs16")
    prepare(cfg)
    return cfg


def test_every_class_is_in_train_and_valid(glyphs16) -> None:
    train, valid = split_of(glyphs16, "train"), split_of(glyphs16, "valid")
    assert train.manifest.classes == valid.manifest.classes == list(LETTERS)
    assert min(train.manifest.class_counts) > 0 and min(valid.manifest.class_counts) > 0
    assert 2000 <= train.manifest.count <= 5000
    assert 0.05 <= valid.manifest.count / (train.manifest.count + valid.manifest.count) <= 0.15


def test_a_letter_of_a_font_is_in_one_split_alone(glyphs16) -> None:
    groups = {}
    for name in ("train", "valid"):
        split = split_of(glyphs16, name)
        with tarfile.open(split.shard_path(0)) as archive:
            texts = [archive.extractfile(member).read() for member in archive if member.name.endswith(".json")]
        groups[name] = {(json.loads(text)["font"], json.loads(text)["label"]) for text in texts}
    assert not groups["train"] & groups["valid"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("font LastResortHE-Regular.ttf", "placeholder_font"),
        ("font cmex10.ttf", "symbol_font"),
        ("font STIXSizOneSymReg.ttf", "missing_glyph"),
    ],
)
def test_fonts_without_letters_are_listed_with_the_reason(glyphs16, name: str, kind: str) -> None:
    why = rejected_of(glyphs16)[name]
    assert why.kind == kind and why.reason


def test_a_font_of_symbols_for_small_letters_alone_is_no_font_of_small_letters(fonts: Path) -> None:
    check_font(fonts / "cmsy10.ttf", list("ABC"))  # calligraphic capitals
    with pytest.raises(Exception, match="draws 'turnstileright' at 'a'"):
        check_font(fonts / "cmsy10.ttf", list("abc"))


@pytest.mark.parametrize("letter", ["A", "I", "W", "Q", "j"])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_the_ink_box_is_centred_and_as_large_as_asked(fonts: Path, letter: str, size: int) -> None:
    scale = 0.75
    image = draw(fonts / "DejaVuSans.ttf", letter, scale=scale, size=size).astype(float)
    rows, columns = np.flatnonzero(image.max(axis=1)), np.flatnonzero(image.max(axis=0))
    top, bottom, left, right = rows[0], size - 1 - rows[-1], columns[0], columns[-1]
    assert abs(top - bottom) <= 1 and abs(left - (size - 1 - right)) <= 1
    longer = max(rows[-1] - rows[0], right - left) + 1
    assert abs(longer - scale * size) <= 2


def test_small_letters_are_large_ones_averaged(fonts: Path) -> None:
    """Drawing at 16 px is drawing at 128 px and averaging blocks: no hinting, no snapping to pixels."""
    small = draw(fonts / "DejaVuSerif.ttf", "R", scale=0.8, size=16).astype(float)
    large = draw(fonts / "DejaVuSerif.ttf", "R", scale=0.8, size=128).astype(float)
    assert np.abs(large.reshape(16, 8, 16, 8).mean(axis=(1, 3)) - small).mean() < 6


def test_the_report_s_set_has_eight_letters_of_ten_families(shared: Path, tmp_path: Path) -> None:
    tar = shared / "data" / "fonts_ten_latin_woff.tar"
    cfg = config(tmp_path, f"data.source.fonts={tar}", "data.source.scales=[0.7]", data="glyphs128_ah")
    prepare(cfg)
    train = split_of(cfg)
    assert train.manifest.classes == list("ABCDEFGH") and train.manifest.shape == (1, 128, 128)
    with tarfile.open(train.shard_path(0)) as archive:
        texts = [archive.extractfile(member).read() for member in archive if member.name.endswith(".json")]
    families = {json.loads(text)["font"].split("-latin")[0] for text in texts}
    assert len(families) == 10


def test_ink_and_paper_may_be_swapped_in_three_channels(tmp_path: Path) -> None:
    overrides = ["data.source.choose=[DejaVuSans]", "data.split.valid=0", "data.source.alphabet=AB"]
    cfg = config(tmp_path / "a", *overrides, data="glyphs32")
    swapped = config(
        tmp_path / "b", *overrides, "data.source.ink=0", "data.source.paper=255", "data.channels=3", data="glyphs32"
    )
    prepare(cfg)
    prepare(swapped)
    one, other = image_of(split_of(cfg), 3), image_of(split_of(swapped), 3)
    assert np.abs(255 - one.astype(int) - other).max() <= 1 and other.shape == (32, 32, 3)


def test_a_font_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    cfg = config(tmp_path, "data.source.choose=[DejaVuSanz]", data="glyphs16")
    with pytest.raises(UserError, match=r"no font 'DejaVuSanz'.*Did you mean 'DejaVuSans'"):
        prepare(cfg)
    cfg = config(tmp_path, f"data.source.fonts={tmp_path}/none", data="glyphs16")
    with pytest.raises(UserError, match="does not exist"):
        prepare(cfg)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "x.ttf").write_bytes(b"no font at all")
    cfg = config(tmp_path, f"data.source.fonts={tmp_path}/junk", data="glyphs16")
    with pytest.raises(UserError, match=r"None of the 1 fonts draws every letter.*unreadable_font"):
        prepare(cfg)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_fonts_come_from_a_tar_that_is_whole(tmp_path: Path, ending: str) -> None:
    import matplotlib

    path, fonts = tmp_path / f"fonts.{ending}", Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as archive:
        for name in ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif"):
            archive.add(fonts / f"{name}.ttf", f"fonts/{name}.ttf")
            end = archive.offset
    overrides = [f"data.source.fonts={path}", "data.source.scales=[0.7]", "data.source.alphabet=AB"]
    cfg = config(tmp_path / "whole", *overrides, data="glyphs16")
    assert listing.run(cfg)["items"] == 6
    assert sorted(p.name for p in listing.source_directory(cfg).iterdir() if "tar" in p.name) == []
    path.write_bytes(path.read_bytes()[: end if ending == "tar" else path.stat().st_size // 2])
    with pytest.raises(Incomplete, match="truncated"):
        listing.run(config(tmp_path / "cut", *overrides, data="glyphs16"))
