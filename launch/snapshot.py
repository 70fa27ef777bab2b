"""Copy the current code, so that a job that starts later or restarts runs the code that was submitted."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deeplense.files import replacing, write_json
from jobs.settings import require
from launch.copied import DIFF, PACKAGES, RECORD, files_in, hash_files, is_file

CODE = (*PACKAGES, "slurm_templates")
WANTED = (*CODE, "containers", "pyproject.toml", "requirements.lock")
"""What a job needs, and the files that document how its environment was built."""
SUFFIXES = (".py", ".yaml", ".html", ".sh")
"""Suffixes of files that a job may read; such files must be tracked by git."""
ROOT = Path(__file__).resolve().parents[1]
SHOWN = 10


def take_snapshot(destination: Path, *, allow_untracked: bool = False, root: Path = ROOT) -> dict[str, Any]:
    """Copy the current code in `root` to a folder, completely or not at all; return the record of the copy.

    In a git work tree, copy the tracked files of `WANTED` with their current content and, with `allow_untracked`, the
    untracked ones; elsewhere, copy the files of the installed packages. The record is also written to `snapshot.json`:
    the commit, whether the code differs from it (the changes are in `snapshot.diff`), and a hash of names and contents.
    Raises ValueError if files are untracked, or a link points outside the copy.
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
    """Return the existing files of `WANTED` that git tracks, relative to the root; empty outside a work tree."""
    if not is_work_tree(root):
        return []
    listed = split(git(root, "ls-files", "-z", "--", *WANTED))
    return sorted({name for name in listed if is_file(root / name)})


def untracked_files(root: Path) -> list[str]:
    """Return the code files that git neither tracks nor ignores, relative to the root."""
    listed = split(git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE))
    return sorted(name for name in listed if name.endswith(SUFFIXES))


def package_files(root: Path) -> list[str]:
    """Return the files of the installed packages, relative to the root. Raises ValueError if there are none."""
    names = [str(path.relative_to(root)) for package in PACKAGES for path in files_in(root / package)]
    require(
        bool(names), f"{root} contains no code of deeplense: neither {', '.join(PACKAGES[:-1])} nor {PACKAGES[-1]}."
    )
    return names


def copy_files(names: Iterable[str], root: Path, destination: Path) -> None:
    """Copy files to a new folder; links are copied as links."""
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, destination / name, follow_symlinks=False)


def refuse_outward_links(folder: Path) -> None:
    """Raise ValueError if a link points outside the folder, as later changes there would affect the copy."""
    for path in files_in(folder):
        target = Path(os.path.realpath(path))
        inside = target.exists() and target.is_relative_to(folder.resolve())
        name = str(path.relative_to(folder))
        require(inside, f"{name!r} is a link to {os.fspath(target)!r}, outside the copy; replace the link by the file.")


def changes(root: Path) -> bytes:
    """Return the changes of `WANTED` since the commit, as a patch for `git apply`."""
    shape = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    return git(root, "diff", *shape, "HEAD", "--", *WANTED)


def refusal(untracked: list[str], root: Path) -> str:
    """Return the error message for untracked files."""
    shown = ", ".join(map(repr, untracked[:SHOWN])) + f" and {len(untracked) - SHOWN} more" * (len(untracked) > SHOWN)
    return f"git in {root} does not track {shown}; `git add` or remove them, or use --allow_untracked to copy them too."


def is_work_tree(root: Path) -> bool:
    """Whether git tracks files of the project's packages here. Raises ValueError if git fails for another reason."""
    try:
        return bool(git(root, "ls-files", "-z", "--", *PACKAGES))
    except FileNotFoundError:
        return False
    except ValueError as error:
        if "not a git repository" in str(error):
            return False
        raise


def git(root: Path, *words: str) -> bytes:
    """Return the output of git in the work tree of `root`. Raises ValueError, with git's error message, if it fails."""
    # Inside a git hook, these variables point to another work tree.
    misleading = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    inherited = {name: value for name, value in os.environ.items() if name not in misleading}
    environment = inherited | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, env=environment)
    require(done.returncode == 0, f"git {words[0]} in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def split(listed: bytes) -> list[str]:
    """Split the output of git into names that end with zero bytes."""
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]
