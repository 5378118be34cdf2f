"""`fit` and `predict` on tables of many kinds, from the files to the files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fits import QUICK, QUICK_ARGUMENTS, check_refusal, dataset
from lmkan_cupy.adapters.fitting import Dataset, FitResult, fit, load
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from sklearn.metrics import log_loss  # type: ignore[import-untyped]

Command = Callable[..., tuple[int, str, str]]


def mixed(rows: int = 80) -> pd.DataFrame:
    """Columns of every kind, and targets of numbers and of classes."""
    number = np.arange(rows)
    x = np.random.default_rng(0).normal(size=rows)
    frame = pd.DataFrame(
        {
            "id": [f"{i:03}" for i in number],
            "x": np.where(number % 9, x, np.nan),
            "level": np.array(["01", "02", "a"])[number % 3],
            "day": pd.date_range("2024-01-01", periods=rows).strftime("%d.%m.%Y"),
            "flag": number % 2 == 0,
            "same": 1,
        }
    )
    return frame.assign(
        y=x + number % 3, z=2 * x, kind=np.array(["good", "so; so", "bad"])[number % 3]
    )


def predictions(out: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(out), dtype={"id": str})


def test_classes(tmp_path: Path, command: Command) -> None:
    mixed().to_csv("data.csv", index=False, sep=";", decimal=",")
    arguments = ["--target", "kind", "--id", "id", "--drop", "y", "--drop", "z"]
    code, out, _ = command("fit", "data.csv", *arguments, "--out", "model", *QUICK_ARGUMENTS)
    assert code == 0
    assert out.startswith(
        "kind is learned from x, level, day, flag\n"
        "kind holds 3 classes: bad, good, so; so\n"
        "  y      left out: as asked for\n"
    )
    for line in (
        "  x      number, missing in 9 rows (the median there, and marked)\n",
        "  level  category of 3 levels\n",
        "  day    date and weekday, written as %d.%m.%Y\n",
        "  flag   boolean\n",
        "  same   left out: constant\n",
        "test accuracy of kind",
        "test log loss of kind",
    ):
        assert line in out
    names = {each.name for each in (tmp_path / "model").iterdir()}
    assert {"confusion.png", "functions.png", "metrics.json"} <= names
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    for name in ("lmkan", "mlp"):
        assert {"accuracy", "log_loss"} <= set(metrics[name])
    assert metrics["columns"]["same"] == "left out: constant"

    # Columns that the model does not read are not needed, and "01" stays text if all are such.
    new = mixed()[lambda frame: frame["level"] != "a"].drop(columns=["same", "kind", "y", "z"])
    new.to_csv("new.csv", index=False)
    code, out, _ = command("predict", "model", "new.csv", "--id", "id", "--id", "day")
    assert code == 0
    found = predictions(out)
    probabilities = [f"probability of {name}" for name in ("bad", "good", "so; so")]
    assert [*found] == ["id", "day", "kind", *probabilities]
    assert found["id"].tolist() == new["id"].tolist()
    model = load("model")
    np.testing.assert_allclose(found[probabilities], model.predict_proba(new), rtol=1e-7)
    np.testing.assert_array_equal(found["kind"], model.predict(new))
    np.testing.assert_allclose(found[probabilities].sum(axis=1), 1)


@pytest.mark.long
def test_several_targets(tmp_path: Path, command: Command) -> None:
    mixed().to_csv("data.csv", index=False)
    arguments = ["--target", "y", "--target", "z", "--drop", "kind", "--id", "id"]
    code, out, _ = command("fit", "data.csv", *arguments, "--out", "model", *QUICK_ARGUMENTS)
    assert code == 0
    assert out.startswith("y, z are learned from x, level, day, flag\n")
    assert "test MAE of z" in out
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert set(metrics["lmkan"]["rmse"]) == set(metrics["mlp"]["mae"]) == {"y", "z"}
    found = predictions(command("predict", "model", "data.csv")[1])
    assert [*found] == ["y", "z"]
    np.testing.assert_allclose(found, load("model").predict(mixed()), rtol=1e-7)


def test_zeros_and_ones(command: Command) -> None:
    mixed()[["x", "flag"]].assign(y=[0, 1] * 40).to_csv("data.csv", index=False)
    _, out, _ = command("fit", "data.csv", "--out", "a", "--no-baseline", *QUICK_ARGUMENTS)
    assert "\ny holds 2 classes: 0, 1 (--task regression learns numbers)\n" in out
    assert set(predictions(command("predict", "a", "data.csv")[1])["y"]) <= {0, 1}
    task = ["--task", "regression"]
    _, out, _ = command("fit", "data.csv", *task, "--out", "b", "--no-baseline", *QUICK_ARGUMENTS)
    assert "classes" not in out
    assert "test RMSE of y" in out


def test_all_that_is_bad_is_named_at_once(command: Command) -> None:
    bad = mixed().drop(columns="id").assign(w=np.inf)
    bad["y"] = bad["y"].astype(object)
    bad.loc[3, "y"] = "n/k"
    bad.to_csv("data.csv", index=False)
    check_refusal(
        command("fit", "data.csv", "--target", "z"),
        "column 'y': row 4 holds 'n/k', which is no finite number; "
        "column 'w': row 1 holds inf, which is no finite number (80 such rows)",
    )


@pytest.mark.parametrize("option", ["--seed", "--out", "--sep", "--penalty", "--validation"])
def test_an_option_given_twice_is_refused(command: Command, option: str) -> None:
    code, out, err = command("fit", "data.csv", option, "1", option, "2")
    assert (code, out) == (2, "")
    assert f"{option} is given twice" in err


@pytest.mark.parametrize("option", ["--target", "--drop", "--id"])
def test_a_name_given_twice_is_refused(command: Command, option: str) -> None:
    code, out, err = command("fit", "data.csv", option, "a", option, "b", option, "a")
    assert (code, out) == (2, "")
    assert f"{option} a is given twice" in err


# The estimators do the same


def split(data: Dataset) -> tuple[Any, Any]:
    """Rows for the validation and for the training of `fit` with the seed 0."""
    order = np.random.default_rng(0).permutation(len(data.values))
    tenth = len(order) // 10
    return order[tenth : 2 * tenth], order[2 * tenth :]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"penalty": 1.0, "num_grids": 5, "loss": "huber"},
    {"patience": 2, "layers": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_fit_gives_the_numbers_of_the_estimator(settings: dict[str, Any]) -> None:
    data = dataset()
    result = fit(data, baseline=False, width=4, **settings)
    held_out, training = split(data)
    options = {"n_iter_no_change": settings.get("patience", 10)} | settings
    options.pop("patience", None)
    regressor = LMKANRegressor(width=4, random_state=0, **options).fit(
        data.encoded[training],
        data.values[training],
        X_val=data.encoded[held_out],
        y_val=data.values[held_out],
    )
    np.testing.assert_array_equal(
        result.model.predict(data.features), regressor.predict(data.encoded)[:, 0]
    )


@pytest.mark.long
def test_rows_for_validation_can_be_given(command: Command) -> None:
    frame = mixed().drop(columns=["id", "y", "z", "same"])
    later = frame[::-3]
    frame.to_csv("data.csv", index=False)
    later.to_csv("later.csv", index=False)
    result = fit(
        data := Dataset(frame.drop(columns="kind"), frame[["kind"]]),
        validation=later,
        baseline=False,
        **QUICK,
    )
    assert result.metrics["rows"] == {"train": 72, "test": 8}
    training = np.setdiff1d(np.arange(80), result.test_table.index)
    classifier = LMKANClassifier(**QUICK, random_state=0)
    # In the order in which fit hands the rows over.
    _, held_out, rest = import_module("lmkan_cupy.adapters.fitting.fit")._split(data, 0)
    order = np.concatenate([held_out, rest])
    assert set(order) == set(training)
    features, values = data.prepared(later)
    classifier.fit(data.encoded[order], data.values[order], X_val=features, y_val=values)
    np.testing.assert_array_equal(
        result.model.predict_proba(frame), classifier.predict_proba(data.encoded)
    )
    arguments = ["--validation", "later.csv", "--no-baseline", "--out", "model", *QUICK_ARGUMENTS]
    assert command("fit", "data.csv", *arguments)[0] == 0
    expected = result.model.predict_proba(frame)
    np.testing.assert_array_equal(load("model").predict_proba(frame), expected)
    frame[lambda frame: frame["level"] != "a"].to_csv("later.csv", index=False)
    arguments[arguments.index("model")] = "again"
    assert command("fit", "data.csv", *arguments)[0] == 0  # "01" is a level though all are numbers
    alike = fit(
        data, validation=frame[lambda frame: frame["level"] != "a"], baseline=False, **QUICK
    )
    expected = alike.model.predict_proba(frame)
    np.testing.assert_array_equal(load("again").predict_proba(frame), expected)
    later.drop(columns="flag").to_csv("later.csv", index=False)
    check_refusal(
        command("fit", "data.csv", "--validation", "later.csv"),
        "later.csv: there is no column 'flag'",
    )


def test_of_each_class_as_many_rows_are_tested_on() -> None:
    frame = pd.DataFrame({"x": np.arange(100.0), "y": ["a"] * 60 + ["b"] * 35 + ["c"] * 5})
    result: FitResult = fit(
        Dataset(frame[["x"]], frame[["y"]]), baseline=False, width=2, epochs=1, layers=1
    )
    assert np.bincount(result.test_values, minlength=3).tolist() in (
        [6, 4, 0],
        [6, 3, 1],
        [6, 4, 1],
    )
    expected = log_loss(
        result.test_values, result.model.predict_proba(result.test_table), labels=[0, 1, 2]
    )
    assert result.metrics["lmkan"]["log_loss"] == pytest.approx(expected)
    accuracy = result.model.predict(result.test_table) == np.array([*"abc"])[result.test_values]
    assert result.metrics["lmkan"]["accuracy"] == accuracy.mean()
