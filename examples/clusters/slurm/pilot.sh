#!/bin/bash
# Written by atoll plan --emit slurm: the pilot of "quickstart".
# It hands out work and holds no tensors; any node that the islands can dial will do.
# Before Slurm ends the job it asks: the pilot saves, and the requeued job goes on.
#SBATCH --job-name=atoll-pilot
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
RUN=${RUN:-/shared/run}                   # the run's folder, on a file system that all nodes share
CACHE=${CACHE:-/shared/cache}             # where token shards are kept, there too
PLAN=${PLAN:-/shared/launch/plan.json}    # the plan beside this file, there too
LAUNCH=${LAUNCH:-}                        # what goes before atoll, such as: apptainer exec vendor.sif
ADDRESS=${ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}

mkdir -p "$(dirname "$RUN")"
rm -f "$RUN/pilot.json" "$RUN.ended"  # of a pilot before this one
$LAUNCH atoll train "$PLAN" --run "$RUN" --cache "$CACHE" --listen "$ADDRESS:0" &
PILOT=$! ASKED="" code=0
trap 'ASKED=1; kill -TERM $PILOT' TERM
wait "$PILOT" || code=$?
while kill -0 "$PILOT" 2> /dev/null; do  # a signal has ended only the waiting
  code=0
  wait "$PILOT" || code=$?
done
[ -n "$ASKED" ] || echo "$code" > "$RUN.ended"
exit "$code"
