#!/bin/bash
# Written by atoll plan --emit slurm: island "slow" of "quickstart": 1 node of 8 devices, h20.
# Its processes dial the pilot at the address in RUN/pilot.json, again when they have died.
# Every task must see all devices of its node: it takes the one of its local number.
#SBATCH --job-name=atoll-slow
#SBATCH --nodes=1
#SBATCH --ntasks=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=1
#SBATCH --gpus-per-node=8
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
RUN=${RUN:-/shared/run}                   # the run's folder, on a file system that all nodes share
LAUNCH=${LAUNCH:-}                        # what goes before atoll, such as: apptainer exec vendor.sif
WAIT=${WAIT:-3600}                        # seconds that an island waits for a pilot
export RUN LAUNCH WAIT

read -r -d '' PROCESS << 'END' || true
# Dial the pilot as process $1 with device $2, again after every end, until the run has ended.
process() {
  local name=slow.$1 lanes=1
  local begun=$SECONDS tried at
  while [ $((SECONDS - begun)) -lt "$WAIT" ]; do
    if [ -s "$RUN/pilot.json" ]; then
      tried=$SECONDS
      at=$(sed -E 's/.*"address": "([^"]+)".*/\1/' "$RUN/pilot.json")
      if $LAUNCH env CUBLAS_WORKSPACE_CONFIG=:4096:8 atoll island \
        --pilot "$at" --token-file "$RUN/token" --name "$name" --device-index "$2" --patience 60 \
        --chip h20 --lanes "$lanes" --threads 1 \
        || [ $((SECONDS - tried)) -gt 60 ]
      then begun=$SECONDS; fi
    elif [ -e "$RUN.ended" ]; then
      return
    fi
    sleep 2
  done
}
process "$SLURM_PROCID" "$SLURM_LOCALID"
END
srun --no-kill --kill-on-bad-exit=0 --wait=0 bash -c "$PROCESS"
