"""Units: what is read, what is refused, and that printing and reading agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import units
from atoll.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64 GiB", 64 * 2**30),
        ("64GiB", 64 * 2**30),
        ("80 GB", 80 * 10**9),
        ("1.5 KiB", 1536),
        ("0 B", 0),
        (" 3 B ", 3),
    ],
)
def test_bytes_are_read(text: str, expected: int) -> None:
    assert units.parse_bytes(text) == expected


def test_a_large_number_of_bytes_is_exact() -> None:
    # As a float this would be rounded.
    assert units.parse_bytes("9007199254740993 B") == 9007199254740993


@pytest.mark.parametrize(
    ("text", "expected"),
    [("400 Gb/s", 5e10), ("32 GB/s", 3.2e10), ("8 b/s", 1.0), ("1 GiB/s", 2.0**30)],
)
def test_bandwidth_is_in_bytes_a_second(text: str, expected: float) -> None:
    assert units.parse_bandwidth(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30 d", 2592000.0), ("60 ms", 0.06), ("1 h 30 min", 5400.0), ("5us", 5e-6), ("2.5 s", 2.5),
     ("1e3 s", 1e3), ("2e-1 d", 17280.0)],
)  # fmt: skip
def test_seconds_are_read(text: str, expected: float) -> None:
    assert units.parse_seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("1.5 B", 1_500_000_000), ("400", 400), ("2 K", 2000), ("1T", 10**12)]
)
def test_counts_are_read(text: str, expected: int) -> None:
    assert units.parse_count(text) == expected


def test_flops_and_watts_are_read() -> None:
    assert units.parse_flops("148 TFLOP/s") == 1.48e14
    assert units.parse_watts("30 MW") == 3e7


@pytest.mark.parametrize(
    ("parse", "text", "nearest"),
    [
        (units.parse_bytes, "64 Gib", '"GiB"'),
        (units.parse_bytes, "64 gb", '"GB"'),
        (units.parse_bandwidth, "400 Gbs", '"Gb/s"'),
        (units.parse_seconds, "30 days", "d"),
        (units.parse_seconds, "3 S", '"s"'),
        (units.parse_count, "1 b", '"B"'),
        (units.parse_flops, "148 TFLOPS", '"TFLOP/s"'),
    ],
)
def test_a_wrong_unit_names_the_nearest_and_all_known(parse, text: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert text in str(caught.value)
    assert nearest in caught.value.fix
    assert "known units:" in caught.value.fix


@pytest.mark.parametrize("text", ["", "GiB", "12 34 B", "-1 GiB", "1,5 GiB", "nan B", "0x10 B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        units.parse_bytes(text)


def test_a_size_without_a_unit_is_refused() -> None:
    with pytest.raises(InputError, match="needs a unit"):
        units.parse_bytes("64")


@pytest.mark.parametrize("value", [64, 6.4, True, None])
def test_a_bare_number_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_bytes(value)  # type: ignore[arg-type]  # the point of the test
    assert '"64 GiB"' in str(caught.value)


def test_a_part_of_a_byte_is_refused() -> None:
    with pytest.raises(InputError, match=r"0\.5 bytes"):
        units.parse_bytes("0.5 B")


@given(st.integers(0, 2**62), st.sampled_from(list(units.BYTES)))
def test_any_whole_number_of_any_unit_of_bytes_is_exact(number: int, unit: str) -> None:
    assert units.parse_bytes(f"{number} {unit}") == number * units.BYTES[unit]


@given(st.integers(0, 2**70))
def test_printed_bytes_read_back_within_the_digits_shown(number: int) -> None:
    text = units.format_bytes(number)
    value, unit = text.split(" ")
    back = float(value) * float(units.BYTES[unit])
    assert abs(back - number) <= 0.0006 * number


@given(st.integers(0, 2**50))
def test_printed_counts_read_back_within_the_digits_shown(number: int) -> None:
    back = units.parse_count(units.format_count(number))
    assert abs(back - number) <= 0.0006 * number


@given(st.floats(1e-6, 1e9))
def test_printed_seconds_read_back_within_a_percent(seconds: float) -> None:
    back = units.parse_seconds(units.format_seconds(seconds))
    # Two units at most: from 1 h on, half of the smaller unit may be lost.
    assert abs(back - seconds) <= max(0.01 * seconds, 0.0006e-6)


@given(st.floats(0, 1e18))
def test_printed_rates_show_at_most_four_digits(rate: float) -> None:
    value, unit = units.format_rate(rate).split(" ")
    assert unit.endswith("B/s")
    assert float(value) < 1000 or unit == "EB/s"
    assert sum(character.isdigit() for character in value.lstrip("0.")) <= 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0601, "60.1 ms"),
        (5425, "1 h 30 min"),
        (59.99, "1 min"),
        (3599.9, "1 h"),
        (86400 * 3, "3 d"),
        (0.00099999, "1 ms"),
        (-2, "-2 s"),
    ],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


def test_other_numbers_for_people() -> None:
    assert units.format_bytes(64 * 2**30) == "64 GiB"
    assert units.format_bytes(1023.99) == "1 KiB"
    assert units.format_count(1_500_000_000) == "1.5 B"
    assert units.format_count(7) == "7"
    assert units.format_rate(1.48e14, "FLOP/s") == "148 TFLOP/s"


def test_money_has_a_currency() -> None:
    assert units.parse_money("40 B CNY") == (4e10, "CNY")
    assert units.parse_money("120000 CNY") == (120000.0, "CNY")
    assert units.parse_money("1.5M USD") == (1.5e6, "USD")
    assert units.parse_rent("3.6 USD/h") == (0.001, "USD")


@pytest.mark.parametrize(
    "text", ["40", "40 B", "CNY", "40 cny", "-1 CNY", "1 CNY/h", "1e999 CNY", 7]
)
def test_what_is_no_money(text: object) -> None:
    with pytest.raises(InputError, match="money"):
        units.parse_money(text)


@pytest.mark.parametrize("text", ["40 CNY", "40 CNY/chip", "CNY/h", "-4 CNY/h", None])
def test_what_is_no_rent(text: object) -> None:
    with pytest.raises(InputError):
        units.parse_rent(text)
