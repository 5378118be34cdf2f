"""What the Markdown pages point to exists: other pages, files, commands and their options."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pages
import pytest
from fresh_process import ROOT

from lmkan_cupy import __main__ as command_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What `.ci/run` finds by the mark in front of it.
TEST_COMMAND = (
    'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[test]" '
    "&& .venv/bin/python -m pytest"
)

every_page = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)


def broken_links(text: str, page: Path) -> list[str]:
    """The relative links of a page's text whose target or anchor is missing."""
    broken = []
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and anchor not in pages.anchors(target)):
            broken.append(link)
    return broken


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's shell blocks, without comments."""
    lines = [
        line
        for block in pages.blocks(page)
        if block.language == "sh"
        for line in block.text.splitlines()
    ]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(pages.without_blocks(page), page) == []


def test_broken_links_are_found() -> None:
    page = ROOT / "README.md"
    text = "[a](CHANGELOG.md) [b](no.md) [c](#use) [d](CHANGELOG.md#no) [e](../x) [f](https://x)"
    assert broken_links(text, page) == ["no.md", "CHANGELOG.md#no", "../x"]


@every_page
def test_modules_that_are_run_exist(page: Path) -> None:
    modules = set(re.findall(r"python -m ((?:bench|lmkan_cupy)[\w.]*\w)", page.read_text()))
    assert [each for each in modules if find_spec(each) is None] == []


@every_page
def test_options_of_commands_exist(page: Path) -> None:
    for words in commands(page):
        if "lmkan_cupy" in words:
            arguments = words[words.index("lmkan_cupy") + 1 :]
            command_line._parser().parse_args(arguments)  # exits at an option that it does not know
        elif any(word.startswith("bench.") for word in words):
            sources = "".join(file.read_text() for file in (ROOT / "bench").rglob("*.py"))
            options = [word for word in words if word.startswith("--")]
            assert [each for each in options if f'"{each}"' not in sources] == []


@every_page
def test_files_in_commands_exist(page: Path) -> None:
    for words in commands(page):
        files = [word for word in words if re.match(r"(bench|tests|\.ci)/|constraints", word)]
        assert [each for each in files if not (ROOT / each).exists()] == []


@every_page
def test_what_is_installed_exists(page: Path) -> None:
    """Extras are those of pyproject.toml, wheels have its version."""
    text = page.read_text()
    for extras in re.findall(r"(?:lmkan-cupy|\.whl|\"\.)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    for version in re.findall(r"lmkan_cupy-([\d.]+)-py3", text):
        assert version == PROJECT["version"]


def test_landing_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_command_that_ci_runs_is_marked() -> None:
    assert f"<!-- test command -->\n```sh\n{TEST_COMMAND}\n```" in (ROOT / "README.md").read_text()
