"""Pictures of the functions that a layer has learned, with the density of its inputs on top.

They need matplotlib, the extra ``plot``.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import lmkan_cupy
from lmkan_cupy import array_checks

from .layers import TablesModule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Points per axis of a map, of a curve, and most bins per axis of the data.
_POINTS, _CURVE_POINTS, _MOST_BINS = 101, 1001, 30

#: Shares of the samples that lines enclose or bands hold.
_SHARES = (0.95, 0.5)


def plot_function(
    layer: TablesModule,
    pair: int,
    output: int,
    *,
    data: Tensor | ArrayLike | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw an inner function: of one input as a curve, of two as a map.

    The small ticks are the knots. The picture reaches to the outermost knots, or further if the
    data do.

    Parameters
    ----------
    layer : LMKANLinear, LMKANConv2d or LMKAN2DLayer
        In a layer with groups, pairs are numbered from the first group to the last.
    pair, output : int
        Which function, counted from 0.
    data : Tensor or array [..., I], optional
        Inputs of the layer. White lines on a map, grey bands behind a curve, hold 50 % and 95 % of
        them; where there are none, only the Hessian penalty determines the function.
    ax : Axes, optional
        Where to draw; None makes a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        If an index is out of range, ``data`` lacks the features of the pair or masks some, or the
        functions have three inputs.
    """
    tables, dimension = layer.by_pair().detach(), layer.dimension
    if dimension > 2:
        raise ValueError("plot_function: functions of three inputs cannot be drawn")
    array_checks.check_pair_and_output("plot_function", tables, pair, output)
    function = tables[pair : pair + 1, ..., output : output + 1]
    values_at_knots = function.to(_real(function)).cpu().numpy()
    knots = lmkan_cupy.sigma_grid(tables.shape[1] - 1, dtype=values_at_knots.dtype)
    samples = None if data is None else _samples_of(data, pair, dimension)
    far = knots[-1] if samples is None else max(knots[-1], np.abs(samples).max(initial=0))

    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    draw = _draw_curve if dimension == 1 else _draw_map
    draw(ax, values_at_knots, far, samples if samples is not None and len(samples) else None)
    ax.set(title=f"pair {pair}, output {output}", xlabel=f"input {dimension * pair}")
    ax.xaxis.set_ticks(knots, minor=True)
    if dimension == 2:
        ax.set(ylabel=f"input {2 * pair + 1}", aspect="equal")
        ax.yaxis.set_ticks(knots, minor=True)
    return ax


def plot_layer(
    layer: TablesModule, *, data: Tensor | ArrayLike | None = None, most: int = 9
) -> "Figure":
    """Draw the functions of a layer that bend most, that is, add most to the Hessian penalty.

    Parameters
    ----------
    layer, data
        As in :func:`plot_function`.
    most : int
        How many functions at most.

    Returns
    -------
    Figure

    Raises
    ------
    TypeError, ValueError
        As :func:`plot_function`; also if ``most`` is not at least 1.
    """
    most = array_checks.check_size("plot_layer", "most", most)
    from matplotlib import pyplot

    tables = layer.by_pair().detach()
    roughness = _roughness(tables.to(_real(tables)).cpu().numpy())
    functions = np.argsort(roughness, axis=None)[::-1][:most]
    columns = int(np.ceil(np.sqrt(len(functions))))
    rows = -(-len(functions) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, squeeze=False, figsize=(3.6 * columns, 3.2 * rows), layout="constrained"
    )
    for ax in panels.flat[len(functions) :]:
        ax.remove()
    for ax, function in zip(panels.flat, functions, strict=False):
        pair, output = np.unravel_index(function, roughness.shape)
        plot_function(layer, int(pair), int(output), data=data, ax=ax)
    return figure


def _roughness(tables: NDArray[Any]) -> NDArray[Any]:
    """Return what every function adds [P, O] to the penalty R; a quadratic form is T dR/dT / 2."""
    gradient = lmkan_cupy.hessian_penalty_grad(tables)
    knots = "ijk"[: tables.ndim - 2]
    parts: NDArray[Any] = np.einsum(f"p{knots}o,p{knots}o->po", tables, gradient) / 2
    return parts


def _draw_curve(ax: "Axes", tables: NDArray[Any], far: float, samples: NDArray[Any] | None) -> None:
    """Draw the one function of ``tables`` [1, S, 1], and bands that hold ``_SHARES`` of samples."""
    points = np.linspace(-far, far, _CURVE_POINTS)
    ax.plot(points, lmkan_cupy.evaluate(tables, 0, 0, points))
    if samples is None:
        return
    for share in _SHARES:
        ends = np.quantile(samples, [0.5 - share / 2, 0.5 + share / 2])
        ax.axvspan(*ends, color="black", alpha=0.1, linewidth=0)


def _draw_map(ax: "Axes", tables: NDArray[Any], far: float, samples: NDArray[Any] | None) -> None:
    """Draw the one function of ``tables`` [1, S, S, 1], and lines around the samples."""
    points = np.linspace(-far, far, _POINTS)
    values = lmkan_cupy.evaluate(tables, 0, 0, points[:, None], points)
    mesh = ax.pcolormesh(points, points, values.T, shading="gouraud", rasterized=True)
    ax.figure.colorbar(mesh, ax=ax)
    if samples is not None:
        _draw_density(ax, samples, far)


def _draw_density(ax: "Axes", samples: NDArray[Any], far: float) -> None:
    """Draw lines around the densest bins that hold ``_SHARES`` of the samples [B, 2]."""
    first, second = samples.T
    bins = int(np.clip(np.sqrt(len(samples)) / 2, 5, _MOST_BINS))  # some samples in each
    counts, edges, _ = np.histogram2d(first, second, bins=bins, range=[[-far, far]] * 2)
    densest = np.sort(counts, axis=None)[::-1]
    held = np.cumsum(densest) / len(samples)
    levels = [densest[np.searchsorted(held, share)] - 0.5 for share in _SHARES]
    centres = (edges[1:] + edges[:-1]) / 2
    ax.contour(centres, centres, counts.T, np.unique(levels), colors="white", linewidths=(0.8, 1.6))


def _samples_of(data: Tensor | ArrayLike, pair: int, dimension: int) -> NDArray[Any]:
    """Return the inputs [B, d] of a pair; what a last one lacks is 0."""
    array_checks.check_unmasked("plot_function", "data", data)
    if isinstance(data, Tensor):
        data = data.to(_real(data)).numpy(force=True)
    array = np.asarray(data)
    first = dimension * pair
    columns = array.reshape(-1, array.shape[-1])[:, first : first + dimension]
    if columns.shape[1] == 0:
        raise ValueError(
            f"plot_function: data must have at least {first + 1} features on its last axis for "
            f"pair {pair}, got data.shape={array.shape}"
        )
    samples: NDArray[Any] = np.pad(columns, ((0, 0), (0, dimension - columns.shape[1])))
    finite: NDArray[Any] = samples[np.isfinite(samples).all(axis=1)]
    return finite


def _real(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
