"""What the daemons of a private Slurm are told."""

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cluster.private_slurm import PrivateSlurm

NUM_HOSTS = 4
KILL_WAIT_S = 5
GRACE_S = 10
CGROUP_CONF = "CgroupPlugin=disabled\n"
"""From 23.02 on Slurm asks for it where there are no control groups; before, it does not know the word."""


def slurm_conf(cluster: "PrivateSlurm") -> str:
    """The configuration of the scheduler."""
    accounting = (
        f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost={cluster.controller_address}\n"
        f"AccountingStoragePort={cluster.port(3)}\nAccountingStoragePass={cluster.folder}/munge.socket"
        if cluster.accounting
        else "AccountingStorageType=accounting_storage/none"
    )
    return f"""\
ClusterName=rehearsal{cluster.number}
SlurmctldHost={socket.gethostname()}({cluster.controller_address})
SlurmctldPort={cluster.port(1)}
SlurmdPort={cluster.port(2)}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={cluster.folder}/munge.socket,cred_expire=5
StateSaveLocation={cluster.folder}/state
SlurmdSpoolDir={cluster.folder}/spool-%n
SlurmctldPidFile={cluster.folder}/run/slurmctld.pid
SlurmdPidFile={cluster.folder}/run/slurmd-%n.pid
SlurmctldLogFile={cluster.folder}/log/slurmctld
SlurmdLogFile={cluster.folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,nohold_on_prolog_fail
{"SlurmctldParameters=preempt_send_user_signal" if cluster.user_signal else "# no preempt_send_user_signal"}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={KILL_WAIT_S}
SlurmdTimeout=10
ReturnToService=2
MinJobAge=300
CompleteWait=0
PropagatePrioProcess=1
{accounting}
NodeName=node[1-{NUM_HOSTS}] NodeAddr=10.77.{cluster.number}.1[1-{NUM_HOSTS}] CPUs=4 RealMemory=8000
PartitionName=DEFAULT Nodes=node[1-{NUM_HOSTS}] State=UP MaxTime=INFINITE
PartitionName=normal Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_S} MaxTime=24:00:00
PartitionName=nograce PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
"""


def slurmdbd_conf(cluster: "PrivateSlurm") -> str:
    """The configuration of the accounting."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={cluster.folder}/munge.socket
DbdAddr={cluster.controller_address}
DbdHost={socket.gethostname()}
DbdPort={cluster.port(3)}
SlurmUser=root
LogFile={cluster.folder}/log/slurmdbd
PidFile={cluster.folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
