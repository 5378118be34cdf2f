"""Training an lmKAN network on a table, and an MLP of equal inference FLOPs beside it.

The network is trained by an estimator of :mod:`lmkan_cupy.adapters.sklearn`, the MLP by the same
loop with the same steps, batches and schedule.
"""

import json
import logging
import math
import operator
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import r2_score  # type: ignore[import-untyped]
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy.installation import installed_version

from ..sklearn import (
    LOSSES,
    LMKANClassifier,
    LMKANRegressor,
    Loss,
    default_epochs,
    loss_function,
)
from ..torch import fuse
from ..torch.training import (
    BOUND,
    ROWS_AT_ONCE,
    Rows,
    TableNetwork,
    Trainer,
    block_chain,
    device_of,
    evaluate,
    held_back,
    penalty_for,
)
from . import mlp, pictures
from .dataset import Dataset, InputError, one_line
from .files import written
from .model import FittedModel, ModelDescription
from .search import NUM_GRIDS, Estimator, best_of, settings_to_try

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
        The content of ``metrics.json``: for "lmkan" and "mlp" on the test rows "r2", "rmse" and
        "mae" (numbers by the name of the target, if there are several) or "accuracy" and
        "log_loss"; "parameters", "flops" and "rows_per_second"; and "rows" ("train", validation
        included, and "test"), "columns" (what became of each), "seed", "seconds", "versions";
        after a search "trials", the settings that were tried, each with its "validation_loss".
    interrupted : bool
        Whether Ctrl-C ended the training early: the model is then the best so far.
    test_table : DataFrame
        The columns in the rows kept for the test.
    test_values : float64 array [M, K], or int64 array [M]
        Targets, or indices of classes, in these rows.
    test_predictions : dict
        For "lmkan" and "mlp" the predicted targets, or the logits of the classes [M, K].
    """

    model: FittedModel
    metrics: dict[str, Any]
    interrupted: bool
    test_table: pd.DataFrame
    test_values: NDArray[Any]
    test_predictions: dict[str, NDArray[np.float64]]

    def save(self, folder: Path) -> None:
        """Write the model, ``metrics.json``, and last two pictures.

        They are ``parity.png``, or ``confusion.png`` for classes, and ``functions.png``. One that
        cannot be drawn is left out, with a warning.
        """
        self.model.save(folder)
        with written(folder / "metrics.json") as path:
            path.write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")
        description = self.model.description
        predictions = {TITLES[name]: each for name, each in self.test_predictions.items()}
        draw_quality: Any = pictures.save_parity_picture
        quality, names = "parity.png", description.target_names
        if description.classes is not None:
            draw_quality = pictures.save_confusion_picture
            quality, names = "confusion.png", description.classes
        draw_functions = partial(
            pictures.save_functions_picture,
            model=self.model,
            features=description.encoder(self.test_table),
        )
        for file, draw in (
            (
                quality,
                partial(
                    draw_quality, names=names, values=self.test_values, predictions=predictions
                ),
            ),
            ("functions.png", draw_functions),
        ):
            try:
                with written(folder / file) as path:
                    draw(path)
            except Exception as error:  # whatever it is, the model is worth more
                _log.warning("%s is left out: %s", folder / file, one_line(error))


@torch.inference_mode(False)
def fit(
    data: Dataset,
    *,
    width: int = 32,
    layers: int = 3,
    num_grids: int = 8,
    epochs: int | None = None,
    patience: int = 10,
    penalty: float | None = None,
    learning_rate: float = 3e-3,
    loss: Loss | None = None,
    search: int = 1,
    seed: int = 0,
    device: str = "cpu",
    baseline: bool = True,
    validation: Any = None,
) -> FitResult:
    """Fit a network of lmKAN blocks to a table, and an MLP of equal inference FLOPs beside it.

    The network is an :class:`~lmkan_cupy.adapters.sklearn.LMKANRegressor` or ``LMKANClassifier``
    with these settings. A tenth of the rows is kept for the test and another tenth for validation,
    of classes a tenth of each. The MLP (SiLU, batch normalisation) gets the same rows, steps,
    batches, schedule and patience, but its own learning rate. Ctrl-C ends the training; what was
    trained is returned, even if Ctrl-C is pressed again.

    Parameters
    ----------
    data : Dataset
    width, layers, num_grids, epochs, penalty, learning_rate
        As in the estimators.
    loss : str, optional
        The loss of a regression, as in the estimators; by default "squared_error".
    patience : int
        Their ``n_iter_no_change``.
    search : int
        Settings of ``num_grids``, ``penalty`` and ``learning_rate`` to try, first the given one;
        the network with the least loss on the rows for validation is kept. A line is printed for
        each. The MLP is not searched for.
    seed : int
        Seed of the split and of the search, and the ``random_state`` of the estimator, below 2^64.
    device : str
        Where to train, as in the estimators; speeds are always those of the CPU.
    baseline : bool
        Whether to train the MLP.
    validation : frame, optional
        The rows for validation, with the columns of ``data``; none of its own are then held back.

    Returns
    -------
    FitResult
        The same numbers for the same arguments on the same machine.

    Raises
    ------
    InputError
        If an argument is out of range, ``validation`` does not fit, or the network takes more
        memory than this machine has.
    KeyboardInterrupt
        If Ctrl-C comes before there is any model.
    """
    # Integers of NumPy, too, but JSON takes Python's alone.
    width, layers, num_grids, search, seed = map(
        operator.index, (width, layers, num_grids, search, seed)
    )
    check_options(
        data,
        width=width,
        layers=layers,
        num_grids=num_grids,
        epochs=epochs,
        patience=patience,
        penalty=penalty,
        learning_rate=learning_rate,
        loss=loss,
        search=search,
        seed=seed,
        device=device,
    )
    started = time.perf_counter()
    test, held_out, training = _split(data, seed)
    if validation is None:
        valid = data.encoded[held_out], data.values[held_out]
    else:
        valid = data.prepared(validation)
        training = np.concatenate([held_out, training])
    options: dict[str, Any] = {
        "width": width,
        "layers": layers,
        "epochs": epochs,
        "n_iter_no_change": patience,
        "random_state": seed,
        "device": device,
        "verbose": 1,
    }
    make: Callable[..., Estimator] = partial(LMKANClassifier, **options)
    function: Callable[..., Tensor] = nn.functional.cross_entropy
    if data.classes is None:
        loss = loss or "squared_error"
        make = partial(LMKANRegressor, loss=loss, **options)
        function = loss_function(loss)
    usual = penalty_for(len(training), layers)
    first = {
        "num_grids": num_grids,
        "penalty": usual if penalty is None else penalty,
        "learning_rate": learning_rate,
    }
    with held_back("SIGINT") as interruption:
        estimator, trials, completed = best_of(
            make,
            settings_to_try(search, first, usual, seed),
            lambda each: each.fit(
                *(data.encoded[training], data.values[training]), X_val=valid[0], y_val=valid[1]
            ),
            interruption,
        )
        description = _description(data, width, layers, estimator.num_grids)
        module = estimator.model_
        networks: dict[str, nn.Module] = {"lmkan": fuse(module.network)}
        flops = {"lmkan": sum(lmkan_cupy.flops(i, o) for i, o in pairwise(description.sizes))}
        features = module.standardised(data.encoded)
        if completed and baseline:
            sizes = mlp.mlp_sizes(description.sizes, flops["lmkan"])
            flops["mlp"] = mlp.mlp_flops(sizes)
            there = device_of("fit", device)
            network = _untrained_mlp(sizes, description, seed).to(there)
            target = _targets(module, data.values)
            rows = Rows(features[training].to(there), target[training].to(there), seed)
            trainer = Trainer(
                batches=rows,
                steps=(epochs or default_epochs(rows)) * rows.steps_per_epoch,
                validation=(
                    module.standardised(valid[0]).to(there),
                    _targets(module, valid[1]).to(there),
                ),
                loss=function,
                penalty=0.0,  # an MLP has none
                patience=patience,
                shown=module.error_in_units if loss == "squared_error" else float,
            )
            groups = [{"params": [*network.parameters()], "lr": mlp.LR}]
            completed = trainer.train(TITLES["mlp"], network, groups).completed
            if completed:
                networks["mlp"] = mlp.fused(network.to("cpu"))

        speeds = _rows_per_second(networks, features[np.resize(training, ROWS_AT_ONCE)])
        metrics: dict[str, Any] = {}
        predictions = {}
        for name, each in networks.items():
            predictions[name] = module.in_units(evaluate(each, features[test]))
            metrics[name] = {
                **_errors(description, predictions[name], data.values[test]),
                "parameters": sum(array.numel() for array in each.parameters()),
                "flops": flops[name],
                "rows_per_second": speeds[name],
            }
        metrics["rows"] = {"train": len(data.values) - len(test), "test": len(test)}
        metrics["columns"] = data.fates
        if search > 1:
            metrics["trials"] = trials
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
            data.features.iloc[test],
            data.values[test],
            predictions,
        )


def check_options(
    data: Dataset,
    *,
    width: int,
    layers: int,
    num_grids: int,
    epochs: int | None,
    patience: int,
    penalty: float | None,
    learning_rate: float,
    loss: Loss | None,
    search: int,
    seed: int,
    device: str,
) -> None:
    """Require options with which :func:`fit` can train on ``data``, or raise an InputError."""
    for name, size, least in (
        ("width", width, 1),
        ("layers", layers, 1),
        ("num_grids", num_grids, 3),
        ("epochs", epochs, 1),
        ("patience", patience, 1),
        ("penalty", penalty, 0),
        ("search", search, 1),
    ):
        if size is not None and not size >= least:
            raise InputError(f"{name} must be at least {least}, got {size}")
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be positive, got {learning_rate}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed must be at least 0 and below 2^64, got {seed}")
    if loss is not None and data.classes is not None:
        raise InputError(f"loss can be chosen for numbers, but {data.target_names[0]!r} is classes")
    if loss not in (None, *LOSSES):
        raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    try:
        there = device_of("fit", device)
    except ValueError as error:
        raise InputError(str(error)) from error
    if search > 1:
        num_grids = max(num_grids, *NUM_GRIDS)
    description = _description(data, width, layers, num_grids)
    needed = sum(
        count * sum(lmkan_cupy.memory(*sizes, num_grids, batch=0).values())
        for sizes, count in description.layer_counts.items()
    )
    if needed > (memory := _memory_of(there)):
        whose = "this machine" if there.type == "cpu" else there
        raise InputError(
            f"width {width}, layers {layers} and num_grids {num_grids} take {needed / 2**30:,.0f} "
            f"GiB of memory to train, but {whose} has {memory / 2**30:,.0f} GiB"
        )


def _description(data: Dataset, width: int, layers: int, num_grids: int) -> ModelDescription:
    return ModelDescription(
        data.encoder.columns, data.target_names, data.classes, width, layers, num_grids, BOUND
    )


def _split(data: Dataset, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Return the rows to test on, to validate with and to train on: of each class as many."""
    order = np.random.default_rng(seed).permutation(len(data.values))
    tenth = len(order) // 10
    if data.classes is not None:
        # Class by class, every tenth row is tested on; so at least three of five are trained on.
        order = order[np.argsort(data.values[order], kind="stable")]
        rank = np.arange(len(order)) % 10
        order = order[np.argsort(np.minimum(rank, 2), kind="stable")]
        test, held_out = np.count_nonzero(rank == 0), np.count_nonzero(rank == 1)
        return tuple(np.split(order, [test, test + held_out]))
    return tuple(np.split(order, [tenth, 2 * tenth]))


def _targets(module: TableNetwork, values: NDArray[Any]) -> Tensor:
    """Return targets [N, K] as a network should give them, or indices of classes [N]."""
    return module.standardised_targets(values) if values.ndim == 2 else torch.from_numpy(values)


def _errors(
    description: ModelDescription, output: NDArray[np.float64], values: NDArray[Any]
) -> dict[str, Any]:
    """Return the errors of targets, or of logits of classes [M, K]."""
    if description.classes is not None:
        logs = torch.from_numpy(output).log_softmax(1).numpy()
        return {
            "accuracy": float((output.argmax(axis=1) == values).mean()),
            "log_loss": float(-logs[np.arange(len(values)), values].mean()),
        }
    errors = output - values
    of_targets = {
        "r2": r2_score(values, output, multioutput="raw_values").tolist(),
        "rmse": np.sqrt((errors**2).mean(axis=0)).tolist(),
        "mae": np.abs(errors).mean(axis=0).tolist(),
    }
    return {
        name: each[0] if len(each) == 1 else dict(zip(description.target_names, each, strict=True))
        for name, each in of_targets.items()
    }


def _memory_of(device: torch.device) -> float:
    """Return the bytes of memory, infinite for the CPU on Windows, which does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
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
