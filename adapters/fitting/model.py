"""A fitted network: predicting with it, saving it, loading it."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

import lmkan_cupy
from lmkan_cupy.array_checks import check_num_grids, check_size

from ..torch.training import TableNetwork, fold_chain_
from .dataset import InputError, as_numbers, check_finite, one_line
from .files import written

_FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelDescription:
    """Columns and sizes of a network: what ``model.json`` holds besides the format version.

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
        predictions = self.module.predict(features)[:, 0]
        if len(bad_rows := np.flatnonzero(~np.isfinite(predictions))):
            raise InputError(
                f"the model predicts no finite numbers for {len(bad_rows)} rows, first for row "
                f"{bad_rows[0] + 1}: its training failed, or its files are damaged"
            )
        return predictions

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``, which :func:`load` reads."""
        entries = {"format_version": _FORMAT_VERSION, **asdict(self.description)}
        with written(folder / "model.safetensors") as path:
            path.write_bytes(safetensors.torch.save(self.module.state_dict()))
        with written(folder / "model.json") as path:
            path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path) -> FittedModel:
    """Load the model from a folder that :func:`fit` or the command line wrote.

    Loading runs no code from the files.

    Raises
    ------
    InputError
        If a file is missing or damaged, or of another format version.
    """
    folder = Path(folder)
    try:
        for name in ("model.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: there is no {name}; expected a folder that fit wrote")
        entries = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        version = entries.pop("format_version")
        if version != _FORMAT_VERSION:
            raise InputError(
                f"{folder}: the model has format version {version}, but this version of "
                f"lmkan_cupy reads {_FORMAT_VERSION}"
            )
        description = ModelDescription(**entries)
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        _check_size(description, weights)
        module = TableNetwork(description.sizes, description.num_grids, description.bound)
        fold_chain_(module.network)  # as in fit: removes the norms that tables have absorbed
        module.load_state_dict(weights)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{folder}: the model cannot be read ({error.strerror})") from error
    except (
        *(ValueError, TypeError, KeyError, AttributeError),  # a damaged model.json
        *(RuntimeError, safetensors.SafetensorError),  # weights that are damaged or do not fit
    ) as error:
        raise InputError(f"{folder}: the model is damaged ({one_line(error)})") from error
    return FittedModel(description, module.eval())


def _check_size(description: ModelDescription, weights: dict[str, Tensor]) -> None:
    """Require as many parameters as are in the file, before memory is taken for them."""
    described = sum(
        count * lmkan_cupy.num_parameters(*sizes, description.num_grids)
        for sizes, count in description.layer_counts.items()
    )
    held = sum(each.numel() for name, each in weights.items() if name.endswith(".tables"))
    if described != held:
        raise ValueError(f"model.json asks for {described:,} parameters, but there are {held:,}")
