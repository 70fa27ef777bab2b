"""Free space of a folder; what lies in a folder in memory counts as memory of the job."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SELF, MEMORY = Path("/proc/self"), Path("/proc/meminfo")
PART_USED = 0.9
"""A tenth of the free space stays free, for the job itself and for others."""
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Args:
        device: its device number.
        root: the folder of it that is mounted.
        point: where it is mounted.
        kind: its type.
        options: its options.
    """

    device: str
    root: Path
    point: Path
    kind: str
    options: str


def room(folder: Path) -> int:
    """Return the bytes that may be put into a folder: the free space and, if it lies in memory, the free memory of the
    machine and within the limits of the job's control groups; minus a tenth."""
    status = os.statvfs(folder)
    # A file system in memory that has no limit of its own says that it has no blocks.
    limits = [status.f_bavail * status.f_frsize] if status.f_blocks or not in_memory(folder) else []
    if in_memory(folder):
        limits += [available_memory(), *control_group_rooms()]
    return max(int(PART_USED * min(limits)), 0)


def in_memory(folder: Path) -> bool:
    """Whether files in a folder take memory."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(mount.device == number and mount.kind in ("tmpfs", "ramfs") for mount in mounts(SELF))


def available_memory() -> int:
    """Return the bytes of memory that the machine has available; no limit if the system does not say (other than
    Linux)."""
    found = [line.split()[1] for line in lines(MEMORY) if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else sys.maxsize


def mounts(process: Path) -> Iterator[Mount]:
    """Yield what a process sees mounted; nothing if the system does not say (other than Linux)."""
    for line in lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, device, root, point, *_ = before.split()
        kind, _, options = after.split()
        yield Mount(device, Path(root), Path(point), kind, options)


def control_group_rooms(process: Path = SELF) -> Iterator[int]:
    """Yield the bytes that each memory limit of the control groups of a process leaves, with those of its ancestors.

    Cached file contents count as free, since the kernel drops them first.
    """
    for line in lines(process / "cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names, kind = (V1, "cgroup") if controllers else (V2, "cgroup2")
        for mount in mounts(process):
            if mount.kind == kind and (not controllers or "memory" in mount.options.split(",")):
                yield from rooms_up_to(mount.point, below(mount, Path(group)), names)


def below(mount: Mount, group: Path) -> Path:
    """Return the folder of a control group; in a container, which may see only its own part of them, that of this part.

    Args:
        mount: file system of control groups.
        group: path of the group.
    """
    inside = group.is_relative_to(mount.root) and ".." not in group.parts
    return mount.point / group.relative_to(mount.root) if inside else mount.point


def rooms_up_to(top: Path, folder: Path, names: tuple[str, str, str]) -> Iterator[int]:
    """Yield what the limits of a control group and of each above it leave, up to `top`, in bytes.

    Args:
        top: folder of the highest group.
        folder: folder of the group.
        names: names of the limit, the usage, and the reclaimable memory.
    """
    limit_name, used_name, reclaimable = names
    for level in (folder, *folder.parents):
        limit = "".join(lines(level / limit_name))
        if limit.isdecimal():
            used = int("".join(lines(level / used_name)))
            stat = dict(line.split() for line in lines(level / "memory.stat"))
            yield int(limit) - used + int(stat.get(reclaimable, 0))
        if level == top:
            return


def lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel; none if it does not exist."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
