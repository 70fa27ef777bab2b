"""The law of pieces: a training that is stopped and killed at random places, and started again each time, ends with the
bytes of one that was left in peace."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import pytest
import torch
from conftest import Command, rank_variables
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from deeplense.training import checkpoint
from jobs.runs.attempts import EXIT_STOPPED, read_attempts

EXAMPLES = int(os.environ.get("DEEPLENSE_EXAMPLES", "2"))
COMMON = {"epochs": 2, "evaluate_epochs": 0.5, "batch_size": 16, "lr": 3e-3, "log_interval": 1, "device": "cpu"}
CNN = COMMON | {"model_name": "simple_cnn"}
RESNET = COMMON | {"model_name": "test_resnet", "dropout": 0.3}
VIEWS = {"num_local": 2, "evaluate_epochs": 1, "hidden_dim": 16, "out_dim": 32, "warmup_epochs": 1}
PRETRAIN = COMMON | {"model_name": "test_vit", "drop_path": 0.1, "weight_decay_end": 0.4} | VIEWS
DIFFUSE = COMMON | {"model_name": "unet_small", "num_times": 50, "num_sampled": 0, "evaluate_epochs": 1}


@dataclass(frozen=True)
class Kind:
    """A training: its settings, in how many processes, settings of the pieces that must change nothing, and how often
    one is broken off."""

    settings: Mapping[str, object]
    job: str = "train"
    num_processes: int = 1
    free: Mapping[str, object] = field(default_factory=dict)
    ends: tuple[int, int] = (2, 4)
    examples: int = EXAMPLES


KINDS = {
    "a residual network with dropout": Kind(RESNET),
    "running mean, restarts, pieces of a batch, clipping": Kind(
        CNN
        | {"ema_decay": 0.9, "schedule": "restarts", "period_epochs": 0.7, "warmup_epochs": 0.3}
        | {"gradient_accumulation": 2, "clip_grad": 1.0}
    ),
    "regression": Kind(CNN | {"target": "column", "optimizer": "sgd", "schedule": "cosine"}),
    "bf16": Kind(CNN | {"precision": "bf16"}, examples=1),
    "one fold of three": Kind(CNN | {"num_folds": 3, "fold": 1}),
    "label smoothing, zoom, rotation": Kind(
        CNN | {"label_smoothing": 0.1, "random_zoom": 1.3, "random_rotation": 40, "stretch": "asinh"}
    ),
    "lamb": Kind(CNN | {"optimizer": "lamb", "schedule": "step", "period_epochs": 0.5}),
    "patience": Kind(CNN | {"patience_epochs": 0.7, "lr": 1e-12, "epochs": 6}),
    "layer decay": Kind(RESNET | {"layer_decay": 0.7}),
    "only the last layers": Kind(CNN | {"tune": 0, "complex": 1, "dropout": 0.2}),
    "reading ahead": Kind(CNN, free={"num_workers": 1}, ends=(1, 1), examples=1),
    "two processes": Kind(RESNET | {"ema_decay": 0.9, "gradient_accumulation": 2}, num_processes=2),
    "diffusion": Kind(DIFFUSE | {"conditions": "class,column", "flips": 1}, job="diffuse", examples=1),
    "diffusion in two processes": Kind(
        DIFFUSE | {"predict": "eps", "num_sampled": 4}, job="diffuse", num_processes=2, ends=(1, 1), examples=1
    ),
    "DINO": Kind(PRETRAIN | {"method": "dino"}, job="pretrain", examples=1),
    "iBOT in two processes": Kind(
        PRETRAIN | {"method": "ibot", "gradient_accumulation": 2}, job="pretrain", num_processes=2, examples=1
    ),
    "DINO, its weights spread over two processes": Kind(
        PRETRAIN | {"method": "dino", "fsdp": 1}, job="pretrain", num_processes=2, examples=1
    ),
    "all of a network spread over two processes": Kind(
        CNN | {"fsdp": 1, "clip_grad": 1.0, "gradient_accumulation": 2}, num_processes=2, examples=1
    ),
}


@dataclass(frozen=True)
class End:
    """How an attempt ends: a signal to its first process, which writes its n-th line of metrics or syncs its n-th file.
    Before, it saves after each step, or only when it must."""

    place: Literal["line", "sync"]
    number: int
    signal: signal.Signals
    saves: bool


LINES = st.builds(
    End,
    st.just("line"),
    st.integers(2, 9),
    st.sampled_from([signal.SIGKILL, signal.SIGTERM]),
    st.sampled_from([True, False]),
)
SYNCS = st.builds(End, st.just("sync"), st.integers(1, 70), st.just(signal.SIGKILL), st.just(True))


def end_at(end: End) -> None:
    """Make this process send itself the signal; a kill tears the line that is being written."""
    from deeplense import files
    from deeplense.training.tracking import Tracker

    left = [end.number]
    log, sync = Tracker.log, files.sync

    def is_now() -> bool:
        left[0] -= 1
        return left[0] == 0

    def log_or_end(tracker: Tracker, step: int, values: Mapping[str, float]) -> None:
        if is_now():
            if end.signal == signal.SIGKILL:
                tracker.file.write(f'{{"step": {step}, "tra')
                tracker.file.flush()
            os.kill(os.getpid(), end.signal)
        log(tracker, step, values)

    def sync_or_end(path: Path) -> None:
        if is_now():
            os.kill(os.getpid(), end.signal)
        sync(path)

    if end.place == "line":
        Tracker.log = log_or_end  # type: ignore[method-assign]
    else:
        files.sync = sync_or_end


def forget_optimizer() -> None:
    """Make this process leave out the state of the optimizer where it continues."""
    torch.optim.Optimizer.load_state_dict = lambda self, state_dict: None  # type: ignore[method-assign]


def attempt(
    kind: Kind,
    datasets: Mapping[str, Path],
    run: Path,
    *,
    saves: bool = False,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Start a training or continue it; returns the exit code of its first process. Where that one is killed, so are the
    others."""
    values = {**kind.settings, **kind.free, "checkpoint_minutes": 1e-9 if saves else 5}
    words = [kind.job, f"--dataset={datasets[kind.job]}", f"--run={run}", *(f"--{k}={v}" for k, v in values.items())]
    groups = rank_variables(kind.num_processes) if kind.num_processes > 1 else [{}]
    log = run.with_suffix(".log")
    first, *others = [
        Command(words, log, variables, None if rank else prepare) for rank, variables in enumerate(groups)
    ]
    code = first.wait()
    for other in others:
        if code == -signal.SIGKILL:
            other.send(signal.SIGKILL)
        # One that loses its group may end by itself before it is killed.
        assert other.wait() == code or code == -signal.SIGKILL, log.read_text()
    assert code in (0, EXIT_STOPPED, -signal.SIGKILL), log.read_text()
    return code


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished training leaves, by name: each tensor as its bytes, the other states, the metrics. Without a
    score there are no best weights."""
    found: dict[str, Any] = {}
    finished = json.loads((run / "finished.json").read_text())
    for kind in ("step", "best") if "best" in finished else ("step",):
        path, reports = checkpoint.newest_good(run / "checkpoints", kind=kind)
        assert path is not None, reports
        tensors: dict[str, torch.Tensor] = {}
        found[f"{kind}: name"] = path.name
        states = {name: state for name, state in checkpoint.load(path).items() if name != "record"}
        found[f"{kind}: all but tensors"] = checkpoint.flatten(states, tensors)
        found |= {f"{kind}: {name}": raw(tensor) for name, tensor in tensors.items()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in line.items() if k in ("step", "lr") or "/" in k} for line in lines]
    found["finished.json"] = finished
    return found


def raw(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """Type, shape and bytes of a tensor."""
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def differing(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """What is not the same in two outcomes."""
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


@pytest.fixture(scope="module")
def datasets(dataset: Path, stamps: Path) -> Mapping[str, Path]:
    """What each job learns from."""
    return {"train": dataset, "pretrain": stamps, "diffuse": dataset}


@pytest.fixture(scope="module")
def unbroken(datasets: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Outcomes of trainings that were left in peace, by kind."""
    done: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in done:
            run = tmp_path_factory.mktemp("unbroken") / "run"
            assert attempt(replace(KINDS[name], free={}), datasets, run) == 0
            done[name] = outcome(run)
        return done[name]

    return get


@pytest.mark.parametrize("name", KINDS)
def test_a_training_in_random_pieces_ends_with_the_bytes_of_an_unbroken_one(
    name: str,
    datasets: Mapping[str, Path],
    unbroken: Callable[[str], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind, broken = KINDS[name], 0

    # Each kind has places of its own. A failure is told at once: to look for a shorter one would take long.
    @seed(crc32(name.encode()))
    @settings(max_examples=kind.examples, deadline=None, database=None, phases=[Phase.generate])
    @given(st.lists(LINES | SYNCS, min_size=kind.ends[0], max_size=kind.ends[1]))
    def holds(ends: list[End]) -> None:
        nonlocal broken
        run = tmp_path_factory.mktemp("pieces") / "run"
        codes = [attempt(kind, datasets, run, saves=end.saves, prepare=partial(end_at, end)) for end in ends]
        broken += sum(code != 0 for code in codes)
        assert attempt(kind, datasets, run) == 0
        assert differing(outcome(run), unbroken(name)) == set()
        assert not list(run.rglob(".writing-*"))
        assert {line["ended"] for line in read_attempts(run)} <= {"killed", "stopped by SIGTERM", "finished"}

    holds()
    assert broken >= kind.examples * kind.ends[0], "the negative control: attempts were really broken off"


def test_another_seed_gives_another_end(
    datasets: Mapping[str, Path], unbroken: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    kind = Kind({**KINDS["bf16"].settings, "seed": 1})
    assert attempt(kind, datasets, tmp_path / "run") == 0
    assert {"metrics", "step: model/head.1.weight", "best: model/head.1.weight"} <= differing(
        outcome(tmp_path / "run"), unbroken("bf16")
    )


def test_an_optimizer_that_is_forgotten_at_one_restart_gives_another_end(
    datasets: Mapping[str, Path], unbroken: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    run, name = tmp_path / "run", "a residual network with dropout"
    stop = partial(end_at, End("line", 9, signal.SIGTERM, saves=False))
    assert attempt(KINDS[name], datasets, run, prepare=stop) == EXIT_STOPPED
    assert attempt(KINDS[name], datasets, run, prepare=forget_optimizer) == 0
    different = differing(outcome(run), unbroken(name))
    assert {"metrics", "step: model/head.1.weight", "step: optimizer/state/0/step"} <= different
