"""What preemption and restarts do to a job, from what Slurm says of itself."""

from dataclasses import replace

import pytest

from launch.preemption import preemption_finding, preemption_of, restart_findings
from tests.launch.made_up import LOW, MINE, NODES, SETTINGS, SHORT, SITE

BY_QUALITY = {"PreemptType": "preempt/qos"}
PREEMPTION = [
    ({"PreemptType": "preempt/none"}, {}, {}, ["high"], "right", ["none", "PreemptType=preempt/none"]),
    ({"PreemptType": "(null)"}, {}, {}, ["high"], "right", ["none", "PreemptType=(null)"]),
    ({}, {"PreemptMode": "OFF"}, {}, ["high"], "right", ["none", "partition low", "PreemptMode=OFF"]),
    ({}, {}, {}, [], "right", ["none", "PriorityTier"]),
    ({}, {}, {}, ["high"], "right", ["REQUEUE", "SIGTERM", "preempt_send_user_signal is not set", "GraceTime=60 s"]),
    ({}, {"GraceTime": "9"}, {}, ["high"], "note", ["GraceTime=9 s", "checkpoint_minutes", "longer GraceTime"]),
    ({}, {"GraceTime": "0"}, {}, ["high"], "note", ["GraceTime=0 of partition low", "KillWait=30 s", "SIGTERM"]),
    (
        {},
        {"PreemptMode": "CANCEL"},
        {},
        ["high"],
        "note",
        ["CANCEL", "does not restart them", "the successor job"],
    ),
    (
        {},
        {"PreemptMode": "GANG,SUSPEND"},
        {},
        ["high"],
        "note",
        ["SUSPEND of partition low", "does not count as a hang"],
    ),
    ({}, {"PreemptMode": "GANG"}, {}, ["high"], "right", ["none"]),
    ({}, {"PreemptMode": "WITHIN,REQUEUE"}, {}, ["high"], "right", ["REQUEUE"]),
    (
        {"SlurmctldParameters": "idle_on_node_suspend,preempt_send_user_signal"},
        {},
        {},
        ["high"],
        "right",
        ["SIGUSR2", "preempt_send_user_signal is set"],
    ),
    ({"PreemptParameters": "send_user_signal"}, {}, {}, ["high"], "right", ["SIGUSR2"]),
    (
        {"SlurmctldParameters": "preempt_send_user_signal"},
        {"GraceTime": "0"},
        {},
        ["high"],
        "note",
        ["jobs SIGTERM only"],
    ),
    (BY_QUALITY, {}, SHORT, [], "note", ["CANCEL", "GraceTime=120 s of QOS short"]),
    (BY_QUALITY, {}, SHORT | {"PreemptMode": "requeue"}, [], "right", ["REQUEUE", "GraceTime=120 s of QOS short"]),
    (BY_QUALITY | {"PreemptMode": "OFF"}, {}, SHORT, [], "right", ["none in QOS short"]),
    (BY_QUALITY, {}, {}, [], "note", ["CANCEL", "GraceTime=0"]),
]


@pytest.mark.parametrize(("settings", "partition", "quality", "rivals", "level", "words"), PREEMPTION)
def test_what_preemption_does_follows_from_the_settings(
    settings: dict[str, str],
    partition: dict[str, str],
    quality: dict[str, str],
    rivals: list[str],
    level: str,
    words: list[str],
) -> None:
    finding = preemption_finding(SETTINGS | settings, LOW | partition, rivals=rivals, quality=quality)
    assert finding.level == level
    assert [word for word in words if word not in finding.text] == []


def test_only_partitions_of_a_higher_tier_on_the_same_nodes_preempt() -> None:
    elsewhere = {name: node | {"Partitions": "low"} for name, node in NODES.items()}
    assert "REQUEUE" in preemption_of(MINE, LOW, SITE).text
    assert "none" in preemption_of(MINE, LOW | {"PriorityTier": "10"}, SITE).text
    assert "none" in preemption_of(MINE, LOW, replace(SITE, nodes=elsewhere)).text


@pytest.mark.parametrize(("qos", "seconds"), [("short", 120), (None, 7)])
def test_the_quality_of_service_of_the_profile_decides_and_else_normal(qos: str | None, seconds: int) -> None:
    normal = SHORT | {"Name": "normal", "GraceTime": "00:00:07", "PreemptMode": "requeue"}
    site = replace(SITE, config=SETTINGS | BY_QUALITY, qualities={"short": SHORT, "normal": normal})
    assert f"GraceTime={seconds} s" in preemption_of(replace(MINE, qos=qos), LOW, site).text


@pytest.mark.parametrize(
    ("setting", "value", "level", "words"),
    [
        ("KillWait", "30 sec", "right", "KillWait=30 s"),
        ("KillWait", "5 sec", "note", "checkpoint_minutes"),
        ("JobRequeue", "1", "right", "JobRequeue=1"),
        ("JobRequeue", "0", "right", "--requeue"),
        ("SchedulerParameters", "(null)", "note", "scontrol release JOB"),
        ("SchedulerParameters", "bf_continue,nohold_on_prolog_fail", "right", "is requeued"),
        ("AuthInfo", "(null)", "right", "cred_expire=120 (the default): a requeued job waits at least 121 s"),
        (
            "AuthInfo",
            "socket=/run/munge.socket,cred_expire=10",
            "right",
            "cred_expire=10: a requeued job waits at least 11 s",
        ),
        ("AuthInfo", "cred_expire=600", "note", "601 s"),
        ("SlurmdTimeout", "300 sec", "right", "SlurmdTimeout=300 s"),
        ("SlurmdTimeout", "3600 sec", "note", "SlurmdTimeout=3600 s"),
        ("SlurmdTimeout", "0 sec", "note", "never detected"),
    ],
)
def test_what_decides_over_restarts_is_told_with_its_setting(setting: str, value: str, level: str, words: str) -> None:
    found = [finding for finding in restart_findings({setting: value}) if words in finding.text]
    assert [finding.level for finding in found] == [level]
