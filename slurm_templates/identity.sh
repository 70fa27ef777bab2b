# Remove variables inherited from another job, a launcher or a container that submitted this job.
unset {{ stale }}
[ -z "${APPTAINER_CONTAINER:-}${APPTAINER_NAME:-}${SINGULARITY_CONTAINER:-}${SINGULARITY_NAME:-}" ] ||
    unset ${!APPTAINER@} ${!SINGULARITY@}
# Slurm sets at most one of these; two come from two jobs, and srun refuses to choose.
case "${!SLURM_MEM_PER_@}" in *" "*) unset ${!SLURM_MEM_PER_@} ;; esac
if [ -n "${SLURM_RESTART_COUNT:-}" ]; then
    case "$(deeplense_ask 30 scontrol show job --oneliner "$SLURM_JOB_ID" 2> /dev/null)" in
    *" Restarts=0 BatchFlag="*) unset SLURM_RESTART_COUNT ;;
    esac
fi
export {{ code }}
