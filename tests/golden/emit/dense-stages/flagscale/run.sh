#!/usr/bin/env bash
# Written by atoll plan --emit flagscale: the fleet of "dense": a.
# For flagos-ai/FlagScale at 6c5000a0f52e141a08c81869130ba6d136036e60. run.sh starts it, on the
# first node of the hostfile.
# Meshes stand in the order of their pipeline stages; so do the nodes of the hostfile.
# Island a: 64 processes on 8 nodes of 8 (a node of h800 has 8, by the facts).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

: "${FLAGSCALE:?set FLAGSCALE to a checkout of https://github.com/flagos-ai/FlagScale at 6c5000a0f52e141a08c81869130ba6d136036e60}"
: "${DATA:?set DATA to the prefix of the .bin and .idx files that tools/preprocess_data.py wrote}"
: "${CHECKPOINTS:?set CHECKPOINTS to the absolute path of a folder for checkpoints, the same for all nodes}"
: "${TOKENIZER:?set TOKENIZER to the absolute path of a folder with a Hugging Face tokenizer}"
export DATA TOKENIZER CHECKPOINTS HOSTFILE="$here/hostfile"
if grep -q '^ADDRESS-OF-' "$HOSTFILE"; then
  echo "write the addresses of the nodes into $HOSTFILE" >&2
  exit 2
fi

cd "$FLAGSCALE"
exec python run.py --config-path "$here/conf" --config-name train action=run
