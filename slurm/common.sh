#!/bin/bash
# What all job scripts share; sourced, never run. Reads slurm/site.env, runs the stages under the
# chosen launcher, and decides what follows from how a stage ended:
#   finished   the next one
#   stopped    the time is nearly up, or the node is wanted: the job requeues itself, and goes on
#   failed     exit code 2 is the user's to mend and ends the job; anything else is tried again,
#              while the run gets further and at most MAX_RESTARTS times
# The job's own exit code is 0 only when all is finished, so that no dependent job starts too soon.
set -uo pipefail

EIM_HOME=$(cd "${EIM_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}}" && pwd)
cd "$EIM_HOME" || exit 1
# shellcheck source=/dev/null
[[ -e slurm/site.env ]] && source slurm/site.env
: "${NODES:=}" "${GPUS_PER_NODE:=}" "${ACCOUNT:=}" "${PARTITION:=}" "${TIME:=}" "${SBATCH_FLAGS:=}"
: "${PYTHON:=.venv/bin/python}" "${CONTAINER:=}" "${CONTAINER_MOUNTS:=}" "${LAUNCHER:=srun}"
: "${RUNS:=runs}" "${SCRATCH:=${TMPDIR:-/tmp}}"
: "${MAX_RESTARTS:=20}" "${HEALTH:=1}" "${HEALTH_SECONDS:=120}"

readonly USER_ERROR=2 TRY_LATER=75
ATTEMPT=${SLURM_RESTART_COUNT:-0}
DRY_RUN=0
STOPPING=0

say() { echo "$(date '+%F %T') [${SLURM_JOB_ID:-dry}.$ATTEMPT] $*"; }

# --- what to run ---------------------------------------------------------------------------------

# shellcheck disable=SC2153  # RECIPE is the job script's own
# ARGUMENTS becomes what every stage is given; the first word that is no key=value is the recipe.
read_arguments() {
    local word recipe=$RECIPE
    ARGUMENTS=()
    for word in "$@"; do
        case $word in
            --dry-run) DRY_RUN=1 ;;
            -*) echo "$word: not known; [recipe] [key=value ...] [--dry-run]" >&2 && exit "$USER_ERROR" ;;
            *=*) ARGUMENTS+=("$word") ;;
            *) recipe=$word ;;
        esac
    done
    ARGUMENTS=("recipe=$recipe" "runs=$RUNS" "${ARGUMENTS[@]}")
}

# Outside of a job: submit this script with the flags of site.env, and say so.
submit_unless_in_job() {
    [[ -n ${SLURM_JOB_ID:-} || $DRY_RUN = 1 ]] && return
    local command
    mapfile -t command < <(sbatch_command)
    say "${command[*]} $0 $*"
    exec "${command[@]}" "$0" "$@"
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

# --- the start of a job --------------------------------------------------------------------------

# Sets what every stage needs; the job's first words are in its log.
begin() {
    RANKS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
    ((RANKS_PER_NODE > 0)) || RANKS_PER_NODE=${CPU_RANKS_PER_NODE:-1}
    SRUN_OPTIONS=() INSIDE=()
    case $CONTAINER in
        '') ;;
        *.sif) INSIDE=(apptainer exec --nv --bind "$EIM_HOME${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}" "$CONTAINER") ;;
        *) SRUN_OPTIONS=("--container-image=$CONTAINER" "--container-workdir=$EIM_HOME"
            "--container-mounts=$EIM_HOME:$EIM_HOME${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}") ;;
    esac
    export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1
    [[ $DRY_RUN = 1 ]] && return
    trap 'ask_for_a_stop "the time of this allocation is nearly up"' USR1
    trap 'ask_for_a_stop "Slurm wants the nodes"' TERM
    find_master
    status run
    export EIM_FAILURE_FILE=$RUN/failure-$SLURM_JOB_ID.$ATTEMPT
    rm -f "$EIM_FAILURE_FILE"
    FIRST_STEP=$STEPS
    say "$RUN from step $STEPS on $SLURM_JOB_NODELIST, $RANKS_PER_NODE rank(s) a node, $MASTER_ADDR:$MASTER_PORT"
}

# A ghost of the last attempt may still hold the old port, hence the restart count in the new one.
find_master() {
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
    getent ahosts "$MASTER_ADDR" > /dev/null ||
        MASTER_ADDR=$(scontrol show node "$MASTER_ADDR" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR MASTER_PORT=$((20000 + (SLURM_JOB_ID * 31 + ATTEMPT) % 12000))
}

# RUN, STEPS and STATE: the run's folder, steps done in all phases, and how far one piece is.
status() {
    local found
    found=$("${INSIDE[@]}" "$PYTHON" stages/job.py status "$1" "${ARGUMENTS[@]}" | tail -n1) || fail $? "$1: $found"
    read -r RUN STEPS STATE <<< "$found"
}

ask_for_a_stop() {
    STOPPING=1
    say "$1: asking the ranks to stop"
    echo "job $SLURM_JOB_ID.$ATTEMPT: $1" > "$RUN/STOP"
}

# --- running -------------------------------------------------------------------------------------

# One stage on all ranks; leaves its exit code in CODE.
launch() {
    local stage=$1
    shift
    case $LAUNCHER in
        srun) on_nodes "$RANKS_PER_NODE" "$PYTHON" "$stage" "$@" ;;
        torchrun) on_nodes 1 "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_NNODES" \
            --nproc-per-node="$RANKS_PER_NODE" --max-restarts=0 --rdzv-backend=c10d \
            --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID.$ATTEMPT" "$stage" "$@" ;;
        deepspeed)
            scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$RANKS_PER_NODE/" > "$RUN/hostfile"
            # shellcheck disable=SC2016  # the node's own number, known there only
            on_nodes 1 bash -c 'python=$1; shift; exec "$python" -m deepspeed.launcher.runner --no_ssh --node_rank="$SLURM_NODEID" "$@"' \
                launch "$PYTHON" --hostfile="$RUN/hostfile" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" "$stage" "$@" ;;
        *) fail "$USER_ERROR" "LAUNCHER=$LAUNCHER: use srun, torchrun or deepspeed" ;;
    esac
}

# A command on every node, so many tasks on each. In the background, so that traps run meanwhile.
on_nodes() {
    local tasks=$1 command
    shift
    command=(srun --nodes="${SLURM_NNODES:-1}" --ntasks=$((${SLURM_NNODES:-1} * tasks)) --ntasks-per-node="$tasks"
        --cpus-per-task=$(((${SLURM_CPUS_ON_NODE:-1} + tasks - 1) / tasks)) --kill-on-bad-exit=1 --wait=60
        "${SRUN_OPTIONS[@]}" "${INSIDE[@]}" "$@")
    if [[ $DRY_RUN = 1 ]]; then
        echo "${command[*]}"
        CODE=0
        return
    fi
    "${command[@]}" &
    local pid=$!
    while wait "$pid"; kill -0 "$pid" 2> /dev/null; do :; done
    wait "$pid"
    CODE=$?
}

# --- how a job ends ------------------------------------------------------------------------------

# What follows a piece that ended with CODE; returns only when the next one may start.
go_on_after() {
    local piece=$1
    [[ $DRY_RUN = 1 ]] && return
    status "$piece"
    [[ $CODE = 0 && $STATE = finished ]] && return
    if [[ $CODE = 0 ]]; then
        ((STOPPING)) || fail "$TRY_LATER" "$piece was stopped; submit again to go on"
        requeue "$piece stopped at step $STEPS"
    fi
    local cause=$CODE reason="exit code $CODE of $piece"
    [[ -s $EIM_FAILURE_FILE ]] && read -r cause reason < "$EIM_FAILURE_FILE"
    [[ $cause = "$USER_ERROR" ]] && fail "$USER_ERROR" "$reason"
    requeue "$reason"
}

# Ends this attempt; the job starts again, where it was. Not without progress since the last start.
requeue() {
    ((STEPS > FIRST_STEP)) || fail 1 "$1; no step was done since the last start, so it is not tried again"
    ((ATTEMPT < MAX_RESTARTS)) || fail 1 "$1; MAX_RESTARTS=$MAX_RESTARTS is reached"
    say "requeued: $1"
    # A stop file of ours is no wish of the user's that the next attempt should heed.
    rm -f "$RUN/STOP"
    scontrol requeue "$SLURM_JOB_ID" && sleep 600 # Slurm ends this script here
    fail "$TRY_LATER" "$1; scontrol requeue failed, submit again to go on"
}

# The job's end: the reason is the log's last line, and the job's comment.
fail() {
    say "failed: $2 (exit code $1)"
    [[ -n ${SLURM_JOB_ID:-} ]] && scontrol update JobId="$SLURM_JOB_ID" Comment="${2:0:500}" 2> /dev/null
    exit "$1"
}

# --- the whole -----------------------------------------------------------------------------------

PHASES=(encoder_adapt st_align llm_tune)

# The job of slurm/train_*.sh.
whole_of_eim() { PIECES="shards ${PHASES[*]} evaluate report" run_pieces "$@"; }

run_pieces() {
    read_arguments "$@"
    submit_unless_in_job "$@"
    begin
    [[ $HEALTH = 1 && $DRY_RUN = 0 ]] && check_health
    local piece
    for piece in $PIECES; do
        case $piece in
            shards) on_head stages/job.py shards "${ARGUMENTS[@]}" ;;
            report) on_head stages/report.py "${ARGUMENTS[@]}" ;;
            *) launch "stages/$piece.py" "${ARGUMENTS[@]}" && go_on_after "$piece" ;;
        esac
    done
    [[ $DRY_RUN = 1 ]] || say "finished: $RUN"
}

# The job of slurm/prepare.sh. Whoever is last to end finds all shards written, and completes them.
part_of_the_shards() {
    read_arguments "$@"
    submit_unless_in_job "$@"
    local part=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0})) parts=${SLURM_ARRAY_TASK_COUNT:-1}
    on_head stages/prepare.py "part=$part" "parts=$parts" "${ARGUMENTS[@]}"
}

# One process, on the first node.
on_head() {
    if [[ $DRY_RUN = 1 ]]; then
        echo "${INSIDE[*]} $PYTHON $*"
        return
    fi
    "${INSIDE[@]}" "$PYTHON" "$@" || fail $? "$1"
}

# --- health --------------------------------------------------------------------------------------

# Every node looks at itself, then all ranks meet once. A node that is ill or does not answer is
# named and left out from now on: the job is requeued without it.
check_health() {
    local folder=$RUN/health/$SLURM_JOB_ID.$ATTEMPT node found bad=()
    on_nodes 1 timeout "$HEALTH_SECONDS" "$PYTHON" stages/job.py health "$folder" "$(gpus_expected)" "$(date +%s)" "$SCRATCH" "${ARGUMENTS[@]}"
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        found="no answer within $HEALTH_SECONDS s"
        [[ -s $folder/$node ]] && found=$(< "$folder/$node")
        [[ $found = ok ]] || { say "$node: $found" && bad+=("$node"); }
    done
    ((${#bad[@]} == 0)) || leave_out "${bad[@]}"
    launch stages/job.py meet "$HEALTH_SECONDS"
    [[ $CODE = 0 ]] || requeue "the ranks do not reach one another"
}

gpus_expected() { if [[ ${GPUS_PER_NODE:-} = 0 ]]; then echo 0; else echo "$RANKS_PER_NODE"; fi; }

# Requeues this job without these nodes. A running job's list cannot be changed, hence the small job
# that waits until this one is held.
leave_out() {
    local nodes before
    nodes=$(IFS=, && echo "$*")
    ((ATTEMPT < MAX_RESTARTS)) || fail 1 "unhealthy: $nodes; MAX_RESTARTS=$MAX_RESTARTS is reached"
    before=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [[ -z $before || $before = '(null)' ]] || nodes=$before,$nodes
    say "requeued without $nodes"
    sbatch --job-name=eim-release --nodes=1 --ntasks=1 --time=10 --exclude="$nodes" --output=/dev/null \
        --wrap "until scontrol update JobId=$SLURM_JOB_ID ExcNodeList=$nodes; do sleep 1; done; scontrol release $SLURM_JOB_ID"
    scontrol requeuehold "$SLURM_JOB_ID" && sleep 600
    fail "$TRY_LATER" "unhealthy: $nodes; scontrol requeuehold failed"
}
