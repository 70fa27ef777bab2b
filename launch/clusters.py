"""Cluster profiles: where a job may run, and with what. Some come with deeplense; the user's own go over them."""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jobs.config import refuse_control, require
from jobs.plain_yaml import read_yaml_file
from launch.ends import DEFAULT_RESTARTS

SHIPPED = Path(__file__).with_name("clusters.yaml")
VARIABLE = "DEEPLENSE_CLUSTERS"
LEAST = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1, "signal_delay_s": 1}
POSITIVE = ("hours", "memory_gb_per_task")
PATHS = ("scratch", "image", "slurm_conf")
SLURM_ONLY = ("partition", "account", "qos", "constraint", "reservation", "slurm_conf", "sbatch")
KEY_OF = {
    **{name: name for name in ("partition", "account", "qos", "constraint", "reservation", "nodes")},
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "gpus_per_node"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu"), "tasks_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus_per_task"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory_gb_per_task"),
    "time": "hours",
    "signal": "signal_delay_s",
    "export": "environment",
}
"""The key of a profile that says what an option of sbatch would."""
TRUTHS = ("yes", "no", "on", "off", "true", "false")
DECIDED = ("array", "error", "job-name", "no-requeue", "open-mode", "output", "requeue", "wrap")
"""Options of sbatch that `deeplense submit` decides itself."""


def load_clusters() -> dict[str, "Cluster"]:
    """All profiles by name: `local`, those that come with deeplense, and the user's own, which win.

    Raises ValueError, naming file and profile, where one is wrong.
    """
    clusters = {"local": Cluster(name="local", executor="local", hours=720.0)}
    for path in (SHIPPED, user_file()):
        clusters |= read_clusters(path) if path else {}
    return clusters


def find_cluster(name: str) -> "Cluster":
    """One profile, ready for use: `~` and variables in its paths are expanded.

    Raises ValueError, naming the nearest right one and all, for an unknown name; and where a variable is not set.
    """
    clusters = load_clusters()
    where = f"Profiles are read from {VARIABLE} or {default_user_file()}."
    require(name in clusters, f"there is no cluster {name!r}. {nearest(name, clusters, every=True)} {where}")
    return expand_paths(clusters[name])


def user_file() -> Path | None:
    """The user's own profiles, if there are any. Raises ValueError where the variable names no file."""
    given = os.environ.get(VARIABLE)
    path = Path(given).expanduser() if given else default_user_file()
    require(not given or path.is_file(), f"{VARIABLE}={given} is no file; correct it or unset it.")
    return path if path.is_file() else None


def default_user_file() -> Path:
    """Where the user's own profiles are looked for."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "deeplense" / "clusters.yaml"


def read_clusters(path: Path) -> dict[str, "Cluster"]:
    """The profiles of one file. Raises ValueError, naming file and profile."""
    profiles = read_yaml_file(path) or {}
    try:
        require(isinstance(profiles, dict), "it holds no profiles; write NAME: and below it, indented, its keys.")
        return {name: read_cluster(name, profile or {}, source=str(path)) for name, profile in profiles.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_cluster(name: Any, profile: Any, *, source: str) -> "Cluster":
    """One profile from what YAML gives. Raises ValueError."""
    require(isinstance(profile, dict), f"cluster {name!r}: {profile!r} is no profile; give keys and their values.")
    refuse_unknown(f"cluster {name!r}", profile)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in profile.items()}
    return Cluster(name=name, source=source, **values)


def refuse_unknown(where: str, given: Iterable[Any]) -> None:
    """Raise ValueError, with the nearest right one, for a key that no profile has."""
    keys = [known.name for known in fields(Cluster) if known.name not in ("name", "source")]
    for key in given:
        if key not in keys:
            same = KEY_OF.get(str(key).replace("_", "-"))
            hint = f"It is called {same}." if same else nearest(str(key), keys)
            raise ValueError(f"{where}: there is no key {key!r}. {hint}")


def nearest(wrong: str, right: Iterable[str], *, every: bool = False) -> str:
    """A sentence that says which name was meant; all names where none is near, or `every` time."""
    near = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    meant, names = [f"Did you mean {name}?" for name in near], f"There are: {', '.join(sorted(right))}."
    return " ".join([*meant, names] if every or not near else meant)


def expand_paths(cluster: "Cluster") -> "Cluster":
    """The same profile with `~` and variables in its paths expanded. Raises ValueError where a variable is not set."""
    given = {key: getattr(cluster, key) for key in PATHS if getattr(cluster, key) is not None}
    paths = {key: os.path.expanduser(os.path.expandvars(value)) for key, value in given.items()}
    for key, path in paths.items():
        unset = f"cluster {cluster.name!r}: {key}: {given[key]!r} has a variable that is not set here"
        require("$" not in path, f"{unset}; set it, or write the path out.")
    return cluster.override(**paths)


def describe(clusters: Mapping[str, "Cluster"]) -> list[str]:
    """A table of profiles, a line for each under a line of headings."""
    head = ("CLUSTER", "EXECUTOR", "PARTITION", "NODES x GPUS", "HOURS", "IMAGE", "FROM")
    rows = [head, *(table_row(cluster) for cluster in clusters.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def table_row(cluster: "Cluster") -> tuple[str, ...]:
    """What the table says of one profile."""
    size = f"{cluster.nodes} x {cluster.gpus or 0}"
    texts = (cluster.partition or "-", size, f"{cluster.hours:g}", cluster.image or "-", cluster.source)
    return (cluster.name, cluster.executor, *texts)


def check_type(where: str, value: Any, kind: Any) -> None:
    """Raise ValueError, saying how it is written, where a value is not of this kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is not None:
            check_type(where, value, parts[0])
    elif origin is Literal:
        require(value in parts, f"{where}: {value!r} is not one of: {', '.join(parts)}.")
    elif origin is tuple:
        require(isinstance(value, tuple), f"{where}: {value!r} is no list; write {where}: [{json.dumps(str(value))}].")
        for place, item in enumerate(value, 1):
            check_type(f"{where}, item {place}", item, parts[0])
    elif origin is dict:
        require(isinstance(value, dict), f"{where}: {value!r} has no names; write NAME: VALUE below {where}, indented.")
        for name, item in value.items():
            check_type(f"a name in {where}", name, str)
            check_type(f"{where}.{name}", item, parts[1])
    else:
        check_plain(where, value, kind)


def check_plain(where: str, value: Any, kind: type) -> None:
    """Raise ValueError where a value is no text, no whole number or no finite number, as is asked for."""
    if kind is str:
        require(
            isinstance(value, str), f"{where}: {value!r} is not text; write it in quotes: {json.dumps(str(value))}."
        )
        return
    numbers = (int,) if kind is int else (int, float)
    right = isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"{where}: {value!r} is not {'a whole' if kind is int else 'a'} number; {number_hint(value, kind)}.")


def number_hint(value: Any, kind: type) -> str:
    """How the number that was meant is written."""
    written = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"-?\d+" if kind is int else r"-?\d+(\.\d+)?", written):
        return f"write {written}, without quotes"
    return f"write one such as {4 if kind is int else 1.5}, or leave the key out"


def check_ranges(cluster: "Cluster") -> None:
    """Raise ValueError for numbers that no cluster has."""
    for key, least in LEAST.items():
        value = getattr(cluster, key)
        require(value is None or value >= least, f"{key}: {value} is too small; give {least} or more.")
    for key in POSITIVE:
        value = getattr(cluster, key)
        require(value is None or value > 0, f"{key}: {value} is too small; give more than 0.")
    limit_s, delay_s = cluster.hours * 3600, cluster.signal_delay_s
    early = f"hours: {cluster.hours:g} is {limit_s:.0f} s, and a job is told to stop signal_delay_s: {delay_s} before"
    require(delay_s < limit_s, f"{early}; give more hours or a shorter delay.")


def check_texts(cluster: "Cluster") -> None:
    """Raise ValueError for texts that are empty or have control characters, paths that depend on the folder, and names
    that a shell refuses."""
    # `setup` is shell code, whose lines may be indented or continued.
    refuse_control({known.name: getattr(cluster, known.name) for known in fields(cluster) if known.name != "setup"})
    for known in fields(cluster):
        require(getattr(cluster, known.name) != "", f"{known.name} is empty; give a value or leave the key out.")
    for key in PATHS:
        path = getattr(cluster, key)
        require(not path or path[0] in "/~$", f"{key}: {path!r} depends on the folder one is in; write the whole path.")
    for name in cluster.environment:
        right = bool(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII))
        require(right, f"environment: {name!r} is no name of a variable.")


def check_restarts(budgets: Mapping[str, int]) -> None:
    """Raise ValueError for a reason that there is not, or a budget below 0."""
    for reason, budget in budgets.items():
        require(
            reason in DEFAULT_RESTARTS, f"restarts: there is no reason {reason!r}. {nearest(reason, DEFAULT_RESTARTS)}"
        )
        require(budget >= 0, f"restarts.{reason}: {budget} is too small; give 0 or more.")


def check_sbatch(options: Mapping[str, str]) -> None:
    """Raise ValueError for an option that has a key of its own, or that submitting decides."""
    for option, value in options.items():
        right = bool(re.fullmatch(r"[a-z][a-z0-9-]+", option))
        require(right, f"sbatch: {option!r} is not the long name of an option; write it like nodelist or cpu-freq.")
        of_gpus = option in ("gres", "tres-per-node") and "gpu" in value
        key = "gpus_per_node" if of_gpus else KEY_OF.get(option)
        typed = " (and gpu_type)" if key == "gpus_per_node" else ""
        require(not key, f"sbatch: {option} has a key of its own; give {key}{typed} instead.")
        told = f"sbatch.{option}: {value!r} is no value; write {option}: '' for an option without one"
        require(value.lower() not in TRUTHS, f"{told}.")
        require(option not in DECIDED, f"sbatch: `deeplense submit` decides {option} itself; leave it out.")


def check_local(cluster: "Cluster") -> None:
    """Raise ValueError where a profile of this machine asks for what only Slurm gives, or `local` is something else."""
    if cluster.executor == "local":
        useless = [key for key in SLURM_ONLY if getattr(cluster, key)] + ["nodes"] * (cluster.nodes > 1)
        require(not useless, f"executor: local is this machine, without Slurm; leave out {', '.join(useless)}.")
    right = cluster.name != "local" or cluster.executor == "local"
    require(right, "`local` is this machine; write executor: local, or give the cluster another name.")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a job runs, and with what. Raises ValueError for values of a wrong type or out of range."""

    name: str
    source: str = field(default="built in", compare=False)
    """the file that it comes from"""
    executor: Literal["slurm", "local"] = "slurm"
    """`local` is this machine"""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """features of nodes, such as `a100|h100`"""
    reservation: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    """where Slurm wants one, such as `a100`"""
    tasks_per_node: int | None = None
    """ranks on a node; one for each GPU if not given, else one"""
    cpus_per_task: int = 1
    memory_gb_per_task: float | None = None
    hours: float = 1.0
    """time limit of one attempt"""
    signal_delay_s: int = 120
    """how long before the time limit a job is told to stop"""
    setup: tuple[str, ...] = ()
    """lines of shell that run before on the node, such as `module load cuda`"""
    scratch: str | None = None
    """a folder that all nodes see"""
    node_local: str | None = None
    """a fast folder of each node; variables of the node's shell are allowed, such as `$SLURM_TMPDIR`"""
    image: str | None = None
    """an Apptainer image; without one, the Python that submits is used"""
    apptainer: str = "apptainer --quiet exec"
    """the command, with options such as `--userns`"""
    binds: tuple[str, ...] = ()
    """further folders that the container sees, as `--bind` takes them"""
    environment: dict[str, str] = field(default_factory=dict)
    """variables of the job"""
    python: str | None = None
    """the interpreter on the nodes; `python` in an image, else the one that submits"""
    restarts: dict[str, int] = field(default_factory=dict)
    """how often a run is started again, by why the attempt ended; complete, however few are given"""
    sbatch: dict[str, str] = field(default_factory=dict)
    """further options of sbatch by their long name; an empty value for one that takes none"""
    slurm_conf: str | None = None
    """the clients' SLURM_CONF, where it is not the machine's own"""

    def __post_init__(self) -> None:
        try:
            for name, kind in get_type_hints(Cluster).items():
                check_type(name, getattr(self, name), kind)
            right = bool(re.fullmatch(r"[\w.-]+", self.name))
            require(right, "the name of a cluster is made of letters, digits, dot, dash and underscore.")
            check_ranges(self)
            check_texts(self)
            check_restarts(self.restarts)
            check_sbatch(self.sbatch)
            check_local(self)
        except ValueError as error:
            raise ValueError(f"cluster {self.name!r}: {error}") from error
        object.__setattr__(self, "restarts", dict(DEFAULT_RESTARTS) | self.restarts)

    @property
    def tasks_on_node(self) -> int:
        """Ranks on each node."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def tasks(self) -> int:
        """Ranks on all nodes together."""
        return self.nodes * self.tasks_on_node

    @property
    def gpus(self) -> str | None:
        """What `--gpus-per-node` is told, with the type where there is one; None without GPUs."""
        typed = f"{self.gpu_type}:" if self.gpu_type else ""
        return f"{typed}{self.gpus_per_node}" if self.gpus_per_node else None

    def override(self, **given: Any) -> "Cluster":
        """A copy with values of the command line: None is not given, names and values are added to those there are."""
        refuse_unknown(f"cluster {self.name!r}", given)
        changed = {key: value for key, value in given.items() if value is not None}
        added = {key: getattr(self, key) | value for key, value in changed.items() if isinstance(value, dict)}
        return replace(self, **changed | added)
