"""``effect`` and ``plot_effect``: how the prediction depends on one column, or on two."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lmkan_cupy.encoding import Encoder

from .view import View, view

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What an unknown level of a category is called.
_ANOTHER = "(another)"

#: Values of a column, alone and beside another; rows over which predictions are averaged.
_POINTS, _POINTS_OF_TWO, _ROWS = 50, 20, 300

#: Numbers with no more values than this are set to each of them.
_MOST_DISTINCT = 10

#: Rows that are shown as dots.
_DOTS = 500

#: Quantiles of a column between which its effect is computed, and of predictions that are shown.
_RANGE, _SPREAD = (0.005, 0.995), (0.1, 0.9)


def effect(
    model: Any, data: Any, *columns: str, target: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return how the prediction depends on one column or two, all others being as in the data.

    The columns are set to each of some values in up to 300 rows: to evenly spaced ones between the
    0.5 % and the 99.5 % quantile of the data, to each level of a category, to each of up to ten
    numbers. The means of the predictions are what ``sklearn.inspection.partial_dependence``
    computes.

    Parameters
    ----------
    model : FittedModel, estimator, TableNetwork or chain of layers
    data : frame, mapping or array [N, columns]
    *columns : str
        One name or two; where the model knows none, they are "x0", "x1", ...
    target : str, optional
        Which target, "y0", "y1", ... where it has no name; by default the first. Or which class;
        by default the last, which is True of truth values.
    seed : int
        Decides which rows are taken.

    Returns
    -------
    DataFrame
        The values of the columns, with the ``mean`` of the predictions in the target's units, or
        of the probability of the class, and their quantiles ``low`` (10 %) and ``high`` (90 %).

    Raises
    ------
    TypeError, ValueError
        If the model or ``data`` cannot be taken, or a name is unknown.
    """
    return _Effect(view("effect", model), data, columns, target, seed).table


def plot_effect(
    model: Any, data: Any, *columns: str, target: str | None = None, seed: int = 0
) -> "Figure":
    """Draw what :func:`effect` returns, with the density of the data.

    Of one column the mean is a line, or a bar for each level of a category, and the spread over the
    other columns a band, or a line on the bar; a grey histogram counts the rows. Of two columns the
    mean is a map and the spread a second one; dots are rows.

    Parameters
    ----------
    model, data, columns, target, seed
        As in :func:`effect`.

    Returns
    -------
    Figure

    Raises
    ------
    TypeError, ValueError
        As :func:`effect`.
    """
    from matplotlib.figure import Figure

    found = _Effect(view("plot_effect", model), data, columns, target, seed)
    if len(columns) == 1:
        figure = Figure(figsize=(5.2, 3.8), layout="constrained", dpi=130)
        _draw_one(figure, found)
    else:
        figure = Figure(figsize=(9.6, 4.0), layout="constrained", dpi=130)
        _draw_two(figure, found)
    return figure


class _Column:
    """A column whose effect is wanted.

    Parameters
    ----------
    known : mapping
        What the encoder knows about it.
    frame : DataFrame
        The rows of the data.
    points : int
        How many values of a number or a date to take.

    Attributes
    ----------
    name : str
    labels : list of str or None
        What the values are called, where they are levels or truth values.
    is_date : bool
    values : array [M]
        To which it is set.
    places : float64 array [M]
        Where they stand on an axis: days since 1970 for dates, 0, 1, ... for levels.
    of_rows : float64 array [N]
        Where the rows of the data stand; NaN where they miss the value.
    """

    def __init__(self, known: Mapping[str, Any], frame: pd.DataFrame, points: int) -> None:
        self.name = known["name"]
        self.labels: list[str] | None = None
        self.is_date = known.get("kind") == "date"
        if "levels" in known:
            levels = [*known["levels"], *[_ANOTHER] * bool(known["others"])]
            self.labels = ["(missing)" if level is None else level for level in levels]
            self.values = np.array(levels, object)
            encoded = Encoder([known])(frame)  # a feature for each level, of two levels one
            is_level = np.column_stack([1 - encoded, encoded]) if len(levels) == 2 else encoded
            self.of_rows = is_level.argmax(axis=1).astype(np.float64)
            self.places = np.arange(len(levels), dtype=np.float64)
            return
        days_or_numbers, is_missing = Encoder([{**known, "parts": ["value", "missing"]}])(frame).T
        self.of_rows = np.where(is_missing, np.nan, days_or_numbers)
        if known["kind"] == "boolean":
            self.labels = ["False", "True"]
            self.values = self.places = np.array([0.0, 1.0])
            return
        present = days_or_numbers[is_missing == 0]
        self.places = np.unique(present)
        if len(self.places) > _MOST_DISTINCT:
            least, largest = np.quantile(present, _RANGE)
            self.places = np.linspace(least, largest, points)
        self.values = self.places
        if self.is_date:
            self.values = np.datetime64(0, "us") + (self.places * 86_400e6).astype("m8[us]")

    def show_on(self, axis: Any, with_counts: bool = False) -> None:
        """Name an axis after the column, and what stands on it after its values."""
        axis.set_label_text(self.name, parse_math=False)
        if self.labels is not None:
            labels = self.labels
            if with_counts:
                counts = [np.count_nonzero(self.of_rows == place) for place in self.places]
                labels = [f"{each}\n{n:,} rows" for each, n in zip(labels, counts, strict=True)]
            rotation = 90 if len("".join(self.labels)) > 40 and axis.axis_name == "x" else 0
            axis.set_ticks(self.places, labels, rotation=rotation, parse_math=False)
        elif self.is_date:
            from matplotlib import dates

            locator: Any = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
            axis.set_major_locator(locator)
            axis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


class _Effect:
    """The effect of some columns.

    Attributes
    ----------
    columns : list of _Column
    target : str
    table : DataFrame
        As :func:`effect` returns it.
    """

    def __init__(
        self, viewed: View, data: Any, names: Sequence[str], target: str | None, seed: int
    ) -> None:
        function = viewed.function
        if len({*names}) != len(names) or len(names) not in (1, 2):
            raise TypeError(f"{function}: columns must be one name or two, got {names}")
        known = {column["name"]: column for column in viewed.encoder.columns}
        if target is None:
            target = viewed.outputs[-1 if viewed.is_classifier else 0]
        for kind, name, all_names in (
            *(("columns", name, known) for name in names),
            ("target", target, viewed.outputs),
        ):
            if name not in all_names:
                raise ValueError(
                    f"{function}: {kind} must be of {', '.join(map(repr, all_names))}, got {name!r}"
                )
        self.target = f"probability of {target}" if viewed.is_classifier else target
        frame = viewed.frame(data)
        points = _POINTS if len(names) == 1 else _POINTS_OF_TWO
        self.columns = [_Column(known[name], frame, points) for name in names]

        count = min(_ROWS, len(frame))
        some = frame.take(np.random.default_rng(seed).choice(len(frame), count, replace=False))
        places = [*product(*(range(len(each.values)) for each in self.columns))]
        rows = pd.concat([some] * len(places), ignore_index=True)
        self.table = pd.DataFrame()
        for column, chosen in zip(self.columns, np.transpose(places), strict=True):
            self.table[column.name] = column.values[chosen]
            rows[column.name] = np.repeat(column.values[chosen], count)
        predicted = viewed.predicted(rows)[:, viewed.outputs.index(target)]
        of_values = predicted.reshape(len(places), count)
        self.table["mean"] = of_values.mean(axis=1)
        self.table["low"], self.table["high"] = np.quantile(of_values, _SPREAD, axis=1)


def _draw_one(figure: "Figure", found: _Effect) -> None:
    ax = figure.add_subplot()
    (column,) = found.columns
    mean, low, high = (found.table[name].to_numpy() for name in ("mean", "low", "high"))
    spread = "80 % of the rows"
    if column.labels is not None:
        ax.bar(column.places, mean, width=0.7, color="tab:blue", alpha=0.8, label="mean")
        error = np.stack([mean - low, high - mean]).clip(0)
        ax.errorbar(column.places, mean, error, fmt="none", color="black", capsize=3, label=spread)
        column.show_on(ax.xaxis, with_counts=True)
    else:
        is_few = len(column.places) <= _MOST_DISTINCT
        ax.fill_between(column.places, low, high, alpha=0.25, linewidth=0, label=spread)
        ax.plot(column.places, mean, color="tab:blue", marker="o" if is_few else None, label="mean")
        column.show_on(ax.xaxis)
        beside = ax.twinx()
        limits = column.places[0], column.places[-1]
        counts, *_ = beside.hist(
            column.of_rows, 30, range=limits, color="0.5", alpha=0.4, label="rows"
        )
        beside.set(ylim=(0, 5 * max(np.max(counts), 1)), yticks=[])
    ax.set_ylabel(found.target, parse_math=False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")


def _draw_two(figure: "Figure", found: _Effect) -> None:
    first, second = found.columns
    dots = np.stack([first.of_rows, second.of_rows])
    rng = np.random.default_rng(0)
    dots = rng.permutation(dots[:, np.isfinite(dots).all(axis=0)], axis=1)[:, :_DOTS]
    dots += rng.uniform(-0.3, 0.3, dots.shape) * [
        [each.labels is not None] for each in found.columns
    ]
    titles = {"mean": found.target, "spread": "spread over 80 % of the rows"}
    maps = {"mean": found.table["mean"], "spread": found.table["high"] - found.table["low"]}
    for ax, name in zip(figure.subplots(1, 2, sharey=True), maps, strict=True):
        values = maps[name].to_numpy().reshape(len(first.places), -1).T
        cmap = "viridis" if name == "mean" else "magma"
        mesh = ax.pcolormesh(
            first.places, second.places, values, shading="nearest", cmap=cmap, rasterized=True
        )
        figure.colorbar(mesh, ax=ax)
        limits = ax.get_xlim(), ax.get_ylim()
        ax.plot(
            *dots, ".", color="white", markersize=2.5, markeredgewidth=0.3, markeredgecolor="0.3"
        )
        ax.set(xlim=limits[0], ylim=limits[1])
        ax.set_title(titles[name], parse_math=False)
        for axis, column in ((ax.xaxis, first), (ax.yaxis, second)):
            column.show_on(axis)
