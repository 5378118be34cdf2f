"""What the benches measure and show: layers of one shape side by side, tables."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from .peers import Layer
from .record import OURS
from .timing import Ratio, interleave, ratio

PASSES = ("forward", "backward", "both")

LEGEND = (
    "both: forward and backward of a training step\n"
    "/ ours: its time over that of ours, median (quartiles); below 1, ours is slower"
)


@dataclass(frozen=True)
class Case:
    """Layers of one shape, with the seconds [round] of each in each pass."""

    in_features: int
    out_features: int
    num_grids: int
    batch: int
    seconds: Mapping[str, Mapping[str, NDArray[np.float64]]]

    def __str__(self) -> str:
        return f"{self.in_features} x {self.out_features}, G = {self.num_grids}"

    def milliseconds(self, layer: str, pass_: str) -> float:
        return round(1e3 * float(np.median(self.seconds[layer][pass_])), 4)

    def ratio(self, layer: str, pass_: str) -> Ratio:
        """The time of a layer over that of ours."""
        return ratio(self.seconds[layer][pass_], self.seconds[OURS][pass_])

    def json(self) -> dict[str, Any]:
        def measured(layer: str, pass_: str) -> dict[str, float]:
            return {"ms": self.milliseconds(layer, pass_)} | asdict(self.ratio(layer, pass_))

        sizes = {name: value for name, value in vars(self).items() if name != "seconds"}
        layers = {layer: {each: measured(layer, each) for each in PASSES} for layer in self.seconds}
        return {**sizes, "layers": layers}


def time_layers(
    layers: Mapping[str, Layer], seconds: float
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the seconds [round] of each layer in each pass, all layers called in turn."""
    forward = interleave({n: layer.time_forward for n, layer in layers.items()}, seconds=seconds)
    step = interleave({n: layer.time_step for n, layer in layers.items()}, seconds=seconds)
    return {n: dict(zip(PASSES, (*forward[n], *step[n]), strict=True)) for n in layers}


def show(
    console: Console, title: str, header: Iterable[str], rows: Iterable[Iterable[str]]
) -> None:
    table = Table(*header, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", table)


def show_case(console: Console, case: Case) -> None:
    def row(layer: str) -> Iterator[str]:
        yield layer
        for pass_ in PASSES:
            yield f"{case.milliseconds(layer, pass_):.4g}"
            yield "" if layer == OURS else str(case.ratio(layer, pass_))

    header = ["layer", *(name for pass_ in PASSES for name in (f"{pass_}, ms", "/ ours"))]
    show(console, f"{case}, B = {case.batch}, float32", header, map(row, case.seconds))
