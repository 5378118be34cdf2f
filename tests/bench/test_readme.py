"""The pages of bench/: their tables, and the commands they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import readme

BENCH = readme.ROOT / "bench"


@pytest.mark.long
@pytest.mark.parametrize("file", readme.FILES, ids=lambda file: str(file.relative_to(readme.ROOT)))
def test_tables_are_those_of_the_results(file: Path) -> None:
    text = file.read_text()
    assert readme.with_tables(text) == text, "run python -m bench.readme"


@pytest.mark.parametrize("table", ["from cpu-", "from *.json", "targets from", "scores from"])
def test_a_number_changed_by_hand_would_be_seen(table: str) -> None:
    text = next(text for file in readme.FILES if f"<!-- {table}" in (text := file.read_text()))
    before, marker, after = text.partition(f"<!-- {table}")
    changed = before + marker + re.sub(r" \d+\.\d+", " 0.123", after, count=1)
    assert changed != text
    assert readme.with_tables(changed) == text


def test_the_page_lists_the_commands() -> None:
    rows = re.findall(r"^\| `python -m ([\w.]+)` \|", (BENCH / "README.md").read_text(), re.M)
    commands = {
        ".".join(path.relative_to(readme.ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in BENCH.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert sorted(rows) == sorted(commands)
