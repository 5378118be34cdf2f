"""``plot_network``: a picture of a whole network, and of what carries weight in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import lmkan_cupy

from .flows import Layer, layers_of
from .view import View, view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Functions of a layer that are drawn as maps, and connections as lines, at most.
_MOST_MAPS, _MOST_LINES = 20, 150

#: Points per axis of a map; share of the rows that it reaches over; its largest height in inches.
_POINTS, _REACH, _HIGHEST = 41, 0.98, 0.9

#: In place of a largest share of 0.
_TINY = np.finfo(np.float64).tiny

#: Inches from the inputs of a layer to its outputs.
_LAYER = 3.2


def plot_network(model: Any, data: Any = None) -> "Figure":
    """Draw a whole network: its layers, their pairs, and what carries weight.

    Dots are the features, the hidden features and the outputs, bars the pairs of inputs. The
    larger a dot and the darker a line, the more of the output goes through it; the strongest lines
    are drawn. Percentages beside the features add up to 100. Where a layer has no more than 20
    functions each is drawn as a map over its two inputs, or as a curve of one.

    Parameters
    ----------
    model : FittedModel, estimator, TableNetwork or chain of layers
    data : frame, mapping or array [N, columns], optional
        Rows over which functions are compared; by default features are taken as independent and
        normally distributed.

    Returns
    -------
    Figure

    Raises
    ------
    TypeError, ValueError
        If the model or ``data`` cannot be taken.
    """
    viewed = view("plot_network", model)
    return draw(viewed, layers_of(viewed, data))


def draw(viewed: View, layers: Sequence[Layer]) -> "Figure":
    """Draw the layers of a model."""
    from matplotlib.figure import Figure

    counts = [layers[0].sizes[0], *(each.sizes[1] for each in layers)]
    maps = [each.carried.size if _has_maps(each) else 0 for each in layers]
    height = np.clip(0.26 * max(counts), 0.55 * max(*maps, 6), 14.0) + 0.8
    left, right = (0.7 + 0.08 * max(map(len, each)) for each in (viewed.taken, viewed.outputs))
    figure = Figure(figsize=(left + _LAYER * len(layers) + right, height), dpi=130)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-left / _LAYER, len(layers) + right / _LAYER), ylim=(-0.03, 1.06))
    ax.set_axis_off()
    for number, layer in enumerate(layers):
        _draw_layer(ax, number, layer)
        inputs, outputs = layer.sizes
        kind = f"{len(layer.groups)} pairs x {outputs} functions"
        if layer.functions is None:
            kind = f"linear, {inputs} x {outputs}"
        ax.text(number + 0.5, 1.04, kind, ha="center", va="center", color="0.35", size=9)
    shares = [each.of_inputs for each in layers]
    shares.append(np.full(counts[-1], 1 / counts[-1]))
    for number, share in enumerate(shares):
        sizes = 14 + 260 * np.sqrt(share / max(share.max(), _TINY)) * min(1, 12 / len(share))
        ax.scatter(
            np.full(len(share), number),
            _heights(len(share)),
            sizes,
            "tab:blue",
            zorder=3,
            edgecolors="white",
            linewidths=0.8,
        )
    size = float(np.clip(200 / counts[0], 5, 9))
    for name, share, y in zip(viewed.taken, shares[0], _heights(counts[0]), strict=True):
        text = f"{name}  {share:.0%}"
        ax.text(-0.07, y, text, ha="right", va="center", size=size, parse_math=False)
    for name, y in zip(viewed.outputs, _heights(counts[-1]), strict=True):
        ax.text(len(layers) + 0.07, y, name, va="center", size=9, parse_math=False)
    return figure


def _heights(count: int) -> NDArray[np.float64]:
    """Return where so many things stand one below the other."""
    return 1 - (np.arange(count) + 0.5) / count


def _has_maps(layer: Layer) -> bool:
    return layer.functions is not None and layer.carried.size <= _MOST_MAPS


def _draw_layer(ax: "Axes", number: int, layer: Layer) -> None:
    """Draw what is between the dots of a layer's inputs and those of its outputs."""
    inputs, outputs = layer.sizes
    of_inputs, of_outputs = _heights(inputs), _heights(outputs)
    of_groups = np.array([of_inputs[[*group]].mean() for group in layer.groups])
    strongest = max(layer.carried.max(), _TINY)
    strongest_input = max(layer.of_inputs.max(), _TINY)
    for group, y in zip(layer.groups, of_groups, strict=True):
        if layer.functions is None:
            continue
        for feature in group:
            weight = layer.of_inputs[feature] / strongest_input
            _line(ax, [number, number + 0.16], [of_inputs[feature], y], weight)
        half = 0.32 / inputs
        ax.plot([number + 0.16] * 2, [y - half, y + half], color="0.2", linewidth=2.5, zorder=3)
    start = number + (0.0 if layer.functions is None else 0.16)
    order = np.argsort(layer.carried, axis=None)[-_MOST_LINES:]  # the strongest last, on top
    of_maps = _heights(layer.carried.size)
    for index in order:
        group, output = np.unravel_index(index, layer.carried.shape)
        weight = layer.carried[group, output] / strongest
        x, y = [start, number + 1.0], [of_groups[group], of_outputs[output]]
        if _has_maps(layer):
            middle = number + 0.55
            x, y = [start, middle, number + 1.0], [y[0], of_maps[index], y[1]]
            _draw_map(ax, middle, of_maps[index], layer, int(group), int(output))
        _line(ax, x, y, weight)


def _line(ax: "Axes", x: Sequence[float], y: Sequence[float], weight: float) -> None:
    ax.plot(x, y, color="tab:blue", alpha=0.06 + 0.84 * weight, linewidth=0.5 + 2.2 * weight)


def _draw_map(ax: "Axes", x: float, y: float, layer: Layer, pair: int, output: int) -> None:
    """Draw a function over the range of its inputs."""
    assert layer.functions is not None
    inches = ax.bbox.height / ax.figure.dpi / np.ptp(ax.get_ylim())  # of a unit of y
    height = min(0.82 / layer.carried.size, _HIGHEST / inches)
    width = 1.2 * height * inches / _LAYER
    corner = x - width / 2, y - height / 2
    panel = ax.inset_axes((*corner, width, height), transform=ax.transData, zorder=4)
    panel.set(xticks=[], yticks=[])
    group = [*layer.groups[pair]]
    low, high = np.quantile(layer.inputs[:, group], ((1 - _REACH) / 2, (1 + _REACH) / 2), axis=0)
    points = np.linspace(low, high, _POINTS)
    if len(group) == 1:
        values = lmkan_cupy.evaluate(layer.functions, pair, output, points[:, 0], 0.0)
        panel.plot(points[:, 0], values, color="black", linewidth=1)
        return
    values = lmkan_cupy.evaluate(layer.functions, pair, output, points[:, 0], points[:, 1, None])
    panel.imshow(values, origin="lower", cmap="RdBu_r", aspect="auto", interpolation="bilinear")
