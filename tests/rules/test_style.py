"""What CONTRIBUTING.md asks of the source and a script can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "atoll"
PATHS = sorted(SOURCE.rglob("*.py"))
IDS = [str(path.relative_to(SOURCE)) for path in PATHS]

LONGEST_FILE = 500
LONGEST_FUNCTION = 60
LONGEST_WITH_REASON = 100

VENDOR_WORDS = re.compile(
    r"(?<![a-z])(nvidia|cuda|nccl|ascend|huawei|npu|hccl|cambricon|mlu|cncl|rocm)(?![a-z])"
)
VENDOR_FOLDERS = ("backends", "facts")
ENVIRONMENT_FILES = ("crew/local.py",)
"""Only the local crew takes the environment: it builds that of the processes it starts."""

LIBRARY_VARIABLE = re.compile(r"os\.environ\.get\('(?!ATOLL)[A-Z0-9_]+'(, .*)?\)")
"""What a backend may do: look up, by its name, a variable that a vendor's library obeys.

Such a variable decides bits, so it belongs to the kind; it is recorded there, never obeyed.
"""

TORCH_PROTOCOL = ("forward", "backward", "setup_context")
"""Methods that torch calls; what they take and give stands in the docstring of their class."""

BANNED_NAMES = re.compile(r"(Manager|Handler|Helper|Util|Utils|Context)(?![a-z])")

every_file = pytest.mark.parametrize("path", PATHS, ids=IDS)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def folder_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0]


def functions_in(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@every_file
def test_a_file_is_short(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= LONGEST_FILE


@every_file
def test_functions_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    for function in functions_in(parse(path)):
        assert function.end_lineno is not None
        num_lines = function.end_lineno - function.lineno + 1
        signature = "\n".join(lines[function.lineno - 1 : function.body[0].lineno])
        limit = LONGEST_WITH_REASON if re.search(r"# long: \w+", signature) else LONGEST_FUNCTION
        assert num_lines <= limit, f"{function.name} has {num_lines} lines"


@every_file
def test_vendors_are_named_in_their_own_folders_only(path: Path) -> None:
    if folder_of(path) in VENDOR_FOLDERS:
        return
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assert not VENDOR_WORDS.search(text.lower()), f"line {number}: {text.strip()}"


@every_file
def test_the_environment_is_no_option(path: Path) -> None:
    if str(path.relative_to(SOURCE)) in ENVIRONMENT_FILES:
        return
    lookups = environment_lookups(parse(path), may_record=folder_of(path) == "backends")
    assert not lookups


def environment_lookups(tree: ast.Module, *, may_record: bool) -> list[str]:
    """Everything in a module that takes something from the environment, but what is recorded."""
    recorded = set()
    if may_record:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and LIBRARY_VARIABLE.fullmatch(ast.unparse(node)):
                recorded.update(ast.walk(node))
    found = []
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Attribute):
            name = f"{ast.unparse(node.value)}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            name = "os." + ",".join(alias.name for alias in node.names)
        elif isinstance(node, ast.keyword) and node.arg == "envvar":
            name = "os.environ"
        touches = re.fullmatch(r"os\.(.*,)?(environb?|getenvb?|putenv)(,.*)?", name)
        if touches and node not in recorded:
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize(
    ("text", "may_record", "num_found"),
    [
        ("import os\nos.environ.get('X')", False, 1),
        ("import os\nos.environ.get('X', 'not set')", True, 0),
        ("import os\nos.environ.get('ATOLL_X')", True, 1),
        ("import os\nos.environ['X']", True, 1),
        ("import os\ndict(os.environ)", True, 1),
        ("import os\nos.getenv('X')", True, 1),
        ("from os import environ, path", True, 1),
        ("typer.Option(None, envvar='X')", False, 1),
        ("import os\nos.path.join('a')", False, 0),
    ],
)
def test_lookups_are_seen(text: str, may_record: bool, num_found: int) -> None:
    assert len(environment_lookups(ast.parse(text), may_record=may_record)) == num_found


@every_file
def test_an_ignored_type_error_has_a_code_and_a_reason(path: Path) -> None:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for rest in re.findall(r"# type: ignore(.*)", text):
            assert re.fullmatch(r"\[[\w, -]+\]\s+# \S.{5,}", rest), f"line {number}: say why"


@every_file
def test_public_names_have_docstrings(path: Path) -> None:
    tree = parse(path)
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), "the module"
    for name, node in public_definitions(tree):
        assert ast.get_docstring(node), f"{name} (line {node.lineno})"


def public_definitions(
    node: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public classes, functions and methods; nothing inside functions, no overloads."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef) and child.name in TORCH_PROTOCOL:
            continue
        decorators = [ast.unparse(decorator) for decorator in child.decorator_list]
        if any(name.endswith(("overload", ".setter")) for name in decorators):
            continue
        yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from public_definitions(child, f"{prefix}{child.name}.")


@every_file
def test_source_is_ascii(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    odd = sorted({character for character in text if ord(character) > 127})
    assert not odd, f"write {odd} as escapes"


@every_file
def test_no_name_says_nothing(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef):
            assert not BANNED_NAMES.search(node.name), node.name
    assert not re.search(r"(^|_)(utils?|helpers?|common|misc)$", path.stem), path.stem


@every_file
def test_functions_are_annotated(path: Path) -> None:
    for function in functions_in(parse(path)):
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{function.name}: {bare}"
        assert function.returns is not None or function.name == "__init__", function.name


@pytest.mark.parametrize("text", ["import torch_npu", "x.is_cuda", "HCCL", "MLU590", '"nvidia"'])
def test_vendor_words_are_recognised(text: str) -> None:
    assert VENDOR_WORDS.search(text.lower())


@pytest.mark.parametrize("text", ["in ascending order", "barracuda", "input", "simulate"])
def test_other_words_are_left_alone(text: str) -> None:
    assert not VENDOR_WORDS.search(text.lower())
