"""A fitted network in use without any framework, and its format on disk.

A folder holds ``model.json``, with the format version, the names of features and targets, the
classes, the columns that the features are made of, and the bound; and ``model.safetensors``, with
the tables of every layer and the mean and scale of features and targets. Reading them runs no code
from the files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import allocation, array_checks
from .array_checks import Network
from .array_library import Array, array_library, is_array
from .encoding import Encoder
from .network import evaluate_network

#: The files of a folder.
MODEL_FILES = ("model.json", "model.safetensors")

_FORMAT_VERSION = 3

#: What the batch normalisation of format 2 added to variances.
_EPS = 1e-5

_STATISTICS = ("feature_mean", "feature_scale", "target_mean", "target_scale")


@dataclass(frozen=True)
class FittedNetwork:
    """A chain of lmKAN layers fitted to a table.

    Attributes
    ----------
    feature_names : list of str [I]
    target_names : list of str [K]
    bound : float
        Inputs of every layer are cut at so many standard deviations.
    layers : list of array
        Tables [P, S, S, O]: of NumPy or CuPy, where predictions are computed.
    feature_mean, feature_scale : float64 array [I]
        Features enter the first layer as ``(x - mean) / scale``.
    target_mean, target_scale : float64 array [K]
        Targets are ``mean + scale * y``.

    columns : list of dict, optional
        Of the :class:`~lmkan_cupy.encoding.Encoder` that makes the features of a table's columns.
        Without it every feature is a column of numbers.
    classes : list [K], optional
        The labels of a classification, whose K outputs are logits.

    Raises
    ------
    TypeError, ValueError
        If sizes, dtypes or names do not fit.
    """

    feature_names: Sequence[str]
    target_names: Sequence[str]
    bound: float
    layers: Sequence[Array]
    feature_mean: Array
    feature_scale: Array
    target_mean: Array
    target_scale: Array
    columns: Sequence[Mapping[str, Any]] | None = None
    classes: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        for name in (*self.feature_names, *self.target_names):
            if not isinstance(name, str):
                raise TypeError(f"names of columns must be text, got {name!r}")
        if not math.isfinite(self.bound):
            raise ValueError(f"bound must be finite, got {self.bound}")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError(f"there must be at least two classes, got {self.classes}")
        if not self.layers:
            raise ValueError("there must be at least one layer")
        outputs = self.target_names if self.classes is None else self.classes
        for name, names in (("feature", self.feature_names), ("target", outputs)):
            for statistic in ("mean", "scale"):
                shape = getattr(self, f"{name}_{statistic}").shape
                if shape != (len(names),):
                    raise ValueError(f"{name}_{statistic} must have shape ({len(names)},): {shape}")
        if self._network.out_features != len(outputs):
            raise ValueError(
                f"the last layer must have {len(outputs)} outputs, one for each target, "
                f"got {self._network.out_features}"
            )
        if self._encoder is not None and self._encoder.names != list(self.feature_names):
            raise ValueError(f"feature_names must be those of columns: {self._encoder.names}")

    @cached_property
    def _network(self) -> Network:
        xp = array_library(self.layers[0])
        dtype = array_checks.compute_dtype_of(self.layers[0].dtype)
        no_rows = xp.empty((0, len(self.feature_names)), dtype)
        return array_checks.check_network(
            "load_network", no_rows, self.layers, None, None, self.bound
        )

    @cached_property
    def _encoder(self) -> Encoder | None:
        return None if self.columns is None else Encoder(self.columns)

    def predict(self, rows: Any) -> Array:
        """Return the targets, in their units, of rows of features in theirs; or the labels.

        Parameters
        ----------
        rows
            As in :meth:`outputs`.

        Returns
        -------
        float64 array [N, K] or [K], or labels [N] or []
        """
        outputs = self.outputs(rows)
        if self.classes is None:
            return outputs
        labels: Array = np.array(self.classes)[array_library(outputs).argmax(outputs, axis=-1)]
        return labels

    def predict_proba(self, rows: Any) -> Array:
        """Return the probabilities [N, K] or [K] of the classes, see :meth:`outputs`."""
        logits = self.outputs(rows)
        xp = array_library(logits)
        powers = xp.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities: Array = powers / powers.sum(axis=-1, keepdims=True)
        return probabilities

    def outputs(self, rows: Any) -> Array:
        """Return the targets, in their units, of rows of features in theirs; or logits.

        Parameters
        ----------
        rows : array [N, I] or [I], or a mapping
            Features in the order of ``feature_names``. A dict or a data frame holds them, or the
            ``columns`` that they are made of, by name, each a value or an array [N]; other columns
            do no harm.

        Returns
        -------
        float64 array [N, K] or [K]
            NaN where a feature is NaN.

        Raises
        ------
        KeyError
            If a mapping lacks a feature.
        TypeError, ValueError
            If rows do not have I features, are masked or sparse, or hold anything but numbers.
        """
        features = self._features(rows)
        with np.errstate(over="ignore"):  # what is too large for float32 is cut
            x = ((features - self.feature_mean) / self.feature_scale).astype(self._network.dtype)
        y = evaluate_network("predict", self._network, x)
        predictions: Array = self.target_mean + self.target_scale * y
        return predictions

    def _features(self, rows: Any) -> Array:
        """Return float64 features [..., I] on the network's device."""
        xp = array_library(self.layers[0])
        features: Array
        is_table = isinstance(rows, Mapping) or hasattr(rows, "columns")
        if is_table and self._encoder is not None:
            encoded = xp.asarray(self._encoder(rows))
            name = self._encoder.columns[0]["name"]
            is_one_row = isinstance(rows, Mapping) and np.ndim(rows[name]) == 0
            features = encoded[0] if is_one_row else encoded
        elif is_table:
            columns = [_column(rows, name) for name in self.feature_names]
            if len(shapes := {each.shape for each in columns}) > 1:
                raise ValueError(f"predict: features must have one shape, got {sorted(shapes)}")
            features = xp.stack([*map(xp.asarray, columns)], axis=-1)
        else:
            features = xp.asarray(_numbers("rows", rows))
        if features.shape[-1:] != (len(self.feature_names),):
            raise ValueError(
                f"predict: rows must have {len(self.feature_names)} features, "
                f"got shape {features.shape}"
            )
        return features

    def files(self) -> dict[str, bytes]:
        """Return the contents of the files, by name, that :func:`load_network` reads."""
        from safetensors.numpy import save

        description = {
            "format_version": _FORMAT_VERSION,
            "feature_names": list(self.feature_names),
            "target_names": list(self.target_names),
            "classes": None if self.classes is None else list(self.classes),
            "columns": None if self.columns is None else list(self.columns),
            "bound": self.bound,
        }
        arrays = {name: getattr(self, name) for name in _STATISTICS}
        arrays |= {f"layers.{k}": tables for k, tables in enumerate(self.layers)}
        on_host = {
            name: np.ascontiguousarray(each.get() if hasattr(each, "get") else each)
            for name, each in arrays.items()
        }
        text = json.dumps(description, indent=2) + "\n"
        return dict(zip(MODEL_FILES, (text.encode(), save(on_host)), strict=True))


def _column(rows: Any, name: str) -> Array:
    """Return a feature out of a mapping."""
    try:
        column = rows[name]
    except KeyError as error:
        raise KeyError(f"predict: rows must have the feature {name!r}") from error
    return _numbers(f"rows[{name!r}]", column)


def _numbers(name: str, values: Any) -> Array:
    """Return numbers as a float64 array: of CuPy if they are one, else of NumPy."""
    array_checks.check_unmasked("predict", name, values)
    array_checks.check_dense("predict", name, values)
    array = values if is_array(values) else np.asarray(values)
    if array.dtype == object:  # which NumPy would convert even if it holds text
        array = np.array(array.tolist())
    if array.dtype.kind not in "biuf":
        raise TypeError(f"predict: {name} must hold numbers, got {array.dtype}")
    return array.astype(np.float64, copy=False)


def load_network(folder: str | Path, *, xp: Any = np) -> FittedNetwork:
    """Load what ``fit`` wrote, to predict without torch.

    Parameters
    ----------
    folder : str or Path
        Written by ``python -m lmkan_cupy fit``.
    xp : module
        ``numpy`` or ``cupy``: where to compute.

    Returns
    -------
    FittedNetwork

    Raises
    ------
    ValueError
        If a file is missing, damaged or of another format.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: there is no {name}; expected a folder that fit wrote")
    try:
        entries = json.loads((folder / MODEL_FILES[0]).read_text(encoding="utf-8"))
        arrays = load_file(folder / MODEL_FILES[1])
        version = entries.pop("format_version")
        if version == 2:
            entries, arrays = _from_format_2(entries, arrays)
        elif version != _FORMAT_VERSION:
            raise _UnknownFormat(
                f"{folder}: the model has format version {version}, but this version of "
                f"lmkan_cupy reads 2 and {_FORMAT_VERSION}"
            )
        statistics = {name: xp.asarray(arrays.pop(name), np.float64) for name in _STATISTICS}
        layers = [
            allocation.aligned(xp.asarray(arrays.pop(f"layers.{k}"))) for k in range(len(arrays))
        ]
        return FittedNetwork(**entries, layers=layers, **statistics)
    except _UnknownFormat:
        raise
    except OSError as error:
        raise ValueError(f"{folder}: the model cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged file can make the readers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder}: the model is damaged ({reason})") from error


class _UnknownFormat(ValueError):
    pass


def _from_format_2(
    entries: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return entries and arrays as format 3 has them: one target, the first norm in the features'
    mean and scale.
    """
    scale = arrays["feature_scale"]
    mean = arrays["network.0.norm.running_mean"].astype(np.float64)
    deviation = np.sqrt(arrays["network.0.norm.running_var"].astype(np.float64) + _EPS)
    of_layers = {
        f"layers.{k}": arrays[f"network.{k}.layer.tables"] for k in range(entries["layers"])
    }
    statistics = {name: arrays[name] for name in _STATISTICS}
    statistics["feature_mean"] = arrays["feature_mean"] + scale * mean
    statistics["feature_scale"] = scale * deviation
    names = entries["feature_names"]
    number = {"kind": "number", "parts": ["value"], "fill": 0.0}
    description = {
        "feature_names": names,
        "target_names": [entries["target_name"]],
        "columns": [{"name": name, **number} for name in names],
        "bound": entries["bound"],
    }
    return description, {**statistics, **of_layers}
