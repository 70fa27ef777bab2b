"""Processes of tests begin with all that takes long to load, and with the longest files."""

import gc
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from conftest import CONTEXT, LONGEST, ROOT, start_fork_server
from threadpoolctl import threadpool_info

from jobs.command_line import make_parser
from jobs.verbs import JOBS


def num_threads() -> set[int]:
    """How many threads the products of matrices of this process take."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def tell(connection: Connection) -> None:
    """What this process has loaded, how many parsers it has, whether a collection leaves it alone, and its threads."""
    loaded = [name in sys.modules["tests.warm"].LOADED_NAMES for name in ("torch", "conftest", "hypothesis")]
    connection.send((all(loaded), make_parser.cache_info().currsize, gc.get_freeze_count() > 100_000, num_threads()))


def test_a_process_begins_with_all_that_tests_load_and_with_all_parsers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_fork_server()
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=tell, args=(there,))
    process.start()
    assert here.poll(60)
    assert here.recv() == (True, len(JOBS), True, {1})
    process.join()


def test_products_of_matrices_start_no_threads() -> None:
    assert num_threads() == {1}


def test_the_longest_files_come_first(request: pytest.FixtureRequest) -> None:
    files = dict.fromkeys(item.path.relative_to(ROOT / "tests").as_posix() for item in request.session.items)
    chosen = [name for name in LONGEST if name in files]
    assert list(files)[: len(chosen)] == chosen
    assert all((ROOT / "tests" / name).is_file() for name in LONGEST)
