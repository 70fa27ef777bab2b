#!/bin/bash

# Parameters
#SBATCH --account=ab12
#SBATCH --array=0-2%3
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=8
#SBATCH --exclude='n[1-2]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=a100:2
#SBATCH --job-name=train-seed0
#SBATCH --mem=62464M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output='/scratch/my sweeps/logs/%A_%a_0_log.out'
#SBATCH --partition=low
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
# What the batch script does before srun: names the run, opens an attempt, says where the ranks meet.
# It runs on the first node, outside any container: scontrol and sacct are here, and need not be in the image.
deeplense_job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
deeplense_job="${deeplense_job:-$SLURM_JOB_ID}"
export DEEPLENSE_FOLDER="$(sed -n "$((${SLURM_ARRAY_TASK_ID:-0} + 1))p" '/scratch/my sweeps/logs/folders.txt')"
export PYTHONPATH='/scratch/my sweeps/code' PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export DEEPLENSE_SCRATCH="/scratch/me"
export DEEPLENSE_NODE_LOCAL="$SLURM_TMPDIR/me"
export NCCL_DEBUG=WARN
export TITLE='it'"'"'s two words; $HOME'
module load cuda
export GREETING="it's"
deeplense_facts() { scontrol show job --oneliner "$deeplense_job" 2>/dev/null; }
deeplense_history() {
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] ||
        timeout 5 sacct --duplicates --allocations --noheader --parsable2 --format=State --jobs="$deeplense_job" 2>/dev/null
}
# The script lives on when Slurm ends the job, to write down why; it has KillWait seconds for that.
trap : TERM CONT USR1 USR2
deeplense_log='/scratch/my sweeps/logs'/"${deeplense_job}"_0_log.out
DEEPLENSE_ATTEMPT="$(/opt/python/bin/python -m launch.requeue begin --log "$deeplense_log" \
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
srun --unbuffered --output '/scratch/my sweeps/logs/%A_%a_%t_log.out' --cpus-per-task=8 --kill-on-bad-exit=1 --wait=60 /opt/python/bin/python -u -m submitit.core._submit '/scratch/my sweeps/logs'


# teardown
# What the batch script does after srun: finds out why the attempt ended, and asks for another where that is right.
deeplense_code=$?
# Slurm may be ending the job: what follows must not end by the signal, but has KillWait seconds.
trap '' TERM
deeplense_action="$(/opt/python/bin/python -m launch.requeue end --log "$deeplense_log" \
    --scheduler "$(deeplense_facts)" --code "$deeplense_code")"
if [ "$deeplense_action" = requeue ]; then
    # The requeue ends this script, too.
    scontrol requeue "$deeplense_job" && trap - TERM && sleep 60
fi
exit "$deeplense_code"
