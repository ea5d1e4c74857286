"""The start-up proof: does this device compute the update's operations as IEEE 754 says?

Every operation that the exact update uses is run on the device over the shipped vectors
(`vectors.py`) and compared bit for bit on the host. Operations are run as the update runs them:
out of place and in place, from aligned and unaligned memory, in one piece that one thread does
and in one large enough to be split among threads.

What is not in this table the update may not use: no `alpha=`, no lerp or addcmul, no division by
a scalar (some stacks multiply by its rounded inverse), no fp32 square root but `Backend.sqrt`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.backends import vectors

if TYPE_CHECKING:
    import torch

    from atoll.backends.base import Backend

FLUSH_BELOW = 2.0**vectors.FLUSH_EXPONENT
"""Magnitudes up to this become zero wherever the update stores a number."""

_TILES = 8  # 8 x 5003 elements are more than torch gives one thread at a time (32,768)


def flush_(x: torch.Tensor) -> torch.Tensor:
    """Set what is at most 2^-96 in magnitude to +0 in place, by compare and select.

    Denormals are slow on some chips and flushed by the hardware of others, so no number the
    update keeps comes near them.
    """
    import torch

    return x.copy_(torch.nn.functional.hardshrink(x, FLUSH_BELOW))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One operation: how it is run, and the names of its inputs and its right answer."""

    name: str
    run: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]
    answer: str
    kept: bool = False
    """True where only what the update keeps counts: tiny results and signs of zero do not."""


def checks(backend: Backend) -> Iterator[Check]:
    """Every operation of the exact update, as this backend runs it."""
    import torch

    pairs: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
        "multiply": (lambda a, b: a * b, lambda a, b: a.mul_(b)),
        "add": (torch.add, lambda a, b: a.add_(b)),
        "subtract": (torch.sub, lambda a, b: a.sub_(b)),
        "divide": (torch.div, lambda a, b: a.div_(b)),
    }
    for name, forms in pairs.items():
        for form in forms:
            yield Check(name=name, run=form, inputs=("a", "b"), answer=name, kept=True)
    for index, bits in enumerate(vectors.SCALARS):
        factor = float(vectors.fraction_of(bits))
        for form in (_times(factor), _times_in_place(factor)):
            yield Check(name="scale", run=form, inputs=("a",), answer=f"scaled_{index}", kept=True)
    yield Check(name="sqrt", run=backend.sqrt, inputs=("sqrt_in",), answer="sqrt", kept=True)
    yield Check(
        name="sqrt",
        run=lambda x: backend.sqrt(x, out=x),
        inputs=("sqrt_in",),
        answer="sqrt",
        kept=True,
    )
    for form in (torch.round, lambda x: x.round_()):
        yield Check(name="round", run=form, inputs=("round_in",), answer="round", kept=True)
    yield Check(name="flush", run=flush_, inputs=("flush_in",), answer="flush")
    yield from _integer_checks()


def _times(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * factor


def _times_in_place(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.mul_(factor)


def _shifted(places: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x >> places


def _integer_checks() -> Iterator[Check]:
    import torch

    for name, dtype in (("int32", torch.int32), ("int64", torch.int64)):
        yield Check(
            name=f"fp32 to {name}",
            run=functools.partial(torch.Tensor.to, dtype=dtype),
            inputs=(f"to_{name}_in",),
            answer=f"to_{name}",
        )
        yield Check(
            name=f"{name} to fp32",
            run=functools.partial(torch.Tensor.to, dtype=torch.float32),
            inputs=(f"from_{name}_in",),
            answer=f"from_{name}",
        )
        for form in (torch.add, lambda a, b: a.add_(b)):
            yield Check(
                name=f"{name} add",
                run=form,
                inputs=(f"sum_{name}_a", f"sum_{name}_b"),
                answer=f"sum_{name}",
            )
        for places in vectors.SHIFTS:
            yield Check(
                name=f"{name} shift",
                run=_shifted(places),
                inputs=(f"from_{name}_in",),
                answer=f"shift_{name}_{places}",
            )
    yield Check(name="int64 square", run=lambda x: x * x, inputs=("small",), answer="square")


def report(backend: Backend, device: torch.device) -> dict[str, str]:
    """Operation -> what is wrong with it on this device, for those that fail; {} is a proof.

    An operation that the stack refuses to run fails too, with its message as the reason.
    """
    import torch

    arrays = _load()
    found: dict[str, str] = {}
    with torch.no_grad():
        for check in checks(backend):
            if check.name not in found:
                reason = _first_failure(backend, device, check, arrays)
                if reason is not None:
                    found[check.name] = reason
        for name, prove in (("int64 square sum", _square_sum), ("largest", _largest)):
            reason = prove(backend, device, arrays)
            if reason is not None:
                found[name] = reason
    return found


def failures(backend: Backend, device: torch.device) -> list[str]:
    """Names of the operations that are not exact on this device."""
    return list(report(backend, device))


def root_failure(
    backend: Backend, device: torch.device, root: Callable[[torch.Tensor], torch.Tensor]
) -> str | None:
    """What is wrong with one way of taking fp32 square roots on a device; None if nothing."""
    check = Check(name="sqrt", run=root, inputs=("sqrt_in",), answer="sqrt", kept=True)
    return _first_failure(backend, device, check, _load())


@functools.cache
def _load() -> Mapping[str, Any]:
    """The shipped vectors as NumPy arrays (read only), bit patterns of fp32 viewed as fp32."""
    import numpy as np

    with np.load(vectors.shipped()) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return {
        name: value.view(np.float32) if value.dtype == np.uint32 else value
        for name, value in arrays.items()
    }


def _layouts(device: torch.device, values: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The same values on the device in three layouts; each is fresh memory."""
    import numpy as np
    import torch

    yield "aligned", torch.from_numpy(values.copy()).to(device)
    padded = torch.from_numpy(np.concatenate([values[:1], values])).to(device)
    yield "unaligned", padded[1:]
    yield "large", torch.from_numpy(np.tile(values, _TILES)).to(device)


def _first_failure(
    backend: Backend, device: torch.device, check: Check, arrays: Mapping[str, Any]
) -> str | None:
    """What the first layout that goes wrong got wrong; None if all are right."""
    columns = [list(_layouts(device, arrays[name])) for name in check.inputs]
    for operands in zip(*columns, strict=True):
        layout = operands[0][0]
        try:
            result = backend.host(check.run(*(tensor for _, tensor in operands)))
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return f"{layout}: {type(error).__name__}: {str(error).splitlines()[0]}"
        reason = _difference(result.numpy(), arrays, check)
        if reason is not None:
            return f"{layout}: {reason}"
    return None


def _difference(got: Any, arrays: Mapping[str, Any], check: Check) -> str | None:
    """How a result differs in bits from the right answer, with the first place; None if not."""
    import numpy as np

    right = arrays[check.answer]
    if got.dtype != right.dtype:
        return f"gave {got.dtype} instead of {right.dtype}"
    right = np.tile(right, len(got) // len(right))
    if check.kept:
        got = np.where(np.abs(got) <= np.float32(FLUSH_BELOW), np.float32(0), got)
    bits = {4: np.uint32, 8: np.uint64}[got.dtype.itemsize]
    wrong = np.flatnonzero(got.view(bits) != right.view(bits))
    if len(wrong) == 0:
        return None
    first = int(wrong[0])
    operands = ", ".join(repr(_at(arrays[name], first)) for name in check.inputs)
    return (
        f"{len(wrong)} of {len(got)} results differ; {check.name} of {operands} gave "
        f"{_at(got, first)!r}, right is {_at(right, first)!r}"
    )


def _at(values: Any, index: int) -> Any:
    return values[index % len(values)].item()


def _square_sum(backend: Backend, device: torch.device, arrays: Mapping[str, Any]) -> str | None:
    """Proof of the one sum on the device: squares of 15-bit integers, in int64."""
    right = int(arrays["square_sum"][0])
    for layout, tensor in _layouts(device, arrays["small"]):
        wanted = right * (len(tensor) // vectors.NUM_VALUES)
        try:
            got = int(backend.host((tensor * tensor).sum()))
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return f"{layout}: {type(error).__name__}: {str(error).splitlines()[0]}"
        if got != wanted:
            return f"{layout}: the sum of squares is {got}, right is {wanted}"
    return None


def _largest(backend: Backend, device: torch.device, arrays: Mapping[str, Any]) -> str | None:
    """Proof that min and max are found exactly, and that one NaN or infinity is never lost."""
    import numpy as np
    import torch

    for layout, tensor in _layouts(device, arrays["a"]):
        for planted in (None, float("inf"), float("-inf"), float("nan")):
            expected = [float(arrays["a"].min()), float(arrays["a"].max())]
            if planted is not None:
                tensor[4099] = planted
                expected = [min(expected[0], planted), max(expected[1], planted)]
                if planted != planted:
                    expected = [planted, planted]
            try:
                found = [float(backend.host(x)) for x in torch.aminmax(tensor)]
            except (RuntimeError, NotImplementedError, TypeError) as error:
                return f"{layout}: {type(error).__name__}: {str(error).splitlines()[0]}"
            if not np.array_equal(found, expected, equal_nan=True):
                return f"{layout}: min and max are {found}, right is {expected}"
    return None
