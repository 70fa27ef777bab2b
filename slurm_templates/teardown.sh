# What the batch script does after srun: finds out why the attempt ended, and asks for another where that is right.
deeplense_code=$?
# Slurm may be ending the job: what follows must not end by the signal, but has KillWait seconds.
trap '' TERM
deeplense_action="$({{ python }} -m launch.requeue end --log "$deeplense_log" \
    --scheduler "$(deeplense_facts)" --code "$deeplense_code")"
if [ "$deeplense_action" = requeue ]; then
    # The requeue ends this script, too.
    scontrol requeue "$deeplense_job" && trap - TERM && sleep 60
fi
exit "$deeplense_code"
