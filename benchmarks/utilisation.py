"""Model FLOP utilisation of the decoder on this machine's cores, and where the rest goes.

Utilisation = (FLOPs of the model's matrix products and causal attention, Model.flops_per_token)
/ (seconds of loss and gradients) / (best rate of a matrix product of the model's own shapes, kept
up for a tenth of a second). Both are measured in turns in one process; the best of all rounds
counts for each, because other work on the machine can only make a round slower. Beside it stands
the median over the rounds of the utilisation within a round, and its range.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from common import Report, arguments, cores, run_main, spread, tell

from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder

LENGTH, VOCAB, LAYERS = 512, 8192, 6
_SUSTAINED = 0.1  # seconds that a matrix product is repeated for
CLAIMS = {384: 0.65, 768: 0.72}
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "attention's products": ("aten::bmm", "aten::baddbmm_"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data", "aten::amax"),
    "SwiGLU's activation": ("aten::silu", "aten::silu_backward"),
    "other arithmetic and copies": (
        *("aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::addcmul", "aten::addcmul_"),
        *("aten::copy_", "aten::pow", "aten::sum", "aten::mean", "aten::mv", "aten::addmv_"),
        *("aten::index_add_", "aten::index_select", "aten::fill_", "aten::div_", "aten::triu_"),
    ),
}


def model_of(width: int, *, quick: bool) -> Model:
    """The shape that the claim names, at this width."""
    layers, vocab = (1, 512) if quick else (LAYERS, VOCAB)
    heads = width // 64
    shape = {"layers": layers, "width": width, "heads": heads, "kv_heads": heads // 3}
    ffn = {384: 1024, 768: 2048}[width]
    return Model.model_validate({**shape, "ffn": ffn, "context": LENGTH, "vocab": vocab})


def products(model: Model) -> Iterator[tuple[float, Callable[[], torch.Tensor]]]:
    """(FLOPs, call) of each matrix product of a step by shape: forward, by input, by weight."""
    shapes = {shape for shape in model.tensors().values() if len(shape) == 2}
    for rows, columns in sorted(shapes):
        x, w = torch.randn(LENGTH, columns), torch.randn(rows, columns)
        d_y = torch.randn(LENGTH, rows)
        flops = 2.0 * LENGTH * rows * columns
        for a, b in ((x, w.t()), (d_y, w), (d_y.t(), x)):
            yield flops, functools.partial(torch.mm, a, b)


def seconds_of(function: Callable[[], object], *, repeats: int) -> float:
    """Mean wall seconds of a call over ``repeats`` calls."""
    begun = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - begun) / repeats


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Best rates of one width at one number of threads."""

    width: int
    threads: int
    peak: float
    step_seconds: float
    flops: float
    each_round: list[float]

    @property
    def utilisation(self) -> float:
        """Of the best matrix product's rate."""
        return self.flops / self.step_seconds / self.peak


def measure(width: int, threads: int, *, rounds: int, quick: bool) -> Measured:
    """Step and products in turns; the best of each."""
    torch.set_num_threads(threads)
    model = model_of(width, quick=quick)
    step = step_of(model)
    step()
    steps, rates = [], []
    for _ in range(rounds):
        steps.append(min(seconds_of(step, repeats=1) for _ in range(3)))
        best_rate = 0.0
        for flops, product in products(model):
            # As long as a step lasts, nearly: a lucky moment of the clock is no peak.
            repeats = max(1, round(_SUSTAINED / seconds_of(product, repeats=1)))
            best_rate = max(best_rate, flops / seconds_of(product, repeats=repeats))
        rates.append(best_rate)
    flops = model.flops_per_token() * LENGTH
    return Measured(
        width=width,
        threads=threads,
        peak=max(rates),
        step_seconds=min(steps),
        flops=flops,
        each_round=[flops / s / rate for s, rate in zip(steps, rates, strict=True)],
    )


def step_of(model: Model) -> Callable[[], None]:
    """Loss and gradients of one sequence, as a lane computes a grain."""
    decoder = Decoder(model)
    initial.fill(decoder, 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.resolved_vocab, (1, LENGTH + 1), generator=generator)

    def step() -> None:
        decoder.loss(tokens).backward()
        for parameter in decoder.parameters():
            parameter.grad = None

    return step


def parts(width: int, threads: int, *, quick: bool) -> dict[str, float]:
    """Shares of a step by kind of operation, from torch's profiler, which itself costs a little."""
    torch.set_num_threads(threads)
    step = step_of(model_of(width, quick=quick))
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    own = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(own.values())
    shares = {
        group: sum(own.get(name, 0.0) for name in names) / total for group, names in GROUPS.items()
    }
    return {**shares, "Python, autograd, the rest": 1.0 - sum(shares.values())}


def main() -> None:
    """Measure, print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=12, help="rounds a width (%(default)s)")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    report = Report(
        "Model FLOP utilisation on the CPU: at least 0.65 at width 384, 0.72 at width 768",
        quick=options.quick,
    )
    found = []
    for width in CLAIMS:
        for threads in (1, 2) if cores() > 1 else (1,):
            tell(f"width {width}, {threads} threads")
            found.append(measure(width, threads, rounds=rounds, quick=options.quick))
    report.table(
        f"{LAYERS} layers, length {LENGTH}, vocabulary {VOCAB}, fp32, one sequence; loss and "
        "gradients, eager; best of "
        f"{rounds} rounds",
        ["width", "threads", "best product", "step", "tokens/s", "utilisation", "within a round"],
        [
            [
                m.width,
                m.threads,
                f"{m.peak / 1e9:.0f} GFLOP/s",
                f"{m.step_seconds * 1e3:.0f} ms",
                f"{LENGTH / m.step_seconds:,.0f}",
                f"{m.utilisation:.3f}",
                f"{statistics.median(m.each_round):.3f} ({spread(m.each_round)})",
            ]
            for m in found
        ],
    )
    shares = {width: parts(width, 1, quick=options.quick) for width in CLAIMS}
    report.table(
        "Where a step's time goes, 1 thread",
        ["operations", *(f"width {width}" for width in CLAIMS)],
        [
            [group, *(f"{shares[width][group]:.1%}" for width in CLAIMS)]
            for group in next(iter(shares.values()))
        ],
    )
    for width, bound in CLAIMS.items():
        best = max(m.utilisation for m in found if m.width == width)
        report.check(f"utilisation at width {width}", best, bound, at_least=True, form=".3f")
    report.show()


if __name__ == "__main__":
    run_main(main)
