"""Whatever file of the suite is cut short or has a bit flipped: the same result as before, one line that names the
file, or damage that is reported, with the file renamed. Never a traceback, another number, or a run that cannot go on.

(Shards and manifests of data sets: tests/data/test_damaged_data.py.)
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, save_at_once

from deeplense.files import read_json
from deeplense.records import HASH, read_record, without_hash, write_record
from deeplense.training import checkpoint
from deeplense.training.checkpoint import MANIFEST, hash_of, newest_good
from deeplense.training.tracking import METRICS, Tracker, read_wandb_id
from jobs import command_line
from jobs.runs.attempts import ATTEMPTS, end_attempt, open_attempt, read_attempts
from jobs.runs.folder import ENVIRONMENT, FINISHED, LAUNCH, WANDB_ID, open_run
from jobs.runs.progress import PROGRESS, read_progress
from jobs.runs.resuming import problem_of
from jobs.runs.stored import CONFIG
from jobs.verify import settings as verify_settings
from jobs.verify import work as verify_work
from launch.__main__ import main
from launch.record import launched, told_in
from launch.sight.table import table

NUM_STEPS = 6
SMALL = ("--model_name=simple_cnn", "--batch_size=16", "--epochs=1", "--device=cpu", "--log_interval=1", "--seed=3")
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints of the last steps and one of the best."""
    run = tmp_path_factory.mktemp("damaged") / "run"
    words = ["train", f"--dataset={dataset}", f"--run={run}", *SMALL, "--checkpoint_minutes=1e-9", "--wandb=off"]
    command = Command(words, run.parent / "log.txt", prepare=save_at_once)
    assert command.wait() == 0, command.log.read_text()
    (run / WANDB_ID).write_text("0123456789ab\n")
    cluster = {"name": "here", "executor": "local", "slurm_conf": None}
    told = {"job_id": "4194304", "logs": str(run / "logs"), "cluster": cluster, "attempts_before": 0}
    write_record(run / LAUNCH, told | {"command": ["train"], "working_folder": "/", "code": "/"})
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(finished, tmp_path / "run")


def damages(name: str, size: int, *, count: int) -> Iterator[Damage]:
    """Truncations and bit flips of a file of this size, drawn by its name."""
    generator = random.Random(name)
    for number in range(count):
        place = generator.randrange(size)
        if number % 3 == 0:
            yield lambda content, place=place: content[:place]
        else:
            bit = 1 << generator.randrange(8)
            yield (
                lambda content, place=place, bit=bit: (
                    content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
                )
            )


def each_damage(path: Path, *, count: int = 60) -> Iterator[bytes]:
    """Put each damage of a file in its place; what was there stays in the end."""
    whole = path.read_bytes()
    for damage in damages(path.name, len(whole), count=count):
        path.write_bytes(damage(whole))
        yield path.read_bytes()
    path.write_bytes(whole)


READERS: dict[str, Callable[[Path], Any]] = {
    LAUNCH: lambda run: told_in(run),
    FINISHED: lambda run: read_record(run / FINISHED, {"step": int}),
    ENVIRONMENT: lambda run: read_record(run / ENVIRONMENT, {"command": list}),
}


def answer(read: Callable[[Path], dict[str, Any]], run: Path) -> dict[str, Any] | str:
    """What a reader gives, or the words with which it refuses."""
    try:
        return read(run)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_record_is_refused_by_name_or_says_the_same(name: str, run: Path) -> None:
    before = READERS[name](run)
    said = [answer(READERS[name], run) for _ in each_damage(run / name)]
    refused = [text for text in said if isinstance(text, str)]
    assert all(str(run / name) in text and "\n" not in text for text in refused)
    assert all({k: found.get(k) for k in before} == before for found in said if not isinstance(found, str))
    assert len(refused) > 50, "the negative control: nearly all damages are seen"


def test_damaged_progress_is_none_or_the_same(run: Path) -> None:
    before = read_progress(run)
    assert before is not None
    found = [read_progress(run) for _ in each_damage(run / PROGRESS)]
    assert all(each is None or {name: each[name] for name in before} == before for each in found)
    assert found.count(None) > 50


def test_damaged_attempts_never_stop_a_run_and_are_kept(run: Path) -> None:
    for _ in range(3):
        end_attempt(run, open_attempt(run), reason="stopped by SIGTERM", last_step=6)
    before = read_attempts(run)
    told = 0
    for content in each_damage(run / ATTEMPTS):
        found = read_attempts(run)
        found = [{name: attempt.get(name) for name in before[0]} for attempt in found]
        known = [attempt for attempt in found if not str(attempt["ended"]).startswith("unknown")]
        assert all(attempt in before for attempt in known)
        number = open_attempt(run)
        assert number == len(found) + 1
        aside = sorted(run.glob(f"damaged_*{ATTEMPTS}"))
        assert known == before or aside or len(known) < len(before)
        assert all(path.read_bytes() == content for path in aside)
        told += len(aside)
        for path in aside:
            path.unlink()
    assert told > 50


def test_damaged_metrics_never_stop_a_run_and_are_kept(run: Path) -> None:
    path, _ = newest_good(run / "checkpoints")
    assert path is not None
    expected = checkpoint.load(path, only=("record",))["record"]["metrics"]
    step = int(path.name.rpartition("_")[2])
    whole, told = (run / METRICS).read_bytes(), 0
    for content in each_damage(run / METRICS):
        tracker = Tracker(run, mode="off", project="", config={}, last_step=step, expected=expected)
        tracker.close(exit_code=0)
        aside = sorted(run.glob(f"damaged_*{METRICS}"))
        assert (run / METRICS).read_bytes() == whole or tracker.report
        assert all(each.read_bytes() == content and each.name in tracker.report for each in aside)
        assert len(aside) == bool(tracker.report)
        told += len(aside)
        for each in aside:
            each.unlink()
    assert told > 50


def test_a_damaged_id_of_wandb_is_seen_or_an_id(run: Path) -> None:
    for _ in each_damage(run / WANDB_ID, count=30):
        found = read_wandb_id(run)
        assert found is None or found.isascii()


def test_damaged_settings_are_those_of_the_checkpoint_again(run: Path, dataset: Path) -> None:
    settings = command_line.parse("train", [f"--dataset={dataset}", f"--run={run}", *SMALL])
    before, again = yaml.safe_load((run / CONFIG).read_text()), 0
    for content in each_damage(run / CONFIG):
        open_run(run, settings)
        aside = sorted(run.glob(f"damaged_*{CONFIG}"))
        assert all(path.read_bytes() == content for path in aside)
        again += len(aside)
        if aside:
            found = yaml.safe_load((run / CONFIG).read_text())
            assert {k: v for k, v in found.items() if before[k] != v}.keys() <= {"run", "checkpoint_minutes"}
        for path in aside:
            path.unlink()
    assert again > 20


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json", MANIFEST])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(name: str, run: Path) -> None:
    newest, _ = newest_good(run / "checkpoints")
    assert newest is not None
    for _ in each_damage(newest / name, count=24):
        path, reports = newest_good(run / "checkpoints", problem_of=problem_of)
        assert path is not None
        assert path.name < newest.name
        assert f"{newest.name} is damaged" in reports[0]
        (newest.parent / f"damaged_{newest.name}").rename(newest)


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Change a file of a checkpoint, and the hashes that tell of it: what somebody does who knows the format."""
    manifest = without_hash(read_json(folder / MANIFEST))
    manifest["files"][name] = checkpoint.put(folder / name, content)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"hash": hash_of(manifest)}))


def with_header(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file of tensors with another header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def each_entry(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes what the header says of each tensor."""
    return lambda header: {name: entry | values for name, entry in header.items()}


TENSORS: dict[str, Callable[[bytes], bytes]] = {
    "no header": lambda content: b"",
    "a header longer than the file": lambda content: (1 << 60).to_bytes(8, "little") + content[8:],
    "a header that is no JSON": lambda content: content[:8] + b"\xff" + content[9:],
    "a deep header": lambda content: (60000).to_bytes(8, "little") + b"[" * 60000,
    "a list": lambda content: with_header(content, lambda header: [header]),
    "numbers": lambda content: with_header(content, lambda header: dict.fromkeys(header, 3)),
    "an unknown dtype": lambda content: with_header(content, each_entry(dtype="F7")),
    "a dtype of other size": lambda content: with_header(content, each_entry(dtype="F64")),
    "a huge shape": lambda content: with_header(content, each_entry(shape=[1 << 61])),
    "a negative shape": lambda content: with_header(content, each_entry(shape=[-1])),
    "offsets out of the file": lambda content: with_header(content, each_entry(data_offsets=[0, 1 << 50])),
    "offsets that are text": lambda content: with_header(content, each_entry(data_offsets=["0", "4"])),
    "overlapping tensors": lambda content: with_header(content, each_entry(data_offsets=[0, 4], shape=[1])),
    "more bytes than tensors": lambda content: content + b"\0" * 64,
}
TREES: dict[str, bytes] = {
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100000,
    "a list": b"[]",
    "a number": b"3",
    "a huge number": b"9" * 5000,
    "no items": b"{}",
    "items that are none": b'{"__items__": [3]}',
    "a name that is a list": b'{"__items__": [[[1], 2]]}',
    "a tensor that is not there": b'{"__items__": [["a", {"__tensor__": "b"}]]}',
    "a tensor that is a list": b'{"__items__": [["a", {"__tensor__": [1]}]]}',
}
MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda manifest: [manifest],
    "no files": lambda manifest: {**manifest, "files": 3},
    "a name that leads out": lambda manifest: {**manifest, "files": manifest["files"] | {"../x.json": "0"}},
    "an absolute name": lambda manifest: {**manifest, "files": {"/etc/passwd": "0"}},
    "an unknown ending": lambda manifest: {**manifest, "files": manifest["files"] | {"x.pkl": "0"}},
    "a state without tensors": lambda manifest: {**manifest, "files": manifest["files"] | {"x.json": "0"}},
    "a checksum that is a number": lambda manifest: {**manifest, "files": dict.fromkeys(manifest["files"], 3)},
    "no states": lambda manifest: {**manifest, "files": {}},
}
PROGRESSES: dict[str, Any] = {
    "another step": {"step": 3},
    "a step that is text": {"step": "6"},
    "no data set": {"dataset_id": None},
    "statistics that are none": {"statistics": {"mean": "x"}},
    "statistics that are not finite": {"statistics": {"mean": [float("nan")], "std": [1.0]}},
    "a best that is text": {"best": "high"},
}


def tampered_newest(run: Path, kind: str) -> Path:
    """The newest checkpoint, changed in one of these ways, hashes and all."""
    newest, _ = newest_good(run / "checkpoints")
    assert newest is not None
    if kind in TENSORS:
        path = newest / "model.safetensors"
        rewritten(newest, path.name, TENSORS[kind](path.read_bytes()))
    elif kind.removeprefix("tree: ") in TREES and kind.startswith("tree: "):
        rewritten(newest, "progress.json", TREES[kind.removeprefix("tree: ")])
    elif kind in PROGRESSES:
        progress = checkpoint.load(newest, only=("progress",))["progress"]
        rewritten(
            newest, "progress.json", json.dumps(checkpoint.flatten({**progress, **PROGRESSES[kind]}, {})).encode()
        )
    else:
        manifest = MANIFESTS[kind.removeprefix("manifest: ")](without_hash(read_json(newest / MANIFEST)))
        whole = manifest | {"hash": hash_of(manifest)} if isinstance(manifest, dict) else manifest
        (newest / MANIFEST).write_text(json.dumps(whole))
    return newest


KINDS_OF_TAMPERING = [*TENSORS, *(f"tree: {k}" for k in TREES), *PROGRESSES, *(f"manifest: {k}" for k in MANIFESTS)]


@pytest.mark.parametrize("kind", KINDS_OF_TAMPERING)
def test_a_checkpoint_that_was_tampered_with_is_set_aside_and_the_one_before_is_used(kind: str, run: Path) -> None:
    newest = tampered_newest(run, kind)
    assert problem_of(newest) is not None
    path, reports = newest_good(run / "checkpoints", problem_of=problem_of)
    assert path is not None
    assert path.name < newest.name
    assert len(reports) == 1
    assert "\n" not in reports[0]


def test_links_and_files_that_are_none_are_no_checkpoint(run: Path, tmp_path: Path) -> None:
    newest, _ = newest_good(run / "checkpoints")
    assert newest is not None
    content = (newest / "model.safetensors").read_bytes()
    (tmp_path / "elsewhere").write_bytes(content)
    (newest / "model.safetensors").unlink()
    (newest / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "leads out of its folder" in (problem_of(newest) or "")
    (newest / "model.safetensors").unlink()
    (newest / "model.safetensors").mkdir()
    assert "is not a file" in (problem_of(newest) or "")


@pytest.mark.parametrize("name", [METRICS, ATTEMPTS, FINISHED, ENVIRONMENT, CONFIG, LAUNCH, PROGRESS])
def test_verify_finds_every_damage_of_a_record(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / WANDB_ID).unlink()
    assert verify_work.run(verify_settings.Settings(folder=run)) == 0, capsys.readouterr().out
    whole = without_hash_key((run / name).read_bytes())
    for content in each_damage(run / name, count=12):
        told = verify_work.run(verify_settings.Settings(folder=run))
        assert told == 1 or without_hash_key(content) == whole, "what is not told changes nothing"


def without_hash_key(content: bytes) -> Any:
    """What a record says beside its hash, though the name of that be damaged."""
    try:
        value = json.loads(content)
    except ValueError:
        return content.strip()
    return {name: each for name, each in value.items() if len(name) != len(HASH) or name[0] != HASH[0]}


def test_weights_that_are_not_finite_are_not_sound(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest, _ = newest_good(run / "checkpoints")
    assert newest is not None
    states = checkpoint.load(newest)
    next(iter(states["model"].values())).view(-1)[0] = torch.nan
    shutil.rmtree(newest)
    checkpoint.save(newest, states)
    assert verify_work.run(verify_settings.Settings(folder=run)) == 1
    assert f"{newest.name}: step" in (said := capsys.readouterr().out)
    assert "contains non-finite numbers" in said


def test_a_run_with_a_damaged_record_does_not_hide_the_others(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    assert launched(other).local
    for content in (b"", b"{}", b"\xff", b"[1]", b'{"cluster": {}, "logs": "x", "job_id": 3}'):
        (run / LAUNCH).write_bytes(content)
        head, row, damaged = table([run, other])
        assert (head.split()[0], "finished" in row) == ("RUN", True)
        assert str(run / LAUNCH) in damaged


def test_a_run_whose_records_are_all_damaged_goes_on(run: Path, dataset: Path, start: Callable[..., Command]) -> None:
    shutil.rmtree(newest_of(run))
    for name in (METRICS, ATTEMPTS, FINISHED, ENVIRONMENT, CONFIG, PROGRESS, WANDB_ID, LAUNCH, "stopped.json"):
        (run / name).write_bytes(b"\x00\xff{")
    command = start("train", f"--dataset={dataset}", f"--run={run}", *SMALL)
    assert command.wait() == 0, command.log.read_text()
    said = command.log.read_text()
    assert "Traceback" not in said
    for name in (METRICS, ATTEMPTS, FINISHED, ENVIRONMENT, CONFIG):
        assert f"damaged_{name}" in said
        assert (run / f"damaged_{name}").read_bytes() == b"\x00\xff{"
    assert read_record(run / FINISHED, {"step": int})["step"] == read_attempts(run)[-1]["last_step"]


def newest_of(run: Path) -> Path:
    """The newest checkpoint."""
    path, _ = newest_good(run / "checkpoints")
    assert path is not None
    return path


def read_recipe(words: list[str]) -> int:
    """Read the settings of a command line; returns 0."""
    command_line.parse(words[0], words[1:])
    return 0


@pytest.mark.parametrize("name", ["recipe.yaml", "clusters.yaml", "survey.npz", "catalog.csv"])
def test_files_from_a_user_are_read_or_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPLENSE_CLUSTERS", str(tmp_path / "clusters.yaml"))
    words = write_files(tmp_path)[name]
    read = read_recipe if name == "recipe.yaml" else main
    assert told_by(read, words, capsys) == (0, ""), "the negative control: whole files are read"
    codes = []
    for _ in each_damage(tmp_path / name, count=15):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code, said = told_by(read, words, capsys)
        assert (code, said.count("\n")) in ((0, 0), (2, 1)), said
        codes.append(code)
    assert 2 in codes


def told_by(read: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of a command, and what it says to stderr."""
    capsys.readouterr()
    try:
        code = read(words)
    except SystemExit as leaving:
        code = int(str(leaving.code))
    return code, capsys.readouterr().err


def write_files(folder: Path) -> dict[str, list[str]]:
    """Files that a user gives, and for each a command that reads it."""
    (folder / "recipe.yaml").write_text("lr: 0.01\nepochs: 3\noptimizer: sgd\nmodel_name: simple_cnn\n")
    (folder / "clusters.yaml").write_text("mine:\n  executor: local\n  hours: 2\n  environment:\n    A: b\n")
    images = np.random.default_rng(0).normal(size=(30, 8, 8)).astype(np.float32)
    np.savez(folder / "survey.npz", images=images)
    rows = "".join(f"{k},{('arc', 'ring')[k % 2]}\n" for k in range(30))
    (folder / "catalog.csv").write_text(f"row,kind\n{rows}")
    pack = ["pack", "--layout=npz", "--source=survey.npz", "--catalog=catalog.csv", "--label_key=kind", "--output=out"]
    return {
        "recipe.yaml": ["train", "--config=recipe.yaml", "--run=run", "--dataset=d"],
        "clusters.yaml": ["clusters"],
        "survey.npz": pack,
        "catalog.csv": pack,
    }
