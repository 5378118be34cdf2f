"""`Dataset`: targets that are numbers or classes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from fits import dataset, quick_fit, table
from lmkan_cupy.adapters.fitting import Dataset, InputError
from scipy.sparse import csr_array  # type: ignore[import-untyped]

FEATURES = table().drop(columns="y")


def of(target: Any, task: Any = None) -> Dataset:
    return Dataset(FEATURES, pd.DataFrame({"y": target}), task)


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (["x", " y"] * 30, ["x", "y"]),
        ([True, False] * 30, [False, True]),
        ([0, 1] * 30, [0, 1]),
        ([1.0, 0.0] * 30, [0, 1]),
        (["0", "1"] * 30, ["0", "1"]),
        (pd.Categorical([3, 1, 2] * 20), [1, 2, 3]),
        (["1", "2", "none"] * 20, ["1", "2", "none"]),
    ],
    ids=str,
)
def test_targets_that_are_classes(target: Any, classes: list[Any]) -> None:
    data = of(target)
    assert (data.task, data.classes) == ("classification", classes)
    assert [type(each) for each in data.classes or []] == [type(each) for each in classes]
    np.testing.assert_array_equal(
        np.array(classes)[data.values],
        [
            type(classes[0])(str(x).strip()) if isinstance(x, str) else x
            for x in np.asarray(target).tolist()
        ],
    )


@pytest.mark.parametrize("target", [[0, 1, 2] * 20, [0.0, 0.5] * 30, ["1.5", "2"] * 30], ids=str)
def test_targets_that_are_numbers(target: list[Any]) -> None:
    data = of(target)
    assert (data.task, data.classes) == ("regression", None)
    np.testing.assert_array_equal(data.values[:, 0], [float(each) for each in target])


def test_the_task_can_be_given() -> None:
    np.testing.assert_array_equal(of([0, 1] * 30, "regression").values[:, 0], [0, 1] * 30)
    assert of([5, 6, 9] * 20, "classification").classes == [5, 6, 9]


def test_several_targets() -> None:
    targets = pd.DataFrame({"y": [0, 1] * 30, "z": np.arange(60)})
    data = Dataset(FEATURES, targets)
    assert (data.task, data.target_names) == ("regression", ["y", "z"])
    np.testing.assert_array_equal(data.values, targets)


@pytest.mark.parametrize(
    ("target", "task", "message"),
    [
        (["x"] * 60, None, "the target 'y' is constant"),
        (
            ["x", "y"] * 29 + ["z", "z"],
            None,
            "the target 'y' has classes in fewer than 5 rows: 'z'",
        ),
        (["x", None] * 30, None, r"column 'y': row 2 has no value \(30 such rows\)"),
        ([1.5, None] * 30, None, r"column 'y': row 2 has no value \(30 such rows\)"),
        (["x", "y"] * 30, "regression", "column 'y': row 1 holds 'x', which is no finite number"),
        (pd.date_range("2024", periods=60), None, "column 'y': row 1 holds .* no finite number"),
        ([1, 2] * 30, "other", "task must be 'regression' or 'classification', got 'other'"),
        ([1, 2] * 10, None, "features and targets must have equally many rows, got 60 and 20"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_targets_that_are_refused(target: Any, task: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of(target, task)


def test_other_rows_are_prepared_alike() -> None:
    data = of(["x", "y"] * 30)
    features, values = data.prepared(FEATURES[5:9].assign(y=["y", "y ", "x", "x"]))
    np.testing.assert_array_equal(features, data.encoded[5:9])
    assert values.tolist() == [1, 1, 0, 0]
    for frame, message in (
        (FEATURES.assign(y="z"), "column 'y' holds 'z', which is none of the classes"),
        (FEATURES, "there is no column 'y'"),
        (table()[["a", "y"]], "there is no column 'b'; there is no column 'c'"),
    ):
        with pytest.raises(InputError, match=message):
            data.prepared(frame)


def test_names_become_text_and_must_differ() -> None:
    numbered = Dataset(FEATURES.to_numpy(), dataset().targets)  # type: ignore[arg-type]
    assert numbered.encoder.names == ["0", "1", "2"]
    with pytest.raises(InputError, match="2 columns are called 'a'"):
        Dataset(FEATURES.rename(columns={"b": "a"}), dataset().targets)


def test_what_is_masked_is_missing() -> None:
    x = np.ma.masked_greater(dataset().encoded, 1.5)  # type: ignore[no-untyped-call]
    assert x.mask.any()
    with pytest.raises(InputError, match="has no value"):
        quick_fit().model.predict(x)


def test_what_is_sparse_is_refused() -> None:
    model, x = quick_fit().model, csr_array(dataset().encoded)
    for name, call in {
        "predict: table": lambda: model.predict(x),
        "TableNetwork: features": lambda: model.module.predict(x),  # type: ignore[arg-type]
    }.items():
        with pytest.raises(TypeError, match=f"{name} must be dense, got a sparse csr_array"):
            call()
