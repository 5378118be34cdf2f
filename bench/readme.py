"""``python -m bench.readme``: writes the README's tables anew from ``bench/results``.

A table stands between two comments, of which the first names the file it comes from. Cells are the
milliseconds of our forward / forward and backward, and how many times as long others take.
"""

import json
import re
from pathlib import Path
from typing import Any

from .record import OURS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"

_TABLE = re.compile(r"(<!-- from (?P<file>\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


def with_tables(text: str) -> str:
    """Return a text with its tables as the results give them."""

    def replace(match: re.Match[str]) -> str:
        results = json.loads((RESULTS / match["file"]).read_text())
        return f"{match[1]}{table(results)}{match[3]}"

    return _TABLE.sub(replace, text)


def table(results: dict[str, Any]) -> str:
    versions = results["circumstances"].get("kans", {})
    layers = [layer for layer in _layers(results) if layer != OURS]
    titles = [
        f"{layer} {versions[layer]}" if layer in versions else f"`{layer}`" for layer in layers
    ]
    label = "{in_features} x {out_features}, G = {num_grids}"
    if len({case["batch"] for case in results["cases"]}) > 1:
        label += ", B = {batch}"
    rows = [["layer", "ours, ms", *titles], ["---"] * (2 + len(layers))]
    for case in results["cases"]:
        ours, by_layer = case["layers"][OURS], case["layers"]
        rows.append(
            [
                label.format(**case),
                f"{_rounded(ours['forward']['ms'])} / {_rounded(ours['both']['ms'])}",
                *(_ratios(by_layer.get(layer)) for layer in layers),
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _layers(results: dict[str, Any]) -> list[str]:
    """All layers, in the order in which they first come."""
    return list(dict.fromkeys(layer for case in results["cases"] for layer in case["layers"]))


def _ratios(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    return " / ".join(f"{measured[pass_]['median']:.2f}" for pass_ in ("forward", "both"))


def _rounded(milliseconds: float) -> str:
    digits = 3 if milliseconds < 1 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


if __name__ == "__main__":
    main()
