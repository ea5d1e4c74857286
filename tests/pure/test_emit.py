"""Launch files of other tools: what is in them, what is refused, and that they are as kept."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pure.emit_cases import (
    CASES,
    GOLDEN,
    LLAMA,
    PAIRS,
    QWEN,
    SPARSE,
    chain,
    dense,
    island,
    pair,
    plan,
    recipe,
    sparse,
)

from atoll import facts
from atoll.errors import InputError
from atoll.plan import Plan
from atoll.planning.emit import TOOLS, emit
from atoll.planning.emit.megatron import layer_pattern
from atoll.planning.emit.part import part_of
from atoll.planning.emit.text import toml, yaml


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def flags_in(script: str) -> Iterator[str]:
    """The flags of the groups of words of a launch script."""
    inside = False
    for line in script.splitlines():
        inside = line.endswith("=(") or (inside and line != ")")
        if inside and line.startswith("  --"):
            yield line.split()[0]


def leaves(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from leaves(value) if isinstance(value, dict) else [(key, value)]


def script_of(planned: Plan, tool: str, folder: Path) -> str:
    return emit(planned, tool, folder)[0].read_text()


@pytest.mark.parametrize(("case", "tool"), PAIRS)
def test_files_are_as_kept(case: str, tool: str, tmp_path: Path) -> None:
    emit(CASES[case][0], tool, tmp_path)
    kept = contents(GOLDEN / case / tool)
    assert kept, "scripts/update_golden.py writes them"
    assert contents(tmp_path) == kept


def test_every_tool_has_kept_files_and_no_others_are_kept() -> None:
    assert {tool for _, tool in PAIRS} == set(TOOLS)
    kept = {(path.parent.name, path.name) for path in GOLDEN.glob("*/*")}
    assert kept == set(PAIRS)


@pytest.mark.parametrize(("case", "tool"), PAIRS)
def test_scripts_are_shell_and_may_run(case: str, tool: str, tmp_path: Path) -> None:
    for path in emit(CASES[case][0], tool, tmp_path):
        if path.name == "run.sh":
            subprocess.run(["bash", "-n", str(path)], check=True)
            assert path.stat().st_mode & 0o111


def test_a_script_asks_for_what_a_person_must_set(tmp_path: Path) -> None:
    (path,) = emit(dense("h800"), "megatron", tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "MEGATRON": "/nowhere", "DATA": "x"}
    run = subprocess.run(["bash", path], env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "set CHECKPOINTS to" in run.stderr
    environment |= {"CHECKPOINTS": "/c", "TOKENIZER": "/t", "MASTER_ADDR": "n0", "NODE_RANK": "0"}
    environment["NNODES"] = "3"
    run = subprocess.run(["bash", path], env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert "64 processes, not 3 x 8" in run.stderr


def test_a_script_starts_torchrun_with_its_words(tmp_path: Path) -> None:
    (path,) = emit(dense("h800"), "megatron", tmp_path / "launch")
    stand_in = tmp_path / "torchrun"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    given = {"MEGATRON": str(tmp_path), "DATA": "/d a", "CHECKPOINTS": "/c", "TOKENIZER": "/t"}
    given |= {"MASTER_ADDR": "n0", "NODE_RANK": "3", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = subprocess.run(["bash", path], env=given, capture_output=True, text=True, check=True)
    words = run.stdout.splitlines()
    assert words[:6] == ["--nnodes", "8", "--nproc-per-node", "8", "--node-rank", "3"]
    assert words[words.index("--data-path") + 1] == "/d a"


@pytest.mark.parametrize(("case", "tool"), PAIRS)
def test_every_flag_is_in_the_list_of_its_tool(case: str, tool: str, tmp_path: Path) -> None:
    import yaml as reader

    checked = 0
    for path in emit(CASES[case][0], tool, tmp_path):
        text = path.read_text()
        engine = tool if tool != "skypilot" else "megatron"
        if path.name == "run.sh" and TOOLS[tool].family != "flagscale":
            for flag in flags_in(text):
                if "." in flag:  # torchtitan's keys
                    assert TOOLS["torchtitan"].knows(flag.removeprefix("--"))
                else:
                    assert TOOLS[engine].knows(flag), flag
                checked += 1
        if path.name == "train.toml":
            for table, keys in tomllib.loads(text).items():
                for key in dict(flat(keys, table)):
                    assert TOOLS[tool if tool != "skypilot" else "torchtitan"].knows(key), key
                    checked += 1
        if path.name == "fleet.yaml":
            for key, _ in leaves(reader.safe_load(text)):
                assert TOOLS[tool].knows(key), key
                checked += 1
        if path.suffix == ".yaml" and tool == "skypilot":
            task = reader.safe_load(text)
            names = [*task, *(f"resources.{key}" for key in task["resources"])]
            assert all(TOOLS[tool].knows(key) for key in names)
    assert checked


def flat(keys: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        name = f"{prefix}.{key}"
        yield from flat(value, name) if isinstance(value, dict) else [(name, value)]


def test_megatron_holds_layout_shapes_and_schedule(tmp_path: Path) -> None:
    text = script_of(dense("h800"), "megatron", tmp_path)
    for words in (
        "--tensor-model-parallel-size 8", "--pipeline-model-parallel-size 2", "--num-layers 32",
        "--sequence-parallel", "--use-distributed-optimizer", "--global-batch-size 256",
        "--group-query-attention", "--num-query-groups 8", "--rotary-base 500000", "--bf16",
        "--lr 0.0003", "--min-lr 3.0e-05", "--train-iters 1000", "--lr-warmup-iters 100",
    ):  # fmt: skip
        assert f"  {words}\n" in text
    assert "--num-experts" not in text
    assert "NNODES:-8" in text


def test_uneven_stages_are_written_in_each_tools_way(tmp_path: Path) -> None:
    stages = {"stages": [[0, 16], [17, 31]]}
    text = script_of(dense("h800", **stages), "megatron", tmp_path / "m")
    assert "--pipeline-model-parallel-layout 'Et*17|t*15L'" in text
    text = script_of(dense("ascend-910b2", **stages), "mindspeed", tmp_path / "s")
    assert "--num-layer-list 17,15\n" in text
    config = emit(dense("h800", zero=3, **stages), "torchtitan", tmp_path / "t")[0]
    chunks = tomllib.loads(config.read_text())["parallelism"]["module_fqns_per_model_part"]
    assert [len(chunk) for chunk in chunks] == [18, 17]
    assert chunks[1][0] == "layers.17"


def test_layers_that_do_not_divide_say_so(tmp_path: Path) -> None:
    text = script_of(dense("h800", pp=3, dp=2, tp=8), "megatron", tmp_path)
    assert "'Et*11|t*11|t*10L'" in text
    assert "32 layers do not split evenly" in text


@pytest.mark.parametrize(("dense_layers", "every"), [(0, 1), (3, 1), (0, 2), (1, 3), (2, 5)])
def test_the_pattern_of_sparse_layers_is_the_models(dense_layers: int, every: int) -> None:
    shapes = {**SPARSE, "dense_layers": dense_layers, "moe_every": every}
    model = plan(recipe("r", shapes, 2), island("a", "h20", 1)).read_recipe().model
    pattern = eval(layer_pattern(model))
    assert pattern == [int(model.is_sparse_layer(layer)) for layer in range(model.layers)]


@pytest.mark.parametrize("shapes", [LLAMA, {**LLAMA, "width": 5120, "heads": 40, "ffn": 13824}])
def test_the_hidden_width_comes_out_of_torchtitans_own_rule(
    shapes: dict[str, Any], tmp_path: Path
) -> None:
    planned = plan(recipe("r", shapes, 8), island("a", "h800", 8, dp=8, zero=3))
    text = emit(planned, "torchtitan", tmp_path)[1].read_text()
    assert "TransformerModelArgs(" in text
    given = dict(re.findall(r"^    (\w+)=([\d.e+-]+),$", text, flags=re.MULTILINE))
    hidden = int(2 * 4 * int(given["dim"]) / 3)
    multiple = int(given["multiple_of"])
    hidden = int(float(given["ffn_dim_multiplier"]) * hidden)
    assert multiple * ((hidden + multiple - 1) // multiple) == shapes["ffn"]


def test_flagscale_joins_unlike_meshes_in_order(tmp_path: Path) -> None:
    import yaml as reader

    emit(chain(), "flagscale", tmp_path)
    system = reader.safe_load((tmp_path / "conf/train/fleet.yaml").read_text())["system"]
    assert system["hetero"]["hetero_process_meshes"] == [4, 1, 1, 4, 2, 8, 1, 1, 4, 1]
    assert system["hetero"]["hetero_pipeline_layer_split"] == [11, 10, 11]
    assert system["hetero"]["hetero_device_types"] == ["h800", "ascend-910b2"]
    assert system["hetero"]["hetero_use_cpu_communication"] is True
    assert system["pipeline_model_parallel_size"] == 3
    hosts = [
        line.split() for line in (tmp_path / "hostfile").read_text().splitlines() if line[0] != "#"
    ]
    assert [host[2] for host in hosts] == ["type=h800"] * 4 + ["type=ascend-910b2"] * 4


def test_skypilot_asks_for_chips_by_its_own_names(tmp_path: Path) -> None:
    import yaml as reader

    emit(sparse("h200", zero=3), "skypilot", tmp_path / "cloud")
    task = reader.safe_load((tmp_path / "cloud/a.yaml").read_text())
    assert task["resources"] == {"accelerators": "H200:8"}
    assert task["num_nodes"] == 2
    assert "torchtitan==0.2.2" in task["setup"]
    emit(sparse("h20"), "skypilot", tmp_path / "cluster")
    task = reader.safe_load((tmp_path / "cluster/a.yaml").read_text())
    assert task["resources"] == {"accelerators": "H20:8", "infra": "kubernetes"}
    assert "MEGATRON" in task["run"]


def test_shares_of_several_islands_are_their_sequences(tmp_path: Path) -> None:
    written = emit(pair(), "torchtitan", tmp_path)
    assert {path.parent.name for path in written} == {"a"}
    config = tomllib.loads((tmp_path / "a/train.toml").read_text())
    assert config["training"]["global_batch_size"] == 192
    text = (tmp_path / "a/run.sh").read_text()
    assert "sums of gradients, over all 256 sequences" in text
    emit(pair(), "torchtitan-npu", tmp_path / "other", island="b")
    config = tomllib.loads((tmp_path / "other/train.toml").read_text())
    assert config["training"]["global_batch_size"] == 64
    assert config["job"]["custom_config_module"] == "torchtitan_npu.config.custom_config"


def test_an_uneven_share_is_rounded_and_told() -> None:
    planned = plan(
        recipe("r", QWEN, 256),
        island("a", "h800", 8, dp=8, share=2.0),
        island("b", "h800", 8, dp=8, share=1.0),
    )
    part = part_of(planned, "megatron", planned.islands[0])
    assert part.sequences == 168
    assert any("rounded to 168" in note for note in part.notes)


def changed(**changes: Any) -> Plan:
    plain = dense("h800").as_dict()
    plain["recipe"] = {**plain["recipe"], **changes}
    return Plan.from_dict(plain)


def tied(shapes: dict[str, Any]) -> dict[str, Any]:
    return {**shapes, "tied": True}


ONE_H800 = {"dp": 8, "zero": 3}

REFUSED = [
    # (what, plan, tool, what the error names)
    ("another make", dense("ascend-910b2"), "megatron", "mindspeed, torchtitan-npu, flagscale"),
    ("a CPU", dense("cpu"), "torchtitan", "atoll train runs on every make"),
    ("a chip without a name", dense("b30a"), "skypilot", "chips it finds"),
    ("sharded optimizer", dense("h800"), "torchtitan", "layout.zero"),
    ("replicas of many devices", dense("h800", zero=0), "torchtitan", "layout.zero"),
    ("weights over stages", dense("h800", zero=3), "megatron", "layout.zero"),
    ("sharded weights", dense("ascend-910b2", zero=3, pp=1, dp=8), "mindspeed", "layout.zero"),
    ("chunks of unlike stages", dense("ascend-910b2", vpp=2, stages=[[0, 8], [9, 15], [16, 24],
     [25, 31]]), "mindspeed", "layout.vpp"),
    ("chunks without stages", dense("h800", pp=1, dp=8, vpp=2), "megatron", "layout.vpp"),
    ("chunks out of turn", dense("h800", dp=1, tp=8, pp=8, vpp=2, microbatch=64), "megatron",
     "layout.vpp"),
    ("rounds of unlike length", dense("h800", dp=2, tp=8, pp=4, vpp=2, zero=2, microbatch=8,
     stages=[]).model_copy(update={"recipe": {**dense("h800").recipe, "batch":
     {"sequences": 144, "grain": 2}}}), "torchtitan", "Interleaved1F1B"),
    ("experts without sequences", sparse("h20", tp=2, dp=8), "megatron", "sequence_parallel"),
    ("too many experts' devices", sparse("h20", ep=32), "megatron", "layout.ep"),
    ("experts in a dense model", dense("h800", ep=4), "megatron", "layout.ep"),
    ("too wide", dense("h800", tp=16, dp=2), "megatron", "layout.tp"),
    ("too many devices", dense("h800", dp=8), "megatron", "layout"),
    ("stages of other layers", dense("h800", stages=[[0, 15], [16, 30]]), "megatron", "stages"),
    ("parts of one lane", chain(), "megatron", "--emit flagscale"),
    ("lanes of two makes", pair(), "flagscale", "pipeline"),
    ("chunks", dense("h800", vpp=2), "flagscale", "layout.vpp"),
    ("sharded gradients", dense("h800", zero=2), "flagscale", "layout.zero"),
    ("half precision", changed(precision={"compute": "fp16"}), "torchtitan", "precision"),
    ("a fraction of a base", changed(model={**LLAMA, "rope_base": 10000.5}), "megatron",
     "rope_base"),
    ("an odd batch", changed(batch={"sequences": 258, "grain": 2}), "megatron",
     "256 or 260"),
    ("unknown vocabulary", plan(recipe("r", {**QWEN, "vocab": None}, 8),
     island("a", "h800", 8, **ONE_H800)), "torchtitan", "model.vocab"),
    ("a tied head", plan(recipe("r", tied(SPARSE), 8), island("a", "h800", 8, **ONE_H800)),
     "torchtitan", "model.tied"),
    ("plain feed-forwards", plan(recipe("r", {**QWEN, "gated": False}, 8),
     island("a", "h800", 8, **ONE_H800)), "torchtitan", "model.gated"),
    ("stages of a tied head", plan(recipe("r", QWEN, 8), island("a", "h800", 8, dp=4, pp=2,
     zero=3)), "torchtitan", "layout.pp"),
    ("a share of nothing", plan(recipe("r", QWEN, 8), island("a", "h800", 8, dp=8, share=0.0),
     island("b", "h800", 8, dp=8, share=1.0)), "megatron", "compute nothing"),
    ("shares that follow speed", plan(recipe("r", QWEN, 8), island("a", "h800", 8, dp=8),
     island("b", "h800", 8, dp=8)), "megatron", "measured speed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("planned", "tool", "named"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_a_tool_cannot_express_is_refused(
    planned: Plan, tool: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        emit(planned, tool, tmp_path / "new")
    assert named in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_unknown_names_are_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nearest: .megatron."):
        emit(dense("h800"), "megatorn", tmp_path)
    with pytest.raises(InputError, match="known islands: a"):
        emit(dense("h800"), "megatron", tmp_path, island="z")


def test_only_files_of_the_same_kind_are_overwritten(tmp_path: Path) -> None:
    (path,) = emit(dense("h800"), "megatron", tmp_path / "new")
    first = path.read_text()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    emit(dense("h800", recompute="full"), "megatron", tmp_path / "new")
    assert path.read_text() != first
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="holds launch files for megatron"):
        emit(dense("h800", zero=3), "torchtitan", tmp_path / "new")
    path.write_text("#!/bin/sh\necho mine\n")
    with pytest.raises(InputError, match="holds other files"):
        emit(dense("h800"), "megatron", tmp_path / "new")
    assert path.read_text() == "#!/bin/sh\necho mine\n"
    with pytest.raises(InputError, match="is no folder"):
        emit(dense("h800"), "megatron", path)


def test_one_foreign_file_among_ours_is_kept(tmp_path: Path) -> None:
    written = emit(dense("h800", zero=3), "torchtitan", tmp_path)
    written[0].write_text("mine = true\n")
    with pytest.raises(InputError, match=r"holds a train.toml that is no launch file"):
        emit(dense("h800", zero=3), "torchtitan", tmp_path)
    assert written[0].read_text() == "mine = true\n"


def test_facts_of_the_tools_are_of_known_makes_and_chips() -> None:
    backends = {facts.chip(name).backend for name in facts.chips()}
    for name, tool in TOOLS.items():
        assert set(tool.backends) <= backends, name
        assert len(set(tool.flags)) == len(tool.flags), name
        assert not set(tool.flags) & set(tool.inherited), name
        assert set(tool.names) | set(tool.labelled) <= set(facts.chips()), name
    assert next(iter(TOOLS)) == "megatron", "the first that runs a plan is offered"


def test_inherited_flags_are_in_the_list_they_are_from() -> None:
    base = TOOLS["megatron"]
    for name in ("mindspeed", "flagscale"):
        for flag in TOOLS[name].inherited:
            assert base.knows("--" + flag.removeprefix("--").replace("_", "-")), (name, flag)


def test_yaml_and_toml_come_back_as_they_were() -> None:
    import yaml as reader

    tree = {
        "plain": "word", "word": "yes", "path": "/a/b", "empty": "", "text": 'a: "b" #c\\',
        "small": 1e-8, "tiny": 3e-05, "whole": 3, "on": True, "nothing": None, "numbers": [1, 2],
        "texts": ["[1, 2]", "x"], "lines": "a\n\nb $c\n", "inner": {"deep": {"x": 1.5}},
        "list": [{"a": "b"}, "_self_"], "none": {},
    }  # fmt: skip
    assert reader.safe_load(yaml(tree)) == tree
    table: dict[str, object] = {"a": 1e-8, "b": True, "c": [["x"], ["y z"]], "d": float("inf")}
    assert tomllib.loads(toml({"t": table, "none": {}})) == {"t": table}
