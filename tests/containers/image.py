"""A small Apptainer image for tests: a C library and a shell, into which the Python of this machine is bound.

It runs the environment that runs the tests, and holds nothing else of this machine, such as the programs of Slurm.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("bash", "cat", "env", "hostname", "ls", "sh", "sleep")
FOLDERS = ("dev", "etc", "mnt", "proc", "root", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "var/tmp")
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/hosts": "",
    "etc/resolv.conf": "",
    "etc/localtime": "",
}
CAP_SYS_RESOURCE = 24


def require_apptainer() -> None:
    """Skip a test where programs are missing, or fail it where DEEPLENSE_REQUIRE_PROGRAMS=1 says that none may be."""
    missing = [name for name in ("apptainer", "mksquashfs", "squashfuse", "ldd") if not shutil.which(name)]
    if not missing:
        return
    reason = f"{', '.join(missing)} not installed; on Debian 12, as root: .ci/apptainer"
    if os.environ.get("DEEPLENSE_REQUIRE_PROGRAMS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def small_image(folder: Path) -> Path:
    """The image in a folder, built where it is not there yet (about 5 s, 10 MB)."""
    image = folder / "small.sif"
    if not image.exists():
        root = folder / "small"
        fill(root)
        partial = folder / "partial.sif"
        done = subprocess.run(["apptainer", "build", "--force", partial, root], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        partial.rename(image)
        shutil.rmtree(root)
    return image


def exec_words(image: Path) -> list[str]:
    """The words before a program that is to run in the image, with this project and this Python bound into it."""
    binds = [f"--bind={folder}" for folder in bound_folders()]
    return ["apptainer", "exec", *privilege_flags(), *binds, str(image)]


def privilege_flags() -> list[str]:
    """What root needs where the machine is itself a container without CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)
    return ["--userns"] if os.geteuid() == 0 and not capabilities >> CAP_SYS_RESOURCE & 1 else []


def bound_folders() -> list[Path]:
    """This project, the environment and its Python; a Python of the system is in the image instead (`fill`)."""
    folders = {ROOT, Path(sys.prefix), Path(sys.base_prefix)} - {Path("/usr")}
    return sorted(folder for folder in folders if not any(other in folder.parents for other in folders))


def fill(root: Path) -> None:
    """Write what the image holds: programs, and the libraries that they, Python and its packages need."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name, text in FILES.items():
        (root / name).write_text(text)
    programs = [Path("/usr/bin") / name for name in PROGRAMS]
    python = Path(sys.executable).resolve()
    modules = Path(sys.base_prefix, "lib", f"python3.{sys.version_info.minor}")
    if sys.base_prefix == "/usr":
        programs += {Path("/usr/bin/python3"), python}
        shutil.copytree(modules, root / modules.relative_to("/"), ignore=shutil.ignore_patterns("__pycache__"))
    extensions = [*(modules / "lib-dynload").glob("*.so"), *Path(sys.prefix).glob("lib/*/site-packages/**/*.so")]
    for path in {*programs, *libraries([*programs, python, *extensions])}:
        copy = root / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def libraries(binaries: Iterable[Path]) -> set[Path]:
    """The libraries of the system, the loader included, that programs and other libraries need."""
    said = subprocess.run(["ldd", *binaries], capture_output=True, text=True).stdout
    return {Path(path) for path in re.findall(r"\s(/(?:usr/)?lib(?:64)?/\S+) \(0x", said)}
