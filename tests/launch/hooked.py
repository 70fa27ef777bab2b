"""A Python for whole trees of processes whose ranks do what a test tells them: the hooks of tests/cluster, on this
machine.

It is an environment like that of a user, with the packages of this one. Its processes are real ones, from the command
that is typed to the ranks.
"""

import os
import site
import sys
import sysconfig
from pathlib import Path

HOOKS = Path(__file__).parents[1] / "cluster" / "hooks"


def make_python(folder: Path) -> Path:
    """An environment in an empty folder; returns its Python."""
    base = Path(sys.prefix) / "pyvenv.cfg"
    home = base.read_text() if base.exists() else f"home = {Path(sys.executable).parent}\n"
    (folder / "pyvenv.cfg").write_text(home)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    packages.mkdir(parents=True)
    # Debian has a sitecustomize of its own, which ours has to precede.
    lines = [f"import sys; sys.path.insert(0, {str(HOOKS)!r})"]
    lines += [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "hooks.pth").write_text("\n".join(lines) + "\n")
    return python


def variables(folder: Path, *, counts: bool) -> dict[str, str]:
    """The environment of processes that read what to do from the files of a folder; with `counts`, ranks count in the
    place of trainings."""
    return {"DEEPLENSE_TEST": str(folder), "DEEPLENSE_HERE": "1"} | ({"DEEPLENSE_COUNTS": "1"} if counts else {})


def hold(folder: Path, step: int) -> None:
    """Let no rank begin this step."""
    temporary = folder / ".hold"
    temporary.write_text(str(step))
    os.replace(temporary, folder / "hold")
