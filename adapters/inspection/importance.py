"""``importance`` and ``interactions``: how much the predictions depend on columns, and on pairs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmkan_cupy.array_checks import check_size

from .view import View, view


def importance(model: Any, data: Any, *, repeats: int = 10, seed: int = 0) -> pd.DataFrame:
    """Return how much the predictions depend on each column.

    The importance of a column is the mean square by which the predictions change when its values
    are shuffled among the rows, divided by the variance of the predictions. It is what
    ``sklearn.inspection.permutation_importance`` returns for the R2 of predictions that are exact,
    and needs no targets. Of independent columns it is twice the total Sobol index.

    Parameters
    ----------
    model : FittedModel, estimator, TableNetwork or chain of layers
    data : frame, mapping or array [N, columns]
    repeats : int
        How often each column is shuffled.
    seed : int
        Decides how.

    Returns
    -------
    DataFrame
        A row for each column of the table, the most important first, with its ``importance`` and
        the ``noise`` of it: the standard error of the mean over the repeats. Of several targets
        it is the mean, of classes that of their probabilities.

    Raises
    ------
    TypeError, ValueError
        If the model or ``data`` cannot be taken, all predictions are the same, or ``repeats`` is
        not at least 2.
    """
    shuffling = _Shuffling(view("importance", model), data, repeats, seed)
    rows = [
        _mean_and_error(shuffling.relative(shuffling.predicted([name]) - shuffling.expected))
        for name in shuffling.columns
    ]
    table = pd.DataFrame(rows, shuffling.columns, ["importance", "noise"])
    return table.sort_values("importance", ascending=False)


def interactions(
    model: Any, data: Any, *, most: int = 10, repeats: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Return how much the predictions depend on pairs of columns beyond what each does alone.

    Three more predictions are made for every row, with one column, the other, and both as they are
    in another row. The interaction is half the mean square of the first and the last less the two
    others, divided by the variance of the predictions. It is 0 where the prediction is a sum of a
    function without the one column and a function without the other. Of independent columns it is
    twice the share of the variance that is due to both together, and comparable with their
    importance: all of it, for a product of two columns with the mean 0.

    Parameters
    ----------
    model, data, repeats, seed
        As in :func:`importance`.
    most : int
        Pairs are formed of so many of the most important columns.

    Returns
    -------
    DataFrame
        A row for each pair, the strongest first, with the names ``first`` and ``second``, the
        ``interaction`` and its ``noise``.

    Raises
    ------
    TypeError, ValueError
        As :func:`importance`.
    """
    most = check_size("interactions", "most", most, at_least=2)
    shuffling = _Shuffling(view("interactions", model), data, repeats, seed)
    alone = {name: shuffling.predicted([name]) for name in shuffling.columns}
    expected = shuffling.expected
    sizes = {name: shuffling.relative(each - expected).mean() for name, each in alone.items()}
    names = sorted(sizes, key=lambda name: -sizes[name])[:most]
    rows = []
    for pair in combinations(names, 2):
        mixed = expected - alone[pair[0]] - alone[pair[1]] + shuffling.predicted(pair)
        rows.append((*pair, *_mean_and_error(shuffling.relative(mixed) / 2)))
    table = pd.DataFrame(rows, columns=["first", "second", "interaction", "noise"])
    return table.sort_values("interaction", ascending=False, ignore_index=True)


class _Shuffling:
    """Predictions for a table with shuffled columns; in every repeat all in the same way."""

    def __init__(self, viewed: View, data: Any, repeats: int, seed: int) -> None:
        check_size(viewed.function, "repeats", repeats, at_least=2)
        self.columns = viewed.columns
        self._view = viewed
        self._frame = viewed.frame(data)
        self.expected = viewed.predicted(self._frame)
        self._variance = self.expected.var(axis=0)
        if not self._variance.any():
            raise ValueError(f"{viewed.function}: data: the predictions for all rows are the same")
        rng = np.random.default_rng(seed)
        self._orders = [rng.permutation(len(self._frame)) for _ in range(repeats)]

    def predicted(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the predictions [repeats, N, K] with these columns shuffled together."""
        predictions = []
        for order in self._orders:
            shuffled = self._frame.copy()
            for name in names:
                shuffled[name] = self._frame[name].take(order).array
            predictions.append(self._view.predicted(shuffled))
        return np.stack(predictions)

    def relative(self, changes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean squares [repeats], as shares of the variance, of [repeats, N, K]."""
        varies = self._variance > 0
        squares = np.square(changes).mean(axis=1)[:, varies] / self._variance[varies]
        means: NDArray[np.float64] = squares.mean(axis=1)
        return means


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
