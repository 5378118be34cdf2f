"""The README's Python blocks run as they stand, each by itself in a fresh process."""

from __future__ import annotations

import re
from pathlib import Path

import fresh_process
import pytest

BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (fresh_process.ROOT / "README.md").read_text(),
    re.DOTALL | re.MULTILINE,
)


def test_there_are_blocks() -> None:
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_block_runs(block: str, tmp_path: Path) -> None:
    fresh_process.run(block, tmp_path)
