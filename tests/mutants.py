"""Do the tests notice? Small changes of the modules that decide numbers and safety, drawn by a seed, each alone
before the tests of its module.

    python -m tests.mutants --number 150 --seed 0      # make mutants; the same command continues

A change is made in a copy of the tree, and the tests run in a process forked from one that has imported what takes long
and nothing of ours. What no test notices is printed with its line; `tests/mutants_alike.txt` lists those that change no
behaviour, each with the reason.
"""

import argparse
import ast
import copy
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "h5py", "scipy.stats", "sklearn.metrics", "matplotlib.figure", "hypothesis", "pytest", "xxhash")
TESTS = {
    "deeplense/random/draws.py": ["data/test_subsets.py", "data/test_order.py"],
    "deeplense/data/subsets.py": [
        "data/test_subsets.py",
        "data/test_groups.py",
        "data/test_order.py",
        "jobs/test_experiment.py",
    ],
    "deeplense/data/order.py": ["data/test_order.py", "data/test_subsets.py"],
    "deeplense/data/shards.py": [
        "data/test_shards.py",
        "data/test_reading.py",
        "data/test_building.py",
        "data/test_checking.py",
    ],
    "deeplense/data/staging.py": ["data/test_staging.py", "data/test_room.py"],
    "deeplense/data/foreign.py": ["data/test_foreign.py", "data/test_layouts.py", "data/test_pickles.py"],
    "deeplense/evaluation/metrics.py": ["evaluation/test_metrics.py"],
    "deeplense/evaluation/calibration.py": ["evaluation/test_calibration.py"],
    "deeplense/evaluation/comparison.py": ["evaluation/test_comparison.py"],
    "deeplense/evaluation/finding.py": ["evaluation/test_finding.py", "evaluation/test_bands.py"],
    "deeplense/evaluation/purity.py": ["evaluation/test_purity.py", "evaluation/test_finding.py"],
    "deeplense/evaluation/roc_draws.py": [
        "evaluation/test_roc_draws.py",
        "evaluation/test_finding.py",
        "evaluation/test_finding_coverage.py",
    ],
    "deeplense/evaluation/bands.py": ["evaluation/test_bands.py"],
    "deeplense/evaluation/conformal.py": ["evaluation/test_conformal.py"],
    "deeplense/evaluation/temperature.py": ["evaluation/test_temperature.py"],
    **{
        f"jobs/predict/{name}.py": ["jobs/test_prediction_tables.py"]
        for name in ("calibration", "images", "members", "output", "scoring", "settings", "table", "work")
    },
    "deeplense/training/checkpoint.py": ["training/test_checkpoint.py", "training/test_saving.py"],
    "launch/ends.py": ["launch/test_ends.py"],
    "launch/requeue.py": ["launch/test_requeue.py"],
}
SWAPPED = "Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, Add Sub, Mult Div, BitOr BitAnd, LShift RShift"
PAIRS = [pair.split() for pair in SWAPPED.split(", ")]
SWAPS = {getattr(ast, a): getattr(ast, b) for one, other in PAIRS for a, b in ((one, other), (other, one))}
SWAPS |= {ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitXor: ast.BitOr, ast.MatMult: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """One change of a module: where, what stands there and instead of it, the line as it is written, and how many
    changes like it come before."""

    module: str
    line: int
    start: int
    end: int
    before: str
    after: str
    written: str
    earlier: int = 0

    @property
    def anywhere(self) -> str:
        """What is changed in which line of text, whatever its number."""
        return f"{self.module}: {self.written}: {self.before} -> {self.after}"

    @property
    def key(self) -> str:
        """What tells it apart, also where lines were added."""
        return f"{self.anywhere} #{self.earlier}"

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before}  ->  {self.after}"


def changed(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What is turned into what, in a node of the syntax."""

    def other(**fields: Any) -> tuple[ast.AST, ast.AST]:
        new = copy.deepcopy(node)
        vars(new).update(fields)
        return node, new

    match node:
        case ast.Compare(ops=ops):
            for k, op in enumerate(ops):
                yield other(ops=[*ops[:k], SWAPS[type(op)](), *ops[k + 1 :]])
        case ast.BoolOp(op=op):
            yield other(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.BinOp(right=ast.Constant(value=None)):
            return
        case ast.BinOp(op=op):
            yield other(op=SWAPS[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield node, operand
        case ast.Constant(value=bool(value)):
            yield other(value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield other(value=value + 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield other(body=orelse, orelse=body)
        case ast.If(test=test) | ast.While(test=test):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Expr(value=ast.Call()):
            yield node, ast.Pass()
        case ast.Return(value=ast.expr()):
            yield other(value=ast.Constant(None))


def mutants_of(module: str) -> Iterator[Mutant]:
    """All changes of a module, but of annotations and of what only runs where it is the program."""
    source = (ROOT / module).read_bytes()
    lines = source.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    for found in nodes(ast.parse(source)):
        for old, new in changed(found):
            node: Any = old
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(new))
            after = f"({text})" if isinstance(node, ast.expr) else text
            written = lines[node.lineno - 1].decode().strip()
            before = source[start:end].decode()
            if after != before:
                yield Mutant(module, node.lineno, start, end, before, after, written)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that are changed: no annotations, no parts of f-strings."""
    if isinstance(tree, ast.If) and "__name__" in ast.unparse(tree.test):
        return
    yield tree
    for name, value in ast.iter_fields(tree):
        if name not in ("annotation", "returns", "decorator_list") and not isinstance(tree, ast.JoinedStr):
            for child in value if isinstance(value, list) else [value]:
                yield from nodes(child) if isinstance(child, ast.AST) else ()


def drawn(modules: Iterable[str], number: int, seed: int) -> list[Mutant]:
    """So many mutants of all; most stay the same where something else is changed."""
    everyone: list[Mutant] = []
    seen: Counter[str] = Counter()
    for mutant in itertools.chain.from_iterable(map(mutants_of, modules)):
        everyone.append(replace(mutant, earlier=seen[mutant.anywhere]))
        seen[mutant.anywhere] += 1
    return sorted(everyone, key=lambda each: sha256(f"{seed} {each.key}".encode()).digest())[:number]


def in_a_child(action: Callable[[], int], limit: float, log: Path) -> str:
    """Do something in a forked process group of its own: `passed`, `failed` or `took too long`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        try:
            os._exit(min(action(), 1))
        finally:
            os._exit(1)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return "passed" if status == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "took too long"


def test(tree: Path, module: str) -> int:
    """Run the tests of a module in a copy of the tree."""
    import pytest

    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(place for place in sys.path if Path(place).resolve() != ROOT)]
    files = [str(tree / "tests" / name) for name in TESTS[module] if (tree / "tests" / name).exists()]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))


def copy_tree(folder: Path) -> Path:
    """The tree without what is built."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "demo", "runs", "images")
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=ignore, symlinks=True))


def main() -> int:
    """Draw mutants, try those that were not yet, and print what survives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=[*TESTS], choices=[*TESTS])
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of a mutant")
    parser.add_argument("--kept", type=Path, default=ROOT / ".mutants.jsonl", help="what was found before")
    asked = parser.parse_args()
    known = read(asked.kept)
    chosen = [each for each in drawn(TESTS, asked.number, asked.seed) if each.module in asked.modules]
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree, log = copy_tree(Path(folder)), Path(folder) / "log"
        for module in asked.modules:
            new = [each for each in chosen if each.module == module and known.get(each.key, "passed") == "passed"]
            if new and in_a_child(partial(test, tree, module), 1e9, log) != "passed":
                sys.exit(f"the tests of {module} fail as it is:\n{log.read_text()[-3000:]}")
            for each in new:
                known[each.key] = attempt(each, tree, asked.limit, log)
                with asked.kept.open("a") as file:
                    file.write(json.dumps({"mutant": each.key, "tests": known[each.key]}) + "\n")
                print(f"{known[each.key]:<14} {each}", flush=True)
    return report(chosen, known)


def attempt(mutant: Mutant, tree: Path, limit: float, log: Path) -> str:
    """What the tests say of a mutant."""
    source = (ROOT / mutant.module).read_bytes()
    (tree / mutant.module).write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    try:
        return in_a_child(partial(test, tree, mutant.module), limit, log)
    finally:
        (tree / mutant.module).write_bytes(source)


def read(kept: Path) -> dict[str, str]:
    """What was found before."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {found["mutant"]: found["tests"] for found in map(json.loads, lines)}


def report(chosen: list[Mutant], known: dict[str, str]) -> int:
    """Print who survived; 1 where more than 5 % did."""
    alike = (ROOT / "tests" / "mutants_alike.txt").read_text().splitlines()
    survivors = [each for each in chosen if known[each.key] == "passed"]
    bad = [each for each in survivors if each.anywhere not in alike]
    print(f"\n{len(chosen)} mutants, {len(survivors)} survive, {len(survivors) - len(bad)} of them change nothing:")
    for each in survivors:
        print(f"  {'' if each in bad else '(changes nothing) '}{each}")
    return int(len(bad) > 0.05 * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
