#!/bin/bash
#SBATCH --job-name=eim-release
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=10
#SBATCH --output=/dev/null
# Started by a job that was requeued and held (health.sh): gives it the nodes that it must not have
# and lets it go, or cancels it where too few nodes are left.
#   sbatch slurm/release.sh JOB NODE,NODE,...
job=$1 nodes=$2

until scontrol update JobId="$job" ExcNodeList="$nodes"; do sleep 1; done

field() { scontrol -o show job "$job" | sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }
wanted=$(field NumNodes)
wanted=${wanted%%-*} # of 1-4 the least
left=$(sinfo --noheader --Node --partition="$(field Partition)" --format=%N | sort -u |
    grep -vcxF -f <(scontrol show hostnames "$nodes"))
if ((left < wanted)); then
    scontrol update JobId="$job" Comment="$wanted healthy nodes are wanted, $left are left without $nodes"
    scancel "$job"
fi
scontrol release "$job"
