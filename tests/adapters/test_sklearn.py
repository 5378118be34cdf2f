"""`LMKANRegressor`, `LMKANClassifier`: scikit-learn's own checks, its tools, early stopping."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pandas as pd
import pytest
from problems import first_short

pytest.importorskip("sklearn")
csr_array = pytest.importorskip("scipy.sparse").csr_array
torch = pytest.importorskip("torch")

from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor  # noqa: E402
from lmkan_cupy.adapters.torch import hessian_penalty, training  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits, make_friedman1, make_moons  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402
from sklearn.model_selection import (  # noqa: E402
    GridSearchCV,
    cross_val_score,
    train_test_split,
)
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import PolynomialFeatures, StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

QUICK: dict[str, Any] = {"width": 4, "layers": 2, "epochs": 10, "random_state": 0}
BOTH = pytest.mark.parametrize("kind", [LMKANRegressor, LMKANClassifier])
REGRESSOR_FIRST = pytest.mark.parametrize("kind", first_short([LMKANRegressor, LMKANClassifier]))


def expected_failures(_: Any) -> dict[str, str]:
    """What holds for none of the estimators that take their rows in random batches."""
    check = "check_sample_weight_equivalence_on_dense_data"
    return {check: "a row of weight 2 is in one batch, two equal rows may be in two"}


# They also pass with the default sizes, but take longer.
@pytest.mark.long
@parametrize_with_checks(
    [kind(width=8, layers=2) for kind in (LMKANRegressor, LMKANClassifier)],
    expected_failed_checks=expected_failures,
)
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def rows(count: int = 200, seed: int = 0) -> tuple[Any, Any]:
    """Features [N, 3], and labels [N] that a regressor can take, too."""
    x = np.random.default_rng(seed).normal(size=(count, 3))
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def recorded_trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list to which every trainer that trains from now on is added."""
    trainers: list[Any] = []
    train = training.Trainer.train

    def recorded(self: Any, *arguments: Any) -> Any:
        trainers.append(self)
        return train(self, *arguments)

    monkeypatch.setattr(training.Trainer, "train", recorded)
    return trainers


# What they learn


def test_regressor_beats_a_linear_model_of_products() -> None:
    """On 300 noisy rows with the defaults; the linear model gets all products of two features."""
    x, y = make_friedman1(1300, noise=1.0, random_state=0)
    given, held_out = (x[:300], y[:300]), (x[300:], y[300:])
    other = make_pipeline(PolynomialFeatures(2), LinearRegression()).fit(*given)
    assert LMKANRegressor(random_state=0).fit(*given).score(*held_out) > other.score(*held_out)


@pytest.mark.long
def test_classifier_beats_a_linear_model_of_products() -> None:
    x, y = make_moons(1300, noise=0.2, random_state=0)
    given, held_out = (x[:300], y[:300]), (x[300:], y[300:])
    other = make_pipeline(PolynomialFeatures(2), LogisticRegression()).fit(*given)
    assert LMKANClassifier(random_state=0).fit(*given).score(*held_out) > other.score(*held_out)


@pytest.mark.long
def test_several_targets_in_their_own_units() -> None:
    x, _ = rows(400)
    y = np.stack([x[:, 0] * x[:, 1], 1e6 + 1e3 * np.sin(x[:, 2])], axis=1)
    regressor = LMKANRegressor(random_state=0, epochs=60).fit(x, y)
    predictions = regressor.predict(x)
    assert predictions.shape == (400, 2)
    assert (np.abs(predictions - y).mean(axis=0) < 0.2 * y.std(axis=0)).all()
    one_column = LMKANRegressor(**QUICK).fit(x, y[:, :1]).predict(x)
    np.testing.assert_array_equal(
        one_column[:, 0], LMKANRegressor(**QUICK).fit(x, y[:, 0]).predict(x)
    )


@pytest.mark.parametrize("power", [664, -558], ids=["e200", "e-168"])
def test_targets_of_any_size(power: int) -> None:
    """Multiplied by a power of two they give the same bits, though their squares are inf or 0."""
    x, y = make_friedman1(100, random_state=0)
    regressor = LMKANRegressor(**QUICK).fit(x, np.ldexp(y, power))
    expected = LMKANRegressor(**QUICK).fit(x, y).predict(x)
    np.testing.assert_array_equal(regressor.predict(x), np.ldexp(expected, power))


@pytest.mark.parametrize("constant", [0.1, 123456789.1])
def test_a_constant_feature_changes_nothing_when_it_is_rounded(constant: float) -> None:
    x, y = make_friedman1(200, random_state=0)
    rounded = float(np.float32(constant))
    assert rounded != constant
    given, later = (np.column_stack([x, np.full(200, each)]) for each in (constant, rounded))
    regressor = LMKANRegressor(**QUICK).fit(given, y)
    np.testing.assert_allclose(regressor.predict(later), regressor.predict(given), rtol=1e-3)


def test_probabilities_are_in_the_order_of_the_labels() -> None:
    x, y = rows(300)
    names = np.array(["wine", "ale", "mead"])[np.where(x[:, 2] > 1, 2, y)]
    classifier = LMKANClassifier(random_state=0, epochs=60).fit(x, names)
    assert list(classifier.classes_) == ["ale", "mead", "wine"]
    probabilities = classifier.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_array_equal(
        classifier.predict(x), classifier.classes_[probabilities.argmax(1)]
    )
    assert classifier.score(x, names) > 0.9
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(x)), probabilities)


def test_logarithms_of_probabilities_are_finite() -> None:
    """Where the probabilities themselves are 0 and 1."""
    x, y = rows()
    classifier = LMKANClassifier(**QUICK).fit(x, y)
    last = classifier.model_.network[-1].layer
    last.tables.data *= 1e6
    assert (classifier.predict_proba(x) == 0).any()
    assert np.isfinite(classifier.predict_log_proba(x)).all()


def test_a_larger_penalty_gives_smoother_functions() -> None:
    x, y = make_friedman1(200, noise=1.0, random_state=0)
    roughness = [
        float(hessian_penalty(LMKANRegressor(penalty=penalty, **QUICK).fit(x, y).model_).detach())
        for penalty in (0.0, 0.1, 10.0)
    ]
    assert roughness[0] > roughness[1] > roughness[2]


@pytest.mark.long
def test_the_penalty_suits_one_layer() -> None:
    """Whose functions cannot become small before a normalisation: it fits what it can express."""
    x, y = make_friedman1(1200, n_features=6, noise=0.5, random_state=0)
    regressor = LMKANRegressor(layers=1, random_state=0).fit(x[:1000], y[:1000])
    assert regressor.score(x[1000:], y[1000:]) > 0.98


@pytest.mark.long
def test_probabilities_of_digits_are_as_good_as_those_of_an_mlp() -> None:
    """By the log loss, which punishes a network that overfits and is sure of it."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    networks = LMKANClassifier(random_state=0), MLPClassifier(random_state=0)
    ours, theirs = (
        log_loss(y_test, make_pipeline(StandardScaler(), each).fit(x, y).predict_proba(x_test))
        for each in networks
    )
    assert ours < theirs


# scikit-learn's tools


@REGRESSOR_FIRST
def test_pipeline_grid_search_and_cross_validation(kind: Any) -> None:
    x, y = rows(120)
    pipeline = make_pipeline(StandardScaler(), kind(**QUICK))
    step = kind.__name__.lower()
    search = GridSearchCV(pipeline, {f"{step}__num_grids": [4, 6]}, cv=2).fit(x, y)
    assert search.best_params_[f"{step}__num_grids"] in (4, 6)
    assert np.isfinite(cross_val_score(pipeline, x, y, cv=2)).all()


@BOTH
def test_clone_and_pickle(kind: Any) -> None:
    x, y = rows()
    estimator = kind(**QUICK).fit(x, y)
    again = clone(estimator)
    assert again.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        again.predict(x)
    loaded = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(loaded.predict(x), estimator.predict(x))


@BOTH
def test_names_of_features(kind: Any) -> None:
    x, y = rows()
    estimator = kind(**QUICK).fit(pd.DataFrame(x, columns=["a", "b", "c"]), y)
    assert list(estimator.feature_names_in_) == ["a", "b", "c"]
    assert estimator.n_features_in_ == 3


# Randomness


@pytest.mark.long
@REGRESSOR_FIRST
def test_random_state(kind: Any) -> None:
    x, y = rows()

    def predictions(random_state: Any) -> Any:
        estimator = kind(**{**QUICK, "random_state": random_state}).fit(x, y)
        return estimator.model_.predict(x)

    np.testing.assert_array_equal(predictions(3), predictions(3))
    assert (predictions(3) != predictions(4)).any()
    drawn = [predictions(np.random.RandomState(7)) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    generator = np.random.RandomState(7)
    assert (predictions(generator) != predictions(generator)).any()


def test_threads_that_draw_in_turn_do_not_disturb_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = rows(50)

    def predictions(seed: int) -> Any:
        return LMKANRegressor(**{**QUICK, "random_state": seed}).fit(x, y).predict(x)

    expected = [predictions(seed) for seed in (3, 4)]
    barrier, draw = Barrier(2), torch.nn.init.uniform_

    def draw_in_turn(*arguments: Any) -> Any:
        barrier.wait()
        drawn = draw(*arguments)
        barrier.wait()
        return drawn

    def predictions_in_thread(seed: int) -> Any:
        try:
            return predictions(seed)
        except BaseException:
            barrier.abort()
            raise

    monkeypatch.setattr(torch.nn.init, "uniform_", draw_in_turn)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as threads:
        np.testing.assert_array_equal(list(threads.map(predictions_in_thread, (3, 4))), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def predictions_as_usual() -> dict[Any, Any]:
    x, y = rows(60)
    return {
        kind: kind(**QUICK).fit(x, y).model_.predict(x)
        for kind in (LMKANRegressor, LMKANClassifier)
    }


@BOTH
@pytest.mark.usefixtures("another_state_of_torch")
def test_the_state_of_torch_changes_nothing(kind: Any, predictions_as_usual: Any) -> None:
    x, y = rows(60)
    estimator = kind(**QUICK).fit(x, y)
    np.testing.assert_array_equal(estimator.model_.predict(x), predictions_as_usual[kind])


def test_the_state_of_torch_is_left_alone() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    LMKANRegressor(**QUICK).fit(*rows())
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


# Validation and early stopping


def test_rows_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = recorded_trainers(monkeypatch)
    x, y = rows(200)
    for options in ({}, {"validation_fraction": 0.3}, {"early_stopping": False}):
        LMKANRegressor(**QUICK, **options).fit(x, y)
    LMKANRegressor(**QUICK).fit(x[:9], y[:9])  # a tenth is less than one row
    LMKANRegressor(**QUICK).fit(x[:150], y[:150], X_val=x[150:], y_val=y[150:])
    for fraction in (0.95, 0.5):  # two rows at least are trained on
        LMKANRegressor(**QUICK, validation_fraction=fraction).fit(x[:10], y[:10])
    counts = [
        (len(each.batches.target), each.validation and len(each.validation[1])) for each in trainers
    ]
    assert counts == [(180, 20), (140, 60), (200, None), (9, None), (150, 50), (2, 8), (5, 5)]


@pytest.mark.long
@REGRESSOR_FIRST
def test_training_stops_when_it_gets_no_better(kind: Any) -> None:
    """Labels that are independent of the features cannot be predicted."""
    x, _ = rows(150)
    noise = np.random.default_rng(1).integers(0, 2, 150)
    options = {**QUICK, "epochs": 50, "penalty": 1e-4}
    first_part = training.trainer.FIRST_PART * 50
    assert first_part < kind(**options).fit(x, noise).n_iter_ < 50
    assert kind(**options, n_iter_no_change=None).fit(x, noise).n_iter_ == 50
    assert kind(**options, early_stopping=False).fit(x, noise).n_iter_ == 50
    assert kind(**options).fit(x[:9], noise[:9]).n_iter_ == 50  # no rows to validate on


@pytest.mark.long
@REGRESSOR_FIRST
def test_the_state_that_is_best_on_the_given_rows_is_kept(kind: Any) -> None:
    x, _ = rows(300)
    noise = 7 * np.random.default_rng(1).integers(0, 2, 300)
    given = {"X_val": x[200:], "y_val": noise[200:]}
    options = {**QUICK, "epochs": 50, "penalty": 1e-4}
    estimator = kind(**options).fit(x[:200], noise[:200], **given)
    last = kind(**options, early_stopping=False).fit(x[:200], noise[:200])

    def loss(fitted: Any) -> float:
        predictions = torch.from_numpy(fitted.model_.predict(x[200:]))
        if kind is LMKANClassifier:
            target = torch.from_numpy(noise[200:] // 7)
            return float(torch.nn.functional.cross_entropy(predictions, target))
        errors = (predictions[:, 0].numpy() - noise[200:]) / noise[:200].std()
        return float((errors**2).mean())

    # Folding rounds in float32, the conversion to the target's units in float64.
    assert estimator.validation_loss_ == pytest.approx(loss(estimator), rel=1e-4)
    assert loss(estimator) < loss(last)
    assert last.validation_loss_ is None


# Progress bar, Ctrl-C


@BOTH
def test_progress_bar_on_request(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kind(**QUICK).fit(*rows())
    assert capsys.readouterr() == ("", "")
    kind(**QUICK, verbose=1).fit(*rows())
    shown = capsys.readouterr().err
    assert "lmKAN: " in shown
    assert "training=" in shown
    assert "validation=" in shown


def test_after_ctrl_c_the_estimator_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows()
    validate = training.Trainer._validate
    calls = iter(range(100))

    def interrupted(self: Any, network: Any) -> float:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return validate(self, network)

    monkeypatch.setattr(training.Trainer, "_validate", interrupted)
    regressor = LMKANRegressor(**QUICK)
    with pytest.raises(KeyboardInterrupt):
        regressor.fit(x, y)
    assert np.isfinite(regressor.predict(x)).all()
    assert regressor.n_iter_ < QUICK["epochs"]


# Arrays as users have them


@BOTH
def test_rows_in_reversed_order(kind: Any) -> None:
    x, y = rows(60)
    for options in ({}, {"X_val": x, "y_val": y}):
        estimator = kind(**QUICK, early_stopping=bool(options)).fit(x, y, **options)
        turned = {name: each[::-1] for name, each in options.items()}
        again = kind(**QUICK, early_stopping=bool(options)).fit(
            x[::-1].copy()[::-1], y[::-1].copy()[::-1], **turned
        )
        for name in ("predict", "predict_proba", "predict_log_proba"):
            if hasattr(estimator, name):
                expected = getattr(estimator, name)(x)
                np.testing.assert_array_equal(getattr(again, name)(x), expected)
                np.testing.assert_array_equal(getattr(again, name)(x[::-1])[::-1], expected)


def masked(array: Any) -> Any:
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == 1)


def sparse(array: Any) -> Any:
    return csr_array(array.reshape(len(array), -1))


@BOTH
@pytest.mark.parametrize(
    ("convert", "error", "text"),
    [
        (masked, ValueError, "must not have masked elements, got 1: leave them out or fill them"),
        (sparse, TypeError, "must be dense, got a sparse csr_array: {name}.toarray()"),
    ],
    ids=["masked", "sparse"],
)
def test_arrays_that_would_lose_something(
    kind: Any, convert: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    x, y = rows(60)
    given = {"X": x, "y": y, "X_val": x, "y_val": y}
    for name in given:
        message = f"{kind.__name__}: {name} {text.format(name=name)}"
        with pytest.raises(error, match=re.escape(message)):
            kind(**QUICK).fit(**{**given, name: convert(given[name])})
    fitted = kind(**QUICK).fit(x, y)
    with pytest.raises(error, match=re.escape(f"{kind.__name__}: X {text.format(name='X')}")):
        fitted.predict(convert(x))


# Errors


@BOTH
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"num_grids": 2}, "num_grids must be at least 3, got 2"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"categorical_features": "x"}, "categorical_features must be None or 'from_dtype', got"),
        ({"bound": 0.0}, "bound must be positive, got 0.0"),
        ({"penalty": -1.0}, "penalty must be None or at least 0, got -1.0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1, got 1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_parameters(kind: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {text}"):
        kind(**options).fit(*rows())


@BOTH
def test_wrong_rows_for_validation(kind: Any) -> None:
    x, y = rows()
    with pytest.raises(ValueError, match="X_val and y_val must be given together, got only one"):
        kind(**QUICK).fit(x, y, X_val=x)
    with pytest.raises(ValueError, match="X has 2 features"):
        kind(**QUICK).fit(x, y, X_val=x[:, :2], y_val=y)


def test_labels_for_validation_that_are_not_known() -> None:
    x, y = rows()
    with pytest.raises(ValueError, match=r"y_val holds labels that y lacks: \[5\]"):
        LMKANClassifier(**QUICK).fit(x, y, X_val=x, y_val=np.full(len(x), 5))


def test_one_class() -> None:
    x, _ = rows()
    with pytest.raises(ValueError, match="y must hold at least two classes, got one class"):
        LMKANClassifier(**QUICK).fit(x, np.ones(len(x), int))
