"""What the estimators minimise, weights of rows and classes, and columns of categories."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

from lmkan_cupy.adapters.sklearn import (  # noqa: E402
    LMKANClassifier,
    LMKANRegressor,
    loss_function,
)
from lmkan_cupy.adapters.torch import training  # noqa: E402
from sklearn.utils.class_weight import compute_sample_weight  # noqa: E402

from lmkan_cupy.encoding import fit_encoder  # noqa: E402

QUICK: dict[str, Any] = {"width": 4, "layers": 2, "epochs": 2, "random_state": 0}
BOTH = pytest.mark.parametrize("kind", [LMKANRegressor, LMKANClassifier])


def rows(count: int = 100) -> tuple[Any, Any]:
    """Features [N, 3], and labels [N] that a regressor can take, too."""
    x = np.random.default_rng(0).normal(size=(count, 3))
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def predictions(estimator: Any, x: Any) -> Any:
    return getattr(estimator, "predict_proba", estimator.predict)(x)


# Losses


@pytest.mark.parametrize(
    ("loss", "of_error"),
    [
        ("squared_error", lambda error: error**2),
        ("absolute_error", abs),
        ("huber", lambda error: error**2 / 2 if abs(error) < 1 else abs(error) - 0.5),
        ("quantile", lambda error: 0.9 * error if error > 0 else -0.1 * error),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_losses(loss: str, of_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    train = training.Trainer.train

    def recorded(self: Any, *arguments: Any) -> Any:
        used.append(self.loss)
        return train(self, *arguments)

    monkeypatch.setattr(training.Trainer, "train", recorded)
    LMKANRegressor(**QUICK, loss=loss, quantile=0.9).fit(*rows())
    predicted, true = np.random.default_rng(0).normal(size=(2, 20, 3)).round(2) * 2
    errors = [of_error(error) for error in (true - predicted).ravel()]
    given = torch.from_numpy(predicted), torch.from_numpy(true)
    for function in (*used, loss_function(loss, 0.9)):
        assert float(function(*given)) == pytest.approx(np.mean(errors))


def test_a_quantile_is_predicted() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 400))
    options = {"layers": 1, "epochs": 30, "learning_rate": 0.03, "random_state": 0}
    regressor = LMKANRegressor(**options, loss="quantile", quantile=0.8).fit(x[:, None], y)
    assert np.mean(y < regressor.predict(x[:, None])) == pytest.approx(0.8, abs=0.07)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": "mse"},
            "loss must be one of squared_error, absolute_error, huber, quantile, g",
        ),
        ({"quantile": 1.0}, "quantile must be between 0 and 1, got 1.0"),
    ],
    ids=str,
)
def test_wrong_losses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LMKANRegressor(**options).fit(*rows())


# Weights


@BOTH
def test_rows_of_weight_zero_are_left_out(kind: Any) -> None:
    x, y = rows()
    weights = np.random.default_rng(1).integers(0, 3, 100)
    chosen = weights > 0
    fitted = kind(**QUICK).fit(x, y, weights)
    expected = predictions(kind(**QUICK).fit(x[chosen], y[chosen], weights[chosen]), x)
    np.testing.assert_array_equal(predictions(fitted, x), expected)
    twice = kind(**QUICK).fit(x, y, sample_weight=2 * weights)
    np.testing.assert_array_equal(predictions(twice, x), expected)


@BOTH
def test_equal_weights_change_nothing(kind: Any) -> None:
    x, y = rows()
    expected = predictions(kind(**QUICK).fit(x, y), x)
    weighted = predictions(kind(**QUICK).fit(x, y, np.full(100, 0.5)), x)
    np.testing.assert_allclose(weighted, expected, atol=1e-4)
    given = {"X_val": x[:20], "y_val": y[:20]}  # whose rows have the weight 1
    weighted = predictions(kind(**QUICK).fit(x, y, np.full(100, 0.5), **given), x)
    expected = predictions(kind(**QUICK).fit(x, y, **given), x)
    np.testing.assert_allclose(weighted, expected, atol=1e-4)


@BOTH
def test_weights_decide_between_rows(kind: Any) -> None:
    """Where rows of equal features differ."""
    x = np.repeat(np.random.default_rng(0).normal(size=(50, 1)), 2, axis=0)
    y = np.tile([0, 1], 50)
    options = {"layers": 1, "epochs": 20, "learning_rate": 0.03, "random_state": 0}
    of_ones = [
        predictions(kind(**options).fit(x, y, np.tile(weights, 50)), x).reshape(100, -1)[:, -1]
        for weights in ([3.0, 1.0], [1.0, 3.0])
    ]
    assert of_ones[0].mean() < 0.4
    assert of_ones[1].mean() > 0.6


def test_weights_of_classes() -> None:
    x, _ = rows()
    y = (x[:, 0] > 1).astype(int)
    weights = compute_sample_weight("balanced", y)
    balanced = LMKANClassifier(**QUICK, class_weight="balanced").fit(x, y)
    np.testing.assert_array_equal(
        balanced.predict_proba(x), LMKANClassifier(**QUICK).fit(x, y, weights).predict_proba(x)
    )
    both = LMKANClassifier(**QUICK, class_weight={0: 1.0, 1: 4.0}).fit(x, y, 1.0 + y)
    expected = LMKANClassifier(**QUICK).fit(x, y, np.where(y, 8.0, 1.0))
    np.testing.assert_array_equal(both.predict_proba(x), expected.predict_proba(x))


@BOTH
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.eye(100)[0], "sample_weight must be positive for two rows or more"),
        (np.full(100, -1.0), "Negative values"),
        (np.ones(3), "sample_weight"),
    ],
    ids=["one-row", "negative", "few"],
)
def test_wrong_weights(kind: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**QUICK).fit(*rows(), weights)


# Batches and rates


@BOTH
def test_batches_and_rates(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[Any] = []
    train = training.Trainer.train

    def recorded(self: Any, label: str, network: Any, groups: Any) -> Any:
        trainers.append((self, [group["lr"] for group in groups]))
        return train(self, label, network, groups)

    monkeypatch.setattr(training.Trainer, "train", recorded)
    kind(**QUICK, batch_size=7, learning_rate=0.03).fit(*rows())
    kind(**QUICK, batch_size=1000).fit(*rows())
    (few, rates), (all_rows, usual) = trainers
    assert (few.steps, all_rows.steps) == (2 * (90 // 7), 2)
    assert len(next(iter(few.batches))[0]) == 7
    assert len(next(iter(all_rows.batches))[0]) == 90
    # The first layer's, and those of the others.
    np.testing.assert_allclose(rates, [0.03, 0.1, 0.03, 0.1])
    np.testing.assert_allclose(usual, [0.003, 0.01, 0.003, 0.01])


# Columns of categories


def frame() -> pd.DataFrame:
    x, _ = rows()
    colours = pd.Categorical(np.array(["red", "green", "blue"])[np.arange(100) % 3])
    return pd.DataFrame({"a": x[:, 0], "colour": colours, "b": x[:, 1]})


@BOTH
def test_categories_are_encoded(kind: Any) -> None:
    _, y = rows()
    encoded = fit_encoder(frame())[0](frame())
    assert encoded.shape == (100, 5)
    fitted = kind(**QUICK).fit(frame(), y)
    expected = kind(**QUICK).fit(encoded, y)
    np.testing.assert_array_equal(predictions(fitted, frame()), predictions(expected, encoded))
    assert [*fitted.feature_names_in_] == ["a", "colour", "b"]
    assert fitted.n_features_in_ == 3
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame()[["b", "colour", "a"]])
    with pytest.raises(ValueError, match="could not convert string to float: 'red'"):
        kind(**QUICK, categorical_features=None).fit(frame(), y)
    given = kind(**QUICK).fit(frame(), y, X_val=frame()[:20], y_val=y[:20])
    assert given.validation_loss_ is not None
    numbers = frame().drop(columns="colour")
    again = fitted.fit(numbers, y)  # a second fit begins anew
    expected = kind(**QUICK).fit(numbers, y)
    np.testing.assert_array_equal(predictions(again, numbers), predictions(expected, numbers))
