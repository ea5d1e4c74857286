"""A model of a few thousand weights with a tokenizer and a chat template, for tests of serving."""

from pathlib import Path

import torch
from tokenizers import AddedToken

from atoll.data.tokenizer import train_tokenizer
from atoll.model import Model
from atoll.modeling import initial, open_model
from atoll.modeling.decoder import Decoder
from atoll.modeling.huggingface import write_folder

TEXT = "the cat sat on the mat, and the dog ran to the man; then all was well. 三国演义"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system message comes first') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny(
    folder: Path,
    *,
    template: str | None = TEMPLATE,
    context: int = 256,
    broken_token: str | None = None,
    stops: bool = True,
) -> Path:
    """A model folder. A prompt with ``broken_token`` in it makes the logits NaN; without ``stops``
    a greedy answer ends by its length only: the token that would end it is never the likeliest."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([TEXT] * 3, vocab=300)
    special = [AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens(special)
    path = folder / "made.json"
    tokenizer.save(str(path))
    vocab = tokenizer.get_vocab_size()
    model = Model(
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        ffn=48,
        context=context,
        vocab=vocab,
        tied=broken_token is None,  # a tied head would break every request
    )
    decoder = Decoder(model)
    initial.fill(decoder, 4)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(12.0)
        if not stops:
            decoder.embedding.weight[tokenizer.token_to_id("<|im_end|>")] = 0.0
        if broken_token is not None:
            decoder.embedding.weight[tokenizer.token_to_id(broken_token)] = float("nan")
    tensors = dict(decoder.named_parameters())
    stop = tokenizer.token_to_id("<|im_end|>")
    write_folder(folder, model, tensors, path, stop_ids=(stop,), chat_template=template)
    return folder


def open_tiny(folder: Path, **options: object):
    """The same, opened."""
    return open_model(write_tiny(folder, **options))
