"""Why an attempt ended: the table of all that a scheduler, a job and a log can say, as measured on a real Slurm."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.runs.attempts import EXIT_DISK_FULL, EXIT_HUNG, EXIT_READ_ONLY, EXIT_REFUSED, EXIT_STOPPED
from launch.ends import (
    CANCELLED,
    CRASH,
    CUT_SHORT,
    DEFAULT_RESTARTS,
    DISK_FULL,
    FINISHED,
    HANG,
    NODE_LOST,
    NUM_TASKS_TOLD,
    PREEMPTED,
    PREEMPTED_AT_ONCE,
    READ_ONLY,
    REFUSED,
    REQUEUED,
    SETTLED,
    STOPPED,
    TIME_LIMIT,
    Facts,
    accounted_state,
    action,
    begin_line,
    cause_in_log,
    failed_tasks,
    had_grace,
    kind_of,
    log_of_attempt,
    lost_nodes,
    parse_fields,
    why,
    without_progress,
)

RUNNING = {"JobState": "RUNNING", "Restarts": "0", "PreemptTime": "None"}
PREEMPTING = RUNNING | {"PreemptTime": "2026-11-22T05:10:04"}
COMPLETING = {"JobState": "COMPLETING", "Restarts": "0"}
BOTH = PREEMPTING | COMPLETING
GIVEN_AWAY = {"JobState": "COMPLETING", "Restarts": "1"}
AGAIN = RUNNING | {"Restarts": "1"}
NO_SPACE = "error: OSError: [Errno 28] No space left on device: '/scratch/run/checkpoints'"
READ = "rank 3: OSError: [Errno 30] Read-only file system: '/scratch/run/checkpoints'"
NO_QUOTA = "error: OSError: [Errno 122] Disk quota exceeded"
EXITED = "task 3 on n2: Exited"
USR2, TERM = "stopped by SIGUSR2", "stopped by SIGTERM"

SEEN_BY_THE_SCRIPT = {
    "it finished": (FINISHED, "finished", Facts(own=FINISHED, code=0, scheduler=RUNNING)),
    "it finished, and keeps no attempts": (FINISHED, "finished", Facts(code=0, scheduler=RUNNING)),
    "it finished while it was preempted": (FINISHED, "finished", Facts(own=FINISHED, code=0, scheduler=PREEMPTING)),
    "it finished while it was cancelled": (FINISHED, "finished", Facts(own=FINISHED, code=143, cause=CANCELLED)),
    "the limit comes": (TIME_LIMIT, "requeue", Facts(own=USR2, code=EXIT_STOPPED, scheduler=RUNNING)),
    "the limit came": (TIME_LIMIT, "requeue", Facts(code=143, scheduler=COMPLETING, cause=TIME_LIMIT)),
    "preemption": (PREEMPTED, "requeue", Facts(own=TERM, code=EXIT_STOPPED, scheduler=PREEMPTING)),
    "preemption told by USR2": (PREEMPTED, "requeue", Facts(own=USR2, code=EXIT_STOPPED, scheduler=PREEMPTING)),
    "preemption that the job did not survive": (PREEMPTED, "requeue", Facts(code=143, scheduler=PREEMPTING)),
    "preemption at once": (PREEMPTED_AT_ONCE, "leave", Facts(code=143, scheduler=GIVEN_AWAY, cause=PREEMPTED_AT_ONCE)),
    "grace that was too short": (PREEMPTED_AT_ONCE, "leave", Facts(code=137, cause=PREEMPTED_AT_ONCE)),
    "a long import in the grace time": (
        PREEMPTED,
        "leave",
        Facts(code=137, cause=PREEMPTED_AT_ONCE, grace=True, scheduler=GIVEN_AWAY),
    ),
    "a signal to the batch script": (STOPPED, "requeue", Facts(own=TERM, code=85, scheduler=RUNNING, cause=CANCELLED)),
    "a signal to the batch script of a later start": (
        CRASH,
        "requeue",
        Facts(restart=1, code=1, scheduler=AGAIN, cause=CANCELLED),
    ),
    "preemption that cancels": (PREEMPTED_AT_ONCE, "requeue", Facts(scheduler=COMPLETING, cause=PREEMPTED_AT_ONCE)),
    "scancel": (CANCELLED, "end", Facts(code=143, scheduler=COMPLETING, cause=CANCELLED)),
    "scancel after which the job saved": (CANCELLED, "end", Facts(own=TERM, code=EXIT_STOPPED, scheduler=COMPLETING)),
    "scancel that Slurm has dealt with": (CANCELLED, "end", Facts(code=143, scheduler={"JobState": "CANCELLED"})),
    "scancel in the grace time": (
        CANCELLED,
        "end",
        Facts(own=TERM, code=85, scheduler=BOTH, cause=CANCELLED),
    ),
    "scontrol requeue": (REQUEUED, "leave", Facts(code=143, scheduler=GIVEN_AWAY, cause=REQUEUED)),
    "a node fails, of several": (NODE_LOST, "leave", Facts(code=143, scheduler=GIVEN_AWAY, cause=NODE_LOST)),
    "this node is given up": (NODE_LOST, "leave", Facts(own=TERM, code=85, scheduler=GIVEN_AWAY)),
    "this node is given up, the second": (CRASH, "requeue", Facts(restart=1, code=1, scheduler=AGAIN)),
    "a crash that the job tells": (CRASH, "requeue", Facts(own="error: MemoryError: ", code=1, scheduler=RUNNING)),
    "a crash that it cannot tell": (CRASH, "requeue", Facts(code=137, scheduler=RUNNING)),
    "settings that are wrong": (REFUSED, "end", Facts(code=EXIT_REFUSED, scheduler=RUNNING)),
    "a loss that is nan": ("diverged: nan", "end", Facts(own="diverged: nan", code=2, scheduler=RUNNING)),
    "a loss that is nan, of an older version": (
        REFUSED,
        "end",
        Facts(own="error: ValueError: nan", code=2, scheduler=RUNNING),
    ),
    "a full disk": (DISK_FULL, "requeue", Facts(code=EXIT_DISK_FULL, scheduler=RUNNING)),
    "a full disk that a rank tells": (DISK_FULL, "requeue", Facts(own=NO_SPACE, code=137, scheduler=RUNNING)),
    "a disk that became read-only": (READ_ONLY, "requeue", Facts(code=EXIT_READ_ONLY, scheduler=RUNNING)),
    "a disk that a rank found read-only": (READ_ONLY, "requeue", Facts(failure=READ, code=1, scheduler=RUNNING)),
    "a peer started anew": (NODE_LOST, "requeue", Facts(code=137, lost="node 1", tasks="task 0", scheduler=RUNNING)),
    "a full quota": (DISK_FULL, "requeue", Facts(own=NO_QUOTA, code=1, scheduler=RUNNING)),
    "a hang": (HANG, "requeue", Facts(code=EXIT_HUNG, scheduler=RUNNING)),
    "a hang, and ranks that were killed": (HANG, "requeue", Facts(code=137, hung=True, scheduler=RUNNING)),
    "a hang in the grace time": (HANG, "requeue", Facts(code=EXIT_HUNG, hung=True, scheduler=PREEMPTING)),
    "kill by hand": (STOPPED, "requeue", Facts(own=TERM, code=EXIT_STOPPED, scheduler=RUNNING)),
    "kill by hand, which it could not write": (STOPPED, "requeue", Facts(code=EXIT_STOPPED, scheduler=RUNNING)),
    "no Slurm, and a limit": (TIME_LIMIT, "requeue", Facts(own=USR2, code=EXIT_STOPPED)),
    "no Slurm, and a crash": (CRASH, "requeue", Facts(code=139)),
}
SEEN_BY_THE_NEXT = {
    "its node died": (NODE_LOST, Facts(scheduler=AGAIN)),
    "its node died just after it saved": (NODE_LOST, Facts(own=TERM, scheduler=AGAIN)),
    "its node died, says the accounting": (NODE_LOST, Facts(scheduler=AGAIN, accounted="NODE_FAIL")),
    "its node was preempted, says the log": (PREEMPTED_AT_ONCE, Facts(scheduler=AGAIN, cause=PREEMPTED_AT_ONCE)),
    "preempted, says the accounting": (PREEMPTED_AT_ONCE, Facts(scheduler=AGAIN, accounted="PREEMPTED")),
    "requeued, says the accounting": (REQUEUED, Facts(scheduler=AGAIN, accounted="REQUEUED")),
    "over time, says the accounting": (TIME_LIMIT, Facts(scheduler=AGAIN, accounted="TIMEOUT")),
    "requeued by hand after scancel": (CANCELLED, Facts(scheduler=AGAIN, accounted="CANCELLED")),
    "the job is gone, over time": (TIME_LIMIT, Facts(scheduler={"JobState": "TIMEOUT", "Restarts": "0"})),
    "the job is gone, cancelled": (CANCELLED, Facts(scheduler={"JobState": "CANCELLED", "Restarts": "0"})),
    "the job is gone, its script killed": (CRASH, Facts(scheduler={"JobState": "FAILED", "Restarts": "0"})),
    "the job is gone, says the log": (TIME_LIMIT, Facts(cause=TIME_LIMIT)),
    "it had finished": (FINISHED, Facts(own=FINISHED, scheduler=AGAIN, accounted="NODE_FAIL")),
    "the accounting tells of no cause": (NODE_LOST, Facts(scheduler=AGAIN, accounted="FAILED")),
    "killed, without a scheduler": ("killed", Facts()),
    "stopped, without a scheduler": (STOPPED, Facts(own="stopped by SIGINT")),
}


@pytest.mark.parametrize(("kind", "what", "facts"), SEEN_BY_THE_SCRIPT.values(), ids=SEEN_BY_THE_SCRIPT)
def test_the_script_knows_why_an_attempt_ended_and_what_follows(kind: str, what: str, facts: Facts) -> None:
    reason = why(facts)
    assert kind_of(reason) == kind_of(kind)
    assert action(reason, [], {}, facts=facts) == what
    if kind in (PREEMPTED, PREEMPTED_AT_ONCE):
        assert reason == kind


@pytest.mark.parametrize(("kind", "facts"), SEEN_BY_THE_NEXT.values(), ids=SEEN_BY_THE_NEXT)
def test_the_next_attempt_knows_why_the_script_of_the_one_before_died(kind: str, facts: Facts) -> None:
    assert kind_of(why(facts)) == kind_of(kind)


USR2 = "User defined signal 2"
ONE_KILLED = "task 0 on n1: Killed, task 1 on n1: Terminated"


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        ("crash: RuntimeError: boom, in a: b", Facts(own="error: RuntimeError: boom, in a: b", code=1)),
        ("crash: exit code 137", Facts(code=137)),
        (f"crash: task 1 on n2: Bus error; {CUT_SHORT}", Facts(code=135, tasks="task 1 on n2: Bus error")),
        (f"crash: {CUT_SHORT}", Facts(code=135)),
        ("crash: task 3 on n2: Killed", Facts(code=137, tasks="task 3 on n2: Killed")),
        (
            "crash: task 3 on n2: Killed; EOFError: ",
            Facts(own="error: EOFError: ", code=1, tasks="task 3 on n2: Killed"),
        ),
        ("time limit", Facts(code=140, tasks=f"task 0 on n1: {USR2}, task 1 on n2: {USR2}")),
        ("stopped by SIGTERM", Facts(code=143, tasks="tasks 0-1 on n1: Terminated")),
        ("crash: task 0 on n1: Killed, task 1 on n1: Terminated", Facts(code=137, tasks=ONE_KILLED)),
        ("crash: task 0 on n1: Segmentation fault", Facts(code=139, tasks="task 0 on n1: Segmentation fault")),
        ("hang", Facts(code=EXIT_HUNG, tasks="task 3 on n2: Exited with exit code 86")),
        ("refused: ValueError: lower the --lr", Facts(own="error: ValueError: lower the --lr", code=2)),
        ("refused: ValueError: lr=1 (the run has 2)", Facts(failure="ValueError: lr=1 (the run has 2)", code=2)),
        ("refused", Facts(code=2)),
        (
            "crash: task 3 on n2: Exited; rank 3: RuntimeError: boom",
            Facts(own="error: gloo: Connection reset", failure="rank 3: RuntimeError: boom", code=1, tasks=EXITED),
        ),
        ("diverged: the loss is nan at step 3", Facts(own="diverged: the loss is nan at step 3", code=2)),
        ("diverged: the loss is nan at step 3", Facts(own="diverged: the loss is nan at step 3", code=1, tasks="all")),
        ("stopped by SIGTERM", Facts(own=TERM, code=EXIT_STOPPED)),
    ],
)
def test_the_reason_has_the_jobs_own_words(expected: str, facts: Facts) -> None:
    assert why(facts) == expected


@pytest.mark.parametrize("kind", sorted(DEFAULT_RESTARTS))
def test_each_kind_of_end_has_its_own_budget(kind: str) -> None:
    facts = Facts(code=1)
    reason = {"preempted": PREEMPTED, STOPPED: TERM, CRASH: "crash: KeyError: 'a'"}.get(kind, kind)
    others = [other for other in (PREEMPTED, TERM, CRASH, *DEFAULT_RESTARTS) if kind_of(other) != kind] * 9
    assert action(reason, [*others, reason], {kind: 2}, facts=facts) == "requeue"
    assert action(reason, [*others, reason, reason], {kind: 2}, facts=facts) == "end"
    assert action(reason, others, {kind: 0}, facts=facts) == "end"
    assert action(reason, [reason] * (DEFAULT_RESTARTS[kind] - 1), {}, facts=facts) == "requeue"
    assert action(reason, [reason] * DEFAULT_RESTARTS[kind], {}, facts=facts) == "end"


def test_both_ways_of_a_preemption_share_a_budget() -> None:
    assert action(PREEMPTED, [PREEMPTED_AT_ONCE], {"preempted": 1}, facts=Facts()) == "end"


def test_a_used_up_budget_ends_the_run_also_where_slurm_would_go_on() -> None:
    facts = Facts(scheduler=GIVEN_AWAY, cause=NODE_LOST)
    assert action(NODE_LOST, [NODE_LOST], {NODE_LOST: 2}, facts=facts) == "leave"
    assert action(NODE_LOST, [NODE_LOST], {NODE_LOST: 1}, facts=facts) == "end"


ENDS = st.sampled_from([*DEFAULT_RESTARTS, *SETTLED, PREEMPTED, "crash: a", "killed"])
FIELDS = st.sampled_from([None, RUNNING, PREEMPTING, COMPLETING, GIVEN_AWAY, AGAIN])
CAUSES = st.sampled_from([None, PREEMPTED_AT_ONCE, REQUEUED, NODE_LOST, TIME_LIMIT, CANCELLED])
WORDS = st.sampled_from([None, USR2, TERM, "error: KeyError: 'a'", NO_SPACE])


@given(
    kind=st.sampled_from(SETTLED),
    detail=st.sampled_from(["", ": crash"]),
    earlier=st.lists(ENDS),
    budgets=st.dictionaries(ENDS.map(kind_of), st.integers(0, 9)),
    fields=FIELDS,
    cause=CAUSES,
)
def test_what_is_settled_never_starts_again(
    kind: str,
    detail: str,
    earlier: list[str],
    budgets: dict[str, int],
    fields: Mapping[str, str] | None,
    cause: str | None,
) -> None:
    over = "finished" if kind == FINISHED else "end"
    assert action(kind + detail, earlier, budgets, facts=Facts(scheduler=fields, cause=cause)) == over


@given(
    own=WORDS,
    code=st.none() | st.integers(1, 255),
    hung=st.booleans(),
    fields=FIELDS,
    accounted=st.sampled_from([None, "CANCELLED", "FAILED", "COMPLETED"]),
)
def test_after_scancel_nothing_that_the_job_says_starts_it_again(
    own: str | None, code: int | None, hung: bool, fields: Mapping[str, str] | None, accounted: str | None
) -> None:
    if fields in (RUNNING, PREEMPTING, GIVEN_AWAY, AGAIN):  # Then the same line is of a signal to the batch script.
        fields = COMPLETING
    facts = Facts(own=own, code=code, hung=hung, scheduler=fields, cause=CANCELLED, accounted=accounted)
    assert kind_of(why(facts)) == CANCELLED
    assert action(why(facts), [], {}, facts=facts) == "end"


@pytest.mark.parametrize(
    ("accounted", "reason"), [("NODE_FAIL", NODE_LOST), ("PREEMPTED", PREEMPTED_AT_ONCE), (None, NODE_LOST)]
)
def test_a_signal_to_a_later_start_that_opened_no_attempt_is_no_scancel_of_the_one_before(
    accounted: str | None, reason: str
) -> None:
    facts = Facts(restart=0, scheduler={"JobState": "RUNNING", "Restarts": "1"}, cause=CANCELLED, accounted=accounted)
    assert why(facts) == reason
    assert action(why(facts), [], {}, facts=facts) != "end"


ONELINER = """JobId=4 JobName=train-first UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=4294901756 Nice=0 \
Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 \
ExitCode=0:0 RunTime=00:00:10 TimeLimit=00:10:00 TimeMin=N/A SubmitTime=2026-11-22T05:00:04 AccrueTime=Unknown \
StartTime=2026-11-22T05:00:05 EndTime=2026-11-22T05:10:19 Deadline=N/A PreemptEligibleTime=2026-11-22T05:00:05 \
PreemptTime=2026-11-22T05:10:04 SuspendTime=None SecsPreSuspend=0 Scheduler=Main Partition=low \
AllocNode:Sid=vm:1203 ReqNodeList=(null) NodeList=n[1-2] BatchHost=n1 NumNodes=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:* \
TRES=cpu=4,mem=200M,node=2,billing=4 MinCPUsNode=2 OverSubscribe=OK Command=(null) WorkDir=/scratch \
Comment=JobState=FAILED Restarts=9 StdErr=/scratch/runs/first/logs/4_0_log.out Power= \n"""


def test_the_fields_of_scontrol_are_read() -> None:
    fields = parse_fields(ONELINER)
    wanted = {"JobId": "4", "JobState": "RUNNING", "Restarts": "2", "PreemptTime": "2026-11-22T05:10:04"}
    assert wanted.items() <= fields.items()
    assert (fields["PreemptEligibleTime"], fields["TRES"]) == ("2026-11-22T05:00:05", "cpu=4,mem=200M,node=2,billing=4")
    assert why(Facts(restart=2, own=USR2, code=EXIT_STOPPED, scheduler=fields)) == PREEMPTED
    assert why(Facts(restart=1, own=USR2, code=EXIT_STOPPED, scheduler=fields)) == NODE_LOST
    assert parse_fields("") == {}
    assert parse_fields("slurm_load_jobs error: Invalid job id specified\n") == {}


AT = "4 ON n1 CANCELLED AT 2026-11-22T05:10:04"


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (f"slurmstepd-n1: error: *** JOB {AT} DUE TO JOB REQUEUE ***", REQUEUED),
        (f"slurmstepd: error: *** JOB {AT} DUE TO PREEMPTION ***", PREEMPTED_AT_ONCE),
        (f"slurmstepd: error: *** JOB {AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***", NODE_LOST),
        (f"slurmstepd: error: *** JOB {AT} DUE TO TIME LIMIT ***", TIME_LIMIT),
        (f"slurmstepd-n1: error: *** JOB {AT} ***", CANCELLED),
        (f"step 9: loss 0.3slurmstepd: error: *** JOB {AT} ***", CANCELLED),
        (f"slurmstepd: error: *** JOB {AT} DUE TO SOLAR FLARE ***", "cancelled: solar flare"),
        (f"[2026-11-22T05:10:04.123] error: *** JOB {AT} DUE to SIGNAL Terminated ***", CANCELLED),
        (f"[2026-11-22T05:10:04.123] error: *** JOB {AT} DUE to SIGNAL Killed ***", CANCELLED),
        (f"[2026-11-22T05:10:04.123] error: *** JOB {AT} DUE TO TIME LIMIT ***", TIME_LIMIT),
        (f"error: *** JOB {AT} DUE TO TIME LIMIT ***\nmore\nerror: *** JOB {AT} ***\nmore", CANCELLED),
        (f"error: *** JOB {AT} ***\nerror: *** JOB {AT} DUE TO JOB REQUEUE ***", REQUEUED),
        ("slurmstepd: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-22T05:10:04 DUE TO PREEMPTION ***", None),
        ("slurmstepd: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-22T05:10:04 ***", None),
        ("[05:10:04] error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-22T05:10:04 DUE TO TASK FAILURE ***", None),
        ("slurmstepd: error: *** JOB 4 FAILED (non-zero exit code or other failure mode) ***", None),
        ("srun: error: n1: task 0: Exited with exit code 85", None),
        ("", None),
    ],
)
def test_slurms_line_in_the_log_says_why_it_ended_the_job(said: str, cause: str | None) -> None:
    assert cause_in_log(f"begins\n{said}\n") == cause
    if cause and cause.startswith(CANCELLED):
        assert action(cause, [], {}, facts=Facts(cause=cause)) == "end"


STEP = "slurmstepd: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-22T05:{}{} ***\n"
JOB = f"slurmstepd: error: *** JOB {AT} DUE TO PREEMPTION ***\n"


@pytest.mark.parametrize(
    ("said", "grace"),
    [
        (STEP.format("09:49", "") + JOB, True),
        (STEP.format("09:49", " DUE to SIGNAL Terminated") + STEP.format("10:04", "") + JOB, True),
        (STEP.format("10:03", "") + JOB, False),
        (JOB, False),
        (STEP.format("09:49", ""), False),
        (STEP.format("noon", "") + JOB, False),
        ("", False),
    ],
)
def test_slurm_told_the_ranks_some_seconds_before_it_ended_the_job(said: str, grace: bool) -> None:
    assert had_grace(said) is grace


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("srun: error: Node failure on node2", "node2"),
        ("srun: error: Aborting, io error and missing step on node 1", "node 1"),
        ("srun: error: Node failure on n1\nsrun: error: Node failure on n3\nsrun: error: Node failure on n1", "n1, n3"),
        ("srun: error: n1: task 1: Killed", None),
        ("print srun: error: Node failure on n1", None),
    ],
)
def test_srun_says_which_nodes_failed(said: str, lost: str | None) -> None:
    assert lost_nodes(f"begins\n{said}\n") == lost


@pytest.mark.parametrize(
    ("said", "tasks"),
    [
        ("srun: error: n2: task 3: Killed", "task 3 on n2: Killed"),
        ("srun: error: n1: tasks 0-1: Exited with exit code 1", "tasks 0-1 on n1: Exited with exit code 1"),
        (
            "srun: error: n1: tasks 0,2: Segmentation fault (core dumped)\nand then\nsrun: error: n2: task 3: Killed",
            "tasks 0,2 on n1: Segmentation fault (core dumped), task 3 on n2: Killed",
        ),
        ("srun: Job step aborted: Waiting up to 62 seconds for job step to finish.", None),
        ("RuntimeError: srun: error: n1: task 1: Killed", None),
    ],
)
def test_srun_says_which_tasks_failed(said: str, tasks: str | None) -> None:
    assert failed_tasks(f"begins\n{said}\n") == tasks


def test_of_many_failed_tasks_some_are_told() -> None:
    many = "".join(f"srun: error: n{node}: task {node}: Killed\n" for node in range(100))
    assert failed_tasks(many) == ", ".join(f"task {node} on n{node}: Killed" for node in range(NUM_TASKS_TOLD))


def test_of_a_log_only_the_part_of_the_attempt_counts() -> None:
    parts = {number: f"from {number}\n" for number in (2, 1, 11, 3)}
    text = "left over\n" + "".join(f"{begin_line(number)}\n{part}" for number, part in parts.items())
    assert {number: log_of_attempt(text, number).strip() for number in parts} == {
        number: part.strip() for number, part in parts.items()
    }
    assert log_of_attempt(text, 4) == "left over\n"
    assert log_of_attempt("no attempt has a line", 1) == "no attempt has a line"
    twice = f"{begin_line(1)}\nbefore the file was copied\n{begin_line(1)}\nlast\n"
    assert log_of_attempt(twice, 1).strip() == "last"


@pytest.mark.parametrize(
    ("rows", "restart", "state"),
    [
        ("NODE_FAIL\nPREEMPTED\nRUNNING\n", 0, "NODE_FAIL"),
        ("NODE_FAIL\nPREEMPTED\nRUNNING\n", 1, "PREEMPTED"),
        ("NODE_FAIL\n\nCANCELLED by 1000\n", 1, "CANCELLED"),
        ("REQUEUED|0:0\n", 0, "REQUEUED"),
        ("RUNNING\n", 1, None),
        ("", 0, None),
    ],
)
def test_the_accounting_has_a_row_for_each_start(rows: str, restart: int, state: str | None) -> None:
    assert accounted_state(rows, restart) == state


def ended(reason: str | None, *, first: int | None = 0, saved: int | None = None) -> dict[str, object]:
    """An attempt that ended so."""
    return {"ended": reason, "first_step": first, "saved": saved}


def test_only_known_ends_are_counted() -> None:
    assert without_progress([ended("crash: a"), ended(None), ended("hang")], 0) == ["crash: a", "hang"]


def test_only_ends_since_which_nothing_newer_was_saved_are_counted() -> None:
    attempts = [ended("hang", saved=0), ended("crash: a", saved=7), ended("crash: b", first=7), ended("x", first=None)]
    assert without_progress(attempts, 0) == ["hang", "crash: a", "crash: b", "x"]
    assert without_progress(attempts, 7) == ["crash: a", "crash: b"]
    assert without_progress(attempts, 8) == []
    # A checkpoint that was damaged afterwards is no progress.
    assert without_progress([ended("crash: a", saved=9)], 8) == ["crash: a"]


def test_the_budgets_are_those_that_the_documentation_tells() -> None:
    page = (
        (Path(__file__).parents[2] / "docs" / "slurm.md")
        .read_text()
        .partition("| reason | what happens | restarts |")[2]
    )
    told: dict[str, int] = {}
    for line in page.partition("\n\n")[0].splitlines():
        *cells, most = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if most[:1].isdigit():
            told |= dict.fromkeys(map(kind_of, re.findall(r"`([^`]+)`", cells[0])), int(re.split(r"[ ,]", most)[0]))
    assert told == DEFAULT_RESTARTS
