"""The losses of a fit pass by pass, and fits that go on from the network that is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor  # noqa: E402
from lmkan_cupy.adapters.torch import prune_, training  # noqa: E402

QUICK: dict[str, Any] = {"width": 4, "layers": 2, "epochs": 3, "random_state": 0}
BOTH = pytest.mark.parametrize("kind", [LMKANRegressor, LMKANClassifier])


def rows(count: int = 100) -> tuple[Any, Any]:
    """Features [N, 3], and labels [N] that a regressor can take, too."""
    x = np.random.default_rng(0).normal(size=(count, 3))
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def output(estimator: Any, x: Any) -> Any:
    return estimator.model_.predict(x)


def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end before their first step."""
    monkeypatch.setattr(
        training.Trainer,
        "train",
        lambda *_: training.Training(True, 0, torch.zeros(0), None, ()),
    )


# Losses


@BOTH
def test_losses_of_every_pass(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    of_steps: list[Any] = []
    train = training.Trainer.train

    def recorded(*arguments: Any) -> Any:
        trained = train(*arguments)
        of_steps.append(trained.losses)
        assert len(trained.losses) == trained.steps
        return trained

    monkeypatch.setattr(training.Trainer, "train", recorded)
    fitted = kind(**QUICK, batch_size=20, n_iter_no_change=None).fit(*rows())
    (losses,) = of_steps
    np.testing.assert_allclose(fitted.loss_curve_, losses.reshape(3, 90 // 20).mean(dim=1).tolist())
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_the_first_loss_is_that_of_the_untrained_network() -> None:
    x, y = rows()
    options = {**QUICK, "epochs": 1, "early_stopping": False}
    (loss,) = LMKANRegressor(**options, batch_size=100).fit(x, y).loss_curve_
    model = training.TableNetwork([3, 4, 1], 8, training.BOUND, residual="linear", seed=0)
    model.standardise_features_by(x)
    # A single step is of the second part, which keeps the statistics.
    predicted = model.network.eval()(model.standardised(x))[:, 0]
    target = (y - y.mean()) / y.std()
    assert loss == pytest.approx(np.mean((predicted.detach().numpy() - target) ** 2), rel=1e-5)


@BOTH
def test_a_fit_that_stops_early_has_the_losses_of_its_passes(kind: Any) -> None:
    x, _ = rows(150)
    noise = np.random.default_rng(1).integers(0, 2, 150)
    options = {**QUICK, "epochs": 50, "penalty": 1e-4}
    stopped = kind(**options).fit(x, noise)
    assert len(stopped.loss_curve_) == stopped.n_iter_ < 50


# Going on


@BOTH
def test_a_fit_begins_anew_unless_it_is_to_go_on(kind: Any) -> None:
    x, y = rows()
    fitted = kind(**QUICK).fit(x, y)
    expected, curve = output(fitted, x), fitted.loss_curve_
    np.testing.assert_array_equal(output(fitted.fit(x, y), x), expected)
    assert fitted.loss_curve_ == curve
    first = kind(**QUICK, warm_start=True).fit(x, y)
    np.testing.assert_array_equal(output(first, x), expected)
    fitted.set_params(warm_start=True).fit(x, y)  # whatever the fit before was
    assert (output(fitted, x) != expected).any()
    np.testing.assert_array_equal(output(first.fit(x, y), x), output(fitted, x))
    assert fitted.n_iter_ == 3
    assert fitted.loss_curve_[:3] == curve
    assert len(fitted.loss_curve_) == 6
    assert fitted.loss_curve_[-1] < curve[-1]


@BOTH
def test_a_fit_goes_on_from_the_same_function(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the units of the fit before, even if the rows are others."""
    x, y = rows()
    fitted = kind(**{**QUICK, "layers": 3}, warm_start=True).fit(x, y)
    expected = output(fitted, x)
    untrained(monkeypatch)
    again = output(fitted.fit(5 + 2 * x, y), x)
    assert (fitted.n_iter_, len(fitted.loss_curve_)) == (0, 3)
    np.testing.assert_allclose(again, expected, atol=1e-5 * np.abs(expected).max())


def test_what_goes_on_has_branches_and_normalisations_to_train() -> None:
    folded = LMKANRegressor(**QUICK).fit(*rows()).model_
    network = folded.unfolded().network
    new = training.TableNetwork([3, 4, 1], 8, training.BOUND, residual="linear").network
    assert repr(network) == repr(new)
    assert [*network.state_dict()] == [*new.state_dict()]


@BOTH
def test_categories_are_encoded_as_in_the_fit_before(kind: Any) -> None:
    x, y = rows()
    colours = pd.Categorical(np.array(["red", "green", "blue"])[np.arange(100) % 3])
    frame = pd.DataFrame({"a": x[:, 0], "colour": colours})
    fitted = kind(**QUICK, warm_start=True).fit(frame, y)
    encoder = fitted.encoder_
    fitted.fit(frame[frame["colour"] != "red"], y[colours != "red"])
    assert fitted.encoder_ is encoder


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"width": 5},
            r"features before, .* must be as in the fit before, \[3, 4, .\], got \[3, 5",
        ),
        (
            {"layers": 3},
            r"features before, .* must be as in the fit before, \[3, 4, .\], got \[3, 4",
        ),
        ({"num_grids": 5}, "num_grids must be as in the fit before, 8, got 5"),
        ({"bound": 3.0}, r"bound must be as in the fit before, 4\.0, got 3\.0"),
    ],
    ids=["width", "layers", "num_grids", "bound"],
)
def test_other_sizes_are_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    x, y = rows()
    fitted = kind(**QUICK, warm_start=True).fit(x, y)
    expected = output(fitted, x)
    with pytest.raises(ValueError, match=f"{kind.__name__}: with warm_start {message}"):
        fitted.set_params(**changes).fit(x, y)
    np.testing.assert_array_equal(output(fitted, x), expected)


def test_other_columns_are_refused() -> None:
    x, y = rows()
    regressor = LMKANRegressor(**QUICK, warm_start=True).fit(x, y)
    with pytest.raises(ValueError, match="X has 2 features, but LMKANRegressor is expecting 3"):
        regressor.fit(x[:, :2], y)
    with pytest.raises(
        ValueError, match=r"must be as in the fit before, \[3, 4, 1\], got \[3, 4, 2"
    ):
        regressor.fit(x, x[:, :2])
    classifier = LMKANClassifier(**QUICK, warm_start=True).fit(x, y)
    with pytest.raises(ValueError, match=r"labels of the fit before, \[0, 1\], got \[0, 2\]"):
        classifier.fit(x, 2 * y)
    assert classifier.classes_.tolist() == [0, 1]


def test_a_pruned_network_is_trained_further() -> None:
    x, y = rows()
    regressor = LMKANRegressor(**QUICK, warm_start=True).fit(x, y)
    prune_(regressor.model_.network, regressor.model_.standardised(x), 0.5, keep_inputs=True)
    _, width, _ = regressor.model_.sizes
    assert width < QUICK["width"]
    with pytest.raises(ValueError, match=rf"must be as in the fit before, \[3, {width}, 1\], got"):
        regressor.fit(x, y)
    before = output(regressor, x)
    regressor.set_params(width=width).fit(x, y)
    assert regressor.model_.sizes == [3, width, 1]
    assert (output(regressor, x) != before).any()
