"""A real Slurm on this machine: four hosts in network namespaces, with or without accounting. Needs root.

    python -m tests.cluster.private_slurm start | stop [FOLDER]

Each cluster has a number, and by it addresses, ports and bridge of its own; all its files are in one folder.
"""

import argparse
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.boxes import Box, missing_for_boxes
from tests.cluster.configuration import CGROUP_CONF, NUM_HOSTS, slurm_conf, slurmdbd_conf

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter", "unshare")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
SMALL_DISK_MB = 32
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing_programs(*, accounting: bool) -> list[str]:
    """What must be installed first."""
    wanted = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    return [name for name in wanted if not shutil.which(name, path=PATH)]


def wait_for(condition: Callable[[], object], what: str, *, seconds: float = 240.0) -> None:
    """Wait until something holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}, after {seconds:.0f} s")
        time.sleep(0.05)


@dataclass(frozen=True)
class PrivateSlurm:
    """One cluster. `folder` must be short (a socket lies in it) and new. With a `suite` of Debian it is of that suite's
    Slurm, in a box."""

    folder: Path
    number: int = 1
    accounting: bool = True
    user_signal: bool = False
    resolvable: bool = True
    suite: str | None = None

    @property
    def box(self) -> Box | None:
        """Where its programs are; None where they are this machine's."""
        return Box(self.suite, self.folder / "box") if self.suite else None

    @property
    def environment(self) -> dict[str, str]:
        """What the clients need."""
        path = f"{self.box.clients}:{PATH}" if self.box else PATH
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    @property
    def missing(self) -> list[str]:
        """What must be installed first."""
        return missing_for_boxes() if self.suite else missing_programs(accounting=self.accounting)

    def call(self, *words: str | Path, check: bool = True) -> str:
        """Run a command to its end, in the box if there is one; returns what it says."""
        command = [*(self.box.words() if self.box else []), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=surroundings() | {"PATH": PATH})
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr or done.stdout}")
        return done.stdout

    @property
    def small_disk(self) -> Path:
        """A folder that all hosts see and that is soon full."""
        return self.folder / "small"

    @property
    def bridge(self) -> str:
        """Name of the network's middle."""
        return f"dlbr{self.number}"

    @property
    def controller_address(self) -> str:
        """Where slurmctld listens."""
        return self.address(0)

    def address(self, host: int) -> str:
        """Address of a host, from 1; 0 is the controller."""
        return f"10.77.{self.number}.{10 + host if host else 1}"

    def node(self, host: int) -> str:
        """Name of a host, from 1."""
        return f"node{host}"

    def namespace(self, host: int) -> str:
        """Name of a host's network namespace."""
        return f"dl{self.number}n{host}"

    def cable(self, host: int) -> str:
        """The bridge's end of a host's cable."""
        return f"dl{self.number}c{host}"

    def port(self, offset: int) -> int:
        """A port of this cluster."""
        return 17000 + 100 * self.number + offset

    def start(self) -> None:
        """Start everything; takes some seconds. What is started is stopped again where a part fails."""
        if self.missing:
            raise RuntimeError(f"not installed: {', '.join(self.missing)}")
        spools = [f"spool-{self.node(host)}" for host in range(1, NUM_HOSTS + 1)]
        for name in ("state", "log", "run", self.small_disk.name, *spools):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            mount_small_disk(self.small_disk)
            if self.box:
                self.box.start()
            else:
                self.remove_network()  # of a cluster whose test was killed
            self.make_network()
            self.write_configuration()
            self.start_munge()
            if self.accounting:
                self.start_accounting()
            self.start_controller("-c")
            for host in range(1, NUM_HOSTS + 1):
                self.start_host(host)
            wait_for(self.is_up, "the hosts are not idle")
        except BaseException:
            self.stop()
            raise

    def make_network(self) -> None:
        """A bridge, and for each host a namespace with a cable to it."""
        self.call("ip", "link", "add", self.bridge, "type", "bridge")
        self.call("ip", "addr", "add", f"{self.controller_address}/24", "dev", self.bridge)
        self.call("ip", "link", "set", self.bridge, "up")
        for host in range(1, NUM_HOSTS + 1):
            space, cable = self.namespace(host), self.cable(host)
            self.call("ip", "netns", "add", space)
            self.call("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            self.call("ip", "link", "set", cable, "master", self.bridge, "up")
            self.call("ip", "-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self.call("ip", "-n", space, "link", "set", "eth0", "up")
            self.call("ip", "-n", space, "link", "set", "lo", "up")

    def write_configuration(self) -> None:
        """slurm.conf, and hosts with names where this cluster has them."""
        (self.folder / "slurm.conf").write_text(slurm_conf(self))
        if self.box:
            (self.folder / "cgroup.conf").write_text(CGROUP_CONF)
        hosts = range(1, NUM_HOSTS + 1)
        names = [f"{self.address(host)} {self.node(host)}" for host in hosts] if self.resolvable else []
        machine = f"127.0.0.1 localhost\n{self.controller_address} {socket.gethostname()}\n"
        (self.folder / "hosts").write_text(machine + "".join(f"{name}\n" for name in names))

    def spawn(self, name: str, *words: str | Path, variables: Mapping[str, str] | None = None) -> None:
        """Start a program that stays, in a session of its own; its process id goes to a file."""
        inside = self.box.words() if self.box else []
        with (self.folder / "log" / f"{name}.out").open("a") as log:
            process = subprocess.Popen(
                [*inside, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**clean_environment(), **self.environment, "PATH": PATH, **(variables or {})},
            )
        (self.folder / "run" / f"{name}.started").write_text(str(process.pid))

    def start_munge(self) -> None:
        """Authentication, with a key of its own."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "run/munge.pid"}
        names |= {"log-file": "log/munge", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder}/{file}" for name, file in names.items()]
        self.spawn("munged", "munged", "--foreground", "--force", *options)
        wait_for((self.folder / "munge.socket").exists, "munged does not listen")

    def start_accounting(self) -> None:
        """MariaDB on a socket, and slurmdbd."""
        data, sock = self.folder / "database", self.folder / "db.socket"
        self.call(
            "mariadb-install-db",
            "--user=root",
            f"--datadir={data}",
            # Where several are made at a time, each needs its own.
            f"--tmpdir={self.folder}/run",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )
        self.spawn(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--socket={sock}",
            "--skip-networking",
            f"--pid-file={self.folder}/run/mariadbd.pid",
            f"--tmpdir={self.folder}/run",
            "--innodb-flush-log-at-trx-commit=0",
            "--loose-innodb-snapshot-isolation=OFF",
        )
        wait_for(sock.exists, "mariadbd does not listen")
        configuration = self.folder / "slurmdbd.conf"
        configuration.write_text(slurmdbd_conf(self))
        configuration.chmod(0o600)
        # libmariadb finds the socket by this variable.
        self.spawn("slurmdbd", "slurmdbd", "-D", variables={"MYSQL_UNIX_PORT": str(sock)})
        wait_for(lambda: self.ask("sacctmgr", "-n", "list", "cluster") is not None, "slurmdbd does not answer")
        self.ask("sacctmgr", "-i", "add", "cluster", f"rehearsal{self.number}")

    def start_controller(self, *options: str) -> None:
        """slurmctld; with -c, without what it knew."""
        self.spawn("slurmctld", "slurmctld", "-D", *options, "-f", self.folder / "slurm.conf")

    def signal_daemon(self, name: str, number: signal.Signals) -> None:
        """Signal slurmctld or slurmdbd."""
        kill(int((self.folder / "run" / f"{name}.started").read_text()), number)

    def start_host(self, host: int) -> None:
        """slurmd of one host."""
        name = self.node(host)
        inside = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name} && exec slurmd -D -N {name}"
        self.spawn(
            f"slurmd-{self.node(host)}",
            "nsenter",
            f"--net=/run/netns/{self.namespace(host)}",
            "unshare",
            "--uts",
            "--mount",
            "--propagation",
            "slave",
            "bash",
            "-c",
            inside,
        )

    def ask(self, *words: str) -> str | None:
        """Run a client of this cluster; None where it fails."""
        done = subprocess.run(words, capture_output=True, text=True, env=surroundings() | self.environment)
        return done.stdout if done.returncode == 0 else None

    def is_up(self) -> bool:
        """Whether all hosts take jobs."""
        states = (self.ask("sinfo", "-h", "-N", "-p", "normal", "-o", "%T") or "").split()
        return len(states) == NUM_HOSTS and set(states) <= {"idle", "mixed", "allocated", "completing"}

    def clear(self) -> None:
        """End all jobs, and bring back all hosts, so that what a failed test left does not trouble the next."""
        self.ask("scancel", "--user=root")
        wait_for(lambda: not self.ask("squeue", "-h"), "jobs do not end")
        for host in range(1, NUM_HOSTS + 1):
            self.mend(host)
        if not self.is_up():
            for host in range(1, NUM_HOSTS + 1):
                self.bring_back(host)

    def kill_daemon(self, host: int) -> None:
        """Let slurmd of a host die; what it started lives on."""
        for pid in self.processes_of(host):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd":
                kill(pid, signal.SIGKILL)

    def bring_back(self, host: int) -> None:
        """Start slurmd of a host anew, with nothing left of what it ran, as after a reboot."""
        self.kill_host(host)
        self.start_host(host)
        wait_for(lambda: self.is_back(host), f"{self.node(host)} does not come back")

    def is_back(self, host: int) -> bool:
        """Whether a host that was down takes jobs, asking for it."""
        self.ask("scontrol", "update", f"nodename={self.node(host)}", "state=resume")
        state = (self.ask("sinfo", "-h", "-N", "-n", self.node(host), "-p", "normal", "-o", "%T") or "").strip()
        return state in ("idle", "mixed", "allocated")

    def kill_host(self, host: int) -> None:
        """Let slurmd of a host, and all that it started, die at once, as in a power cut."""
        for pid in self.processes_of(host):
            kill(pid, signal.SIGKILL)

    def cut(self, host: int) -> None:
        """Pull the cable of a host."""
        self.call("ip", "link", "set", self.cable(host), "down")

    def mend(self, host: int) -> None:
        """Put it back."""
        self.call("ip", "link", "set", self.cable(host), "up")

    def processes_of(self, host: int) -> list[int]:
        """All processes in a host's network namespace."""
        return [int(pid) for pid in self.call("ip", "netns", "pids", self.namespace(host), check=False).split()]

    def stop(self) -> None:
        """End what `start` started, by the ids it noted, and remove the network."""
        for file in (self.folder / "run").glob("*.started"):
            kill(int(file.read_text()), signal.SIGKILL)
            file.unlink()
        if self.box:
            self.box.stop()
        else:
            self.remove_network()
        subprocess.run(["umount", "--lazy", self.small_disk], capture_output=True)

    def remove_network(self) -> None:
        """End what runs on the hosts, and remove them."""
        for host in range(1, NUM_HOSTS + 1):
            self.kill_host(host)
            self.call("ip", "netns", "del", self.namespace(host), check=False)
            self.call("ip", "link", "del", self.cable(host), check=False)
        self.call("ip", "link", "del", self.bridge, check=False)


def take_number(stack: ExitStack, first: int) -> int:
    """A number, this or a greater one, that no cluster of another process has until the end of a stack."""
    for number in range(first, 255):
        descriptor = os.open(f"/tmp/deeplense-cluster-{number}.lock", os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
    raise RuntimeError("no number is left")


def mount_small_disk(folder: Path, options: str = f"size={SMALL_DISK_MB}M") -> None:
    """A file system of its own in a folder; with `remount,ro` it can no longer be written."""
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def clean_environment() -> dict[str, str]:
    """The environment without what a job or a job's submission may have set."""
    return {name: value for name, value in surroundings().items() if not name.startswith(("SLURM_", "SBATCH_"))}


def surroundings() -> dict[str, str]:
    """The environment of this process, of which another thread may just take a variable away, as pytest does."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}


def kill(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or stop the cluster to rehearse on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("/tmp/deeplense-rehearsal"))
    given = parser.parse_args(arguments)
    cluster = PrivateSlurm(given.folder)
    if given.action == "stop":
        cluster.stop()
        shutil.rmtree(given.folder, ignore_errors=True)
        return 0
    if given.folder.exists():
        print(f"{given.folder} is there already; stop it first", file=sys.stderr)
        return 1
    cluster.start()
    print(f"four hosts are up; export SLURM_CONF={given.folder}/slurm.conf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
