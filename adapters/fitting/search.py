"""A search of grid, penalty and learning rate: estimators are fitted in turn, the best is kept."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import loguniform  # type: ignore[import-untyped]
from sklearn.model_selection import ParameterSampler  # type: ignore[import-untyped]

from ..sklearn import LMKANClassifier, LMKANRegressor
from ..torch.training import Interruption

Estimator: TypeAlias = LMKANRegressor | LMKANClassifier

#: Grid intervals per axis that are tried.
NUM_GRIDS = [4, 6, 8, 12, 16]

#: Learning rates of the tables that are tried, from and to.
_RATES = 1e-3, 1e-2

#: Weights of the penalty that are tried, relative to that by default, from and to.
_PENALTIES = 0.01, 10.0


def settings_to_try(
    number: int, first: dict[str, Any], penalty: float, seed: int
) -> list[dict[str, Any]]:
    """Return so many settings of an estimator: the ``first``, then some that the seed draws.

    Parameters
    ----------
    number : int
    first : dict
        Of "num_grids", "penalty" and "learning_rate".
    penalty : float
        The weight of the penalty by default.
    seed : int
    """
    distributions = {
        "num_grids": NUM_GRIDS,
        "penalty": loguniform(*(penalty * each for each in _PENALTIES)),
        "learning_rate": loguniform(*_RATES),
    }
    random_state = np.random.RandomState(np.random.MT19937(seed))
    others = ParameterSampler(distributions, number - 1, random_state=random_state)
    # In three digits, so that what is printed can be given to another fit.
    rounded = ("penalty", "learning_rate")
    return [first, *(each | {key: float(f"{each[key]:.3g}") for key in rounded} for each in others)]


def best_of(
    make: Callable[..., Estimator],
    settings: Sequence[dict[str, Any]],
    fit: Callable[[Estimator], object],
    interruption: Interruption,
) -> tuple[Estimator, list[dict[str, Any]], bool]:
    """Make and fit an estimator with each of the settings; if they are several, print the losses.

    Returns
    -------
    best : estimator
        The first one with the least loss on the rows for validation.
    trials : list of dict
        The settings, and the "validation_loss" of each, None where it was never finite.
    completed : bool
        False after Ctrl-C, which ends the search.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C comes before there is any model.
    """
    best, least, kept = None, math.inf, 0
    trials: list[dict[str, Any]] = []
    completed = True
    for number, setting in enumerate(settings, 1):
        estimator = make(**setting)
        try:
            with interruption.let_through():
                fit(estimator)
        except KeyboardInterrupt:
            completed = False
        if hasattr(estimator, "model_"):
            loss = estimator.validation_loss_
            trials.append(setting | {"validation_loss": loss})
            loss = math.inf if loss is None else loss
            if best is None or loss < least:
                best, least, kept = estimator, loss, number
            if len(settings) > 1:
                values = ", ".join(f"{name} {value:.3g}" for name, value in setting.items())
                print(f"trial {number}: {values}: validation loss {loss:.4g}", flush=True)
        if not completed:
            break
    if best is None:
        raise KeyboardInterrupt
    if len(settings) > 1:
        print(f"trial {kept} has the least validation loss and is kept", flush=True)
    return best, trials, completed
