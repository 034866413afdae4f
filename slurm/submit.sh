#!/bin/bash
# Submits the whole of EIM as a chain of jobs, one a phase, each with nodes and time of its own, and
# says how to watch them. A job starts only when the one before is finished; where one fails, those
# behind it are cancelled.
#   bash slurm/submit.sh recipe [key=value ...]
#   NODES_llm_tune=4 TIME_llm_tune=48:00:00 bash slurm/submit.sh recipe      (or in site.env)
RECIPE=${1:?which recipe? bash slurm/submit.sh recipe [key=value ...]}
EIM_HOME=$(cd "$(dirname "$0")/.." && pwd)
source "$EIM_HOME/slurm/common.sh"
read_arguments "$@"
before=
ids=()
for piece in "${PHASES[@]}" "evaluate report"; do
    name=${piece%% *}
    nodes=NODES_$name time=TIME_$name
    mapfile -t command < <(NODES=${!nodes:-$NODES} TIME=${!time:-$TIME} sbatch_command)
    command+=(--parsable "--job-name=eim-$name" --kill-on-invalid-dep=yes)
    [[ -n $before ]] && command+=("--dependency=afterok:$before")
    if [[ $DRY_RUN = 1 ]]; then
        echo "PIECES='$piece' ${command[*]} slurm/phase.sh $*"
        before="<$name>"
        continue
    fi
    before=$(PIECES=$piece "${command[@]}" slurm/phase.sh "$@") || exit 1
    ids+=("$before")
    echo "$before  $name"
done
[[ $DRY_RUN = 1 ]] || echo "watch: squeue -j $(IFS=, && echo "${ids[*]}")    tail -F eim-*-*.out    stop: scancel ${ids[*]}"
