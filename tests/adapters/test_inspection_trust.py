"""Rows beyond what a model was fitted to, and intervals around predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fits import dataset, quick_fit, table
from lmkan_cupy.adapters.fitting import Dataset, fit, load
from lmkan_cupy.adapters.inspection import intervals, unseen
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from lmkan_cupy.adapters.torch import LMKANBlock


def fitted_to_all_kinds() -> Any:
    rows = np.arange(60)
    frame = pd.DataFrame(
        {
            "x": np.where(rows % 7, rows, np.nan),
            "day": pd.date_range("2024-01-01", periods=60).strftime("%d.%m.%Y"),
            "level": np.array(["a", "b"])[rows % 2],
            "rare": [*["c", "d"] * 28, "e", "f", "g", "h"],
        }
    )
    return fit(Dataset(frame, pd.DataFrame({"y": rows})), baseline=False, width=2, epochs=1).model


def test_unseen_values_of_every_kind(tmp_path: Path) -> None:
    fitted_to_all_kinds().save(tmp_path)
    new = pd.DataFrame(
        {
            "x": [np.nan, 0.5, 1, 59, 59.5, 60],
            "day": ["31.12.2023", "01.01.2024", "29.02.2024", "01.03.2024", *["02.02.2024"] * 2],
            "level": ["a", "b", "z", "a", "b", "a"],
            "rare": ["c", "e", "another", "d", "c", "c"],
        }
    )
    found = unseen(load(tmp_path), new)
    assert found["rows"].to_dict() == {"x": 3, "day": 2, "level": 1, "rare": 0}
    np.testing.assert_allclose(found["share"], np.array([3, 2, 1, 0]) / 6)


def test_unseen_by_estimators() -> None:
    frame = table(100)[["a", "b"]]
    estimator = LMKANRegressor(2, 1, epochs=1, early_stopping=False).fit(frame, frame["a"])
    assert unseen(estimator, frame)["rows"].tolist() == [0, 0]
    beyond = frame.assign(b=frame["b"] + 10)
    assert unseen(estimator, beyond)["rows"].tolist() == [0, 100]
    frame["level"] = pd.Categorical(np.array(["u", "v"])[np.arange(100) % 2])
    classifier = LMKANClassifier(2, 1, epochs=1).fit(frame, frame["a"] > 0)
    assert unseen(classifier, frame.assign(level="w"))["rows"].tolist() == [0, 0, 100]
    with pytest.raises(ValueError, match="unseen: model must say to which values of x0, x1 it was"):
        unseen(LMKANBlock(2, 1).eval(), np.zeros((5, 2)))


def test_the_command_warns(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    quick_fit().model.save(tmp_path)
    table().to_csv("seen.csv", index=False)
    assert command("predict", ".", "seen.csv")[::2] == (0, "")
    table().assign(a=9.0, c=[*[-9] * 3, *[0] * 57]).to_csv("new.csv", index=False)
    code, out, err = command("predict", ".", "new.csv")
    assert (code, out.count("\n")) == (0, 61)
    assert err == (
        "warning: of 60 rows some are beyond the table that the model was fitted to: "
        "'a' in 60, 'c' in 3\n"
    )


def test_intervals_hold_as_many_as_they_should() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 2))
    y = x[:, 0] * x[:, 1] + rng.normal(size=1500)
    model = LMKANRegressor(4, 2, epochs=10, random_state=0).fit(x[:500], y[:500])
    for coverage in (0.5, 0.9):
        found = intervals(model, x[1000:], x[500:1000], y[500:1000], coverage=coverage)
        np.testing.assert_allclose(found["prediction"], model.predict(x[1000:]), rtol=1e-5)
        held = found["low"].lt(y[1000:]) & found["high"].gt(y[1000:])
        assert held.mean() == pytest.approx(coverage, abs=0.06)
        error = np.abs(model.predict(x[500:1000]) - y[500:1000])
        radius = np.sort(error)[int(np.ceil(501 * coverage)) - 1]
        np.testing.assert_allclose((found["high"] - found["low"]) / 2, radius, rtol=1e-5)


def test_intervals_of_a_fitted_model() -> None:
    result = fit(dataset(300), baseline=False, width=4, epochs=5)
    found = intervals(result.model, table(), result.test_table, result.test_values[:, 0])
    np.testing.assert_allclose(found["prediction"], result.model.predict(table()))
    assert (found["high"] > found["low"]).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"coverage": 1.0}, "coverage must be between 0 and 1, got 1.0"),
        ({"targets": np.zeros((60, 1))}, r"targets must have shape \(60,\), got \(60, 1\)"),
        ({"model": LMKANBlock(3, 2).eval()}, "model must have one target, got y0, y1"),
    ],
    ids=["coverage", "targets", "model"],
)
def test_errors(change: dict[str, Any], text: str) -> None:
    rows = table()[["a", "b", "c"]].to_numpy()
    arguments = {"model": quick_fit().model, "data": rows, "calibration": rows}
    with pytest.raises(ValueError, match=f"intervals: {text}"):
        intervals(**{**arguments, "targets": np.zeros(60), **change})
