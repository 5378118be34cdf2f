"""lmKAN networks as scikit-learn estimators, for tables from a few hundred to millions of rows."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import (  # type: ignore[import-untyped]
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    is_classifier,
)
from sklearn.utils import check_random_state  # type: ignore[import-untyped]
from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
from sklearn.utils.validation import (  # type: ignore[import-untyped]
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy.array_checks import check_dense, check_num_grids, check_size, check_unmasked

from .torch.training import (
    BOUND,
    MOST_STEPS,
    Rows,
    TableNetwork,
    Trainer,
    epochs_for,
    fold_chain_,
    held_back,
    parameter_groups,
    penalty_for,
)

#: Where the number of epochs is not given, a training has so many steps times the square root of
#: the number of rows; twice as many gain almost nothing (``bench/results/procedure.md``).
_STEPS_PER_ROOT = 40


def default_epochs(rows: int) -> int:
    """Return the passes over so many rows to train on where ``epochs`` is None."""
    return epochs_for(rows, min(MOST_STEPS, _STEPS_PER_ROOT * math.sqrt(rows)))


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What regressor and classifier share: parameters, validation rows, training."""

    def __init__(
        self,
        width: int = 32,
        layers: int = 3,
        num_grids: int = 8,
        *,
        bound: float = BOUND,
        penalty: float | None = None,
        epochs: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int | None = 10,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.width = width
        self.layers = layers
        self.num_grids = num_grids
        self.bound = bound
        self.penalty = penalty
        self.epochs = epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose

    @torch.inference_mode(False)  # also enables gradients, whatever the caller's mode
    def _train(
        self,
        X: NDArray[np.float64],
        y: NDArray[Any],
        validation: tuple[NDArray[np.float64], NDArray[Any]] | None,
        outputs: int,
    ) -> None:
        """Train on rows [N, I] with float targets [N, outputs], or class indices [N]."""
        self._check_parameters()
        seed = self._seed()
        # Rows are held back of small tables too: without that some overfit badly, and others lose
        # little by it. Batch normalisation trains on two rows at least.
        held_out = int(self.validation_fraction * len(X)) if self.early_stopping else 0
        held_out = min(held_out, len(X) - 2)
        if validation is None and held_out:
            order = np.random.default_rng(seed).permutation(len(X))
            some, rest = order[:held_out], order[held_out:]
            X, y, validation = X[rest], y[rest], (X[some], y[some])
        sizes = [X.shape[1], *[self.width] * (self.layers - 1), outputs]
        model = TableNetwork(sizes, self.num_grids, self.bound, residual="linear", seed=seed)
        model.standardise_features_by(X)
        loss: Callable[[Tensor, Tensor], Tensor]
        targets: Callable[[NDArray[Any]], Tensor]
        shown: Callable[[float], float]
        if is_classifier(self):
            loss, targets, shown = nn.functional.cross_entropy, torch.from_numpy, float
        else:
            model.standardise_targets_by(y)
            loss, targets = nn.functional.mse_loss, model.standardised_targets
            shown = model.error_in_units
        lmkan_cupy.warmup(X.shape[1], self.width, self.num_grids)
        rows = Rows(model.standardised(X), targets(y), seed)
        epochs = self.epochs or default_epochs(len(X))
        trainer = Trainer(
            batches=rows,
            steps=epochs * rows.steps_per_epoch,
            validation=validation and (model.standardised(validation[0]), targets(validation[1])),
            loss=loss,
            penalty=penalty_for(len(X)) if self.penalty is None else self.penalty,
            patience=self.n_iter_no_change if self.early_stopping else None,
            shown=shown if self.verbose else None,
        )
        with held_back("SIGINT") as interruption:  # until the model is kept
            training = trainer.train("lmKAN", model.network, parameter_groups(model.network))
            fold_chain_(model.network)
            self.model_ = model.eval()
            self.n_iter_ = math.ceil(training.steps / rows.steps_per_epoch)
            self.validation_loss_ = training.validation_loss
        if interruption.came or not training.completed:
            raise KeyboardInterrupt

    def _output(self, X: Any) -> NDArray[np.float64]:
        """Return the network's output [N, K] for rows [N, I]: targets, or logits of classes."""
        check_is_fitted(self)
        self._check_arrays(X=X)
        output: NDArray[np.float64] = self.model_.predict(
            validate_data(self, X, reset=False, dtype=np.float64)
        )
        return output

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
        for parameter in ("epochs", "n_iter_no_change"):
            if getattr(self, parameter) is not None:
                check_size(name, parameter, getattr(self, parameter))
        check_num_grids(name, self.num_grids)
        if not self.bound > 0:
            raise ValueError(f"{name}: bound must be positive, got {self.bound}")
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

    Features and targets are standardised inside. The loss is the mean squared error of the
    standardised targets plus ``penalty`` times the Hessian penalty, the roughness of the learned
    functions (:func:`lmkan_cupy.hessian_penalty`). Its weight is the same at every step.

    Parameters
    ----------
    width, layers, num_grids : int
        Features between the layers, number of layers, grid intervals per axis.
    bound : float
        Inputs of every layer are cut at so many standard deviations.
    penalty : float, optional
        The weight of the Hessian penalty: the larger, the smoother the learned functions. By
        default 0.1 for up to 5000 rows, and ``0.1 (5000 / rows)^3`` for more.
    epochs : int, optional
        Passes over the rows. By default as many as make ``40 sqrt(rows)`` steps, at most 10,000. A
        step takes a batch of an eighth of the rows, at least 16 and at most 512.
    early_stopping : bool
        Whether to hold rows back for validation, keep the state that is best on them and stop when
        none better has come for long. Otherwise all rows are trained on until the last epoch.
    validation_fraction : float
        The share of the rows to hold back, rounded down to whole rows; two are always trained on.
    n_iter_no_change : int, optional
        Stop after so many validations without a better one. A training to the last epoch has 50 of
        them; those in the first 15 % of the steps do not count. None trains to the last epoch.
    random_state : None, int or RandomState
        Decides which rows are held back, the initial parameters and the order of the rows.
    verbose : int
        Above 0 shows a progress bar with root mean square errors.

    Attributes
    ----------
    model_ : TableNetwork
        The fitted network, a PyTorch module.
    n_iter_ : int
        Passes over the rows that were made.
    validation_loss_ : float or None
        The mean squared error of the standardised targets on the validation rows; None without
        any.
    n_features_in_, feature_names_in_
        As in all estimators of scikit-learn.

    Notes
    -----
    The same ``random_state`` gives the same numbers on the same machine, whatever other threads do
    and whatever torch's default dtype and device, and its modes such as autocast, are. After Ctrl-C
    the estimator is fitted with its best state so far, but ``fit`` still raises KeyboardInterrupt.
    """

    def fit(self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None) -> "LMKANRegressor":
        """Fit to rows X [N, I] and targets y [N] or [N, K].

        ``X_val`` and ``y_val``, if given, are the validation rows, and none are held back. A
        parameter that is out of range, or unusable data, is a TypeError or a ValueError.
        """
        self._check_arrays(X=X, y=y, X_val=X_val, y_val=y_val)
        checks = {"dtype": np.float64, "multi_output": True, "y_numeric": True}
        X, y = validate_data(self, X, y, ensure_min_samples=2, **checks)
        validation = None
        if self._has_validation(X_val, y_val):
            X_val, y_val = validate_data(self, X_val, y_val, reset=False, **checks)
            validation = X_val, _columns(y_val)
        self._target_ndim = y.ndim
        self._train(X, _columns(y), validation, outputs=_columns(y).shape[1])
        return self

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
    width, layers, num_grids, bound, penalty, epochs, early_stopping, validation_fraction,
    n_iter_no_change, random_state, verbose
        As in :class:`LMKANRegressor`, but the progress bar shows cross-entropies.

    Attributes
    ----------
    classes_ : array [K]
        The labels.
    model_, n_iter_, validation_loss_, n_features_in_, feature_names_in_
        As in :class:`LMKANRegressor`, but the loss is the cross-entropy.
    """

    def fit(self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None) -> "LMKANClassifier":
        """Fit to rows X [N, I] and labels y [N].

        ``X_val`` and ``y_val``, if given, are the validation rows, and none are held back. A
        parameter that is out of range, or unusable data, is a TypeError or a ValueError.
        """
        self._check_arrays(X=X, y=y, X_val=X_val, y_val=y_val)
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers_of_classes = np.unique(
            column_or_1d(y, warn=True), return_inverse=True
        )
        if len(self.classes_) < 2:
            raise ValueError("LMKANClassifier: y must hold at least two classes, got one class")
        validation = None
        if self._has_validation(X_val, y_val):
            X_val, y_val = validate_data(self, X_val, y_val, reset=False, dtype=np.float64)
            if unknown := np.setdiff1d(y_val, self.classes_).tolist():
                raise ValueError(f"LMKANClassifier: y_val holds labels that y lacks: {unknown}")
            validation = X_val, np.searchsorted(self.classes_, y_val)
        self._train(X, numbers_of_classes, validation, outputs=len(self.classes_))
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
