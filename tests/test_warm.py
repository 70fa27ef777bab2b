"""Processes of tests begin with all that takes long to load, and with the longest files."""

import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from conftest import CONTEXT, LONGEST, ROOT, start_fork_server

from jobs.command_line import make_parser
from jobs.verbs import JOBS


def tell(connection: Connection) -> None:
    """What this process has loaded, and how many parsers it has."""
    connection.send(("tests.warm" in sys.modules, "torch" in sys.modules, make_parser.cache_info().currsize))


def test_a_process_begins_with_torch_and_with_all_parsers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start_fork_server()
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=tell, args=(there,))
    process.start()
    assert here.poll(60)
    assert here.recv() == (True, True, len(JOBS))
    process.join()


def test_the_longest_files_come_first(request: pytest.FixtureRequest) -> None:
    files = dict.fromkeys(item.path.relative_to(ROOT / "tests").as_posix() for item in request.session.items)
    chosen = [name for name in LONGEST if name in files]
    assert list(files)[: len(chosen)] == chosen
    assert all((ROOT / "tests" / name).is_file() for name in LONGEST)
