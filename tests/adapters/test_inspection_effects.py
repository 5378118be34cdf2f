"""`effect` and `plot_effect`, for columns of every kind, in the units of the table."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lmkan_cupy.adapters.fitting import Dataset, FittedModel, fit
from lmkan_cupy.adapters.inspection import effect, plot_effect
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from sklearn.inspection import partial_dependence  # type: ignore[import-untyped]


@cache
def mixed() -> tuple[FittedModel, pd.DataFrame]:
    rows = np.arange(150)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "number": rng.normal(20, 5, 150),
            "level": np.array(["b", "a", "$c$"])[rows % 3],
            "day": pd.date_range("2023-03-01", periods=150).strftime("%d.%m.%Y"),
            "flag": rng.random(150) < 0.5,
            "count": rows % 4,
            "gaps": np.where(rows % 7, rng.normal(size=150), np.nan),
        }
    )
    targets = pd.DataFrame({"y": 2 * frame["number"] + 9 * (frame["level"] == "a")})
    targets["z"] = -frame["number"]
    return fit(Dataset(frame, targets), baseline=False, width=6, epochs=15).model, frame


def test_a_number() -> None:
    model, frame = mixed()
    found = effect(model, frame, "number")
    assert [*found] == ["number", "mean", "low", "high"]
    low, high = np.quantile(frame["number"], (0.005, 0.995))
    np.testing.assert_allclose(found["number"], np.linspace(low, high, 50))
    for row in (0, 30):
        everywhere = frame.assign(number=found["number"][row])
        predicted = model.predict(everywhere)[:, 0]
        assert found["mean"][row] == pytest.approx(predicted.mean())
        np.testing.assert_allclose(
            found.loc[row, ["low", "high"]], np.quantile(predicted, (0.1, 0.9)), rtol=1e-9
        )
    assert effect(model, frame, "number", target="z")["mean"].is_monotonic_decreasing
    assert found["mean"].is_monotonic_increasing


def test_other_kinds() -> None:
    model, frame = mixed()
    levels = effect(model, frame, "level")
    assert [*levels["level"]] == ["$c$", "a", "b"]
    assert levels["mean"].argmax() == 1
    days = effect(model, frame, "day")["day"]
    assert days.iloc[[0, -1]].dt.strftime("%Y-%m-%d").tolist() == ["2023-03-01", "2023-07-27"]
    for name, value in (("level", "a"), ("flag", True), ("count", 2), ("day", days[7])):
        found = effect(model, frame, name)
        row = [*found[name]].index(value)
        expected = model.predict(frame.assign(**{name: value}))[:, 0].mean()
        assert found["mean"][row] == pytest.approx(expected)
    assert [*effect(model, frame, "count")["count"]] == [0, 1, 2, 3]
    assert effect(model, frame, "gaps").notna().all(axis=None)


def test_two() -> None:
    model, frame = mixed()
    found = effect(model, frame, "number", "level")
    assert len(found) == 20 * 3
    row = found.loc[31]
    expected = model.predict(frame.assign(number=row["number"], level=row["level"]))[:, 0].mean()
    assert row["mean"] == pytest.approx(expected)


def test_agrees_with_partial_dependence() -> None:
    """Of scikit-learn, where that applies."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    for estimator, y in (
        (LMKANRegressor(6, 2, epochs=10, random_state=0), x[:, 0] * x[:, 1]),
        (LMKANClassifier(6, 2, epochs=10, random_state=0), x[:, 0] > x[:, 1]),
    ):
        estimator.fit(x, y)
        ours = effect(estimator, x, "x0")
        theirs = partial_dependence(
            estimator,
            x,
            [0],
            custom_values={0: ours["x0"].to_numpy()},
            response_method="auto" if estimator.__class__ is LMKANRegressor else "predict_proba",
        )
        np.testing.assert_allclose(ours["mean"], theirs["average"][0], rtol=1e-5, atol=1e-6)


def drawn(figure: Any) -> Any:
    figure.draw_without_rendering()
    return figure.axes[0]


@pytest.mark.long
def test_pictures() -> None:
    model, frame = mixed()
    ax = drawn(plot_effect(model, frame, "number"))
    (line,) = ax.lines
    found = effect(model, frame, "number")
    np.testing.assert_allclose(line.get_xydata(), found[["number", "mean"]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("number", "y")
    (rows,) = (each for each in ax.figure.axes if each is not ax)
    assert sum(each.get_height() for each in rows.patches) == pytest.approx(150, abs=3)

    ax = drawn(plot_effect(model, frame, "level", target="z"))
    assert [each.get_text() for each in ax.get_xticklabels()] == [
        f"{level}\n50 rows" for level in ("$c$", "a", "b")
    ]
    found = effect(model, frame, "level", target="z")
    np.testing.assert_allclose([each.get_height() for each in ax.patches], found["mean"])

    ax = drawn(plot_effect(model, frame, "day"))
    assert "2023" in ax.xaxis.get_major_formatter().get_offset() + "".join(
        each.get_text() for each in ax.get_xticklabels()
    )

    figure = plot_effect(model, frame, "gaps", "flag")
    ax = drawn(figure)
    assert [each.get_text() for each in ax.get_yticklabels()] == ["False", "True"]
    (mesh,) = (each for each in ax.collections if hasattr(each, "get_coordinates"))
    found = effect(model, frame, "gaps", "flag")
    np.testing.assert_allclose(
        np.ravel(mesh.get_array()), found["mean"].to_numpy().reshape(20, 2).T.ravel()
    )
    assert len(ax.lines[0].get_xdata()) == frame["gaps"].notna().sum()


def test_classes() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    labels = np.array(["low", "middle", "high"])[np.digitize(x[:, 0], (-0.5, 0.5))]
    model = LMKANClassifier(6, 2, epochs=20, random_state=0).fit(x, labels)
    found = effect(model, x, "x0", target="low")["mean"]
    assert found.iloc[0] > 0.9 > 0.1 > found.iloc[-1]
    ax = drawn(plot_effect(model, x, "x0", target="high"))
    assert ax.get_ylabel() == "probability of high"


@pytest.mark.parametrize(
    ("names", "options", "error", "text"),
    [
        ((), {}, TypeError, r"columns must be one name or two, got \(\)"),
        (("number", "number"), {}, TypeError, "columns must be one name or two, got"),
        (("nothing",), {}, ValueError, "columns must be of 'number', .*, got 'nothing'"),
        (("number",), {"target": "w"}, ValueError, "target must be of 'y', 'z', got 'w'"),
    ],
)
def test_errors(names: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"effect: {text}"):
        effect(*mixed(), *names, **options)
