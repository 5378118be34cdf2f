"""The README's Python blocks run as they stand, and its tables are those of committed results.

Blocks for CUDA devices run where there is one.
"""

from __future__ import annotations

import re
from pathlib import Path

import fresh_process
import pytest

from bench import readme

TEXT = (fresh_process.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def on_cuda(block: str) -> bool:
    return '"cuda"' in block


def test_there_are_blocks() -> None:
    assert {on_cuda(each) for each in BLOCKS} == {False, True}


@pytest.mark.parametrize(
    "block",
    [pytest.param(each, marks=[pytest.mark.gpu] if on_cuda(each) else []) for each in BLOCKS],
    ids=lambda block: block.splitlines()[0],
)
def test_block_runs(block: str, tmp_path: Path) -> None:
    if on_cuda(block) and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    fresh_process.run(block, tmp_path)


def test_block_is_python() -> None:
    """Also where it does not run."""
    for block in BLOCKS:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("file", readme.FILES, ids=lambda file: file.parent.name)
def test_tables_are_those_of_the_results(file: Path) -> None:
    """Else: python -m bench.readme."""
    text = file.read_text()
    assert readme.with_tables(text) == text


def test_a_number_changed_by_hand_would_be_seen() -> None:
    changed = re.sub(r"(<!-- from .*? = 8 \| )[\d.]+", r"\g<1>0.1", TEXT, count=1, flags=re.DOTALL)
    assert changed != TEXT
    assert readme.with_tables(changed) == TEXT
