"""Training an lmKAN network on a table, and an MLP of equal inference FLOPs beside it.

The network is trained by an :class:`~lmkan_cupy.adapters.sklearn.LMKANRegressor`, the MLP by the
same loop with the same steps, batches and schedule.
"""

import json
import logging
import math
import operator
import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy.installation import installed_version

from ..sklearn import LMKANRegressor
from ..torch import fuse
from ..torch.training import (
    BOUND,
    MOST_STEPS,
    ROWS_AT_ONCE,
    Rows,
    Trainer,
    block_chain,
    epochs_for,
    evaluate,
    held_back,
)
from . import mlp, pictures
from .dataset import Dataset, InputError, one_line
from .files import written
from .model import FittedModel, ModelDescription

_log = logging.getLogger("lmkan_cupy")

#: Names of the networks in reports and pictures.
TITLES = {"lmkan": "lmKAN", "mlp": "MLP"}


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

    Attributes
    ----------
    model : FittedModel
    metrics : dict
        The content of ``metrics.json``: for "lmkan" and "mlp" the "rmse" and "mae" on the test
        rows, "parameters", "flops" and "rows_per_second"; and "rows" ("train", validation included,
        and "test"), "seed", "seconds", "versions".
    interrupted : bool
        Whether Ctrl-C ended the training early: the model is then the best so far.
    test_features, test_target : float64 arrays [M, I] and [M]
        The rows kept for the test.
    test_predictions : dict
        For "lmkan" and "mlp" the predicted targets [M].
    """

    model: FittedModel
    metrics: dict[str, Any]
    interrupted: bool
    test_features: NDArray[np.float64]
    test_target: NDArray[np.float64]
    test_predictions: dict[str, NDArray[np.float64]]

    def save(self, folder: Path) -> None:
        """Write the model, ``metrics.json``, and last ``parity.png`` and ``functions.png``.

        A picture that cannot be drawn is left out, with a warning.
        """
        self.model.save(folder)
        with written(folder / "metrics.json") as path:
            path.write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")
        draw_parity = partial(
            pictures.save_parity_picture,
            target_name=self.model.description.target_name,
            target=self.test_target,
            predictions={TITLES[name]: each for name, each in self.test_predictions.items()},
        )
        draw_functions = partial(
            pictures.save_functions_picture, model=self.model, features=self.test_features
        )
        for name, draw in (("parity.png", draw_parity), ("functions.png", draw_functions)):
            try:
                with written(folder / name) as path:
                    draw(path)
            except Exception as error:  # whatever it is, the model is worth more
                _log.warning("%s is left out: %s", folder / name, one_line(error))


@torch.inference_mode(False)
def fit(
    data: Dataset,
    *,
    width: int = 32,
    layers: int = 3,
    num_grids: int = 8,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    baseline: bool = True,
) -> FitResult:
    """Fit a network of lmKAN blocks to a table, and an MLP of equal inference FLOPs beside it.

    A tenth of the rows is kept for the test and another tenth for validation, which picks the best
    state of each network. The MLP (SiLU, batch normalisation) gets the same steps, batches and
    schedule, but its own learning rate. Ctrl-C ends the training; what was trained is returned,
    even if Ctrl-C is pressed again.

    Parameters
    ----------
    data : Dataset
    width, layers, num_grids : int
        Features between the layers, number of layers, grid intervals per axis.
    epochs : int, optional
        Passes over the rows; by default as many as make about 10,000 steps.
    seed : int
        Seed of the split, of the initial parameters and of the order of the rows, below 2^64.
    device : {"cpu"}
        Where to compute.
    baseline : bool
        Whether to train the MLP.

    Returns
    -------
    FitResult
        The same numbers for the same arguments on the same machine.

    Raises
    ------
    InputError
        If an argument is out of range, or the network takes more memory than this machine has.
    KeyboardInterrupt
        If Ctrl-C comes before there is any model.
    """
    # Integers of NumPy, too, but JSON takes Python's alone.
    width, layers, num_grids, seed = map(operator.index, (width, layers, num_grids, seed))
    check_options(
        data,
        width=width,
        layers=layers,
        num_grids=num_grids,
        epochs=epochs,
        seed=seed,
        device=device,
    )
    started = time.perf_counter()
    tenth = len(data.target) // 10
    order = np.random.default_rng(seed).permutation(len(data.target))
    test, validation, training = np.split(order, [tenth, 2 * tenth])
    description = ModelDescription(
        list(data.feature_names), data.target_name, width, layers, num_grids, BOUND
    )
    epochs = epochs or epochs_for(len(training), MOST_STEPS)
    regressor = LMKANRegressor(
        width,
        layers,
        num_grids,
        epochs=epochs,
        n_iter_no_change=None,
        random_state=seed,
        verbose=1,
    )
    completed = True
    with held_back("SIGINT") as interruption:
        try:
            with interruption.let_through():
                regressor.fit(
                    data.features[training],
                    data.target[training],
                    X_val=data.features[validation],
                    y_val=data.target[validation],
                )
        except KeyboardInterrupt:
            if not hasattr(regressor, "model_"):
                raise
            completed = False

        module = regressor.model_
        networks: dict[str, nn.Module] = {"lmkan": fuse(module.network)}
        flops = {"lmkan": sum(lmkan_cupy.flops(i, o) for i, o in pairwise(description.sizes))}
        features = module.standardised(data.features)
        if completed and baseline:
            sizes = mlp.mlp_sizes(description.sizes, flops["lmkan"])
            flops["mlp"] = mlp.mlp_flops(sizes)
            network = _untrained_mlp(sizes, description, seed)
            target = module.standardised_targets(data.target[:, None])
            rows = Rows(features[training], target[training], seed)
            trainer = Trainer(
                batches=rows,
                steps=epochs * rows.steps_per_epoch,
                validation=(features[validation], target[validation]),
                loss=nn.functional.mse_loss,
                penalty=0.0,  # an MLP has none
                shown=module.error_in_units,
            )
            groups = [{"params": [*network.parameters()], "lr": mlp.LR}]
            completed = trainer.train(TITLES["mlp"], network, groups).completed
            if completed:
                networks["mlp"] = mlp.fused(network)

        speeds = _rows_per_second(networks, features[np.resize(order, ROWS_AT_ONCE)])
        metrics: dict[str, Any] = {}
        predictions = {}
        for name, each in networks.items():
            predictions[name] = module.in_units(evaluate(each, features[test]))[:, 0]
            errors = predictions[name] - data.target[test]
            metrics[name] = {
                "rmse": float(np.sqrt((errors**2).mean())),
                "mae": float(np.abs(errors).mean()),
                "parameters": sum(array.numel() for array in each.parameters()),
                "flops": flops[name],
                "rows_per_second": speeds[name],
            }
        metrics["rows"] = {"train": len(data.target) - tenth, "test": tenth}
        metrics["seed"] = seed
        metrics["seconds"] = time.perf_counter() - started
        metrics["versions"] = {
            "python": platform.python_version(),
            **{name: installed_version(name) for name in ("lmkan-cupy", "numpy", "numba", "torch")},
        }
        return FitResult(
            FittedModel(description, module),
            metrics,
            interruption.came or not completed,
            data.features[test],
            data.target[test],
            predictions,
        )


def check_options(
    data: Dataset,
    *,
    width: int,
    layers: int,
    num_grids: int,
    epochs: int | None,
    seed: int,
    device: str,
) -> None:
    """Require options with which :func:`fit` can train on ``data``, or raise an InputError."""
    for name, size, least in (
        ("width", width, 1),
        ("layers", layers, 1),
        ("num_grids", num_grids, 3),
        ("epochs", epochs, 1),
    ):
        if size is not None and size < least:
            raise InputError(f"{name} must be at least {least}, got {size}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed must be at least 0 and below 2^64, got {seed}")
    if device != "cpu":
        raise InputError(f"device must be 'cpu' in this version, got {device!r}")
    description = ModelDescription(
        list(data.feature_names), data.target_name, width, layers, num_grids, BOUND
    )
    needed = sum(
        count * sum(lmkan_cupy.memory(*sizes, num_grids, batch=0).values())
        for sizes, count in description.layer_counts.items()
    )
    if needed > (memory := _memory_of_machine()):
        raise InputError(
            f"width {width}, layers {layers} and num_grids {num_grids} take {needed / 2**30:,.0f} "
            f"GiB of memory to train, but this machine has {memory / 2**30:,.0f} GiB"
        )


def _memory_of_machine() -> float:
    """Return the bytes of memory, infinite on Windows, which does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _untrained_mlp(sizes: list[int], lmkan: ModelDescription, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    # Drawn and dropped, so that the MLP gets the random numbers that follow those of the tables:
    # all committed results have been computed so.
    block_chain(lmkan.sizes, lmkan.num_grids, lmkan.bound, residual=None, generator=generator)
    return mlp.make_mlp(sizes, nn.SiLU, generator)


def _rows_per_second(networks: dict[str, nn.Module], features: Tensor) -> dict[str, float]:
    """Measure inference on ``features`` [N, I]: networks take turns, the fastest call counts."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(20):
        for name, network in networks.items():
            start = time.perf_counter()
            evaluate(network, features)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(features) / min(each) for name, each in seconds.items()}
