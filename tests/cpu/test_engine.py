"""The built-in engine on a small model: the same tokens alone and in company, and no leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.modeling.inference import page_bytes
from atoll.modeling.loaded import Loaded
from atoll.modeling.sampling import generate
from atoll.serving.engine import BuiltIn, open_engine
from atoll.serving.request import Busy, Closed, Finish, Request, Sampling, Token, TooLong

VOCAB, PAGE = 97, 16


def lively(**changes: Any) -> Decoder:
    """A random model whose logits differ enough that a wrong bit would change a choice."""
    base = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "context": 96}
    decoder = Decoder(Model.model_validate({**base, "vocab": VOCAB, **changes}))
    initial.fill(decoder, 4)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(8.0)
    return decoder


def loaded(decoder: Decoder) -> Loaded:
    tensors = dict(decoder.named_parameters())
    return Loaded(source=Path("x"), model=decoder.model, tensors=tensors, tokenizer_json=Path("x"))


@pytest.fixture
def started() -> Iterator[Callable[..., BuiltIn]]:
    """Starts engines of small models, and closes them."""
    engines: list[BuiltIn] = []

    def start(decoder: Decoder | None = None, **options: Any) -> BuiltIn:
        decoder = decoder or lively()
        pages = options.pop("pages", 64)
        memory = pages * page_bytes(decoder.model, PAGE)
        engines.append(open_engine(loaded(decoder), page=PAGE, memory=memory, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, length)]


def greedy(ids: list[int], max_tokens: int, **more: Any) -> Request:
    return Request(prompt=ids, sampling=Sampling(max_tokens=max_tokens, temperature=0.0, **more))


async def all_of(engine: BuiltIn, request: Request) -> tuple[list[Token], Finish]:
    found = [event async for event in engine.submit(request)]
    assert isinstance(found[-1], Finish)
    return [event for event in found[:-1] if isinstance(event, Token)], found[-1]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_greedy_is_what_the_plain_decoder_generates(started: Callable[..., BuiltIn]) -> None:
    for shape in ({}, {"tied": False, "qk_norm": True, "head_dim": 24}, {"kv_heads": 4}):
        decoder = lively(**shape)
        engine = started(decoder)
        for length in (1, 15, 16, 17, 40):
            ids = prompt(length, length)
            tokens, finish = run(all_of(engine, greedy(ids, 30)))
            expected = list(generate(decoder, ids, max_tokens=30, temperature=0.0))
            assert [token.id for token in tokens] == expected
            assert finish == Finish("length", "", finish.cached_tokens)


def test_alone_and_among_others_bit_for_bit(started: Callable[..., BuiltIn]) -> None:
    sampling = Sampling(max_tokens=40, seed=5, temperature=1.3, top_logprobs=2)
    request = Request(prompt=prompt(1, 20), sampling=sampling)
    alone, _ = run(all_of(started(), request))

    async def in_company() -> Any:
        engine = started()
        others = [
            asyncio.ensure_future(all_of(engine, greedy(prompt(seed, 3 * seed), 50 - seed)))
            for seed in range(2, 9)
        ]
        await asyncio.sleep(0.02)
        mine = await all_of(engine, request)
        await asyncio.gather(*others)
        return mine[0]

    assert run(in_company()) == alone
    assert len({token.id for token in alone}) > 5


def test_a_prefix_that_was_computed_before_changes_no_bit(
    started: Callable[..., BuiltIn],
) -> None:
    engine, fresh = started(), started()
    first = prompt(3, 37)
    answer, finish = run(all_of(engine, greedy(first, 20, top_logprobs=1)))
    assert finish.cached_tokens == 0
    turn = [*first, *(token.id for token in answer), *prompt(4, 5)]
    again, finish = run(all_of(engine, greedy(turn, 20, top_logprobs=1)))
    assert finish.cached_tokens == 37 + 20 - 1
    expected, finish = run(all_of(fresh, greedy(turn, 20, top_logprobs=1)))
    assert finish.cached_tokens == 0
    assert again == expected
    assert engine.load().cached_tokens == 56


def test_a_full_queue_says_when_to_come_back(started: Callable[..., BuiltIn]) -> None:
    engine = started(max_concurrency=1, max_queue=2)

    async def crowd() -> None:
        streams = [engine.submit(greedy(prompt(i, 5), 60)) for i in range(3)]
        with pytest.raises(Busy, match="waiting") as caught:
            engine.submit(greedy([1], 5))
        assert 0 < caught.value.retry_after < 60
        assert [len([e async for e in s]) for s in streams] == [61, 61, 61]
        assert len(await all_of(engine, greedy([1], 5))) == 2

    run(crowd())


def test_cancelling_gives_slot_and_memory_back(started: Callable[..., BuiltIn]) -> None:
    engine = started(max_concurrency=1, pages=6)

    async def leave() -> None:
        running, queued = (engine.submit(greedy(prompt(i, 20), 70)) for i in (1, 2))
        assert isinstance(await anext(aiter(running)), Token)
        queued.cancel()
        assert [event async for event in queued] == [Finish("cancelled")]
        running.cancel()
        running.cancel()
        assert [event async for event in running][-1].reason == "cancelled"
        tokens, finish = await all_of(engine, greedy(prompt(3, 20), 70))
        assert len(tokens) == 70 and finish.reason == "length"

    run(leave())
    load = engine.load()
    assert (load.running, load.queued, load.cache_used) == (0, 0, 0)
    assert load.finished == {"cancelled": 2, "length": 1}
    assert load.generated_tokens >= 71


def test_what_does_not_fit_is_refused_with_both_numbers(started: Callable[..., BuiltIn]) -> None:
    async def ask(engine: BuiltIn, request: Request) -> None:
        engine.submit(request)

    with pytest.raises(TooLong, match=r"90 tokens and 7 more .* 96 together"):
        run(ask(started(), greedy(prompt(1, 90), 7)))
    with pytest.raises(TooLong, match=r"30 tokens and 3 more .* 32 together"):
        run(ask(started(pages=2), greedy(prompt(1, 30), 3)))
    for request, words in (
        (greedy([], 3), "no tokens"),
        (greedy([VOCAB], 3), "97 tokens"),
        (greedy([1], 0), "max_tokens"),
        (Request(prompt=[1], sampling=Sampling(max_tokens=1, top_p=0.0)), "top_p"),
    ):
        with pytest.raises(InputError, match=words):
            run(ask(started(), request))
    with pytest.raises(InputError, match="memory"):
        started(pages=0)


def test_closing_lets_requests_end_or_cancels_them(started: Callable[..., BuiltIn]) -> None:
    async def close(grace: float) -> tuple[list[str], int]:
        engine = started(max_concurrency=2)
        streams = [engine.submit(greedy(prompt(i, 5), 50)) for i in range(4)]
        await asyncio.to_thread(engine.close, grace)
        with pytest.raises(Closed, match="closing"):
            engine.submit(greedy([1], 1))
        events = [[event async for event in stream] for stream in streams]
        return [found[-1].reason for found in events], sum(map(len, events))

    assert run(close(60.0)) == (["length"] * 4, 4 * 51)
    reasons, num = run(close(0.0))
    assert set(reasons) <= {"cancelled", "length"} and reasons.count("cancelled") >= 2
    assert num < 4 * 51


class Only:
    """Allows some tokens in turn, then none."""

    def __init__(self, *turns: set[int], length: int = VOCAB) -> None:
        self.turns, self.length = list(turns), length

    def allowed(self) -> np.ndarray:
        mask = np.zeros(self.length, dtype=bool)
        mask[list(self.turns[0])] = True
        return mask

    def advance(self, token: int) -> None:
        assert token in self.turns.pop(0)


def test_a_constraint_is_kept_and_its_faults_are_its_requests_own(
    started: Callable[..., BuiltIn],
) -> None:
    engine = started()
    sampling = Sampling(max_tokens=9, temperature=2.0, seed=1, stop_ids=frozenset({7}))

    async def ask(constraint: Only) -> Any:
        return await all_of(
            engine, Request(prompt=[1, 2], sampling=sampling, constraint=constraint)
        )

    tokens, finish = run(ask(Only({3, 4}, {5}, {7})))
    assert tokens[0].id in {3, 4} and tokens[1].id == 5
    assert len(tokens) == 2 and finish.reason == "stop"
    for wrong in (Only({3}, set()), Only({3}, length=VOCAB + 1), Only()):
        _, finish = run(ask(wrong))
        assert finish.reason == "error" and finish.message
    assert len(run(all_of(engine, greedy([1], 5)))[0]) == 5


def test_penalties_and_stop_ids(started: Callable[..., BuiltIn]) -> None:
    engine = started()
    plain = [token.id for token in run(all_of(engine, greedy([5, 9], 40)))[0]]
    assert len(set(plain)) < 40
    tokens, _ = run(all_of(engine, greedy([5, 9], 40, presence_penalty=1e6)))
    assert len({token.id for token in tokens}) == 40
    stopped, finish = run(all_of(engine, greedy([5, 9], 40, stop_ids=frozenset({plain[5]}))))
    assert [token.id for token in stopped] == plain[: plain.index(plain[5])]
    assert finish.reason == "stop"


def test_logprobs_are_those_of_the_model(started: Callable[..., BuiltIn]) -> None:
    decoder = lively()
    ids = prompt(2, 11)
    sampling = Sampling(max_tokens=6, temperature=0.5, top_k=3, seed=2, top_logprobs=4)
    tokens, _ = run(all_of(started(decoder), Request(prompt=ids, sampling=sampling)))
    for token in tokens:
        with torch.no_grad():
            expected = torch.log_softmax(decoder(torch.tensor([ids]))[0, -1].double(), -1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == expected.topk(4).indices.tolist()
        ids.append(token.id)


def test_damaged_weights_end_the_request_and_not_the_engine(
    started: Callable[..., BuiltIn],
) -> None:
    decoder = lively()
    with torch.no_grad():
        decoder.embedding.weight[13, 5] = float("nan")
    head = lively(tied=False)
    with torch.no_grad():
        head.embedding.weight[13, 5] = float("nan")
    engine = started(head, pages=6)
    good = greedy(prompt(5, 20), 20, top_logprobs=0)
    assert 13 not in good.prompt

    async def both() -> Any:
        return await asyncio.gather(
            all_of(engine, greedy([1, 2, 13, 4] * 6, 9)), all_of(engine, good)
        )

    (tokens, finish), (found, _) = run(both())
    assert not tokens and finish.reason == "error" and "not finite" in finish.message
    assert run(all_of(engine, good))[0] == found == run(all_of(started(head), good))[0]


def test_a_bug_in_the_thread_ends_all_streams_and_is_seen(
    started: Callable[..., BuiltIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(max_concurrency=1)

    async def break_it() -> None:
        streams = [engine.submit(greedy([i], 90)) for i in range(3)]
        assert isinstance(await anext(aiter(streams[0])), Token)
        monkeypatch.setattr(engine._scheduler, "next", lambda: 1 / 0)
        for stream in streams:
            last = [event async for event in stream][-1]
            assert isinstance(last, Finish) and last.reason == "error"
            assert "division by zero" in last.message
        with pytest.raises(Closed, match="division by zero"):
            engine.submit(greedy([1], 1))

    run(break_it())
    load = engine.load()
    assert "ZeroDivisionError" in load.failure and load.finished == {"error": 3}
    assert (load.running, load.queued) == (0, 0)
