"""Text with a unit <-> bytes, bytes/s, seconds, FLOP/s, watts, counts.

Files say "64 GiB" or "400 Gb/s"; code holds plain numbers in base units. Upper and lower case
matter (b is a bit, B is a byte). This module knows no chip and no rule.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

from atoll.errors import InputError

_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}

BYTES: Mapping[str, Fraction] = {
    "B": Fraction(1),
    **{prefix + "B": Fraction(factor) for prefix, factor in {**_DECIMAL, **_BINARY}.items()},
}
BANDWIDTHS: Mapping[str, Fraction] = {
    "b/s": Fraction(1, 8),
    **{prefix + "b/s": Fraction(_DECIMAL[prefix], 8) for prefix in ("K", "M", "G", "T")},
    "B/s": Fraction(1),
    **{prefix + "B/s": Fraction(_DECIMAL[prefix]) for prefix in ("K", "M", "G", "T")},
    **{prefix + "B/s": Fraction(_BINARY[prefix]) for prefix in ("Ki", "Mi", "Gi", "Ti")},
}
SECONDS: Mapping[str, Fraction] = {
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
COUNTS: Mapping[str, Fraction] = {
    "": Fraction(1),
    "K": Fraction(10**3),
    "M": Fraction(10**6),
    "B": Fraction(10**9),
    "T": Fraction(10**12),
}
FLOPS: Mapping[str, Fraction] = {
    "FLOP/s": Fraction(1),
    **{prefix + "FLOP/s": Fraction(factor) for prefix, factor in _DECIMAL.items()},
}
WATTS: Mapping[str, Fraction] = {
    "W": Fraction(1),
    "kW": Fraction(10**3),
    "MW": Fraction(10**6),
    "GW": Fraction(10**9),
}

_MONEY = re.compile(
    r"\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2})?)\s*([KMBT]?)\s+([A-Z]{3})\s*", re.ASCII
)
_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2})?)\s*([A-Za-z/]*)\s*", re.ASCII)


def parse_bytes(text: str) -> int:
    """ "64 GiB" -> 68719476736. Raises InputError for another unit or a part of a byte."""
    return _whole(text, _parse(text, BYTES, "size", "64 GiB"), "bytes")


def parse_bandwidth(text: str) -> float:
    """Bytes a second: "400 Gb/s" -> 5e10, "32 GB/s" -> 3.2e10. Raises InputError."""
    return float(_parse(text, BANDWIDTHS, "bandwidth", "400 Gb/s"))


def parse_seconds(text: str) -> float:
    """ "60 ms" -> 0.06, "1 h 30 min" -> 5400.0. Raises InputError."""
    parts = [] if _read(text) else re.findall(r"[^A-Za-z]+[A-Za-z]+", text)
    if len(parts) > 1 and "".join(parts) == text.rstrip():
        return float(sum(_parse(part, SECONDS, "time", "30 d") for part in parts))
    return float(_parse(text, SECONDS, "time", "30 d"))


def parse_count(text: str) -> int:
    """ "1.5 B" -> 1500000000 (K, M, B, T; no unit: ones). Raises InputError."""
    return _whole(text, _parse(text, COUNTS, "count", "1.5 B"), "units")


def parse_flops(text: str) -> float:
    """FLOP a second: "148 TFLOP/s" -> 1.48e14. Raises InputError."""
    return float(_parse(text, FLOPS, "speed", "148 TFLOP/s"))


def parse_watts(text: str) -> float:
    """Watts: "30 MW" -> 3e7. Raises InputError."""
    return float(_parse(text, WATTS, "power", "30 MW"))


def parse_money(text: str) -> tuple[float, str]:
    """ "40 B CNY" -> (4e10, "CNY"): a number, K M B or T, three capitals. Raises InputError."""
    fix = 'write a number and a currency of three capitals, for example "40 B CNY"'
    if not isinstance(text, str):
        raise InputError("an amount of money needs a currency", value=text, fix=fix)
    match = _MONEY.fullmatch(text)
    if match is None:
        raise InputError("is no amount of money", value=text, fix=fix)
    number = Fraction(match[1]) * COUNTS[match[2] or ""]
    if number < 0:
        raise InputError("an amount of money is not negative", value=text, fix=fix)
    return float(number), match[3]


def parse_rent(text: str) -> tuple[float, str]:
    """Money a second: "3.6 USD/h" -> (0.001, "USD"). Raises InputError."""
    amount, slash, unit = text.partition("/") if isinstance(text, str) else (text, "", "")
    if not slash or unit.strip() not in SECONDS:
        fix = 'write money a time, for example "2.95 USD/h"'
        raise InputError("is no rent", value=text, fix=fix)
    number, currency = parse_money(amount)
    return number / float(SECONDS[unit.strip()]), currency


def format_bytes(number: float) -> str:
    """For people, four digits: 68719476736 -> "64 GiB"."""
    steps = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    return _stepped(number, steps, 1024)


def format_count(number: float) -> str:
    """For people, four digits: 1500000000 -> "1.5 B"."""
    return _stepped(number, ("", "K", "M", "B", "T"), 1000)


def format_rate(number: float, unit: str = "B/s") -> str:
    """For people, four digits: (5e10) -> "50 GB/s"; (1.48e14, "FLOP/s") -> "148 TFLOP/s"."""
    steps = tuple(prefix + unit for prefix in ("", *_DECIMAL))
    return _stepped(number, steps, 1000)


def format_seconds(seconds: float) -> str:
    """For people, at most two units: 0.0601 -> "60.1 ms", 5425 -> "1 h 30 min"."""
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if seconds == 0 or 59.95 > seconds >= 1:
        return f"{_digits(seconds, 3)} s"
    if seconds < 1:
        unit, factor = ("ms", 1e3) if seconds >= 0.9995e-3 else ("us", 1e6)
        return f"{_digits(seconds * factor, 3)} {unit}"
    for large, small in (("min", "s"), ("h", "min"), ("d", "h")):
        size, part = SECONDS[large], SECONDS[small]
        num_parts = round(Fraction(seconds) / part)
        whole, rest = divmod(num_parts, size / part)
        if large == "d" or whole * size < SECONDS[{"min": "h", "h": "d"}[large]]:
            break
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def _parse(text: object, units: Mapping[str, Fraction], what: str, example: str) -> Fraction:
    """The value of `text` in base units, exactly. Raises InputError."""
    if not isinstance(text, str):
        fix = f'write it as text with a unit, for example "{example}"'
        raise InputError(f"a {what} needs a unit", value=text, fix=fix)
    read = _read(text)
    if read is None:
        fix = f'write a number and a unit, for example "{example}"'
        raise InputError(f"is not a {what}", value=text, fix=fix)
    number, unit = read
    if unit not in units:
        message = f'"{unit}" is no unit of {what}' if unit else f"a {what} needs a unit"
        raise InputError(message, value=text, fix=_unit_fix(unit, units))
    if number < 0:
        raise InputError(f"a {what} is not negative", value=text, fix=f'for example "{example}"')
    return number * units[unit]


@lru_cache(maxsize=1024)  # a search asks for the same few links thousands of times
def _read(text: str) -> tuple[Fraction, str] | None:
    """Number and unit of a text, None if it is something else."""
    match = _QUANTITY.fullmatch(text)
    return None if match is None else (Fraction(match[1]), match[2])


def _unit_fix(unit: str, units: Mapping[str, Fraction]) -> str:
    """The nearest unit, if any, and all that are known."""
    known = ", ".join(name for name in units if name)
    same_letters = [name for name in units if unit and name.lower() == unit.lower()]
    near = same_letters or difflib.get_close_matches(unit, [name for name in units if name], n=1)
    return (f'nearest: "{near[0]}"\n' if near else "") + f"known units: {known}"


def _whole(text: str, number: Fraction, what: str) -> int:
    """`number` as an int, or InputError if it has a fraction."""
    if number.denominator != 1:
        fix = f"write a value that is a whole number of {what}"
        raise InputError(f"is {float(number):g} {what}", value=text, fix=fix)
    return int(number)


def _stepped(number: float, steps: tuple[str, ...], factor: int) -> str:
    """`number` with the largest unit that leaves at least 1 before the point."""
    size, index = abs(number), 0
    while index + 1 < len(steps) and float(_digits(size, 4)) >= factor:
        size, index = size / factor, index + 1
    sign = "-" if number < 0 else ""
    return f"{sign}{_digits(size, 4)} {steps[index]}".rstrip()


def _digits(number: float, significant: int) -> str:
    """`number` >= 0 with so many significant digits, no exponent, no trailing zeros."""
    if number == 0:
        return "0"
    before = len(str(int(number))) if number >= 1 else 0
    text = f"{number:.{max(significant - before, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
