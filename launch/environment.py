"""Environment variables that a job inherits from the shell that submits it: those of a login shell, but none that
another job, a launcher or a container has set.

Slurm passes the whole environment of sbatch to the job, where variables of the submitter's own job would be taken for
those of the new one. This module lists the variables to remove: from the environment of Slurm commands, from processes
that a submission starts on this machine, and, in the batch script, from a job that a user submits with sbatch.
"""

import os
from collections.abc import Iterable, Mapping

from launch.clusters import DECIDED, KEY_OF, Cluster
from launch.findings import Finding, note

KEPT = ("SLURM_CONF", "SLURM_JWT")
"""Variables that select the cluster and authenticate the user."""
SCHEDULER = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SPANK_", "_SLURM_", "SUBMITIT_")
SCHEDULER += ("SQUEUE_", "SACCT_", "SACCTMGR_", "SCANCEL_", "SCONTROL_", "SINFO_")
"""Prefixes of variables that Slurm sets for a job, or that change the behaviour of its commands: SQUEUE_STATES hides
jobs, SBATCH_ARRAY_INX makes an array."""
LAUNCHERS = ("PMI", "PRTE_", "OMPI_", "MV2_", "MPI_LOCAL", "HYDRA_", "I_MPI_", "PALS_", "TORCHELASTIC_")
LAUNCHERS += ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE")
RANKS += ("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OURS = ("ATTEMPT", "FOLDER", "CODE", "NODE_ADDRESSES", "SCRATCH", "NODE_LOCAL", "VISIBLE_DEVICES")
OURS = tuple(f"DEEPLENSE_{name}" for name in OURS)
AFTER = "DEEPLENSE_AFTER"
"""Variable that a job passes to its successor job."""
DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
DEVICES += ("GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS")
THREADS += ("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that set the number of cores of a process, and which. The cores of this machine are not those of the job,
and on a CPU the number of threads affects the last bits of results."""
CONTAINERS = ("APPTAINER", "SINGULARITY")
IN_CONTAINER = ("APPTAINER_CONTAINER", "APPTAINER_NAME", "SINGULARITY_CONTAINER", "SINGULARITY_NAME")
OF_APPTAINER = ("_CACHEDIR", "_CONFIGDIR", "_TMPDIR")
"""Suffixes of variables that configure Apptainer itself, not the container."""
TEMPORARY = ("TMPDIR", "TMP", "TEMP")
"""Temporary folders, which many sites create per job and name after it."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that deeplense sets for a rank; the shell inherits them if it is a child of one."""

OF_STEPS = ("SLURM_STEP", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GPU_BIND", "SLURM_SRUN_", "SLURM_UMASK")
OF_STEPS += ("SRUN_", "SBATCH_", "SALLOC_", "_SLURM_", "SUBMITIT_")
"""Prefixes of variables that Slurm never sets for the batch script of a job."""
OF_SRUN = ("ACCOUNT", "BCAST", "COMPRESS", "CORE_SPEC", "CPU_FREQ_REQ", "CPUS_PER_GPU", "DEPENDENCY", "DISTRIBUTION")
OF_SRUN += ("DIST_PLANESIZE", "EPILOG", "EXACT", "EXCLUSIVE", "EXPORT_ENV", "GPU_FREQ", "GRES", "GRES_FLAGS", "HINT")
OF_SRUN += ("IMMEDIATE", "KILL_BAD_EXIT", "LABELIO", "MPI_TYPE", "MULTI_PROG", "NETWORK", "NO_KILL", "OPEN_MODE")
OF_SRUN += ("OVERCOMMIT", "OVERLAP", "PARTITION", "PROLOG", "QOS", "REMOTE_CWD", "RESERVATION", "SIGNAL", "STDERRMODE")
OF_SRUN += ("STDINMODE", "STDOUTMODE", "TASK_EPILOG", "TASK_PROLOG", "THREAD_SPEC", "THREADS", "THREADS_PER_CORE")
OF_SRUN += ("TIMELIMIT", "UNBUFFEREDIO", "WAIT", "WHOLE", "WORKING_DIR", "CLUSTERS")
"""Names, after SLURM_, of variables from which srun reads options."""

OPTION_OF = {
    "TIMELIMIT": "time",
    "MEM_PER_NODE": "mem",
    "ARRAY_INX": "array",
    "REQ_SWITCH": "switches",
    "DEBUG": "verbose",
}
"""Maps names of variables, after SBATCH_, to options of sbatch with a different name."""
PLAIN_KEYS = ("partition", "account", "qos", "constraint", "reservation")


def without(environment: Mapping[str, str], prefixes: Iterable[str]) -> dict[str, str]:
    """Return the variables whose names start with none of these prefixes."""
    out = tuple(prefixes)
    return {name: value for name, value in environment.items() if name in KEPT or not name.startswith(out)}


def for_questions(environment: Mapping[str, str], slurm_conf: str | None) -> dict[str, str]:
    """Return the environment for Slurm commands: they find the cluster, and no variable changes their behaviour."""
    return without(environment, SCHEDULER) | ({"SLURM_CONF": slurm_conf} if slurm_conf else {})


def for_jobs(environment: Mapping[str, str], slurm_conf: str | None) -> dict[str, str]:
    """Return the environment that sbatch passes to a job."""
    job = environment.get("SLURM_JOB_ID")
    temporary = [name for name in TEMPORARY if job and job in environment.get(name, "")]
    interfaces = INTERFACES if "RANK" in environment else ()
    found = for_questions(for_here(environment), slurm_conf)
    return without(found, (*DEVICES, *THREADS, *interfaces, *temporary))


def for_here(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job that runs on this machine; variables for GPUs and threads are kept."""
    names = {*RANKS, *OURS, AFTER}
    found = {name: value for name, value in without(environment, (*SCHEDULER, *LAUNCHERS)).items() if name not in names}
    if any(name in environment for name in IN_CONTAINER):
        kept = {name: value for name, value in found.items() if name.endswith(OF_APPTAINER)}
        found = without(found, CONTAINERS) | kept
        found |= outside_of_container(found)
    return found


def outside_of_container(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the search path of libraries without the folders that exist only in a container."""
    paths = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    kept = os.pathsep.join(path for path in paths if not path.startswith("/.singularity.d"))
    return {"LD_LIBRARY_PATH": kept} if "LD_LIBRARY_PATH" in environment else {}


def unset_by_script(*, array: bool, has_gpus: bool) -> str:
    """Return the words after `unset` in a batch script: the same variables, without those that Slurm sets for it."""
    prefixes = (*OF_STEPS, *LAUNCHERS, *THREADS, *([] if array else ["SLURM_ARRAY"]))
    names = (*RANKS, *OURS, *(f"SLURM_{name}" for name in OF_SRUN), *([] if has_gpus else DEVICES))
    return " ".join([*(f"${{!{prefix}@}}" for prefix in prefixes), *names])


def left_out(environment: Mapping[str, str], cluster: Cluster) -> list[Finding]:
    """Return notes on variables of this shell that would change the job and are ignored, with where to set them."""
    told = [(name, value, place_of(name, value, cluster)) for name, value in environment.items()]
    return [note(f"{name}={value} of this shell is ignored; {place}") for name, value, place in told if place]


def place_of(name: str, value: str, cluster: Cluster) -> str | None:
    """Return where to set what a variable of the shell would set; None if the job does not change without it."""
    profile = f"the profile {cluster.name!r} ({cluster.source})"
    if name == "OMP_NUM_THREADS" and value not in (str(cluster.cpus_per_task), cluster.environment.get(name)):
        return f"to use it instead of cpus_per_task, add environment: {{{name}: '{value}'}} to {profile}"
    if not name.startswith("SBATCH_"):
        return None
    short = name.removeprefix("SBATCH_")
    option = OPTION_OF.get(short, short.lower().replace("_", "-"))
    key = KEY_OF.get(option)
    if key in PLAIN_KEYS:
        return None if getattr(cluster, key) == value else f"to use it, add {key}: {value} to {profile}"
    if key:
        return f"the key {key} of {profile} sets this option"
    if option in DECIDED:
        return f"`deeplense submit` sets --{option} itself"
    same = cluster.sbatch.get(option) == value
    return None if same else f"to use it, add sbatch: {{{option}: '{value}'}} to {profile}"
