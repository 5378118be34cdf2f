"""A fitted network: predicting with it, saving it, loading it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray

from ..torch.training import TableNetwork, fold_chain_
from .dataset import InputError, check_finite

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
    """

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
            If the shape does not fit or a value is missing or infinite.
        """
        # Masked values are missing ones.
        features = np.ma.asarray(features, np.float64).filled(np.nan)
        names = self.description.feature_names
        if features.ndim != 2 or features.shape[1] != len(names):
            raise InputError(f"features must have shape [N, {len(names)}], got {features.shape}")
        check_finite(features, names)
        return self.module.predict(features)[:, 0]

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``, which :func:`load` reads."""
        entries = {"format_version": _FORMAT_VERSION, **asdict(self.description)}
        (folder / "model.json").write_text(json.dumps(entries, indent=2) + "\n")
        safetensors.torch.save_file(self.module.state_dict(), folder / "model.safetensors")


def load(folder: str | Path) -> FittedModel:
    """Load the model from a folder that :func:`fit` or the command line wrote.

    Loading runs no code from the files.

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
        description = ModelDescription(**entries)
        module = TableNetwork(description.sizes, description.num_grids, description.bound)
        fold_chain_(module.network)  # as in fit: removes the norms that tables have absorbed
        module.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except InputError:
        raise
    except (
        *(ValueError, TypeError, KeyError, AttributeError),  # a damaged model.json
        *(RuntimeError, safetensors.SafetensorError),  # weights that are damaged or do not fit
    ) as error:
        raise InputError(f"{folder}: the model is damaged ({error})") from error
    return FittedModel(description, module.eval())
