"""Room: what the file system, the machine and the limits of a job leave."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deeplense.data import room as module
from deeplense.data.room import control_group_rooms, in_memory, room

SHARED_MEMORY = Path("/dev/shm")
UNLIMITED = str(2**63 - 4096)
NEEDS_SHARED_MEMORY = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="there is no /dev/shm")


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def process(root: Path, cgroup: str, mountinfo: str) -> Path:
    """The folder of a process below /proc that says this of its groups; {} stands for where they are mounted."""
    write(root, {"proc/cgroup": cgroup, "proc/mountinfo": mountinfo.replace("{}", str(root))})
    return root / "proc"


def test_the_smallest_limit_on_a_group_or_one_above_it_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "job/memory.max": "1000",
            "job/memory.current": "400",
            "job/memory.stat": "anon 100\ninactive_file 50",
            "job/step/memory.max": "max",
            "job/step/task/memory.max": "900",
            "job/step/task/memory.current": "100",
        },
    )
    found = process(tmp_path, "0::/job/step/task", "35 31 0:38 / {} rw - cgroup2 cgroup2 rw")
    assert list(control_group_rooms(found)) == [800, 650]


def test_groups_of_the_first_kind_are_understood(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "slurm/memory.limit_in_bytes": "5000",
            "slurm/memory.usage_in_bytes": "1000",
            "slurm/memory.stat": "inactive_file 1\ntotal_inactive_file 300",
            "memory.limit_in_bytes": UNLIMITED,
            "memory.usage_in_bytes": "7",
        },
    )
    found = process(
        tmp_path,
        "4:memory:/slurm\n3:cpuset:/slurm\n0::/",
        "35 31 0:32 / {} rw,relatime - cgroup cgroup rw,memory\n36 31 0:33 / {} rw - cgroup cgroup rw,cpuset",
    )
    assert list(control_group_rooms(found)) == [4300, int(UNLIMITED) - 7]


@pytest.mark.parametrize("told", ["/../../elsewhere", "/outside/of/it", "/docker/1"])
def test_in_a_container_the_limit_is_that_of_the_part_that_it_sees(told: str, tmp_path: Path) -> None:
    write(tmp_path, {"memory.max": "100", "memory.current": "1"})
    found = process(tmp_path, f"0::{told}", "35 31 0:38 /docker/1 {} rw - cgroup2 cgroup2 rw")
    assert list(control_group_rooms(found)) == [99]


@pytest.mark.parametrize("cgroup", ["3:cpuset:/", "0::/", "0::/nowhere"])
def test_without_a_limit_there_is_none(cgroup: str, tmp_path: Path) -> None:
    assert list(control_group_rooms(process(tmp_path, cgroup, "35 31 0:38 / {} rw - cgroup2 cgroup2 rw"))) == []
    assert list(control_group_rooms(tmp_path / "no_linux")) == []


def test_a_tenth_of_a_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_memory", lambda folder: False)
    status = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda folder: status)
    assert room(tmp_path) == int(0.9 * status.f_bavail * status.f_frsize)


@NEEDS_SHARED_MEMORY
def test_what_is_put_into_memory_must_fit_the_machine_and_the_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, Callable[[], object]] = {
        "available_memory": lambda: 2000,
        "control_group_rooms": lambda: iter([1000, 3000]),
    }
    for name, limit in limits.items():
        monkeypatch.setattr(module, name, limit)
    assert room(SHARED_MEMORY) == 900
    monkeypatch.setattr(module, "control_group_rooms", lambda: iter([-5]))
    assert room(SHARED_MEMORY) == 0


@NEEDS_SHARED_MEMORY
def test_memory_is_told_from_a_disk() -> None:
    assert in_memory(SHARED_MEMORY)
    assert not in_memory(Path("/proc"))
    assert room(SHARED_MEMORY) > 0
