"""The layers: the science knows no job, a job knows no cluster, and packages of the science do not know each other."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from jobs.verbs import VERBS, Verb

ROOT = Path(__file__).parents[1]
LAYERS = ("deeplense", "jobs", "launch")
SHARED = {"deeplense.files", "deeplense.records", "deeplense.locks"}
"""What all may use: how files, records and locks are written and read."""
OF_SCIENCE = {"deeplense.choices", "deeplense.constants", "deeplense.schedules"}
OF_SCIENCE |= {f"deeplense.random.{name}" for name in ("draws", "noise", "columns")}
"""What all packages of the science may use, too: how names that are not known are refused, how numbers come to a
device, schedules, and random numbers."""
MOST_IN_A_FOLDER = 14
DOOR = "deeplense"
"""What notebooks import: it names functions of the layers above, and loads them when they are used. No module imports
it."""
PROGRAM = "deeplense.__main__"
"""What the program `deeplense` starts: it looks whether all packages are ours, and calls the top layer."""
VAGUE = {"utils", "util", "common", "base", "core", "helpers", "misc"}


def module_name(path: Path) -> str:
    """The dotted name of a file below the root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}


def names_in(node: ast.AST) -> Iterator[str]:
    """The modules that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else node.module or ""


@cache
def imports(module: str) -> frozenset[str]:
    """All modules of this project that a module imports, in functions too."""
    tree = ast.parse(MODULES[module].read_text())
    return frozenset(name for node in ast.walk(tree) for name in names_in(node) if name.split(".")[0] in LAYERS)


def is_allowed(module: str, imported: str) -> bool:
    """Whether a module may import another."""
    layer, other = module.split(".")[0], imported.split(".")[0]
    if module == DOOR:
        return imported.startswith(("jobs.api.", "deeplense."))
    if module == PROGRAM:
        return imported == "launch.__main__"
    if layer == "launch" and other == "deeplense":
        return imported in SHARED
    if layer != "deeplense" or other != "deeplense":
        return LAYERS.index(other) <= LAYERS.index(layer)
    same_package = module.split(".")[:2] == imported.split(".")[:2]
    shared_physics = module.startswith("deeplense.models.") and imported == "deeplense.simulation.lenses"
    return same_package or shared_physics or imported in SHARED | OF_SCIENCE


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    assert {imported for imported in imports(module) if not is_allowed(module, imported)} == set()


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("deeplense.training.loop", "jobs.settings", False),
        ("deeplense.files", "deeplense.data.shards", False),
        ("deeplense.training.loop", "deeplense.data.dataset", False),
        ("deeplense.models.cnn", "deeplense.simulation.lenses", True),
        ("deeplense.models.cnn", "deeplense.simulation.light", False),
        ("deeplense.data.shards", "deeplense.files", True),
        ("jobs.train.work", "launch.local", False),
        ("jobs.train.work", "deeplense.training.stopping", True),
        ("deeplense", "jobs.api.loading", True),
        ("deeplense", "jobs.train.work", False),
        ("launch.local", "jobs.runs.folder", True),
        ("launch.local", "deeplense.files", True),
        ("launch.local", "deeplense.training.checkpoint", False),
    ],
)
def test_the_rules_tell_right_from_wrong(module: str, imported: str, allowed: bool) -> None:
    assert is_allowed(module, imported) == allowed


def test_the_imports_of_a_module_are_all_found() -> None:
    assert {"deeplense.data.shards", "jobs.pack.sources", "jobs.console"} <= imports("jobs.pack.work")
    assert imports("jobs.pack.settings") == {
        "deeplense.data.conditions",
        "jobs.bounds",
        "jobs.conditions",
        "jobs.data.source_settings",
        "jobs.settings",
    }
    assert "jobs.train.learner" in imports("jobs.train.work"), "one that is imported in a function"


def test_no_module_imports_itself_by_way_of_others_not_even_in_a_function() -> None:
    needs = {module: imports(module) for module in MODULES}
    assert len(list(TopologicalSorter(needs).static_order())) >= len(MODULES)
    with pytest.raises(CycleError):
        list(TopologicalSorter(needs | {"deeplense.files": {"jobs.runs.folder"}}).static_order())


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_settings_of_a_verb_do_not_know_its_work(verb: Verb) -> None:
    assert f"{verb.folder}.work" in MODULES
    others = {name for name in imports(f"{verb.folder}.settings") if name.startswith(verb.folder + ".")}
    assert others == set()


def test_no_job_starts_a_launcher() -> None:
    named = {
        module: node.value
        for module, path in MODULES.items()
        if module.startswith(("jobs.", "deeplense.")) and module != PROGRAM
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("launch", "-m launch")
    }
    assert named == {}


def test_a_folder_of_jobs_is_small_and_its_names_are_apart() -> None:
    folders: dict[str, list[str]] = {}
    for path in (ROOT / "jobs").rglob("*.py"):
        if path.name != "__init__.py":
            folders.setdefault(str(path.parent.relative_to(ROOT)), []).append(path.stem)
    assert {folder: len(names) for folder, names in folders.items() if len(names) > MOST_IN_A_FOLDER} == {}
    alike = {f"{folder}: {a}, {b}" for folder, names in folders.items() for a in names for b in names if is_alike(a, b)}
    assert alike == set()


def is_alike(one: str, other: str) -> bool:
    """Whether two names differ in an ending alone."""
    return one != other and stem_of(one) == stem_of(other)


def stem_of(name: str) -> str:
    """A name without what makes a noun, a plural or a participle of it."""
    return re.sub(r"(?<=...)(_run|_start|ing|ed|er|e|s)+$", "", name)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("learner", "learning", True),
        ("pretrain", "pretrained", True),
        ("train", "trained_run", True),
        ("sample", "samples", True),
        ("page", "plan", False),
        ("settings", "start", False),
    ],
)
def test_names_that_differ_in_an_ending_are_seen(one: str, other: str, alike: bool) -> None:
    assert is_alike(one, other) == alike


def test_packages_but_the_door_say_nothing_in_their_init_files_and_no_name_is_vague() -> None:
    packages = {name: path for name, path in MODULES.items() if path.name == "__init__.py"}
    assert [name for name, path in packages.items() if path.read_text().strip()] == [DOOR]
    assert [name for name in MODULES if set(name.split(".")) & VAGUE] == []


def test_no_file_under_version_control_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git repository")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [path for path in files if path.is_file() and path.stat().st_size > 1_000_000] == []
