"""The script that builds the image, with programs in the place of Apptainer that only say what they were asked."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containers.image import ROOT

COPIED = ("containers", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
PACKAGES = ("deeplense", "jobs", "launch")
APPTAINER = """#!/bin/bash
echo "$@" >> "$SAID"
[ "$1" != "$FAILS" ] || { echo "FATAL: $MESSAGE"; exit 255; }
[ "$1" != exec ] || echo '{"bomFormat": "CycloneDX"}'
[ "$1" != build ] || { env >> "$SAID"; rm -rf "$REMOVED"; cp jobs/__init__.py "${@: -2:1}"; }
"""
FAKES = {
    "apptainer": APPTAINER,
    "df": "#!/bin/bash\necho Avail\necho ${FREE_GB:-100}G\n",
    "id": "#!/bin/bash\necho 1000\n",
    "debootstrap": "#!/bin/bash\n",
    "apt-get": "#!/bin/bash\n[ -z $MIRROR ] || echo $MIRROR\n",
}
Build = Callable[..., subprocess.CompletedProcess[str]]


def git(checkout: Path, *words: str) -> str:
    """Run git there; returns what it says."""
    person = ["-c", "user.name=test", "-c", "user.email=test"]
    return subprocess.run(["git", "-C", checkout, *person, *words], check=True, capture_output=True, text=True).stdout


def write_program(path: Path, text: str) -> None:
    """Write a script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout with the containers of this project."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("images"))
        else:
            shutil.copy(source, folder / name)
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All")
    return folder


@pytest.fixture
def build(checkout: Path, tmp_path: Path) -> Build:
    """Runs the script of the checkout; the image goes to tmp_path/images."""
    for name, text in FAKES.items():
        write_program(tmp_path / "programs" / name, text)

    def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        output = tmp_path / "images"
        environment = {
            "PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}",
            "SAID": str(tmp_path / "said"),
            "FAILS": "",
            "MESSAGE": "while running %post section",
            "REMOVED": "",
            "HOME": str(tmp_path),
        }
        words = [checkout / "containers" / "build.sh", "--output", output, *options]
        return subprocess.run(words, env=environment | variables, capture_output=True, text=True)

    return run


def images(tmp_path: Path) -> list[str]:
    """The names of what was left in the folder of images, without logs."""
    return sorted(path.name for path in tmp_path.glob("images/*") if path.suffix != ".log")


def test_an_image_is_named_by_version_and_commit(build: Build, checkout: Path, tmp_path: Path) -> None:
    done = build()
    assert done.returncode == 0, done.stderr
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    name = f"deeplense-0.1.0-{commit}"
    assert images(tmp_path) == [f"{name}.sbom.json", f"{name}.sif"]
    assert (tmp_path / "images" / f"{name}.sbom.json").read_text() == '{"bomFormat": "CycloneDX"}\n'
    said = (tmp_path / "said").read_text()
    assert f"version=0.1.0 --build-arg commit={commit} " in said
    assert "bootstrap=docker --build-arg from=debian:bookworm-slim" in said


def test_an_image_of_a_changed_checkout_says_so(build: Build, checkout: Path, tmp_path: Path) -> None:
    (checkout / "jobs" / "new.py").touch()
    build()
    bill, name = images(tmp_path)
    assert name.endswith("-dirty.sif")
    assert bill.endswith("-dirty.sbom.json")


def test_an_image_whose_packages_cannot_be_listed_gets_no_name(build: Build, tmp_path: Path) -> None:
    done = build(FAILS="exec")
    assert done.returncode == 2
    assert "the list of packages in the image cannot be read" in done.stderr
    assert images(tmp_path) == []


@pytest.mark.parametrize("step", ["build", "test"])
def test_an_image_that_cannot_be_built_or_fails_its_tests_gets_no_name(build: Build, tmp_path: Path, step: str) -> None:
    done = build(FAILS=step)
    assert done.returncode == 1
    assert "that failed; the end of" in done.stderr
    assert "FATAL: while running %post section" in done.stderr
    assert "where no registry" not in done.stderr
    assert images(tmp_path) == []


def test_a_registry_that_cannot_be_reached_is_answered_with_the_other_base(build: Build) -> None:
    done = build(FAILS="build", MESSAGE="While performing build: conveyor failed to get: no such host")
    assert done.returncode == 1
    assert "where no registry can be reached: --base debootstrap" in done.stderr


def test_an_image_of_debian_packages_takes_the_mirror_of_the_machine(build: Build, tmp_path: Path) -> None:
    assert build("--base", "debootstrap", MIRROR="a-mirror").returncode == 0
    assert "bootstrap=debootstrap" in (tmp_path / "said").read_text()
    assert "mirror=a-mirror " in (tmp_path / "said").read_text()


def test_settings_of_pip_reach_the_build_as_variables_only(build: Build, tmp_path: Path) -> None:
    certificates = tmp_path / "site.crt"
    certificates.touch()
    build(PIP_INDEX_URL="an-index", PIP_CERT=str(certificates))
    words, *variables = (tmp_path / "said").read_text().splitlines()
    assert "an-index" not in words
    assert "APPTAINERENV_PIP_INDEX_URL=an-index" in variables
    assert "APPTAINERENV_PIP_CERT=/mnt/certificates.crt" in variables


def test_the_image_is_made_of_the_sources_as_they_are_when_the_build_starts(
    build: Build, checkout: Path, tmp_path: Path
) -> None:
    assert build(REMOVED=str(checkout / "jobs")).returncode == 0
    assert not (checkout / "jobs").exists()
    assert len(images(tmp_path)) == 2


def test_a_full_disk_is_refused_before_the_build(build: Build, tmp_path: Path) -> None:
    done = build(FREE_GB="3", APPTAINER_TMPDIR=str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} has 3 GB" in done.stderr
    assert not (tmp_path / "said").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--basis", "registry"], "--basis is not known; see --help"),
        (["--mirror"], "--mirror needs a value"),
        (["--base", "docker"], "--base docker is not known; registry or debootstrap would be"),
        (["--base", "debootstrap"], "give one: --mirror ADDRESS"),
    ],
)
def test_a_wrong_option_is_answered_with_a_right_one(build: Build, options: list[str], message: str) -> None:
    done = build(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_missing_apptainer_is_named(build: Build, tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    needed.mkdir()
    for name in ("bash", "dirname"):
        (needed / name).symlink_to(shutil.which(name) or "")
    done = build(PATH=str(needed))
    assert done.returncode == 2
    assert "apptainer is missing" in done.stderr
    assert ".ci/apptainer" in done.stderr


def test_help_names_every_option(build: Build) -> None:
    done = build("--help")
    assert done.returncode == 0
    assert {"--base", "--from", "--mirror", "--output"} <= set(done.stdout.replace("[", " ").split())
