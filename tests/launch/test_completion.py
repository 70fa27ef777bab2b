"""Tab completion of a real bash, with the script of `deeplense completion bash`."""

import subprocess
from pathlib import Path

import pytest

from jobs.verbs import JOBS
from launch.__main__ import main
from launch.commands import COMMANDS

TRY = r"""
source "$1"; cd "$2"; shift 2
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p deeplense | sed 's/.*-F \([^ ]*\).*/\1/')
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, and a folder with a data set to complete."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch, (folder / "script").open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return folder / "script"


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words after `deeplense`."""
    command = ["bash", "-c", TRY, "bash", str(script), str(script.parent), "deeplense", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all_jobs_and_commands_are_offered(script: Path) -> None:
    assert completed(script, "") >= {job for job in JOBS if " " not in job} | COMMANDS.keys()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("tr",), {"train"}),
        (("train", "--optimiz"), {"--optimizer"}),
        (("train", "--optimizer", ""), {"adamw", "sgd", "adam", "lamb"}),
        (("train", "--config", "classify"), {"classify_model_iii", "classify_ps1"}),
        (("benchmark", "mo"), {"models"}),
        (("submit", "--on", "gpu", "tra"), {"train"}),
        (("submit", "--on", "gpu", "train", "--model_n"), {"--model_name"}),
        (("show", "da"), {"data"}),
        (("completion", "z"), {"zsh"}),
        (("train", "--nothing"), set()),
    ],
)
def test_what_fits_is_offered(words: tuple[str, ...], offered: set[str], script: Path) -> None:
    assert completed(script, *words) == offered
