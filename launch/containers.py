"""Jobs in an Apptainer image: the command that runs a container, and the folders that are mounted in it."""

import contextlib
import glob
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.runs.stored import stored_config
from jobs.settings import require
from launch.submission import Submission

MOST_LINKS = 40
"""Maximum number of symbolic links that Linux follows in a path."""
MOST_RUNS = 3
"""Maximum depth of runs that name other runs: a run may name a backbone, whose settings name another run."""
ROOTS = ("data_root", "runs_root")
"""Settings that name a root folder, to which paths in other settings may be relative."""


def container_words(submission: Submission) -> list[str]:
    """Return the words that run a command in the image of the cluster, with access to its GPUs if there are any."""
    cluster = submission.cluster
    assert cluster.image
    gpus = ["--nv"] if cluster.gpus_per_node else []
    binds = [word for bind in binds_of(submission) for word in ("--bind", bind)]
    return [*shlex.split(cluster.apptainer), *gpus, *binds, cluster.image]


def binds_of(submission: Submission) -> list[str]:
    """Return the folders to mount in the container: code, runs, logs, current folder, scratch, and all paths in the
    settings of all commands, both as written and with symbolic links resolved. Raises ValueError for a path with
    characters that have a special meaning for `--bind`."""
    cluster = submission.cluster
    ours = [Path.cwd(), submission.code, submission.logs, *([Path(cluster.scratch)] if cluster.scratch else [])]
    runs = {folder.parent if len(folder.parts) > 2 else folder for folder in submission.folders}
    named = paths_named([*submission.recipes, *map(vars, submission.settings)])
    folders = [folder for path in [*ours, *runs] for folder in ways(path)]
    folders += [folder for path in named for folder in ways_to(path)]
    local = [cluster.node_local] if cluster.node_local and "$" not in cluster.node_local else []
    return [*map(bindable, outermost(folders)), *local, *cluster.binds]


def paths_named(groups: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Return the paths in settings, those in the settings of runs among them, and the symbolic links in these."""
    found = dict.fromkeys(path for settings in groups for path in paths_in(settings))
    for _ in range(MOST_RUNS):
        found |= dict.fromkeys(path for folder in list(found) for path in paths_of_run(folder))
    return [*found, *(link for folder in found for link in links_in(folder))]


def paths_in(settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the paths among the values of settings: values of type Path, and texts or lists of texts that name
    existing files."""
    given = {name: settings[name] for name in ROOTS if settings.get(name)}
    roots = [Path(), *map(Path, given.values())]
    for value in settings.values():
        if isinstance(value, Mapping):
            yield from paths_in(given | dict(value))
        elif isinstance(value, Path):
            yield value
        elif isinstance(value, str):
            texts = {value, *re.split(r"[,+]", value)}
            named = [root / text.strip() for text in sorted(texts) if text.strip() for root in roots]
            yield from (path for name in named for path in existing(name))


def existing(path: Path) -> list[Path]:
    """Return a path if it exists, or else the paths that match it as a glob pattern."""
    if os.path.lexists(path):
        return [path]
    return [Path(name) for name in glob.glob(str(path))] if glob.has_magic(str(path)) else []


def links_in(folder: Path) -> Iterator[Path]:
    """Yield the symbolic links directly in a folder, such as splits and checkpoints that are stored elsewhere."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (Path(entry.path) for entry in entries if entry.is_symlink())


def paths_of_run(folder: Path) -> Iterator[Path]:
    """Yield the paths in the settings of a run, if the folder is one: a job that uses the run also needs its data."""
    with contextlib.suppress(ValueError, OSError):
        yield from paths_in(stored_config(folder))


def ways_to(path: Path) -> Iterator[Path]:
    """Yield the folders that must be mounted for a path to resolve as it does here: as written, after each symbolic
    link on the way, and fully resolved. For a path that does not exist yet, yield its closest existing parent."""
    for way in ways(path):
        there = next((each for each in [way, *way.parents] if os.path.exists(each)), way)
        folder = there if there.is_dir() else there.parent
        if folder != Path("/"):
            yield folder


def ways(path: Path) -> Iterator[Path]:
    """Yield the forms of a path as the kernel resolves it, with `..` relative to the target of a link: before each
    symbolic link, and fully resolved. Raises ValueError if links form a loop."""
    done, rest, num_links = Path("/"), [(part, True) for part in path.absolute().parts[1:]], 0
    while rest:
        part, is_written = rest.pop(0)
        here = done / part
        if part == "..":
            if is_written:
                yield done
            done = done.parent
        elif here.is_symlink():
            num_links += 1
            require(num_links <= MOST_LINKS, f"{path}: its symbolic links form a loop; set the real path.")
            yield here.joinpath(*(name for name, _ in itertools.takewhile(lambda each: each[0] != "..", rest)))
            target = Path(os.readlink(here))
            done = Path("/") if target.is_absolute() else done
            rest = [(name, False) for name in target.parts if name != "/"] + rest
        else:
            done = here
    yield done


def bindable(folder: Path) -> str:
    """Return a folder in the syntax of `--bind`. Raises ValueError for characters that separate folders there."""
    signs = [sign for sign in ",:" if sign in str(folder)]
    told = (
        f"{folder} must be mounted in the image, but Apptainer's --bind reads the {signs[0] if signs else ''!r} in it"
    )
    require(not signs, f"{told} as a separator; rename the folder, or use one without this character.")
    return str(folder)


def outermost(folders: Iterable[Path]) -> list[Path]:
    """Return the folders without those that are inside others."""
    whole = set(folders)
    return sorted(path for path in whole if not any(other in whole for other in path.parents))
