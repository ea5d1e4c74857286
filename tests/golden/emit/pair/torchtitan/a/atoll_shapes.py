# Written by atoll plan --emit torchtitan: the shapes of island "a" of "pair", and its text.
# train.toml makes torchtitan import it.

from datasets import load_dataset
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.models.qwen3 import qwen3_args
from torchtitan.models.qwen3.model.args import Qwen3ModelArgs

qwen3_args["atoll"] = Qwen3ModelArgs(
    dim=1024,
    n_layers=28,
    n_heads=16,
    n_kv_heads=8,
    vocab_size=151936,
    head_dim=128,
    hidden_dim=3072,
    norm_eps=1e-06,
    rope_theta=1000000.0,
    qk_norm=True,
    max_seq_len=4096,
    enable_weight_tying=True,
)

DATASETS["atoll"] = DatasetConfig(
    path="",
    loader=lambda path: load_dataset(path, split="train", streaming=True),
    sample_processor=lambda sample: sample["text"],
)
