"""`fit` and the models it gives, whatever torch's state is and however arrays lie in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pd = pytest.importorskip("pandas")
fitting = pytest.importorskip("lmkan_cupy.adapters.fitting")

X = np.random.default_rng(0).normal(size=(60, 3))


def fitted() -> Any:
    data = fitting.Dataset(pd.DataFrame(X), pd.DataFrame({"y": X[:, 0] * X[:, 1]}))
    return fitting.fit(data, width=4, layers=2, epochs=10)


@pytest.fixture(scope="module")
def usual() -> Any:
    return fitted()


@pytest.fixture
def folder(usual: Any, tmp_path: Path) -> Path:
    usual.model.save(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("another_state_of_torch")
def test_the_state_of_torch_changes_nothing(usual: Any, folder: Path) -> None:
    predictions = fitted().test_predictions
    for name, expected in usual.test_predictions.items():
        np.testing.assert_array_equal(predictions[name], expected)
    np.testing.assert_array_equal(fitting.load(folder).predict(X), usual.model.predict(X))


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    fitting.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_and_columns_in_reversed_order(usual: Any) -> None:
    expected = usual.model.predict(X)
    np.testing.assert_array_equal(usual.model.predict(X[::-1]), expected[::-1])
    columns = X[:, ::-1].copy()
    np.testing.assert_array_equal(usual.model.predict(columns[:, ::-1]), expected)


def test_masked_values_are_missing_ones(usual: Any) -> None:
    masked = np.ma.masked_array(X, np.arange(X.size).reshape(X.shape) == 4)
    text = "column '1': row 2 has no value"
    with pytest.raises(fitting.InputError, match=text):
        usual.model.predict(masked)
    unmasked = np.ma.masked_array(X)
    np.testing.assert_array_equal(usual.model.predict(unmasked), usual.model.predict(X))
