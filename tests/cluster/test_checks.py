"""What `doctor` and `submit` say of a real Slurm before anything is submitted there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch import probe
from launch import slurm as questions
from launch.checks import check_before_submission, check_sweep
from launch.clusters import Cluster
from launch.doctor import examine
from launch.findings import Finding
from launch.script import submitit_script
from launch.submission import Submission
from tests.cluster.private_slurm import PrivateSlurm

COMMAND = "train --run run --dataset data"


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what looks like a data set."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def profile(cluster: PrivateSlurm, **given: object) -> Cluster:
    """A profile of a cluster, in the partition with grace if none is given."""
    conf = str(cluster.folder / "slurm.conf")
    return Cluster(name="real", slurm_conf=conf, partition="normal").override(**given)


def submission(cluster: Cluster, runs: int = 1) -> Submission:
    """A training, or a sweep of several."""
    home = Path.cwd() / "run"
    return Submission(cluster, (tuple(COMMAND.split()),) * runs, (home,) * runs, home / "logs", home / "code")


def told(cluster: Cluster, runs: int = 1) -> list[str]:
    """What is said before a submission."""
    return list(check_before_submission(submission(cluster, runs)))


def taken_by_sbatch(cluster: Cluster, runs: int = 1) -> bool:
    """Whether Slurm alone would take the same script."""
    script = submitit_script(submission(cluster, runs))
    try:
        return " to start at " in questions.expected_start(cluster.slurm_conf, script)
    except ValueError:
        return False


def one(findings: list[Finding], words: str) -> Finding:
    """The only finding with these words."""
    (found,) = [finding for finding in findings if words in finding.text]
    return found


def doctor(name: str, profiles: Path) -> int:
    """The exit code of `deeplense doctor`."""
    words = [sys.executable, "-m", "launch", "doctor", "--on", name]
    root = Path(__file__).parents[2]
    environment = os.environ | {"DEEPLENSE_CLUSTERS": str(profiles), "PYTHONPATH": str(root)}
    return subprocess.run(words, env=environment, capture_output=True).returncode


@pytest.fixture
def cancelling(each_slurm: PrivateSlurm) -> Iterator[None]:
    """Preemption in the partition nograce ends jobs for good, for a while."""
    each_slurm.ask("scontrol", "update", "partition=nograce", "preemptmode=cancel")
    yield
    each_slurm.ask("scontrol", "update", "partition=nograce", "preemptmode=requeue")


def test_a_job_that_fits_is_told_when_it_starts(each_slurm: PrivateSlurm) -> None:
    start, folder = told(profile(each_slurm, nodes=2))
    assert start.startswith("Slurm expects the job to start at 20")
    assert start.endswith(", on node[1-2]")
    assert folder.startswith("note: on most clusters /tmp is local to each node")


def test_a_time_over_the_limit_is_refused_which_sbatch_takes_and_never_starts(each_slurm: PrivateSlurm) -> None:
    cluster = profile(each_slurm, hours=24.1)
    assert taken_by_sbatch(cluster)
    with pytest.raises(ValueError, match=r"hours: 24\.1 exceeds MaxTime=1-00:00:00 of partition normal; .* 24 or"):
        told(cluster)
    assert told(replace(cluster, partition="nograce"))
    assert told(replace(cluster, partition="normal,nograce"))
    assert told(replace(cluster, hours=24.0))


def test_an_account_that_a_partition_refuses_is_refused_which_sbatch_takes(each_bare_slurm: PrivateSlurm) -> None:
    cluster = profile(each_bare_slurm, partition="urgent", account="theirs")
    assert told(cluster)
    each_bare_slurm.ask("scontrol", "update", "partition=urgent", "allowaccounts=ours")
    try:
        assert taken_by_sbatch(cluster)
        with pytest.raises(ValueError, match="account: 'theirs' is not in AllowAccounts=ours of partition urgent"):
            told(cluster)
        assert told(replace(cluster, account="ours"))
    finally:
        each_bare_slurm.ask("scontrol", "update", "partition=urgent", "allowaccounts=ALL")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"partition": "norma"}, "unknown partition 'norma' on cluster 'real'. Did you mean normal?"),
        ({"nodes": 8}, "nodes: 8 exceeds TotalNodes=4 of partition normal; request fewer."),
        ({"cpus_per_task": 5}, "5 cores, but a node of partition normal has at most 4; request less."),
        ({"gpus_per_node": 2}, "2 GPUs, but a node of partition normal has at most 0; request less."),
        ({"constraint": "a100"}, "Slurm rejects the job: Invalid feature specification"),
    ],
)
def test_a_job_that_no_node_can_have_is_refused(
    each_slurm: PrivateSlurm, given: dict[str, object], problem: str
) -> None:
    cluster = profile(each_slurm, **given)
    assert not taken_by_sbatch(cluster)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        told(cluster)
    assert problem in str(refused.value)


def test_a_partition_that_is_down_is_refused(each_slurm: PrivateSlurm) -> None:
    each_slurm.ask("scontrol", "update", "partition=urgent", "state=down")
    try:
        with pytest.raises(ValueError, match="partition: urgent is DOWN, not UP"):
            told(profile(each_slurm, partition="urgent"))
    finally:
        each_slurm.ask("scontrol", "update", "partition=urgent", "state=up")


def test_a_sweep_is_as_large_as_an_array_may_be(each_bare_slurm: PrivateSlurm) -> None:
    start, *_ = told(profile(each_bare_slurm), runs=3)
    assert "expects the first run to start" in start
    conf = str(each_bare_slurm.folder / "slurm.conf")
    most = int(questions.configuration(conf)["MaxArraySize"])
    check_sweep(most, questions.configuration(conf))
    assert taken_by_sbatch(profile(each_bare_slurm), runs=most)
    assert not taken_by_sbatch(profile(each_bare_slurm), runs=most + 1)


def test_a_variable_of_the_user_that_forbids_restarts_is_left_out_and_told(
    each_bare_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_NO_REQUEUE", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    job = [line for line in told(profile(each_bare_slurm)) if "of this shell is ignored" in line]
    assert [line.split("=")[0] for line in job] == ["note: SBATCH_NO_REQUEUE", "note: SBATCH_PARTITION"]
    found = examine(profile(each_bare_slurm), run_job=True)
    assert one(found, "can be requeued (Requeue=1)").level == "right"


def test_an_account_that_nobody_knows_is_told_where_slurm_takes_it(
    each_slurm: PrivateSlurm, each_bare_slurm: PrivateSlurm
) -> None:
    for words in (("account", "ours"), ("account", "theirs"), ("user", "root", "account=ours")):
        each_slurm.ask("sacctmgr", "-i", "add", *words)
    assert taken_by_sbatch(profile(each_slurm, account="wrong"))
    assert [one(examine(profile(each_slurm, account=name)), "account: ").level for name in ("wrong", "theirs")] == [
        "wrong",
        "note",
    ]
    assert "account: unknown account 'wrong'" in " ".join(told(profile(each_slurm, account="wrong")))
    assert [finding for finding in examine(profile(each_slurm, account="ours")) if "account: " in finding.text] == []
    assert one(examine(profile(each_bare_slurm, account="any")), "cannot be checked").level == "note"


def test_doctor_tells_how_each_cluster_warns(each_slurm: PrivateSlurm, each_bare_slurm: PrivateSlurm) -> None:
    plain, signalling = examine(profile(each_slurm)), examine(profile(each_bare_slurm))
    assert "jobs SIGTERM (preempt_send_user_signal is not set" in one(plain, "preemption").text
    assert "jobs SIGUSR2 (preempt_send_user_signal is set" in one(signalling, "preemption").text
    assert one(plain, "preemption").level == one(signalling, "preemption").level == "right"
    assert one(plain, "sacct").level == "right"
    assert one(signalling, "sacct").level == "note"
    assert re.search(r"cred_expire=(\d+): a requeued job waits at least \d+ s", one(plain, "cred_expire").text)
    for findings in (plain, signalling):
        assert "wrong" not in {finding.level for finding in findings}
        assert [finding for finding in findings if "\n" in finding.text] == []


def test_partitions_differ_in_what_preemption_leaves(each_slurm: PrivateSlurm) -> None:
    def preemption(partition: str) -> Finding:
        return one(examine(profile(each_slurm, partition=partition)), "preemption")

    assert "GraceTime=10 s of partition normal" in preemption("normal").text
    assert "only KillWait=5 s in advance (GraceTime=0 of partition nograce)" in preemption("nograce").text
    assert "none in partition urgent" in preemption("urgent").text
    assert [preemption(name).level for name in ("normal", "nograce", "urgent")] == ["right", "note", "right"]


def test_submit_warns_of_preemption_in_the_words_of_doctor(each_slurm: PrivateSlurm, cancelling: None) -> None:
    cluster = profile(each_slurm, partition="nograce")
    finding = one(examine(cluster), "PreemptMode=CANCEL")
    assert "the successor job (`successor`) resumes the run" in finding.text
    assert f"note: {finding.text}" in told(cluster)


def test_doctor_finds_what_the_profile_asks_too_much_of(each_slurm: PrivateSlurm) -> None:
    findings = examine(profile(each_slurm, hours=25.0, cpus_per_task=5))
    assert one(findings, "hours: 25").level == one(findings, "5 cores").level == "wrong"
    last = examine(profile(each_slurm, partition="nope"))
    assert one(last, "unknown partition 'nope'").level == "wrong"


def test_doctor_looks_at_the_nodes_by_a_small_job(
    each_bare_slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LATE_S", 1.0)
    found = examine(
        profile(each_bare_slurm, nodes=2, scratch=str(tmp_path), node_local="$DIR", setup=("DIR=/",)), run_job=True
    )
    assert one(found, "can be requeued (Requeue=1)").level == "right"
    assert one(found, f"node1,node2: can access {tmp_path}").level == "right"
    assert one(found, "node1,node2: has Python").level == "right"
    assert list(tmp_path.glob(".deeplense-doctor-*")) == []
    missing = examine(profile(each_bare_slurm, python="/usr/bin/true"), run_job=True)
    assert one(missing, "reported on 0 of 1 node").level == "wrong"


def test_a_cluster_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    first, *_ = examine(Cluster(name="gone", slurm_conf=str(tmp_path / "slurm.conf")))
    assert first.level == "wrong"
    assert f"{tmp_path}/slurm.conf does not exist" in first.text


def test_doctor_exits_with_1_where_something_is_wrong(each_slurm: PrivateSlurm, tmp_path: Path) -> None:
    conf = each_slurm.folder / "slurm.conf"
    (tmp_path / "clusters.yaml").write_text(
        f"good: {{partition: normal, slurm_conf: {conf}}}\nbad: {{partition: normal, hours: 25, slurm_conf: {conf}}}\n"
    )
    codes = [doctor(name, tmp_path / "clusters.yaml") for name in ("good", "bad")]
    assert codes == [0, 1]
