"""The wheel and the source distribution, installed into an environment of their own and used outside the repository."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from shutil import copy2

import pytest
import yaml
from conftest import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_{what}({to!r}))"
HOSTILE = "raise SystemExit('a module of the current folder was imported')\n"
SMALL = ["--model_name=simple_cnn", "--epochs=1", "--batch_size=8", "--device=cpu"]


def build(what: str, tree: Path, to: Path) -> Path:
    """Build a `wheel` or an `sdist` from a tree; returns its file."""
    to.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(what=what, to=str(to))]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, without what git ignores."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git repository")
    folder = tmp_path_factory.mktemp("tree")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    with tarfile.open(build("sdist", tree, folder)) as packed:
        packed.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return build("wheel", unpacked, folder)


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deeplense`, installed into an environment that has the packages it needs, but not this repository."""
    place = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    # A plain path: the links of editable installations there are not followed.
    (site / "needed.pth").write_text(f"{ours}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--force-reinstall", str(wheel)], check=True, capture_output=True)
    return place / "bin" / "deeplense"


def call(program: Path, *words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed program in a folder."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, but those that list the others."""
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist() if not name.endswith("RECORD")}


def test_the_wheel_from_the_source_distribution_is_that_of_the_repository(
    tree: Path, wheel: Path, tmp_path: Path
) -> None:
    found = contents(wheel)
    direct = contents(build("wheel", tree, tmp_path))
    assert found == direct
    tops = {name.partition("/")[0] for name in found}
    assert tops == {"deeplense", "jobs", "launch", "slurm_templates", "deeplense-0.1.0.dist-info"}
    packaged = {
        path for name in ("deeplense", "jobs", "launch", "slurm_templates") for path in (tree / name).rglob("*")
    }
    lacking = [path for path in packaged if path.is_file() and str(path.relative_to(tree)) not in found]
    assert [path for path in lacking if path.suffix != ".md"] == []


def test_the_source_distribution_holds_the_documentation_but_no_tests(wheel: Path) -> None:
    (packed,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(packed) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert names >= {
        "LICENSE",
        "LICENCES.md",
        "CITATION.cff",
        "CHANGELOG.md",
        "docs/quickstart.md",
        "requirements.lock",
    }
    assert not any(name.startswith("tests") for name in names)


def test_the_version_stands_in_one_place_and_the_citation_has_it(program: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert call(program, "--version", folder=tmp_path).stdout == f"deeplense {version}\n"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    sources = [path for name in ("deeplense", "jobs", "launch") for path in (ROOT / name).rglob("*.py")]
    assert [path for path in sources if f'"{version}"' in path.read_text()] == []


def test_the_licence_of_each_package_that_is_needed_is_listed() -> None:
    listed = set(re.findall(r"^\| (\S+) \|", (ROOT / "LICENCES.md").read_text(), re.M))
    lock = (ROOT / "requirements.lock").read_text()
    # Those of another system are not installed here, so their metadata is not known.
    needed = set(re.findall(r"^([A-Za-z0-9._-]+)==\S+ \\?$", lock, re.M))
    assert needed - listed == set()


def test_it_works_in_a_folder_with_modules_of_the_same_names(program: Path, tmp_path: Path) -> None:
    for name in ("jobs", "launch", "deeplense", "queue", "random", "types"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    for split in ("train", "test"):
        words = ("simulate", "--output=data", "--num_per_class=16", f"--split={split}")
        done = call(program, *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    run = ["--dataset=data", "--run=runs/two"]
    done = call(program, "--num_processes", "2", "train", *run, *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = call(program, "evaluate", "--run=runs/two", "--device=cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "auc_macro" in done.stdout


def test_a_run_is_submitted_from_the_installed_program(program: Path, tmp_path: Path) -> None:
    words = ("submit", "--on", "local", "verify", "data")
    call(program, "simulate", "--output=data", "--num_per_class=2", folder=tmp_path)
    done = call(program, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "launches").iterdir()
    done = call(program, "logs", str(folder), "--follow", folder=tmp_path)
    assert "6 images" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["jobs", "launch"])
def test_another_package_of_the_same_name_is_refused(name: str, program: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / name
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    done = call(program, "--version", folder=tmp_path, PYTHONPATH=str(other.parent))
    assert done.returncode == 2
    assert done.stderr.startswith(f"deeplense: another package called '{name}', {other}/__init__.py, hides the one of")
    assert "take its folder out of PYTHONPATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_package_that_was_overwritten_or_is_missing_is_refused(program: Path, tmp_path: Path) -> None:
    (site,) = program.parents[1].glob("lib/python*/site-packages")
    first = site / "launch" / "__init__.py"
    first.write_text("from .api import *\n")
    done = call(program, "--version", folder=tmp_path)
    first.write_text("")
    assert done.returncode == 2
    assert "another package called 'launch' was installed over the one of deeplense" in done.stderr
    (site / "jobs").rename(site / "away")
    done = call(program, "--version", folder=tmp_path)
    (site / "away").rename(site / "jobs")
    assert done.returncode == 2
    assert "the package 'jobs' of deeplense is missing" in done.stderr
    assert call(program, "--version", folder=tmp_path).returncode == 0
