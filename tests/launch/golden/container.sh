#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --gpus-per-node=1
#SBATCH --job-name=train-first
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/runs/first/logs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
# What the batch script does before srun: names the run, opens an attempt, says where the ranks meet.
# It runs on the first node, outside any container: scontrol and sacct are here, and need not be in the image.
deeplense_job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
deeplense_job="${deeplense_job:-$SLURM_JOB_ID}"
export DEEPLENSE_FOLDER="$(sed -n "$((${SLURM_ARRAY_TASK_ID:-0} + 1))p" /scratch/runs/first/logs/folders.txt)"
export PYTHONPATH=/scratch/runs/first/code PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
deeplense_facts() { scontrol show job --oneliner "$deeplense_job" 2>/dev/null; }
deeplense_history() {
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] ||
        timeout 5 sacct --duplicates --allocations --noheader --parsable2 --format=State --jobs="$deeplense_job" 2>/dev/null
}
# The script lives on when Slurm ends the job, to write down why; it has KillWait seconds for that.
trap : TERM CONT USR1 USR2
deeplense_log=/scratch/runs/first/logs/"${deeplense_job}"_0_log.out
DEEPLENSE_ATTEMPT="$(apptainer exec --userns --nv --bind /scratch/runs --bind /tmp --bind /data /images/deeplense.sif python -m launch.requeue begin --log "$deeplense_log" \
    --scheduler "$(deeplense_facts)" --history "$(deeplense_history)")" || exit 1
export DEEPLENSE_ATTEMPT
echo "deeplense: attempt $DEEPLENSE_ATTEMPT begins"
deeplense_address() { scontrol show node --oneliner "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'; }
deeplense_nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
export MASTER_ADDR="${deeplense_nodes[0]}"
export DEEPLENSE_NODE_ADDRESSES="$(for node in "${deeplense_nodes[@]:0:2}"; do deeplense_address "$node"; done | tr '\n' ' ')"
# A port of this node that nobody listens on, another one in each attempt.
MASTER_PORT=$((20000 + (${SLURM_JOB_ID} * 131 + ${SLURM_RESTART_COUNT:-0} * 17) % 10000))
deeplense_listens() { (exec 3<>"/dev/tcp/$1/$MASTER_PORT") 2>/dev/null; }
while deeplense_listens 127.0.0.1 || deeplense_listens "${DEEPLENSE_NODE_ADDRESSES%% *}"; do
    MASTER_PORT=$((20000 + (MASTER_PORT - 20000 + 1) % 10000))
done
export MASTER_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/runs/first/logs/%j_%t_log.out --cpus-per-task=1 --kill-on-bad-exit=1 --wait=60 apptainer exec --userns --nv --bind /scratch/runs --bind /tmp --bind /data /images/deeplense.sif python -u -m submitit.core._submit /scratch/runs/first/logs


# teardown
# What the batch script does after srun: finds out why the attempt ended, and asks for another where that is right.
deeplense_code=$?
# Slurm may be ending the job: what follows must not end by the signal, but has KillWait seconds.
trap '' TERM
deeplense_action="$(apptainer exec --userns --nv --bind /scratch/runs --bind /tmp --bind /data /images/deeplense.sif python -m launch.requeue end --log "$deeplense_log" \
    --scheduler "$(deeplense_facts)" --code "$deeplense_code")"
if [ "$deeplense_action" = requeue ]; then
    # The requeue ends this script, too.
    scontrol requeue "$deeplense_job" && trap - TERM && sleep 60
fi
exit "$deeplense_code"
