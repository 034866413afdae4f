#!/bin/bash
#SBATCH --job-name=eim-clipcap
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# The whole of EIM with this model: shards checked, three phases, evaluation, report. Each piece is
# skipped when it is done, so from any interruption the job goes on where it was.
#   sbatch slurm/train_clipcap.sh [recipe] [key=value ...]     with the header above and sbatch's flags
#   bash slurm/train_clipcap.sh [recipe] [key=value ...]       submits it with slurm/site.env
#   bash slurm/train_clipcap.sh --dry-run [...]                says what would run
RECIPE=clipcap_coco
home=$(dirname "$0")/.. # in a job $0 is Slurm's own copy of this script
[[ -e $home/slurm/common.sh ]] || home=${EIM_HOME:-$SLURM_SUBMIT_DIR}
source "$home/slurm/common.sh" || exit 2 # submit from the repository, or export EIM_HOME
whole_of_eim "$@"
