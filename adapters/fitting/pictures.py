"""Pictures of a fit: predicted against true values, and what the first layer learned.

They are drawn without pyplot, so that neither a display nor global state is involved.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]

import lmkan_cupy

from .model import FittedModel

#: Functions in one picture; points per axis of each; rows that are shown as dots.
_MOST_FUNCTIONS, _POINTS, _DOTS = 9, 101, 300

#: Names of classes along an axis; characters of each; width of a cell where they are few, inches.
_MOST_CLASSES, _CHARACTERS, _CELL = 60, 24, 0.5

#: Points in an inch, and the width of a character relative to the size of its font.
_INCH, _NARROW = 72, 0.6


def save_parity_picture(
    path: Path,
    names: Sequence[str],
    values: NDArray[np.float64],
    predictions: Mapping[str, NDArray[np.float64]],
) -> None:
    """Draw predictions [N, K], by the title of their model, against the true ``values`` [N, K].

    The targets are called ``names`` [K].
    """
    lines, columns = len(names), len(predictions)
    size = (4.4 * columns + 1, 4.4 * lines + 0.2)
    figure = Figure(figsize=size, layout="compressed", dpi=130)
    panels = figure.subplots(lines, columns, squeeze=False, sharex="row", sharey="row")
    for k, (name, target, panels_of_target) in enumerate(zip(names, values.T, panels, strict=True)):
        shown = np.concatenate([target, *(each[:, k] for each in predictions.values())])
        margin = 0.03 * np.ptp(shown)
        limits = (shown.min() - margin, shown.max() + margin)
        for axes, (title, prediction) in zip(panels_of_target, predictions.items(), strict=True):
            rows = axes.hexbin(
                target,
                prediction[:, k],
                gridsize=60,
                norm=LogNorm(1, max(10, len(target) / 20)),  # one for all panels
                mincnt=1,
                extent=(*limits, *limits),
            )
            axes.axline((limits[0], limits[0]), slope=1, color="black", linewidth=0.7)
            axes.set(xlim=limits, ylim=limits, aspect="equal")
            axes.set_xlabel(_wrapped(f"true {name}"), parse_math=False)
            error = np.abs(prediction[:, k] - target).mean()
            axes.set_title(f"{title}, test MAE {error:{',.0f' if 1e3 <= error < 1e6 else '.3g'}}")
        panels_of_target[0].set_ylabel(_wrapped(f"predicted {name}"), parse_math=False)
    figure.colorbar(rows, ax=panels, label="test rows", format="{x:,.0f}", aspect=20 * lines)
    figure.savefig(path, format="png")


def save_confusion_picture(
    path: Path,
    names: Sequence[Any],
    values: NDArray[np.int64],
    predictions: Mapping[str, NDArray[np.float64]],
) -> None:
    """Draw how many rows of each class are taken for which.

    ``values`` [N] are indices of the classes, whose labels are ``names`` [K]. ``predictions``
    [N, K] are their logits, by the title of the model.
    """
    columns, number = len(predictions), len(names)
    side = min(12.0, max(2.8, _CELL * number))  # of a panel, inches
    cell = side / number * _INCH  # points
    named = range(0, number, math.ceil(number / _MOST_CLASSES))
    labels = [_cut(str(names[i]), _CHARACTERS) for i in named]
    font = min(10.0, 0.8 * cell * named.step)
    beside = 0.8 + max(map(len, labels)) * _NARROW * font / _INCH
    size = (side * columns + beside, side + beside)
    figure = Figure(figsize=size, layout="compressed", dpi=130)
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes, (title, logits) in zip(panels, predictions.items(), strict=True):
        predicted = logits.argmax(axis=1)
        counts = confusion_matrix(values, predicted, labels=range(number))
        axes.imshow(counts, cmap="Blues")
        count_font = min(9.0, 0.9 * cell / (_NARROW * len(f"{counts.max():,}")))
        # Where they would be too small to be read, colours have to do.
        for (true, taken), count in np.ndenumerate(counts) if count_font >= 4 else ():
            if count:
                color = "white" if count > counts.max() / 2 else "black"
                style = {"ha": "center", "va": "center", "color": color, "size": count_font}
                axes.text(taken, true, f"{count:,}", **style)
        axes.set_xticks(named, labels, rotation=90, size=font, parse_math=False)
        axes.set_yticks(named, labels, size=font, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_title(f"{title}, test accuracy {(predicted == values).mean():.3g}")
    panels[0].set_ylabel("true")
    figure.savefig(path, format="png")


def save_functions_picture(path: Path, model: FittedModel, features: NDArray[np.float64]) -> None:
    """Draw functions of the first layer; the dots are rows of ``features`` [N, I].

    For every pair of features, the function that bends most over the rows is a candidate; those
    candidates that bend most are drawn. Where there are no dots, only the Hessian penalty
    determines a function.
    """
    module = model.module
    block: Any = module.network[0]
    tables = block.layer.tables.detach().numpy()
    with torch.inference_mode():
        x = block.bound(module.standardised(features)).numpy()
    most_bent = []
    for pair in range(len(tables)):
        values = lmkan_cupy.forward(x[:, 2 * pair : 2 * pair + 2], tables[pair : pair + 1])
        affine = np.column_stack([x[:, 2 * pair : 2 * pair + 2], np.ones(len(x))])
        bend = (values - affine @ np.linalg.lstsq(affine, values)[0]).std(axis=0)
        most_bent.append((bend.max(), pair, int(bend.argmax())))
    most_bent = sorted(most_bent, reverse=True)[:_MOST_FUNCTIONS]

    names = model.description.encoder.names
    # In float64: in float32 a large mean would swallow what is added to it.
    scale, centre = module.feature_scale.numpy(), module.feature_mean.numpy()
    columns = min(len(most_bent), 3)
    lines = -(-len(most_bent) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.5 * lines), layout="constrained", dpi=130)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (_, pair, output) in zip(panels, most_bent, strict=False):
        features_of_pair = range(2 * pair, min(2 * pair + 2, len(names)))
        rows = x[:, 2 * pair : 2 * pair + 2]
        points = np.linspace(rows.min(axis=0), rows.max(axis=0), _POINTS)
        units = [centre[i] + scale[i] * points[:, i % 2] for i in features_of_pair]
        dots = [centre[i] + scale[i] * x[:_DOTS, i] for i in features_of_pair]
        axes.set_title(f"output {output + 1}")
        axes.set_xlabel(_wrapped(names[2 * pair]), parse_math=False)
        if len(units) == 1:
            axes.plot(*units, lmkan_cupy.evaluate(tables, pair, output, points[:, 0], 0.0))
            axes.plot(*dots, np.full(len(dots[0]), axes.get_ylim()[0]), "|", color="black")
            continue
        axes.set_ylabel(_wrapped(names[2 * pair + 1]), parse_math=False)
        values = lmkan_cupy.evaluate(tables, pair, output, points[:, 0], points[:, 1, None])
        mesh = axes.pcolormesh(*units, values, cmap="viridis", shading="gouraud", rasterized=True)
        axes.contour(*units, values, 12, colors="white", linewidths=0.4, linestyles="solid")
        size = min(5.0, 1.5 * math.sqrt(_DOTS / len(dots[0])))
        axes.plot(*dots, ".", color="black", markersize=size, clip_on=False)
        figure.colorbar(mesh, ax=axes)
    for axes in panels[len(most_bent) :]:
        axes.remove()
    title = "Learned by the first layer: functions of two features (dots: rows)"
    figure.suptitle(fill(title, 40 * columns))
    figure.savefig(path, format="png")


def _wrapped(name: str) -> str:
    """Return a label in lines that are shorter than a side of a panel."""
    return fill(_cut(name, 80), 28)


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 3]}..."
