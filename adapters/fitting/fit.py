"""Fit a network of lmKAN layers to a table of numbers: ``python -m lmkan_cupy fit``, ``predict``.

The network is an :class:`~lmkan_cupy.adapters.sklearn.LMKANRegressor`, and an MLP of equal
inference FLOPs is trained beside it by the same loop.
"""

import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy.configuration import installed_version

from .datasets import Dataset, InputError, check_finite, read_dataset, read_features
from .fit_pictures import save_functions_picture, save_parity_picture
from .mlp import fused, make_mlp, mlp_flops, mlp_sizes
from .sklearn import LMKANRegressor
from .training import (
    BOUND,
    MOST_STEPS,
    ROWS_AT_ONCE,
    Rows,
    TableNetwork,
    Trainer,
    epochs_for,
    evaluate,
    fold_chain_,
)

_FORMAT_VERSION = 2

_TITLES = {"lmkan": "lmKAN", "mlp": "MLP"}

#: On the methane sample better than 1e-2: test MAE 0.063 and 0.066 eV, RMSE 0.106 and 0.113.
_MLP_RATE = 3e-2


@dataclass(frozen=True)
class ModelDescription:
    """What ``model.json`` holds beside the format version: columns and sizes of a network."""

    feature_names: list[str]
    target_name: str
    width: int
    layers: int
    num_grids: int
    bound: float

    @property
    def sizes(self) -> list[int]:
        """Features before, between and after the layers."""
        return [len(self.feature_names), *[self.width] * (self.layers - 1), 1]


class FittedModel(TableNetwork):
    """A network of lmKAN blocks for one table, in whose units it reads and answers.

    Attributes
    ----------
    description : ModelDescription
    """

    def __init__(self, description: ModelDescription) -> None:
        super().__init__(description.sizes, description.num_grids, description.bound)
        fold_chain_(self.network)
        self.description = description

    def predict(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the predicted target [N] for features [N, I], in the order of
        ``description.feature_names``.

        Raises
        ------
        InputError
            If the shape does not fit or a value is missing or infinite.
        """
        features = np.asarray(features, np.float64)
        names = self.description.feature_names
        if features.ndim != 2 or features.shape[1] != len(names):
            raise InputError(f"features must have shape [N, {len(names)}], got {features.shape}")
        check_finite(features, names)
        return self.answers(features)[:, 0]

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``, which :func:`load` reads."""
        entries = {"format_version": _FORMAT_VERSION, **asdict(self.description)}
        (folder / "model.json").write_text(json.dumps(entries, indent=2) + "\n")
        safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")


def load(folder: str | Path) -> FittedModel:
    """Read a model that :func:`fit` or the command line left; this runs no code from the files.

    Raises
    ------
    InputError
        If a file is missing or damaged, or of another format version.
    """
    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: there is no {name}; expected a folder that fit wrote")
    try:
        entries = json.loads((folder / "model.json").read_text())
        version = entries.pop("format_version")
        if version != _FORMAT_VERSION:
            raise InputError(
                f"{folder}: the model has format version {version}, but this version of "
                f"lmkan_cupy reads {_FORMAT_VERSION}"
            )
        model = FittedModel(ModelDescription(**entries))
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except InputError:
        raise
    except (
        *(ValueError, TypeError, KeyError, AttributeError),  # a damaged model.json
        *(RuntimeError, safetensors.SafetensorError),  # weights that are damaged or do not fit
    ) as error:
        raise InputError(f"{folder}: the model is damaged ({error})") from error
    return model.eval()


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

    Attributes
    ----------
    model : FittedModel
    metrics : dict
        What ``metrics.json`` holds: for "lmkan" and "mlp" "rmse" and "mae" on the test rows,
        "parameters", "flops" and "rows_per_second"; "rows" ("train" with those for validation, and
        "test"), "seed", "seconds", "versions".
    interrupted : bool
        Ctrl-C came before the end: the model is the best so far.
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
        """Write the model, ``metrics.json``, ``parity.png`` and ``functions.png``."""
        self.model.save(folder)
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n")
        save_parity_picture(
            folder / "parity.png",
            self.model.description.target_name,
            self.test_target,
            {_TITLES[name]: each for name, each in self.test_predictions.items()},
        )
        save_functions_picture(folder / "functions.png", self.model, self.test_features)


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

    A tenth of the rows is kept for the test and a tenth for validation, which picks the best
    state of each network. The MLP (SiLU, batch normalisation) gets the same steps, batches and
    schedule, and its own learning rate. Ctrl-C ends the training, not the function.

    Parameters
    ----------
    data : Dataset
    width, layers, num_grids : int
        Features between the layers, number of layers, and grid intervals per axis.
    epochs : int, optional
        Passes over the rows; by default as many as make about 10,000 steps.
    seed : int
        Of the split, the initial parameters and the order of the rows.
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
        If an argument is out of range.
    KeyboardInterrupt
        If Ctrl-C comes before there is any model.
    """
    _check_options(width=width, layers=layers, num_grids=num_grids, epochs=epochs, device=device)
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
    try:
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
    flops = {"lmkan": sum(lmkan_cupy.flops(i, o) for i, o in pairwise(description.sizes))}
    sizes = mlp_sizes(description.sizes, flops["lmkan"])
    flops["mlp"] = mlp_flops(sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FittedModel(description)
        mlp = make_mlp(sizes, nn.SiLU)
    model.load_state_dict(regressor.model_.state_dict())
    features = model.standardised(data.features)
    networks = {"lmkan": model.network}
    if completed and baseline:
        target = model.standardised_targets(data.target[:, None])
        rows = Rows(features[training], target[training], seed)
        trainer = Trainer(
            batches=rows,
            steps=epochs * rows.steps_per_epoch,
            validation=(features[validation], target[validation]),
            loss=nn.functional.mse_loss,
            penalty=0.0,  # an MLP has none
            shown=model.error_in_units,
        )
        groups = [{"params": [*mlp.parameters()], "lr": _MLP_RATE}]
        completed = trainer.train("MLP", mlp, groups).completed
        if completed:
            networks["mlp"] = fused(mlp)

    speeds = _rows_per_second(networks, features[np.resize(order, ROWS_AT_ONCE)])
    metrics: dict[str, Any] = {}
    predictions = {}
    for name, network in networks.items():
        predictions[name] = model.in_units(evaluate(network, features[test]))[:, 0]
        errors = predictions[name] - data.target[test]
        metrics[name] = {
            "rmse": float(np.sqrt((errors**2).mean())),
            "mae": float(np.abs(errors).mean()),
            "parameters": sum(each.numel() for each in network.parameters()),
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
        model.eval(), metrics, not completed, data.features[test], data.target[test], predictions
    )


def run_fit(path: Path | None, target: str | None, out: Path | None, **options: Any) -> int:
    """Run ``python -m lmkan_cupy fit``; return its exit code, 130 after Ctrl-C."""
    if path is None:
        path = Path(lmkan_cupy.__file__).with_name("data") / "methane.npz"
    data = read_dataset(path, target)
    out = _free_folder() if out is None else out
    with _new_folder(out) as folder:
        result = fit(data, **options)
        result.save(folder)
    if result.interrupted:
        print("Interrupted: this is the best model so far.")
    print(_report(result.metrics, data.target_name))
    print(f"The model, its metrics and pictures are in {out}{os.sep}")
    return 130 if result.interrupted else 0


def run_predict(model: Path, data: Path, out: Path | None) -> int:
    """Run ``python -m lmkan_cupy predict``: a CSV file of one column; return its exit code."""
    fitted = load(model)
    predictions = fitted.predict(read_features(data, fitted.description.feature_names))
    text = "\n".join([fitted.description.target_name, *(f"{each:.9g}" for each in predictions)])
    if out is None:
        print(text)
    else:
        part = _part(out)
        part.write_text(text + "\n")
        part.replace(out)
    return 0


def _rows_per_second(networks: dict[str, nn.Sequential], features: Tensor) -> dict[str, float]:
    """Measure inference on ``features`` [N, I]: the fastest of calls that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(20):
        for name, network in networks.items():
            start = time.perf_counter()
            evaluate(network, features)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(features) / min(each) for name, each in seconds.items()}


def _report(metrics: dict[str, Any], target_name: str) -> str:
    """Return a table of the metrics, a column for every network."""
    networks = {title: metrics[name] for name, title in _TITLES.items() if name in metrics}
    rows = [
        (f"test RMSE of {target_name}", "rmse", ".4g"),
        (f"test MAE of {target_name}", "mae", ".4g"),
        ("parameters", "parameters", ",d"),
        ("inference FLOPs per row", "flops", ",d"),
        ("rows per second", "rows_per_second", ",.0f"),
    ]
    width = max(len(title) for title, *_ in rows)
    lines = [" " * width + "".join(f"{title:>14}" for title in networks)]
    for title, key, form in rows:
        values = "".join(f"{network[key]:>14{form}}" for network in networks.values())
        lines.append(f"{title:<{width}}{values}")
    count = metrics["rows"]
    lines.append(
        f"{count['train']:,} rows to train, {count['test']:,} to test; {metrics['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _check_options(*, device: str, **sizes: int | None) -> None:
    for name, size in sizes.items():
        least = 3 if name == "num_grids" else 1
        if size is not None and size < least:
            raise InputError(f"{name} must be at least {least}, got {size}")
    if device != "cpu":
        raise InputError(f"device must be 'cpu' in this version, got {device!r}")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``out`` at the end, or vanishes after an exception."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    part = _part(out)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(out: Path) -> Path:
    """Return where ``out`` is written until it is complete."""
    return out.with_name(f"{out.name}.part{os.getpid()}")


def _free_folder() -> Path:
    """Return the first of ``lmkan_fit``, ``lmkan_fit-2``, ... that does not exist."""
    numbers = itertools.count(2)
    out = Path("lmkan_fit")
    while out.exists():
        out = Path(f"lmkan_fit-{next(numbers)}")
    return out
