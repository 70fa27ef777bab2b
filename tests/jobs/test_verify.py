"""What `deeplense verify` says of a run: every flipped byte is seen, and every record that contradicts another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, save_at_once

from deeplense.records import line_of, without_hash
from deeplense.training import checkpoint
from jobs.runs.attempts import read_attempts
from jobs.verify import settings as verify_settings
from jobs.verify import work as verify_work

SMALL = ("--model_name=simple_cnn", "--batch_size=16", "--epochs=2", "--device=cpu")


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints of the last steps, 9 and 10, and one of the best."""
    run = tmp_path_factory.mktemp("verified") / "run"
    settings = (*SMALL, "--checkpoint_minutes=1e-9", "--log_interval=1")
    words = ["train", f"--dataset={dataset}", f"--run={run}", *settings]
    command = Command(words, run.parent / "log.txt", prepare=save_at_once)
    assert command.wait() == 0, command.log.read_text()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], tuple[int, str]]:
    """Exit code and output of verifying a folder."""

    def tell(folder: Path) -> tuple[int, str]:
        code = verify_work.run(verify_settings.Settings(folder=folder))
        return code, capsys.readouterr().out

    return tell


Told = Callable[[Path], tuple[int, str]]


def flip(path: Path, place: float) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def best_name(run: Path) -> str:
    """The folder name of the best checkpoint."""
    (path,) = (run / "checkpoints").glob("best_*")
    return path.name


def test_a_sound_run_is_told_with_each_checkpoint_its_size_and_the_speed(run: Path, told: Told) -> None:
    code, said = told(run)
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "step_00000010").iterdir())
    assert code == 0
    assert f"step_00000010: step 10, {size / 1e6:.1f} MB, sound" in said
    assert all(f"{name}: step" in said for name in ("step_00000009", best_name(run)))
    total = sum(file.stat().st_size for file in run.glob("checkpoints/*/*"))
    assert f"{total / 1e9:.3f} GB of 3 checkpoints read at" in said
    assert "GB/s" in said
    assert said.endswith("sound and finished\n")


@pytest.mark.parametrize("place", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
def test_one_flipped_bit_anywhere_in_a_checkpoint_is_seen(name: str, place: float, run: Path, told: Told) -> None:
    flip(run / "checkpoints" / "step_00000009" / name, place)
    code, said = told(run)
    assert code == 1
    assert "step_00000009: step 9" in said
    assert "DAMAGED" in said
    assert "step_00000010 is newer; remove it" in said
    assert said.endswith(": 1 problems\n")


def test_a_damaged_last_checkpoint_is_made_again_as_it_is_told(
    finished: Path, run: Path, told: Told, dataset: Path, start: Callable[..., Command]
) -> None:
    flip(run / "checkpoints" / "step_00000010" / "model.safetensors", 0.5)
    code, said = told(run)
    assert code == 1
    remedy = "remove finished.json, then run the same command again; it moves it aside and resumes from step_00000009"
    assert remedy in said
    (run / "finished.json").unlink()
    settings = (*SMALL, "--checkpoint_minutes=1e-9", "--log_interval=1")
    assert start("train", f"--dataset={dataset}", f"--run={run}", *settings, prepare=save_at_once).wait() == 0
    code, said = told(run)
    assert (code, "damaged_step_00000010: step 10" in said, "moved aside and not used" in said) == (0, True, True)
    again, before = (folder / "checkpoints/step_00000010/model.safetensors" for folder in (run, finished))
    assert again.read_bytes() == before.read_bytes()


def test_the_best_weights_where_damaged_or_missing_are_told(run: Path, told: Told) -> None:
    name = best_name(run)
    flip(run / "checkpoints" / name / "model.safetensors", 0.5)
    code, said = told(run)
    assert (code, f"{name} is damaged: there is no other best" in said) == (1, True)
    shutil.rmtree(run / "checkpoints" / name)
    code, said = told(run)
    assert (code, f"finished.json has best_step {int(name[-8:])}, but there is no such checkpoint" in said) == (
        1,
        True,
    )


def test_a_finished_run_without_the_checkpoint_of_its_last_step_is_told(run: Path, told: Told) -> None:
    shutil.rmtree(run / "checkpoints" / "step_00000010")
    code, said = told(run)
    assert (code, "has step 10, but there is no such checkpoint; remove finished.json" in said) == (1, True)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "finished.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "a: b: c", "\udcff"])
def test_a_record_that_cannot_be_read_is_named(name: str, content: str, run: Path, told: Told) -> None:
    (run / name).write_bytes(content.encode(errors="surrogateescape"))
    code, said = told(run)
    assert code == 1
    assert str(run / name) in said


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("metrics.jsonl", lambda lines: lines[:-2], "ends at step 9, but the run finished after step 10"),
        ("metrics.jsonl", lambda lines: [*lines[:4], '{"st', *lines[5:]], "lines [5] are unreadable"),
        ("metrics.jsonl", lambda lines: [*lines, lines[0]], "the steps go backwards"),
        ("metrics.jsonl", lambda lines: [*lines, '{"step": 1'], "are unreadable"),
        ("attempts.jsonl", lambda lines: ["{", *lines[1:]], "lines [1] are unreadable"),
        ("attempts.jsonl", lambda lines: [], "missing or empty, but there are checkpoints"),
        ("attempts.jsonl", lambda lines: lines * 2, "not numbered 1 to 2"),
        (
            "attempts.jsonl",
            lambda lines: [line_of(without_hash(json.loads(lines[0])) | {"first_step": 11}).strip()],
            "attempt 1 ends after step 10, but started after step 11",
        ),
    ],
)
def test_lines_that_are_lost_torn_or_contradictory_are_told(
    name: str, change: Callable[[list[str]], list[str]], problem: str, run: Path, told: Told
) -> None:
    lines = (run / name).read_text().splitlines()
    (run / name).write_text("".join(f"{line}\n" for line in change(lines)))
    code, said = told(run)
    assert (code, problem in said) == (1, True), said


def test_a_run_that_was_killed_or_stopped_or_has_not_begun_is_no_problem(run: Path, told: Told) -> None:
    (run / "finished.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "tra')
    (run / "checkpoints" / ".writing-step_00000011-0").mkdir()
    assert told(run)[0] == 0
    (run / "stopped.json").write_text('{"step": 10, "signal": "SIGTERM"}')
    code, said = told(run)
    assert (code, "the same command resumes from step_00000010" in said) == (0, True)
    (run / "stopped.json").write_text('{"step": 11, "signal": "SIGTERM"}')
    assert told(run)[0] == 1
    for name in ("checkpoints", "metrics.jsonl", "attempts.jsonl", "stopped.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, said = told(run)
    assert (code, "no checkpoint saved yet" in said) == (0, True)


def test_a_checkpoint_that_a_training_removes_meanwhile_is_left_out(
    run: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_states = checkpoint.read_states

    def remove_and_look(path: Path, **which: Any) -> Any:
        if path.name == "step_00000009":
            shutil.rmtree(path, ignore_errors=True)
        return read_states(path, **which)

    monkeypatch.setattr(checkpoint, "read_states", remove_and_look)
    code, said = told(run)
    assert (code, "step_00000009" in said) == (0, False)


def test_a_folder_that_is_neither_a_run_nor_a_data_set_is_refused(tmp_path: Path, told: Told) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"neither a run \(with a config\.yaml\) nor a data set"):
            told(folder)


def test_a_run_without_its_settings_is_told_and_still_read(run: Path, told: Told) -> None:
    (run / "config.yaml").unlink()
    code, said = told(run)
    assert (code, "config.yaml is missing" in said, "step 10" in said) == (1, True, True)
    assert read_attempts(run)[-1]["ended"] == "finished"


@pytest.mark.parametrize(
    ("line", "other", "problem"),
    [
        ("fold: 0", "fold: 1", "has fold=1, but the checkpoint of step 10 has fold=0"),
        ("lr: 0.0003", "lr: 0.0001", "the correct line is `lr: 0.0003`"),
        ("fold: 0", "gold: 0", "has gold=0, but the checkpoint of step 10 has gold=nothing"),
        ("flips: 1\n", "", None),
        ("flips: 1", "flips: 0", "has flips=0, but the checkpoint of step 10 has flips=1"),
        ("log_interval: 1", "log_interval: 3", "has log_interval=3, but the checkpoint of step 10 has log_interval=1"),
        ("seed: 0", "seed:  0", "is not the file that the training wrote, although it has the same settings"),
    ],
)
def test_settings_that_are_not_those_of_the_training_are_told_with_what_is_right(
    line: str, other: str, problem: str | None, run: Path, told: Told
) -> None:
    text = (run / "config.yaml").read_text()
    assert line in text
    (run / "config.yaml").write_text(text.replace(line, other))
    code, said = told(run)
    assert (code, (problem or "although it has the same settings") in said) == (1, True), said


def test_settings_that_are_lost_are_shown(run: Path, told: Told) -> None:
    right = (run / "config.yaml").read_text()
    for spoil in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        spoil(run / "config.yaml")
        code, said = told(run)
        assert (code, right in said.replace("\n\n", "\n")) == (1, True), said


def test_every_flipped_bit_of_the_settings_is_seen(run: Path, told: Told) -> None:
    content = (run / "config.yaml").read_bytes()
    for place in range(0, len(content), 97):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        (run / "config.yaml").write_bytes(flipped)
        code, said = told(run)
        assert (code, "config.yaml" in said) == (1, True), (place, said)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_the_list_of_images_that_were_seen_is_verified(how: str, run: Path, told: Told) -> None:
    flip(run / "seen.npz", 0.5) if how == "damaged" else (run / "seen.npz").unlink()
    code, said = told(run)
    assert (code, f"seen.npz is {how}" in said) == (1, True), said
