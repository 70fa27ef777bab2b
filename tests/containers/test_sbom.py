"""The list of what an image holds names every package of Python and of Debian once."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from containers.image import ROOT

DPKG = """#!/bin/sh
printf 'libc6\\t2.36-9+deb12u13\\tamd64\\nbash\\t5.2.15-2+b8\\tamd64\\n'
"""


@pytest.fixture
def bill(tmp_path: Path) -> dict[str, Any]:
    """The list that is made with this Python, and with a dpkg of two packages."""
    program = tmp_path / "dpkg-query"
    program.write_text(DPKG)
    program.chmod(0o755)
    words = [sys.executable, ROOT / "containers" / "sbom.py"]
    done = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_it_names_the_packages_of_python_and_of_debian(bill: dict[str, Any]) -> None:
    found = {each["purl"]: each for each in bill["components"]}
    assert len(found) == len(bill["components"])
    assert f"pkg:pypi/torch@{version('torch')}" in found
    assert found[f"pkg:pypi/h5py@{version('h5py')}"]["version"] == version("h5py")
    assert found["pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64"]["name"] == "libc6"
    assert found["pkg:deb/debian/bash@5.2.15-2%2Bb8?arch=amd64"]["type"] == "library"


def test_it_is_of_this_project_as_cyclonedx_has_it(bill: dict[str, Any]) -> None:
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert bill["metadata"]["component"]["name"] == "deeplense"
    assert bill["metadata"]["component"]["type"] == "application"
    assert bill["serialNumber"].startswith("urn:uuid:")
    assert not any(each["name"] == "deeplense" for each in bill["components"])
