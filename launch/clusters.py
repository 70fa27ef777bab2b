"""Cluster profiles: where a job runs, and with which resources. Profiles of the user override the shipped ones."""

import difflib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jobs.plain_yaml import read_yaml_file
from jobs.settings import refuse_control, require
from launch.ends import DEFAULT_RESTARTS
from launch.widths import Nodes, bounds, checked

SHIPPED = Path(__file__).with_name("clusters.yaml")
VARIABLE = "DEEPLENSE_CLUSTERS"
LEAST = {"gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1, "signal_delay_s": 1}
POSITIVE = ("hours", "memory_gb_per_task")
PATHS = ("scratch", "image", "slurm_conf")
SLURM_ONLY = ("partition", "account", "qos", "constraint", "reservation", "slurm_conf", "mail", "sbatch")
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
"""Maps an option of sbatch to the profile key that sets it."""
TRUTHS = ("yes", "no", "on", "off", "true", "false")
DECIDED = (
    "array",
    "clusters",
    "error",
    "job-name",
    "no-requeue",
    "open-mode",
    "output",
    "parsable",
    "quiet",
    "requeue",
)
DECIDED += ("test-only", "wait", "wrap")
"""Options of sbatch that `deeplense submit` sets itself."""


def load_clusters() -> dict[str, "Cluster"]:
    """Return all profiles by name: `local`, the shipped ones, and those of the user, which override the others.

    Raises ValueError, naming file and profile, if one is invalid.
    """
    clusters = {"local": Cluster(name="local", executor="local", hours=720.0)}
    for path in (SHIPPED, user_file()):
        clusters |= read_clusters(path) if path else {}
    return clusters


def find_cluster(name: str) -> "Cluster":
    """Return the profile of this name, with `~` and variables in its paths expanded.

    Raises ValueError for an unknown name, with the closest and all known names, or if a variable is not set.
    """
    clusters = load_clusters()
    where = f"Profiles are read from {VARIABLE} or {default_user_file()}."
    require(name in clusters, f"unknown cluster {name!r}. {nearest(name, clusters, every=True)} {where}")
    return expand_paths(clusters[name])


def user_file() -> Path | None:
    """Return the file with the user's profiles, if it exists. Raises ValueError if the variable names no file."""
    given = os.environ.get(VARIABLE)
    path = Path(given).expanduser() if given else default_user_file()
    require(not given or path.is_file(), f"{VARIABLE}={given} is not a file; correct it or unset it.")
    return path if path.is_file() else None


def default_user_file() -> Path:
    """Return the default path of the user's profiles."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "deeplense" / "clusters.yaml"


def read_clusters(path: Path) -> dict[str, "Cluster"]:
    """Read the profiles in a file. Raises ValueError, naming file and profile, if one is invalid."""
    profiles = read_yaml_file(path) or {}
    try:
        require(
            isinstance(profiles, dict),
            "the file is not a mapping of profiles; write NAME: and, indented below it, the keys.",
        )
        return {name: read_cluster(name, profile or {}, source=str(path)) for name, profile in profiles.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_cluster(name: Any, profile: Any, *, source: str) -> "Cluster":
    """Make a profile from parsed YAML. Raises ValueError if it is invalid."""
    require(isinstance(profile, dict), f"cluster {name!r}: {profile!r} is not a profile; write keys with values.")
    refuse_unknown(f"cluster {name!r}", profile)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in profile.items()}
    return Cluster(name=name, source=source, **values)


def refuse_unknown(where: str, given: Iterable[Any]) -> None:
    """Raise ValueError, with the closest valid key, for an unknown key."""
    keys = [known.name for known in fields(Cluster) if known.name not in ("name", "source")]
    for key in given:
        if key not in keys:
            same = KEY_OF.get(str(key).replace("_", "-"))
            hint = f"Use {same} instead." if same else nearest(str(key), keys)
            raise ValueError(f"{where}: unknown key {key!r}. {hint}")


def nearest(wrong: str, right: Iterable[str], *, every: bool = False) -> str:
    """Return a hint with the closest valid name, and with all names if none is close or if `every` is set."""
    near = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    meant, names = [f"Did you mean {name}?" for name in near], f"Known names: {', '.join(sorted(right))}."
    return " ".join([*meant, names] if every or not near else meant)


def expand_paths(cluster: "Cluster") -> "Cluster":
    """Return a profile with `~` and variables in its paths expanded. Raises ValueError if a variable is not set."""
    given = {key: getattr(cluster, key) for key in PATHS if getattr(cluster, key) is not None}
    paths = {key: os.path.expanduser(os.path.expandvars(value)) for key, value in given.items()}
    for key, path in paths.items():
        unset = f"cluster {cluster.name!r}: {key}: {given[key]!r} contains a variable that is not set"
        require("$" not in path, f"{unset}; set it, or write the full path.")
    return cluster.override(**paths)


def describe(clusters: Mapping[str, "Cluster"]) -> list[str]:
    """Return a table of profiles: a header line, then one line per profile."""
    head = ("CLUSTER", "EXECUTOR", "PARTITION", "NODES x GPUS", "HOURS", "IMAGE", "FROM")
    rows = [head, *(table_row(cluster) for cluster in clusters.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def table_row(cluster: "Cluster") -> tuple[str, ...]:
    """Return the table row of a profile."""
    size = f"{cluster.nodes} x {cluster.gpus or 0}"
    texts = (cluster.partition or "-", size, f"{cluster.hours:g}", cluster.image or "-", cluster.source)
    return (cluster.name, cluster.executor, *texts)


def check_type(where: str, value: Any, kind: Any) -> None:
    """Raise ValueError, with how to write it, if a value does not have this type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is not None:
            check_type(where, value, parts[0])
    elif origin is Literal:
        require(value in parts, f"{where}: {value!r} is not one of: {', '.join(parts)}.")
    elif origin is tuple:
        require(
            isinstance(value, tuple), f"{where}: {value!r} is not a list; write {where}: [{json.dumps(str(value))}]."
        )
        for place, item in enumerate(value, 1):
            check_type(f"{where}, item {place}", item, parts[0])
    elif origin is dict:
        require(
            isinstance(value, dict), f"{where}: {value!r} is not a mapping; write NAME: VALUE, indented below {where}."
        )
        for name, item in value.items():
            check_type(f"a name in {where}", name, str)
            check_type(f"{where}.{name}", item, parts[1])
    else:
        check_plain(where, value, kind)


def check_plain(where: str, value: Any, kind: type) -> None:
    """Raise ValueError if a value is not of this scalar type: bool, str, int or finite float."""
    if kind is bool:
        require(
            isinstance(value, bool),
            f"{where}: {value!r} is neither true nor false; write {where}: true or {where}: false.",
        )
        return
    if kind is str:
        require(
            isinstance(value, str), f"{where}: {value!r} is not text; write it in quotes: {json.dumps(str(value))}."
        )
        return
    numbers = (int,) if kind is int else (int, float)
    right = isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    require(
        right, f"{where}: {value!r} is not {'an integer' if kind is int else 'a number'}; {number_hint(value, kind)}."
    )


def number_hint(value: Any, kind: type) -> str:
    """Return how to write the number that was probably meant."""
    written = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"-?\d+" if kind is int else r"-?\d+(\.\d+)?", written):
        return f"write {written}, without quotes"
    return f"write a number such as {4 if kind is int else 1.5}, or leave the key out"


def check_ranges(cluster: "Cluster") -> None:
    """Raise ValueError for numbers out of range."""
    for key, least in LEAST.items():
        value = getattr(cluster, key)
        require(value is None or value >= least, f"{key}: {value} is too small; set {least} or more.")
    for key in POSITIVE:
        value = getattr(cluster, key)
        require(value is None or value > 0, f"{key}: {value} is too small; set a value above 0.")
    limit_s, delay_s = cluster.hours * 3600, cluster.signal_delay_s
    early = (
        f"hours: {cluster.hours:g} is {limit_s:.0f} s, but the stop signal is sent signal_delay_s: {delay_s} earlier"
    )
    require(delay_s < limit_s, f"{early}; set more hours or a shorter delay.")


def check_texts(cluster: "Cluster") -> None:
    """Raise ValueError for empty texts, control characters, relative paths, and invalid names of shell variables."""
    # `setup` is shell code, whose lines may be indented or continued.
    refuse_control({known.name: getattr(cluster, known.name) for known in fields(cluster) if known.name != "setup"})
    for known in fields(cluster):
        require(getattr(cluster, known.name) != "", f"{known.name} is empty; set a value or leave the key out.")
    for key in PATHS:
        path = getattr(cluster, key)
        require(not path or path[0] in "/~$", f"{key}: {path!r} is a relative path; write the full path.")
    for name in cluster.environment:
        right = bool(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII))
        require(right, f"environment: {name!r} is not a valid name of a variable; use letters, digits and _.")


def check_restarts(budgets: Mapping[str, int]) -> None:
    """Raise ValueError for an unknown reason or a budget below 0."""
    for reason, budget in budgets.items():
        require(reason in DEFAULT_RESTARTS, f"restarts: unknown reason {reason!r}. {nearest(reason, DEFAULT_RESTARTS)}")
        require(budget >= 0, f"restarts.{reason}: {budget} is too small; set 0 or more.")


def check_sbatch(options: Mapping[str, str]) -> None:
    """Raise ValueError for an option that has its own profile key, or that `deeplense submit` sets itself."""
    for option, value in options.items():
        right = bool(re.fullmatch(r"[a-z][a-z0-9-]+", option))
        require(
            right, f"sbatch: {option!r} is not the long name of an option; write a name such as nodelist or cpu-freq."
        )
        of_gpus = option in ("gres", "tres-per-node") and "gpu" in value
        key = "gpus_per_node" if of_gpus else KEY_OF.get(option)
        typed = " (and gpu_type)" if key == "gpus_per_node" else ""
        require(not key, f"sbatch: {option} has its own profile key; set {key}{typed} instead.")
        told = f"sbatch.{option}: {value!r} is not a value; write {option}: '' for an option without a value"
        require(value.lower() not in TRUTHS, f"{told}.")
        require(option not in DECIDED, f"sbatch: `deeplense submit` sets {option} itself; leave it out.")


def check_notices(cluster: "Cluster") -> None:
    """Raise ValueError for a command that is not complete, and for mails that are requested in two ways."""
    if cluster.notify is not None:
        try:
            words = shlex.split(cluster.notify)
        except ValueError as error:
            raise ValueError(f"notify: {cluster.notify!r} is not a command ({error}); close the quotes.") from error
        require(bool(words), "notify is empty; write a command or leave the key out.")
    twice = cluster.mail and [option for option in cluster.sbatch if option.startswith("mail-")]
    require(not twice, "mail sets mail-user and mail-type of sbatch; leave these options out, or leave mail out.")


def check_local(cluster: "Cluster") -> None:
    """Raise ValueError if a profile of this machine sets keys for Slurm, or `local` is not this machine."""
    if cluster.executor == "local":
        useless = [key for key in SLURM_ONLY if getattr(cluster, key)] + ["nodes"] * (cluster.most_nodes > 1)
        require(not useless, f"executor: local runs on this machine, without Slurm; leave out {', '.join(useless)}.")
    right = cluster.name != "local" or cluster.executor == "local"
    require(right, "the name `local` is reserved for this machine; write executor: local, or rename the cluster.")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster profile: where a job runs, and with which resources. Raises ValueError for invalid values."""

    name: str
    source: str = field(default="built in", compare=False)
    """file that defines the profile"""
    executor: Literal["slurm", "local"] = "slurm"
    """`local` runs on this machine, without Slurm"""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """required node features, such as `a100|h100`"""
    reservation: str | None = None
    nodes: Nodes = 1
    """number of nodes, or a range such as `1:4`, of which each attempt gets what is free"""
    gpus_per_node: int = 0
    gpu_type: str | None = None
    """type of GPU, such as `a100`, if Slurm requires one"""
    tasks_per_node: int | None = None
    """number of ranks per node; by default one per GPU, or one without GPUs"""
    cpus_per_task: int = 1
    memory_gb_per_task: float | None = None
    hours: float = 1.0
    """time limit of one attempt, in hours"""
    signal_delay_s: int = 120
    """time between the stop signal and the time limit, in seconds"""
    setup: tuple[str, ...] = ()
    """shell lines that run on the node before the job, such as `module load cuda`"""
    scratch: str | None = None
    """folder that is visible on all nodes"""
    node_local: str | None = None
    """fast local folder on each node; may contain variables of the node's shell, such as `$SLURM_TMPDIR`"""
    image: str | None = None
    """path of an Apptainer image; by default, jobs use the Python that submits them"""
    apptainer: str = "apptainer --quiet exec"
    """Apptainer command, with options such as `--userns`"""
    binds: tuple[str, ...] = ()
    """additional folders to mount in the container, in the syntax of `--bind`"""
    environment: dict[str, str] = field(default_factory=dict)
    """environment variables of the job"""
    python: str | None = None
    """Python interpreter on the nodes; by default `python` of the image, or the one that submits"""
    restarts: dict[str, int] = field(default_factory=dict)
    """maximum number of restarts without progress, per reason; reasons that are left out keep their default"""
    successor: bool = True
    """whether to queue a successor job, which resumes the run if its job ends without requeueing itself; set false if
    the number of jobs per user is limited"""
    notify: str | None = None
    """command to call when a run finishes, fails, or stands still, with the run folder, the event and the reason as
    further arguments"""
    mail: str | None = None
    """address to which Slurm sends a mail when a job ends"""
    sbatch: dict[str, str] = field(default_factory=dict)
    """further options of sbatch by their long name; use an empty value for an option without a value"""
    slurm_conf: str | None = None
    """SLURM_CONF of the Slurm commands, if it is not the default of the machine"""

    def __post_init__(self) -> None:
        try:
            for name, kind in get_type_hints(Cluster).items():
                if name != "nodes":
                    check_type(name, getattr(self, name), kind)
            object.__setattr__(self, "nodes", checked(self.nodes))
            right = bool(re.fullmatch(r"[\w.-]+", self.name))
            require(right, "the name is invalid; use only letters, digits, dot, dash and underscore.")
            check_ranges(self)
            check_texts(self)
            check_restarts(self.restarts)
            check_sbatch(self.sbatch)
            check_notices(self)
            check_local(self)
        except ValueError as error:
            raise ValueError(f"cluster {self.name!r}: {error}") from error
        object.__setattr__(self, "restarts", dict(DEFAULT_RESTARTS) | self.restarts)

    @property
    def tasks_on_node(self) -> int:
        """Number of ranks per node."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def least_nodes(self) -> int:
        """Smallest number of nodes of an attempt."""
        return bounds(self.nodes)[0]

    @property
    def most_nodes(self) -> int:
        """Largest number of nodes of an attempt."""
        return bounds(self.nodes)[1]

    @property
    def tasks(self) -> int:
        """Number of ranks on all nodes, at most."""
        return self.most_nodes * self.tasks_on_node

    @property
    def gpus(self) -> str | None:
        """Value of `--gpus-per-node`, with the GPU type if one is set; None without GPUs."""
        typed = f"{self.gpu_type}:" if self.gpu_type else ""
        return f"{typed}{self.gpus_per_node}" if self.gpus_per_node else None

    def override(self, **given: Any) -> "Cluster":
        """Return a copy with values of the command line. None keeps a value; mappings are merged."""
        refuse_unknown(f"cluster {self.name!r}", given)
        changed = {key: value for key, value in given.items() if value is not None}
        added = {key: getattr(self, key) | value for key, value in changed.items() if isinstance(value, dict)}
        return replace(self, **changed | added)
