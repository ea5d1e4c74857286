#!/bin/bash
# Written by atoll plan --emit slurm: the pilot and the islands of "quickstart", all at once.
# bash submit.sh -A account: options go to every sbatch; write others on its line below.
# The folder of this file lies on a file system that all nodes share; RUN and CACHE too.
set -euo pipefail
RUN=${RUN:-/shared/run}                   # the run's folder, on a file system that all nodes share
CACHE=${CACHE:-/shared/cache}             # where token shards are kept, there too
LAUNCH=${LAUNCH:-}                        # what goes before atoll, such as: apptainer exec vendor.sif
here=$(cd "$(dirname "$0")" && pwd)
PLAN=$here/plan.json
export RUN CACHE LAUNCH PLAN

mkdir -p "$(dirname "$RUN")"
rm -f "$RUN.ended"
sbatch "$@" "$here"/pilot.sh
sbatch "$@" "$here"/island-fast.sh
sbatch "$@" "$here"/island-slow.sh
