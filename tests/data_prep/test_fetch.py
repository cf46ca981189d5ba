"""Downloads, from a real HTTP server on this machine that breaks off, forgets and lies."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from http_server import Server
from prepared import config, prepare, split_of

from data_prep.fetch import UNFINISHED, fetch_file, fetch_files
from pipeline.config.schema_sources import Download
from pipeline.runtime.errors import Incomplete, UserError

QUOTA = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>Sorry, too many users</body>"
)
CONTENT = np.random.default_rng(0).bytes(300_000)


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_a_whole_file_arrives_and_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    file = Download(url=server.url("a.bin"), name="a.bin", checksum=sha256(CONTENT))
    for _ in range(2):
        fetch_files([file], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.break_after = 120_000
    file = Download(url=server.url("a.bin"), name="a.bin", checksum=sha256(CONTENT))
    fetch_file(file, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=120000-", "bytes=240000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.break_after = 100_000
    file = Download(url=server.url("a.bin"), name="a.bin", checksum=sha256(CONTENT))
    with pytest.raises(UserError, match="200000 bytes are kept"):
        fetch_file(file, tmp_path / "a.bin", attempts=2)
    assert not (tmp_path / "a.bin").exists()
    server.break_after = None
    fetch_file(file, tmp_path / "a.bin")
    assert server.asked[-1] == "bytes=200000-" and (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_starts_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.ranges = False
    (tmp_path / f"a.bin{UNFINISHED}").write_bytes(CONTENT[:1000])
    file = Download(url=server.url("a.bin"), name="a.bin", checksum=sha256(CONTENT))
    fetch_file(file, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_download_that_was_complete_but_not_named_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    (tmp_path / f"a.bin{UNFINISHED}").write_bytes(CONTENT)
    file = Download(url=server.url("a.bin"), name="a.bin", checksum=sha256(CONTENT))
    fetch_file(file, tmp_path / "a.bin")
    assert server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_another_content_than_published_is_named_and_deleted(server: Server, tmp_path: Path, kind: str) -> None:
    server.files["a.bin"] = CONTENT
    file = Download(url=server.url("a.bin"), name="a.bin", checksum=f"{kind}:{hashlib.new(kind, b'other').hexdigest()}")
    with pytest.raises(Incomplete, match=rf"a\.bin: {kind} .* came, published is"):
        fetch_file(file, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_quota_notice_is_named(server: Server, tmp_path: Path) -> None:
    server.files["img.zip"] = QUOTA
    for checksum in (None, sha256(CONTENT)):
        file = Download(url=server.url("img.zip"), name="img.zip", checksum=checksum)
        with pytest.raises(Incomplete, match=r"img\.zip is not the file but .* download quota is exceeded"):
            fetch_file(file, tmp_path / "img.zip")
    assert not list(tmp_path.iterdir())


def test_a_web_page_is_named(server: Server, tmp_path: Path) -> None:
    server.files["a.tgz"] = b"<html><body>Please log in</body></html>"
    with pytest.raises(Incomplete, match="is a web page, not the file"):
        fetch_file(Download(url=server.url("a.tgz"), name="a.tgz"), tmp_path / "a.tgz")


def test_a_truncated_zip_is_named(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("a.png", CONTENT)
    server.files["a.zip"] = buffer.getvalue()[:-100]
    with pytest.raises(Incomplete, match="is a truncated zip: its directory, which stands at the end, is missing"):
        fetch_file(Download(url=server.url("a.zip"), name="a.zip"), tmp_path / "a.zip")


def test_a_file_that_is_not_there_is_named_with_the_server_s_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the server answered 404 Not Found. Get it by hand into"):
        fetch_file(Download(url=server.url("none.bin"), name="none.bin"), tmp_path / "none.bin")


def test_no_server_says_that_compute_nodes_have_no_internet(tmp_path: Path) -> None:
    file = Download(url="http://127.0.0.1:1/a.bin", name="a.bin")
    with pytest.raises(UserError, match=r"after 2 attempts.*use a login node"):
        fetch_file(file, tmp_path / "a.bin", attempts=2)


def test_a_data_set_is_fetched_and_prepared_from_its_addresses(server: Server, tmp_path: Path) -> None:
    """CIFAR-10's binary archive, in small, through the same stage as the real one."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            rows = rng.integers(0, 10, (8, 3073), dtype=np.uint8).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(rows)
            archive.addfile(info, io.BytesIO(rows))
    content = buffer.getvalue()
    server.files["c.tar.gz"] = content
    address = f"{{name: cifar-10-binary.tar.gz, url: '{server.url('c.tar.gz')}', checksum: '{sha256(content)}'}}"
    overrides = [f"data.source.urls=[{address}]", "data.counts={train: 40, test: 8}"]
    cfg = config(tmp_path, *overrides, data="cifar10")
    prepare(cfg)
    assert split_of(cfg).manifest.count == 40 and split_of(cfg, "test").manifest.count == 8
    assert (tmp_path / "downloads" / "cifar10" / "cifar-10-binary.tar.gz").read_bytes() == content


def test_fonts_are_fetched_from_their_addresses(server: Server, shared: Path, tmp_path: Path) -> None:
    """The ten fonts of the letters report, as `data=letters32` names them, from a server here."""
    listed = config(tmp_path / "listed", data="letters32").data.source.urls
    with tarfile.open(shared / "data" / "fonts_ten_latin_woff.tar") as archive:
        for file in listed:
            server.files[file.name] = archive.extractfile(f"./{file.name}").read()
    addresses = ", ".join(f"{{name: {file.name}, url: '{server.url(file.name)}'}}" for file in listed)
    cfg = config(tmp_path, f"data.source.urls=[{addresses}]", data="letters32")
    prepare(cfg)
    train, valid = split_of(cfg).manifest, split_of(cfg, "valid").manifest
    assert len(listed) == 10 and train.classes == list("ABCDEFGH") and train.shape == (1, 32, 32)
    assert train.count + valid.count == 10 * 8 * 4 and valid.count == 8 * 2 * 4


@pytest.mark.parametrize("cut", [10, 400])
def test_a_truncated_archive_at_hand_is_named(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(bytes(5000))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(whole[: min(cut, len(whole) - 5)])
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path}", data="cifar10")
    with pytest.raises(Incomplete, match=r"cifar-10-python\.tar\.gz is a truncated or damaged archive"):
        prepare(cfg)


def test_a_quota_notice_at_hand_is_named(tmp_path: Path) -> None:
    (tmp_path / "img_align_celeba.zip").write_bytes(QUOTA)
    (tmp_path / "list_attr_celeba.txt").write_text("1\nMale\n000001.jpg 1\n")
    cfg = config(tmp_path / "data", f"data.source.path={tmp_path}", data="celeba64_crop178_lanczos")
    with pytest.raises(Incomplete, match=r"img_align_celeba\.zip is not the file but the server's notice"):
        prepare(cfg)
