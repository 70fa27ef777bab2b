"""Report what happens to a job that Slurm stops, from Slurm's settings of preemption, KillWait, requeue and others."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launch import slurm
from launch.clusters import Cluster
from launch.findings import Finding, graded, note, right
from launch.limits import Fields, Site, nodes_in, places_of

SHORT_SAVE_S = 10.0
"""Notice times below this may be too short to save a checkpoint, in seconds."""
LONG_TIMEOUT_S = 600.0


def preemption_of(cluster: Cluster, partition: Fields, site: Site) -> Finding:
    """Return how preemption affects jobs of a profile in a partition."""
    tier = int(partition.get("PriorityTier", "1"))
    beside = {place for node in nodes_in(partition, site.nodes) for place in places_of(node)} & set(site.partitions)
    rivals = [name for name in sorted(beside) if int(site.partitions[name].get("PriorityTier", "1")) > tier]
    names = [name for name in (cluster.qos, partition.get("QoS"), "normal") if name and name in site.qualities]
    return preemption_finding(site.config, partition, rivals=rivals, quality=site.qualities[names[0]] if names else {})


def preemption_finding(config: Fields, partition: Fields, *, rivals: Sequence[str], quality: Fields) -> Finding:
    """Return how preemption affects a job in a partition.

    Args:
        rivals: partitions with a higher PriorityTier that share its nodes.
        quality: quality of service of the job; empty if unknown.
    """
    name, kind = partition["PartitionName"], config.get("PreemptType", "preempt/none")
    if kind not in ("preempt/partition_prio", "preempt/qos"):
        return right(f"preemption: none (PreemptType={kind})")
    by_quality = kind == "preempt/qos"
    source, owner = (quality, f"QOS {quality.get('Name', '?')}") if by_quality else (partition, f"partition {name}")
    mode = preempt_mode(source.get("PreemptMode", ""), config.get("PreemptMode", "OFF"))
    if mode not in AFTER_PREEMPTION:
        return right(f"preemption: none in {owner} (PreemptMode={mode})")
    if not by_quality and not rivals:
        return right(f"preemption: none in {owner} (no partition on its nodes has a higher PriorityTier)")
    grace_s = slurm.duration_s(source.get("GraceTime") or "0")
    return AFTER_PREEMPTION[mode](Notice(owner, grace_s, duration(config, "KillWait", 30), has_user_signal(config)))


def preempt_mode(own: str, default: str) -> str:
    """Return the main word of a mode such as `GANG,SUSPEND`; use the default if the object has no mode of its own."""
    text = default if own.lower() in ("", "cluster") else own
    return next((mode for mode in AFTER_PREEMPTION if mode in text.upper().split(",")), "OFF")


def has_user_signal(config: Fields) -> bool:
    """Whether preemption sends the signal that was set with sbatch; the setting exists under two names."""
    both = config.get("SlurmctldParameters", "") + config.get("PreemptParameters", "")
    return "send_user_signal" in both.lower()


def duration(config: Fields, name: str, default: float) -> float:
    """Return the value of a time setting, in seconds."""
    return slurm.duration_s(config.get(name) or str(default))


@dataclass(frozen=True)
class Notice:
    """The notice before preemption: its length, the object whose setting applies, and the signal."""

    owner: str
    grace_s: float
    kill_wait_s: float
    user_signal: bool

    def __str__(self) -> str:
        name = "SIGUSR2" if self.user_signal else "SIGTERM"
        setting = f"preempt_send_user_signal is {'' if self.user_signal else 'not '}set; deeplense handles both signals"
        if not self.grace_s:
            return f"sends jobs SIGTERM only KillWait={self.kill_wait_s:g} s in advance (GraceTime=0 of {self.owner})"
        return f"sends jobs {name} ({setting}) GraceTime={self.grace_s:g} s of {self.owner} in advance"


def after_requeue(notice: Notice) -> Finding:
    """Return the finding for Slurm requeueing a preempted job."""
    told = f"preemption (PreemptMode=REQUEUE) {notice}; they save a checkpoint in this time, and are requeued"
    lost = "if saving takes longer, at most checkpoint_minutes of work is lost"
    return graded(notice.grace_s >= SHORT_SAVE_S, told, f"{lost}; a longer GraceTime would avoid this")


def after_cancel(notice: Notice) -> Finding:
    """Return the finding for Slurm cancelling a preempted job."""
    told = f"preemption (PreemptMode=CANCEL) {notice}, and Slurm does not restart them; in this time they save a"
    late = "if this takes longer, the successor job (`successor`) resumes the run under a new job id"
    counted = "since Slurm 24.11, jobs that finish in this time count as preempted and do not satisfy afterok"
    return note(f"{told} checkpoint and requeue themselves; {late}; {counted}; PreemptMode=REQUEUE avoids both")


def after_suspend(notice: Notice) -> Finding:
    """Return the finding for Slurm suspending a preempted job."""
    told = f"preemption (PreemptMode=SUSPEND of {notice.owner}): jobs get no signal, save no checkpoint, and stay"
    hang = "such a pause does not count as a hang"
    return note(f"{told} in memory until the nodes are free; {hang}; PreemptMode=REQUEUE would let them save and exit")


AFTER_PREEMPTION = {"REQUEUE": after_requeue, "CANCEL": after_cancel, "SUSPEND": after_suspend}
"""Functions that return the finding for each PreemptMode."""


def restart_findings(config: Fields) -> Iterator[Finding]:
    """Check the settings other than preemption that affect stopping and restarting."""
    wait_s = duration(config, "KillWait", 30)
    told = f"KillWait={wait_s:g} s is the time that a cancelled job has to save a checkpoint"
    loss = "if saving takes longer, at most checkpoint_minutes of work is lost; 30 is usual"
    yield graded(wait_s >= SHORT_SAVE_S, told, loss)
    asked = "only jobs that request it are requeued, and `deeplense submit` does (--requeue)"
    can = asked if config.get("JobRequeue") == "0" else "jobs can be requeued"
    yield right(f"JobRequeue={config.get('JobRequeue', '1')}: {can}")
    yield hold_finding(config.get("SchedulerParameters", ""))
    yield wait_finding(config.get("AuthInfo", ""))
    yield loss_finding(duration(config, "SlurmdTimeout", 300))


def hold_finding(parameters: str) -> Finding:
    """Return what Slurm does with a job that a node cannot start, from the setting SchedulerParameters."""
    if "nohold_on_prolog_fail" in parameters.lower():
        return right("nohold_on_prolog_fail: a job that a node cannot start is requeued")
    told = "nohold_on_prolog_fail is not in SchedulerParameters: Slurm holds a job that a node cannot start, such as"
    held = "after a failed Prolog, until `scontrol release JOB`; `deeplense status` reports such a job"
    return note(f"{told} {held}")


def wait_finding(text: str) -> Finding:
    """Return how long a requeued job waits before it restarts, from the setting AuthInfo."""
    found = re.search(r"cred_expire=(\d+)", text)
    seconds = int(found[1]) if found else 120
    told = f"cred_expire={seconds}{'' if found else ' (the default)'}: a requeued job waits at least {seconds + 1} s"
    return graded(seconds <= 120, told, "120 in AuthInfo is usual")


def loss_finding(timeout_s: float) -> Finding:
    """Return how long Slurm takes to detect a lost node."""
    told = f"SlurmdTimeout={timeout_s:g} s: a lost node is detected after about this time, and its jobs are requeued"
    never = "SlurmdTimeout=0: a lost node is never detected, and a run hangs until its hang_minutes have passed"
    return (
        note(f"{never}; 300 is usual") if not timeout_s else graded(timeout_s <= LONG_TIMEOUT_S, told, "300 is usual")
    )
