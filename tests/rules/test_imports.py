"""The import arrows: a part imports only from rows above it, and there are no cycles.

The table below is the law; a new part gets its place here first.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROWS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("units", "digest", "strict"),
    ("facts", "model", "supply", "hours"),
    ("site", "traffic"),
    ("fleet", "recipe"),
    ("plan", "run"),
    ("backends", "data", "crew", "planning", "history"),
    ("modeling",),
    ("training", "serving"),
    ("web",),
    ("cli",),
    ("__main__",),
)
"""From the top: each part may import from any row above its own; neighbours never."""

PURE = (
    *("errors", "units", "digest", "strict", "facts", "model", "supply", "hours", "site"),
    *("traffic", "fleet", "recipe"),
    *("plan", "run", "history"),
)
"""Parts that need neither torch nor numpy."""

WITHOUT_TORCH = ("data", "crew", "planning", "cli")
"""Parts whose import needs no torch; what needs it imports it inside a function."""

HEAVY = ("torch", "transformers", "pyarrow", "gguf", "scipy", "ray", "gradio", "llguidance")
"""Packages that only modules which cannot do without them import at their top."""

SOURCE = Path(__file__).parents[2] / "src" / "atoll"
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def part_of(module: str) -> str | None:
    """ "atoll.training.pilot" -> "training"; None for atoll itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else None


def imports_of(module: str, tree: ast.Module, *, top_level: bool = False) -> Iterator[str]:
    """The full names that a module imports; `top_level` leaves out functions and TYPE_CHECKING."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(tree, top_level=top_level):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                names = package.split(".")
                names = names[: len(names) - node.level + 1]
                base = ".".join([*names, base] if base else names)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def walk(node: ast.AST, *, top_level: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if top_level:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
        yield child
        yield from walk(child, top_level=top_level)


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def test_every_part_has_a_row() -> None:
    parts = {part_of(module) for module in MODULES} - {None}
    assert parts <= set(ROW_OF), "give each new part a row in ROWS"


def test_the_package_itself_imports_nothing() -> None:
    assert not [name for name in imports_of("atoll", tree_of("atoll")) if "atoll" in name]


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name)])
def test_arrows(module: str) -> None:
    part = part_of(module)
    wrong = set()
    for name in imports_of(module, tree_of(module)):
        other = part_of(name) if name.split(".")[0] == "atoll" else None
        if other is None or other == part:
            continue
        if ROW_OF[other] >= ROW_OF[part]:
            wrong.add(name)
    assert not wrong, f"{module} imports {sorted(wrong)}, which are not above it"


def test_no_cycles() -> None:
    graph = {
        module: {
            name
            for name in imports_of(module, tree_of(module), top_level=True)
            if name in MODULES and name != module
        }
        for module in MODULES
    }
    remaining = dict(graph)
    while remaining:
        free = [module for module, names in remaining.items() if not names & remaining.keys()]
        assert free, f"an import cycle among {sorted(remaining)}"
        for module in free:
            del remaining[module]


@pytest.mark.parametrize("module", list(MODULES))
def test_heavy_packages_stay_out_of_the_light_parts(module: str) -> None:
    part = part_of(module)
    if part not in (*PURE, *WITHOUT_TORCH, None):
        return
    heavy = set(HEAVY) | ({"numpy"} if part not in WITHOUT_TORCH else set())
    names = {name.split(".")[0] for name in imports_of(module, tree_of(module), top_level=True)}
    assert not names & heavy


def run_without(blocked: tuple[str, ...], modules: list[str]) -> None:
    """Imports modules in a new process in which some packages cannot be found."""
    program = f"""
import importlib, importlib.abc, sys

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
        return None

sys.meta_path.insert(0, Wall())
for module in {modules!r}:
    importlib.import_module(module)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def modules_of(parts: tuple[str, ...]) -> list[str]:
    return [name for name in MODULES if part_of(name) in (*parts, None)]


def test_pure_parts_import_without_torch_and_numpy() -> None:
    modules = modules_of(PURE)
    assert len(modules) > len(PURE)
    run_without(("torch", "numpy", "tokenizers", "safetensors"), modules)


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_other_light_parts_import_without_torch(part: str) -> None:
    modules = modules_of((part,))
    if modules == ["atoll"]:
        pytest.skip(f"there is no atoll.{part} yet")
    run_without(("torch", "transformers"), modules)


@pytest.mark.parametrize("folder", ["facts", "pure", "rules"])
def test_these_tests_need_no_torch(folder: str) -> None:
    for path in (Path(__file__).parents[1] / folder).glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in walk(tree, top_level=False):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] == "torch"], path


def test_imports_are_seen_in_all_their_forms() -> None:
    text = """
import atoll.errors
from atoll import units as u
from atoll.training import pilot
from .. import facts
from . import recipe
if TYPE_CHECKING:
    from atoll import plan
def function():
    import torch
"""
    tree, module = ast.parse(text), "atoll.training.pilot"
    light = set(imports_of(module, tree, top_level=True))
    assert {"atoll.errors", "atoll.units", "atoll.training.pilot", "atoll.facts"} <= light
    assert not light & {"torch", "atoll.plan"}
    assert {"torch", "atoll.plan"} <= set(imports_of(module, tree))
