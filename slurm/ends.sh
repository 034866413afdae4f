#!/bin/bash
# What follows from how a piece ended; a part of common.sh.
#   finished   the next piece
#   stopped    the job requeues itself and goes on; where the user asked for the stop, it ends
#   failed     exit code 2 is the user's to mend and ends the job; anything else is tried again,
#              while the run gets further, and MAX_RESTARTS times at most
# The job's own exit code is 0 only when all is finished, so that no dependent job starts too soon.

STOPPING=   # why this attempt is to stop
EXCUSED=0   # what ended this attempt is no fault of the job
CODE=0      # of the piece that ended last
DONE=       # pieces that need not be started

heed_signals() {
    trap 'ask_for_a_stop "the time of this allocation is nearly up"' USR1
    trap 'EXCUSED=1; ask_for_a_stop "Slurm wants the nodes"' TERM
}

# The ranks see the file. Where there is none yet, nothing is started any more.
ask_for_a_stop() {
    STOPPING=$1
    say "$1: asking the ranks to stop"
    [[ -z ${EIM_STOP_FILE:-} ]] || echo "$1" > "$EIM_STOP_FILE"
}

# RUN, STEPS and DONE: the run's folder, steps done in all phases, pieces that need not be started.
how_far() {
    local found
    found=$("${INSIDE[@]}" "$PYTHON" stages/status.py "${ARGUMENTS[@]}" 2>&1) || fail $? "${found##*$'\n'}"
    IFS=$'\t' read -r RUN STEPS DONE < <(grep $'\t' <<< "$found" | tail -n1)
}

note_the_start() {
    how_far
    FIRST_STEP=$STEPS FIRST_DONE=$DONE
}

# Returns only when the next piece may start.
go_on_after() {
    local piece=$1 code state reason
    [[ $DRY_RUN = 1 ]] && return
    # Killed before it could say why.
    [[ -s $EIM_OUTCOME_FILE ]] || echo "$CODE failed exit code $CODE and no word" > "$EIM_OUTCOME_FILE"
    read -r code state reason < "$EIM_OUTCOME_FILE"
    case $state:$reason in
        finished:*) return ;;
        stopped:*/STOP | stopped:stop_after*) fail "$TRY_LATER" "$piece was stopped by $reason; submit again to go on" ;;
        stopped:SIG*) EXCUSED=1 ;; # the ranks had the signal, not this script
        failed:*) [[ $code = "$USER_ERROR" ]] && fail "$USER_ERROR" "$reason" ;;
    esac
    requeue "$piece $state: $reason"
}

# Ends this attempt; the job starts again, where it was. Where Slurm has ended it already, because
# somebody cancelled it or a node is lost, that is Slurm's to decide.
requeue() {
    insist is_ours
    case $(this_job) in
        *Reason=TimeLimit*) EXCUSED=0 ;;
        *JobState=COMPLETING* | *JobState=CANCELLED*) say "Slurm ends this attempt: $1" && exit "$TRY_LATER" ;;
    esac
    how_far
    got_further || the_cluster_failed ||
        fail 1 "$1; nothing was done since the last start, so it is not tried again"
    may_fail_again "$1"
    say "requeued: $1"
    hand_back requeue "$1"
}

# Slurm ends this script when it has heard.
hand_back() {
    trap - USR1 TERM
    insist change_the_job "$1" && sleep 600 && exit "$TRY_LATER"
    fail "$TRY_LATER" "$2; scontrol $1 failed, submit again to go on"
}

change_the_job() { is_ours && scontrol "$1" "$SLURM_JOB_ID"; }

# Whether the job is this attempt's; fails where the controller does not answer. Where this node was
# cut off, Slurm may have started the job again meanwhile, elsewhere: then this script leaves.
is_ours() {
    local restarts
    restarts=$(restarts)
    [[ -n $restarts ]] || return
    ((restarts <= ATTEMPT)) || { say "a newer attempt has the job, this one leaves" && exit "$TRY_LATER"; }
}

# How often Slurm has started this job again.
restarts() { this_job | sed -n 's/.* Restarts=\([0-9]*\) .*/\1/p'; }

# What Slurm knows of it, in one line. The id of one task of an array is that of the array, too.
this_job() { scontrol -o show job "$SLURM_JOB_ID" 2> /dev/null | grep "^JobId=$SLURM_JOB_ID "; }

got_further() { ((STEPS > FIRST_STEP)) || [[ $DONE != "$FIRST_DONE" ]]; }

# Preempted, or a node is lost, which the ranks may notice long before Slurm does.
the_cluster_failed() {
    ((EXCUSED)) && return
    [[ -n $STOPPING ]] && return 1
    ! timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true
}

may_fail_again() {
    (($(failures) <= MAX_RESTARTS)) || fail 1 "$1; MAX_RESTARTS=$MAX_RESTARTS is reached"
}

# How many attempts of this job have failed, or had a node that was ill; stops do not count.
failures() { cat "$RUN/jobs/$SLURM_JOB_ID"/*/outcome 2> /dev/null | grep -c '^[0-9]* failed'; }

# Slurm's controller may be restarting just now.
insist() {
    local try
    for try in {1..30}; do
        "$@" && return
        sleep $((try < 10 ? 2 : 10))
    done
    return 1
}

# The job's end: the reason is the log's last line, and the job's comment.
fail() {
    local reason=${2#error: }
    if [[ $DRY_RUN = 0 && -n ${SLURM_JOB_ID:-} ]] && insist is_ours; then
        scontrol update JobId="$SLURM_JOB_ID" Comment="exit code $1: ${reason:0:500}" 2> /dev/null
    fi
    say "failed: $reason (exit code $1)"
    exit "$1"
}
