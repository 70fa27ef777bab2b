"""The commands of the documentation, run as they stand: each page in an empty folder, in order.

One mechanism makes them small: the program `deeplense` that they find takes the words of the page, adds the settings of
`SMALL` for its verb, and runs in a process that is forked from one that has loaded torch.
"""

import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command
from forks import fork_runs

from jobs.api import settings_page
from jobs.command_line import parse
from jobs.verbs import JOBS, with_joined_name
from launch.commands import COMMANDS
from launch.parsing import DESCRIBE, Described
from launch.sweeps import expand

DOCS = ROOT / "docs"
PAGES = ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))]
SMALL = {
    "simulate": ["--num_per_class=16"],
    "train": ["--epochs=1", "--batch_size=8"],
    "pretrain": ["--epochs=1", "--batch_size=16", "--hidden_dim=16", "--out_dim=32"],
    "finetune": ["--num_labels=42", "--num_updates=2"],
    "diffuse": ["--batch_size=16", "--num_times=50", "--num_sampled=0"],
    "sample": ["--num_images=16", "--num_steps=2", "--batch_size=16"],
    "benchmark models": ["--epochs=1", "--seeds=0", "--batch_size=16"],
    "benchmark labels": ["--num_labels=18", "--seeds=0", "--num_updates=2", "--batch_size=8"],
}
"""What makes a command of each verb small; later settings override earlier ones. Of finetune, only those
that a page gives."""
CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    line.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code, said = json.loads(line.makefile().readline())
sys.stdout.write(said)
sys.exit(code)
"""


def small(words: list[str]) -> list[str]:
    """A command with the settings that make it small."""
    for place in range(len(words)):
        verb = with_joined_name(words[place:])[0]
        if verb in JOBS:
            added = [word for word in SMALL.get(verb, []) if verb != "finetune" or word.partition("=")[0] in words]
            added += ["--epochs=2"] if "--lengthen" in words else []
            return [*words, *added]
    return words


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def begin_in(folder: str) -> None:
    """What a command does first: go to the folder of the page, and start the runs of tables without fresh
    interpreters."""
    os.chdir(folder)
    fork_runs()


class Program:
    """A program `deeplense` for shells, whose commands run in forked processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0
        self.path = folder / "bin" / "deeplense"
        self.path.parent.mkdir()
        address = str(folder / "line")
        self.path.write_text(f"#!{sys.executable} -SE\n{CLIENT.format(address=address)}")
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Answer one command after another."""
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            with line, line.makefile("rw") as both:
                both.write(json.dumps(self.run(*json.loads(both.readline()))) + "\n")

    def run(self, words: list[str], folder: str, environment: dict[str, str]) -> tuple[int, str]:
        """Run a command; returns its exit code and its output."""
        self.calls += 1
        log = self.folder / f"log{self.calls}.txt"
        command = Command(small(words), log, environment, partial(begin_in, folder))
        return command.wait(), log.read_text()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """The program, in a folder beside the empty one in which a page is followed."""
    program = Program(tmp_path)
    yield program
    program.listener.close()


def follow(page: str, folder: Path, program: Program) -> None:
    """Run the blocks of a page."""
    folder.mkdir()
    path = os.pathsep.join([str(program.path.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    given: dict[str, Any] = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    for block in blocks(page, "bash"):
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", block], **given)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    script = "\n".join(blocks(page, "python"))
    if script:
        code, said = run_script(script, folder)
        assert code == 0, f"{script}\n{said[-2000:]}"


def run_script(script: str, folder: Path) -> tuple[int, str]:
    """Run a script in a folder, in a process that has loaded torch; returns its exit code and its output."""
    log = folder.parent / f"{folder.name}.txt"
    command = Command([], log, prepare=partial(do, script, str(folder)))
    return command.wait(), log.read_text()


def do(script: str, folder: str) -> None:
    """Run a script in this process, and end it."""
    os.chdir(folder)
    sys.path.insert(0, "")
    try:
        exec(script, {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "(?:bash|python)")])
def test_the_commands_of_a_page_work_as_they_stand(page: str, program: Program, tmp_path: Path) -> None:
    follow(page, tmp_path / "here", program)
    assert program.calls or not blocks(page, "bash")


def test_a_command_that_fails_fails_its_page(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "DOCS", tmp_path)
    (tmp_path / "wrong.md").write_text("```bash\ndeeplense verify nowhere\n```\n")
    with pytest.raises(AssertionError, match="deeplense verify nowhere"):
        follow("wrong.md", tmp_path / "here", program)
    (tmp_path / "script.md").write_text("```python\nprint(1 / 0)\n```\n")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        follow("script.md", tmp_path / "there", program)


@pytest.mark.parametrize("page", PAGES)
def test_each_link_of_a_page_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (DOCS / page).parent.joinpath(target).exists(), target


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page that need a cluster, the network, other data or hours, as words."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ").replace("$k", "0")
    lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("deeplense ")]


def take(words: list[str]) -> None:
    """Parse a command as the program does, without running it. Raises SystemExit or ValueError if it is not valid."""
    if words[0] not in COMMANDS:
        command = with_joined_name(words)
        parse(command[0], command[1:])
        return
    with pytest.raises(Described) as described:
        COMMANDS[words[0]](DESCRIBE)
    given = described.value.parser.parse_args(words[1:])
    if words[0] == "submit":
        take(given.command)
    if words[0] == "sweep":
        for command in expand(with_joined_name(given.command)):
            take(list(command))


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_commands_that_are_not_run_here_are_valid(page: str) -> None:
    for words in commands_of(page):
        take(words)


@pytest.mark.parametrize(
    "line",
    [
        "deeplense train --config nowhere --run r --dataset d",
        "deeplense submit --on gpu train --run r --dataset d --epohs 3",
        "deeplense doctor --in gpu",
        "deeplense sweep --on gpu train --run 'r/{seed}' --dataset d --seeed=0:2",
    ],
)
def test_a_command_that_is_not_valid_is_found(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ValueError)):
        take(shlex.split(line)[1:])


def test_the_page_of_settings_is_what_the_help_says() -> None:
    assert (DOCS / "settings.md").read_text() == settings_page.page(), "run: python -m jobs.api.settings_page"


@pytest.mark.parametrize("path", sorted((DOCS / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_from_its_first_cell_to_its_last(path: Path, tmp_path: Path) -> None:
    text = re.sub(
        r"^NUM_TRAIN, NUM_TEST, NUM_EPOCHS = .*",
        "NUM_TRAIN, NUM_TEST, NUM_EPOCHS = 60, 12, 1",
        path.read_text(),
        flags=re.M,
    )
    code, said = run_script(text, tmp_path)
    assert code == 0, said[-2000:]
    assert "images that were not trained on" in said
    assert (tmp_path / "lenses.png").stat().st_size > 10_000
