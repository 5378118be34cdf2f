"""``unseen`` and ``intervals``: where a prediction is not to be trusted, and how far it is."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin  # type: ignore[import-untyped]

from .view import view


def unseen(model: Any, data: Any) -> pd.DataFrame:
    """Return in how many rows each column holds what the model has not been fitted to.

    Parameters
    ----------
    model : FittedModel or estimator
        For a chain of layers :func:`lmkan_cupy.occupancy` counts the inputs beyond the grid.
    data : frame, mapping or array [N, columns]

    Returns
    -------
    DataFrame
        A row for each column of the table, with the number of ``rows`` and their ``share``: where
        a number or a date is beyond the least or the largest one that ``fit`` was given (the
        estimators: that they were trained on), or a level is unknown and there were no other rare
        ones.

    Raises
    ------
    TypeError, ValueError
        If the model or ``data`` cannot be taken, or the model does not say what it was fitted to:
        a chain of layers, or one that an earlier version saved.
    """
    viewed = view("unseen", model)
    if silent := [each["name"] for each in viewed.encoder.columns if each.get("seen", ()) is None]:
        raise ValueError(
            f"unseen: model must say to which values of {', '.join(silent)} it was fitted"
        )
    found = viewed.encoder.unseen(viewed.frame(data))
    table = pd.DataFrame({name: [flags.sum(), flags.mean()] for name, flags in found.items()}).T
    table.columns = pd.Index(["rows", "share"])
    return table.astype({"rows": int})


def intervals(
    model: Any, data: Any, calibration: Any, targets: Any, *, coverage: float = 0.9
) -> pd.DataFrame:
    """Return intervals around predictions that hold the target with a given probability.

    They are conformal: as wide as the errors in rows with known targets, by
    ``mapie.regression.SplitConformalRegressor``. The probability is that of a row like these,
    whatever the model is worth; it is an average over all of them, since the width is the same
    everywhere.

    Parameters
    ----------
    model : FittedModel, estimator, TableNetwork or chain of layers
        Of one target.
    data : frame, mapping or array [N, columns]
        The rows to predict.
    calibration : frame, mapping or array [M, columns]
        Rows that the model was not trained on, such as those that ``fit`` keeps for the test.
    targets : array [M]
        Their targets.
    coverage : float
        The probability, between 0 and 1.

    Returns
    -------
    DataFrame [N]
        The ``prediction``, and the ends of the interval, ``low`` and ``high``, in the target's
        units.

    Raises
    ------
    TypeError, ValueError
        If the model, ``data`` or ``calibration`` cannot be taken, the model has classes or several
        targets, ``targets`` has another shape, ``coverage`` is not between 0 and 1, or there are
        too few rows for it.
    """
    # Only here, because its import takes long.
    from mapie.regression import SplitConformalRegressor  # type: ignore[import-untyped]

    viewed = view("intervals", model)
    if viewed.is_classifier or len(viewed.outputs) > 1:
        raise ValueError(f"intervals: model must have one target, got {', '.join(viewed.outputs)}")
    if not 0 < coverage < 1:
        raise ValueError(f"intervals: coverage must be between 0 and 1, got {coverage}")
    known = viewed.predicted(viewed.frame(calibration))
    values = np.asarray(targets, np.float64)
    if values.shape != (len(known),):
        raise ValueError(f"intervals: targets must have shape ({len(known)},), got {values.shape}")
    conformal = SplitConformalRegressor(_Predicted(), confidence_level=coverage, prefit=True)
    conformal.conformalize(known, values)
    prediction, ends = conformal.predict_interval(viewed.predicted(viewed.frame(data)))
    columns = {"prediction": prediction, "low": ends[:, 0, 0], "high": ends[:, 1, 0]}
    return pd.DataFrame(columns)


class _Predicted(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Takes predictions for rows: so every model is one of scikit-learn's."""

    n_features_in_ = 1

    def fit(self, X: NDArray[np.float64], y: Any) -> "_Predicted":
        return self

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        predictions: NDArray[np.float64] = X[:, 0]
        return predictions
