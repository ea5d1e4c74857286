"""The serving engine against transformers.generate, on the real SmolLM2-135M-Instruct in fp32.

Claim: with 128 tokens in and 128 out, one request at a time gets at least 1.05 x the tokens a
second of `generate`, and with --fast at least 1.5 x; 8 requests at a time get at least 4 x those of
one at a time, and at least 1.0 x those of `generate` on the same 8 as one batch.
Claim: a request that arrives among 7 that generate has its first token within 3 x the time that it
takes with nobody there, in 99 of 100 cases.
Claim: greedy tokens are those of `generate`, for 20 prompts of 64 tokens; a first difference only
where the two likeliest tokens are within 1e-4 of each other.

All contenders are alive, each in a process of its own with the same number of threads, and compute
in turn; a ratio is the median over the rounds. In one process they would slow one another: OpenMP
keeps helpers for every thread that has computed, and with more of them than cores lets them sleep
at every barrier. Processor seconds are moved less by other work on the machine; a thread that waits
for another in a loop counts as work there. Prompts are random tokens, new ones each time, so that
no prefix is found. With --llama-cpp FOLDER (of llama-batched-bench and llama-quantize, built from
llama.cpp) its own times stand beside, for the same weights in fp32; no claim is made of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from common import Report, arguments, cores, median_ratio, run_main, scratch, spread, tell

from atoll.data.corpora import package_file
from atoll.errors import InputError
from atoll.modeling import open_model
from atoll.modeling.huggingface import write_folder
from atoll.modeling.inference import page_bytes
from atoll.modeling.loaded import Loaded
from atoll.serving.engine import BuiltIn, open_engine
from atoll.serving.request import Request, Sampling, Token

TOGETHER = 8
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def quicksort(items):",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,",
    "To make a good cup of tea, first",
    "In 1969, the first humans",
    "The difference between a virus and a bacterium is",
    "import numpy as np\n",
    "A haiku about autumn:",
    "Photosynthesis is the process by which",
    "The quick brown fox",
    "Q: What is 17 times 23?\nA:",
    "The most important thing about writing clearly is",
    "List of European countries:",
    "When the train finally arrived, she",
    "The Pacific Ocean is",
    "SELECT name FROM",
    "If all cats are mammals and all mammals are animals, then",
    "The moon orbits the earth because",
)


class Took(NamedTuple):
    """One run: tokens a second, and processor seconds."""

    rate: float
    core_seconds: float


def main() -> None:
    """All claims in turn."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="of the throughputs")
    parser.add_argument("--arrivals", type=int, default=60, help="whose first token is timed")
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="its programs, if built")
    options = parser.parse_args()
    options.tokens, options.texts = 128, TEXTS
    if options.quick:
        options.rounds, options.arrivals, options.tokens = 1, 2, 8
        options.texts = TEXTS[:2]
    torch.set_num_threads(options.threads)
    report = Report("The serving engine against transformers.generate", quick=options.quick)
    file = package_file("tokenizer", "smollm2")
    loaded = open_model(file)
    tell("opening the model three times")
    with ExitStack() as stack:
        exact, fast, theirs = (
            stack.enter_context(Contender(kind, options.threads))
            for kind in ("engine", "fast", "generate")
        )
        others = {}
        if options.llama_cpp is not None:
            others = llama_cpp(options, file, stack.enter_context(scratch()))
        num_parameters = loaded.model.num_parameters()
        report.note(f"{options.threads} threads; {num_parameters / 1e6:.1f} M parameters.")
        show_throughput(options, report, exact, fast, theirs, num_parameters, others)
        show_first_token(options, report, exact)
        show_greedy(options, report, exact, theirs, loaded)
    report.show()


_HELD: dict[str, Any] = {}
"""In a contender's own process: its "engine", or its "model" of transformers."""


class Contender:
    """A process that holds one contender and does one piece of work at a time."""

    def __init__(self, kind: str, threads: int) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=hold, initargs=(kind, threads)
        )

    def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        """What ``work`` returns there."""
        return self._pool.submit(work, *args).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def hold(kind: str, threads: int) -> None:
    """Open a contender; an engine has room for 8 requests of two pages each."""
    torch.set_num_threads(threads)
    loaded = open_model(package_file("tokenizer", "smollm2"))
    if kind == "generate":
        _HELD["model"] = transformers_of(loaded)
        return
    memory = 2 * TOGETHER * page_bytes(loaded.model)
    _HELD["engine"] = open_engine(
        loaded, memory=memory, max_concurrency=TOGETHER, fast=kind == "fast"
    )


def transformers_of(loaded: Loaded) -> Any:
    """The same weights in transformers' own class."""
    import transformers

    with scratch() as folder:
        write_folder(
            folder,
            loaded.model,
            loaded.tensors,
            loaded.tokenizer_json,
            stop_ids=None,
            chat_template=None,
        )
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # The weights are read from the file when they are used first: have them in memory.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model.eval()


def random_prompts(num: int, length: int) -> list[list[int]]:
    """New random tokens at each call."""
    made = np.random.default_rng(time.perf_counter_ns())
    return [[int(i) for i in made.integers(1000, 40_000, length)] for _ in range(num)]


def measured(num_tokens: int, work: Callable[[], None]) -> Took:
    """Run it once."""
    wall, core = time.perf_counter(), time.process_time()
    work()
    wall, core = time.perf_counter() - wall, time.process_time() - core
    return Took(num_tokens / wall, core)


# ---------------------------------------------------------------------- tokens a second


def by_engine(num: int, tokens: int) -> Took:
    """So many requests at the same time, from the first submission to the last token."""
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    requests = [Request(prompt=p, sampling=sampling) for p in random_prompts(num, tokens)]
    return measured(num * tokens, lambda: asyncio.run(served(requests)) and None)


async def served(requests: Sequence[Request]) -> list[list[Token]]:
    """The tokens of each."""

    async def one(request: Request) -> list[Token]:
        events = [event async for event in _HELD["engine"].submit(request)]
        found = [event for event in events if isinstance(event, Token)]
        assert len(found) == request.sampling.max_tokens, events[-1]
        return found

    return await asyncio.gather(*(one(request) for request in requests))


def by_transformers(num: int, tokens: int) -> Took:
    """The same by `generate`, as one batch."""
    prompts = random_prompts(num, tokens)
    return measured(num * tokens, lambda: generated(prompts, tokens) and None)


def generated(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy tokens that follow each of these prompts of one length."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        found = _HELD["model"].generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
    rows: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return rows


def show_throughput(
    options: argparse.Namespace,
    report: Report,
    exact: Contender,
    fast: Contender,
    theirs: Contender,
    num_parameters: int,
    others: dict[str, Callable[[], Took]],
) -> None:
    """The first claim, and how much of the memory's bandwidth is used."""
    tokens = options.tokens
    contenders: dict[str, Callable[[], Took]] = {
        "generate, 1": lambda: theirs(by_transformers, 1, tokens),
        "engine, 1": lambda: exact(by_engine, 1, tokens),
        "engine --fast, 1": lambda: fast(by_engine, 1, tokens),
        f"generate, batch of {TOGETHER}": lambda: theirs(by_transformers, TOGETHER, tokens),
        f"engine, {TOGETHER} at a time": lambda: exact(by_engine, TOGETHER, tokens),
        f"engine --fast, {TOGETHER} at a time": lambda: fast(by_engine, TOGETHER, tokens),
        **others,
    }
    took: dict[str, list[Took]] = {name: [] for name in contenders}
    copies = []
    for number in range(options.rounds + 1):
        order = list(contenders) if number % 2 else list(contenders)[::-1]
        for name in order:
            found = contenders[name]()
            tell(f"round {number}: {name}: {found.rate:.1f} tokens/s")
            if number or options.quick:  # the first round warms up
                took[name].append(found)
        copies.append(theirs(copied))
    rates = {name: [t.rate for t in found] for name, found in took.items()}
    cores_of = {name: [t.core_seconds for t in found] for name, found in took.items()}
    one, ours, quick, batch, eight, *_ = contenders
    rows = [
        [
            name,
            f"{statistics.median(rates[name]):.1f}",
            spread(rates[name]),
            f"{median_ratio(rates[name], rates[one]):.2f}",
            "-" if name in others else f"{statistics.median(cores_of[name]) / tokens * 1e3:.1f}",
        ]
        for name in contenders
    ]
    head = ["contender", "tokens/s", "range", "ratio to the first", "processor ms a step"]
    report.table(f"{tokens} tokens in, {tokens} out, {options.rounds} rounds.", head, rows)
    show_bandwidth(report, num_parameters, rates, (one, ours, quick), max(copies))
    for what, above, below, bound in (
        ("one at a time, to generate", ours, one, 1.05),
        ("--fast, to generate", quick, one, 1.5),
        (f"{TOGETHER} at a time, to one at a time", eight, ours, 4.0),
        (f"{TOGETHER} at a time, to generate on a batch", eight, batch, 1.0),
    ):
        ratio = median_ratio(rates[above], rates[below])
        report.check(what, ratio, bound, at_least=True, form=".2f")


def copied() -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    took = []
    for _ in range(4):
        start = time.perf_counter()
        target.copy_(source)
        took.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(took)


def show_bandwidth(
    report: Report,
    num_parameters: int,
    rates: dict[str, list[float]],
    names: Sequence[str],
    copy: float,
) -> None:
    """Bytes of weights that one request at a time reads, against a copy."""
    weights = 4 * num_parameters
    rows = []
    for name in names:
        used = weights * max(rates[name])
        rows.append([name, f"{used / 1e9:.1f}", f"{used / copy:.0%}"])
    title = (
        f"Weights read, {weights / 1e6:.0f} MB a token (the reading of the prompt counted as time, "
        f"not as bytes), against a copy of 256 MiB, which reads and writes {copy / 1e9:.1f} GB/s; "
        "best rounds."
    )
    report.table(title, ["contender", "GB/s", "of the copy"], rows)


# ---------------------------------------------------------------------- time to the first token


def show_first_token(options: argparse.Namespace, report: Report, engine: Contender) -> None:
    """The second claim. Loaded and unloaded arrivals alternate in blocks of ten."""
    alone: list[float] = []
    among: list[float] = []
    while len(among) < options.arrivals:
        num = min(10, options.arrivals - len(among))
        alone += engine(first_tokens, num, 0, options.tokens)
        among += engine(first_tokens, num, TOGETHER - 1, options.tokens)
        tell(f"first tokens: {len(among)}")
    rows = []
    for name, times in (("nobody else", alone), (f"{TOGETHER - 1} that generate", among)):
        at = [float(np.quantile(times, q)) * 1e3 for q in (0.5, 0.9, 0.99)]
        rows.append([name, *(f"{value:.0f}" for value in at)])
    ratios = [float(np.quantile(among, q) / np.quantile(alone, q)) for q in (0.5, 0.9, 0.99)]
    rows.append(["ratio", *(f"{ratio:.2f}" for ratio in ratios)])
    title = (
        f"Milliseconds to the first token of {options.tokens}; {options.arrivals} arrivals each."
    )
    report.table(title, ["besides", "median", "p90", "p99"], rows)
    what = "time to the first token among others, p99, to that alone"
    report.check(what, ratios[2], 3.0, at_least=False, form=".2f")


def first_tokens(num: int, others: int, tokens: int) -> list[float]:
    """Seconds to the first token of requests that come one after another."""
    return asyncio.run(arrivals(_HELD["engine"], num, others=others, tokens=tokens))


async def arrivals(engine: BuiltIn, num: int, *, others: int, tokens: int) -> list[float]:
    """The same, in a loop."""
    length = min(256, engine.limit - tokens)
    keep = Sampling(max_tokens=length, temperature=0.0)
    running: list[Any] = []
    times = []
    for _ in range(num):
        running = [stream for stream in running if not stream.done]
        while len(running) < others:
            stream = Kept(engine, Request(prompt=random_prompts(1, tokens)[0], sampling=keep))
            await stream.first()
            running.append(stream)
        sampling = Sampling(max_tokens=1, temperature=0.0)
        request = Request(prompt=random_prompts(1, tokens)[0], sampling=sampling)
        start = time.perf_counter()
        await anext(aiter(engine.submit(request)))
        times.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)
    for stream in running:
        stream.cancel()
    return times


class Kept:
    """A request that goes on in the background."""

    def __init__(self, engine: BuiltIn, request: Request) -> None:
        self.done = False
        self._stream = engine.submit(request)
        self._begun = asyncio.Event()
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for _ in self._stream:
            self._begun.set()
        self.done = True

    async def first(self) -> None:
        """Wait for its first token."""
        await self._begun.wait()

    def cancel(self) -> None:
        """End it."""
        self._stream.cancel()


# ---------------------------------------------------------------------- the same tokens


def show_greedy(
    options: argparse.Namespace,
    report: Report,
    engine: Contender,
    theirs: Contender,
    loaded: Loaded,
) -> None:
    """The third claim."""
    tokenizer = loaded.tokenizer()
    tokens = min(64, options.tokens)
    prompts = [tokenizer.encode(text).ids for text in options.texts]
    found = engine(chosen, prompts, tokens)
    gaps = []
    for prompt, ours in zip(prompts, found, strict=True):
        written = theirs(generated, [prompt], tokens)[0]
        differing = [t for t, id_ in zip(ours, written, strict=True) if t.id != id_]
        gaps += [abs(t.top[0][1] - t.top[1][1]) for t in differing[:1]]
    told = ", ".join(f"{gap:.1e}" for gap in gaps) or "none"
    report.note(
        f"Greedy, {len(prompts)} prompts of {tokens} tokens, served together: "
        f"{len(prompts) - len(gaps)} equal to `generate` in every token; gaps between the two "
        f"likeliest where others first differ: {told}."
    )
    worst = max(gaps, default=0.0)
    report.check("largest gap at a first difference", worst, 1e-4, at_least=False, form=".1e")


def chosen(prompts: list[list[int]], tokens: int) -> list[list[Token]]:
    """Greedy tokens of the engine with their two likeliest, all prompts at the same time."""
    sampling = Sampling(max_tokens=tokens, temperature=0.0, top_logprobs=2)
    return asyncio.run(served([Request(prompt=p, sampling=sampling) for p in prompts]))


# ---------------------------------------------------------------------- llama.cpp


def llama_cpp(
    options: argparse.Namespace, file: Path, folder: Path
) -> dict[str, Callable[[], Took]]:
    """Contenders: its own benchmark on the file's weights in fp32, which is written first."""
    whole = folder / "fp32.gguf"
    told_by(options.llama_cpp / "llama-quantize", "--allow-requantize", file, whole, "f32")
    words = ["-m", whole, "-npp", options.tokens, "-ntg", options.tokens, "-t", options.threads]
    words += ["-c", 2 * TOGETHER * options.tokens, "--output-format", "jsonl", "-npl"]

    def run(num: int) -> Took:
        lines = told_by(options.llama_cpp / "llama-batched-bench", *words, num).splitlines()
        found = json.loads(next(line for line in lines if line.startswith("{")))
        return Took(num * options.tokens / found["t"], float("nan"))

    return {
        "llama.cpp in fp32, 1": lambda: run(1),
        f"llama.cpp in fp32, {TOGETHER} at a time": lambda: run(TOGETHER),
    }


def told_by(program: Path, *words: object) -> str:
    """What a program printed; InputError with its last words if it failed."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"ended with {done.returncode}: {done.stderr[-200:]}", file=program)
    return done.stdout


if __name__ == "__main__":
    run_main(main)
