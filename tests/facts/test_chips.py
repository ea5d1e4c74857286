"""Every chip and corpus: strict, with sources, in sane ranges."""

import math
from pathlib import Path

import pytest

from atoll import facts, strict
from atoll.errors import InputError

UNITS = {"", "chips", "devices", "mm2", "W", "B", "B/s", "FLOP/s", "USD", "USD/h"}

SANE = {
    # What no accelerator of these years leaves: a slip of a unit or of a factor of 8 does.
    "year": (2017, 2027),
    "devices": (2, 2),
    "node_chips": (4, 16),
    "die_area": (400, 2500),
    "power": (70, 1500),
    "memory.size": (16e9, 300e9),
    "memory.bandwidth": (200e9, 8.2e12),
    "link.bandwidth": (26e9, 970e9),
    "link.chips": (1, 9216),
    "network.bandwidth": (12.5e9 / 8, 800e9 / 8),
    "io.bandwidth": (26e9, 1000e9),
    "price": (1000, 40000),
    "rent": (0.2, 7),
}

PUBLISHED = {
    # Names in published tables of training runs -> the dense 16-bit peak that they count with.
    "A100-80GB": 312,
    "A100-40GB": 312,
    "A800-80GB": 312,
    "H100-80GB": 989,
    "H800-80GB": 989,
    "H200-141GB": 989,
    "GH200-96GB": 989,
    "B200": 2250,
    "B300": 2250,
    "GB200": 2500,
    "GB300": 2500,
    "V100-16GB": 125,
    "Ascend 910A": 256,
    "Ascend 910B": 353.9,
    "Ascend A3 die": 353.9,
    "Gaudi2": 432,
    "MI250X GCD": 191.5,
    "MI300X": 1307,
    "TPU v3": 123,
    "TPU v4": 275,
    "TPU v5e": 197,
    "TPU v5p": 459,
    "TPU v6e": 918,
    "TPU7x Ironwood": 2307,
    "Iluvatar BI-V150": 220,
    "MetaX C500": 280,
}

WITHOUT_NUMBERS = {"ascend", "cambricon", "nvidia", "cpu", "cpu-compat", "here"}
"""Kinds that stand for whatever a machine has."""

KNOWN = sorted(set(facts.chips()) - WITHOUT_NUMBERS)

PLAIN = {"name": "x", "backend": "here", "description": "x"}


def sixteen(chip: facts.Chip) -> tuple[float, float, float] | None:
    return chip.flops and (chip.flops.range("bf16") or chip.flops.range("fp16"))


def refuse(**keys: object) -> InputError:
    with pytest.raises(InputError) as caught:
        strict.validate(facts.Chip, PLAIN | keys, file="x.toml")
    assert caught.value.file == "x.toml"
    return caught.value


@pytest.mark.parametrize("name", facts.chips())
def test_a_chip_loads_and_is_named_as_its_file(name: str) -> None:
    assert facts.chip(name).name == name == name.lower()


@pytest.mark.parametrize("name", facts.chips())
def test_every_number_is_in_order_and_has_a_source(name: str) -> None:
    chip = facts.chip(name)
    for number in chip.numbers():
        assert 0 < number.low <= number.mid <= number.high < math.inf, number
        assert number.unit in UNITS
        assert len(number.source) >= 5, number
        assert number.basis == ("measured" if number.key.startswith("measured.") else "spec")
    keys = [number.key for number in chip.numbers()]
    assert len(keys) == len(set(keys))
    assert (chip.flops is None) == (not any(key.startswith("flops.") for key in keys))


@pytest.mark.parametrize("name", facts.chips())
def test_every_number_is_sane(name: str) -> None:
    for number in facts.chip(name).numbers():
        low, high = (9e12, 1.6e16) if number.unit == "FLOP/s" else SANE[number.key]
        assert low <= number.low and number.high <= high, number


@pytest.mark.parametrize("name", facts.chips())
def test_speeds_are_dense_and_ordered(name: str) -> None:
    flops = facts.chip(name).flops
    if flops is None:
        return
    narrow = [flops.per_second("fp16"), flops.per_second("bf16")]
    both = [speed for speed in narrow if speed]
    assert both and len(set(both)) == 1
    fp32, tf32, fp8, fp4 = map(flops.per_second, ("fp32", "tf32", "fp8", "fp4"))
    assert fp32 is None or fp32 <= 0.51 * both[0]
    assert tf32 is None or tf32 <= both[0]
    # Sparse speeds are twice the dense ones: a sparse 16-bit number would exceed 8 bits' half.
    assert fp8 is None or both[0] <= fp8 <= 2.1 * both[0]
    assert fp4 is None or fp8 is None or 1.9 * fp8 <= fp4 <= 3.4 * fp8


@pytest.mark.parametrize("name", facts.chips())
def test_what_was_measured_is_below_the_peak(name: str) -> None:
    chip = facts.chip(name)
    for number_format in facts.FORMATS if chip.measured else ():
        assert chip.measured and chip.flops
        measured, peak = (t.range(number_format) for t in (chip.measured, chip.flops))
        assert measured is None or (peak is not None and measured[2] <= peak[2])


@pytest.mark.parametrize("name", KNOWN)
def test_a_chip_that_one_can_buy_says_whose_it_is_and_how_sure_we_are(name: str) -> None:
    chip = facts.chip(name)
    assert chip.vendor and chip.confidence and chip.collectives
    assert (chip.backend in ("nvidia", "ascend", "cambricon")) == (
        chip.vendor in ("NVIDIA", "Huawei", "Cambricon")
    )
    if chip.confidence == "high":
        assert chip.flops and chip.memory and chip.memory.bandwidth
    if chip.confidence == "low":
        wide = [n for n in chip.numbers() if n.unit in ("FLOP/s", "B/s")]
        for number in wide:
            if number.basis == "spec" and not number.key.startswith("network"):
                assert number.low <= 0.851 * number.mid, number
                assert number.high >= 1.149 * number.mid, number


def test_the_catalogue_is_there_and_few_files_are_empty() -> None:
    assert len(KNOWN) >= 60
    assert {"cpu", "cpu-compat", "h20", "h800", "ascend-910b2", "mlu590"} <= set(facts.chips())
    empty = {name for name in facts.chips() if facts.chip(name).flops is None}
    assert empty == WITHOUT_NUMBERS | {"ascend-910d", "mlu690", "mi308x"}
    assert len({facts.chip(name).vendor for name in KNOWN}) >= 14
    linked = [name for name in KNOWN if facts.chip(name).link is not None]
    assert len(linked) >= 48


def test_a_chip_of_one_vendor_has_the_environment_of_its_siblings() -> None:
    for generic in ("nvidia", "ascend", "cambricon"):
        wanted = facts.chip(generic).environment
        kin = [chip for chip in map(facts.chip, facts.chips()) if chip.backend == generic]
        assert len(kin) >= 5
        assert all(chip.environment == wanted for chip in kin)


@pytest.mark.parametrize(("alias", "teraflops"), PUBLISHED.items())
def test_names_in_published_tables_are_known(alias: str, teraflops: float) -> None:
    chip = facts.resolve_chip(alias)
    between = sixteen(chip)
    assert between is not None
    assert between[1] == pytest.approx(teraflops * 1e12, rel=1e-3)
    assert facts.resolve_chip(alias.upper()) is facts.resolve_chip(alias.lower()) is chip


def test_a_chip_that_is_held_back_says_by_how_much() -> None:
    capped = sixteen(facts.resolve_chip("H100-96GB-500W"))
    assert capped is not None
    assert capped[0] < 0.9 * 989e12 and capped[2] == 989e12, "the uncapped peak is the limit"


def test_no_two_chips_share_a_name() -> None:
    owners: dict[str, str] = {}
    for name in facts.chips():
        for alias in (name, *facts.chip(name).aliases):
            assert owners.setdefault(alias.casefold(), name) == name, alias
            assert facts.resolve_chip(alias).name == name
    assert len(owners) > 1.5 * len(KNOWN)


@pytest.mark.parametrize(
    ("name", "bits", "teraflops", "tpp"),
    [
        # Total processing power (dense TFLOP/s x bits, the larger of 16 and 8), worked by hand.
        ("a100-sxm-80gb", 8, 624, 4992),
        ("h100-sxm-80gb", 8, 1979, 15832),
        ("h20", 16, 148, 2368),
        ("ascend-910b2", 8, 707.9, 5663),
        ("ascend-910c", 16, 752, 12032),
        ("mi300x", 8, 2614, 20912),
        ("rtx-4090", 8, 660.6, 5285),
        ("trainium2", 16, 667, 10672),
    ],
)
def test_total_processing_power(name: str, bits: int, teraflops: float, tpp: float) -> None:
    flops = facts.chip(name).flops
    assert flops is not None
    formats = ("fp8", "int8") if bits == 8 else ("bf16",)
    speeds = [speed for speed in map(flops.per_second, formats) if speed]
    assert max(speeds) == pytest.approx(teraflops * 1e12)
    assert max(speeds) / 1e12 * bits == pytest.approx(tpp, abs=1)


@pytest.mark.parametrize(
    ("whole", "part"), [("ascend-910c", "ascend-a3-die"), ("mi250x", "mi250x-gcd")]
)
def test_a_die_is_half_of_its_chip(whole: str, part: str) -> None:
    chip, die = facts.chip(whole), facts.chip(part)
    assert chip.devices == 2 and die.devices == 1
    assert chip.memory and die.memory and chip.link and die.link
    assert chip.memory.num_bytes == 2 * die.memory.num_bytes
    assert chip.link.bytes_per_second == 2 * die.link.bytes_per_second
    assert die.node_chips is not None and chip.node_chips is not None
    assert die.node_chips == 2 * chip.node_chips


def test_links_are_one_direction() -> None:
    known = {"h100-sxm-80gb": 450, "h800": 200, "a100-sxm-40gb": 300, "ascend-910b3": 196}
    for name, gigabytes in (known | {"mi300x": 448, "tpu-v4": 270, "b200": 900}).items():
        link = facts.chip(name).link
        assert link is not None
        assert link.bytes_per_second == pytest.approx(gigabytes * 1e9)
    mesh = {n for n in KNOWN if (link := facts.chip(n).link) and link.topology == "mesh"}
    assert {"ascend-910b1", "ascend-910b2", "ascend-910b3", "mi300x"} <= mesh
    assert not mesh & {"h800", "a800-sxm-80gb", "gb200", "ascend-910c", "rtx-4090"}


def test_the_second_kind_of_cpu_differs_by_its_environment_alone() -> None:
    plain, compat = facts.chip("cpu"), facts.chip("cpu-compat")
    assert plain.backend == compat.backend == "cpu"
    assert plain.environment == {}
    assert compat.environment == {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}


def test_an_unknown_number_is_none_not_zero() -> None:
    flops = facts.chip("mlu590").flops
    assert flops is not None
    assert flops.per_second("fp8") is None and flops.range("fp8") is None
    assert flops.per_second("source") is None
    memory = strict.validate(facts.Memory, {"size": "1 GiB", "source": "a data sheet"})
    assert (memory.num_bytes, memory.bytes_per_second) == (2**30, None)


def test_a_range_gives_its_middle() -> None:
    flops = facts.chip("ascend-910c").flops
    assert flops is not None
    assert flops.range("bf16") == (707.6e12, 752e12, 800e12)
    assert flops.per_second("bf16") == 752e12
    memory = facts.chip("mlu590").memory
    assert memory is not None and memory.num_bytes == 80e9


def test_only_the_chips_that_are_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    load = strict.load_toml
    monkeypatch.setattr(
        strict, "load_toml", lambda path: read.append(Path(path).stem) or load(path)
    )
    facts._listed_chip.cache_clear()
    names = ["h20", "h800", "mlu590", "ascend-910b2", "cpu"]
    assert len(facts.chips()) >= 60 and read == []
    for name in names * 2:
        assert facts.resolve_chip(name) is facts.chip(name)
    assert read == names


def test_a_number_without_a_source_does_not_load() -> None:
    for table, key, value in (
        ("memory", "size", "1 GB"),
        ("flops", "bf16", "1 TFLOP/s"),
        ("measured", "bf16", "1 TFLOP/s"),
        ("link", "bandwidth", "1 GB/s"),
        ("network", "bandwidth", "1 Gb/s"),
    ):
        assert refuse(**{table: {key: value}}).key == f"{table}.source"
    assert refuse(price={"low": 1.0, "high": 2.0}).key == "price.source"
    for key, loose in (("year", 2024), ("power", "1 W"), ("die_area", 1), ("node_chips", 8)):
        error = refuse(**{key: loose})
        assert error.key == "source" and key in str(error.fix)


def test_a_number_without_a_unit_does_not_load() -> None:
    for value in ("64", 64, 64.5):
        error = refuse(memory={"size": value, "source": "a data sheet"})
        assert error.key == "memory.size" and "needs a unit" in error.message
        assert error.value == value
    error = refuse(flops={"bf16": "5 TFLOPS", "source": "a data sheet"})
    assert error.key == "flops.bf16" and '"TFLOP/s"' in str(error.fix)
    error = refuse(link={"bandwidth": "5 GB", "source": "a data sheet"})
    assert error.key == "link.bandwidth"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"low": "1 TFLOP/s", "mid": "2 TFLOP/s"}, "flops.bf16.high"),
        ({"low": "1 TFLOP/s", "mid": "2 TFLOP/s", "hihg": "3 TFLOP/s"}, "flops.bf16.hihg"),
        ({"low": "1 TFLOP/s", "mid": "2", "high": "3 TFLOP/s"}, "flops.bf16.mid"),
        ({"low": "1 TFLOP/s", "mid": "4 TFLOP/s", "high": "3 TFLOP/s"}, "flops.bf16"),
        ([1], "flops.bf16"),
        (True, "flops.bf16"),
    ],
)
def test_a_wrong_range_is_refused_at_its_key(value: object, key: str) -> None:
    assert refuse(flops={"bf16": value, "source": "a data sheet"}).key == key


def test_wrong_areas_and_prices_are_refused() -> None:
    for area in ("814", True, 0, {"low": 3, "mid": 2, "high": 4}):
        assert str(refuse(die_area=area, source="x").key).startswith("die_area")
    error = refuse(price={"low": 2.0, "high": 1.0, "source": "x"})
    assert error.key == "price" and "low <= high" in error.message


def test_a_chip_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema = 1\nname = "mine"\nbackend = "here"\ndescription = "ours"\nsource = "a plan"\n'
        'die_area = { low = 1, mid = 2.5, high = 3 }\npower = "0.5 kW"\n'
        '[flops]\nbf16 = "5 TFLOP/s"\nsource = "a data sheet"\n'
    )
    chip = facts.load_chip(path)
    assert facts.chip(str(path)) == facts.resolve_chip(str(path)) == chip
    assert chip.flops and chip.flops.per_second("bf16") == 5e12
    assert [n.mid for n in chip.numbers()] == [2.5, 500, 5e12]
    assert "mine" not in facts.chips()
    path.write_text(path.read_text().replace("5 TFLOP/s", "6 TFLOP/s"))
    again = facts.chip(str(path)).flops
    assert again and again.per_second("bf16") == 6e12, "a file is read anew"


def test_a_path_is_told_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [n for n in facts.chips() if facts.is_chip_file(n)] == []
    monkeypatch.chdir(tmp_path)
    for name in ("./h20", "h20.toml", "chips/h20.toml"):
        assert facts.is_chip_file(name)
        with pytest.raises(InputError, match="no such file") as caught:
            facts.chip(name)
        assert caught.value.file is not None and "h20" in caught.value.file


def test_what_is_wrong_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    head = 'name = "mine"\nbackend = "here"\ndescription = "ours"\n'
    for text, key in ((head + "devises = 2\n", "devises"), ('name = "mine"\n', "backend")):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            facts.load_chip(path)
        assert (caught.value.file, caught.value.key) == (str(path), key)
    path.write_text("schema = 2\n" + head)
    with pytest.raises(InputError, match="newer Atoll"):
        facts.load_chip(path)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ascend-910b", '"ascend-910b2"'),
        ("A100-80GB", '"a100-sxm-80gb"'),
        ("h-800", '"h800"'),
        ("mi-300x", '"mi300x"'),
    ],
)
def test_an_unknown_chip_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        facts.chip(name)
    first, last = str(caught.value.fix).splitlines()
    assert first.startswith(f"nearest: {nearest}")
    assert "atoll chips" in last
    assert caught.value.value == name


def test_a_name_like_no_other_gets_no_nearest() -> None:
    for find in (facts.chip, facts.resolve_chip):
        with pytest.raises(InputError, match="no such chip") as caught:
            find("anonymous vendor (*)")
        assert "nearest" not in str(caught.value.fix)


def test_every_corpus_says_where_it_is_from_and_under_which_licence() -> None:
    corpora = facts.corpora()["corpus"]
    assert {"shakespeare", "stdlib", "sanguo"} <= set(corpora)
    for name, table in corpora.items():
        assert table["description"], name
        assert table["licence"], name
        assert table.get("source") or table.get("reader") == "stdlib", name
