"""What becomes of a job that Slurm stops, by the settings of preemption, KillWait, requeue, cred_expire and more."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launch import slurm
from launch.clusters import Cluster
from launch.findings import Finding, graded, note, right
from launch.limits import Fields, Site, nodes_in, places_of

SHORT_SAVE_S = 10.0
"""A notice that is shorter than this may be too short to save in."""
LONG_TIMEOUT_S = 600.0


def preemption_of(cluster: Cluster, partition: Fields, site: Site) -> Finding:
    """How preemption takes back what runs in a partition."""
    tier = int(partition.get("PriorityTier", "1"))
    beside = {place for node in nodes_in(partition, site.nodes) for place in places_of(node)} & set(site.partitions)
    rivals = [name for name in sorted(beside) if int(site.partitions[name].get("PriorityTier", "1")) > tier]
    names = [name for name in (cluster.qos, partition.get("QoS"), "normal") if name and name in site.qualities]
    return preemption_finding(site.config, partition, rivals=rivals, quality=site.qualities[names[0]] if names else {})


def preemption_finding(config: Fields, partition: Fields, *, rivals: Sequence[str], quality: Fields) -> Finding:
    """What preemption does to a job of a partition.

    Args:
        rivals: partitions of a higher tier that share its nodes.
        quality: the quality of service of the job, as far as it is known.
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
        return right(f"preemption: none in {owner} (nothing on its nodes has a higher PriorityTier)")
    grace_s = slurm.duration_s(source.get("GraceTime") or "0")
    return AFTER_PREEMPTION[mode](Notice(owner, grace_s, duration(config, "KillWait", 30), has_user_signal(config)))


def preempt_mode(own: str, default: str) -> str:
    """One word for a mode such as `GANG,SUSPEND`; the default where there is none of its own."""
    text = default if own.lower() in ("", "cluster") else own
    return next((mode for mode in AFTER_PREEMPTION if mode in text.upper().split(",")), "OFF")


def has_user_signal(config: Fields) -> bool:
    """Whether preemption warns by the signal that sbatch was told; both names of the setting count."""
    both = config.get("SlurmctldParameters", "") + config.get("PreemptParameters", "")
    return "send_user_signal" in both.lower()


def duration(config: Fields, name: str, default: float) -> float:
    """Seconds of a setting."""
    return slurm.duration_s(config.get(name) or str(default))


@dataclass(frozen=True)
class Notice:
    """How long a job has that is preempted, by whose setting, and which signal tells it."""

    owner: str
    grace_s: float
    kill_wait_s: float
    user_signal: bool

    def __str__(self) -> str:
        name = "SIGUSR2" if self.user_signal else "SIGTERM"
        setting = f"preempt_send_user_signal is {'' if self.user_signal else 'not '}set; both signals are heeded"
        if not self.grace_s:
            return f"tells jobs by SIGTERM, only KillWait={self.kill_wait_s:g} s ahead (GraceTime=0 of {self.owner})"
        return f"tells jobs by {name} ({setting}), GraceTime={self.grace_s:g} s of {self.owner} ahead"


def after_requeue(notice: Notice) -> Finding:
    """Slurm starts a preempted job again."""
    told = f"preemption (PreemptMode=REQUEUE) {notice}; they save in that time, and start again"
    lost = "a save that takes longer is lost, at most checkpoint_minutes of work"
    return graded(notice.grace_s >= SHORT_SAVE_S, told, f"{lost}; a longer GraceTime would leave time")


def after_cancel(notice: Notice) -> Finding:
    """Slurm ends a preempted job for good."""
    told = f"preemption (PreemptMode=CANCEL) {notice}, and Slurm does not start them again; in that time they save and"
    late = "one that takes longer stays ended, until `deeplense resume RUN`; PreemptMode=REQUEUE would start it again"
    return note(f"{told} ask for another attempt themselves; {late}")


def after_suspend(notice: Notice) -> Finding:
    """Slurm freezes a preempted job."""
    told = f"preemption (PreemptMode=SUSPEND of {notice.owner}): jobs get no signal, save nothing, and stand still"
    hang = "a pause longer than hang_minutes counts as a crash, so give --hang_minutes 0"
    return note(f"{told} in memory until the nodes are free; {hang}; PreemptMode=REQUEUE would let them save and go")


AFTER_PREEMPTION = {"REQUEUE": after_requeue, "CANCEL": after_cancel, "SUSPEND": after_suspend}
"""What follows from each mode of preemption."""


def restart_findings(config: Fields) -> Iterator[Finding]:
    """What decides over stopping and restarting beside preemption."""
    wait_s = duration(config, "KillWait", 30)
    told = f"KillWait={wait_s:g} s is the time to save of a job that is cancelled"
    yield graded(wait_s >= SHORT_SAVE_S, told, "a longer save is lost, at most checkpoint_minutes of work; 30 is usual")
    asked = "only jobs that ask for it start again, and `deeplense submit` asks (--requeue)"
    can = asked if config.get("JobRequeue") == "0" else "jobs may start again"
    yield right(f"JobRequeue={config.get('JobRequeue', '1')}: {can}")
    yield wait_finding(config.get("AuthInfo", ""))
    yield loss_finding(duration(config, "SlurmdTimeout", 300))


def wait_finding(text: str) -> Finding:
    """How long a job waits that starts again, from the setting AuthInfo."""
    found = re.search(r"cred_expire=(\d+)", text)
    seconds = int(found[1]) if found else 120
    told = f"cred_expire={seconds}{'' if found else ' (the default)'}: a requeued job waits {seconds + 1} s at least"
    return graded(seconds <= 120, told, "120 in AuthInfo is usual")


def loss_finding(timeout_s: float) -> Finding:
    """How long until a lost node is noticed."""
    told = f"SlurmdTimeout={timeout_s:g} s: a lost node is noticed after about that time, and its jobs start again"
    never = "SlurmdTimeout=0: a lost node is never noticed, and a run stands still until its hang_minutes are over"
    return (
        note(f"{never}; 300 is usual") if not timeout_s else graded(timeout_s <= LONG_TIMEOUT_S, told, "300 is usual")
    )
