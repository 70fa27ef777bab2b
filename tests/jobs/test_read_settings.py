"""Every setting is read by something: none is accepted, kept, and does nothing."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from jobs import conditions, verbs

ROOT = Path(__file__).parents[2]
SHARED = {("jobs.frame.settings", "LearningSettings"), ("jobs.trials.settings", "TableSettings")}
SHARED |= {("jobs.trials.settings", "QueueSettings"), ("jobs.data.source_settings", "SourceSettings")}
OF_JOB = {job: f"jobs.{job.replace(' ', '_')}.settings" for job in verbs.JOBS}
KINDS = {(module, "Settings") for module in OF_JOB.values()} | SHARED
"""The classes of settings, by module and name."""
BASES = {
    "jobs.data.source_settings": ("jobs.pack.settings", "jobs.predict.settings"),
    "jobs.frame.settings": tuple(f"jobs.{job}.settings" for job in ("train", "pretrain", "diffuse")),
    "jobs.trials.settings": tuple(f"jobs.benchmark_{of}.settings" for of in ("models", "labels", "selection")),
}
"""Whose settings those that several share are a part of."""
BY_NAME = {"num_updates", "min_epochs"}
"""What a table of labels hands on to its runs by name."""
MODULES = sorted((ROOT / "jobs").rglob("*.py"))
Reads = set[tuple[str, str]]


HOLDERS: dict[tuple[str, str], str] = {}


def name_of(path: Path) -> str:
    """The module of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def kinds_in(module: str, tree: ast.Module) -> dict[str, str]:
    """The names under which a module knows classes of settings, and the modules that these are of."""
    known = {name: home for home, name in KINDS if home == module}
    known |= {name: of for (home, name), of in HOLDERS.items() if home == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= {
                each.asname or each.name: HOLDERS.get((node.module or "", each.name), node.module or "")
                for each in node.names
                if (node.module, each.name) in KINDS | HOLDERS.keys()
            }
    return known


def variables(node: ast.AST, kinds: dict[str, str]) -> dict[str, str]:
    """The names in a function, or in a class, that hold settings: by annotation, or by a call with the class."""
    found = {}
    for each in ast.walk(node):
        if isinstance(each, ast.arg) and each.annotation is not None:
            found[each.arg] = home_of(each.annotation, kinds)
        elif isinstance(each, ast.AnnAssign):
            found[ast.unparse(each.target)] = home_of(each.annotation, kinds)
        elif isinstance(each, ast.Assign) and isinstance(each.value, ast.Call):
            found[ast.unparse(each.targets[0])] = next(filter(None, (home_of(a, kinds) for a in each.value.args)), "")
    return {name: home for name, home in found.items() if home}


def holders() -> dict[tuple[str, str], str]:
    """The classes that hold settings, by module and name, and the modules that these are of."""
    found = {}
    for path in MODULES:
        module, tree = name_of(path), ast.parse(path.read_text())
        kinds = kinds_in(module, tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and (home := variables(node, kinds).get("settings")):
                found[module, node.name] = home
    return found


def home_of(node: ast.expr, kinds: dict[str, str]) -> str:
    """The module of the settings that an annotation or an argument names, if it names any."""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
    return kinds.get(text, "")


def reads_in(module: str, text: str) -> Iterator[tuple[str, str]]:
    """What a module reads of which settings, but for what only checks them."""
    tree = ast.parse(text)
    kinds = kinds_in(module, tree)
    for top in tree.body:
        if isinstance(top, ast.ClassDef) and (module, top.name) in KINDS:
            yield from names_asked(top, {module})
            yield from (
                (module, each.attr)
                for method in top.body
                if isinstance(method, ast.FunctionDef) and method.name != "__post_init__"
                for each in ast.walk(method)
                if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self"
            )
            continue
        known = variables(top, kinds)
        known |= {f"self.{name}": home for name, home in known.items()}
        for each in ast.walk(top):
            if isinstance(each, ast.Attribute):
                base = ast.unparse(each.value)
                homes = {known[base]} if base in known else loosely(base, kinds)
                yield from ((home, each.attr) for home in homes)
        yield from names_asked(top, set(kinds.values()))


def names_asked(node: ast.AST, homes: set[str]) -> Iterator[tuple[str, str]]:
    """What is read as `settings.names("models")`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and ast.unparse(each.func).endswith(".names") and each.args:
            yield from ((home, ast.unparse(each.args[0]).strip("'")) for home in homes)


def loosely(base: str, kinds: dict[str, str]) -> set[str]:
    """Whose settings an expression that says nothing of its kind may be, by its name."""
    last = base.rpartition(".")[2]
    return set(kinds.values()) if last in ("settings", "trained", "learnt", "asked", "first") else set()


def all_reads() -> Reads:
    """What all modules read of which settings, those that several jobs share by each of these."""
    found: Reads = set()
    HOLDERS.update(holders())
    for path in MODULES:
        found |= set(reads_in(name_of(path), path.read_text()))
    return found | {(heir, name) for home, name in found for heir in BASES.get(home, ())}


READS = all_reads()


@pytest.mark.parametrize("job", verbs.JOBS)
def test_every_setting_is_read(job: str) -> None:
    kind = verbs.settings_of(job)
    unread = {field.name for field in fields(kind)} - {name for home, name in READS if home == OF_JOB[job]}
    handed_on = BY_NAME if job == "benchmark labels" else set()
    assert unread - handed_on - set(conditions.borrowed_settings(kind)) == set()


def test_a_setting_that_is_only_checked_or_read_by_another_job_is_found() -> None:
    text = """
from jobs.train.settings import Settings
from jobs.frame.settings import LearningSettings

def network(settings: Settings) -> float:
    return settings.drop_path

def learn(settings: LearningSettings) -> float:
    return settings.lr
"""
    assert set(reads_in("jobs.somewhere", text)) == {
        ("jobs.train.settings", "drop_path"),
        ("jobs.frame.settings", "lr"),
    }
    text = "class Settings:\n    def __post_init__(self) -> None:\n        assert self.lr\n"
    assert set(reads_in("jobs.train.settings", text)) == set()
    assert ("jobs.diffuse.settings", "drop_path") not in READS
