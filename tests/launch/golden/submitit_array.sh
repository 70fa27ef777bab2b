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
# The part of the batch script before srun: queues a successor job, opens an attempt, sets the rendezvous of the ranks.
# It runs on the first node, outside any container, so the image does not need Slurm's commands.
# launch/README.md describes the states of a run, and what happens if one of these commands fails, is killed or hangs.
# When Slurm ends the job, the script keeps running to record the reason; it has KillWait seconds for that.
trap : TERM CONT USR1 USR2
deeplense_say() { echo "deeplense: $*"; }
# Pauses without a separate process, which would outlive the script.
deeplense_wait() { read -rt "$1" <> <(:) || :; }
# Runs a program with a time limit in seconds. It ignores the signal with which Slurm ends a job.
deeplense_ask() {
    timeout --signal=KILL "${DEEPLENSE_ANSWER_S:-$1}" bash -c 'trap "" TERM; exec "$@"' - "${@:2}"
}
# Repeats a command until it succeeds (code 0), is refused (2), is over (3) or must wait for other jobs (4), with growing pauses, for hours, as disks
# and controllers may become available again. An error of the code itself (70) is permanent: it is tried four times.
deeplense_persist() {
    local code pause="${DEEPLENSE_PAUSE_S:-5}" until=$((SECONDS + ${DEEPLENSE_PATIENCE_S:-21600})) errors=0
    while :; do
        "$@"
        code=$?
        case $code in 0 | 2 | 3 | 4) return $code ;; 70) errors=$((errors + 1)) ;; esac
        [ $SECONDS -lt $until ] && [ $errors -lt 4 ] || return $code
        deeplense_say "$1: exit code $code; trying again in $pause s"
        deeplense_wait $pause
        pause=$((pause < 150 ? 2 * pause : 300))
    done
}
# Remove variables inherited from another job, a launcher or a container that submitted this job.
unset ${!SLURM_STEP@} ${!SLURM_CPU_BIND@} ${!SLURM_MEM_BIND@} ${!SLURM_GPU_BIND@} ${!SLURM_SRUN_@} ${!SLURM_UMASK@} ${!SRUN_@} ${!SBATCH_@} ${!SALLOC_@} ${!_SLURM_@} ${!SUBMITIT_@} ${!PMI@} ${!PRTE_@} ${!OMPI_@} ${!MV2_@} ${!MPI_LOCAL@} ${!HYDRA_@} ${!I_MPI_@} ${!PALS_@} ${!TORCHELASTIC_@} ${!ACCELERATE_@} ${!FSDP_@} ${!PARALLELISM_CONFIG_@} ${!MEGATRON_LM_@} ${!OMP_@} ${!GOMP_@} ${!KMP_@} ${!MKL_NUM_THREADS@} ${!OPENBLAS_NUM_THREADS@} ${!BLIS_NUM_THREADS@} ${!NUMEXPR_NUM_THREADS@} ${!NUMEXPR_MAX_THREADS@} ${!VECLIB_MAXIMUM_THREADS@} RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_NAME ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT DEEPLENSE_ATTEMPT DEEPLENSE_FOLDER DEEPLENSE_CODE DEEPLENSE_NODE_ADDRESSES DEEPLENSE_SCRATCH DEEPLENSE_NODE_LOCAL DEEPLENSE_VISIBLE_DEVICES SLURM_ACCOUNT SLURM_BCAST SLURM_COMPRESS SLURM_CORE_SPEC SLURM_CPU_FREQ_REQ SLURM_CPUS_PER_GPU SLURM_DEPENDENCY SLURM_DISTRIBUTION SLURM_DIST_PLANESIZE SLURM_EPILOG SLURM_EXACT SLURM_EXCLUSIVE SLURM_EXPORT_ENV SLURM_GPU_FREQ SLURM_GRES SLURM_GRES_FLAGS SLURM_HINT SLURM_IMMEDIATE SLURM_KILL_BAD_EXIT SLURM_LABELIO SLURM_MPI_TYPE SLURM_MULTI_PROG SLURM_NETWORK SLURM_NO_KILL SLURM_OPEN_MODE SLURM_OVERCOMMIT SLURM_OVERLAP SLURM_PARTITION SLURM_PROLOG SLURM_QOS SLURM_REMOTE_CWD SLURM_RESERVATION SLURM_SIGNAL SLURM_STDERRMODE SLURM_STDINMODE SLURM_STDOUTMODE SLURM_TASK_EPILOG SLURM_TASK_PROLOG SLURM_THREAD_SPEC SLURM_THREADS SLURM_THREADS_PER_CORE SLURM_TIMELIMIT SLURM_UNBUFFEREDIO SLURM_WAIT SLURM_WHOLE SLURM_WORKING_DIR SLURM_CLUSTERS
[ -z "${APPTAINER_CONTAINER:-}${APPTAINER_NAME:-}${SINGULARITY_CONTAINER:-}${SINGULARITY_NAME:-}" ] ||
    unset ${!APPTAINER@} ${!SINGULARITY@}
# Slurm sets at most one of these; two come from two jobs, and srun refuses to choose.
case "${!SLURM_MEM_PER_@}" in *" "*) unset ${!SLURM_MEM_PER_@} ;; esac
if [ -n "${SLURM_RESTART_COUNT:-}" ]; then
    case "$(deeplense_ask 30 scontrol show job --oneliner "$SLURM_JOB_ID" 2> /dev/null)" in
    *" Restarts=0 BatchFlag="*) unset SLURM_RESTART_COUNT ;;
    esac
fi
export DEEPLENSE_CODE='/scratch/my sweeps/code'
deeplense_environment="$(export -p)"
deeplense_job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
deeplense_job="${deeplense_job:-$SLURM_JOB_ID}"
# The jobs before this successor job, newest first, separated by dots.
deeplense_after="${DEEPLENSE_AFTER:-}"
unset DEEPLENSE_AFTER
deeplense_following= deeplense_moving= deeplense_action=
deeplense_follower="deeplense-after-$(IFS=. && set -- $deeplense_job $deeplense_after && echo "${*:1:5}")"
# Moves jobs that wait for the success of a job before this successor job to this one.
deeplense_move() {
    local waiting job dependency entry moved old olds
    IFS=. read -ra olds <<< "$deeplense_after"
    waiting="$(deeplense_ask 60 squeue --me --noheader --array --format='%i|%E')" || return 1
    while IFS='|' read -r job dependency; do
        moved=
        case "$dependency" in *afterok:*) ;; *) continue ;; esac
        case "$dependency" in *"?"*) continue ;; esac
        for entry in ${dependency//,/ }; do
            case "$entry" in *"(ful"*) continue ;; esac
            entry="${entry%(*}"
            for old in "${olds[@]}"; do
                [ "$entry" != "afterok:$old" ] || entry="afterok:$deeplense_job"
            done
            moved+="${moved:+,}$entry"
        done
        case ",$moved," in *",afterok:$deeplense_job,"*) ;; *) continue ;; esac
        deeplense_ask 60 scontrol update jobid="$job" dependency="$moved" < /dev/null || return 1
    done <<< "$waiting"
    return 0
}
# Ends the script with an exit code, without requeue, and cancels the successor job. Jobs that wait for a finished run
# are moved to this job if they could not be before.
deeplense_leave() {
    local left=
    [ -z "$deeplense_moving" ] || ! kill -0 $deeplense_moving 2> /dev/null || left=1
    [ -z "$deeplense_following$deeplense_moving" ] || kill $deeplense_following $deeplense_moving 2> /dev/null
    [ -z "$left" ] || [ "$deeplense_action" != finished ] || deeplense_move
    deeplense_ask 60 scancel --me --name="$deeplense_follower"
    [ "$1" = 0 ] || deeplense_ask 60 scontrol update jobid="$deeplense_job" requeue=0
    exit "$1"
}
deeplense_folder() {
    local folders
    mapfile -t folders < '/scratch/my sweeps/logs/folders.txt' && DEEPLENSE_FOLDER="${folders[${SLURM_ARRAY_TASK_ID:-0}]}" && [ -n "$DEEPLENSE_FOLDER" ]
}
deeplense_persist deeplense_folder || deeplense_leave 1
# submitit looks for its pickle under the id of this job, which was not known when the pickle was written.
deeplense_pickle() {
    local kept='/scratch/my sweeps/logs/commands_c9c2822cb2fd_'"${SLURM_ARRAY_TASK_ID:-0}" named='/scratch/my sweeps/logs'/"${deeplense_job}_submitted.pkl"
    [ -e "$named" ] || { deeplense_ask 60 cp "$kept" "$named.part" && deeplense_ask 60 mv "$named.part" "$named"; }
}
deeplense_persist deeplense_pickle || deeplense_leave 1
export DEEPLENSE_FOLDER
export PYTHONPATH='/scratch/my sweeps/code' PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export DEEPLENSE_SCRATCH="/scratch/me"
export DEEPLENSE_NODE_LOCAL="$SLURM_TMPDIR/me"
export NCCL_DEBUG=WARN
export TITLE='it'"'"'s two words; $HOME'
module load cuda
export GREETING="it's"
# Shell options that these lines have set must not end this script.
set +eu
# Prints what Slurm reports about a job, and how each of its starts ended.
deeplense_facts() { deeplense_ask 30 scontrol show job --oneliner "$1" 2> /dev/null; }
deeplense_history() {
    deeplense_ask 10 sacct --duplicates --allocations --noheader --parsable2 --format=State --jobs="$1" 2> /dev/null
}
# Returns an exit code. If Python itself has failed, returns 2 if the copy of the code has changed or is gone.
deeplense_whole() {
    [ "$1" != 1 ] || deeplense_ask 600 /opt/python/bin/python -m launch.copied '/scratch/my sweeps/code' || return
    return "$1"
}
deeplense_log='/scratch/my sweeps/logs'/"${deeplense_job}"_0_log.out
deeplense_begin() {
    local options=(--log "$deeplense_log" --code_folder '/scratch/my sweeps/code' --scheduler "$(deeplense_facts "$deeplense_job")") number
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || options+=(--history "$(deeplense_history "$deeplense_job")")
    local before="${deeplense_after%%.*}"
    [ -z "$before" ] || options+=(--after "$deeplense_after" --after_scheduler "$(deeplense_facts "$before")"
        --after_history "$(deeplense_history "$before")")
    number="$(deeplense_ask 600 /opt/python/bin/python -m launch.requeue begin "${options[@]}")"
    deeplense_whole $?
    local code=$?
    case $code in 0 | 4) DEEPLENSE_ATTEMPT="$number" ;; 3) deeplense_action="$number" ;; esac
    return $code
}
# Returns this job to the queue until the jobs that it waits for have finished. Slurm starts such a job only by mistake,
# for example if a user has released it.
deeplense_return() {
    local parent parents=($deeplense_parents)
    for parent in $deeplense_parents; do
        [ -n "$(deeplense_facts "$parent")" ] || deeplense_parents=
    done
    if [ -n "$deeplense_parents" ] && deeplense_ask 60 scontrol requeue "$deeplense_job"; then
        deeplense_ask 60 scontrol update jobid="$deeplense_job" dependency="$(IFS=, && echo "${parents[*]/#/afterok:}")"
    else
        deeplense_ask 60 scontrol requeuehold "$deeplense_job"
    fi
    deeplense_wait 60
    exit 1
}
deeplense_persist deeplense_begin
case $? in
0) ;;
3)
    # The job before has finished the run, but its script died: jobs that wait for it would never start.
    [ -z "$deeplense_after" ] || [ "$deeplense_action" != finished ] || deeplense_persist deeplense_move
    deeplense_leave 0
    ;;
4) deeplense_parents="$DEEPLENSE_ATTEMPT" && deeplense_return ;;
*) deeplense_leave 1 ;;
esac
export DEEPLENSE_ATTEMPT
if [ -n "$deeplense_after" ] && ! deeplense_move; then
    deeplense_persist deeplense_move &
    deeplense_moving=$!
fi
# Queues a successor job: the same script, with the original environment, which starts when this job has ended for good.
# It makes the next attempt if this job could not request one. If the run is over, it is cancelled or exits.
deeplense_follow() {
    local there
    there="$(deeplense_ask 60 squeue --me --noheader --name="$deeplense_follower" --format=%i)" || return 1
    [ -z "$there" ] || return 0
    (
        element="${SLURM_ARRAY_TASK_ID:-}"
        unset $(compgen -e)
        eval "$deeplense_environment"
        conf="${SLURM_CONF:-}"
        unset ${!SLURM_@}
        [ -z "$conf" ] || export SLURM_CONF="$conf"
        export DEEPLENSE_AFTER="${deeplense_follower#deeplense-after-}"
        deeplense_ask 60 sbatch --parsable --export=ALL --dependency="afterany:$deeplense_job" \
            --job-name="$deeplense_follower" ${element:+--array="$element"} "$0"
    ) > /dev/null
}
deeplense_persist deeplense_follow &
deeplense_following=$!
deeplense_say "attempt $DEEPLENSE_ATTEMPT begins"
deeplense_meet() {
    local node told nodes
    nodes=($(deeplense_ask 60 scontrol show hostnames "$SLURM_JOB_NODELIST")) && [ -n "$nodes" ] || return 1
    MASTER_ADDR="${nodes[0]}" DEEPLENSE_NODE_ADDRESSES=
    for node in "${nodes[@]:0:2}"; do
        told="$(deeplense_ask 60 scontrol show node --oneliner "$node")" || return 1
        [[ $told =~ NodeAddr=([^ ]+) ]] && DEEPLENSE_NODE_ADDRESSES+="${BASH_REMATCH[1]} "
    done
    return 0
}
deeplense_persist deeplense_meet || deeplense_leave 1
export MASTER_ADDR DEEPLENSE_NODE_ADDRESSES
# A free port of this node, different in each attempt.
MASTER_PORT=$((20000 + (${SLURM_JOB_ID} * 131 + ${SLURM_RESTART_COUNT:-0} * 17) % 10000))
deeplense_listens() { (exec 3<>"/dev/tcp/$1/$MASTER_PORT") 2>/dev/null; }
while deeplense_listens 127.0.0.1 || deeplense_listens "${DEEPLENSE_NODE_ADDRESSES%% *}"; do
    MASTER_PORT=$((20000 + (MASTER_PORT - 20000 + 1) % 10000))
done
export MASTER_PORT
# srun may wait forever before a rank starts. The first rank runs on this node, and Slurm sets the size of its step.
deeplense_has_rank() {
    local file found
    for file in /proc/[0-9]*/environ; do
        { mapfile -d '' -t found < "$file"; } 2> /dev/null || continue
        case " ${found[*]} " in *" SLURM_STEP_NUM_TASKS="*) ;; *) continue ;; esac
        case " ${found[*]} " in *" DEEPLENSE_ATTEMPT=$DEEPLENSE_ATTEMPT "*) ;; *) continue ;; esac
        case " ${found[*]} " in *" DEEPLENSE_FOLDER=$DEEPLENSE_FOLDER "*) return 0 ;; esac
    done
    return 1
}
# Ends srun if no rank has started for an hour; this counts as a hang (86).
deeplense_watch() {
    local child limit="${DEEPLENSE_START_S:-3600}"
    local until=$((SECONDS + limit))
    while [ $SECONDS -lt $until ]; do
        deeplense_wait $((limit < 5 ? limit : 5))
        [ -d /proc/$$ ] && ! deeplense_has_rank || return 0
    done
    deeplense_say "no rank has started for $limit s; ending srun"
    # The script ends this watch once srun is gone.
    trap '' TERM
    for child in $(< /proc/$$/task/$$/children); do
        case "$deeplense_before $BASHPID " in *" $child "*) ;; *) kill -KILL "$child" ;; esac
    done
    return 86
}
deeplense_before=" $(< /proc/$$/task/$$/children) "
deeplense_watch &
deeplense_watching=$!

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/my sweeps/logs/%A_%a_%t_log.out' --cpus-per-task=8 --open-mode=append --export=ALL --kill-on-bad-exit=1 --wait=60 /opt/python/bin/python -u -m submitit.core._submit '/scratch/my sweeps/logs'


# teardown
# The part of the batch script after srun: finds out why the attempt ended, and requests another one if appropriate.
deeplense_code=$?
# Slurm may be ending the job: the following commands must ignore the signal; they have KillWait seconds.
trap '' TERM
kill "$deeplense_watching" 2> /dev/null
{ wait "$deeplense_watching"; } 2> /dev/null
[ $? != 86 ] || deeplense_code=86
deeplense_end() {
    deeplense_action="$(deeplense_ask 600 /opt/python/bin/python -m launch.requeue end --log "$deeplense_log" \
        --code_folder '/scratch/my sweeps/code' --scheduler "$(deeplense_facts "$deeplense_job")" --code "$deeplense_code")"
    deeplense_whole $?
}
deeplense_persist deeplense_end || deeplense_action=requeue
case "$deeplense_action" in
finished) deeplense_leave 0 ;;
end) deeplense_leave "$deeplense_code" ;;
esac
# From here on, the signal means that Slurm has accepted the request.
trap deeplense_heard=1 TERM
deeplense_requeue() {
    local told
    [ -z "$deeplense_heard" ] || return 0
    # Slurm may have restarted the job by itself.
    told="$(deeplense_facts "$deeplense_job")"
    [[ $told =~ \ Restarts=([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -gt "${SLURM_RESTART_COUNT:-0}" ] && return 0
    told="$(deeplense_ask 60 scontrol requeue "$deeplense_job" 2>&1)" || [ -n "$deeplense_heard" ] && return 0
    deeplense_say "requested another attempt: $told"
    case "$told" in
    *"pending execution"*) return 0 ;;
    *disabled* | *denied* | *"Invalid job id"* | *"not supported"* | *"already completed"*) return 2 ;;
    esac
    return 1
}
if [ "$deeplense_action" = requeue ] && deeplense_persist deeplense_requeue && [ -z "$deeplense_heard" ]; then
    deeplense_wait 60
fi
[ -z "$deeplense_following$deeplense_moving" ] || kill $deeplense_following $deeplense_moving 2> /dev/null
exit "$deeplense_code"
