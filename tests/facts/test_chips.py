"""Every chip, preset and corpus: strict, with sources, in sane ranges."""

import math

import pytest

from atoll import facts, strict
from atoll.errors import InputError
from atoll.model import Model

PARAMETERS = {
    # Published counts: the model cards' safetensors totals.
    "smollm2-135m": 134_515_008,
    "llama3-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
}


@pytest.mark.parametrize("name", facts.chips())
def test_a_chip_loads_and_is_named_as_its_file(name: str) -> None:
    chip = facts.chip(name)
    assert chip.name == name
    if chip.memory is not None:
        assert 1e9 <= chip.memory.num_bytes <= 1e12
        bandwidth = chip.memory.bytes_per_second
        assert bandwidth is None or 1e11 <= bandwidth <= 1e14


@pytest.mark.parametrize("name", facts.chips())
def test_speeds_are_dense_and_ordered(name: str) -> None:
    flops = facts.chip(name).flops
    if flops is None:
        return
    for number_format in ("fp32", "tf32", "fp16", "bf16", "fp8", "int8"):
        speed = flops.per_second(number_format)
        assert speed is None or 1e12 <= speed <= 1e16
    sixteen = [s for s in (flops.per_second("fp16"), flops.per_second("bf16")) if s]
    fp32, fp8 = flops.per_second("fp32"), flops.per_second("fp8")
    assert all(fp32 is None or fp32 <= speed for speed in sixteen)
    assert all(fp8 is None or fp8 >= speed for speed in sixteen)


def test_the_chips_of_the_examples_and_of_the_contract_are_there() -> None:
    assert {"cpu", "cpu-compat", "h20", "h800", "ascend-910b2", "mlu590"} <= set(facts.chips())


def test_the_second_kind_of_cpu_differs_by_its_environment_alone() -> None:
    plain, compat = facts.chip("cpu"), facts.chip("cpu-compat")
    assert plain.backend == compat.backend == "cpu"
    assert plain.environment == {}
    assert compat.environment == {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}


def test_an_unknown_number_is_none_not_zero() -> None:
    flops = facts.chip("mlu590").flops
    assert flops is not None
    assert flops.per_second("fp8") is None


def test_a_number_without_a_source_does_not_load() -> None:
    plain = {"name": "x", "backend": "cpu", "description": "x", "memory": {"size": "1 GB"}}
    with pytest.raises(InputError) as caught:
        strict.validate(facts.Chip, plain)
    assert caught.value.key == "memory.source"


def test_a_number_without_a_unit_does_not_load() -> None:
    memory = {"size": "64", "source": "a data sheet"}
    plain = {"name": "x", "backend": "cpu", "description": "x", "memory": memory}
    with pytest.raises(InputError, match="needs a unit") as caught:
        strict.validate(facts.Chip, plain)
    assert caught.value.key == "memory.size"


def test_an_unknown_chip_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        facts.chip("ascend-910b")
    assert 'nearest: "ascend-910b2"' in caught.value.fix
    assert "h800" in caught.value.fix


@pytest.mark.parametrize("name", facts.model_presets())
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    model = Model.model_validate(facts.model_preset(name))
    assert model.num_parameters() == PARAMETERS[name]
    assert sum(math.prod(shape) for shape in model.tensors().values()) == PARAMETERS[name]


def test_a_preset_handed_out_may_be_changed_without_harm() -> None:
    facts.model_preset("llama3-8b")["layers"] = 1
    assert facts.model_preset("llama3-8b")["layers"] == 32


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        facts.model_preset("smollm-135m")
    assert 'nearest: "smollm2-135m"' in caught.value.fix


def test_every_corpus_says_where_it_is_from_and_under_which_licence() -> None:
    corpora = facts.corpora()["corpus"]
    assert {"shakespeare", "stdlib", "sanguo"} <= set(corpora)
    for name, table in corpora.items():
        assert table["description"], name
        assert table["licence"], name
        assert table.get("source") or table.get("reader") == "stdlib", name
