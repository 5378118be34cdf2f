"""Tables of what was measured, on the console."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .layer_timings import PASSES, LayerTimings
from .results_file import OURS

LEGEND = (
    "both: forward and backward of a training step\n"
    "/ ours: time over that of ours, median (quartiles); below 1 ours is slower"
)


def console() -> Console:
    """Return a console that is wide enough for the tables, also if the output goes to a file."""
    wide = Console(highlight=False)
    wide.width = max(wide.width, 132)
    return wide


def show_table(
    console: Console, title: str, header: Iterable[str], rows: Iterable[Iterable[str]]
) -> None:
    table = Table(*header, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", table)


def show_timings(console: Console, timings: LayerTimings) -> None:
    def row(layer: str) -> Iterator[str]:
        yield layer
        for pass_ in PASSES:
            yield f"{timings.milliseconds(layer, pass_):.4g}"
            yield "" if layer == OURS else str(timings.ratio(layer, pass_))

    header = ["layer", *(name for pass_ in PASSES for name in (f"{pass_}, ms", "/ ours"))]
    title = f"{timings}, B = {timings.batch}, float32"
    show_table(console, title, header, map(row, timings.seconds))


def show_numbers(console: Console, title: str, results: Mapping[str, Any]) -> None:
    """Show numbers by name, or by row and column, or several such tables by name."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    first = next(iter(results.values()))
    if not isinstance(first, Mapping):
        show_table(
            console, title, ("", ""), ((name, cell(value)) for name, value in results.items())
        )
    elif not isinstance(next(iter(first.values())), Mapping):
        columns = dict.fromkeys(column for row in results.values() for column in row)
        rows = (
            [name, *(cell(row.get(column, "")) for column in columns)]
            for name, row in results.items()
        )
        show_table(console, title, ["", *columns], rows)
    else:
        for name, inner in results.items():
            show_numbers(console, f"{title}, {name}", inner)
