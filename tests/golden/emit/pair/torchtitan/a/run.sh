#!/usr/bin/env bash
# Written by atoll plan --emit torchtitan: island "a" of "pair": start this on each of its nodes.
# For torchtitan 0.2.2.
# Island a: 16 processes on 2 nodes of 8 (a node of h800 has 8, by the facts).
# Its share of a step's 256 sequences is 192.
# This launches one island alone. The plan's others (b) train the same model: before each update
# their sums of gradients, over all 256 sequences, must be added up. This tool exchanges inside one
# group of processes only; `atoll train` exchanges between islands.
# Set NODE_RANK on each node (0 is MASTER_ADDR), and what the lines below ask for.
# Set NNODES and NPROC_PER_NODE together where your nodes differ.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

: "${DATA:?set DATA to a folder or name that datasets.load_dataset reads, with a column text and a split train}"
: "${CHECKPOINTS:?set CHECKPOINTS to the absolute path of a folder for checkpoints, the same for all nodes}"
: "${TOKENIZER:?set TOKENIZER to the absolute path of a folder with a Hugging Face tokenizer}"

NNODES=${NNODES:-2}
NPROC_PER_NODE=${NPROC_PER_NODE:-8}
MASTER_PORT=${MASTER_PORT:-29500}
if [ "$NNODES" -gt 1 ]; then
  : "${MASTER_ADDR:?set MASTER_ADDR to the address of node 0}"
  : "${NODE_RANK:?set NODE_RANK to the number of this node, from 0}"
fi
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
NODE_RANK=${NODE_RANK:-0}
if [ "$((NNODES * NPROC_PER_NODE))" -ne 16 ]; then
  echo "the layout has 16 processes, not $NNODES x $NPROC_PER_NODE" >&2
  exit 2
fi

export PYTORCH_ALLOC_CONF=expandable_segments:True
export PYTHONPATH="$here:${PYTHONPATH:-}"

FILES=(
  --training.dataset_path "$DATA"
  --model.hf_assets_path "$TOKENIZER"
  --job.dump_folder "$CHECKPOINTS"
)

cd "$here"
exec torchrun \
  --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" --node-rank "$NODE_RANK" \
  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
  -m torchtitan.train --job.config_file "$here/train.toml" \
  "${FILES[@]}" "$@"
