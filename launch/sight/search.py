"""Find the run folders below some folders. The copies of code, checkpoints and logs in them are not searched."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jobs.runs.attempts import ATTEMPTS, STACKS
from jobs.runs.environment import SNAPSHOT
from jobs.runs.folder import LAUNCH, LOGS, NOTICES

RUNS = "runs"
"""Name of the usual folder of runs. Where it is a symbolic link, such as to a scratch disk, it is searched as well."""
OF_A_RUN = {"checkpoints", "report", LOGS, NOTICES, STACKS, "wandb"}
"""Folders in a run that contain no other runs."""
MOVED_ASIDE = re.compile(r"old-\d{8}-\d{6}")
"""Name of a folder to which a pipeline moved earlier results. To resume a run there would train in its former folder.
"""


def find_runs(roots: Sequence[Path]) -> list[Path]:
    """Return the folders of all runs in or below these, both submitted and started directly, each once. Folders whose
    name begins with a dot are left out, those of earlier results of a pipeline, and those that vanish meanwhile."""
    found = (folder for root in roots for folder in sorted(below(str(root), links=(RUNS,))))
    return list(dict.fromkeys(map(Path, found)))


def below(folder: str, *, links: Collection[str] = ()) -> Iterator[str]:
    """Yield the run folders in or below a folder. Of the symbolic links in it, those with these names are followed."""
    names, inner = entries(folder, links)
    if SNAPSHOT in names:  # a copy of the code of a run
        return
    is_run = ATTEMPTS in names or LAUNCH in names
    if is_run:
        yield folder
    for name in inner:
        if not (is_run and name in OF_A_RUN) and not MOVED_ASIDE.fullmatch(name):
            yield from below(f"{folder}/{name}")


def entries(folder: str, links: Collection[str]) -> tuple[set[str], list[str]]:
    """Return the names of the files in a folder, and of the folders to search in it."""
    names, inner = set(), []
    with contextlib.suppress(OSError), os.scandir(folder or ".") as found:
        for entry in found:
            if not entry.is_dir(follow_symlinks=entry.name in links):
                names.add(entry.name)
            elif not entry.name.startswith("."):
                inner.append(entry.name)
    return names, inner
