"""Processes of tests begin with all that takes long to load, and with the longest files."""

import gc
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from conftest import CONTEXT, LONGEST, ROOT, start_fork_server

from jobs.command_line import make_parser
from jobs.verbs import JOBS


def tell(connection: Connection) -> None:
    """What this process has loaded, how many parsers it has, and whether it leaves what is loaded uncopied."""
    loaded = [name in sys.modules["tests.warm"].LOADED_NAMES for name in ("torch", "conftest", "hypothesis")]
    connection.send((all(loaded), make_parser.cache_info().currsize, gc.get_freeze_count() > 100_000))


def test_a_process_begins_with_all_that_tests_load_and_with_all_parsers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_fork_server()
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=tell, args=(there,))
    process.start()
    assert here.poll(60)
    assert here.recv() == (True, len(JOBS), True)
    process.join()


def test_the_longest_files_come_first(request: pytest.FixtureRequest) -> None:
    files = dict.fromkeys(item.path.relative_to(ROOT / "tests").as_posix() for item in request.session.items)
    chosen = [name for name in LONGEST if name in files]
    assert list(files)[: len(chosen)] == chosen
    assert all((ROOT / "tests" / name).is_file() for name in LONGEST)
