"""Boxes with another version of Slurm: the programs of another Debian suite, in namespaces of their own.

    python -m tests.cluster.boxes [SUITE ...]      unpacks them (a minute and 480 MB each), where that was not done yet

A box has its own files, network, host name and shared memory, and of this machine /tmp, the project and its Python, at
their own places. Processes in it are seen from outside, so that a test can look at them and kill them.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

SUITES = {"trixie": "24.11", "unstable": "26.05"}
"""Suites of Debian, and the Slurm that they had when this was written."""
CACHE = Path(os.environ.get("DEEPLENSE_BOXES", "/var/cache/deeplense/slurm"))
SCRIPTS = Path(__file__).parent / "box"
PROJECT = Path(__file__).parents[2]
CLIENTS = ("sacct", "sacctmgr", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
PROGRAMS = ("apt-get", "dpkg-deb", "ip", "nsenter", "unshare")
SECONDS_TO_START = 30.0
ENTERED = ("--mount", "--net", "--uts", "--ipc", "--root")
CLIENT = """\
#!/bin/sh
PATH={path}
export PATH
box=$(cat "${{SLURM_CONF%/*}}/box/pid" 2> /dev/null) || exec {name} "$@"
exec nsenter --target="$box" {entered} --wdns="$(pwd -P)" {name} "$@"
"""
"""A client of Slurm in the box of the cluster that SLURM_CONF names; where that has none, this machine's."""


def missing_for_boxes() -> list[str]:
    """What must be there to make a box, and is not."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PATH}")]


def prepared(suite: str) -> Path:
    """The root of boxes of a suite, unpacked if need be. Raises RuntimeError, with the end of the log, where that
    cannot be done."""
    recipe = sha256((SCRIPTS / "prepare.sh").read_bytes()).hexdigest()[:8]
    root = CACHE / f"{suite}-{recipe}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            done = subprocess.run([SCRIPTS / "prepare.sh", suite, root], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"no Slurm of {suite}: {done.stdout}{done.stderr}")
    return root


def python_paths() -> list[Path]:
    """Where this Python and its environment are; of Debian's own Python what a box does not have."""
    if sys.base_prefix != "/usr":
        return [Path(sys.prefix), Path(sys.base_prefix)]
    version = f"python3.{sys.version_info.minor}"
    return [Path(sys.prefix), Path("/usr/lib") / version, Path("/usr/bin") / version, Path("/usr/bin/python3")]


@dataclass(frozen=True)
class Box:
    """One box of a suite; `folder`, below /tmp, is new, and the box's own."""

    suite: str
    folder: Path

    @property
    def pid(self) -> int:
        """Its first process."""
        return int((self.folder / "pid").read_text())

    @property
    def clients(self) -> Path:
        """A folder of programs that run the clients of Slurm in the box."""
        return self.folder / "bin"

    def words(self) -> list[str]:
        """What stands before a command that is to run in it."""
        return ["/usr/bin/nsenter", f"--target={self.pid}", *ENTERED, "--wdns=/tmp"]

    def start(self) -> None:
        """Open it. Raises RuntimeError where that fails."""
        root, ready = prepared(self.suite), self.folder / "ready"
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [Path("/tmp"), PROJECT, *python_paths()]
        namespaces = ("--mount", "--propagation=private", "--net", "--uts", "--ipc")
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                ["unshare", *namespaces, SCRIPTS / "inside.sh", root, ready, *paths],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PATH": PATH},
            )
        (self.folder / "pid").write_text(str(process.pid))
        deadline = time.monotonic() + SECONDS_TO_START
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no box of {self.suite}: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)
        self.write_clients()

    def write_clients(self) -> None:
        """For each client of Slurm a program of the same name that runs it in the box whose slurm.conf it is told."""
        self.clients.mkdir()
        for name in CLIENTS:
            path = self.clients / name
            path.write_text(CLIENT.format(path=PATH, entered=" ".join(ENTERED), name=name))
            path.chmod(0o755)

    def stop(self) -> None:
        """End all that runs in it, by which it goes."""
        with suppress(FileNotFoundError):
            ours = os.readlink(f"/proc/{self.pid}/ns/ipc")
            if ours == os.readlink("/proc/self/ns/ipc"):
                return os.kill(self.pid, 9)
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if os.readlink(folder / "ns" / "ipc") == ours:
                        os.kill(int(folder.name), 9)


def main(suites: Sequence[str]) -> int:
    """Unpack what boxes of these suites, or of all, need."""
    for suite in suites or SUITES:
        try:
            print(f"Slurm of {suite} is in {prepared(suite)}")
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
