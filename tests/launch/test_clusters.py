"""Profiles of clusters: what is written is what is used, and what is wrong is said by file, profile and key."""

import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import clusters
from launch.clusters import SHIPPED, Cluster, describe, find_cluster, load_clusters
from launch.ends import DEFAULT_RESTARTS as BUDGETS

KEYS = [field.name for field in fields(Cluster) if field.name not in ("name", "source")]


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own profiles are looked for; there are none yet."""
    monkeypatch.delenv("DEEPLENSE_CLUSTERS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "deeplense" / "clusters.yaml"


def write(path: Path, text: str) -> Path:
    """A file of profiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cluster(**values: Any) -> Cluster:
    """A profile of a cluster with these values."""
    return Cluster(name="mine", **values)


def example() -> str:
    """The commented example of the shipped file, as a file."""
    _, _, text = SHIPPED.read_text().partition("# example:")
    return "example:" + re.sub(r"^#", "", text, flags=re.M)


def test_this_machine_and_the_rehearsal_are_always_there() -> None:
    found = load_clusters()
    assert found.keys() == {"local", "rehearsal"}
    assert (found["local"].executor, found["local"].nodes, found["local"].tasks) == ("local", 1, 1)
    rehearsal = found["rehearsal"]
    assert (rehearsal.executor, rehearsal.partition, rehearsal.image) == ("slurm", "normal", None)
    assert rehearsal.slurm_conf == "/tmp/deeplense-rehearsal/slurm.conf"


def test_profiles_are_installed_with_the_package() -> None:
    project = Path(clusters.__file__).parents[1] / "pyproject.toml"
    data = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]
    assert SHIPPED.name in data.get("launch", [])


def test_the_example_shows_every_key_and_is_right(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    write(config, example())
    assert list(yaml.safe_load(example())["example"]) == KEYS
    found = find_cluster("example")
    assert (found.account, found.gpus, found.tasks) == ("0042", "a100:4", 8)
    assert found.setup == ("module load apptainer",)
    assert (found.restarts["crash"], found.restarts["time limit"], found.restarts["hang"]) == (1, 30, 3)
    assert found.sbatch == {"exclude": "n[1-2]", "exclusive": ""}


def test_the_users_profiles_are_added_and_win(config: Path) -> None:
    write(config, "rehearsal: {partition: urgent}\nmine: {nodes: 2}\nlater:\n")
    found = load_clusters()
    assert found.keys() == {"local", "rehearsal", "mine", "later"}
    assert (found["rehearsal"].partition, found["rehearsal"].slurm_conf) == ("urgent", None)
    assert (found["mine"].nodes, found["mine"].source) == (2, str(config))


def test_the_variable_goes_over_the_usual_place(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(config, "usual: {}\n")
    monkeypatch.setenv("DEEPLENSE_CLUSTERS", str(write(tmp_path / "other.yaml", "other: {}\n")))
    assert load_clusters().keys() == {"local", "rehearsal", "other"}
    monkeypatch.setenv("DEEPLENSE_CLUSTERS", "")
    assert load_clusters().keys() == {"local", "rehearsal", "usual"}
    monkeypatch.setenv("DEEPLENSE_CLUSTERS", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ValueError, match=r"DEEPLENSE_CLUSTERS=.*nowhere\.yaml is not a file"):
        load_clusters()


def test_without_xdg_the_users_profiles_are_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / ".config" / "deeplense" / "clusters.yaml", "mine: {}\n")
    assert "mine" in load_clusters()


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("partition: 3", 'partition: 3 is not text; write it in quotes: "3".'),
        ("partition: false", "partition: False is not text"),
        ("partition: ''", "partition is empty; set a value or leave the key out."),
        ("hours: '24'", "hours: '24' is not a number; write 24, without quotes."),
        ("hours: 24:00:00", "hours: '24:00:00' is not a number; write a number such as 1.5"),
        ("hours: 1:30", "hours: '1:30' is not a number"),
        ("hours:", "hours: None is not a number; write a number such as 1.5, or leave the key out."),
        ("hours: yes", "hours: 'yes' is not a number"),
        ("hours: .inf", "hours: '.inf' is not a number"),
        ("hours: 0", "hours: 0 is too small; set a value above 0."),
        ("hours: 0.03", "hours: 0.03 is 108 s, but the stop signal is sent signal_delay_s: 120 earlier"),
        ("nodes: 1.0", "nodes: 1.0 is neither an integer nor a range MIN:MAX; write a number such as 4, or a range"),
        ("nodes: '2'", "nodes: '2' is neither an integer nor a range MIN:MAX; write 2, without quotes."),
        ("nodes: '2.5'", "nodes: '2.5' is neither an integer nor a range MIN:MAX; write a number such as 4"),
        ("nodes: 1-4", "nodes: '1-4' is neither an integer nor a range MIN:MAX; write 1:4."),
        ("nodes: 1:2:3", "nodes: '1:2:3' is neither an integer nor a range"),
        ("nodes: true", "nodes: True is neither an integer nor a range"),
        ("nodes: 4:1", "nodes: 4:1 begins with 4, which is more than 1; write the smaller number first: 1:4."),
        ("nodes: 0:4", "nodes: 0:4 begins at 0, but a job has at least one node; write 1:4."),
        ("memory_gb_per_task: '2.5'", "write 2.5, without quotes"),
        ("{hours: 0.5, signal_delay_s: 1800}", "hours: 0.5 is 1800 s"),
        ("nodes: 0", "nodes: 0 is too small; set 1 or more."),
        ("nodes: [2]", "nodes: (2,) is neither an integer nor a range"),
        ("gpus_per_node: -1", "gpus_per_node: -1 is too small; set 0 or more."),
        ("tasks_per_node: 0", "tasks_per_node: 0 is too small"),
        ("cpus_per_task: 0", "cpus_per_task: 0 is too small"),
        ("memory_gb_per_task: -4", "memory_gb_per_task: -4 is too small"),
        ("memory_gb_per_task: 64G", "memory_gb_per_task: '64G' is not a number"),
        ("signal_delay_s: 0", "signal_delay_s: 0 is too small"),
        ("executor: slrum", "executor: 'slrum' is not one of: slurm, local."),
        ("executor: [slurm]", "executor: ('slurm',) is not one of: slurm, local."),
        ("setup: module load cuda", "setup: 'module load cuda' is not a list; write setup: [\"module load cuda\"]."),
        ("setup: [1]", "setup, item 1: 1 is not text"),
        ("successor: 1", "successor: 1 is neither true nor false; write successor: true or successor: false."),
        ("successor: no", "successor: 'no' is neither true nor false; write successor: true or successor: false."),
        ("binds: {a: b}", "binds: {'a': 'b'} is not a list"),
        ("environment: [A=1]", "environment: ('A=1',) is not a mapping; write NAME: VALUE, indented below environment"),
        ("environment: {A: 1}", 'environment.A: 1 is not text; write it in quotes: "1".'),
        ("environment: {1: a}", "a name in environment: 1 is not text"),
        ("environment: {A-B: a}", "environment: 'A-B' is not a valid name of a variable; use letters, digits and _."),
        ("restarts: {crahs: 1}", "restarts: unknown reason 'crahs'. Did you mean crash?"),
        ("restarts: {crash: -1}", "restarts.crash: -1 is too small"),
        ("restarts: {crash: often}", "restarts.crash: 'often' is not an integer"),
        ("restarts: 3", "restarts: 3 is not a mapping"),
        ("sbatch: {--nodelist: n1}", "sbatch: '--nodelist' is not the long name of an option"),
        ("sbatch: {w: n1}", "sbatch: 'w' is not the long name of an option"),
        ("sbatch: {cpu_freq: low}", "sbatch: 'cpu_freq' is not the long name of an option; write a name such as"),
        (
            "sbatch: {exclusive: yes}",
            "sbatch.exclusive: 'yes' is not a value; write exclusive: '' for an option without a value",
        ),
        ("sbatch: {output: log}", "sbatch: `deeplense submit` sets output itself; leave it out."),
        ("scratch: scratch/me", "scratch: 'scratch/me' is a relative path; write the full path."),
        ("image: image.sif", "image: 'image.sif' is a relative path"),
        ("partion: gpu", "unknown key 'partion'. Did you mean partition?"),
        ("xyzzy: 1", "unknown key 'xyzzy'. Known names: account, apptainer"),
        ("name: other", "unknown key 'name'."),
        ("source: there", "unknown key 'source'."),
        ("time: 1", "unknown key 'time'. Use hours instead."),
        ("cpus-per-task: 1", "unknown key 'cpus-per-task'. Use cpus_per_task instead."),
        ("yes: 1", "unknown key 'yes'."),
        (
            "{executor: local, partition: gpu}",
            "executor: local runs on this machine, without Slurm; leave out partition.",
        ),
        ("{executor: local, nodes: 2}", "leave out nodes."),
        ("{executor: local, nodes: 1:4}", "leave out nodes."),
        ("gpu", "'gpu' is not a profile; write keys with values."),
    ],
)
def test_what_is_wrong_is_said_with_file_profile_and_key(profile: str, said: str, config: Path) -> None:
    write(config, f"right: {{partition: gpu}}\nwrong:\n  {profile}\n")
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        load_clusters()
    assert str(refused.value).startswith(f"{config}: cluster 'wrong': ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine: {nodes: 2", "cannot be read as YAML: .*line 1"),
        ("mine: {account: !!str a}", "cannot be read as YAML: the tag .* is not supported"),
        ("mine: {nodes: 2}\nmine: {nodes: 3}", "the key 'mine' is duplicated.*line 2"),
        ("mine:\n  nodes: 2\n  nodes: 3", "the key 'nodes' is duplicated"),
        ("- mine", "the file is not a mapping of profiles; write NAME:"),
        ("3: {nodes: 2}", "cluster 3: name: 3 is not text"),
        ("my cluster: {nodes: 2}", "cluster 'my cluster': the name is invalid; use only letters"),
        (
            "local: {gpus_per_node: 2}",
            "the name `local` is reserved for this machine; write executor: local, or rename",
        ),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_named(text: str, said: str, config: Path) -> None:
    write(config, text)
    with pytest.raises(ValueError, match=said) as refused:
        load_clusters()
    assert str(refused.value).startswith(str(config))


def test_what_yaml_would_misread_is_read_as_written(config: Path) -> None:
    write(
        config,
        "a: {account: 0042, hours: 24, partition: no, qos: 2024-02-01}\n"
        "b: &b {hours: 0.5, nodes: 3}\nc: {<<: *b, nodes: 4}\n",
    )
    found = load_clusters()
    assert (found["a"].account, found["a"].hours) == ("0042", 24)
    assert (found["a"].partition, found["a"].qos) == ("no", "2024-02-01")
    assert (found["c"].hours, found["c"].nodes) == (0.5, 4)
    assert yaml.safe_load("0042") == 34, "otherwise the reader of our own is not needed"


@pytest.mark.parametrize("option", sorted(clusters.KEY_OF))
def test_an_option_of_sbatch_that_has_a_key_is_refused_with_the_key(option: str) -> None:
    with pytest.raises(ValueError, match=rf"sbatch: {option} has its own profile key; set {clusters.KEY_OF[option]}\b"):
        cluster(sbatch={option: "1"})


def test_generic_resources_are_refused_only_where_they_are_gpus() -> None:
    with pytest.raises(ValueError, match=r"gres has its own profile key; set gpus_per_node \(and gpu_type\)"):
        cluster(sbatch={"gres": "gpu:v100:4"})
    options = {"gres": "nvme:200", "nodelist": "n[1-2]", "exclusive": ""}
    assert cluster(sbatch=options).sbatch == options


def test_keys_that_options_are_refused_for_are_keys() -> None:
    assert set(clusters.KEY_OF.values()) | set(clusters.PATHS) | set(clusters.SLURM_ONLY) <= set(KEYS)


def test_budgets_not_given_are_the_usual_ones() -> None:
    assert cluster().restarts == BUDGETS
    assert cluster(restarts={"hang": 0}).restarts == dict(BUDGETS) | {"hang": 0}
    assert [BUDGETS[end] for end in ("crash", "disk full", "hang", "node lost", "preempted")] == [3, 3, 3, 50, 1000]


@pytest.mark.parametrize(
    ("given", "tasks", "gpus"),
    [
        ({}, 1, None),
        ({"nodes": 3}, 3, None),
        ({"nodes": 2, "gpus_per_node": 4}, 8, "4"),
        ({"nodes": 2, "gpus_per_node": 4, "tasks_per_node": 1}, 2, "4"),
        ({"nodes": 2, "tasks_per_node": 3}, 6, None),
        ({"nodes": "2:5", "tasks_per_node": 3}, 15, None),
        ({"gpus_per_node": 1, "gpu_type": "h100"}, 1, "h100:1"),
        ({"gpu_type": "h100"}, 1, None),
    ],
)
def test_there_is_a_task_for_each_gpu_unless_told_otherwise(
    given: dict[str, Any], tasks: int, gpus: str | None
) -> None:
    assert (cluster(**given).tasks, cluster(**given).gpus) == (tasks, gpus)


def test_a_profile_of_nothing_asks_for_little() -> None:
    asked = cluster()
    assert (asked.executor, asked.nodes, asked.gpus_per_node, asked.cpus_per_task) == ("slurm", 1, 0, 1)
    assert (asked.hours, asked.signal_delay_s, asked.memory_gb_per_task, asked.image) == (1.0, 120, None, None)


def test_the_command_line_goes_over_the_profile_and_leaves_it_as_it_was() -> None:
    before = cluster(nodes=2, partition="gpu", environment={"A": "1", "B": "2"}, restarts={"crash": 1})
    after = before.override(nodes=4, hours=None, gpus_per_node=2, environment={"B": "3"}, restarts={"hang": 0})
    assert (after.nodes, after.hours, after.partition, after.tasks) == (4, 1.0, "gpu", 8)
    assert after.environment == {"A": "1", "B": "3"}
    assert after.restarts == dict(BUDGETS) | {"crash": 1, "hang": 0}
    assert (before.nodes, before.environment) == (2, {"A": "1", "B": "2"})
    assert before.override() == before.override(nodes=None) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nodes": 0}, "cluster 'mine': nodes: 0 is too small"),
        ({"node": 2}, "cluster 'mine': unknown key 'node'. Did you mean nodes?"),
        ({"name": "other"}, "unknown key 'name'"),
        ({"sbatch": {"time": "60"}}, "set hours instead"),
        ({"sbatch": "time"}, "sbatch: 'time' is not a mapping"),
        ({"executor": "local"}, "leave out partition"),
    ],
)
def test_a_wrong_value_of_the_command_line_is_refused_as_in_a_profile(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        cluster(partition="gpu").override(**given)


def test_an_unknown_cluster_is_refused_with_the_nearest_and_all(config: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown cluster 'rehersal'. Did you mean rehearsal\? Known names: local, rehea"
    ) as no:
        find_cluster("rehersal")
    assert str(config) in str(no.value)
    with pytest.raises(ValueError, match=r"unknown cluster 'xyzzy'. Known names: local, rehearsal\."):
        find_cluster("xyzzy")


def test_paths_are_expanded_where_a_cluster_is_used_and_not_before(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK_AREA", "/work area")
    monkeypatch.delenv("ELSEWHERE", raising=False)
    mine = "mine: {scratch: $WORK_AREA/x, image: ~/a.sif, node_local: $SLURM_TMPDIR}"
    write(config, f"{mine}\nother: {{scratch: '${{ELSEWHERE}}/y'}}\n")
    found = find_cluster("mine")
    assert (found.scratch, found.image) == ("/work area/x", os.path.expanduser("~/a.sif"))
    assert found.node_local == "$SLURM_TMPDIR"
    assert load_clusters()["other"].scratch == "${ELSEWHERE}/y"
    with pytest.raises(
        ValueError, match=r"cluster 'other': scratch: '\$\{ELSEWHERE\}/y' contains a variable that is not"
    ):
        find_cluster("other")


def test_the_table_says_where_what_runs_and_where_that_is_said(config: Path) -> None:
    write(config, "mine: {partition: gpu, nodes: 2, gpus_per_node: 4, gpu_type: a100, hours: 12, image: /a.sif}\n")
    head, *rows = describe(load_clusters())
    assert head.split("  ")[0] == "CLUSTER"
    assert [row.split()[0] for row in rows] == ["local", "rehearsal", "mine"]
    assert re.split(r"  +", rows[-1]) == ["mine", "slurm", "gpu", "2 x a100:4", "12", "/a.sif", str(config)]
    assert re.split(r"  +", rows[0]) == ["local", "local", "-", "1 x 0", "720", "-", "built in"]
    assert len({row.index("1 x 0") for row in rows[:2]} | {rows[2].index("2 x"), head.index("NODES")}) == 1
