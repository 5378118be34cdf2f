"""What the benchmarks measure: layers of one shape, timed side by side."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .peers import TimedLayer
from .results_file import OURS
from .timing import Ratio, interleave, ratio

PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class LayerTimings:
    """The seconds [round] of layers of one shape, by layer and pass."""

    in_features: int
    out_features: int
    num_grids: int
    batch: int
    seconds: Mapping[str, Mapping[str, NDArray[np.float64]]]

    def __str__(self) -> str:
        return f"{self.in_features} x {self.out_features}, G = {self.num_grids}"

    def milliseconds(self, layer: str, pass_: str) -> float:
        """Return the median over the rounds."""
        return round(1e3 * float(np.median(self.seconds[layer][pass_])), 4)

    def ratio(self, layer: str, pass_: str) -> Ratio:
        """Return the time of a layer over that of ours."""
        return ratio(self.seconds[layer][pass_], self.seconds[OURS][pass_])

    def json(self) -> dict[str, Any]:
        def measured(layer: str, pass_: str) -> dict[str, float]:
            return {"ms": self.milliseconds(layer, pass_)} | asdict(self.ratio(layer, pass_))

        sizes = {name: value for name, value in vars(self).items() if name != "seconds"}
        layers = {layer: {each: measured(layer, each) for each in PASSES} for layer in self.seconds}
        return {**sizes, "layers": layers}


def time_layers(
    layers: Mapping[str, TimedLayer], seconds: float, rounds: tuple[int, int] = (5, 30)
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the seconds [round] by layer and pass, all layers called in turn.

    ``seconds`` and ``rounds`` go to :func:`.timing.interleave`, once for the forward and once for
    the other passes.
    """
    forward, step = (
        interleave(measurements, seconds=seconds, rounds=rounds)
        for measurements in (
            {name: layer.time_forward for name, layer in layers.items()},
            {name: layer.time_step for name, layer in layers.items()},
        )
    )
    return {name: dict(zip(PASSES, (*forward[name], *step[name]), strict=True)) for name in layers}
