"""Training: whatever happens on the way, the end is the same, to the bit."""

import json
import signal
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, rank_variables

from deeplense.training import checkpoint
from jobs.runs.attempts import EXIT_DISK_FULL, EXIT_STOPPED, read_attempts

Start = Callable[..., Command]
SMALL = {
    "model_name": "simple_cnn",
    "batch_size": 16,
    "epochs": 3,
    "log_interval": 1,
    "device": "cpu",
    "lr": 1e-3,
}
LONG = SMALL | {"epochs": 25, "evaluate_epochs": 8, "checkpoint_minutes": 1e-9}
RARELY = {"checkpoint_minutes": 5}
RICH = SMALL | {
    "dropout": 0.2,
    "random_zoom": 1.2,
    "random_rotation": 20,
    "ema_decay": 0.9,
    "optimizer": "sgd",
    "schedule": "restarts",
    "period_epochs": 1,
    "warmup_epochs": 0.5,
    "gradient_accumulation": 2,
    "clip_grad": 1.0,
    "label_smoothing": 0.1,
    "complex": 1,
    "stretch": "asinh",
    "checkpoint_minutes": 1e-9,
}


def train(dataset: Path, run: Path, settings: Mapping[str, object]) -> list[str]:
    """The command line of a training."""
    words = [f"--{name}={value}" for name, value in settings.items()]
    return ["train", f"--dataset={dataset}", f"--run={run}", *words]


def final_states(run: Path) -> dict[str, checkpoint.State]:
    """All that the last checkpoint of a finished run holds."""
    path, reports = checkpoint.newest_good(run / "checkpoints")
    assert path is not None
    assert not reports
    return checkpoint.load(path)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint by its path: weights, optimizer, running mean."""
    tensors: dict[str, torch.Tensor] = {}
    checkpoint.flatten(final_states(run), tensors)
    return tensors


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are equal, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run has written the metrics of a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and any(
            json.loads(line)["step"] >= step for line in path.read_text().splitlines(True) if line[-1] == "\n"
        ):
            return
        time.sleep(0.005)
    raise TimeoutError(step)


@pytest.fixture(scope="module")
def unbroken(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that nothing disturbed, by the name of their settings."""
    done: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in done:
            run = tmp_path_factory.mktemp(name) / "run"
            settings = {"small": SMALL, "rich": RICH, "long": LONG | RARELY}[name]
            command = Command(train(dataset, run, settings), run.parent / "log.txt")
            assert command.wait() == 0, command.log.read_text()
            done[name] = run
        return done[name]

    return get


def die_at_sync(countdown: int) -> None:
    """Make this process kill itself at the n-th time that something is synced to the disk."""
    import os

    from deeplense import files

    left = [countdown]
    sync = files.sync

    def sync_or_die(path: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    files.sync = sync_or_die


@pytest.mark.parametrize("name", ["small", "rich"])
def test_the_same_settings_give_the_same_bits(
    name: str, dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    settings = {"small": SMALL, "rich": RICH}[name]
    assert start(*train(dataset, tmp_path / "run", settings)).wait() == 0
    assert same(final_tensors(tmp_path / "run"), final_tensors(unbroken(name)))


def test_another_seed_gives_other_bits(
    dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    assert start(*train(dataset, tmp_path / "run", SMALL | {"seed": 1})).wait() == 0
    assert not same(final_tensors(tmp_path / "run"), final_tensors(unbroken("small")))


def test_a_run_killed_again_and_again_while_it_saves_ends_with_the_bits_of_an_unbroken_one(
    dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    run, kills = tmp_path / "run", 0
    for countdown in (7, 23, 30, 41, 12, 58, 67, 35):
        code = start(*train(dataset, run, RICH), prepare=partial(die_at_sync, countdown)).wait()
        assert code in (-signal.SIGKILL, 0)
        kills += code == -signal.SIGKILL
    assert kills >= 6, "the negative control: most attempts were really killed"
    assert start(*train(dataset, run, RICH)).wait() == 0
    assert same(final_tensors(run), final_tensors(unbroken("rich")))
    assert metrics(run) == metrics(unbroken("rich"))
    assert "killed" in {attempt["ended"] for attempt in read_attempts(run)}
    assert not list(run.rglob(".writing-*"))


def test_a_run_killed_between_saves_ends_with_the_bits_of_an_unbroken_one(
    dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    run = tmp_path / "run"
    for step in (25, 55, 90):
        command = start(*train(dataset, run, LONG | {"checkpoint_minutes": 0.002}))
        wait_for_step(run, step)
        command.send(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
    assert start(*train(dataset, run, LONG | RARELY)).wait() == 0
    assert same(final_tensors(run), final_tensors(unbroken("long")))
    assert metrics(run) == metrics(unbroken("long"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_however_often_leads_to_a_save_and_the_same_command_continues(
    number: signal.Signals, dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    run, settings = tmp_path / "run", LONG | RARELY
    command = start(*train(dataset, run, settings))
    wait_for_step(run, 20)
    for _ in range(3):
        command.send(number)
    assert command.wait() == EXIT_STOPPED
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["signal"] == number.name
    assert checkpoint.step_folder(run / "checkpoints", stopped["step"]).is_dir()
    assert start(*train(dataset, run, settings)).wait() == 0
    assert not (run / "stopped.json").exists()
    assert same(final_tensors(run), final_tensors(unbroken("long")))
    first, second = read_attempts(run)
    assert first["ended"] == f"stopped by {number.name}"
    assert (first["last_step"], second["ended"]) == (second["first_step"], "finished")


def test_a_signal_before_the_first_step_is_heeded(dataset: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    command = start(*train(dataset, run, LONG), prepare=signal_during_start)
    assert command.wait() == EXIT_STOPPED
    assert json.loads((run / "stopped.json").read_text())["step"] == 1


def signal_during_start() -> None:
    """Send this process SIGTERM as soon as it begins to build the network."""
    import os

    from jobs.train import learner

    make = learner.make_network

    def make_after_signal(*arguments: object, **named: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return make(*arguments, **named)  # type: ignore[arg-type]

    learner.make_network = make_after_signal  # type: ignore[assignment]


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_gives_the_same_end(
    dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    run = tmp_path / "run"
    command = start(*train(dataset, run, LONG))
    wait_for_step(run, 12)
    command.send(signal.SIGTERM)
    assert command.wait() == EXIT_STOPPED
    newest = max((run / "checkpoints").glob("step_*"))
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    resumed = start(*train(dataset, run, LONG | RARELY))
    assert resumed.wait() == 0
    assert f"damaged_{newest.name}" in resumed.log.read_text()
    assert same(final_tensors(run), final_tensors(unbroken("long")))


@pytest.mark.parametrize("reading", [{"num_workers": 1}, {"read_ahead": 0}, {"read_ahead": 3}])
def test_reading_ahead_in_threads_or_other_processes_changes_nothing(
    reading: dict[str, int], dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    assert start(*train(dataset, tmp_path / "run", SMALL | reading)).wait() == 0
    assert same(final_tensors(tmp_path / "run"), final_tensors(unbroken("small")))


def record_samples(folder: Path, rank: int) -> None:
    """Write the samples of each update that this process makes, a line each."""
    import os

    from jobs.frame import updates
    from jobs.train.objective import Objective

    make, fit, number = Objective.step, updates.fit, [0]

    def make_and_tell(objective: Objective, network: Any, batch: Any) -> Any:
        with (folder / f"samples-{os.getpid()}").open("a") as file:
            file.write(json.dumps([number[0], rank, batch.indices.tolist()]) + "\n")
        number[0] += 1
        return make(objective, network, batch)

    def fit_from(*words: Any, first_step: int, **settings: Any) -> Any:
        number[0] = first_step
        return fit(*words, first_step=first_step, **settings)

    Objective.step = make_and_tell  # type: ignore[method-assign]
    updates.fit = fit_from


def samples_of_steps(folder: Path) -> dict[int, list[int]]:
    """The samples of each step, over all processes, sorted."""
    lines = [json.loads(line) for path in folder.glob("samples-*") for line in path.read_text().splitlines()]
    steps: dict[int, list[int]] = {}
    for step, _, indices in lines:
        steps[step] = sorted([*steps.get(step, []), *indices])
    return steps


def test_the_samples_of_each_step_do_not_depend_on_the_number_of_processes(
    dataset: Path, tmp_path: Path, start: Start
) -> None:
    settings = SMALL | {"epochs": 12, "batch_size": 12}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    alone = start(*train(dataset, tmp_path / "alone", settings), prepare=partial(record_samples, whole, 0))
    assert alone.wait() == 0
    for num_processes, ending in ((2, EXIT_STOPPED), (3, EXIT_STOPPED), (1, 0)):
        ranks = [
            start(
                *train(dataset, tmp_path / "run", settings),
                environment=variables,
                prepare=partial(record_samples, parts, rank),
            )
            for rank, variables in enumerate(rank_variables(num_processes))
        ]
        if ending:
            done = read_attempts(tmp_path / "run")[-1]["last_step"] if (tmp_path / "run/attempts.jsonl").exists() else 0
            wait_for_step(tmp_path / "run", (done or 0) + 10)
            ranks[-1].send(signal.SIGTERM)
        assert [rank.wait() for rank in ranks] == [ending] * num_processes, ranks[0].log.read_text()
    assert samples_of_steps(parts) == samples_of_steps(whole)
    assert [attempt["num_processes"] for attempt in read_attempts(tmp_path / "run")] == [2, 3, 1]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_killed_and_started_again_end_with_the_bits_of_as_many_that_were_not(
    num_processes: int, dataset: Path, tmp_path: Path, start: Start
) -> None:
    settings = RICH | {"epochs": 6}

    def ranks_of(run: Path) -> list[Command]:
        return [
            start(*train(dataset, run, settings), environment=variables) for variables in rank_variables(num_processes)
        ]

    assert {rank.wait() for rank in ranks_of(tmp_path / "unbroken")} == {0}
    killed = ranks_of(tmp_path / "run")
    wait_for_step(tmp_path / "run", 9)
    for rank in killed:
        rank.send(signal.SIGKILL)
    assert {rank.wait() for rank in killed} == {-signal.SIGKILL}
    assert {rank.wait() for rank in ranks_of(tmp_path / "run")} == {0}
    assert same(final_tensors(tmp_path / "run"), final_tensors(tmp_path / "unbroken"))


def test_settings_that_failed_before_the_first_step_leave_a_run_free(
    dataset: Path, tmp_path: Path, start: Start
) -> None:
    assert start(*train(dataset, tmp_path / "run", SMALL | {"model_name": "none"})).wait() == 2
    assert start(*train(dataset, tmp_path / "run", SMALL | {"epochs": 0.2})).wait() == 0


def test_a_finished_run_is_left_as_it_is(dataset: Path, start: Start, unbroken: Callable[[str], Path]) -> None:
    run = unbroken("small")
    before = (run / "attempts.jsonl").read_text()
    again = start(*train(dataset, run, SMALL))
    assert again.wait() == 0
    assert "is already finished" in again.log.read_text()
    assert (run / "attempts.jsonl").read_text() == before


def test_a_run_is_not_continued_with_settings_that_change_its_numbers(
    dataset: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    refused = start(*train(dataset, unbroken("small"), SMALL | {"lr": 0.5}))
    assert refused.wait() == 2
    assert "lr=0.5 (the run has 0.001)" in refused.log.read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"keep_checkpoints": 1}, "keep_checkpoints=1 must be at least 2"),
        ({"keep_every_hours": 0}, "keep_every_hours=0.0 must be above 0"),
        ({"batch_size": 500}, "batch_size=500 exceeds the 96 images of the split train"),
        ({"batch_size": 90}, "batch_size=90 exceeds the 87 training samples"),
        (
            {"gradient_accumulation": 17},
            "batch_size=16 is too small for 1 rank with gradient_accumulation=17, as each part needs at least one",
        ),
        (
            {"model_name": "resnet18", "gradient_accumulation": 16},
            "batch_size=16 is too small for 1 rank with gradient_accumulation=16, as each part needs at least 2",
        ),
        ({"model_name": "simple_cmn"}, "unknown model 'simple_cmn'"),
        ({"dataset": "nowhere"}, "no such data set 'nowhere'"),
        ({"target": "mass"}, "has no target 'mass'; its targets: column."),
        ({"device": "cuda"}, "torch finds no GPU"),
        ({"precision": "fp16"}, "precision=fp16 needs a GPU"),
        ({"lr": 1e9, "optimizer": "sgd"}, "the loss is"),
    ],
)
def test_bad_input_is_one_clear_error(
    change: dict[str, object], told: str, dataset: Path, tmp_path: Path, start: Start
) -> None:
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = start(*train(dataset, tmp_path / "run", SMALL | change))
    assert command.wait() == 2
    assert told in command.log.read_text()
    assert "Traceback" not in command.log.read_text()


def test_a_full_disk_is_an_error_and_the_checkpoint_before_stands(dataset: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    command = start(*train(dataset, run, LONG), prepare=partial(fill_disk_at_step, 5))
    assert command.wait() == EXIT_DISK_FULL
    path, reports = checkpoint.newest_good(run / "checkpoints")
    assert path is not None
    assert "step_00000001" <= path.name <= "step_00000004"
    assert reports == []
    assert "No space left" in read_attempts(run)[-1]["ended"]
    assert not list((run / "checkpoints").glob(".writing-*"))


def fill_disk_at_step(step: int) -> None:
    """Make writing checkpoints fail, as on a full disk, from a step on."""
    import errno
    import re

    put = checkpoint.put

    def put_while_there_is_room(path: Path, content: bytes | memoryview) -> str:
        found = re.search(r"step_(\d+)", str(path))
        if found and int(found[1]) >= step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(path, content)

    checkpoint.put = put_while_there_is_room


def test_a_write_that_fails_on_one_process_ends_all_of_them(dataset: Path, tmp_path: Path, start: Start) -> None:
    ranks = [
        start(*train(dataset, tmp_path / "run", LONG), environment=variables, prepare=partial(fill_disk_at_step, 5))
        for variables in rank_variables(2)
    ]
    assert [rank.wait() for rank in ranks] == [EXIT_DISK_FULL] * 2
    assert checkpoint.newest_good(tmp_path / "run" / "checkpoints")[0] is not None


def hold_writes(gate: Path) -> None:
    """Let no checkpoint be finished before there is a file."""
    sync_tree = checkpoint.sync_tree

    def wait_and_sync(path: Path) -> None:
        while not gate.exists():
            time.sleep(0.01)
        sync_tree(path)

    checkpoint.sync_tree = wait_and_sync


def test_the_training_goes_on_while_a_checkpoint_is_written(
    dataset: Path, tmp_path: Path, start: Start, unbroken: Callable[[str], Path]
) -> None:
    run = tmp_path / "run"
    command = start(*train(dataset, run, LONG), prepare=partial(hold_writes, tmp_path / "gate"))
    # The first evaluation, after 43 steps, waits for the write under way.
    wait_for_step(run, 40)
    assert [path.name[:21] for path in (run / "checkpoints").iterdir()] == [".writing-step_0000000"]
    (tmp_path / "gate").touch()
    assert command.wait() == 0
    assert same(final_tensors(run), final_tensors(unbroken("long")))
    assert metrics(run) == metrics(unbroken("long"))


@pytest.mark.parametrize(("ema_decay", "part"), [(None, "model"), (0.9, "ema")])
def test_the_best_weights_of_the_last_step_are_files_of_its_checkpoint(
    ema_decay: float | None, part: str, dataset: Path, tmp_path: Path, start: Start
) -> None:
    settings = SMALL | {"epochs": 0.2} | ({"ema_decay": ema_decay} if ema_decay else {})
    assert start(*train(dataset, tmp_path / "run", settings)).wait() == 0
    last, best = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    assert (last.name, best.name) == ("step_00000001", "best_00000001")
    assert (best / "model.safetensors").samefile(last / f"{part}.safetensors")
    whole = checkpoint.load(last)
    found = checkpoint.load(best)
    assert found["progress"] == whole["progress"]
    assert same(dict(found["model"]), dict(whole[part]))
    assert ("ema" in whole) == (ema_decay is not None)


def test_a_run_keeps_as_many_checkpoints_as_it_is_told(dataset: Path, tmp_path: Path, start: Start) -> None:
    settings = LONG | {"keep_checkpoints": 4, "epochs": 8, "evaluate_epochs": 2}
    assert start(*train(dataset, tmp_path / "run", settings)).wait() == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [name.split("_")[0] for name in names] == ["best", *["step"] * 4]
    assert all(checkpoint.damage(tmp_path / "run" / "checkpoints" / name) is None for name in names)


def test_a_checkpoint_tells_where_it_came_from(unbroken: Callable[[str], Path]) -> None:
    record, run = final_states(unbroken("small"))["record"], unbroken("small")
    environment = json.loads((run / "environment.json").read_text())
    assert record["settings"] == yaml.safe_load((run / "config.yaml").read_text())
    assert record["code"] == {"commit": environment["git_commit"]}
    assert record["packages"] == environment["packages"]
    assert (record["num_processes"], record["wandb_id"]) == (1, None)
    assert 0 <= time.time() - datetime.fromisoformat(record["time"]).timestamp() < 3600


def test_only_the_last_layers_learn_where_tune_is_off(dataset: Path, tmp_path: Path, start: Start) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    frozen = SMALL | {"tune": 0}
    assert start(*train(dataset, first, frozen | {"epochs": 0.1})).wait() == 0
    assert start(*train(dataset, last, frozen)).wait() == 0
    before, after = final_states(first)["model"], final_states(last)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.1.weight", "head.1.bias"}


def test_wandb_keeps_one_id_over_attempts_and_needs_no_login(dataset: Path, tmp_path: Path, start: Start) -> None:
    run, settings = tmp_path / "run", LONG | RARELY | {"wandb": "offline"}
    home = {"HOME": str(tmp_path / "home"), "WANDB_API_KEY": ""}
    command = start(*train(dataset, run, settings), environment=home)
    wait_for_step(run, 10)
    command.send(signal.SIGTERM)
    assert command.wait() == EXIT_STOPPED
    first = (run / "wandb_id.txt").read_text()
    (run / "wandb_id.txt").unlink()
    assert start(*train(dataset, run, settings), environment=home).wait() == 0
    assert (run / "wandb_id.txt").read_text() == first
    folders = list((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert {folder.name.split("-")[-1] for folder in folders} == {(run / "wandb_id.txt").read_text().strip()}


def test_a_recipe_gives_settings_and_the_run_keeps_them(dataset: Path, tmp_path: Path, start: Start) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALL | {"epochs": 0.2}))
    command = start("train", f"--config={recipe}", f"--dataset={dataset}", f"--run={tmp_path / 'run'}", "--lr=0.01")
    assert command.wait() == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["lr"], stored["batch_size"], stored["epochs"]) == (0.01, 16, 0.2)
