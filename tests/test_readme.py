"""The README's Python blocks run as they stand, and its tables are those of committed results."""

from __future__ import annotations

import re
from pathlib import Path

import fresh_process
import pytest

from bench import readme

TEXT = (fresh_process.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_there_are_blocks() -> None:
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_block_runs(block: str, tmp_path: Path) -> None:
    fresh_process.run(block, tmp_path)


@pytest.mark.parametrize("file", readme.FILES, ids=lambda file: file.parent.name)
def test_tables_are_those_of_the_results(file: Path) -> None:
    """Else: python -m bench.readme."""
    text = file.read_text()
    assert readme.with_tables(text) == text


def test_a_number_changed_by_hand_would_be_seen() -> None:
    changed = re.sub(r"(<!-- from .*? = 8 \| )[\d.]+", r"\g<1>0.1", TEXT, count=1, flags=re.DOTALL)
    assert changed != TEXT
    assert readme.with_tables(changed) == TEXT
