"""A cluster that is made up, as Slurm would tell of it, and programs."""

from pathlib import Path

from launch.clusters import Cluster
from launch.limits import Site

MINE = Cluster(name="mine", partition="low")
HERE = Cluster(name="here", executor="local")
LOW = {
    "PartitionName": "low",
    "AllowAccounts": "ALL",
    "AllowQos": "ALL",
    "Default": "YES",
    "QoS": "N/A",
    "GraceTime": "60",
    "MaxNodes": "UNLIMITED",
    "MaxTime": "2-00:00:00",
    "MinNodes": "0",
    "Nodes": "node[1-4]",
    "PreemptMode": "REQUEUE",
    "PriorityTier": "1",
    "State": "UP",
    "TotalNodes": "4",
}
HIGH = LOW | {"PartitionName": "high", "Default": "NO", "PreemptMode": "OFF", "PriorityTier": "10"}
NODE = {"CPUTot": "8", "RealMemory": "16000", "Gres": "gpu:a100:2(S:0-1)", "Partitions": "low,high", "State": "IDLE"}
SETTINGS = {
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "CANCEL",
    "KillWait": "30 sec",
    "ClusterName": "big",
}
SHORT = {"Name": "short", "Flags": "", "GraceTime": "00:02:00", "PreemptMode": "cluster", "MaxWall": "01:00:00"}
NODES = {f"node{k}": NODE for k in range(1, 5)}
SITE = Site(SETTINGS, {"low": LOW, "high": HIGH}, NODES, {"short": SHORT})


def program(folder: Path, name: str, script: str) -> None:
    """A program of this name in a folder, by a script."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
