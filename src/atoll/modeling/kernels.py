"""A step of the decoder on a CPU, compiled on the machine that runs it, every row by itself.

What it is: the formulas of decoder.py in fp32, for rows of tokens with keys and values in pages.
Every number of a product is one chain of fused multiply-adds over its terms in their order, and
every row has its attention to itself. So a row's bits depend neither on how many rows there are nor
on the number of threads, by construction; and weights stream from memory once for all rows. What it
is not: for training, for accelerators, or the same on two kinds of processor (sums over a row's own
numbers are cut as suits the processor).

One tile of a product is written in LLVM's own language, because numba has no word for a register
of many numbers; the rest are plain loops, of which LLVM makes such registers by itself. All is in
one file, because numba compiles a function anew when its own file has changed, and no other.

Shape suffixes: N rows of a step, C width, I numbers in, O numbers out, B blocks of WIDTH numbers
out, L layers, Z pages, S pages of a piece, K key heads, G query heads for each, D numbers of a
head, P positions of a page, T positions of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

WIDTH = 32
"""Columns of a tile: two of the widest registers; the sums of eight rows fit in the others."""

_LANES = 16
_AHEAD = 8192
"""Bytes that a tile fetches ahead. Without it eight rows take a third longer."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, _LANES)
_ZEROS = ir.Constant(_VECTOR, [0.0] * _LANES)


def _kept(*signature: str, **options: Any) -> Callable[[Any], Any]:
    """`njit`, and what it compiles is kept on disk if numba finds a folder that it may write to."""

    def compiled(function: Any) -> Any:
        try:
            return njit(*signature, cache=True, **options)(function)
        except RuntimeError:
            return njit(*signature, **options)(function)

    return compiled


class Weights(NamedTuple):
    """What a step reads of the model. Matrices are [L, B, I, WIDTH]: see `cpu_inference.packed`."""

    qkv: Floats
    output: Floats
    gate: Floats
    up: Floats
    down: Floats
    head_norms: Floats  # [L, 2, D], of queries and keys
    cos: Floats  # [T, D/2]
    sin: Floats
    epsilon: np.float32
    has_head_norms: bool


class Rows(NamedTuple):
    """The rows of a step. ``pages`` [pieces, S]: of each piece up to its last position."""

    positions: Ints  # [N]
    pieces: Ints  # [N]
    pages: Ints


# ---------------------------------------------------------------------- a tile of a product


_MOST = 8 if binding.get_host_cpu_features().get("avx512f") else 2
"""Rows of a tile: as many as have their sums in this processor's registers."""


@intrinsic
def _tile(
    typing: Any,
    num: Any,
    x: Any,
    x_step: Any,
    w: Any,
    w_step: Any,
    terms: Any,
    y: Any,
    y_step: Any,
    factors: Any,
    add: Any,
) -> Any:
    """``num`` rows of x, from 1 to _MOST, times WIDTH columns of w, the terms of a sum in order.

    Takes addresses and, counted in fp32 numbers, the distance from one row to the next: x, of x; w,
    of w; number of terms; y, of y; a factor for each row; 1 to add the result to y, else 0.
    """
    place, size = types.uintp, types.intp
    return types.void(size, place, size, place, size, size, place, size, place, size), _tiles


def _tiles(context: Any, b: ir.IRBuilder, _: Any, args: Sequence[ir.Value]) -> Any:
    """The code of `_tile`: that of each number of rows, and a jump to the one that is asked for."""
    num, x, x_step, w, w_step, terms, y, y_step, factors, add = args
    x, w, y, factors = (b.inttoptr(place, _FLOAT.as_pointer()) for place in (x, w, y, factors))
    end = b.append_basic_block()
    jump = b.switch(num, end)
    for rows in range(1, _MOST + 1):
        start = b.append_basic_block()
        jump.add_case(num.type(rows), start)
        b.position_at_end(start)
        sums = _summed(b, rows, (x, x_step), (w, w_step), terms)
        _written(b, sums, (y, y_step), factors, add)
        b.branch(end)
    b.position_at_end(end)
    return context.get_dummy_value()


def _summed(
    b: ir.IRBuilder,
    num_rows: int,
    x: tuple[ir.Value, ir.Value],
    w: tuple[ir.Value, ir.Value],
    terms: ir.Value,
) -> list[list[ir.Value]]:
    """A loop over the terms, with all sums in registers; leaves the builder behind it."""
    size, vectors = terms.type, range(0, WIDTH, _LANES)
    rows = [b.gep(x[0], [b.mul(x[1], size(row))]) for row in range(num_rows)]
    before, loop, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(loop)
    b.position_at_end(loop)
    term = b.phi(size)
    sums = [[b.phi(_VECTOR) for _ in vectors] for _ in rows]
    line = b.gep(w[0], [b.mul(term, w[1])])
    weights = [_load(b, b.gep(line, [size(v)])) for v in vectors]
    for v in vectors:
        _fetch(b, b.gep(line, [size(v + _AHEAD // 4)]))
    grown = []
    for row, of_row in zip(rows, sums, strict=True):
        number = _everywhere(b, b.load(b.gep(row, [term])))
        grown.append([_fma(b, v, number, s) for v, s in zip(weights, of_row, strict=True)])
    following = b.add(term, size(1))
    term.add_incoming(size(0), before)
    term.add_incoming(following, loop)
    for phi, later in zip(chain(*sums), chain(*grown), strict=True):
        phi.add_incoming(_ZEROS, before)
        phi.add_incoming(later, loop)
    b.cbranch(b.icmp_signed("<", following, terms), loop, after)
    b.position_at_end(after)
    return grown


def _written(
    b: ir.IRBuilder,
    sums: list[list[ir.Value]],
    y: tuple[ir.Value, ir.Value],
    factors: ir.Value,
    add: ir.Value,
) -> None:
    """Every row of sums times its factor, and perhaps y."""
    size = add.type
    adds = b.icmp_signed("!=", add, size(0))
    for row, of_row in enumerate(sums):
        factor = _everywhere(b, b.load(b.gep(factors, [size(row)])))
        start = b.gep(y[0], [b.mul(y[1], size(row))])
        for v, total in enumerate(of_row):
            target = b.gep(start, [size(v * _LANES)])
            result = _fma(b, total, factor, b.select(adds, _load(b, target), _ZEROS))
            b.store(result, b.bitcast(target, _VECTOR.as_pointer()), align=4)


def _fma(b: ir.IRBuilder, *numbers: ir.Value) -> ir.Value:
    """a * b + c, rounded once."""
    form = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fma.v{_LANES}f32"
    return b.call(cgutils.get_or_insert_function(b.module, form, name), numbers)


def _load(b: ir.IRBuilder, place: ir.Value) -> ir.Value:
    return b.load(b.bitcast(place, _VECTOR.as_pointer()), align=4)


def _everywhere(b: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """A register full of one number."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = b.insert_element(nothing, number, _INT(0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, _LANES), [0] * _LANES))


def _fetch(b: ir.IRBuilder, place: ir.Value) -> None:
    """Have the memory at a place brought nearer; does nothing where there is none."""
    byte = ir.IntType(8).as_pointer()
    form = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(b.module, form, "llvm.prefetch.p0")
    b.call(prefetch, [b.bitcast(place, byte), _INT(0), _INT(3), _INT(1)])  # read, keep, data


@_kept("void(uintp, intp, uintp, intp, intp, uintp, intp, uintp, intp, intp)")
def _rows(
    x: int,
    x_step: int,
    w: int,
    w_step: int,
    terms: int,
    y: int,
    y_step: int,
    factors: int,
    num: int,
    add: int,
) -> None:
    """Any number of rows, tile after tile; arguments as in `_tile`."""
    n = 0
    while n < num:
        a, b, f = x + 4 * n * x_step, y + 4 * n * y_step, factors + 4 * n
        some = min(_MOST, num - n)
        _tile(some, a, x_step, w, w_step, terms, b, y_step, f, add)
        n += some


@_kept(parallel=True, nogil=True)
def product(x_NI: Floats, w_BIW: Floats, factors_N: Floats, y_NO: Floats, add: int) -> None:
    """y = x w, each row times its factor; added to what is in y if ``add`` is 1 and not 0."""
    num, terms = len(factors_N), w_BIW.shape[1]
    for block in prange(len(w_BIW)):
        w = w_BIW.ctypes.data + 4 * block * terms * WIDTH
        x, y, f = x_NI.ctypes.data, y_NO.ctypes.data + 4 * block * WIDTH, factors_N.ctypes.data
        _rows(x, x_NI.shape[1], w, WIDTH, terms, y, y_NO.shape[1], f, num, add)


@njit(parallel=True, nogil=True, fastmath={"contract"})
def _gated(x_NC: Floats, gate_BCW: Floats, up_BCW: Floats, factors_N: Floats, y_NF: Floats) -> None:
    """y = silu(x gate) * (x up), both products times the row's factor (Shazeer 2020, SwiGLU)."""
    num, terms = len(factors_N), gate_BCW.shape[1]
    for block in prange(len(gate_BCW)):
        both = np.empty((2, num, WIDTH), np.float32)
        x, f = x_NC.ctypes.data, factors_N.ctypes.data
        for which in range(2):
            w = (up_BCW if which else gate_BCW).ctypes.data + 4 * block * terms * WIDTH
            y = both[which].ctypes.data
            _rows(x, x_NC.shape[1], w, WIDTH, terms, y, WIDTH, f, num, 0)
        for n in range(num):
            for j in range(WIDTH):
                gate = both[0, n, j]
                opened = gate / (np.float32(1.0) + _exp(-gate))
                y_NF[n, block * WIDTH + j] = opened * both[1, n, j]


# ---------------------------------------------------------------------- a row's own numbers


@intrinsic
def _bits(typing: Any, number: Any) -> Any:
    return types.int32(types.float32), lambda _, b, __, args: b.bitcast(args[0], _INT)


@intrinsic
def _of_bits(typing: Any, bits: Any) -> Any:
    return types.float32(types.int32), lambda _, b, __, args: b.bitcast(args[0], _FLOAT)


_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has few bits, so that its product with a small whole number is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_TO_WHOLE = np.float32(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number
_TO_WHOLE_BITS = np.int32(0x4B400000)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / f) for f in (2, 6, 24, 120, 720, 5040))


@njit(fastmath={"contract"}, inline="always")
def _exp(x: np.float32) -> np.float32:
    """e^x, to about 1e-7 of it, for x in [-87, 88] and cut off there; NaN for NaN.

    x = n ln 2 + r; Taylor's polynomial of r; n goes into the exponent (Cody and Waite 1980).
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    moved = x * _LOG2_E + _TO_WHOLE
    whole = moved - _TO_WHOLE
    r = x - whole * _LN2_HIGH
    r = r - whole * _LN2_LOW
    p = _C5 + r * (_C6 + r * _C7)
    p = _C2 + r * (_C3 + r * (_C4 + r * p))
    p = np.float32(1.0) + r * (np.float32(1.0) + r * p)
    exponent = (_bits(moved) - _TO_WHOLE_BITS + np.int32(127)) << np.int32(23)
    return p * _of_bits(np.int32(exponent))


@njit(fastmath={"contract", "reassoc"})
def _squares(x: Floats, num: int) -> np.float32:
    total = np.float32(0.0)
    for i in range(num):
        total += x[i] * x[i]
    return total


@njit(fastmath={"contract", "reassoc"})
def _total(x: Floats, num: int) -> np.float32:
    total = np.float32(0.0)
    for i in range(num):
        total += x[i]
    return total


@_kept()
def norms(x_NC: Floats, width: int, epsilon: np.float32, factors_N: Floats) -> None:
    """1 / sqrt(mean(x^2) + epsilon) of each row (Zhang and Sennrich 2019)."""
    for n in range(len(factors_N)):
        mean = _squares(x_NC[n], width) / np.float32(width)
        factors_N[n] = np.float32(1.0) / np.sqrt(mean + epsilon)


@njit(fastmath={"contract"})
def _turned(x_D: Floats, which: int, layer: int, position: int, w: Weights, y_D: Floats) -> None:
    """A query (0) or key (1), normed if the model does so, turned (Su et al. 2021, RoFormer)."""
    cos, sin, weight = w.cos[position], w.sin[position], w.head_norms[layer, which]
    half = len(cos)
    factor = np.float32(1.0)
    if w.has_head_norms:
        mean = _squares(x_D, 2 * half) / np.float32(2 * half)
        factor = np.float32(1.0) / np.sqrt(mean + w.epsilon)
    for i in range(half):
        a, b = x_D[i] * (factor * weight[i]), x_D[half + i] * (factor * weight[half + i])
        y_D[i] = a * cos[i] - b * sin[i]
        y_D[half + i] = b * cos[i] + a * sin[i]


# ---------------------------------------------------------------------- attention


@njit
def _store(
    layer: int, qkv_NO: Floats, first: int, w: Weights, rows: Rows, keys: Floats, values: Floats
) -> None:
    """Put keys, turned, and values of all rows into their places; keys begin at ``first``."""
    num_kv, page, dim = values.shape[2], values.shape[3], values.shape[4]
    turned = np.empty(dim, np.float32)
    for n in range(len(rows.positions)):
        position = rows.positions[n]
        z, p = rows.pages[rows.pieces[n], position // page], position % page
        for head in range(num_kv):
            start = first + head * dim
            _turned(qkv_NO[n, start : start + dim], 1, layer, position, w, turned)
            for d in range(dim):
                keys[layer, z, head, d, p] = turned[d]
                values[layer, z, head, p, d] = qkv_NO[n, start + num_kv * dim + d]


@njit(parallel=True, nogil=True)
def _attend(
    layer: int, qkv_NO: Floats, w: Weights, rows: Rows, keys: Floats, values: Floats, y_NC: Floats
) -> None:
    """Every row's queries look at all positions up to their own: its result for each head."""
    num_rows = len(y_NC)
    for task in prange(values.shape[2] * num_rows):
        _look(layer, task // num_rows, task % num_rows, qkv_NO, w, rows, keys, values, y_NC)


@njit
def _look(
    layer: int,
    head: int,
    n: int,
    qkv_NO: Floats,
    w: Weights,
    rows: Rows,
    keys: Floats,
    values: Floats,
    y_NC: Floats,
) -> None:
    """One row and one key head, page after page.

    A tile's last columns may lie beyond what is asked for: they are computed and not looked at.
    """
    num_kv, page, dim = values.shape[2], values.shape[3], values.shape[4]
    group = y_NC.shape[1] // (num_kv * dim)
    position, pages = rows.positions[n], rows.pages[rows.pieces[n]]
    num, columns = position + 1, (dim + WIDTH - 1) // WIDTH * WIDTH
    queries, sums = np.empty((group, dim), np.float32), np.empty((group, columns), np.float32)
    factors, scores = np.empty(group, np.float32), np.empty((group, num + WIDTH), np.float32)
    for g in range(group):
        start = (head * group + g) * dim
        _turned(qkv_NO[n, start : start + dim], 0, layer, position, w, queries[g])
        factors[g] = np.float32(1.0) / np.sqrt(np.float32(dim))
    s_step = scores.shape[1]
    # numba frees an array behind its last use by name, so addresses are taken inside the loops.
    for first in range(0, num, page):
        here = keys[layer, pages[first // page], head].ctypes.data
        q, s, f = queries.ctypes.data, scores.ctypes.data + 4 * first, factors.ctypes.data
        for at in range(0, min(page, num - first), WIDTH):
            _rows(q, dim, here + 4 * at, page, dim, s + 4 * at, s_step, f, group, 0)
    for g in range(group):
        factors[g] = _softmax(scores[g], num)
    for first in range(0, num, page):
        here, some = values[layer, pages[first // page], head].ctypes.data, min(page, num - first)
        s, y, f = scores.ctypes.data + 4 * first, sums.ctypes.data, factors.ctypes.data
        for at in range(0, columns, WIDTH):
            _rows(s, s_step, here + 4 * at, dim, some, y + 4 * at, columns, f, group, first)
    for g in range(group):
        for d in range(dim):
            y_NC[n, (head * group + g) * dim + d] = sums[g, d]


@njit(fastmath={"contract"})
def _softmax(scores: Floats, num: int) -> np.float32:
    """e^(score - highest) in place; returns the factor that makes them add up to 1."""
    tops = np.full(_LANES, -np.inf, np.float32)
    whole = num - num % _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            if scores[start + lane] > tops[lane]:
                tops[lane] = scores[start + lane]
    highest = np.float32(-np.inf)
    for lane in range(_LANES):
        highest = max(highest, tops[lane])
    for i in range(whole, num):
        highest = max(highest, scores[i])
    for i in range(num):
        scores[i] = _exp(scores[i] - highest)
    return np.float32(1.0) / _total(scores, num)


@_kept(nogil=True)
def layers(
    num: int, x_NC: Floats, width: int, w: Weights, rows: Rows, keys: Floats, values: Floats
) -> None:
    """The first ``num`` layers, in place on x, of which ``width`` columns count.

    ``keys`` [L, Z, K, D, P] and ``values`` [L, Z, K, P, D], with room for one tile after each.
    """
    num_rows = len(x_NC)
    ones, factors = np.ones(num_rows, np.float32), np.empty(num_rows, np.float32)
    y_NC = np.empty((num_rows, w.output.shape[2]), np.float32)
    qkv_NO = np.empty((num_rows, w.qkv.shape[1] * WIDTH), np.float32)
    y_NF = np.empty((num_rows, w.gate.shape[1] * WIDTH), np.float32)
    first = y_NC.shape[1]
    new, add = np.int64(0), np.int64(1)  # literals would have `product` compiled for each
    for layer in range(num):
        norms(x_NC, width, w.epsilon, factors)
        product(x_NC, w.qkv[layer], factors, qkv_NO, new)
        _store(layer, qkv_NO, first, w, rows, keys, values)
        _attend(layer, qkv_NO, w, rows, keys, values, y_NC)
        product(y_NC, w.output[layer], ones, x_NC, add)
        norms(x_NC, width, w.epsilon, factors)
        _gated(x_NC, w.gate[layer], w.up[layer], factors, y_NF)
        product(y_NF, w.down[layer], ones, x_NC, add)
