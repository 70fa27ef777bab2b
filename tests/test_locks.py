"""What is installed is pinned with the hashes of its files, and is all that is needed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-test.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINE = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?P<marker> ; .+)? \\$")


def entries(name: str) -> dict[str, tuple[str, int]]:
    """The packages of a lock: the version, and how many hashes there are."""
    text = (ROOT / name).read_text()
    parts = re.split(r"\n(?=\S)", text.strip())
    found = {}
    for part in parts:
        first, *hashes = part.splitlines()
        line = LINE.match(first)
        assert line, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", each) for each in hashes), part
        found[canonicalize_name(line["name"])] = (line["version"], len(hashes))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_hashes_and_no_address_is_named(name: str) -> None:
    assert all(count > 0 for _, count in entries(name).values())
    assert "://" not in (ROOT / name).read_text()


def test_no_package_is_in_both_locks() -> None:
    assert not entries(LOCKS[0]).keys() & entries(LOCKS[1]).keys()


def test_jobs_need_nothing_that_only_tests_install() -> None:
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["compress"]]]
    locked = entries(LOCKS[0])
    assert {
        each.name for each in wanted if not each.specifier.contains(locked[canonicalize_name(each.name)][0])
    } == set()
    assert {"pip", "setuptools"} <= locked.keys()


def test_tests_need_nothing_that_is_not_locked() -> None:
    locked = entries(LOCKS[0]) | entries(LOCKS[1])
    wanted = [Requirement(text) for text in PROJECT["optional-dependencies"]["test"]]
    others = [each for each in wanted if each.name != "deeplense"]
    assert {
        each.name for each in others if not each.specifier.contains(locked[canonicalize_name(each.name)][0])
    } == set()
