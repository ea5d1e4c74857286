#!/usr/bin/env bash
# Written by atoll plan --emit skypilot: island "a" of "sparse": start this on each of its nodes.
# For NVIDIA/Megatron-LM at 000c4ac24f61159c138b0975def722c65245983c.
# Island a: 16 processes on 2 nodes of 8 (a node of h20 has 8, by the facts).
# The recipe does not say how a router scores and balances its experts: that stays as the tool has
# it.
# Set NODE_RANK on each node (0 is MASTER_ADDR), and what the lines below ask for.
# Set NNODES and NPROC_PER_NODE together where your nodes differ.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

: "${MEGATRON:?set MEGATRON to a checkout of https://github.com/NVIDIA/Megatron-LM at 000c4ac24f61159c138b0975def722c65245983c}"
: "${DATA:?set DATA to the prefix of the .bin and .idx files that tools/preprocess_data.py wrote}"
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

export CUDA_DEVICE_MAX_CONNECTIONS=1

LAYOUT=(
  --tensor-model-parallel-size 1
  --pipeline-model-parallel-size 1
  --context-parallel-size 1
  --expert-model-parallel-size 8
  --expert-tensor-parallel-size 1
  --recompute-granularity full
  --recompute-method uniform
  --recompute-num-layers 1
  --use-distributed-optimizer
)

MODEL=(
  --num-layers 27
  --hidden-size 2048
  --ffn-hidden-size 10944
  --num-attention-heads 16
  --multi-latent-attention
  --q-lora-rank 1536
  --kv-lora-rank 512
  --qk-head-dim 128
  --qk-pos-emb-head-dim 64
  --v-head-dim 128
  --qk-layernorm
  --seq-length 4096
  --max-position-embeddings 4096
  --position-embedding-type rope
  --rotary-base 10000
  --normalization RMSNorm
  --norm-epsilon 1.0e-06
  --swiglu
  --disable-bias-linear
  --untie-embeddings-and-output-weights
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --num-experts 64
  --moe-router-topk 6
  --moe-ffn-hidden-size 1408
  --moe-shared-expert-intermediate-size 2816
  --moe-layer-freq '([0]*1+[1]*26)'
  --moe-grouped-gemm
  --padded-vocab-size 102400
  --make-vocab-size-divisible-by 1
)

TRAINING=(
  --micro-batch-size 1
  --global-batch-size 512
  --train-iters 1000
  --lr 0.0003
  --lr-decay-style cosine
  --min-lr 3.0e-05
  --lr-warmup-iters 100
  --adam-beta1 0.9
  --adam-beta2 0.95
  --adam-eps 1.0e-08
  --weight-decay 0.1
  --clip-grad 1.0
  --bf16
  --seed 7
)

FILES=(
  --data-path "$DATA"
  --split 0.99,0.01,0
  --save "$CHECKPOINTS"
  --load "$CHECKPOINTS"
  --save-interval 100
  --log-interval 1
  --eval-interval 50
  --eval-iters 1
  --tokenizer-type HuggingFaceTokenizer
  --tokenizer-model "$TOKENIZER"
)

TOOL=(
  --moe-token-dispatcher-type alltoall
  --rope-type rope
)

cd "$MEGATRON"
exec torchrun \
  --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" --node-rank "$NODE_RANK" \
  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
  pretrain_gpt.py \
  "${LAYOUT[@]}" \
  "${MODEL[@]}" \
  "${TRAINING[@]}" \
  "${FILES[@]}" \
  "${TOOL[@]}" "$@"
