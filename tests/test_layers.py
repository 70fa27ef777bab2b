"""The layers: the science knows no job, a job knows no cluster, and packages of the science do not know each other."""

import ast
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("deeplense", "jobs", "launch")
SHARED = {"deeplense.files", "deeplense.records", "deeplense.locks"}
"""What all may use: how files, records and locks are written and read."""
OF_SCIENCE = "deeplense.choices"
"""What all packages of the science may use, too: how names that are not known are refused."""
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


def imports(module: str, *, when_loaded: bool = False) -> set[str]:
    """All modules of this project that a module imports, wherever; or only those that it needs to be loaded."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = tree.body if when_loaded else ast.walk(tree)
    return {name for node in nodes for name in names_in(node) if name.split(".")[0] in LAYERS}


def is_allowed(module: str, imported: str) -> bool:
    """Whether a module may import another."""
    layer, other = module.split(".")[0], imported.split(".")[0]
    if layer == "launch" and other == "deeplense":
        return imported in SHARED
    if layer != "deeplense" or other != "deeplense":
        return LAYERS.index(other) <= LAYERS.index(layer)
    same_package = module.split(".")[:2] == imported.split(".")[:2]
    shared_physics = module.startswith("deeplense.models.") and imported == "deeplense.simulation.lenses"
    return same_package or shared_physics or imported in {*SHARED, OF_SCIENCE}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    assert {imported for imported in imports(module) if not is_allowed(module, imported)} == set()


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("deeplense.training.loop", "jobs.config", False),
        ("deeplense.files", "deeplense.data.shards", False),
        ("deeplense.training.loop", "deeplense.data.dataset", False),
        ("deeplense.models.cnn", "deeplense.simulation.lenses", True),
        ("deeplense.models.cnn", "deeplense.simulation.light", False),
        ("deeplense.data.shards", "deeplense.files", True),
        ("jobs.train", "launch.local", False),
        ("jobs.train", "deeplense.training.stopping", True),
        ("launch.local", "jobs.runs", True),
        ("launch.local", "deeplense.files", True),
        ("launch.local", "deeplense.training.checkpoint", False),
    ],
)
def test_the_rules_tell_right_from_wrong(module: str, imported: str, allowed: bool) -> None:
    assert is_allowed(module, imported) == allowed


def test_the_imports_of_a_module_are_all_found() -> None:
    assert {"deeplense.data.shards", "jobs.config", "jobs.progress"} <= imports("jobs.pack")
    light = {"deeplense.data.conditions", "jobs.config", "jobs.counting", "jobs.parts"}
    assert imports("jobs.pack", when_loaded=True) == light


def test_no_module_needs_itself_to_be_loaded() -> None:
    needs = {module: imports(module, when_loaded=True) for module in MODULES}
    assert len(list(TopologicalSorter(needs).static_order())) >= len(MODULES)
    with pytest.raises(CycleError):
        list(TopologicalSorter(needs | {"deeplense.files": {"jobs.runs"}}).static_order())


def test_packages_say_nothing_in_their_init_files_and_no_name_is_vague() -> None:
    assert [name for name, path in MODULES.items() if path.name == "__init__.py" and path.read_text().strip()] == []
    assert [name for name in MODULES if set(name.split(".")) & VAGUE] == []


def test_no_file_under_version_control_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git repository")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [path for path in files if path.is_file() and path.stat().st_size > 1_000_000] == []
