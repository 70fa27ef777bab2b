"""A copy of the code as it is now, so that a job that waits or comes back runs what was submitted."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deeplense.files import checksum, replacing, write_json
from jobs.config import require
from jobs.runs import SNAPSHOT

PACKAGES = ("deeplense", "jobs", "launch")
CODE = (*PACKAGES, "slurm_templates")
WANTED = (*CODE, "containers", "pyproject.toml", "requirements.lock")
"""What a job needs, and what tells how its environment was made."""
SUFFIXES = (".py", ".yaml", ".html", ".sh")
"""Files that a job may read; those that git does not know are asked about."""
RECORD, DIFF = SNAPSHOT, "snapshot.diff"
ROOT = Path(__file__).resolve().parents[1]
SHOWN = 10


def take_snapshot(destination: Path, *, allow_untracked: bool = False, root: Path = ROOT) -> dict[str, Any]:
    """Copy the code in `root` as it is now into a folder, whole or not at all; returns what is known of it.

    In a git work tree these are the tracked files of `WANTED` with their present content, and with `allow_untracked`
    the untracked ones beside them; elsewhere, the files of the installed packages. `snapshot.json` holds what is
    returned: the commit, whether there are changes to it (they are in `snapshot.diff`), and a hash of names and
    contents. Raises ValueError where files are untracked, or a link leads out of the copy.
    """
    tracked = tracked_files(root)
    untracked = untracked_files(root) if tracked else []
    require(allow_untracked or not untracked, refusal(untracked, root))
    names = tracked + untracked or package_files(root)
    commit = git(root, "rev-parse", "HEAD").decode().strip() if tracked else None
    diff = changes(root) if tracked else b""
    with replacing(destination) as temporary:
        copy_files(names, root, temporary)
        refuse_outward_links(temporary)
        known = {"commit": commit, "dirty": bool(diff or untracked), "untracked": untracked}
        record = known | {"num_files": len(names), "hash": hash_files(temporary)}
        write_json(temporary / RECORD, record)
        if record["dirty"]:
            (temporary / DIFF).write_bytes(diff)
    return record


def tracked_files(root: Path) -> list[str]:
    """The files of `WANTED` that git tracks and that are there, relative to the root; none outside a work tree."""
    if not is_work_tree(root):
        return []
    listed = split(git(root, "ls-files", "-z", "--", *WANTED))
    return sorted({name for name in listed if is_file(root / name)})


def untracked_files(root: Path) -> list[str]:
    """Files of code that git neither tracks nor ignores, relative to the root."""
    listed = split(git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE))
    return sorted(name for name in listed if name.endswith(SUFFIXES))


def package_files(root: Path) -> list[str]:
    """The files of the installed packages, relative to the root. Raises ValueError where there is none."""
    names = [str(path.relative_to(root)) for package in PACKAGES for path in files_in(root / package)]
    require(bool(names), f"{root} holds no code of deeplense: neither {', '.join(PACKAGES[:-1])} nor {PACKAGES[-1]}.")
    return names


def files_in(folder: Path) -> Iterator[Path]:
    """All files and links below a folder, in order, without compiled ones."""
    for path in sorted(folder.rglob("*")):
        if is_file(path) and "__pycache__" not in path.parts:
            yield path


def is_file(path: Path) -> bool:
    """Whether there is a file or a link of this name."""
    return path.is_symlink() or path.is_file()


def copy_files(names: Iterable[str], root: Path, destination: Path) -> None:
    """Copy files into a new folder; links stay links."""
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, destination / name, follow_symlinks=False)


def refuse_outward_links(folder: Path) -> None:
    """Raise ValueError for a link to what is not in the folder, where later changes would reach it."""
    for path in files_in(folder):
        target = Path(os.path.realpath(path))
        inside = target.exists() and target.is_relative_to(folder.resolve())
        name = str(path.relative_to(folder))
        require(inside, f"{name!r} is a link to {os.fspath(target)!r}, not in the copy; put the file itself there.")


def hash_files(folder: Path) -> str:
    """SHA-256 over names and contents of the code in a snapshot, without its record; a link's content is its target."""
    digest = hashlib.sha256()
    for path in files_in(folder):
        name = os.fsencode(path.relative_to(folder))
        if name not in (RECORD.encode(), DIFF.encode()):
            content = b"link " + os.fsencode(os.readlink(path)) if path.is_symlink() else checksum(path).encode()
            digest.update(b"%s\0%s\0" % (name, content))
    return digest.hexdigest()


def changes(root: Path) -> bytes:
    """What differs from the commit in `WANTED`, as a patch that `git apply` takes."""
    shape = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    return git(root, "diff", *shape, "HEAD", "--", *WANTED)


def refusal(untracked: list[str], root: Path) -> str:
    """Why a snapshot is refused, naming the files."""
    shown = ", ".join(map(repr, untracked[:SHOWN])) + f" and {len(untracked) - SHOWN} more" * (len(untracked) > SHOWN)
    return f"git in {root} does not track {shown}; `git add` or remove them, or allow untracked files to copy them too."


def is_work_tree(root: Path) -> bool:
    """Whether git has files of the project's packages here. Raises ValueError where git refuses to say."""
    try:
        return bool(git(root, "ls-files", "-z", "--", *PACKAGES))
    except FileNotFoundError:
        return False
    except ValueError as error:
        if "not a git repository" in str(error):
            return False
        raise


def git(root: Path, *words: str) -> bytes:
    """What git prints, in the work tree of `root`. Raises ValueError with git's own words where it fails."""
    # Inside a git hook these lead to another work tree.
    misleading = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    inherited = {name: value for name, value in os.environ.items() if name not in misleading}
    environment = inherited | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, env=environment)
    require(done.returncode == 0, f"git {words[0]} in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def split(listed: bytes) -> list[str]:
    """The names of a list that git ends with zero bytes."""
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]
