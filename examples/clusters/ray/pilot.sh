#!/bin/bash
# Written by atoll plan --emit ray: the pilot of "quickstart", on the head node of the cluster.
# It waits for 4 nodes, the head among them: a run needs what its islands ask for.
# The same command goes on with a run that was interrupted.
set -euo pipefail
RUN=${RUN:-/shared/run} CACHE=${CACHE:-/shared/cache}
PLAN=${PLAN:-/shared/launch/plan.json}

count="import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
until [ "$(python -c "$count" | tail -n 1)" -ge 4 ]; do sleep 2; done
exec atoll train "$PLAN" --run "$RUN" --cache "$CACHE" --engine ray
