"""Weights for evaluation: from a real HTTP server into the folder that settings then point at."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from http_server import Server
from rich.console import Console

from data_prep.__main__ import main
from data_prep.fetch import FIRST_SEEN, WEIGHTS, fetch_weights
from pipeline.config.load import config_from
from pipeline.metrics.quality import CnnIqa, Niqe
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json, sha256_file

LOCAL = {"cnniqa": "CNNIQA-LIVE.pth", "niqe": "niqe_pris_params.npz"}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_file_has_one_public_address_that_does_not_move(name: str) -> None:
    for file in WEIGHTS[name].files:
        assert file.url.startswith("https://")
        fixed = re.search(r"/[0-9a-f]{40}/", file.url) or re.search(
            r"releases/download|nvlabs|download\.pytorch", file.url
        )
        assert fixed and (file.checksum or name in ("squeezenet", "cnniqa-koniq"))  # published without one


def test_settings_that_are_printed_are_settings(tmp_path: Path) -> None:
    for weights in WEIGHTS.values():
        overrides = [f"{setting}={tmp_path}" for setting in weights.settings]
        overrides += [f"{weights.pins}={'0' * 64}"] if weights.pins else []
        config_from(["experiment=glyphs16", *overrides])


def test_real_files_come_checked_and_load(server: Server, shared: Path, tmp_path: Path, capsys) -> None:
    for name, file in LOCAL.items():
        server.files[f"{name}/{file}"] = (shared / "weights" / file).read_bytes()
    server.break_after = 1_000_000  # of 2.9 MB: it takes three connections
    assert main(["fetch", "weights", *LOCAL, "--into", str(tmp_path), "--mirror", server.url("")]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [f"evaluate.quality.{name}={tmp_path / name / file}" for name, file in LOCAL.items()]
    cfg = config_from(["experiment=glyphs16", *printed]).evaluate.quality
    Niqe(cfg.niqe), CnnIqa(cfg.cnniqa)
    assert server.asked.count(None) == 2 and len(server.asked) == 4
    assert main(["fetch", "weights", *LOCAL, "--into", str(tmp_path), "--mirror", server.url("")]) == 0
    assert len(server.asked) == 4  # nothing is fetched twice


def test_the_weights_at_hand_are_the_public_ones(shared: Path) -> None:
    for name in ("cnniqa", "niqe", "lpips"):
        for file in WEIGHTS[name].files:
            if (shared / "weights" / file.name).exists():
                assert file.checksum == f"sha256:{sha256_file(shared / 'weights' / file.name)}"


def test_another_content_than_known_is_named_and_deleted(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, mu_pris_param=np.zeros(36))
    server.files["niqe/niqe_pris_params.npz"] = buffer.getvalue()
    with pytest.raises(Incomplete, match=r"niqe_pris_params\.npz: sha256 .* came, published is 2a7c182a"):
        fetch_weights(["niqe"], tmp_path, quiet(), mirror=server.url(""))
    assert not list((tmp_path / "niqe").iterdir())


def test_a_quota_page_and_a_pointer_are_not_weights(server: Server, tmp_path: Path) -> None:
    server.files["squeezenet/squeezenet1_0-b66bff10.pth"] = b"<html><title>Quota exceeded</title></html>"
    with pytest.raises(Incomplete, match="download quota is exceeded"):
        fetch_weights(["squeezenet"], tmp_path, quiet(), mirror=server.url(""))
    server.files["squeezenet/squeezenet1_0-b66bff10.pth"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
    with pytest.raises(Incomplete, match=r"is not a pth file: it starts b'version '"):
        fetch_weights(["squeezenet"], tmp_path, quiet(), mirror=server.url(""))


def zipped(content: str) -> bytes:
    """As torch saves weights."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", content)
    return buffer.getvalue()


def test_a_hash_that_is_not_known_is_trusted_once_and_kept(server: Server, tmp_path: Path) -> None:
    path = "squeezenet/squeezenet1_0-b66bff10.pth"
    server.files[path] = zipped("first")
    said = quiet()
    fetch_weights(["squeezenet"], tmp_path, said, mirror=server.url(""))
    assert "trusted on first use" in said.file.getvalue()
    assert read_json(tmp_path / "squeezenet" / FIRST_SEEN) == {Path(path).name: sha256_file(tmp_path / path)}
    again = quiet()
    fetch_weights(["squeezenet"], tmp_path, again, mirror=server.url(""))
    assert "trusted" not in again.file.getvalue()
    (tmp_path / path).write_bytes(zipped("other"))
    with pytest.raises(Incomplete, match=r"expected .*first seen"):
        fetch_weights(["squeezenet"], tmp_path, quiet(), mirror=server.url(""))


def test_without_names_it_lists_and_a_wrong_one_is_named(capsys) -> None:
    assert main(["fetch", "weights"]) == 0
    printed = capsys.readouterr().err
    assert all(name in printed for name in WEIGHTS)
    with pytest.raises(UserError, match="Did you mean 'inception'"):
        fetch_weights(["incepton"], Path(), quiet())
