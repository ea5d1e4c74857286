"""What the stand-in device must do and refuse; run as a program, as PrivateUse1 is per process.

Prints one JSON object: the name of each check -> null, or its traceback.
"""

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import device
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from atoll import backends
from atoll.backends import proof
from atoll.backends.base import Backend

WIDTH, FFN, VOCAB, TOKENS = 48, 80, 61, 17


class Scale(torch.autograd.Function):
    """x * gain with a gradient of its own, as the decoder's functions have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        return x * gain

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor]:
        x, gain = ctx.saved_tensors
        return d_y * gain, (d_y * x).sum((0, 1))


class Block(nn.Module):
    """A small Llama-like model: norm, rotary, attention, SwiGLU, tied head, and a buffer."""

    turn: Tensor

    def __init__(self) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(3)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=made) * 0.2)

        self.embedding, self.gain = weight(VOCAB, WIDTH), weight(WIDTH)
        self.qkv, self.output = weight(3 * WIDTH, WIDTH), weight(WIDTH, WIDTH)
        self.gate, self.up, self.down = (
            weight(FFN, WIDTH),
            weight(FFN, WIDTH),
            weight(WIDTH, FFN),
        )
        self.register_buffer("turn", torch.linspace(0, 1, TOKENS).unsqueeze(-1), persistent=False)

    def loss(self, tokens: Tensor) -> Tensor:
        x = nn.functional.embedding(tokens[:, :-1], self.embedding)
        root = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        normed = Scale.apply(x * root, self.gain) * self.turn.cos()
        q, k, v = (
            part.unflatten(-1, (4, -1)).transpose(1, 2)
            for part in nn.functional.linear(normed, self.qkv).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + nn.functional.linear(mixed.transpose(1, 2).flatten(2), self.output)
        gate = nn.functional.silu(nn.functional.linear(x, self.gate))
        x = x + nn.functional.linear(gate * nn.functional.linear(x, self.up), self.down)
        logits = nn.functional.linear(x, self.embedding)
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].reshape(-1), reduction="sum"
        )


def _tokens() -> Tensor:
    made = torch.Generator().manual_seed(5)
    return torch.randint(0, VOCAB, (2, TOKENS + 1), generator=made)


def _step(model: Any, tokens: Tensor, where: str) -> tuple[float, dict[str, Tensor]]:
    """One grain as the trainer computes it: hooks take each gradient, quantise it and free it."""
    model = model.to(where)
    sums: dict[str, Tensor] = {}

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            flat = gradient.detach().reshape(-1)
            low, high = torch.aminmax(flat)
            assert float(torch.maximum(-low, high)) < 2.0**10
            sums[name] = torch.zeros(flat.numel(), dtype=torch.int64, device=flat.device)
            sums[name][: flat.numel()].add_((flat * 2.0**40).round_().to(torch.int64))

        return hook

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(take(name))
    # The stand-in has no fused attention, as it should: compare with the plain one.
    with sdpa_kernel(SDPBackend.MATH) if where == "cpu" else nullcontext():
        loss = model.loss(tokens.to(where))
        loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    return loss.item(), {name: total.cpu() for name, total in sums.items()}


def check_torch_names_it_and_here_finds_it() -> None:
    found = torch.accelerator.current_accelerator()
    assert found is not None and found.type == device.NAME
    backend = backends.here()
    assert type(backend) is Backend and backend.device_type == device.NAME
    assert backend.available() and backend.num_devices() == 1 and backend.collective == "gloo"
    backend.synchronize()
    backend.prepare(threads=1)
    facts = backend.kind_facts()
    assert facts["device"] == "stand-in" and facts["threads"] == 1 and facts["deterministic"]


def check_a_step_has_the_bits_of_the_cpu() -> None:
    loss, sums = _step(Block(), _tokens(), "cpu")
    own_loss, own = _step(Block(), _tokens(), device.NAME)
    assert own_loss == loss
    assert sorted(own) == sorted(sums) == sorted(name for name, _ in Block().named_parameters())
    assert all(torch.equal(own[name], sums[name]) for name in sums)
    assert all(bool(total.any()) for total in sums.values())


def check_the_decoder_has_the_bits_of_the_cpu() -> None:
    from atoll.model import Model
    from atoll.modeling import initial
    from atoll.modeling.decoder import Decoder

    for tied, qk_norm in ((True, False), (False, True)):
        model = Model(
            layers=2, width=48, heads=4, kv_heads=2, ffn=80, context=32, tied=tied, qk_norm=qk_norm
        ).with_vocab(VOCAB)
        here, there = Decoder(model), Decoder(model)
        initial.fill(here, 1)
        initial.fill(there, 1)
        loss, sums = _step(here, _tokens(), "cpu")
        own_loss, own = _step(there, _tokens(), device.NAME)
        assert own_loss == loss
        assert [name for name in sums if not torch.equal(own[name], sums[name])] == []


def check_the_engine_has_the_bits_of_the_plain_decoder_and_of_company() -> None:
    import asyncio
    from pathlib import Path

    from atoll.model import Model
    from atoll.modeling import initial
    from atoll.modeling.decoder import Decoder
    from atoll.modeling.inference import page_bytes
    from atoll.modeling.loaded import Loaded
    from atoll.modeling.sampling import generate
    from atoll.serving.engine import BuiltIn, open_engine
    from atoll.serving.request import Request, Sampling, Token

    model = Model(layers=2, width=48, heads=4, kv_heads=2, ffn=80, context=64, qk_norm=True)
    decoder = Decoder(model.with_vocab(VOCAB))
    initial.fill(decoder, 1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(8.0)
    loaded = Loaded(
        source=Path("x"),
        model=decoder.model,
        tensors=dict(decoder.named_parameters()),
        tokenizer_json=Path("x"),
    )
    sampling = Sampling(max_tokens=12, temperature=0.0, top_logprobs=1)
    requests = [Request(prompt=[i + 1, 5, 9] * i + [3], sampling=sampling) for i in range(1, 5)]

    async def served(engine: BuiltIn, some: list[Request]) -> list[list[Token]]:
        async def one(request: Request) -> list[Token]:
            events = [event async for event in engine.submit(request)]
            return [event for event in events if isinstance(event, Token)]

        return await asyncio.gather(*(one(request) for request in some))

    memory = 20 * page_bytes(decoder.model, 8)
    where = backends.here().device()
    engine = open_engine(loaded, device=where, memory=memory, page=8)
    together = asyncio.run(served(engine, requests))
    alone = [asyncio.run(served(engine, [request]))[0] for request in requests]
    invariant = engine.invariant
    engine.close()
    assert invariant and together == alone
    for request, tokens in zip(requests, alone, strict=True):
        expected = list(generate(decoder, request.prompt, max_tokens=12, temperature=0.0))
        assert [token.id for token in tokens] == expected


def check_a_buffer_left_on_the_cpu_raises() -> None:
    model = Block().to(device.NAME)
    model.turn = model.turn.cpu()
    try:
        model.loss(_tokens().to(device.NAME))
    except RuntimeError as error:
        assert "meets one on standin" in str(error)
    else:
        raise AssertionError("a tensor of the CPU went into the arithmetic unseen")


def check_numpy_and_cuda_are_refused() -> None:
    x = torch.ones(3, device=device.NAME)
    for wrong in (x.numpy, x.cuda, lambda: torch.ones(3).add_(x), lambda: x.add_(torch.ones(3))):
        try:
            wrong()
        except (RuntimeError, AssertionError):
            continue
        raise AssertionError(f"{wrong} was allowed")


def check_the_update_is_proved_and_roots_find_an_exact_way() -> None:
    backend = backends.here()
    where = backend.device()
    assert backend.prove_exact() == [] and backend.host_update is False
    assert proof.root_failure(backend, where, torch.sqrt) is not None
    x = torch.full((70_001,), 3.0, device=where)
    root = backend.sqrt(x, out=x)
    assert root is x and np.all(backend.host(x).numpy() == np.sqrt(np.float32(3)))


def check_parameters_move_and_are_written_through() -> None:
    model = Block()
    before = model.gain
    model.to(device.NAME)
    gain = model.gain
    assert isinstance(gain, nn.Parameter) and gain.is_leaf and gain.requires_grad
    assert gain.device.type == device.NAME and before.shape == gain.shape
    gain.data.copy_(torch.arange(float(WIDTH)))
    assert gain.detach().cpu().tolist() == list(range(WIDTH))
    flat = gain.detach().view(-1)
    flat[3:5].mul_(2.0)
    assert gain[4].item() == 8.0
    weights = {
        name: torch.zeros_like(p, device=device.NAME) for name, p in Block().named_parameters()
    }
    other = Block().to(device.NAME)
    other.load_state_dict(weights, assign=True)
    weights["gain"].add_(1.0)
    assert other.gain.detach().cpu().tolist() == [1.0] * WIDTH


def check_views_and_integers() -> None:
    total = torch.zeros(10, dtype=torch.int32, device=device.NAME)
    total[2:6].add_(torch.full((4,), 7.6, device=device.NAME).round_().to(torch.int32))
    assert total.tolist() == [0, 0, 8, 8, 8, 8, 0, 0, 0, 0]
    wide = (total >> 1).to(torch.int64)
    assert int((wide * wide).sum()) == 64 and int(total.max()) == 8
    table = torch.arange(6.0).view(2, 3).to(device.NAME)
    assert table.t().stride() == (1, 3) and not table.t().is_contiguous()
    assert table.t().contiguous().flatten().tolist() == [0, 3, 1, 4, 2, 5]
    table.t()[0] = 9.0
    assert table.cpu().tolist() == [[9, 1, 2], [9, 4, 5]]


def main() -> None:
    device.install()
    device.install()
    torch.set_num_threads(1)
    results: dict[str, str | None] = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[name] = None
            except Exception:
                results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
