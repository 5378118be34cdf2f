"""A fitted network: predicting with it, saving it, loading it."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lmkan_cupy
from lmkan_cupy.array_checks import check_dense, check_num_grids, check_size
from lmkan_cupy.encoding import Encoder
from lmkan_cupy.fitted import FittedNetwork

from ..torch.training import TableNetwork
from .dataset import InputError
from .files import written


@dataclass(frozen=True)
class ModelDescription:
    """Columns and sizes of a network.

    Attributes
    ----------
    columns : list of dict
        Of the :class:`~lmkan_cupy.encoding.Encoder`: the columns that the network reads.
    target_names : list of str [K]
    classes : list or None
        The labels of a classification, in the order of the network's outputs.
    width, layers : int
        Features between the layers, number of layers.
    num_grids : int
        Grid intervals per axis.
    bound : float
        Inputs of every layer are cut at so many standard deviations.

    Raises
    ------
    TypeError, ValueError
        If a name is no text, or a number is out of range.
    """

    columns: list[dict[str, Any]]
    target_names: list[str]
    classes: list[Any] | None
    width: int
    layers: int
    num_grids: int
    bound: float

    def __post_init__(self) -> None:
        for name in self.target_names:
            if not isinstance(name, str):
                raise TypeError(f"names of columns must be text, got {name!r}")
        check_size("model", "number of features", len(self.encoder.names))
        check_size("model", "number of targets", len(self.target_names))
        if self.classes is not None:
            check_size("model", "number of classes", len(self.classes), at_least=2)
        check_size("model", "width", self.width)
        check_size("model", "layers", self.layers)
        check_num_grids("model", self.num_grids)
        if not 0 < self.bound < math.inf:
            raise ValueError(f"model: bound must be positive and finite, got {self.bound}")

    @cached_property
    def encoder(self) -> Encoder:
        """Turns the columns into features."""
        return Encoder(self.columns)

    @property
    def outputs(self) -> int:
        """What the network computes for every row: the targets, or logits of the classes."""
        return len(self.target_names if self.classes is None else self.classes)

    @property
    def sizes(self) -> list[int]:
        """Features before, between and after the layers."""
        return [len(self.encoder.names), *[self.width] * (self.layers - 1), self.outputs]

    @property
    def layer_counts(self) -> Counter[tuple[int, int]]:
        """How many layers have so many (inputs, outputs); costs nothing however many there are."""
        features, width = len(self.encoder.names), self.width
        if self.layers == 1:
            return Counter([(features, self.outputs)])
        between = Counter({(width, width): self.layers - 2})
        return between + Counter([(features, width), (width, self.outputs)])


@dataclass(frozen=True)
class FittedModel:
    """A network fitted to a table; features and predictions are in the table's units.

    Attributes
    ----------
    description : ModelDescription
    module : TableNetwork
        The trained network, a PyTorch module with its branches and normalisation folded.
    """

    description: ModelDescription
    module: TableNetwork

    @property
    def network(self) -> FittedNetwork:
        """The network without torch, which shares the module's memory."""
        described = self.description
        return self.module.fitted(
            described.encoder.names,
            described.target_names,
            columns=described.columns,
            classes=described.classes,
        )

    def predict(self, table: Any) -> NDArray[Any]:
        """Return the predicted targets [N], or [N, K] if there are several, or labels [N].

        Parameters
        ----------
        table : mapping, frame, or array [N, columns]
            As the :class:`~lmkan_cupy.encoding.Encoder` takes it. The columns of an array are those
            of ``description.columns``.

        Raises
        ------
        InputError
            If the shape does not fit, a column is not there or holds what it must not, or the
            network's answer is not a finite number.
        TypeError
            If a column is sparse.
        """
        output = self._output(table)
        if self.description.classes is not None:
            labels: NDArray[Any] = np.array(self.description.classes)[output.argmax(axis=1)]
            return labels
        return output[:, 0] if self.description.outputs == 1 else output

    def predict_proba(self, table: Any) -> NDArray[np.float64]:
        """Return the probabilities [N, K] of the classes, in the order of ``classes``.

        The table and what is raised are those of :meth:`predict`.
        """
        logits = torch.from_numpy(self._output(table))
        probabilities: NDArray[np.float64] = logits.softmax(1).numpy()
        return probabilities

    def _output(self, table: Any) -> NDArray[np.float64]:
        """Return targets in their units, or logits [N, K]."""
        if not hasattr(table, "keys") and not hasattr(table, "columns"):
            check_dense("predict", "table", table)
            array = np.asanyarray(table)
            names = [column["name"] for column in self.description.columns]
            if array.ndim != 2 or array.shape[1] != len(names):
                raise InputError(f"table must have shape [N, {len(names)}], got {array.shape}")
            table = dict(zip(names, array.T, strict=True))
        try:
            features = self.description.encoder(table)
        except ValueError as error:
            raise InputError(str(error)) from error
        output: NDArray[np.float64] = self.network.outputs(features)
        if len(bad_rows := np.flatnonzero(~np.isfinite(output).all(axis=1))):
            raise InputError(
                f"the model predicts no finite numbers for {len(bad_rows)} rows, first for row "
                f"{bad_rows[0] + 1}: its training failed, or its files are damaged"
            )
        return output

    def save(self, folder: Path) -> None:
        """Write the files that :func:`load` and :func:`lmkan_cupy.load_network` read."""
        for name, content in self.network.files().items():
            with written(folder / name) as path:
                path.write_bytes(content)

    def save_onnx(self, path: Path) -> None:
        """Write encoder and network as one ONNX file; it needs the package onnxscript.

        The file takes every column [N] by its name: numbers, truth values (1 or 0) and dates (days
        since 1970, in UTC) as float64, NaN where missing; categories as text, without blanks around
        it, and "" where missing. It gives the targets [N, K], or the logits of the classes, under
        the names of the targets. It refuses nothing: what is missing where the fitted table had no
        gap gives NaN, and as text it counts as an unknown level.
        """
        from .onnx_model import save_onnx  # here: it takes packages that nothing else needs

        described = self.description
        save_onnx(path, self.module, described.encoder, ", ".join(described.target_names))


def load(folder: str | Path) -> FittedModel:
    """Load the model from a folder that :func:`fit` or the command line wrote.

    Loading runs no code from the files.

    Raises
    ------
    InputError
        If a file is missing or damaged, or of another format version.
    """
    try:
        network = lmkan_cupy.load_network(folder)
    except ValueError as error:
        raise InputError(str(error)) from error
    if network.columns is None:
        raise InputError(f"{folder}: the model does not say which columns it reads")
    first = network.layers[0]
    description = ModelDescription(
        [dict(each) for each in network.columns],
        list(network.target_names),
        None if network.classes is None else list(network.classes),
        width=first.shape[3],
        layers=len(network.layers),
        num_grids=first.shape[1] - 1,
        bound=network.bound,
    )
    return FittedModel(description, TableNetwork.of(network))
