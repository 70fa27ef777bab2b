# The part of the batch script after srun: finds out why the attempt ended, and requests another one if appropriate.
deeplense_code=$?
# Slurm may be ending the job: the following commands must ignore the signal; they have KillWait seconds.
trap '' TERM
kill "$deeplense_watching" 2> /dev/null
{ wait "$deeplense_watching"; } 2> /dev/null
[ $? != 86 ] || deeplense_code=86
deeplense_end() {
    deeplense_action="$(deeplense_ask 600 {{ python }} -m launch.requeue end --log "$deeplense_log" \
        --code_folder {{ code }} --scheduler "$(deeplense_facts "$deeplense_job")" --code "$deeplense_code")"
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
{% if notify -%}
# A rank has hung: the command of the user is called while the run goes on.
deeplense_notifying=
[ "$deeplense_code" != 86 ] || { deeplense_notify & deeplense_notifying=$!; }
{% endif -%}
if [ "$deeplense_action" = requeue ] && deeplense_persist deeplense_requeue && [ -z "$deeplense_heard" ]; then
    deeplense_wait 60
fi
[ -z "$deeplense_following$deeplense_moving" ] || kill $deeplense_following $deeplense_moving 2> /dev/null
{% if notify -%}
[ -z "$deeplense_notifying" ] || wait "$deeplense_notifying"
{% endif -%}
exit "$deeplense_code"
