"""Fitted networks elsewhere: as a torch module, in `torch.export`, in ONNX with their encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from fits import QUICK
from lmkan_cupy.adapters.fitting import Dataset, FittedModel, fit, load
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from problems import first_short

ROWS = 120

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch itself


def features(rng: np.random.Generator) -> Any:
    """Numbers of different sizes, one of which differs little between rows, as dates do."""
    return rng.normal(size=(ROWS, 3)) * [1.0, 1e4, 10.0] + [0.0, -3e5, 19_000.0]


def onnx_values(path: Path, **inputs: Any) -> Any:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    (values,) = onnxruntime.InferenceSession(path).run(None, inputs)
    return values


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(LMKANRegressor, "float64"), (LMKANClassifier, "float32")],
)
def test_the_model_of_an_estimator_is_a_module(
    kind: Any, dtype: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    """In torch, in `torch.export` and in ONNX it answers as the estimator does."""
    x = features(rng).astype(dtype)
    targets = np.column_stack([1e6 + 1e3 * x[:, 0], x[:, 1] * x[:, 2]])
    is_regressor = kind is LMKANRegressor
    estimator = kind(width=4, epochs=2, random_state=0)
    estimator.fit(x, targets if is_regressor else x[:, 0] * x[:, 1] > 0)
    model, rows = estimator.model_, torch.from_numpy(x)
    dynamic: Any = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(model, (rows,), dynamic_shapes=dynamic)
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (rows,), file, input_names=["x"], dynamic_shapes=dynamic, verbose=False
    )
    some = slice(7)
    for y in (
        model(rows[some]).detach().numpy(),
        program.module()(rows[some]).detach().numpy(),
        onnx_values(file, x=x[some]),
    ):
        assert y.dtype == dtype
        if is_regressor:
            np.testing.assert_allclose(y, estimator.predict(x[some]), rtol=1e-5)
        else:
            logarithms = torch.from_numpy(y).double().log_softmax(1).numpy()
            expected = estimator.predict_log_proba(x[some])
            np.testing.assert_allclose(logarithms, expected, rtol=1e-5, atol=1e-5)


def test_a_module_checks_its_features() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    model = LMKANRegressor(width=4, epochs=1, random_state=0).fit(x, x[:, 0]).model_
    with pytest.raises(ValueError, match=r"x must have 3 features on its last axis, got x\.shape"):
        model(torch.zeros(5, 1))
    with pytest.raises(TypeError, match=r"x must be float32 or float64, got torch\.int64"):
        model(torch.zeros(5, 3, dtype=torch.int64))


@pytest.fixture(scope="module")
def columns() -> pd.DataFrame:
    """Columns of every kind; the names of some are those of values in an exported network."""
    rng = np.random.default_rng(0)
    hours = pd.to_timedelta(rng.integers(0, 90_000, ROWS), "h")
    maybe = pd.Series(rng.choice(["p", "q"], ROWS))
    return pd.DataFrame(
        {
            "number": rng.normal(size=ROWS) * 100 + 1e4,
            "gaps": np.where(rng.random(ROWS) < 0.2, np.nan, rng.random(ROWS)),
            "truth": rng.random(ROWS) < 0.5,
            "when": pd.Timestamp("2020-01-01") + hours,
            "x": rng.choice(["u", "v", "w"], ROWS),
            "val_3": rng.choice(["no", "yes"], ROWS),
            "rare": [*maybe[:-2].where(rng.random(ROWS - 2) < 0.8, None), "odd", "odder"],
        }
    )


@pytest.mark.parametrize("target", first_short(["numbers", "classes"]))
def test_a_model_with_its_encoder(target: str, columns: pd.DataFrame, tmp_path: Path) -> None:
    targets = {
        "numbers": pd.DataFrame({"y": 1e3 + columns["number"], "z": columns["number"] / 7}),
        "classes": pd.DataFrame({"y": columns["x"].where(columns["truth"], "other")}),
    }[target]
    fit(Dataset(columns, targets), baseline=False, **QUICK).model.save(tmp_path)
    model = load(tmp_path)
    model.save_onnx(tmp_path / "model.onnx")

    rows = columns.copy()
    rows.loc[0, ["x", "val_3", "rare"]] = "unknown"
    inputs: dict[str, Any] = {
        name: each.to_numpy(float) for name, each in rows.items() if each.dtype.kind in "bf"
    }
    inputs["when"] = ((rows["when"] - pd.Timestamp(0)) / pd.Timedelta("1D")).to_numpy()
    for name in ("x", "val_3", "rare"):
        inputs[name] = rows[name].fillna("").to_numpy(object)
    inputs["number"] = np.append(inputs["number"][:-1], np.nan)  # in the fit nothing was missing
    *output, last = onnx_values(tmp_path / "model.onnx", **inputs)
    assert np.isnan(last).all()
    check(model, rows[:-1], np.array(output))


def check(model: FittedModel, rows: pd.DataFrame, output: Any) -> None:
    """Compare what the file gives with what the model predicts."""
    if model.description.classes is None:
        np.testing.assert_allclose(output, model.predict(rows), rtol=1e-5)
    else:
        probabilities = torch.from_numpy(output).softmax(1).numpy()
        np.testing.assert_allclose(probabilities, model.predict_proba(rows), rtol=1e-5)
