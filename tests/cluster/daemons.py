"""Start, find and stop daemons without systemd: each has a file with its pid and when that process started."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class ClusterError(Exception):
    """The cluster cannot be brought up; the message says why."""


def born(pid: int) -> str:
    """When a process started, in ticks since boot; "" where it does not run. Tells it from a later one of that pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


@dataclass(frozen=True)
class Daemons:
    """The daemons of one state directory."""

    directory: Path

    def pid(self, name: str) -> int | None:
        """The pid of a daemon that we started and that still runs."""
        try:
            pid, started = (self.directory / "run" / f"{name}.pid").read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if born(int(pid)) == started else None

    def names(self) -> list[str]:
        """Every daemon that has a record."""
        return sorted(p.name.removesuffix(".pid") for p in (self.directory / "run").glob("*.pid"))

    def start(self, name: str, argv: list[str], *, ready: Callable[[], bool], seconds: float = 600.0) -> bool:
        """Start a daemon unless it runs, and wait until it is ready. Returns whether it was started."""
        fresh = self.pid(name) is None
        if fresh:
            with (self.directory / "log" / f"{name}.out").open("ab") as out:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
                )
            (self.directory / "run" / f"{name}.pid").write_text(f"{process.pid} {born(process.pid)}\n")
        end = time.monotonic() + seconds
        while not ready():
            if self.pid(name) is None or time.monotonic() > end:
                raise ClusterError(f"{name} is not ready: {self.last_words(name)}")
            time.sleep(0.05)
        return fresh

    def last_words(self, name: str) -> str:
        """The end of a daemon's output and log."""
        texts = [self.directory / "log" / f"{name}.{kind}" for kind in ("out", "log")]
        return "\n".join(p.read_text(errors="replace")[-1500:] for p in texts if p.is_file())

    def stop(self, names: Iterable[str], *, seconds: float) -> None:
        """Ask, wait, insist."""
        left = [name for name in names if self.pid(name)]
        for number, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            for name in left:
                if pid := self.pid(name):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            end = time.monotonic() + wait
            while (left := [name for name in left if self.pid(name)]) and time.monotonic() < end:
                time.sleep(0.05)
        for name in names:
            (self.directory / "run" / f"{name}.pid").unlink(missing_ok=True)


def answers(*argv: str, env: dict[str, str] | None = None) -> bool:
    """Whether a command succeeds."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        return subprocess.run(argv, capture_output=True, timeout=60, env=env, check=False).returncode == 0
    return False


PACKAGES = "munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core"
COMMANDS = "munged mungekey munge slurmctld slurmd sbatch slurmdbd sacct mariadbd mariadb-install-db my_print_defaults"


def install(log: Path) -> bool:
    """Install Debian's packages where commands are missing, without starting their services. True where it did.

    mariadb-server itself would bring a service and newer Perl modules; its core package and the client's are enough.
    """
    if all(shutil.which(command) for command in COMMANDS.split()):
        return False
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or (sudo and not answers(*sudo, "true")):
        raise ClusterError(f"needs {PACKAGES}: install them, or run this once as root on Debian or Ubuntu")
    policy = Path("/usr/sbin/policy-rc.d")  # keeps a package from starting its daemons
    ours = not policy.exists()
    if ours:
        text = "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d"
        subprocess.run([*sudo, "sh", "-c", text], check=True)
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    wanted = [*apt, "install", "-y", "--no-install-recommends", *PACKAGES.split()]
    try:
        with log.open("ab") as out:
            done = subprocess.run(wanted, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False)
            if done.returncode:  # package lists may be missing or old
                subprocess.run([*apt, "update"], stdout=out, stderr=out, check=False)
                done = subprocess.run(wanted, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False)
    finally:
        if ours:
            subprocess.run([*sudo, "rm", "-f", str(policy)], check=False)
    if done.returncode:
        raise ClusterError(f"apt-get failed: {log.read_text()[-1500:]}")
    return True
