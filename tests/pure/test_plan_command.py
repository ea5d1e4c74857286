"""`atoll plan` as people and scripts use it: its object, its file, one clear error for a fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.cli import main
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import Plan
from atoll.recipe import Recipe

RECIPE = """
name = "mid"
seed = 1
[model]
layers = 32
width = 4096
heads = 32
kv_heads = 8
ffn = 14336
context = 2048
vocab = 32000
[data]
corpus = "stdlib"
tokenizer = { train = 32000 }
[batch]
sequences = 64
grain = 2
[optimizer]
lr = 3e-3
[schedule]
steps = 300
kind = "cosine"
[precision]
compute = "bf16"
"""

ISLAND = """
[[island]]
name = "a"
chip = "h20"
nodes = 4
chips_per_node = 8
"""

TWO_SITES = """
[[site]]
name = "home"
[[site]]
name = "johor"
[[island]]
name = "a"
site = "home"
chip = "h20"
nodes = 2
chips_per_node = 8
[[island]]
name = "b"
site = "johor"
chip = "h100-sxm-80gb"
nodes = 4
chips_per_node = 8
[[link]]
between = ["home", "johor"]
bandwidth = "400 Gb/s"
latency = "1 ms"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path / "recipe.toml", RECIPE)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    return write(tmp_path / "fleet.toml", ISLAND)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """The object of `atoll plan ... --json`, which is all of stdout."""
    code = main(["plan", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def ordered(numbers: dict) -> bool:
    return numbers["low"] <= numbers["mid"] <= numbers["high"]


def test_the_object_has_what_scripts_use(capsys, tmp_path, recipe) -> None:
    found = planned(capsys, recipe, write(tmp_path / "two.toml", TWO_SITES))
    step = found["step_seconds"]
    assert set(step) == {"low", "mid", "high", "basis"}
    assert 0 < step["low"] < step["mid"] < step["high"] and step["basis"] == "fitted"
    tokens = 64 * 2048
    assert found["tokens_per_second"] == pytest.approx(tokens / step["mid"])
    assert 0.05 < found["mfu"] < 0.9
    names = set(found["shares"])
    assert names and names <= {"a", "b"}
    assert set(found["memory"]) == set(found["layout"]) == names
    for name in names:
        assert 0 < found["memory"][name]["used"] < found["memory"][name]["size"]
        assert found["layout"][name]["tp"] >= 1 and found["layout"][name]["dp"] >= 1
    assert sum(found["shares"].values()) == 32
    assert ordered(found["finish"]) and found["steps"] == 300
    assert found["rejected"]
    for one in found["rejected"]:
        assert set(one) == {"what", "why"} and one["what"] and one["why"]
    assert found["search_seconds"] > 0
    assert found["contract"] in ("bitwise", "replicas identical, replayable")


def test_the_parts_of_an_island_add_up_to_its_time(capsys, recipe, fleet) -> None:
    found = planned(capsys, recipe, fleet)
    parts = sum(found["parts"]["a"].values())
    assert parts > 0
    # What published runs say is a factor on the whole, between a half and twice.
    assert 0.5 < found["seconds"]["a"] / parts < 2.0
    assert found["step_seconds"]["mid"] == pytest.approx(found["seconds"]["a"])
    assert found["exchange"]["seconds"] == 0


def test_people_see_the_same_numbers(capsys, recipe, fleet) -> None:
    found = planned(capsys, recipe, fleet)
    assert main(["plan", str(recipe), str(fleet)]) == 0
    shown = capsys.readouterr().out
    assert f"{100 * found['mfu']:.1f} % of the peak (MFU)" in shown
    assert found["executor"] in shown and "fitted" in shown and "why not" in shown
    for note in found["notes"]:
        assert note in shown


def test_a_saved_plan_is_read_and_the_same_each_time(capsys, tmp_path, recipe) -> None:
    fleet = write(tmp_path / "two.toml", TWO_SITES)
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    found = [planned(capsys, recipe, fleet, "--save", path) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    plan = Plan.load(paths[0])
    assert plan.executor == found[0]["executor"]
    assert plan.fleet_digest == Fleet.load(fleet).digest()
    assert plan.read_recipe().digest("d") == Recipe.load(recipe).digest("d")
    assert {one.name: one.share for one in plan.islands} == found[0]["shares"]
    assert {one.name: one.layout.model_dump() for one in plan.islands} == found[0]["layout"]
    assert plan.estimates["step_seconds"] == found[0]["step_seconds"]
    left = [one.model_dump() for one in plan.left_out]
    assert left == found[0]["rejected"]
    for key in ("search_seconds",):
        found[0].pop(key), found[1].pop(key)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("tp=8,pp=4", {"tp": 8, "pp": 4, "dp": 1}),
        ("tp=4,dp=2,microbatch=1", {"tp": 4, "dp": 2, "microbatch": 1}),
        ("recompute=full,zero=0", {"recompute": "full", "zero": 0}),
        ("pp=2,vpp=4,sequence_parallel=false", {"pp": 2, "vpp": 4, "sequence_parallel": False}),
    ],
)
def test_keys_of_a_layout_are_respected(capsys, recipe, fleet, keys, wanted) -> None:
    layout = planned(capsys, recipe, fleet, "--layout", keys)["layout"]["a"]
    assert {key: layout[key] for key in wanted} == wanted
    assert layout["dp"] * layout["tp"] * layout["pp"] * layout["cp"] <= 32


def test_a_fixed_layout_is_no_faster_than_the_free_one(capsys, recipe, fleet) -> None:
    free = planned(capsys, recipe, fleet)["step_seconds"]["mid"]
    fixed = planned(capsys, recipe, fleet, "--layout", "tp=8,pp=4")["step_seconds"]["mid"]
    assert fixed >= free


def test_set_changes_the_recipe_that_is_planned(capsys, recipe, fleet) -> None:
    plain = planned(capsys, recipe, fleet)
    doubled = planned(capsys, recipe, fleet, "--set", "schedule.steps=600")
    assert doubled["steps"] == 2 * plain["steps"]
    assert doubled["finish_seconds"]["mid"] == pytest.approx(2 * plain["finish_seconds"]["mid"])


def test_rounds_are_another_contract(capsys, tmp_path, recipe) -> None:
    fleet = write(tmp_path / "two.toml", TWO_SITES)
    found = planned(capsys, recipe, fleet, "--exchange", "rounds")
    assert (found["contract"], found["exchange"]["every"]) == ("rounds", "rounds")
    assert found["executor"].startswith("emit:")


def test_what_atoll_runs_today_is_for_atoll(capsys, tmp_path, examples, fleet) -> None:
    tiny = examples / "recipes" / "tiny.toml"
    path = tmp_path / "plan.json"
    found = planned(capsys, tiny, fleet, "--executor", "atoll", "--save", path)
    assert found["executor"] == "atoll"
    plan = Plan.load(path)
    plan.require_executor()
    assert plan.islands[0].num_lanes == found["layout"]["a"]["dp"] == 8  # a lane for each grain


def test_a_plan_for_atoll_counts_its_own_habits(capsys, tmp_path, examples, fleet) -> None:
    tiny = examples / "recipes" / "tiny.toml"
    found = planned(capsys, tiny, fleet)
    own = planned(capsys, tiny, fleet, "--executor", "atoll")
    assert (found["executor"], found["step_seconds"]) == ("atoll", own["step_seconds"])
    (other,) = [one for one in found["rejected"] if one["what"] == "another tool"]
    assert "% less" in other["why"] and "--emit" in other["why"]


def test_a_plan_for_another_tool_is_not_for_atoll(capsys, tmp_path, examples, fleet) -> None:
    tiny = examples / "recipes" / "tiny.toml"
    path = tmp_path / "plan.json"
    found = planned(capsys, tiny, fleet, "--layout", "tp=2", "--save", path)
    assert found["executor"].startswith("emit:") and "layout.tp" in found["executor_why"]
    with pytest.raises(InputError, match=r"feature plan\.executor") as caught:
        Plan.load(path).require_executor()
    assert caught.value.value == found["executor"]


def test_from_picks_the_stock_of_a_day(capsys, examples) -> None:
    recipe = examples / "recipes" / "dense-400b.toml"
    fleet = examples / "fleets" / "scarce-2024.toml"
    stock = Fleet.load(fleet)
    found = {}
    for day in ("2024-05-01", "2024-08-01"):
        found[day] = planned(capsys, recipe, fleet, "--from", day, "--layout", "tp=8,pp=18")
        layout = found[day]["layout"]["ascend"]
        assert layout["dp"] * layout["tp"] * layout["pp"] > 0
        assert found[day]["finish"]["low"] > day
    early, late = (one["layout"]["ascend"]["dp"] for one in found.values())
    assert early < late
    rates = [one["tokens_per_second"] for one in found.values()]
    assert rates[0] < rates[1]
    assert not [island for island in stock.island if island.name == "ascend" and island.nodes]


def test_no_torch_is_needed(examples) -> None:
    program = """
import importlib.abc, sys

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tokenizers", "tensorboard"):
            raise ModuleNotFoundError("blocked: " + name, name=name)
        return None

sys.meta_path.insert(0, Wall())
from atoll.cli import main
sys.exit(main(["plan", *sys.argv[1:], "--json"]))
"""
    files = [
        str(examples / "recipes" / "dense-400b.toml"),
        str(examples / "fleets" / "hundred-thousand.toml"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert sum(found["shares"].values()) == 1024
    for name, memory in found["memory"].items():
        assert memory["used"] <= 0.94 * memory["size"], name


# What is wrong ends in one message, and nothing is written.


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> tuple:
    """(exit code, message) of a command that fails; checks its form, and that no file came."""
    before = sorted(folder.rglob("*"))
    code = main(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("atoll: ") == 1 and captured.err.startswith("atoll: ")
    assert "Traceback" not in captured.err and "bug in Atoll" not in captured.err
    assert len(captured.err.splitlines()) <= 6
    assert sorted(folder.rglob("*")) == before
    return code, captured.err


FLEETS = [
    # (what stands in the fleet, what is written instead, parts of the message)
    ('chip = "h20"', 'chip = "h2O"', ['island[0].chip = "h2O"', 'nearest: "h20"']),
    ('chip = "h20"', 'chip = ["h20", "h800"]', ["one kind of chip", "two islands"]),
    ("nodes = 4", "nodes = 0", ["island[0].nodes", "zero chips"]),
    ("chips_per_node = 8", "chips_per_node = 0", ["island[0].chips_per_node"]),
    (
        "[[island]]",
        '[[link]]\nbetween = ["here", "moon"]\nbandwidth = "1 Gb/s"\nlatency = "1 s"\n[[island]]',
        ["link[0].between", '"moon"', "none of the sites"],
    ),
    ('chip = "h20"', 'chip = "rtx-4090"', ["network", "rtx-4090", "200 Gb/s"]),
    ('chip = "h20"', 'chip = "mlu690"', ["mlu690", "nobody published the speed", "measure"]),
    ('chip = "h20"', 'chip = "cpu"', ["cpu", "nobody published the speed", "measure"]),
]


@pytest.mark.parametrize(("old", "new", "said"), FLEETS)
def test_a_fault_in_the_fleet(capsys, tmp_path, recipe, old, new, said) -> None:
    assert old in ISLAND
    fleet = write(tmp_path / "fleet.toml", ISLAND.replace(old, new, 1))
    save = tmp_path / "plan.json"
    code, message = refused(capsys, tmp_path, recipe, fleet, "--save", save)
    assert code == 2
    for part in said:
        assert part in message


FLAGS = [
    (["--layout", "tp=3"], ["--layout tp = 3", "32 heads"]),
    (["--layout", "tp=64"], ["--layout tp = 64", "32 heads"]),
    (["--layout", "pp=33"], ["--layout pp = 33", "32 layers"]),
    (["--layout", "pp=4,vpp=3"], ["--layout vpp = 3", "pp = 4", "32 layers"]),
    (["--layout", "vpp=2"], ["--layout vpp = 2", "pp above 1"]),
    (["--layout", "cp=3"], ["--layout cp = 3", "2048 tokens"]),
    (["--layout", "ep=2"], ["--layout ep = 2", "no experts"]),
    (["--layout", "microbatch=3"], ["--layout microbatch = 3", "grain of 2"]),
    (["--layout", "dp=40"], ["--layout dp = 40", "32"]),
    (["--layout", "shard=5"], ["--layout shard = 5", "dp x cp"]),
    (["--layout", "zero=4"], ["--layout zero = 4", "at most 3"]),
    (["--layout", "tp=0"], ["--layout tp = 0"]),
    (["--layout", "tp=two"], ["--layout tp", "two"]),
    (["--layout", "tpp=8"], ["--layout", "tpp", 'nearest: "tp"']),
    (["--layout", "tp"], ["--layout", "key=value"]),
    (["--layout", "recompute=some"], ["--layout recompute", '"full"']),
    (["--from", "July"], ["--from", "July", "2024-07-01"]),
    (["--from", "2024-13-01"], ["--from", "2024-13-01"]),
    (["--exchange", "never"], ["--exchange", "never", "step, rounds"]),
    (["--executor", "me"], ["--executor", "me", "auto, atoll"]),
    (["--emit", "megatron"], ["--emit and --to go together"]),
    (["--to", "launch"], ["--emit and --to go together"]),
    (["--save", "missing/plan.json"], ["missing", "does not exist"]),
    (["--report", "missing/plan.html"], ["missing", "does not exist"]),
    (["--facts", "missing"], ["missing", "no folder"]),
    (["--set", "model.layer=3"], ["--set", "nearest: model.layers"]),
]


@pytest.mark.parametrize(("flags", "said"), FLAGS, ids=[" ".join(flags) for flags, _ in FLAGS])
def test_a_fault_in_a_flag(capsys, tmp_path, monkeypatch, recipe, fleet, flags, said) -> None:
    monkeypatch.chdir(tmp_path)
    saved = [] if "--save" in flags else ["--save", "plan.json"]
    code, message = refused(capsys, tmp_path, recipe, fleet, *flags, *saved)
    assert code == 2
    for part in said:
        assert part in message


def test_an_unknown_tool(capsys, tmp_path, recipe, fleet) -> None:
    to = tmp_path / "launch"
    code, message = refused(capsys, tmp_path, recipe, fleet, "--emit", "megatorn", "--to", to)
    assert code == 2
    assert "--emit" in message and 'nearest: "megatron"' in message


def test_an_unknown_tool_saves_no_plan(capsys, tmp_path, recipe, fleet) -> None:
    to, save = tmp_path / "launch", tmp_path / "plan.json"
    flags = ["--emit", "megatorn", "--to", to, "--save", save]
    assert refused(capsys, tmp_path, recipe, fleet, *flags)[0] == 2


def test_an_island_that_is_none(capsys, tmp_path, recipe, fleet) -> None:
    to, save = tmp_path / "launch", tmp_path / "plan.json"
    flags = ["--emit", "megatron", "--to", to, "--island", "aa", "--save", save]
    code, message = refused(capsys, tmp_path, recipe, fleet, *flags)
    assert code == 2 and "--island" in message and 'nearest: "a"' in message


def test_what_a_tool_cannot_do_saves_nothing(capsys, tmp_path, recipe, fleet) -> None:
    to = tmp_path / "launch"
    to.mkdir()
    (to / "mine.txt").write_text("mine")
    flags = ["--emit", "megatron", "--to", to, "--save", tmp_path / "plan.json",
             "--report", tmp_path / "plan.html"]  # fmt: skip
    code, message = refused(capsys, tmp_path, recipe, fleet, *flags)
    assert code == 2 and "holds other files" in message


def test_what_atoll_does_not_do_is_no_layout_for_atoll(capsys, tmp_path, examples, fleet) -> None:
    tiny = examples / "recipes" / "tiny.toml"
    for keys, said in (("tp=2", "layout.tp"), ("zero=1", "layout.zero"),
                       ("recompute=full", "layout.recompute")):  # fmt: skip
        flags = ["--executor", "atoll", "--layout", keys]
        code, message = refused(capsys, tmp_path, tiny, fleet, *flags)
        assert code == 2 and f"feature {said}" in message
    found = planned(capsys, tiny, fleet, "--executor", "atoll", "--layout", "tp=1,dp=2")
    assert found["layout"]["a"]["dp"] == 2


def test_a_layout_for_more_devices_names_what_was_written(capsys, tmp_path, recipe) -> None:
    one = write(tmp_path / "f.toml", ISLAND.replace("nodes = 4", "nodes = 1"))
    code, message = refused(capsys, tmp_path, recipe, one, "--layout", "tp=8,pp=4")
    assert code == 2
    assert '"tp=8,pp=4"' in message and "tp x pp needs 32 devices, the island has 8" in message


def test_a_network_that_nobody_knows_names_file_island_and_key(capsys, tmp_path, recipe) -> None:
    fleet = write(tmp_path / "f.toml", ISLAND.replace('"h20"', '"rtx-4090"'))
    code, message = refused(capsys, tmp_path, recipe, fleet)
    assert code == 2
    assert "f.toml" in message and "island[0].network" in message and "on island a" in message


def test_a_recipe_needs_a_fleet_and_what_needs_no_recipe(capsys, tmp_path, recipe, fleet) -> None:
    code, message = refused(capsys, tmp_path, recipe)
    assert code == 2 and "a recipe and a fleet are needed" in message
    code, message = refused(capsys, tmp_path)
    assert code == 2 and "--what FLEET" in message
    code, message = refused(capsys, tmp_path, recipe, "--what", fleet)
    assert code == 2 and "leave the recipe out" in message
    code, message = refused(capsys, tmp_path, recipe, tmp_path / "none.toml")
    assert code == 2 and "none.toml" in message


def test_a_vocabulary_that_only_a_text_could_tell(capsys, tmp_path, fleet) -> None:
    text = RECIPE.replace("vocab = 32000\n", "").replace("train = 32000", 'path = "tokenizer.json"')
    code, message = refused(capsys, tmp_path, write(tmp_path / "recipe.toml", text), fleet)
    assert code == 2
    assert "model.vocab" in message and "the vocabulary is not known" in message


def test_a_model_that_fits_nowhere(capsys, tmp_path, recipe) -> None:
    small = ISLAND.replace("nodes = 4", "nodes = 1").replace("per_node = 8", "per_node = 1")
    fleet = write(tmp_path / "fleet.toml", small)
    code, message = refused(capsys, tmp_path, recipe, fleet, "--save", tmp_path / "plan.json")
    assert code == 1
    assert "the model fits on no island" in message
    assert "GiB too many on each h20" in message or "GiB too many on a h20" in message
    assert "it fits from 2 nodes on a on (now 1)" in message
    # And so many are enough.
    two = write(tmp_path / "two.toml", small.replace("nodes = 1", "nodes = 2"))
    assert planned(capsys, recipe, two)["memory"]["a"]["used"] > 0


@pytest.mark.parametrize("name", ["dense-400b", "moe-700b"])
def test_so_many_nodes_as_are_said_are_enough_and_one_less_is_not(
    capsys, tmp_path, examples, name
) -> None:
    recipe = examples / "recipes" / f"{name}.toml"
    code, message = refused(capsys, tmp_path, recipe, write(tmp_path / "f.toml", ISLAND))
    assert code == 1
    nodes = int(message.split("it fits from ")[1].split()[0])
    for count in (nodes, nodes - 1):
        text = ISLAND.replace("nodes = 4", f"nodes = {count}")
        code = main(["plan", str(recipe), str(write(tmp_path / "f.toml", text))])
        capsys.readouterr()
        assert code == (0 if count == nodes else 1)


def test_a_layout_that_fits_nowhere(capsys, tmp_path, recipe, fleet) -> None:
    keys = "dp=1,tp=1,pp=1,recompute=none"
    code, message = refused(capsys, tmp_path, recipe, fleet, "--layout", keys)
    assert code == 1 and "GiB too many" in message


def test_a_day_before_anything_is_there(capsys, tmp_path, recipe) -> None:
    text = ISLAND.replace("nodes = 4", "nodes = 0")
    text += '[[delivery]]\ndate = 2024-07-01\nisland = "a"\n'
    fleet = write(tmp_path / "f.toml", text + "count = { low = 8, mid = 32, high = 32 }\n")
    code, message = refused(capsys, tmp_path, recipe, fleet)
    assert code == 2 and "2024-07-01" in message
    # With a first day the run waits for its chips.
    for day in ("2024-06-30", "2024-07-01"):
        found = planned(capsys, recipe, fleet, "--from", day)
        assert found["shares"] == {"a": 32}
        assert found["calendar"]["begins"] == found["done_by"]["mid"] == "2024-07-01"


def test_fixed_shares_are_kept_and_those_of_zero_left_out(capsys, tmp_path, recipe) -> None:
    text = '[shares]\nmode = "fixed"\n' + TWO_SITES.replace("nodes = 2", "share = 3\nnodes = 2")
    fleet = write(tmp_path / "f.toml", text.replace("nodes = 4", "share = 1\nnodes = 4"))
    assert planned(capsys, recipe, fleet)["shares"] == {"a": 24, "b": 8}
    write(fleet, text.replace("nodes = 4", "share = 0\nnodes = 4"))
    found = planned(capsys, recipe, fleet)
    assert found["shares"] == {"a": 32}
    assert {"what": "b", "why": "its share is 0"} in found["rejected"]


def test_fixed_shares_over_no_link_are_refused(capsys, tmp_path, recipe) -> None:
    text = TWO_SITES.split("[[link]]")[0]
    text = text.replace("nodes = 2", "share = 1\nnodes = 2")
    text = '[shares]\nmode = "fixed"\n' + text.replace("nodes = 4", "share = 1\nnodes = 4")
    fleet = write(tmp_path / "f.toml", text)
    code, message = refused(capsys, tmp_path, recipe, fleet)
    assert code == 2 and "no link leads from home to johor" in message


def test_an_island_of_unknown_speed_beside_others_is_named(capsys, tmp_path, recipe) -> None:
    text = ISLAND + '[[island]]\nname = "b"\nchip = "mlu690"\n'
    found = planned(capsys, recipe, write(tmp_path / "f.toml", text))
    assert found["shares"] == {"a": 32}
    (why,) = [one["why"] for one in found["rejected"] if one["what"] == "b"]
    assert "mlu690" in why and "nobody published the speed" in why
