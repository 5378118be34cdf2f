"""A fitted network: predicting with it, saving it, loading it."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lmkan_cupy
from lmkan_cupy.array_checks import check_num_grids, check_size
from lmkan_cupy.fitted import FittedNetwork

from ..torch.training import TableNetwork
from .dataset import InputError, as_numbers, check_finite
from .files import written

_FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelDescription:
    """Columns and sizes of a network.

    Attributes
    ----------
    feature_names : list of str [I]
    target_name : str
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

    feature_names: list[str]
    target_name: str
    width: int
    layers: int
    num_grids: int
    bound: float

    def __post_init__(self) -> None:
        for name in (*self.feature_names, self.target_name):
            if not isinstance(name, str):
                raise TypeError(f"names of columns must be text, got {name!r}")
        check_size("model", "number of features", len(self.feature_names))
        check_size("model", "width", self.width)
        check_size("model", "layers", self.layers)
        check_num_grids("model", self.num_grids)
        if not 0 < self.bound < math.inf:
            raise ValueError(f"model: bound must be positive and finite, got {self.bound}")

    @property
    def sizes(self) -> list[int]:
        """Features before, between and after the layers."""
        return [len(self.feature_names), *[self.width] * (self.layers - 1), 1]

    @property
    def layer_counts(self) -> Counter[tuple[int, int]]:
        """How many layers have so many (inputs, outputs); costs nothing however many there are."""
        features, width = len(self.feature_names), self.width
        if self.layers == 1:
            return Counter([(features, 1)])
        between = Counter({(width, width): self.layers - 2})
        return between + Counter([(features, width), (width, 1)])


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
        names = self.description.feature_names, [self.description.target_name]
        return self.module.fitted(*names)

    def predict(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the predicted target [N] for features [N, I].

        The features are in the order of ``description.feature_names``.

        Raises
        ------
        InputError
            If the shape does not fit, a value is masked, missing or infinite, or the network's
            answer is not a finite number.
        TypeError
            If the features are sparse.
        """
        features = as_numbers("predict", "features", features)
        names = self.description.feature_names
        if features.ndim != 2 or features.shape[1] != len(names):
            raise InputError(f"features must have shape [N, {len(names)}], got {features.shape}")
        check_finite(features, names)
        predictions: NDArray[np.float64] = self.network.predict(features)[:, 0]
        if len(bad_rows := np.flatnonzero(~np.isfinite(predictions))):
            raise InputError(
                f"the model predicts no finite numbers for {len(bad_rows)} rows, first for row "
                f"{bad_rows[0] + 1}: its training failed, or its files are damaged"
            )
        return predictions

    def save(self, folder: Path) -> None:
        """Write the files that :func:`load` and :func:`lmkan_cupy.load_network` read."""
        for name, content in self.network.files().items():
            with written(folder / name) as path:
                path.write_bytes(content)


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
    first = network.layers[0]
    description = ModelDescription(
        list(network.feature_names),
        network.target_names[0],
        width=first.shape[3],
        layers=len(network.layers),
        num_grids=first.shape[1] - 1,
        bound=network.bound,
    )
    return FittedModel(description, TableNetwork.of(network))
