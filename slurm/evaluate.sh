#!/bin/bash
#SBATCH --job-name=eim-evaluate
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Scores a finished run, and compares it with its baseline where there is one.
#   sbatch slurm/evaluate.sh recipe [baseline=true] [evaluate.split=val] [key=value ...]
RECIPE=quickstart PIECES="evaluate report"
home=$(dirname "$0")/.. # in a job $0 is Slurm's own copy of this script
[[ -e $home/slurm/common.sh ]] || home=${EIM_HOME:-$SLURM_SUBMIT_DIR}
source "$home/slurm/common.sh" || exit 2 # submit from the repository, or export EIM_HOME
run_pieces "$@"
