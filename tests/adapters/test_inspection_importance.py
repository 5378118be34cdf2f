"""`importance` and `interactions` of functions that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fits import quick_fit, table
from lmkan_cupy.adapters.inspection import importance, interactions
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from lmkan_cupy.adapters.torch import LMKANLinear
from sklearn.inspection import permutation_importance  # type: ignore[import-untyped]

import lmkan_cupy


@pytest.fixture(scope="module")
def known() -> Any:
    """y = x0 x1 + 2 x2, of a layer that holds it exactly, and rows."""
    layer = LMKANLinear(4, 1, 8)
    torch.nn.init.zeros_(layer.tables)
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(8))
    layer.tables.data[0, :, :, 0] = knots[:, None] * knots
    layer.tables.data[1, :, :, 0] = 2 * knots[:, None]
    return layer, np.random.default_rng(0).standard_normal((3000, 4))


def test_of_a_known_function(known: Any) -> None:
    """Var y = 1 + 4; total Sobol indices 1/5, 1/5, 4/5 and 0, of which it is twice."""
    found = importance(*known, repeats=5)
    assert (found.index[0], found.index[-1]) == ("x2", "x3")
    expected = pd.Series({"x0": 0.4, "x1": 0.4, "x2": 1.6, "x3": 0.0})
    assert (found["importance"] - expected).abs().max() < 0.1
    assert found.loc["x3"].max() < 1e-10
    assert found["noise"][["x0", "x1", "x2"]].between(1e-4, 0.05).all()


def test_pairs_of_a_known_function(known: Any) -> None:
    found = interactions(*known, repeats=5)
    assert len(found) == 6
    assert {*found.loc[0, ["first", "second"]]} == {"x0", "x1"}
    assert found["interaction"][0] == pytest.approx(0.4, abs=0.05)
    assert 0 < found["noise"][0] < 0.05
    assert found["interaction"][1:].max() < 1e-10
    assert len(interactions(*known, most=2, repeats=2)) == 1


def test_agrees_with_permutation_importance() -> None:
    """Of scikit-learn, for targets that are the predictions."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(600, 4)), columns=list("abcd"))
    y = frame["a"] * frame["b"] + np.sin(2 * frame["c"])
    model = LMKANRegressor(8, 2, epochs=20, random_state=0).fit(frame, y)
    ours = importance(model, frame)
    theirs = permutation_importance(
        model, frame, model.predict(frame), scoring="r2", n_repeats=10, random_state=1
    )
    noise = theirs.importances_std / np.sqrt(10)
    difference = ours["importance"][[*frame]] - theirs.importances_mean
    assert (difference.abs() < 5 * (ours["noise"][[*frame]] + noise)).all()
    assert ours["importance"].max() > 0.5


def test_columns_of_every_kind() -> None:
    """Columns are shuffled, not features; classes have probabilities."""
    rows = np.arange(200)
    frame = pd.DataFrame({"level": pd.Categorical(np.array(["u", "v", "w"])[rows % 3])})
    frame["self"] = np.random.default_rng(0).normal(size=200)
    model = LMKANClassifier(6, 2, epochs=20, random_state=0).fit(frame, rows % 3 == 1)
    found = importance(model, frame)
    assert [*found.index] == ["level", "self"]
    assert found["importance"]["level"] > 0.5


def test_the_same_numbers_again() -> None:
    model, rows = quick_fit().model, table()
    pd.testing.assert_frame_equal(importance(model, rows), importance(model, rows))
    assert not importance(model, rows).equals(importance(model, rows, seed=1))
    assert len(importance(model, {name: rows[name] for name in "cab"})) == 3


def test_errors(known: Any) -> None:
    with pytest.raises(ValueError, match="importance: repeats must be at least 2, got 1"):
        importance(*known, repeats=1)
    with pytest.raises(ValueError, match="interactions: most must be at least 2, got 1"):
        interactions(*known, most=1)
    with pytest.raises(ValueError, match="importance: data: the predictions for all rows are the"):
        importance(known[0], np.zeros((5, 4)))
