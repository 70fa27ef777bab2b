import subprocess
import sys

import pytest

from jobs.imports import import_without


def test_timm_is_imported_without_weights_and_biases_which_a_run_can_still_log_to() -> None:
    code = """
import sys
from jobs.verbs import VERBS, work_of
works = [work_of(verb.name) for verb in VERBS if not verb.networks]
print("timm" in sys.modules)
works += [work_of(verb.name) for verb in VERBS]
import jobs.diffuse.learner, jobs.evaluate.runs, jobs.frame.updates, jobs.pretrain.learner, jobs.train.learner
print("timm" in sys.modules, "wandb" in sys.modules)
import wandb
print(callable(wandb.init))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False", "True"]


def test_a_package_that_is_imported_already_stays() -> None:
    here = sys.modules[__name__]
    import_without("json", __name__)
    assert sys.modules[__name__] is here


def test_a_package_that_cannot_do_without_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ImportError):
        import_without("no_such_package", "wave")
    assert "wave" not in sys.modules
