"""What a job takes over from the shell that submits it, from wherever that is."""

import subprocess
from pathlib import Path

import pytest

from launch import slurm
from launch.clusters import Cluster
from launch.environment import KEPT, for_here, for_jobs, for_questions, left_out, unset_by_script
from tests.launch.made_up import MINE, program

LOGIN = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/me",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "LD_LIBRARY_PATH": "/opt/lib",
    "NCCL_DEBUG": "WARN",
    "HTTP_PROXY": "a-proxy",
    "APPTAINER_CACHEDIR": "/scratch/me",
    "DEEPLENSE_CLUSTERS": "/home/me/clusters.yaml",
}
"""What a login node gives."""
ARRAY = {
    "SLURM_JOB_ID": "77",
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_MEM_PER_CPU": "2000",
    "TMPDIR": "/local/job.77",
}
PLACES = {
    "an element of an array": ARRAY,
    "an interactive step": {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_CPU_BIND_LIST": "0x1",
        "SLURMD_NODENAME": "n1",
        "SRUN_DEBUG": "3",
        "CUDA_VISIBLE_DEVICES": "3",
        "OMP_NUM_THREADS": "1",
        "GOMP_CPU_AFFINITY": "0",
    },
    "a rank": {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "GLOO_SOCKET_IFNAME": "lo"},
    "a job of deeplense": {"DEEPLENSE_ATTEMPT": "2", "DEEPLENSE_FOLDER": "/r", "DEEPLENSE_NODE_LOCAL": "/local/other"},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1", "PMIX_RANK": "1", "PRTE_LAUNCHED": "1", "MV2_COMM": "1"},
    "accelerate launch": {"ACCELERATE_MIXED_PRECISION": "fp16", "FSDP_OFFLOAD_PARAMS": "true"},
    "a container": {
        "APPTAINER_CONTAINER": "/x.sif",
        "APPTAINER_BIND": "/outer",
        "SINGULARITY_NAME": "x.sif",
        "SINGULARITYENV_X": "1",
        "LD_LIBRARY_PATH": "/opt/lib:/.singularity.d/libs",
    },
    "a shell with options for sbatch": {"SBATCH_EXPORT": "NONE", "SBATCH_ARRAY_INX": "0-9", "SLURM_EXPORT_ENV": "NONE"},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_job_gets_what_a_login_node_would_give_wherever_it_is_submitted(place: str) -> None:
    assert for_jobs(LOGIN | PLACES[place], None) == for_jobs(LOGIN, None) == LOGIN


def test_the_same_in_a_poor_environment_such_as_crons() -> None:
    assert for_jobs({"PATH": "/bin"}, "/x/slurm.conf") == {"PATH": "/bin", "SLURM_CONF": "/x/slurm.conf"}


def test_the_cluster_of_the_profile_goes_before_that_of_the_shell() -> None:
    assert for_questions(LOGIN, "/mine.conf")["SLURM_CONF"] == "/mine.conf"
    assert set(KEPT) <= set(for_questions(dict.fromkeys(KEPT, "x"), None))


def test_questions_to_slurm_are_not_bent_by_the_shell(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(here, "squeue", 'env | grep -c "^S\\(QUEUE\\|LURM\\)_" > said; echo "17|RUNNING|None"')
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "PENDING")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    slurm.ask(None, "squeue")
    assert (here / "said").read_text() == "0\n"


def test_a_process_of_this_machine_keeps_its_gpus_and_threads_and_no_rank() -> None:
    shell = LOGIN | PLACES["an interactive step"] | PLACES["a rank"]
    kept = {name: shell[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")}
    assert for_here(shell) == LOGIN | kept | {"GLOO_SOCKET_IFNAME": "lo"}


def told(**shell: str) -> list[str]:
    """What is said of a shell."""
    cluster = MINE.override(hours=2.0, account="ours", sbatch={"exclusive": "yes, user"})
    return [finding.text for finding in left_out(shell, cluster)]


def test_what_is_left_out_is_told_with_the_key_that_would_say_it() -> None:
    assert told(PATH="/bin", SLURM_CONF="/x", SBATCH_ACCOUNT="ours", SBATCH_PARTITION="low") == []
    assert told(SBATCH_EXCLUSIVE="yes, user", OMP_NUM_THREADS="1", SLURM_STEP_ID="0") == []
    wanted = "to use it, add partition: high to the profile 'mine' (built in)"
    assert told(SBATCH_PARTITION="high") == [f"SBATCH_PARTITION=high of this shell is ignored; {wanted}"]
    (text,) = told(SBATCH_GRES_FLAGS="enforce-binding")
    assert "add sbatch: {gres-flags: 'enforce-binding'} to the profile 'mine'" in text
    (text,) = told(SBATCH_TIMELIMIT="10")
    assert "the key hours of the profile 'mine' (built in) sets this option" in text
    for name in ("NO_REQUEUE", "OUTPUT", "ARRAY_INX", "WAIT", "OPEN_MODE"):
        assert "`deeplense submit` sets --" in told(**{f"SBATCH_{name}": "1"})[0]
    assert "environment: {OMP_NUM_THREADS: '8'}" in told(OMP_NUM_THREADS="8")[0]


@pytest.mark.parametrize("option", ["export", "clusters", "quiet", "parsable", "test-only", "wait"])
def test_an_option_of_sbatch_by_which_a_job_or_its_id_is_lost_is_refused_in_a_profile(option: str) -> None:
    with pytest.raises(ValueError, match=f"sbatch: .*{option}"):
        Cluster(name="x", sbatch={option: ""})


@pytest.mark.parametrize("array", [False, True])
def test_a_script_forgets_what_another_job_left_and_keeps_what_slurm_tells_it(array: bool) -> None:
    left = {name: value for shell in PLACES.values() for name, value in shell.items()}
    ours = {"SLURM_JOB_ID": "4", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n1", "SLURM_TMPDIR": "/local/4"}
    ours |= {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0", "SLURM_CPUS_PER_TASK": "2"}
    script = f"unset {unset_by_script(array=array, has_gpus=True)}; env"
    done = subprocess.run(["/bin/bash", "-c", script], env=LOGIN | left | ours, capture_output=True, text=True)
    there = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert ours.items() <= there.items()
    assert ("SLURM_ARRAY_TASK_ID" in there) == array
    gone = {"SLURM_STEP_ID", "SLURM_CPU_BIND", "SLURM_CPU_BIND_LIST", "SLURM_EXPORT_ENV", "SRUN_DEBUG", "SBATCH_EXPORT"}
    gone |= {"OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "ACCELERATE_MIXED_PRECISION"}
    assert gone & set(there) == set()


def test_devices_of_another_job_are_forgotten_where_slurm_gives_none() -> None:
    assert "CUDA_VISIBLE_DEVICES" in unset_by_script(array=False, has_gpus=False)
    assert "CUDA_VISIBLE_DEVICES" not in unset_by_script(array=False, has_gpus=True)
