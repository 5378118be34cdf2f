"""The Markdown pages of the project, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fresh_process import ROOT

_FOLDERS = (".", "adapters", "bench", "cuda", "lmkan_cupy", "tests")

PAGES = sorted(
    page
    for folder in _FOLDERS
    for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)


class Block(NamedTuple):
    """A fenced block of a page: its language, the heading above it, its text."""

    page: Path
    language: str
    heading: str
    text: str


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = []
    heading = ""
    parts = re.compile(r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for title, language, text in parts.findall(page.read_text()):
        if title:
            heading = title
        else:
            found.append(Block(page, language, heading, text))
    return found


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link to a heading ends with, as GitHub makes it from the heading."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
