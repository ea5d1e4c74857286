#!/bin/bash
#SBATCH --job-name=atoll
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#
# Slurm: an island a task, by `srun`; the pilot on the first node; docs/clusters.md. No Ray.
#   RECIPE=recipe.toml RUN=/shared/run sbatch examples/clusters/slurm.sh
# An island is one CPU task, or one device: --ntasks-per-node=8 --gpus-per-node=8.
#
# RECIPE   the recipe; without it this job's islands dial the pilot of RUN, which another job started
# RUN      the run's folder, absolute, on a file system that all nodes share; so is CACHE
# CHIP     what an island is (atoll chips); THREADS a lane, for CPUs
# ISLAND   how they are named: ISLAND-0, ISLAND-1, ... Each job of a run has a name of its own
# OTHERS   a file of [[island]] tables with start = "dial-in" that other jobs start
# LAUNCH   what goes before atoll on the nodes, such as: apptainer exec vendor.sif
set -euo pipefail
: "${RUN:?the folder of the run}"
ISLAND=${ISLAND:-node} CHIP=${CHIP:-cpu} THREADS=${THREADS:-1} CACHE=${CACHE:-$RUN.cache}
LAUNCH=${LAUNCH:-} OTHERS=${OTHERS:-} TASKS=${SLURM_NTASKS:?run this with sbatch}

if [ -n "${RECIPE:-}" ]; then
  FLEET=$RUN.fleet.toml
  [ -z "$OTHERS" ] || cat "$OTHERS" > "$FLEET"
  [ -n "$OTHERS" ] || : > "$FLEET"
  for ((i = 0; i < TASKS; i++)); do
    printf '[[island]]\nname = "%s-%s"\nchip = "%s"\nthreads = %s\nstart = "dial-in"\n' \
      "$ISLAND" "$i" "$CHIP" "$THREADS" >> "$FLEET"
  done
  rm -f "$RUN/pilot.json"  # of a pilot that was killed
  ADDRESS=${ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}
  atoll train "$RECIPE" --fleet "$FLEET" --run "$RUN" --cache "$CACHE" --listen "$ADDRESS:0" &
  PILOT=$!
  # Slurm asks before it ends the job: the pilot saves, and the requeued job goes on.
  trap 'kill -TERM $PILOT' TERM
fi

until [ -s "$RUN/pilot.json" ]; do
  [ -z "${PILOT:-}" ] || kill -0 "$PILOT"  # it has ended: so does this script
  sleep 1
done
AT=$(sed -E 's/.*"address": "([^"]+)".*/\1/' "$RUN/pilot.json")

# An island that dies dials in again and is healed; status 0 is the run's own end.
# What the chip wants in its environment must be there before Python starts.
WANTED='import sys; from atoll import facts
print(*(f"{k}={v}" for k, v in facts.chip(sys.argv[1]).environment.items()))'
export RUN ISLAND CHIP THREADS LAUNCH AT WANTED
srun --no-kill --kill-on-bad-exit=0 --wait=0 bash -c '
  SETTINGS=$($LAUNCH python -c "$WANTED" "$CHIP")
  while [ -s "$RUN/pilot.json" ]; do
    if env $SETTINGS $LAUNCH atoll island --pilot "$AT" --token-file "$RUN/token" --name "$ISLAND-$SLURM_PROCID" \
      --chip "$CHIP" --lanes 1 --threads "$THREADS" --device-index "$SLURM_LOCALID"
    then break; fi
    sleep 5
  done' &
ISLANDS=$!

[ -z "${PILOT:-}" ] || wait "$PILOT" && code=0 || code=$?
[ -z "${PILOT:-}" ] || ! kill -0 "$PILOT" 2> /dev/null || { wait "$PILOT" && code=0 || code=$?; }
wait "$ISLANDS" || true
exit "$code"
