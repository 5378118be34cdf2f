"""lmKAN networks as scikit-learn estimators, for tables from a few hundred to millions of rows."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import (  # type: ignore[import-untyped]
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    is_classifier,
)
from sklearn.utils import check_random_state, check_X_y  # type: ignore[import-untyped]
from sklearn.utils.class_weight import compute_sample_weight  # type: ignore[import-untyped]
from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
from sklearn.utils.validation import (  # type: ignore[import-untyped]
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy.array_checks import check_dense, check_num_grids, check_size, check_unmasked
from lmkan_cupy.encoding import fit_encoder, is_categorical

from .torch.training import (
    BOUND,
    MOST_STEPS,
    Rows,
    TableNetwork,
    Trainer,
    device_of,
    held_back,
    penalty_for,
)

#: Where the number of epochs is not given, a training has so many steps times the square root of
#: the number of rows; twice as many gain almost nothing (``bench/results/procedure.md``).
_STEPS_PER_ROOT = 40


Loss = Literal["squared_error", "absolute_error", "huber", "quantile"]

#: What the names of a regressor's losses stand for: losses of each prediction [B, K].
LOSSES: dict[str, Callable[..., Tensor]] = {
    "squared_error": nn.functional.mse_loss,
    "absolute_error": nn.functional.l1_loss,
    "huber": nn.functional.huber_loss,
}


def default_epochs(rows: Rows) -> int:
    """Return the passes over ``rows`` to train on where ``epochs`` is None."""
    steps = min(MOST_STEPS, _STEPS_PER_ROOT * math.sqrt(len(rows.target)))
    return max(1, round(steps / rows.steps_per_epoch))


def loss_function(loss: str, quantile: float = 0.5) -> Callable[..., Tensor]:
    """Return a regressor's ``loss(predictions, targets, reduction="mean")`` by its name."""
    if loss != "quantile":
        return LOSSES[loss]

    def pinball(predictions: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        below = targets - predictions
        losses = torch.maximum(quantile * below, (quantile - 1) * below)
        return losses if reduction == "none" else losses.mean()

    return pinball


def _weighted(loss: Callable[..., Tensor], of_classes: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss for targets whose last column holds the weights of the rows."""

    def weighted(predictions: Tensor, targets: Tensor) -> Tensor:
        values, weights = targets[:, :-1], targets[:, -1:]
        if of_classes:
            return (loss(predictions, values[:, 0].long(), reduction="none") * weights[:, 0]).mean()
        return (loss(predictions, values, reduction="none") * weights).mean()

    return weighted


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What regressor and classifier share: parameters, validation rows, training."""

    model_: TableNetwork
    loss_curve_: list[float]

    def __init__(
        self,
        width: int = 32,
        layers: int = 3,
        num_grids: int = 8,
        *,
        bound: float = BOUND,
        penalty: float | None = None,
        learning_rate: float = 3e-3,
        batch_size: int | None = None,
        epochs: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int | None = 10,
        categorical_features: Literal["from_dtype"] | None = "from_dtype",
        random_state: Any = None,
        warm_start: bool = False,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.width = width
        self.layers = layers
        self.num_grids = num_grids
        self.bound = bound
        self.penalty = penalty
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.categorical_features = categorical_features
        self.random_state = random_state
        self.warm_start = warm_start
        self.device = device
        self.verbose = verbose

    @torch.inference_mode(False)  # also enables gradients, whatever the caller's mode
    def _train(
        self,
        X: NDArray[np.float64],
        y: NDArray[Any],
        validation: tuple[NDArray[np.float64], NDArray[Any]] | None,
        outputs: int,
        loss: Callable[..., Tensor],
        weights: NDArray[np.float64] | None,
    ) -> None:
        """Train on rows [N, I] with float targets [N, outputs], or class indices [N].

        ``weights`` [N], with the mean 1, are those of the rows.
        """
        sizes = [X.shape[1], *[self.width] * (self.layers - 1), outputs]
        if goes_on := self._goes_on():
            self._check_sizes(sizes)
        seed, device = self._seed(), device_of(type(self).__name__, self.device)
        weights_of_validation = None
        # Rows are held back of small tables too: without that some overfit badly, and others lose
        # little by it. Batch normalisation trains on two rows at least.
        held_out = int(self.validation_fraction * len(X)) if self.early_stopping else 0
        held_out = min(held_out, len(X) - 2)
        if validation is None and held_out:
            order = np.random.default_rng(seed).permutation(len(X))
            some, rest = order[:held_out], order[held_out:]
            X, y, validation = X[rest], y[rest], (X[some], y[some])
            if weights is not None:
                weights, weights_of_validation = weights[rest], weights[some]
        if goes_on:
            model, losses = self.model_.unfolded(), self.loss_curve_
        else:
            model = TableNetwork(sizes, self.num_grids, self.bound, residual="linear", seed=seed)
            model.standardise_features_by(X)
            if not is_classifier(self):
                model.standardise_targets_by(y)
            losses = []
        targets: Callable[[NDArray[Any]], Tensor]
        targets = torch.from_numpy if is_classifier(self) else model.standardised_targets
        shown = model.error_in_units if loss is nn.functional.mse_loss else float

        def prepared(
            X: NDArray[np.float64], y: NDArray[Any], weights_of_rows: NDArray[Any] | None
        ) -> tuple[Tensor, Tensor]:
            target = targets(y)
            if weights is not None:
                if weights_of_rows is None:
                    weights_of_rows = np.ones(len(y))
                column = torch.from_numpy(weights_of_rows)[:, None].float()
                target = torch.cat([target.reshape(len(y), -1).float(), column], dim=1)
            return model.standardised(X).to(device), target.to(device)

        lmkan_cupy.warmup(X.shape[1], self.width, self.num_grids)
        batch = self.batch_size and min(self.batch_size, len(X))
        rows = Rows(*prepared(X, y, weights), seed, batch)
        trainer = Trainer(
            batches=rows,
            steps=(self.epochs or default_epochs(rows)) * rows.steps_per_epoch,
            validation=validation and prepared(*validation, weights_of_validation),
            loss=loss if weights is None else _weighted(loss, is_classifier(self)),
            penalty=penalty_for(len(X), self.layers) if self.penalty is None else self.penalty,
            patience=self.n_iter_no_change if self.early_stopping else None,
            shown=shown if self.verbose else None,
        )
        with held_back("SIGINT") as interruption:  # until the model is kept
            network = model.network.to(device)
            groups = model.parameter_groups(self.learning_rate)
            training = trainer.train("lmKAN", network, groups)
            network.to("cpu")
            self.model_ = model.fold_().eval()
            self.feature_range_ = np.stack([X.min(axis=0), X.max(axis=0)])
            self.n_iter_ = math.ceil(training.steps / rows.steps_per_epoch)
            passes = torch.split(training.losses, rows.steps_per_epoch)[: self.n_iter_]
            self.loss_curve_ = losses + [float(each.mean()) for each in passes]
            self.validation_loss_ = training.validation_loss
        if interruption.came or not training.completed:
            raise KeyboardInterrupt

    def _goes_on(self) -> bool:
        """Whether a fit begins with the network that is there."""
        return self.warm_start and hasattr(self, "model_")

    def _check_sizes(self, sizes: list[int]) -> None:
        """Require the sizes of the network that is there."""
        for name, given, fitted in (
            ("features before, between and after the layers", sizes, self.model_.sizes),
            ("num_grids", self.num_grids, self.model_.num_grids),
            ("bound", self.bound, self.model_.bound),
        ):
            if given != fitted:
                raise ValueError(
                    f"{type(self).__name__}: with warm_start {name} must be as in the fit before, "
                    f"{fitted}, got {given}"
                )

    def _output(self, X: Any) -> NDArray[np.float64]:
        """Return the network's output [N, K] for rows [N, I]: targets, or logits of classes."""
        check_is_fitted(self)
        self._check_arrays(X=X)
        output: NDArray[np.float64] = self.model_.predict(self._validated(X, reset=False))
        return output

    def _validated(self, X: Any, *y: Any, reset: bool, **checks: Any) -> Any:
        """Return features [N, I], and targets if there are any, as arrays."""
        if reset:
            self.encoder_ = None
            categories = self.categorical_features == "from_dtype" and hasattr(X, "columns")
            if categories and any(is_categorical(X[name]) for name in X.columns):
                self.encoder_, _ = fit_encoder(X)
        if self.encoder_ is None:
            return validate_data(self, X, *y, reset=reset, dtype=np.float64, **checks)
        validate_data(self, X, reset=reset, skip_check_array=True)
        features = self.encoder_(X)
        return check_X_y(features, *y, dtype=np.float64, **checks) if y else features

    def _weights(self, sample_weight: Any, y: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the weights of rows [N], with the mean 1 over those that are not zero."""
        class_weight = getattr(self, "class_weight", None)
        if sample_weight is None and class_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        if class_weight is not None:
            weights = weights * compute_sample_weight(class_weight, y)
        if np.count_nonzero(weights) < 2:
            raise ValueError(
                f"{type(self).__name__}: sample_weight must be positive for two rows or more"
            )
        normalised: NDArray[np.float64] = weights / weights[weights > 0].mean()
        return normalised

    def _check_arrays(self, **arrays: Any) -> None:
        """Require what scikit-learn does not: nothing masked, and dense targets."""
        name = type(self).__name__
        for argument, values in arrays.items():
            check_unmasked(name, argument, values)
            check_dense(name, argument, values)

    def _check_parameters(self) -> None:
        name = type(self).__name__
        for parameter in ("width", "layers"):
            check_size(name, parameter, getattr(self, parameter))
        for parameter in ("epochs", "n_iter_no_change", "batch_size"):
            if getattr(self, parameter) is not None:
                check_size(name, parameter, getattr(self, parameter))
        check_num_grids(name, self.num_grids)
        device_of(name, self.device)
        if not self.bound > 0:
            raise ValueError(f"{name}: bound must be positive, got {self.bound}")
        if not self.learning_rate > 0:
            raise ValueError(f"{name}: learning_rate must be positive, got {self.learning_rate}")
        if self.categorical_features not in (None, "from_dtype"):
            raise ValueError(
                f"{name}: categorical_features must be None or 'from_dtype', "
                f"got {self.categorical_features!r}"
            )
        if self.penalty is not None and not self.penalty >= 0:
            raise ValueError(f"{name}: penalty must be None or at least 0, got {self.penalty}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"{name}: validation_fraction must be between 0 and 1, "
                f"got {self.validation_fraction}"
            )

    def _seed(self) -> int:
        """Return ``random_state`` if it is a number, else a number drawn from it."""
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _has_validation(self, X_val: Any, y_val: Any) -> bool:
        if (X_val is None) != (y_val is None):
            raise ValueError(
                f"{type(self).__name__}: X_val and y_val must be given together, got only one"
            )
        return X_val is not None


class LMKANRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A network of lmKAN layers for regression, on one target or several.

    Features and targets are standardised inside. What is minimised is the ``loss`` plus
    ``penalty`` times the Hessian penalty, the roughness of the learned functions
    (:func:`lmkan_cupy.hessian_penalty`). Its weight is the same at every step.

    Parameters
    ----------
    width, layers, num_grids : int
        Features between the layers, number of layers, grid intervals per axis.
    loss : {"squared_error", "absolute_error", "huber", "quantile"}
        Of the standardised targets: the mean square; the mean size; the one below one standard
        deviation and the other above; the loss whose least value is at the ``quantile``.
    quantile : float
        Which quantile ``loss="quantile"`` predicts, between 0 and 1.
    bound : float
        Inputs of every layer are cut at so many standard deviations.
    penalty : float, optional
        The weight of the Hessian penalty: the larger, the smoother the learned functions. By
        default 0.1 for up to 5000 rows, and ``0.1 (5000 / rows)^3`` for more; with one layer a
        tenth of that.
    learning_rate : float
        Of the tables in the first part of the steps; other parameters have 10/3 of it. The first
        layer has both times 16 / I, where there are I > 16 features.
    batch_size : int, optional
        Rows of a step. By default an eighth of the rows, at least 16 and at most 512.
    epochs : int, optional
        Passes over the rows. By default as many as make ``40 sqrt(rows)`` steps, at most 10,000.
    early_stopping : bool
        Whether to hold rows back for validation, keep the state that is best on them and stop when
        none better has come for long. Otherwise all rows are trained on until the last epoch.
    validation_fraction : float
        The share of the rows to hold back, rounded down to whole rows; two are always trained on.
    n_iter_no_change : int, optional
        Stop after so many validations without a better one. A training to the last epoch has 50 of
        them; those in the first 15 % of the steps do not count. None trains to the last epoch.
    categorical_features : {"from_dtype"}, optional
        A frame that holds categories of pandas or polars is encoded, all columns as in
        :func:`lmkan_cupy.encoding.fit_encoder`. With None, and in other frames and arrays, all
        columns are numbers.
    random_state : None, int or RandomState
        Decides which rows are held back, the initial parameters and the order of the rows.
    warm_start : bool
        Whether ``fit`` goes on from the network of the fit before, whose sizes, means and scales
        stay. By default it begins anew.
    device : {"cpu", "cuda", "cuda:1", ...}
        Where to train; "cuda" is the first GPU. The fitted network is always on the CPU.
    verbose : int
        Above 0 shows a progress bar with losses, or with root mean squares in the targets' units.

    Attributes
    ----------
    model_ : TableNetwork
        The fitted network, a PyTorch module.
    encoder_ : Encoder or None
        Turns a frame with categories into features, see ``categorical_features``.
    feature_range_ : float64 array [2, I]
        The least and the largest value of every feature in the rows that were trained on.
    n_iter_ : int
        Passes over the rows that the last ``fit`` made.
    loss_curve_ : list of float
        The mean loss of the batches of each pass, without the penalty; with ``warm_start`` of the
        passes of all fits.
    validation_loss_ : float or None
        The loss on the validation rows; None without any.
    n_features_in_, feature_names_in_
        As in all estimators of scikit-learn.

    Notes
    -----
    The same ``random_state`` gives the same numbers on the same machine, whatever other threads do
    and whatever torch's default dtype and device, and its modes such as autocast, are. After Ctrl-C
    the estimator is fitted with its best state so far, but ``fit`` still raises KeyboardInterrupt.
    """

    def __init__(
        self,
        width: int = 32,
        layers: int = 3,
        num_grids: int = 8,
        *,
        loss: Loss = "squared_error",
        quantile: float = 0.5,
        bound: float = BOUND,
        penalty: float | None = None,
        learning_rate: float = 3e-3,
        batch_size: int | None = None,
        epochs: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int | None = 10,
        categorical_features: Literal["from_dtype"] | None = "from_dtype",
        random_state: Any = None,
        warm_start: bool = False,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        super().__init__(
            width,
            layers,
            num_grids,
            bound=bound,
            penalty=penalty,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            categorical_features=categorical_features,
            random_state=random_state,
            warm_start=warm_start,
            device=device,
            verbose=verbose,
        )
        self.loss = loss
        self.quantile = quantile

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None
    ) -> "LMKANRegressor":
        """Fit to rows X [N, I] and targets y [N] or [N, K].

        The error of each row is multiplied by its ``sample_weight`` [N]; rows with the weight 0 are
        left out. ``X_val`` and ``y_val``, if given, are the validation rows, and none are held
        back. A parameter that is out of range, or unusable data, is a TypeError or a ValueError.
        """
        self._check_parameters()
        self._check_arrays(X=X, y=y, X_val=X_val, y_val=y_val)
        checks = {"multi_output": True, "y_numeric": True}
        X, y = self._validated(X, y, reset=not self._goes_on(), ensure_min_samples=2, **checks)
        validation = None
        if self._has_validation(X_val, y_val):
            X_val, y_val = self._validated(X_val, y_val, reset=False, **checks)
            validation = X_val, _columns(y_val)
        self._target_ndim = y.ndim
        y = _columns(y)
        if (weights := self._weights(sample_weight, y)) is not None:
            X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        loss = loss_function(self.loss, self.quantile)
        self._train(X, y, validation, y.shape[1], loss, weights)
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        name = type(self).__name__
        if self.loss not in (*LOSSES, "quantile"):
            raise ValueError(
                f"{name}: loss must be one of {', '.join(LOSSES)}, quantile, got {self.loss!r}"
            )
        if not 0 < self.quantile < 1:
            raise ValueError(f"{name}: quantile must be between 0 and 1, got {self.quantile}")

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return predicted targets, [N] or [N, K] as in ``fit``, for rows [N, I]."""
        predictions = self._output(X)
        return predictions[:, 0] if self._target_ndim == 1 else predictions

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class LMKANClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A network of lmKAN layers for classification into two classes or more.

    The loss is the cross-entropy plus ``penalty`` times the Hessian penalty.

    Parameters
    ----------
    class_weight : dict or "balanced", optional
        Weights of the labels, by which the weights of rows are multiplied; "balanced" weights are
        in inverse proportion to the numbers of rows.
    width, layers, num_grids, bound, penalty, learning_rate, batch_size, epochs, early_stopping,
    validation_fraction, n_iter_no_change, categorical_features, random_state, warm_start, device,
    verbose
        As in :class:`LMKANRegressor`, but the progress bar shows cross-entropies.

    Attributes
    ----------
    classes_ : array [K]
        The labels.
    model_, encoder_, feature_range_, n_iter_, loss_curve_, validation_loss_, n_features_in_
    feature_names_in_
        As in :class:`LMKANRegressor`, but the loss is the cross-entropy.
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        width: int = 32,
        layers: int = 3,
        num_grids: int = 8,
        *,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        bound: float = BOUND,
        penalty: float | None = None,
        learning_rate: float = 3e-3,
        batch_size: int | None = None,
        epochs: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int | None = 10,
        categorical_features: Literal["from_dtype"] | None = "from_dtype",
        random_state: Any = None,
        warm_start: bool = False,
        device: str = "cpu",
        verbose: int = 0,
    ) -> None:
        super().__init__(
            width,
            layers,
            num_grids,
            bound=bound,
            penalty=penalty,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            categorical_features=categorical_features,
            random_state=random_state,
            warm_start=warm_start,
            device=device,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None
    ) -> "LMKANClassifier":
        """Fit to rows X [N, I] and labels y [N].

        ``sample_weight``, ``X_val`` and ``y_val`` are as in :class:`LMKANRegressor`. A parameter
        that is out of range, or unusable data, is a TypeError or a ValueError.
        """
        self._check_parameters()
        self._check_arrays(X=X, y=y, X_val=X_val, y_val=y_val)
        X, y = self._validated(X, y, reset=not self._goes_on(), ensure_min_samples=2)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        if (weights := self._weights(sample_weight, y)) is not None:
            X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        classes, numbers_of_classes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("LMKANClassifier: y must hold at least two classes, got one class")
        if self._goes_on() and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "LMKANClassifier: with warm_start y must hold the labels of the fit before, "
                f"{self.classes_.tolist()}, got {classes.tolist()}"
            )
        self.classes_ = classes
        validation = None
        if self._has_validation(X_val, y_val):
            X_val, y_val = self._validated(X_val, y_val, reset=False)
            if unknown := np.setdiff1d(y_val, self.classes_).tolist():
                raise ValueError(f"LMKANClassifier: y_val holds labels that y lacks: {unknown}")
            validation = X_val, np.searchsorted(self.classes_, y_val)
        loss = nn.functional.cross_entropy
        self._train(X, numbers_of_classes, validation, len(self.classes_), loss, weights)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities [N, K] of the classes, in the order of ``classes_``."""
        probabilities: NDArray[np.float64] = torch.from_numpy(self._output(X)).softmax(1).numpy()
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the logarithms [N, K] of :meth:`predict_proba`, finite where those are 0."""
        logarithms: NDArray[np.float64] = torch.from_numpy(self._output(X)).log_softmax(1).numpy()
        return logarithms

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable labels [N] for rows [N, I]."""
        best = self._output(X).argmax(axis=1)  # first: before a fit it raises NotFittedError
        labels: NDArray[Any] = self.classes_[best]
        return labels


def _columns(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return targets [N] or [N, K] as float64 [N, K]."""
    return y.reshape(len(y), -1).astype(np.float64)
