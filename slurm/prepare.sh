#!/bin/bash
#SBATCH --job-name=eim-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --array=0-7
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A.%a.out
# Makes a recipe's shards, each task of the array its part; the last one to end completes them. What
# is written already is left alone, so the same command goes on after any interruption.
#   sbatch [--array=0-31%8] slurm/prepare.sh recipe [key=value ...]
RECIPE=quickstart
home=$(dirname "$0")/.. # in a job $0 is Slurm's own copy of this script
[[ -e $home/slurm/common.sh ]] || home=${EIM_HOME:-$SLURM_SUBMIT_DIR}
source "$home/slurm/common.sh" || exit 2 # submit from the repository, or export EIM_HOME
part_of_the_shards "$@"
