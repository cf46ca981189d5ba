"""The only code that downloads. Runs on a login node: compute nodes often have no way to the internet.

A download goes on where it stopped (HTTP Range), is checked against its published checksum, and is recognised where
the server sent something else: a quota notice, a web page, half of the file.

    mudi prepare fetch weights                          the list
    mudi prepare fetch weights inception niqe [--into FOLDER] [--mirror URL]

brings the weights that evaluation uses, and prints the settings that point at them. Where no hash of a file is known,
that of the one that came first is written down, and every later call compares with it.
"""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from data_prep.archives import check_archive
from pipeline.config.base import Settings
from pipeline.config.schema_sources import Download, HubSource
from pipeline.runtime.errors import Incomplete, UserError, did_you_mean
from pipeline.runtime.files import disk_error, fsync_path, read_json, sha256_file, write_json
from pipeline.runtime.progress import progress

UNFINISHED = ".download"  # a download in progress; kept when it breaks off, so that the next one goes on from there
_PIECE = 1 << 20
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def fetch_files(files: Sequence[Download], folder: Path, *, attempts: int = 5) -> Path:
    """Bring every file into `folder`; those that are there are not fetched again. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        fetch_file(file, folder / file.name, attempts=attempts)
    return folder


def fetch_file(file: Download, target: Path, *, attempts: int = 5) -> None:
    """Download one file. It has its name only when it is whole and its checksum is right.

    A connection that breaks is tried again `attempts` times, each going on where the last stopped. Raises `Incomplete`
    where what came is not the file, `UserError` where the server cannot be reached or refuses.
    """
    if target.exists():
        return
    unfinished = target.with_name(target.name + UNFINISHED)
    for attempt in range(attempts):
        try:
            if _receive(file, unfinished):
                break
        except urllib.error.HTTPError as error:
            raise UserError(
                f"{file.url}: the server answered {error.code} {error.reason}. Get it by hand into {target.parent}."
            ) from error
        except _BROKEN as error:
            if attempt + 1 == attempts:
                raise UserError(
                    f"{file.url}: {error} after {attempts} attempts. {_size(unfinished)} bytes are kept: start again "
                    f"to go on, or put the file into {target.parent} by hand. Compute nodes often have no internet: "
                    "use a login node."
                ) from error
        time.sleep(min(0.2 * 2**attempt, 30))
    else:
        raise Incomplete(
            f"{file.url}: the connection ended early {attempts} times. {_size(unfinished)} bytes are kept."
        )
    _check(file, unfinished, target)
    fsync_path(unfinished)
    unfinished.rename(target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(file: Download, unfinished: Path) -> bool:
    """Append what is missing. True when the server says that this is all of it."""
    start = _size(unfinished)
    headers = {"User-Agent": "Mozilla/5.0 (data_prep)", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(file.url, headers=headers)  # the schema allows http and https alone
    try:
        response: Any = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing, or the file on the server is another now
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(start):
                return True
            unfinished.unlink()
            return False
        raise
    with response:
        if response.status != 206:  # the server starts from the beginning
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        received = _append(response, unfinished, start=start, label=file.name, total=total)
    return total is None or start + received >= total


def _append(response: Any, unfinished: Path, *, start: int, label: str, total: int | None) -> int:
    received = 0
    try:
        with unfinished.open("ab" if start else "wb") as target, progress(label, total or 0, done=start) as tick:
            while piece := response.read(_PIECE):
                received += target.write(piece)
                tick(len(piece))
    except OSError as error:
        raise disk_error(error, unfinished) from error
    return received


def _check(file: Download, unfinished: Path, target: Path) -> None:
    """Compare with the checksum, and without one look at the content. What is wrong is deleted, and named."""
    problem = None
    if file.checksum:
        kind, _, expected = file.checksum.partition(":")
        with unfinished.open("rb") as content:
            found = hashlib.file_digest(content, kind).hexdigest()
        if found != expected:
            problem = f"{file.url}: {kind} {found} came, published is {expected}. It was deleted: fetch it again."
    try:
        check_archive(unfinished, ending=target.suffix)
    except Incomplete as why:
        problem = str(why).replace(str(unfinished), file.url)  # says more than a checksum does
    if problem:
        unfinished.unlink()
        raise Incomplete(problem)


def hub_rows(source: HubSource, split: str) -> Any:
    """One split of a hub data set as a stream of rows, the images' bytes not decoded."""
    import datasets

    files = dict(source.data_files) or None
    try:
        rows = datasets.load_dataset(
            source.name,
            source.config,
            data_files=files,
            data_dir=str(source.data_dir) if source.data_dir else None,
            split=split,
            revision=source.revision,
            streaming=True,
        )
        features = rows.features
        if features is not None and isinstance(features.get(source.image_column), datasets.Image):
            rows = rows.cast_column(source.image_column, datasets.Image(decode=False))
    except (ValueError, OSError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.source.name: '{source.name}' (split '{split}') cannot be opened: {error}. "
            "Check name, splits and data_files; without internet give local files with name=parquet."
        ) from error
    return rows


FIRST_SEEN = "sha256.json"  # hashes that were not known before: file name -> sha256


class Weights(Settings):
    """Files that belong together, and the settings that use them: setting -> file, "" for the folder."""

    about: str
    size_mb: int
    files: tuple[Download, ...]
    settings: dict[str, str] = {}
    pins: str | None = None  # the setting that pins the hash of the last file: "evaluate.x.sha256"


def _weights() -> dict[str, Weights]:
    """What there is, from `weights.yaml`."""
    listed = yaml.safe_load(Path(__file__).with_name("weights.yaml").read_text())
    for entry in listed.values():
        entry["files"] = [{"name": file["url"].rpartition("/")[2], **file} for file in entry["files"]]
    return {name: Weights.model_validate(entry) for name, entry in listed.items()}


WEIGHTS = _weights()


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
        console.print("To fetch some: mudi prepare fetch weights NAME ... --into FOLDER", highlight=False)
        return []
    for name in names:
        if name not in WEIGHTS:
            known = ", ".join(WEIGHTS)
            raise UserError(f"fetch weights: found '{name}', expected some of {known}.{did_you_mean(name, WEIGHTS)}")
    return [override for name in dict.fromkeys(names) for override in _fetch(name, into / name, console, mirror=mirror)]


def listed() -> Table:
    """What can be fetched."""
    table = Table("name", "MB", "what", "hash")
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
    """Overrides for a command line or an experiment."""
    overrides = [f"{setting}={folder / file if file else folder}" for setting, file in weights.settings.items()]
    if weights.pins:
        overrides.append(f"{weights.pins}={found[weights.files[-1].name]}")
    return overrides
