"""What `doctor` finds of Slurm, this machine, images and folders, without a cluster."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import doctor
from launch.doctor import (
    GB,
    accounting_finding,
    collect,
    examine,
    folder_findings,
    further_findings,
    image_findings,
    partition_findings,
)
from launch.findings import Finding
from tests.launch.made_up import HERE, LOW, MINE, NODE, NODES, SITE, program


def test_a_missing_slurm_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    first, *_ = examine(MINE)
    assert first.level == "wrong"
    assert "sbatch, srun, squeue, scontrol, scancel not found" in first.text


def test_what_stops_an_examination_is_its_last_line() -> None:
    def found() -> Any:
        yield Finding("right", "fine")
        raise ValueError("it does\nnot answer")

    assert collect(found()) == [Finding("right", "fine"), Finding("wrong", "it does not answer")]


def test_a_partition_is_described_and_nodes_that_are_away_are_told() -> None:
    (fine,) = partition_findings(MINE, LOW, SITE)
    assert fine.level == "right"
    assert "4 nodes of up to 8 cores, 16 GB of memory, 2 GPUs; MaxTime=2-00:00:00" in fine.text
    down = replace(SITE, nodes=NODES | {f"node{k}": NODE | {"State": "DOWN*"} for k in (1, 2, 3)})
    findings = list(partition_findings(MINE.override(nodes=2), LOW | {"AllowAccounts": "xy"}, down))
    assert [finding.level for finding in findings] == ["right", "note", "note"]
    assert "only 1 of 4 nodes" in findings[1].text
    assert "AllowAccounts=xy" in findings[2].text


def test_settings_beside_restarts_are_told() -> None:
    def told(**settings: str) -> list[tuple[str, str]]:
        return [(finding.level, finding.text.split(":")[0]) for finding in further_findings(settings)]

    cgroup = "proctrack/cgroup"
    assert told(EnforcePartLimits="ALL", ProctrackType=cgroup) == [("right", "MaxArraySize=1001, MaxJobCount=10000")]
    assert ("right", "EnforcePartLimits=NO") in told(EnforcePartLimits="NO")
    assert ("note", "ProctrackType=proctrack/linuxproc") in told(ProctrackType="proctrack/linuxproc")
    assert ("note", "MaxArraySize=0, MaxJobCount=10000") in told(MaxArraySize="0")


def test_accounting_that_does_not_answer_is_a_note() -> None:
    none = {"AccountingStorageType": "accounting_storage/none"}
    assert accounting_finding(none, answers=False).level == "note"
    assert accounting_finding({"AccountingStorageType": "accounting_storage/slurmdbd"}, answers=True).level == "right"


def test_what_this_machine_has_is_held_against_what_is_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(here, "nvidia-smi", 'echo "GPU 0: H200 (UUID: x)"')
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    assert [finding.level for finding in examine(HERE)][:3] == ["right", "right", "right"]
    assert next(iter(examine(HERE.override(tasks_per_node=1000)))).level == "note"
    assert "wrong" in {finding.level for finding in examine(HERE.override(gpus_per_node=2))}


def test_an_image_is_looked_for_and_tried(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(script: str | None, image: str = "image.sif") -> Finding:
        (here / "apptainer").unlink(missing_ok=True)
        if script is not None:
            program(here, "apptainer", script)
        (finding,) = image_findings(HERE.override(image=str(here / image), apptainer="apptainer exec"))
        return finding

    monkeypatch.setenv("PATH", f"{here}:/bin")
    (here / "image.sif").touch()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(here / name) if (here / name).exists() else None)
    assert told('[ "${*: -4}" = "$PWD/image.sif python -c " ]').level == "right"
    assert told("printf '\\033[91mFATAL:\\033[0m no user\\nnamespace' >&2; exit 255") == Finding(
        "wrong",
        f"image: {here}/image.sif with `apptainer exec`: python does not run in it; correct `image` or `apptainer`. "
        "Error: FATAL: no user namespace",
    )
    assert told(None).level == "note"
    assert told("exit 0", "other.sif").level == "wrong"


def test_folders_without_room_are_a_note_and_a_missing_one_is_wrong(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * GB))
    missing, current = folder_findings(MINE.override(scratch="/nowhere"))
    assert (missing.level, current.level) == ("wrong", "note")
    assert "2.0 GB free" in current.text
