#!/bin/bash
#SBATCH --job-name=eim-tensorboard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.out
# TensorBoard of all runs on a node of the cluster; its log says how to reach it from home.
#   sbatch slurm/tensorboard.sh [folder of runs]     bash ...: with account, partition and flags of site.env
RECIPE=quickstart
home=$(dirname "$0")/.. # in a job $0 is Slurm's own copy of this script
[[ -e $home/slurm/common.sh ]] || home=${EIM_HOME:-$SLURM_SUBMIT_DIR}
source "$home/slurm/common.sh" || exit 2 # submit from the repository, or export EIM_HOME
[[ ${1:-} = --dry-run ]] && DRY_RUN=1 && shift
WORDS=("$@")
NODES='' GPUS_PER_NODE='' TIME='' submit_unless_in_job # these are of training
[[ $DRY_RUN = 1 ]] && exit
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
host=$(hostname)
say "on your own machine: ssh -N -L 6006:$host:$port ${USER:-you}@${SLURM_SUBMIT_HOST:-login-node}"
say "then open http://localhost:6006"
use_container
exec "${INSIDE[@]}" "$PYTHON" -m tensorboard.main --logdir "${1:-$RUNS}" --host "$host" --port "$port"
