"""Text in, grains of tokens out: corpora, tokenizers, token shards, and the sampler.

`prepare` turns the [data] of a recipe into shards, once; `Sampler` gives the same sequences for
(step, grain) to whoever asks. Nothing here imports torch. Read on in `corpora.py`, `tokenizer.py`,
`shards.py`, `sampler.py`.
"""

from atoll.data.sampler import Sampler
from atoll.data.shards import Shards, matched_model, open_shards, prepare

__all__ = ["Sampler", "Shards", "matched_model", "open_shards", "prepare"]
