#!/usr/bin/env bash
# Written by atoll plan --emit mindspeed: island "a" of "dense": start this on each of its nodes.
# For Ascend/MindSpeed-LLM, examples at 0fb42a19c809b27c272df50f74ea29c82a38ace4 and
# 068f4a182d7852066d837506fa976cae7d98243b.
# Island a: 64 processes on 8 nodes of 8 (a node of ascend-910b2 has 8, by the facts).
# Set NODE_RANK on each node (0 is MASTER_ADDR), and what the lines below ask for.
# Set NNODES and NPROC_PER_NODE together where your nodes differ.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

: "${MINDSPEED:?set MINDSPEED to a checkout of https://github.com/Ascend/MindSpeed-LLM at 0fb42a19c809b27c272df50f74ea29c82a38ace4}"
: "${DATA:?set DATA to the prefix of the .bin and .idx files that tools/preprocess_data.py wrote}"
: "${CHECKPOINTS:?set CHECKPOINTS to the absolute path of a folder for checkpoints, the same for all nodes}"
: "${TOKENIZER:?set TOKENIZER to the absolute path of a folder with a Hugging Face tokenizer}"

NNODES=${NNODES:-8}
NPROC_PER_NODE=${NPROC_PER_NODE:-8}
MASTER_PORT=${MASTER_PORT:-29500}
if [ "$NNODES" -gt 1 ]; then
  : "${MASTER_ADDR:?set MASTER_ADDR to the address of node 0}"
  : "${NODE_RANK:?set NODE_RANK to the number of this node, from 0}"
fi
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
NODE_RANK=${NODE_RANK:-0}
if [ "$((NNODES * NPROC_PER_NODE))" -ne 64 ]; then
  echo "the layout has 64 processes, not $NNODES x $NPROC_PER_NODE" >&2
  exit 2
fi

export CUDA_DEVICE_MAX_CONNECTIONS=1
export HCCL_CONNECT_TIMEOUT=3600
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export TASK_QUEUE_ENABLE=2

LAYOUT=(
  --tensor-model-parallel-size 8
  --pipeline-model-parallel-size 2
  --context-parallel-size 1
  --sequence-parallel
  --num-layer-list 17,15
  --use-distributed-optimizer
)

MODEL=(
  --num-layers 32
  --hidden-size 4096
  --ffn-hidden-size 14336
  --num-attention-heads 32
  --kv-channels 128
  --group-query-attention
  --num-query-groups 8
  --seq-length 8192
  --max-position-embeddings 8192
  --position-embedding-type rope
  --rotary-base 500000
  --normalization RMSNorm
  --norm-epsilon 1.0e-05
  --swiglu
  --disable-bias-linear
  --untie-embeddings-and-output-weights
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --padded-vocab-size 128256
  --make-vocab-size-divisible-by 1
)

TRAINING=(
  --micro-batch-size 1
  --global-batch-size 256
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
  --tokenizer-type PretrainedFromHF
  --tokenizer-name-or-path "$TOKENIZER"
)

TOOL=(
  --use-mcore-models
  --transformer-impl local
  --use-flash-attn
  --use-fused-rmsnorm
  --use-fused-rotary-pos-emb
  --use-rotary-position-embeddings
  --no-masked-softmax-fusion
  --no-gradient-accumulation-fusion
  --distributed-backend nccl
  --ckpt-format torch
  --use-fused-swiglu
)

cd "$MINDSPEED"
exec torchrun \
  --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" --node-rank "$NODE_RANK" \
  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
  pretrain_gpt.py \
  "${LAYOUT[@]}" \
  "${MODEL[@]}" \
  "${TRAINING[@]}" \
  "${FILES[@]}" \
  "${TOOL[@]}" "$@"
