"""The largest model by a day: the laws by hand, the ladder and its bisection by rule."""

import itertools
import json
import tomllib
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.test_calendar import change, files, fleet, island
from tests.pure.test_plan_command import RECIPE

from atoll import facts
from atoll.cli import main
from atoll.errors import InputError
from atoll.facts.scaling import laws, rule_of
from atoll.model import Model
from atoll.planning.calendar import calendar_of, day_after, first_plan
from atoll.planning.deadline import Deadline, highest, largest, summary
from atoll.planning.family import STEP, ladder, rule_for, scaled, sized
from atoll.planning.planner import Asked, NoPlan, plan
from atoll.recipe import Recipe

START = date(2024, 7, 1)


def with_tokens(tokens: str | None = None, **model: object) -> Recipe:
    plain = tomllib.loads(RECIPE)
    if tokens is not None:
        plain["schedule"] = {"tokens": tokens}
    plain["model"] |= model
    return Recipe.from_dict(plain)


# ------------------------------------------------------------------ laws


# FLOP, and the optimum by the refit of Besiroglu et al.: a table worked out by somebody else from
# the same constants, in B parameters, T tokens, nats.
WORKED = [
    (4.95e23, 67, 1.2, 1.979),
    (2.71e24, 160, 2.8, 1.937),
    (1.49e25, 382, 6.5, 1.905),
    (6.61e25, 821, 13.4, 1.885),
]


@pytest.mark.parametrize(("flops", "parameters", "tokens", "loss"), WORKED)
def test_the_refit_by_a_worked_table(flops, parameters, tokens, loss) -> None:
    law = laws()["chinchilla-epoch"]
    n, d = law.optimum(flops)
    assert n / 1e9 == pytest.approx(parameters, rel=0.01)
    assert d / 1e12 == pytest.approx(tokens, rel=0.04)
    assert law.loss(n, d) == pytest.approx(loss, abs=6e-4)
    assert law.tokens(n) == pytest.approx(d)


@given(st.floats(20, 27), st.floats(-0.5, 0.5))
def test_no_other_model_of_the_same_flops_has_less_loss(exponent, off) -> None:
    law = laws()["chinchilla-epoch"]
    n, d = law.optimum(10.0**exponent)
    assert law.loss(n * 10.0**off, d / 10.0**off) >= law.loss(n, d) * (1 - 1e-12)


def test_tokens_by_a_rule_are_steps_of_the_recipe() -> None:
    twenty, plain = with_tokens("20 a parameter"), with_tokens()
    parameters = twenty.model.num_parameters()
    assert twenty.total_steps() == -(-20 * parameters // twenty.tokens_per_step)
    law = laws()["chinchilla-epoch"]
    assert with_tokens("chinchilla-epoch").total_steps() == pytest.approx(
        law.tokens(parameters) / plain.tokens_per_step, abs=1
    )
    # Only the steps decide bits: the same digest as with the number written out.
    written = Recipe.from_dict(twenty.as_dict())
    assert written.schedule.steps == twenty.total_steps()
    assert written.digest("x") == twenty.digest("x")


def test_experts_count_where_they_take_part() -> None:
    sparse = {"experts": 8, "top_k": 2, "moe_ffn": 14336}
    recipe = with_tokens("20 a parameter", **sparse)
    active = recipe.model.num_active_parameters()
    assert active < 0.5 * recipe.model.num_parameters()
    assert recipe.total_steps() == -(-20 * active // recipe.tokens_per_step)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("chinchila-epoch", 'nearest: "chinchilla-epoch"'),
        ("0 a parameter", "no number of tokens a parameter"),
        ("9e99 a parameter", "no number of tokens a parameter"),
        ("20 per parameter", "is not a count"),
        ("-20 a parameter", "is not a count"),
    ],
)
def test_no_rule(tokens, said) -> None:
    with pytest.raises(InputError) as caught:
        with_tokens(tokens)
    assert caught.value.key == "schedule.tokens" and said in str(caught.value)


def test_a_rule_needs_a_vocabulary() -> None:
    plain = tomllib.loads(RECIPE)
    plain["schedule"] = {"tokens": "20 a parameter"}
    plain["data"]["tokenizer"] = {"path": "tokenizer.json"}
    assert Recipe.from_dict(plain).total_steps() > 0
    del plain["model"]["vocab"]
    with pytest.raises(InputError) as caught:
        Recipe.from_dict(plain)
    assert caught.value.key == "model.vocab"


# ------------------------------------------------------------------ the ladder


DATA = {"data": {"corpus": "any", "tokenizer": {"path": "tokenizer.json"}}}


@pytest.mark.parametrize("name", ["llama3-405b", "qwen3-0.6b", "deepseek-v3", "gpt3-175b"])
def test_a_ladder_rises_and_holds_its_own_model(name) -> None:
    recipe = Recipe.from_dict({**tomllib.loads(RECIPE), "model": facts.model_preset(name)} | DATA)
    models = ladder(recipe)
    sizes = [model.num_parameters() for model in models]
    assert sizes == sorted(set(sizes)) and recipe.model in models
    near = [b / a for a, b in itertools.pairwise(sizes) if 1e10 < a < 1e12]
    assert max(near) < 1.12 and sum(near) / len(near) < STEP + 0.03
    for model in models[:: len(models) // 20]:
        aspect = (model.width / model.layers) / (recipe.model.width / recipe.model.layers)
        if model.num_parameters() > 2e10:
            assert 0.7 < aspect < 1.4, model
        assert model.resolved_head_dim == pytest.approx(recipe.model.resolved_head_dim, rel=0.1)
        assert model.experts == recipe.model.experts and model.vocab == recipe.model.vocab


def test_a_scaled_model_by_hand() -> None:
    own = Model.model_validate(facts.model_preset("llama3-405b"))
    # An eighth of the layers' parameters: half as deep, half as wide, the same 128 a head.
    small = scaled(own, own.num_parameters() / 8)
    assert (small.width, small.heads, small.kv_heads, small.ffn) == (8192, 64, 8, 26880)
    assert small.num_parameters() == pytest.approx(own.num_parameters() / 8, rel=0.02)


LADDER = ladder(with_tokens())


@given(st.integers(0, len(LADDER) - 1))
def test_a_sized_recipe_has_the_tokens_of_the_rule(rung) -> None:
    recipe, models = with_tokens("20 a parameter"), LADDER
    model = models[min(rung, len(models) - 1)]
    found = sized(recipe, model, rule_for(recipe))
    tokens = found.total_steps() * found.tokens_per_step
    wanted = 20 * model.num_active_parameters()
    assert wanted <= tokens < wanted + found.tokens_per_step
    assert found.batch.grain == recipe.batch.grain
    assert found.schedule.warmup <= found.total_steps()
    if model == recipe.model:
        assert found.batch == recipe.batch
    else:
        larger = model.num_parameters() > recipe.model.num_parameters()
        assert (found.num_grains >= recipe.num_grains) == larger or found.batch == recipe.batch


# ------------------------------------------------------------------ by a day


def by(day: str, stock=None, tokens: str | None = None, courses=("mid",)) -> Deadline:
    stock = stock if stock is not None else fleet()
    last = date.fromisoformat(day)
    return largest(with_tokens(tokens), stock, Asked(day=START), by=last, courses=courses)


def test_the_largest_is_done_and_the_next_one_is_not() -> None:
    stock = fleet(delivery=[change("2024-07-11", 0, 32, 64)])
    found = by("2024-08-01", stock, courses=("mid", "low", "high"))
    mid, larger = found.mid, found.larger
    limit = date(2024, 8, 1)
    assert larger is not None and larger.model.num_parameters() > mid.model.num_parameters()
    end = day_after(START, mid.done)
    assert end is not None and end <= limit
    assert larger.done is None or day_after(START, larger.done) > limit
    low, high = found.sizes["low"], found.sizes["high"]
    assert low is not None and high is not None
    sizes = [one.model.num_parameters() for one in (low, mid, high)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    # It is planned as any other recipe is, on the fleet of each period.
    asked = Asked(day=START)
    run = calendar_of(first_plan(mid.recipe, stock, asked), stock, asked)
    assert run.mid.done == pytest.approx(mid.done)
    lines = dict(summary(found))
    assert f"done on {end}" in lines["largest"] and "loss" in lines["largest"]
    assert list(lines) == ["largest", "if few come", "if many come", "one larger"]


def test_by_hand_on_a_fleet_that_stays() -> None:
    """Done in 31 days and a bit: a plain plan of the same size says the same."""
    found = by("2024-07-31")
    answer = plan(found.mid.recipe, fleet(), Asked(day=START))
    assert found.mid.done == pytest.approx(answer.finish_seconds.mid)
    assert 0.85 * 31 * 86400 < found.mid.done < 31 * 86400
    assert found.mid.tokens == pytest.approx(20 * found.mid.model.num_parameters(), rel=1e-3)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(0, 50), st.integers(0, 9))
def test_more_time_is_never_a_lower_rung(ends, limit, more) -> None:
    """Whatever the days on which the rungs are done, in whatever order."""
    first = highest(len(ends), lambda rung: ends[rung] <= limit)
    second = highest(len(ends), lambda rung: ends[rung] <= limit + more)
    assert first <= second
    assert first < 0 or ends[first] <= limit
    assert first + 1 == len(ends) or ends[first + 1] > limit


def test_a_later_day_is_never_a_smaller_model() -> None:
    stock = fleet(delivery=[change("2024-07-20", 16, 16, 16)])
    days = ("2024-07-05", "2024-07-24", "2024-07-25")
    sizes = [by(day, stock).mid.model.num_parameters() for day in days]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[-1]


def test_more_chips_are_never_a_smaller_model() -> None:
    sizes = [
        by("2024-08-01", fleet(island=[island(nodes=nodes)])).mid.model.num_parameters()
        for nodes in (1, 6)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_small_chips_bound_by_memory() -> None:
    """Years of time on eight cards of 24 GiB: what does not fit is not the answer."""
    cards = fleet(island=[island(nodes=1, chip="rtx-4090")])
    found = by("2090-01-01", cards)
    assert found.larger is not None and "fits on no island" in found.larger.why
    memory = 8 * 24 * 2**30
    assert found.mid.model.num_parameters() * 8 < memory


def test_the_law_of_the_recipe_is_used() -> None:
    refit, many = (
        by("2024-08-01", tokens="chinchilla-epoch"),
        by("2024-08-01", tokens="100 a parameter"),
    )
    assert many.rule.ratio == 100.0 and refit.rule.law is not None
    assert many.mid.model.num_parameters() < 0.6 * refit.mid.model.num_parameters()
    size = refit.mid.model.num_parameters()
    assert refit.mid.tokens == pytest.approx(
        laws()["chinchilla-epoch"].tokens(size), abs=refit.mid.recipe.tokens_per_step
    )
    assert rule_of("20 a parameter") == rule_for(with_tokens())


def test_not_even_the_smallest() -> None:
    tiny = fleet(island=[island(nodes=0)], delivery=[change("2024-12-01", 8, 8, 8)])
    with pytest.raises(NoPlan) as caught:
        by("2024-08-01", tiny)
    assert "parameters are done by 2024-08-01" in str(caught.value)


# ------------------------------------------------------------------ the command


def test_the_object_of_a_deadline(capsys, tmp_path) -> None:
    paths, page = files(tmp_path), tmp_path / "plan.html"
    flags = ["--from", "2024-07-01", "--by", "2024-08-01", "--draws", "50", "--report", str(page)]
    assert main(["plan", *paths, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    size, deadline = found["deadline"]["mid"], found["deadline"]
    assert (deadline["by"], deadline["rule"]) == ("2024-08-01", "20 a parameter")
    assert found["done_by"]["mid"] == size["done"] <= "2024-08-01"
    assert deadline["low"]["parameters"] <= size["parameters"] <= deadline["high"]["parameters"]
    assert size["tokens"] == found["calendar"]["tokens"]
    law = laws()[size["loss_law"]]
    assert size["loss"] == pytest.approx(law.loss(size["parameters"], size["tokens"]))
    assert "The largest model by 2024-08-01" in page.read_text()


BAD = [
    (["--by", "2024-08-01"], ["--by", "option of --from"]),
    (["--what-if", "without a"], ["--what-if", "option of --from"]),
    (["--from", "2024-07-01", "--by", "2024-07-01"], ["--by", "not after the first day"]),
    (["--from", "2024-07-01", "--by", "soon"], ["--by", "is no date"]),
    (["--from", "2024-07-01", "--by", "9999-01-01"], ["--by", "2100"]),
    (["--from", "2024-07-01", "--by", "2024-08-01", "--emit", "ray", "--to", "x"], ["--by", "ray"]),
]


@pytest.mark.parametrize(("flags", "said"), BAD)
def test_bad_input_ends_in_one_message(capsys, tmp_path, flags, said) -> None:
    assert main(["plan", *files(tmp_path), *flags]) == 2
    told = capsys.readouterr().err
    assert told.count("atoll: ") == 1 and "Traceback" not in told
    for part in said:
        assert part in told, told
