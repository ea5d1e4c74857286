# Written by atoll plan --emit torchtitan: the shapes of island "a" of "sparse", and its text.
# train.toml makes torchtitan import it.

from datasets import load_dataset
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.models.deepseek_v3 import deepseekv3_args
from torchtitan.models.deepseek_v3.model.args import DeepSeekV3ModelArgs
from torchtitan.models.moe import MoEArgs

deepseekv3_args["atoll"] = DeepSeekV3ModelArgs(
    dim=2048,
    n_layers=27,
    n_dense_layers=1,
    n_heads=16,
    vocab_size=102400,
    inter_dim=10944,
    moe_inter_dim=1408,
    norm_eps=1e-06,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    rope_theta=10000.0,
    rope_factor=1.0,
    original_seq_len=4096,
    max_seq_len=4096,
    moe_args=MoEArgs(
        num_experts=64,
        num_shared_experts=2,
        top_k=6,
        score_func="sigmoid",
        route_norm=True,
        score_before_experts=False,
    ),
)

DATASETS["atoll"] = DatasetConfig(
    path="",
    loader=lambda path: load_dataset(path, split="train", streaming=True),
    sample_processor=lambda sample: sample["text"],
)
