#!/bin/bash
# The start of a job, and of a stage on its nodes; a part of common.sh.
#
# What an attempt leaves lies in RUN/jobs/JOB/ATTEMPT: `outcome`, how its last piece ended
# (pipeline/outcome.py); `stop`, its own wish to stop; `hostfile`.

# Sets what every stage needs; the job's first words are in its log.
begin() {
    in_job || imagine_a_job
    count_ranks
    use_container
    [[ $STAGE_SHARDS = 1 ]] && ARGUMENTS=("data.stage=$SCRATCH/eim-shards-$UID" "${ARGUMENTS[@]}")
    [[ $DRY_RUN = 1 ]] && return
    heed_signals
    find_attempt
    find_master
    note_the_start
    open_folder
    [[ -z $NODES || $NODES = *-* || $NODES = "$SLURM_NNODES" ]] ||
        say "site.env has NODES=$NODES; sbatch was asked for $SLURM_NNODES, which holds"
    say "$RUN from step $STEPS on $SLURM_JOB_NODELIST, $RANKS_PER_NODE rank(s) a node, $MASTER_ADDR:$MASTER_PORT"
}

# For --dry-run: what Slurm would set, as far as it is known before.
imagine_a_job() {
    SLURM_JOB_ID=JOB MASTER_ADDR=FIRST_NODE MASTER_PORT=PORT FOLDER=$RUNS/RUN/jobs/JOB/0
    SLURM_NNODES=${NODES:-$(of_header nodes)} SLURM_GPUS_ON_NODE=${GPUS_PER_NODE:-$(of_header gpus-per-node)}
    SLURM_NNODES=${SLURM_NNODES##*-} SLURM_GPUS_ON_NODE=${SLURM_GPUS_ON_NODE##*:}
}

of_header() { sed -n "s/^#SBATCH --$1=//p" "slurm/${0##*/}"; }

# What Slurm gave wins over what site.env asks for; GPUS_PER_NODE may be 8 or a100:8.
count_ranks() {
    GPUS_EXPECTED=${GPUS_PER_NODE##*:}
    [[ $GPUS_EXPECTED = 0 ]] || GPUS_EXPECTED=${SLURM_GPUS_ON_NODE:-${GPUS_EXPECTED:-1}}
    [[ $GPUS_EXPECTED =~ ^(0|[1-9][0-9]*)$ ]] || fail "$USER_ERROR" "GPUS_PER_NODE=$GPUS_PER_NODE: a number, or type:number"
    RANKS_PER_NODE=$GPUS_EXPECTED
    ((GPUS_EXPECTED > 0)) || RANKS_PER_NODE=$CPU_RANKS_PER_NODE
}

# A job that was submitted from within another has that one's count in its environment.
find_attempt() {
    ATTEMPT=$(restarts)
    ATTEMPT=${ATTEMPT:-${SLURM_RESTART_COUNT:-0}}
    export SLURM_RESTART_COUNT=$ATTEMPT
}

# INSIDE goes before a command of this script's, SRUN_OPTIONS and INSIDE before one of srun's.
use_container() {
    local each mounts=$EIM_HOME:$EIM_HOME
    for each in "$RUNS" "$SCRATCH"; do
        [[ $each = /* ]] && mounts+=,$each:$each
    done
    mounts+=${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
    SRUN_OPTIONS=() INSIDE=()
    [[ -z $CONTAINER || $DRY_RUN = 1 ]] || mkdir -p "$RUNS" # what is not there cannot be mounted
    case $CONTAINER in
        '') ;;
        *.sif) INSIDE=(apptainer exec --nv --bind "$mounts" "$CONTAINER") ;;
        *) SRUN_OPTIONS=("--container-image=$CONTAINER" "--container-workdir=$EIM_HOME" "--container-mounts=$mounts") ;;
    esac
    # What sbatch --export=NONE kept from this script must not keep its own variables from the ranks.
    export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL
}

# A ghost of the last attempt may still hold the old port, hence the restart count in the new one.
find_master() {
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
    getent ahosts "$MASTER_ADDR" > /dev/null ||
        MASTER_ADDR=$(scontrol show node "$MASTER_ADDR" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR MASTER_PORT=$((20000 + (SLURM_JOB_ID * 31 + ATTEMPT) % 12000))
}

# Job ids start anew on a new cluster, so a first attempt clears what is there.
open_folder() {
    FOLDER=$RUN/jobs/$SLURM_JOB_ID/$ATTEMPT
    ((ATTEMPT)) || rm -rf "$RUN/jobs/$SLURM_JOB_ID"
    mkdir -p "$FOLDER" || fail "$USER_ERROR" "runs=$RUNS: $FOLDER cannot be made; see the line above"
    export EIM_STOP_FILE=$FOLDER/stop EIM_OUTCOME_FILE=$FOLDER/outcome
    [[ -z $STOPPING ]] || echo "$STOPPING" > "$EIM_STOP_FILE"
}

# One stage on all ranks; leaves its exit code in CODE, and how it ended in EIM_OUTCOME_FILE.
launch() {
    local stage=$1 hosts=$FOLDER/hostfile
    shift
    case $LAUNCHER in
        srun) on_nodes "$RANKS_PER_NODE" "$PYTHON" "$stage" "$@" ;;
        torchrun) on_nodes 1 "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_NNODES" \
            --nproc-per-node="$RANKS_PER_NODE" --max-restarts=0 --rdzv-backend=c10d \
            --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID.$ATTEMPT" "$stage" "$@" ;;
        deepspeed)
            [[ $DRY_RUN = 1 ]] || scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$RANKS_PER_NODE/" > "$hosts"
            # shellcheck disable=SC2016  # the node's own number, known there only
            on_nodes 1 bash -c 'python=$1; shift; exec "$python" -m deepspeed.launcher.runner --no_ssh --no_local_rank --node_rank="$SLURM_NODEID" "$@"' \
                launch "$PYTHON" --hostfile="$hosts" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" "$stage" "$@" ;;
        *) fail "$USER_ERROR" "LAUNCHER=$LAUNCHER: use srun, torchrun or deepspeed" ;;
    esac
}

# A command on every node, so many tasks on each. In the background, so that traps run meanwhile.
on_nodes() {
    local tasks=$1 command
    shift
    command=(srun --nodes="$SLURM_NNODES" --ntasks=$((SLURM_NNODES * tasks)) --ntasks-per-node="$tasks"
        --cpus-per-task="$(cpus_of_a_task "$tasks")" --kill-on-bad-exit=1 --wait=60
        "${SRUN_OPTIONS[@]}" "${INSIDE[@]}" "$@")
    if [[ $DRY_RUN = 1 ]]; then
        show "${command[@]}"
        CODE=0
        return
    fi
    rm -f "$EIM_OUTCOME_FILE"
    "${command[@]}" &
    local pid=$!
    while wait "$pid"; kill -0 "$pid" 2> /dev/null; do :; done
    wait "$pid"
    CODE=$?
}

cpus_of_a_task() {
    [[ $DRY_RUN = 1 ]] && echo CPUS && return
    local cpus=$((${SLURM_CPUS_ON_NODE:-1} / $1))
    echo $((cpus > 1 ? cpus : 1))
}

# A command as one would type it.
show() {
    local words
    printf -v words '%q ' "$@"
    echo "${words% }"
}

# One process, on the first node, that must end well.
on_head() {
    local command=("${INSIDE[@]}" "$PYTHON" "$@") reason="$1 ended badly"
    if [[ $DRY_RUN = 1 ]]; then
        show "${command[@]}"
        return
    fi
    export EIM_OUTCOME_FILE=${EIM_OUTCOME_FILE:-$(mktemp -u)}
    rm -f "$EIM_OUTCOME_FILE"
    "${command[@]}" && return
    CODE=$?
    [[ -n $STOPPING ]] && requeue "$STOPPING" # which ended the command, too
    [[ -s $EIM_OUTCOME_FILE ]] && read -r _ _ reason < "$EIM_OUTCOME_FILE"
    fail "$CODE" "$reason"
}
