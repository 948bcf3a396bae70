"""Everything that the documents name exists: files, headings, modules, commands, options, targets, variables."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from liif_fast.cli.program import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("liif_fast/assets/*.md"))]
FOLDERS = ("benchmarks", "configs", "csrc", "docs", "examples", "kernels", "liif_fast", "tests")
SOURCES = ("*.py", "liif_fast/**/*.py", "csrc/**/*.*", "benchmarks/**/*.py", "Makefile", ".ci/run")
MADE = {"liif_fast/verdicts", "liif_fast/_C_sm90", "benchmarks/results/triton-VERSION.json"}  # not in the tree


@pytest.fixture(params=PAGES, ids=lambda path: path.name if path.parent != ROOT else f"./{path.name}")
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_lines_have_120_characters_at_most(page: Path) -> None:
    """Tables, code and generated parts, whose lines name a machine, are excepted."""
    text = re.sub(r"^<!-- begin:(\S+) -->.*?^<!-- end:\1 -->|^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]


def headings(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    found = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return {f"{anchor}-{n}" if (n := found[:at].count(anchor)) else anchor for at, anchor in enumerate(found)}


def test_a_repeated_heading_has_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A, b\n## Use\n```\n# code\n```\n## `Use`\n### Use\n")
    assert headings(tmp_path / "a.md") == {"a-b", "use", "use-1", "use-2"}


def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    for name, anchor in links:
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in headings(target), f"{name}#{anchor}"


def test_named_files_exist(page: Path) -> None:
    names = re.findall(rf"(?:^|[`\s(])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)(?=[`\s,;:)]|$|\.\s)", page.read_text(), re.M)
    assert not [name for name in set(names) - MADE if not (ROOT / name).exists()]


def test_named_modules_and_attributes_exist(page: Path) -> None:
    text = page.read_text()
    for name in set(re.findall(r"-m (benchmarks\.\w+)", text)):
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
    for name in set(re.findall(r"`(liif_fast(?:\.\w+)+)", text)):
        if re.search(r"\.(metadata_version|enlargement)$", name):  # a tensor's and a metadata entry's name
            continue
        found, *rest = importlib.import_module("liif_fast"), *name.split(".")[1:]
        for depth, part in enumerate(rest, 2):
            if not hasattr(found, part):
                importlib.import_module(".".join(name.split(".")[:depth]))
            found = getattr(found, part)


def commands() -> dict[str, set[str]]:
    """Return the options of every command."""
    [group] = [each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction)]
    options = {}
    for name, parser in group.choices.items():
        options[name] = {option for action in parser._actions for option in action.option_strings}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                options[name] |= {
                    o for each in action.choices.values() for a in each._actions for o in a.option_strings
                }
    return options


def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    known = commands()
    text = page.read_text().replace("\\\n", " ")
    shown = re.findall(r"(?:^    |`|\| |\$ )(?:\w+=\S+ )?liif-fast ([a-z]+)\b([^`\n|#]*)", text, re.M)
    for name, rest in shown:
        assert name in known, name
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known[name], (name, rest)


def test_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:^    |`)make ([a-z]+)", page.read_text(), re.M)) <= {*targets}


def variables(*patterns: str) -> set[str]:
    """Return the names of the variables in files."""
    text = "".join(path.read_text() for each in patterns for path in ROOT.glob(each) if path.suffix != ".pyc")
    return {*re.findall(r"\bLIIF_FAST_[A-Z_]+[A-Z]\b", text)}


def test_every_variable_is_documented_and_every_documented_one_is_read() -> None:
    """Tests read their own; another's name in a test is not its use."""
    table = {*re.findall(r"`(LIIF_FAST_\w+)`", (ROOT / "docs" / "environment.md").read_text())}
    read = variables(*SOURCES) | {name for name in variables("tests/**/*.py") if name.startswith("LIIF_FAST_TEST_")}
    assert variables("*.md", "docs/*.md", "liif_fast/assets/*.md") <= read
    assert table <= read
    assert not {name for name in read - table if "TEST_LOG" not in name}, "a variable that docs/environment.md lacks"
