"""The documentation is true where a script can check it: links, paths, commands, keys.

What needs torch to be checked is in tests/cpu/test_documented_keys.py.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from atoll import fleet, plan, recipe, run, strict
from atoll.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for folder in (ROOT, *(ROOT / name for name in ("docs", "examples", "benchmarks")))
    for path in sorted(folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
]
IDS = [str(path.relative_to(ROOT)) for path in PAGES]
FILES = ROOT / "docs" / "files.md"

FENCE = re.compile(r"^(```|~~~)")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
LISTED = re.compile(r"^(src|tests|docs|examples|benchmarks|scripts)/\S*$")
PLACEHOLDER = re.compile(r"\.\.\.|^[A-Z]+(:[A-Z]+)?$|[\[\]|<>]")
END_OF_COMMAND = re.compile(r"^(>|>>|2>|\||\|\||&&|&|;|#.*)$")

COMMANDS = typer.main.get_command(app)
every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def blocks_and_prose(text: str) -> tuple[list[str], str]:
    """The lines of all code blocks (fenced, or indented by four), and everything else."""
    code, prose, fenced = [], [], False
    for line in text.splitlines():
        if FENCE.match(line.strip()):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code.append(line.strip())
        else:
            prose.append(line)
    return code, "\n".join(prose)


def commands_in(page: Path) -> Iterator[tuple[str, bool]]:
    """(text from "atoll" on, whether it is a whole command) of every command that a page shows."""
    code, prose = blocks_and_prose(page.read_text(encoding="utf-8"))
    joined = "\n".join(code).replace("\\\n", " ")
    for line in joined.splitlines():
        found = re.match(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:python -m )?(atoll .*)$", line)
        if found:
            yield found[1], True
    for span in CODE.findall(prose):
        found = re.match(r"^(?:python -m )?(atoll .+)$", span)
        if found:
            yield found[1], False


def words_of(text: str) -> list[str]:
    words = []
    for word in shlex.split(text, comments=True)[1:]:
        if END_OF_COMMAND.match(word):
            break
        words.append(word)
    return words


def check_command(text: str, *, whole: bool) -> None:
    """AssertionError, or a usage error of the command line, for what does not exist."""
    words = words_of(text)
    if not words or PLACEHOLDER.search(words[0]):
        return
    if words[0].startswith("-"):
        names = {name for option in COMMANDS.params for name in option.opts}
        assert words[0] in names | {"--help", "-h"}, text
        return
    assert words[0] in COMMANDS.commands, f"no command {words[0]!r}: {text}"
    command = COMMANDS.commands[words[0]]
    names = {name for option in command.params for name in option.opts} | {"--help", "-h"}
    for word in words[1:]:
        bare = word.strip("[]")
        if re.match(r"^--?[a-z]", bare):
            assert bare.partition("=")[0] in names, f"{words[0]} has no option {bare}: {text}"
    if whole and not any(PLACEHOLDER.search(word) for word in words) and "--help" not in words:
        command.make_context(words[0], words[1:])  # parses and converts; runs nothing


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = found[1] or found[2]
        if re.match(r"^[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{target} leads nowhere"
        if anchor and goal.suffix == ".md":
            assert anchor in anchors_of(goal), f"{target}: there is no such heading"


def anchors_of(page: Path) -> set[str]:
    """Headings as the usual viewers name them."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        heading = re.match(r"^#+ (.*)$", line)
        if heading:
            plain = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(plain.strip().replace(" ", "-"))
    return found


@every_page
def test_named_paths_exist(page: Path) -> None:
    for span in CODE.findall(page.read_text(encoding="utf-8")):
        for word in span.split():
            if LISTED.match(word) and "..." not in word:
                assert any(ROOT.glob(word.rstrip("/"))), f"there is no {word}"


@every_page
def test_shown_commands_exist(page: Path) -> None:
    for text, whole in commands_in(page):
        check_command(text, whole=whole)


def test_pages_show_commands_at_all() -> None:
    shown = [text for page in PAGES for text, _ in commands_in(page)]
    named = {words_of(text)[0] for text in shown if words_of(text)}
    assert {"train", "audit", "doctor", "island", "sample", "export"} <= named


@pytest.mark.parametrize(
    "text",
    [
        "atoll serves runs/tiny",
        "atoll train recipe.toml --fleets one.toml",
        "atoll train TARGET [--flet FLEET]",
        "atoll audit runs/tiny --steps three",
        "atoll train",
        "atoll --verbose",
    ],
)
def test_wrong_commands_are_seen(text: str) -> None:
    usage_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    with pytest.raises((AssertionError, usage_error)):
        check_command(text, whole=True)


@pytest.mark.parametrize(
    "text",
    [
        "atoll train TARGET [--fleet FLEET] [--until N]",
        "atoll train recipe.toml --set model.layers=4 # a comment",
        "atoll fleet --here > here.toml",
        "atoll VERB --json",
        "atoll --version",
    ],
)
def test_right_commands_pass(text: str) -> None:
    check_command(text, whole=True)


def section(heading: str) -> str:
    """The text of docs/files.md below a heading, up to the next one."""
    parts = re.split(r"^#+ (.*)$", FILES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return parts[parts.index(heading) + 1]


def documented_keys(heading: str) -> set[str]:
    """What stands in the first column of the table below a heading."""
    rows = re.findall(r"^\| (`.*?) \|", section(heading), flags=re.MULTILINE)
    return {key for row in rows for key in CODE.findall(row)}


def names_of(noun: type[run.LedgerLine] | type[run.RunRecord] | type[plan.Plan]) -> set[str]:
    return {field.alias or name for name, field in noun.model_fields.items()}


def keys_of(noun: type[strict.Noun]) -> set[str]:
    """Every key of a file of this noun as `table.key`; tables inside tables count as one."""
    found = set(noun.FILE_KEYS)
    for name, field in noun.model_fields.items():
        inner = next(iter(strict._nouns_in(field.annotation)), None)
        if inner is None or noun not in (recipe.Recipe, fleet.Fleet):
            found.add(name)
        else:
            found |= {f"{name}.{key}" for key in keys_of(inner)}
    return found


@pytest.mark.parametrize(
    ("heading", "noun"), [("Recipe files", recipe.Recipe), ("Fleet files", fleet.Fleet)]
)
def test_recipes_and_fleets_have_the_documented_keys(heading: str, noun: type[strict.Noun]) -> None:
    assert documented_keys(heading) == keys_of(noun)


def test_the_ledger_has_the_documented_keys() -> None:
    assert documented_keys("ledger.jsonl") == names_of(run.LedgerLine)


def test_run_json_has_the_documented_keys() -> None:
    assert documented_keys("run.json") == names_of(run.RunRecord)


def test_plans_have_the_documented_keys() -> None:
    assert documented_keys("Plan files") == names_of(plan.Plan)


def test_events_have_the_documented_kinds() -> None:
    session = (ROOT / "src/atoll/training/session.py").read_text(encoding="utf-8")
    written = set(re.findall(r'events\.append\(\s*"(\w+)"', session))
    assert written, "the session writes events by name"
    assert written <= documented_keys("events.jsonl")


def test_each_command_that_has_json_is_in_the_table() -> None:
    with_json = {
        f"atoll {name}"
        for name, command in COMMANDS.commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert documented_keys("`--json`") == with_json


def test_a_fleet_has_the_documented_json() -> None:
    row = next(line for line in section("`--json`").splitlines() if "`atoll fleet`" in line)
    printed = fleet.Fleet.from_dict({"island": [{"name": "a"}]}).as_dict()
    assert set(CODE.findall(row)[1:]) == set(printed)


def test_dependencies_are_justified() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(name for names in extras.values() for name in names)]
    packages = {re.split(r"[\[<>=!~ ]", name)[0] for name in listed}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    cells = {cell.strip() for line in page.splitlines() for cell in line.split("|")[1:-1]}
    assert packages <= cells, packages - cells
