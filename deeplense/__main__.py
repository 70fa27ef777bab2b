"""The program `deeplense`. It starts only if `jobs` and `launch`, which are top-level packages with common names, are
those of deeplense: another package of such a name may hide or overwrite them."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

OURS = Path(__file__).resolve().parents[1]
"""The folder of all packages of deeplense."""
PACKAGES = ("jobs", "launch")
EXIT_REFUSED = 2


def hidden(name: str) -> str:
    """Return why a package is not the one of deeplense, in one line; empty if it is.

    Args:
        name: name of the package.
    """
    spec = find_spec(name)
    if spec is None or not (OURS / name).is_dir():
        return f"the package {name!r} of deeplense is missing from {OURS}; install deeplense again"
    found = Path(spec.origin or next(iter(spec.submodule_search_locations or [""])))
    if found.resolve() != OURS / name / "__init__.py":
        told = f"another package called {name!r}, {found}, hides the one of deeplense, {OURS / name}"
        return f"{told}. Remove it, or take its folder out of PYTHONPATH"
    # Ours is empty.
    if found.stat().st_size:
        told = f"another package called {name!r} was installed over the one of deeplense, {OURS / name}"
        return f"{told}. Uninstall it, and install deeplense again, best in a virtual environment of its own"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of deeplense and return its exit code."""
    for problem in filter(None, map(hidden, PACKAGES)):
        sys.stderr.write(f"deeplense: {problem}.\n")
        return EXIT_REFUSED
    return import_module("launch.__main__").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
