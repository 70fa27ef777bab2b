"""Imports that leave a dependency out: no rank loads Weights & Biases for timm's sake."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.imports import import_without

TRAINING = """
import sys
from jobs.run_job import main
from jobs.verbs import VERBS, work_of

works = [work_of(verb.name) for verb in VERBS if not verb.networks]
before = "timm" in sys.modules
assert main(sys.argv[1:]) == 0
works += [work_of(verb.name) for verb in VERBS]
left_out = "wandb" not in sys.modules
import wandb
print(before, "timm" in sys.modules, left_out, callable(wandb.init))
"""


def test_a_training_loads_timm_late_and_without_weights_and_biases_which_it_can_still_log_to(
    dataset: Path, tmp_path: Path
) -> None:
    words = ["train", f"--dataset={dataset}", f"--run={tmp_path / 'run'}", "--model_name=simple_cnn", "--epochs=1"]
    command = [sys.executable, "-c", TRAINING, *words, "--batch_size=16", "--device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["False", "True", "True", "True"]


def test_a_package_that_is_imported_already_stays() -> None:
    here = sys.modules[__name__]
    import_without("json", __name__)
    assert sys.modules[__name__] is here


def test_a_package_that_cannot_do_without_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ImportError):
        import_without("no_such_package", "wave")
    assert "wave" not in sys.modules
