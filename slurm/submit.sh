#!/bin/bash
# Submits the whole of EIM as a chain of jobs, one a phase, each with nodes and time of its own, and
# says how to watch them. A job starts only when the one before is finished; where one fails, those
# behind it are cancelled.
#   bash slurm/submit.sh recipe [key=value ...]
#   NODES_llm_tune=4 TIME_llm_tune=48:00:00 bash slurm/submit.sh recipe      (or in site.env)
RECIPE=
home=$(dirname "$0")/..
source "$home/slurm/common.sh" || exit 2
read_arguments "$@"
[[ ${ARGUMENTS[0]} = recipe= ]] && echo "which recipe? bash slurm/submit.sh recipe [key=value ...]" >&2 && exit 2
before=
ids=() on=()
every=ALL,
[[ "--export=${SBATCH_EXPORT:-} $SBATCH_FLAGS" = *--export=NONE* ]] && every=
for piece in "shards encoder_adapt" st_align llm_tune "evaluate report"; do
    name=${piece#shards } name=${name% report}
    nodes=NODES_$name time=TIME_$name
    mapfile -t command < <(NODES=${!nodes:-$NODES} TIME=${!time:-$TIME} sbatch_command)
    command+=(--parsable "--job-name=eim-$name" --kill-on-invalid-dep=yes)
    command+=("${on[@]}" "--export=${every}PIECES=$piece")
    [[ -n $before ]] && command+=("--dependency=afterok:$before")
    command+=(slurm/phase.sh "${WORDS[@]}")
    if [[ $DRY_RUN = 1 ]]; then
        show "${command[@]}"
        before=JOB_OF_${name^^}
        continue
    fi
    if ! before=$("${command[@]}"); then
        ((${#ids[@]})) && scancel "${on[@]}" "${ids[@]}"
        exit 1
    fi
    [[ $before = *\;* ]] && on=("--clusters=${before#*;}") # the name of one of several clusters
    before=${before%%;*}
    ids+=("$before")
    echo "$before  $name"
done
[[ $DRY_RUN = 1 ]] || echo "watch: squeue ${on[*]} -j $(IFS=, && echo "${ids[*]}")    tail -F eim-*-*.out    stop: scancel ${on[*]} ${ids[*]}"
