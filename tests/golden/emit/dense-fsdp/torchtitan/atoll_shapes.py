# Written by atoll plan --emit torchtitan: the shapes of island "a" of "dense", and its text.
# train.toml makes torchtitan import it.

from datasets import load_dataset
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.models.llama3 import llama3_args
from torchtitan.models.llama3.model.args import TransformerModelArgs

llama3_args["atoll"] = TransformerModelArgs(
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    vocab_size=128256,
    multiple_of=14336,
    ffn_dim_multiplier=0.65629005676616,
    norm_eps=1e-05,
    rope_theta=500000.0,
    max_seq_len=8192,
)

DATASETS["atoll"] = DatasetConfig(
    path="",
    loader=lambda path: load_dataset(path, split="train", streaming=True),
    sample_processor=lambda sample: sample["text"],
)
