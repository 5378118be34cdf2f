"""`prune_` of what was fitted: it keeps its columns, is saved, and predicts as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import dataset, table
from lmkan_cupy.adapters.fitting import fit, load
from lmkan_cupy.adapters.inspection import prune_
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from lmkan_cupy.adapters.torch import LMKANBlock, LMKANLinear

import lmkan_cupy


def widths(module: Any) -> list[int]:
    return [each.out_features for each in module.modules() if isinstance(each, LMKANLinear)]


def test_a_fitted_model_is_saved_smaller(tmp_path: Path) -> None:
    model, frame = fit(dataset(200), baseline=False, width=9, epochs=20).model, table(200)
    before = model.predict(frame)
    error = prune_(model, frame, 0.2)
    after = model.predict(frame)
    assert widths(model.module) < [9, 9, 1]
    assert 0 < error <= 0.2
    assert error == pytest.approx(np.std(after - before) / before.std(), rel=0.1)
    model.save(tmp_path)
    np.testing.assert_allclose(load(tmp_path).predict(frame), after, rtol=1e-6)
    network = lmkan_cupy.load_network(tmp_path)
    assert [each.shape[3] for each in network.layers] == widths(model.module)


def test_estimators() -> None:
    frame = table(200)
    x, y = frame[["a", "b", "c"]], frame["y"]
    for estimator, target in ((LMKANRegressor(9, 2), y), (LMKANClassifier(9, 2), y > 0)):
        estimator.set_params(epochs=10, random_state=0).fit(x, target)
        before = estimator.model_.predict(x.to_numpy())
        assert prune_(estimator, x, 0.5) <= 0.5
        assert widths(estimator.model_)[0] < 9
        after = estimator.model_.predict(x.to_numpy())
        assert np.sqrt(np.mean((after - before) ** 2)) < 0.5 * before.std()
        assert len(estimator.predict(x)) == 200


def test_data_have_to_fit() -> None:
    estimator = LMKANRegressor(3, epochs=1).fit(table()[["a", "b"]], table()["y"])
    with pytest.raises(ValueError, match="prune_: data: there is no column 'b'"):
        prune_(estimator, table()[["a", "y"]], 0.1)
    with pytest.raises(ValueError, match=r"prune_: data must have shape \[N, 2\], got \(5, 3\)"):
        prune_(estimator, np.zeros((5, 3)), 0.1)
    with pytest.raises(TypeError, match=r"prune_: model must be a FittedModel, .* got int"):
        prune_(3, np.zeros((5, 3)), 0.1)
    with pytest.raises(ValueError, match="nothing can be removed"):
        prune_(LMKANBlock(3, 1), np.zeros((5, 3)), 0.1)
