"""Launch files through the parsers of the tools themselves, where these are installed.

One environment with all of them: python -m venv, then pip install torch skypilot==0.14.1
tyro tokenizers datasets torchdata tensorboard triton megatron-core pytest pytest-timeout hypothesis
pydantic, and pip install --no-deps torchtitan==0.2.2 torchtitan-npu==0.2.2.post2.
"""

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.pure.emit_cases import CASES, PAIRS

from atoll.planning.emit import TOOLS, emit


def require(package: str, version: str | None = None) -> None:
    """Skips without the package, or at another version than the facts are of."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    if version is not None and found != version:
        pytest.skip(f"{package} is {found}, and the facts are of {version}")


def cases(tool: str) -> list[str]:
    return [case for case, name in PAIRS if name == tool]


def parse(path: Path) -> Any:
    """The configuration as torchtitan's own manager reads it."""
    from torchtitan.config import ConfigManager

    return ConfigManager().parse_args(["--job.config_file", str(path)])


@pytest.mark.parametrize("case", cases("torchtitan"))
def test_torchtitan_reads_its_file(case: str, tmp_path: Path) -> None:
    require("torchtitan", "0.2.2")
    planned = CASES[case][0]
    emit(planned, "torchtitan", tmp_path, island=planned.islands[0].name)
    config, layout = parse(tmp_path / "train.toml"), planned.islands[0].layout
    assert config.parallelism.tensor_parallel_degree == layout.tp
    assert config.parallelism.pipeline_parallel_degree == layout.pp
    assert config.parallelism.expert_parallel_degree == layout.ep
    assert config.training.seq_len == planned.read_recipe().model.context
    assert config.experimental.custom_import == "atoll_shapes"
    parts = config.parallelism.module_fqns_per_model_part
    assert parts is None or len(parts) == layout.pp * layout.vpp
    degrees = config.parallelism
    assert degrees.data_parallel_replicate_degree * degrees.data_parallel_shard_degree == layout.dp


@pytest.mark.parametrize("case", cases("torchtitan"))
def test_the_shapes_build_a_model_of_as_many_parameters(case: str, tmp_path: Path) -> None:
    require("torchtitan", "0.2.2")
    require("datasets")
    import torch
    from torchtitan.hf_datasets.text_datasets import DATASETS
    from torchtitan.protocols.train_spec import get_train_spec

    planned = CASES[case][0]
    emit(planned, "torchtitan", tmp_path, island=planned.islands[0].name)
    config = parse(tmp_path / "train.toml")
    spec = importlib.util.spec_from_file_location("atoll_shapes", tmp_path / "atoll_shapes.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "atoll" in DATASETS
    train_spec = get_train_spec(config.model.name)
    arguments = train_spec.model_args[config.model.flavor]
    arguments.update_from_config(config)
    with torch.device("meta"):
        model = train_spec.model_cls(arguments)
    recipe = planned.read_recipe()
    found = {id(p): p.numel() for p in model.parameters()}
    assert sum(found.values()) == recipe.model.num_parameters()
    if config.parallelism.pipeline_parallel_degree > 1:
        assert train_spec.pipelining_fn is not None


@pytest.mark.parametrize("tool", ["torchtitan", "torchtitan-npu"])
def test_the_list_of_keys_is_the_packages(tool: str) -> None:
    require("torchtitan", "0.2.2")
    import dataclasses

    from torchtitan.config import JobConfig
    from torchtitan.config.manager import ConfigManager

    kind: Any = JobConfig
    if tool != "torchtitan":
        kind = ConfigManager._merge_configs(JobConfig, plug_in_config().JobConfig)

    def keys(noun: Any, prefix: str) -> list[str]:
        out = []
        for field in dataclasses.fields(noun):
            name = prefix + field.name
            nested = dataclasses.is_dataclass(field.type)
            out += keys(field.type, f"{name}.") if nested else [name]
        return out

    assert keys(kind, "") == TOOLS[tool].flags


def plug_in_config() -> Any:
    """The plug-in's configuration module alone: the package itself wants its vendor's torch."""
    require("torchtitan-npu", "0.2.2.post2")
    files = importlib.metadata.files("torchtitan-npu") or []
    path = next(file for file in files if file.name == "custom_config.py").locate()
    name = "torchtitan_npu.config.custom_config"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", cases("torchtitan-npu"))
def test_the_plug_in_reads_its_file(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("torchtitan", "0.2.2")
    module = plug_in_config()
    planned = CASES[case][0]
    emit(planned, "torchtitan-npu", tmp_path, island=planned.islands[-1].name)
    monkeypatch.setattr(importlib, "import_module", lambda name: {module.__name__: module}[name])
    config = parse(tmp_path / "train.toml")
    assert hasattr(config.training, "torch_npu_memory_ratio"), "its own keys are merged in"
    assert config.model.converters[0] == "npu_rms_norm"


@pytest.mark.parametrize("case", cases("skypilot"))
def test_skypilot_reads_its_task(case: str, tmp_path: Path) -> None:
    require("skypilot", "0.14.1")
    import sky
    import yaml

    emit(CASES[case][0], "skypilot", tmp_path)
    path = tmp_path / "a.yaml"
    with pytest.raises(ValueError, match="DATA"):
        sky.Task.from_yaml(str(path))
    needed = [("DATA", "d"), ("TOKENIZER", "t"), ("CHECKPOINTS", "c")]
    task = sky.Task.from_yaml_config(yaml.safe_load(path.read_text()), env_overrides=needed)
    (resources,) = task.resources
    assert list(resources.accelerators.values()) == [8]
    assert task.num_nodes == 2 if case == "sparse" else 8
    assert task.run.rstrip().endswith("a/run.sh")


def test_skypilots_fields_are_the_packages() -> None:
    require("skypilot", "0.14.1")
    from sky.utils import schemas

    fields = list(schemas.get_task_schema()["properties"])
    fields += [f"resources.{key}" for key in schemas.get_resources_schema()["properties"]]
    assert fields == TOOLS["skypilot"].flags


@pytest.mark.parametrize("case", ["dense-stages"])
def test_megatron_core_reads_the_stages(case: str, tmp_path: Path) -> None:
    require("megatron-core")
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import (
        PipelineParallelLayerLayout as Stages,
    )

    (path,) = emit(CASES[case][0], "megatron", tmp_path)
    found = re.search(r"--pipeline-model-parallel-layout '(.*)'", path.read_text())
    assert found is not None
    stages = Stages.parse_str_to_list(found[1])
    assert [stage.count(LayerType.decoder) for stage in stages] == [17, 15]
    assert stages[0][0] == LayerType.embedding and stages[-1][-1] == LayerType.loss
