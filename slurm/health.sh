#!/bin/bash
# Are the nodes of this job well? A part of common.sh. What is wrong with a node is found by
# pipeline/health.py and lies in RUN/jobs/JOB/ATTEMPT/health/NODE.

# Every node looks at itself, then all ranks meet once. A node that is ill or does not answer is
# named and left out from now on: the job is requeued without it.
check_health() {
    # shellcheck disable=SC2153  # of launch.sh
    local folder=$FOLDER/health nodes
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    insist some_were_looked_at "$folder" || fail 1 "no node could be looked at; what srun said is above"
    [[ -n $STOPPING ]] && requeue "$STOPPING" # which may have ended the look, too
    leave_out_the_ill "$folder" "$nodes"
    let_the_ranks_meet "$folder" "${nodes//$'\n'/,}"
    if [[ $CODE = 0 ]]; then
        say "all nodes are well"
        rm -f "$RUN/jobs/$SLURM_JOB_ID"/{all-ill,unreached}
        return
    fi
    [[ -n $STOPPING ]] && requeue "$STOPPING"
    leave_out_the_ill "$folder" "$nodes"
    # shellcheck disable=SC2034  # read in ends.sh
    first_time unreached && EXCUSED=1
    requeue "the ranks do not reach one another"
}

# Where srun ends early and no node has said anything, the nodes are not to blame: Slurm's controller
# is away, or an option of srun's is wrong.
some_were_looked_at() {
    local began=$SECONDS
    look_at_the_nodes "$1"
    [[ -n $STOPPING ]] || ((CODE == 0 || SECONDS - began >= HEALTH_SECONDS)) || compgen -G "$1/*" > /dev/null
}

# A quarter of the time for each of the four looks. One node's end must not end the others' looks,
# and what hangs in the kernel outlives even KILL, hence three limits.
look_at_the_nodes() {
    local SRUN_OPTIONS=("${SRUN_OPTIONS[@]}" --kill-on-bad-exit=0 "--wait=$HEALTH_SECONDS" "--time=$((HEALTH_SECONDS / 60 + 2))")
    on_nodes 1 timeout -k 5 "$HEALTH_SECONDS" "$PYTHON" stages/health.py look "$1" "$GPUS_EXPECTED" "$SCRATCH" \
        "$(((HEALTH_SECONDS + 3) / 4))" "${ARGUMENTS[@]}"
}

# Who is ill shows only when all have said whom they miss, so the first to end must not end the others.
let_the_ranks_meet() {
    local SRUN_OPTIONS=("${SRUN_OPTIONS[@]}" --kill-on-bad-exit=0)
    launch stages/health.py meet "$1" "$2" "$HEALTH_SECONDS"
    ((CODE == 0)) || "${INSIDE[@]}" "$PYTHON" stages/health.py judge "$1" "$2"
}

# Returns where all nodes that were heard of are well.
leave_out_the_ill() {
    local folder=$1 nodes=$2 node found ill=() why=
    for node in $nodes; do
        found="no answer within $HEALTH_SECONDS s"
        [[ -s $folder/$node ]] && found=$(< "$folder/$node")
        [[ $found = ok ]] && continue
        say "$node is ill: $found"
        ill+=("$node")
        why+="${why:+; }$node: $found"
    done
    ((${#ill[@]} == 0)) && return
    # No node was well, again: then it is not the nodes.
    ((${#ill[@]} < $(wc -w <<< "$nodes"))) || first_time all-ill ||
        fail "$USER_ERROR" "two starts found no healthy node: $why"
    requeue_without "$why" "${ill[@]}"
}

# Since all nodes were well.
first_time() {
    local mark=$RUN/jobs/$SLURM_JOB_ID/$1
    [[ ! -e $mark ]] && touch "$mark"
}

# The list of a running job cannot be changed, hence the small job that waits until this one is held.
requeue_without() {
    local why=$1 nodes before part=$SLURM_JOB_PARTITION account=${SLURM_JOB_ACCOUNT:-}
    shift
    insist is_ours
    echo "1 failed $why" > "$EIM_OUTCOME_FILE"
    may_fail_again "$why"
    nodes=$(IFS=, && echo "$*")
    before=$(this_job | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [[ -z $before || $before = '(null)' ]] || nodes=$before,$nodes
    say "requeued without $nodes"
    scontrol update JobId="$SLURM_JOB_ID" Comment="left out: ${why:0:500}"
    sbatch --partition="$part" ${account:+--account="$account"} \
        ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} --exclude="$nodes" slurm/release.sh "$SLURM_JOB_ID" "$nodes" && hand_back requeuehold "$why"
    say "no job can be started on the other nodes, so nothing is left out"
    hand_back requeue "$why"
}
