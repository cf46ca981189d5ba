"""Exact and parallel: the same bytes whoever makes the shards, in how many pieces, and however often killed."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepared import config, content_of, ended, folder_of_pictures, forked, picture, prepare

from data_prep import listing, shard
from data_prep.stage import RECEIPT
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.shards import read_record
from pipeline.runtime.errors import Incomplete, UserError

OVERRIDES = ["data.image_size=16", "data.images_per_shard=16"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = folder_of_pictures(tmp_path_factory.mktemp("images"), 200, classes=3)
    (root / "class0" / "broken.png").write_bytes(b"junk")
    return root


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process makes of the images, undisturbed."""
    return content_of(prepare(of(images, tmp_path_factory.mktemp("alone"))))


def of(images: Path, data_dir: Path, *overrides: str) -> Config:
    return config(data_dir, f"data.source.path={images}", *OVERRIDES, *overrides)


def command(images: Path, data_dir: Path, stage: str, *options: str) -> list[str]:
    overrides = ["data=folder", f"data_dir={data_dir}", f"data.source.path={images}", *OVERRIDES]
    return [sys.executable, "-m", "data_prep", stage, *overrides, *options]


def test_bytes_do_not_depend_on_the_number_of_workers(images: Path, alone: dict[str, str], tmp_path: Path) -> None:
    assert content_of(prepare(of(images, tmp_path), workers=2)) == alone
    assert len(alone) > 13 + 5 and "rejected.jsonl" in alone and RECEIPT in alone


def test_bytes_do_not_depend_on_the_parts_of_an_array_job(images: Path, alone: dict[str, str], tmp_path: Path) -> None:
    cfg = of(images, tmp_path)
    listing.run(cfg)
    tasks = [forked(shard.run, cfg, workers=1, part=(k, 3)) for k in (2, 0, 1)]
    assert ended(*tasks) == [0, 0, 0]
    assert content_of(data_directory(cfg) / "shards") == alone


def test_a_part_writes_its_own_shards_and_says_when_others_are_missing(images: Path, tmp_path: Path) -> None:
    cfg = of(images, tmp_path)
    listing.run(cfg)
    assert shard.run(cfg, workers=1, part=(1, 3)) == {}
    shards = data_directory(cfg) / "shards"
    assert not (shards / RECEIPT).exists() and not list(shards.rglob("manifest.json"))
    jobs = shard.plan_of(cfg).jobs(cfg.data.images_per_shard)
    done = [place for place, job in enumerate(jobs) if read_record(shards / job.name)]
    assert done == [place for place in range(max(done) + 1) if place % 3 == 1]


def test_any_number_of_processes_may_finish_at_the_same_time(
    images: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    cfg = of(images, tmp_path)
    listing.run(cfg)
    for k in range(2):
        shard.run(cfg, workers=1, part=(k, 3))
    assert ended(*(forked(shard.run, cfg, workers=1, part=(2, 3)) for _ in range(3))) == [0, 0, 0]
    assert content_of(data_directory(cfg) / "shards") == alone


def kill_and_resume(images: Path, data_dir: Path, *, kills: int, seed: int, workers: int) -> tuple[Config, int]:
    """Kill -9 the shard command at random moments, then let it finish. Returns how many shards were made twice."""
    cfg = of(images, data_dir)
    listing.run(cfg)
    shards = data_directory(cfg) / "shards"
    rng, redone, killed = random.Random(seed), 0, 0
    finished: dict[Path, int] = {}
    while killed < kills:
        before = len(list(shards.glob("*/*.record.json")))
        task = forked(shard.run, cfg, workers=workers)
        while task.is_alive() and len(list(shards.glob("*/*.record.json"))) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.06))
        task.kill()
        task.join()
        killed += 1
        for path, inode in finished.items():
            redone += path.stat().st_ino != inode  # a shard that is written anew is another file
        finished = {path: path.stat().st_ino for path in shards.glob("*/*.tar") if read_record(path)}
        if (shards / RECEIPT).exists():
            break
    shard.run(cfg, workers=1)
    return cfg, redone


def test_killed_at_random_moments_it_resumes_without_redoing_shards(
    images: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    cfg, redone = kill_and_resume(images, tmp_path, kills=3, seed=0, workers=1)
    assert content_of(data_directory(cfg) / "shards") == alone and redone == 0


def test_a_full_disk_is_named_and_loses_nothing(images: Path, alone: dict[str, str], tmp_path: Path) -> None:
    """A real one: a file system of 200 kB, made larger afterwards, in a namespace of its own."""
    cfg = of(images, tmp_path / "small")
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run([*shell, f"mount -t tmpfs -o size=200k none {small}"], capture_output=True).returncode:
        pytest.skip("this system lets nobody but root mount a file system")
    listing_argv, shard_argv = (
        " ".join(command(images, small, *stage)) for stage in (["fetch"], ["shard", "--workers=1"])
    )
    kept = f"(cd {small} && find . -name '*.tar' -exec ls -i {{}} + | sort)"
    script = (
        f"mount -t tmpfs -o size=200k none {small} && {listing_argv} && ! {shard_argv} && {kept} && "
        f"mount -o remount,size=100m {small} && {shard_argv} && echo again && {kept} && cp -r {small} {tmp_path}/out"
    )
    done = subprocess.run([*shell, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (set(part.split("\n")) for part in done.stdout.split("again"))
    assert "No space left while writing" in done.stderr and "start again" in done.stderr
    assert len(before) > 2 and before <= after  # the same files: none was written anew
    assert content_of(tmp_path / "out" / data_directory(cfg).name / "shards") == alone


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_killed_ten_times_it_gives_the_same_bytes(
    images: Path, alone: dict[str, str], tmp_path: Path, seed: int
) -> None:
    cfg, redone = kill_and_resume(images, tmp_path, kills=10, seed=seed, workers=1 + seed % 2)
    assert content_of(data_directory(cfg) / "shards") == alone and redone == 0


def test_workers_end_with_a_killed_parent(images: Path, tmp_path: Path) -> None:
    cfg = of(images, tmp_path)
    listing.run(cfg)
    task = subprocess.Popen([*command(images, tmp_path, "shard"), "--workers=2"], stderr=subprocess.DEVNULL)
    children: list[int] = []
    while task.poll() is None and len(children) < 3:  # two workers and multiprocessing's tracker
        children = [int(word) for word in Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text().split()]
        time.sleep(0.005)
    task.send_signal(signal.SIGKILL)
    task.wait()
    deadline = time.monotonic() + 600
    while any(Path(f"/proc/{child}").exists() and not is_zombie(child) for child in children):
        assert time.monotonic() < deadline, "workers live on without their parent"
        time.sleep(0.02)


def is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_that_is_killed_is_an_error_that_says_so() -> None:
    from data_prep.stage import run_parallel

    with pytest.raises(UserError, match=r"worker process was killed.*want of memory.*fewer than 2 --workers"):
        list(run_parallel(kill_oneself, range(4), workers=2))


def kill_oneself(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_nothing_is_done_twice(images: Path, tmp_path: Path) -> None:
    cfg = of(images, tmp_path)
    shards = prepare(cfg)
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    prepare(cfg)
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == before


def test_a_source_that_changed_is_refused_and_one_that_is_gone_is_not_needed(tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path / "images", 20)
    cfg = of(root, tmp_path / "data")
    prepare(cfg)
    picture(999).save(root / "class0" / "new.png")
    with pytest.raises(UserError, match=r"made by 'fetch' from something else:\n.*found\.bytes: was \d+, now \d+"):
        prepare(cfg)
    root.rename(tmp_path / "elsewhere")
    prepare(cfg)


def test_what_failed_may_be_mended_and_started_again(tmp_path: Path) -> None:
    """A missing folder that appears, a download that was wrong: no trace of the failure is in the way."""
    cfg = of(tmp_path / "images", tmp_path / "data")
    with pytest.raises(UserError, match="does not exist"):
        prepare(cfg)
    folder_of_pictures(tmp_path / "images", 20)
    prepare(cfg)
    assert [path.name for path in sorted(data_directory(cfg).iterdir())] == ["shards", "source"]


def test_a_listing_may_be_made_by_several_at_the_same_time(images: Path, tmp_path: Path) -> None:
    assert ended(*(forked(listing.run, of(images, tmp_path)) for _ in range(3))) == [0, 0, 0]
    assert [path.name for path in data_directory(of(images, tmp_path)).iterdir()] == ["source"]


def test_shards_of_other_settings_are_never_mixed(images: Path, tmp_path: Path) -> None:
    """Should a directory's name be taken by hand for other settings, nothing in it is used."""
    one, other = of(images, tmp_path), of(images, tmp_path, "data.image_size=8")
    prepare(one)
    data_directory(one).rename(data_directory(other))
    with pytest.raises(UserError, match=r"'shard' from something else:\n.*image_size: was 16, now 8"):
        prepare(other)


def test_shard_before_fetch_says_what_to_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="Run `mudi prepare fetch`"):
        shard.run(of(images, tmp_path))


def test_what_another_process_is_writing_is_left_alone(images: Path, alone: dict[str, str], tmp_path: Path) -> None:
    """A writer holds a shared lock on the folder, which the kernel releases when it dies."""
    cfg = of(images, tmp_path)
    listing.run(cfg)
    folder = data_directory(cfg) / "shards"
    unfinished = folder / "train" / "000000.tar.partial-0123456789ab"
    unfinished.parent.mkdir(parents=True)
    for lives in (True, False):
        unfinished.touch()
        handle = os.open(folder, os.O_RDONLY)
        if lives:
            fcntl.flock(handle, fcntl.LOCK_SH)
        shard.run(cfg, workers=1, part=(0, 2))
        os.close(handle)
        assert unfinished.exists() == lives
    shard.run(cfg, workers=1)
    assert content_of(folder) == alone
