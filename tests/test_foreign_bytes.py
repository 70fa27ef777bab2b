"""Nothing that a file says is run: the readers that could are called in one place each, and in the safe way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [path for layer in ("deeplense", "jobs", "launch") for path in sorted((ROOT / layer).rglob("*.py"))]
NEVER = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "__import__",
}
ALLOWED = {("yaml.load", "jobs/plain_yaml.py"), ("torch.jit.load", "deeplense/evaluation/inception.py")}
"""One by a loader of its own, the other of a file whose hash is known."""


def name_of(node: ast.expr) -> str:
    """The dotted name of what is called."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def refusals(text: str, where: str) -> Iterator[str]:
    """The calls in a module that could run what a file says."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, options = name_of(node.func), {each.arg: each.value for each in node.keywords}
        safe = options.get("weights_only")
        is_safe = isinstance(safe, ast.Constant) and safe.value is True
        is_unsafe = {
            "torch.load": not is_safe,
            "yaml.load": ("yaml.load", where) not in ALLOWED,
            "torch.jit.load": ("torch.jit.load", where) not in ALLOWED,
        }.get(name, name in NEVER)
        pickled = options.get("allow_pickle")
        if is_unsafe or (pickled is not None and not (isinstance(pickled, ast.Constant) and pickled.value is False)):
            yield name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_a_file_says(path: Path) -> None:
    assert list(refusals(path.read_text(), str(path.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    "call",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "pickle.load(stream)",
        "yaml.load(text, Loader)",
        "torch.jit.load(path)",
        "eval(text)",
    ],
)
def test_calls_that_could_are_found(call: str) -> None:
    assert len(list(refusals(f"def f():\n    return [{call}]\n", "jobs/train.py"))) == 1


@pytest.mark.parametrize("call", ["torch.load(path, weights_only=True)", "np.load(path)", "model.eval()"])
def test_calls_that_could_not_are_let_through(call: str) -> None:
    assert list(refusals(f"x = {call}\n", "jobs/train.py")) == []
