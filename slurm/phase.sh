#!/bin/bash
#SBATCH --job-name=eim-phase
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Some pieces of EIM in a job of their own; slurm/submit.sh makes chains of these.
#   PIECES="st_align llm_tune" sbatch slurm/phase.sh recipe [key=value ...]
RECIPE=quickstart
home=$(dirname "$0")/.. # in a job $0 is Slurm's own copy of this script
[[ -e $home/slurm/common.sh ]] || home=${EIM_HOME:-$SLURM_SUBMIT_DIR}
source "$home/slurm/common.sh" || exit 2 # submit from the repository, or export EIM_HOME
: "${PIECES:?which? PIECES=\"st_align llm_tune\" sbatch slurm/phase.sh recipe}"
run_pieces "$@"
