#!/bin/bash
# What all job scripts share; sourced, never run. Reads slurm/site.env and runs the pieces of EIM one
# after the other: launch.sh starts them on the nodes, ends.sh decides what follows from how they
# ended. Slurm may requeue the job at any time, and it goes on where it was.
set -uo pipefail

EIM_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$EIM_HOME" || exit 1
# shellcheck source=/dev/null
[[ -e slurm/site.env ]] && source slurm/site.env
: "${NODES:=}" "${GPUS_PER_NODE:=}" "${CPU_RANKS_PER_NODE:=1}" "${ACCOUNT:=}" "${PARTITION:=}" "${TIME:=}" "${SBATCH_FLAGS:=}"
: "${PYTHON:=.venv/bin/python}" "${CONTAINER:=}" "${CONTAINER_MOUNTS:=}" "${LAUNCHER:=srun}"
: "${RUNS:=runs}" "${SCRATCH:=${TMPDIR:-/tmp}}" "${STAGE_SHARDS:=0}"
: "${MAX_RESTARTS:=20}" "${HEALTH:=1}" "${HEALTH_SECONDS:=120}"

readonly USER_ERROR=2 TRY_LATER=75
ATTEMPT=${SLURM_RESTART_COUNT:-0}
DRY_RUN=0

# shellcheck source=slurm/launch.sh
source slurm/launch.sh
# shellcheck source=slurm/ends.sh
source slurm/ends.sh
# shellcheck source=slurm/health.sh
source slurm/health.sh

say() { echo "$(date '+%F %T') [${SLURM_JOB_ID:-dry}.$ATTEMPT] $*"; }

# --- what to run ---------------------------------------------------------------------------------

# shellcheck disable=SC2153  # RECIPE is the job script's own
# ARGUMENTS becomes what every stage is given; the first word that is no key=value is the recipe.
# WORDS becomes what a job of this script is to be given.
read_arguments() {
    local word recipe=$RECIPE
    ARGUMENTS=() WORDS=()
    for word in "$@"; do
        case $word in
            --dry-run) DRY_RUN=1 && continue ;;
            -*) echo "$word: not known; [recipe] [key=value ...] [--dry-run]" >&2 && exit "$USER_ERROR" ;;
            *=*) ARGUMENTS+=("$word") ;;
            *) recipe=$word ;;
        esac
        WORDS+=("$word")
    done
    ARGUMENTS=("recipe=$recipe" "runs=$RUNS" "${ARGUMENTS[@]}")
}

# A shell within somebody's allocation is not the job: there scripts are submitted as anywhere.
in_job() { [[ ${0##*/} = slurm_script ]]; }

# Outside of a job: submit this script with the flags of site.env, and say so.
submit_unless_in_job() {
    in_job && return
    local command
    mapfile -t command < <(sbatch_command)
    command+=("slurm/${0##*/}" "${WORDS[@]}")
    if [[ $DRY_RUN = 1 ]]; then
        show "${command[@]}"
        return
    fi
    say "$(show "${command[@]}")"
    exec "${command[@]}"
}

sbatch_command() {
    printf '%s\n' sbatch
    [[ -n $NODES ]] && printf '%s\n' "--nodes=$NODES"
    [[ -n $GPUS_PER_NODE ]] && printf '%s\n' "--gpus-per-node=$GPUS_PER_NODE"
    [[ -n $ACCOUNT ]] && printf '%s\n' "--account=$ACCOUNT"
    [[ -n $PARTITION ]] && printf '%s\n' "--partition=$PARTITION"
    [[ -n $TIME ]] && printf '%s\n' "--time=$TIME"
    [[ -n $SBATCH_FLAGS ]] && xargs -n1 printf '%s\n' <<< "$SBATCH_FLAGS"
    return 0
}

# --- the whole -----------------------------------------------------------------------------------

# The job of slurm/train_*.sh.
whole_of_eim() { PIECES="shards encoder_adapt st_align llm_tune evaluate report" run_pieces "$@"; }

run_pieces() {
    read_arguments "$@"
    submit_unless_in_job
    begin
    [[ $HEALTH = 1 && $DRY_RUN = 0 ]] && check_health
    local piece
    for piece in $PIECES; do
        [[ -n $STOPPING ]] && requeue "$STOPPING"
        case $piece in
            shards) on_head stages/job.py shards "${ARGUMENTS[@]}" ;;
            report) on_head stages/report.py "${ARGUMENTS[@]}" ;;
            *)
                [[ $DONE = *" $piece "* ]] && say "$piece is done already" && continue
                launch "stages/$piece.py" "${ARGUMENTS[@]}"
                go_on_after "$piece"
                ;;
        esac
    done
    [[ $DRY_RUN = 1 ]] || say "finished: $RUN"
    return 0
}

# The job of slurm/prepare.sh. Whoever is last to end finds all shards written, and completes them.
part_of_the_shards() {
    read_arguments "$@"
    NODES='' GPUS_PER_NODE='' TIME='' submit_unless_in_job # these are of training
    use_container
    local part=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0})) parts=${SLURM_ARRAY_TASK_COUNT:-1}
    on_head stages/prepare.py "part=$part" "parts=$parts" "${ARGUMENTS[@]}"
}
