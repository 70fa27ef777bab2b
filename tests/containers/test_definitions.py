"""The definitions of the images, for Apptainer and for Docker, say the same."""

import re
from pathlib import Path

import pytest

from containers.image import ROOT

CONTAINERS = ROOT / "containers"
DEFINITION = (CONTAINERS / "deeplense.def").read_text()
CONTAINERFILE = (CONTAINERS / "Containerfile").read_text()
INSTALL = (CONTAINERS / "install.sh").read_text()
WRITTEN = sorted(path for path in CONTAINERS.iterdir() if path.is_file())


def section(name: str) -> list[str]:
    """The lines of one section of the definition for Apptainer."""
    text = re.split(r"^%", DEFINITION, flags=re.MULTILINE)
    body = next(part for part in text if part.startswith(name))
    return [line.strip() for line in body.splitlines()[1:] if line.strip()]


def copied_by_definition() -> set[str]:
    """The files and folders that Apptainer copies into the image."""
    return {line.split()[0] for line in section("files")}


def copied_by_containerfile() -> set[str]:
    """The files and folders that Docker copies into the image."""
    lines = re.findall(r"^COPY (.*)$", CONTAINERFILE, re.MULTILINE)
    return {word for line in lines for word in line.split()[:-1]}


def test_both_definitions_copy_the_same_files() -> None:
    assert copied_by_definition() == copied_by_containerfile()
    assert {name for name in copied_by_definition() if not (ROOT / name).exists()} == set()


def test_both_definitions_install_by_the_same_script_and_nothing_else() -> None:
    (command,) = section("post")
    steps = re.findall(r"^RUN (.*)$", CONTAINERFILE, re.MULTILINE)
    assert command == "sh /opt/source/containers/install.sh /opt/source"
    assert [step.split(" ", 1)[1] if step.startswith("--mount") else step for step in steps] == [
        command,
        *section("test"),
    ]


def test_both_definitions_start_from_the_same_image() -> None:
    (image,) = re.findall(r"^ARG FROM=(.*)$", CONTAINERFILE, re.MULTILINE)
    assert f"from={image}" in section("arguments")
    assert f"from={image} " in (CONTAINERS / "build.sh").read_text()


def test_both_definitions_set_the_same_variables_and_labels() -> None:
    variables = [line.removeprefix("export ") for line in section("environment")]
    assert [word for word in variables if word not in CONTAINERFILE] == []
    labels = {line.split()[0] for line in section("labels")}
    assert labels == set(re.findall(r"(org\.opencontainers\S+)=", CONTAINERFILE))


def test_the_image_holds_the_versions_of_the_lock_and_nothing_that_only_tests_need() -> None:
    locked, ours = re.findall(r"pip install (.*)", INSTALL)
    assert locked == (
        '--quiet --require-hashes --no-deps --only-binary :all: --requirement "$source/requirements.lock"'
    )
    assert ours == '--quiet --no-deps --no-build-isolation "$source"'
    assert "requirements.lock" in copied_by_definition()
    assert not re.search("lenstronomy|requirements.txt|==", INSTALL)


def test_every_package_of_the_project_is_in_the_image() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= copied_by_definition()


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / ".ci" / "apptainer"], ids=lambda path: path.name)
def test_no_host_is_named(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"\w+://\S*", text) == []
    assert re.findall(r"\b[\w.-]+\.(?:org|com|io|net|edu|dev|ai)\b", text) == []


def test_a_host_would_be_found() -> None:
    with pytest.raises(AssertionError):
        test_no_host_is_named(CONTAINERS.parent / "README.md")
