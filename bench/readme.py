"""``python -m bench.readme``: writes the tables of the README files from ``bench/results``.

A table stands between two comments. The first names the file of its numbers:

    <!-- from FILE.json -->          layers: for the forward, and for forward and backward, our
                                     milliseconds, and how many times as long the others take
    <!-- targets from FILE.json -->  the targets, and whether they were met
    <!-- scores from FILE.json -->   estimators on real tables, see ``bench.experiments.tables``
    <!-- from *.json -->             the summary of all experiments in this project's own setting,
                                     see ``bench.report``
    <!-- from *-paper-*.json -->     the paper's results and ours, see ``bench.paper``
    <!-- end -->
"""

import argparse
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from . import paper
from .experiments.tables import comparison
from .harness.results_file import OURS, RESULTS
from .harness.targets import CheckedTarget, target_rows
from .report import read_all, summary

ROOT = Path(__file__).parent.parent

#: The files that may have tables.
FILES = (
    ROOT / "README.md",
    ROOT / "bench" / "README.md",
    RESULTS / "README.md",
    RESULTS / "tables.md",
)

#: Stands for the files of all experiments.
EXPERIMENTS = "*.json"

#: Stands for those in the paper's setting.
IN_PAPERS_SETTING = "*-paper-*.json"

_TABLE = re.compile(
    r"(<!-- (?P<what>targets |scores )?from (?P<file>\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL
)


_SIZES = ("in_features", "out_features", "num_grids", "batch")


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m bench.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for file in FILES:
        file.write_text(with_tables(file.read_text()))


def with_tables(text: str) -> str:
    """Return the text with its tables as the committed results give them."""

    def replace(match: re.Match[str]) -> str:
        if match["file"] == EXPERIMENTS:
            rows = experiment_table()
        elif match["file"] == IN_PAPERS_SETTING:
            rows = as_rows(paper.table(RESULTS))
        else:
            results = json.loads((RESULTS / match["file"]).read_text())
            rows = _TABLES[match["what"]](results)
        return match[1] + "".join(f"| {' | '.join(row)} |\n" for row in rows) + match[4]

    return _TABLE.sub(replace, text)


@cache
def experiment_table() -> list[list[str]]:
    return as_rows(summary(each for each in read_all(RESULTS) if "-paper-" not in each.name))


def as_rows(table: pd.DataFrame) -> list[list[str]]:
    return [[*table.columns], ["---"] * len(table.columns), *table.to_numpy().tolist()]


def target_table(results: dict[str, Any]) -> list[list[str]]:
    targets = [CheckedTarget(**each) for each in results["targets"]]
    return [["", "target", "measured", "met"], ["---"] * 4, *map(list, target_rows(targets))]


def score_table(results: dict[str, Any]) -> list[list[str]]:
    table = comparison(results).reset_index(names="").astype(str)
    return [[*table.columns], ["---"] * len(table.columns), *table.to_numpy().tolist()]


def layer_table(results: dict[str, Any]) -> list[list[str]]:
    versions = results["circumstances"].get("kans", {})
    others = [layer for layer in _layers(results) if layer != OURS]
    titles = [
        f"{layer} {versions[layer]}" if layer in versions else f"`{layer}`" for layer in others
    ]
    label = "{in_features} x {out_features}, G = {num_grids}"
    if len({case["batch"] for case in results["cases"]}) > 1:
        label += ", B = {batch}"
    rows = [["layer", "ours, ms", *titles], ["---"] * (2 + len(others))]
    for case in sorted(results["cases"], key=lambda case: [case[size] for size in _SIZES]):
        ours, by_layer = case["layers"][OURS], case["layers"]
        rows.append(
            [
                label.format(**case),
                f"{_rounded(ours['forward']['ms'])} / {_rounded(ours['both']['ms'])}",
                *(_ratios(by_layer.get(layer)) for layer in others),
            ]
        )
    return rows


def _layers(results: dict[str, Any]) -> list[str]:
    """Return all layers, in the order in which they first appear."""
    return list(dict.fromkeys(layer for case in results["cases"] for layer in case["layers"]))


def _ratios(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    return " / ".join(f"{measured[pass_]['median']:.2f}" for pass_ in ("forward", "both"))


def _rounded(milliseconds: float) -> str:
    digits = 3 if milliseconds < 1 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


#: What stands before "from" in a comment -> the table it asks for.
_TABLES = {"targets ": target_table, "scores ": score_table, None: layer_table}


if __name__ == "__main__":
    main()
