"""The small image of the tests, in the real Apptainer."""

import subprocess
import sys
from pathlib import Path

import pytest

from containers.image import exec_words, require_apptainer, small_image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_apptainer()
    return small_image(tmp_path_factory.mktemp("image"))


def inside(image: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*exec_words(image), *words], capture_output=True, text=True, cwd="/")


def test_the_small_image_runs_the_python_and_the_packages_of_this_machine(image: Path) -> None:
    program = "import sys, torch, deeplense, h5py, ssl, sqlite3; print(sys.prefix, torch.tensor([1, 2]).sum().item())"
    done = inside(image, sys.executable, "-c", program)
    assert done.stdout.split() == [sys.prefix, "3"], done.stderr


def test_the_small_image_holds_no_program_of_slurm(image: Path) -> None:
    done = inside(image, "sh", "-c", "command -v sh; command -v scontrol srun sbatch squeue")
    assert done.stdout.split() == ["/usr/bin/sh"], done.stderr


def test_variables_of_slurm_and_the_number_of_the_exit_pass_through_the_small_image(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    done = inside(image, "sh", "-c", "echo $SLURM_PROCID; exit 85")
    assert (done.stdout.strip(), done.returncode) == ("3", 85)


def test_an_image_that_is_there_is_not_built_again(image: Path) -> None:
    before = image.stat()
    assert small_image(image.parent) == image
    assert image.stat() == before
