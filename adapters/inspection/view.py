"""What a model is for the functions of this package: a chain of layers with named ends."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted  # type: ignore[import-untyped]
from torch import Tensor, nn

from lmkan_cupy.array_checks import check_dense, check_unmasked
from lmkan_cupy.encoding import Encoder

from ..fitting import FittedModel
from ..sklearn import LMKANClassifier, LMKANRegressor
from ..torch import FusedNetwork, fuse
from ..torch.training import TableNetwork, evaluate


@dataclass(frozen=True)
class View:
    """A model as a chain of layers, from the columns of a table to targets or classes.

    Attributes
    ----------
    function : str
        For which function, which error messages name.
    chain : Module
        Takes inputs [N, I] to outputs [N, K].
    encoder : Encoder
        Turns columns into features [N, I].
    has_names : bool
        Whether the model knows the names of the columns; otherwise they are x0, x1, ...
    outputs : list of str [K]
        What the targets or the classes are called.
    is_classifier : bool
        Whether the outputs are logits of classes.
    feature_mean, feature_scale : float64 array [I]
        The chain takes ``(features - mean) / scale``.
    target_mean, target_scale : float64 array [K]
        The targets, or logits, are ``mean + scale * output``.
    """

    function: str
    chain: nn.Module
    encoder: Encoder
    has_names: bool
    outputs: list[str]
    is_classifier: bool
    feature_mean: NDArray[np.float64]
    feature_scale: NDArray[np.float64]
    target_mean: NDArray[np.float64]
    target_scale: NDArray[np.float64]

    @cached_property
    def network(self) -> FusedNetwork:
        """The chain with everything folded into the arrays of its layers."""
        return fuse(self.chain)

    @property
    def names(self) -> list[str]:
        """Names of the features [I]."""
        return self.encoder.names

    @property
    def taken(self) -> list[str]:
        """Names of the features that the first layer takes."""
        selection = self.network.selection
        return self.names if selection is None else [self.names[k] for k in selection.columns]

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the model reads."""
        return [column["name"] for column in self.encoder.columns]

    def frame(self, data: Any) -> pd.DataFrame:
        """Return the columns that the model reads, of a frame, a mapping or an array [N, I]."""
        names = self.columns
        if self.has_names and (hasattr(data, "keys") or hasattr(data, "columns")):
            if missing := [name for name in names if name not in data]:
                problems = "; ".join(f"there is no column {name!r}" for name in missing)
                raise ValueError(f"{self.function}: data: {problems}")
            return pd.DataFrame({name: data[name] for name in names}).reset_index(drop=True)
        if isinstance(data, Tensor):
            data = data.detach().cpu().double()
        check_unmasked(self.function, "data", data)
        check_dense(self.function, "data", data)
        array = np.asarray(data)
        if array.ndim != 2 or array.shape[1] != len(names):
            raise ValueError(
                f"{self.function}: data must have shape [N, {len(names)}], got {array.shape}"
            )
        return pd.DataFrame(array, columns=names)

    def inputs(self, frame: pd.DataFrame) -> Tensor:
        """Return what the chain takes [N, I], in its dtype and on its device."""
        standardised = (self.encoder(frame) - self.feature_mean) / self.feature_scale
        array = self.network.arrays[0]
        dtype = torch.promote_types(array.dtype, torch.float32)
        return torch.from_numpy(standardised).to(array.device, dtype)

    def predicted(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return the targets, or the probabilities of the classes [N, K]."""
        output = evaluate(self.network, self.inputs(frame)).cpu()
        values: NDArray[np.float64] = self.target_mean + self.target_scale * output.numpy()
        if self.is_classifier:
            values = torch.from_numpy(values).softmax(1).numpy()
        return values


def view(function: str, model: Any) -> View:
    """Return a model seen as a chain of layers.

    Raises
    ------
    TypeError
        If it is no model of this library, or has modules that :func:`~..torch.fuse` does not take.
    """
    if isinstance(model, FittedModel):
        described = model.description
        labels = described.classes
        outputs = described.target_names if labels is None else labels
        return _of_network(
            function, model.module, described.encoder, True, outputs, labels is not None
        )
    if isinstance(model, LMKANRegressor | LMKANClassifier):
        check_is_fitted(model)
        has_names = hasattr(model, "feature_names_in_")
        names = model.feature_names_in_ if has_names else _numbered("x", model.n_features_in_)
        encoder = model.encoder_ or _of_numbers(names, model.feature_range_.T.tolist())
        is_classifier = isinstance(model, LMKANClassifier)
        outputs = (
            [*model.classes_] if is_classifier else _numbered("y", len(model.model_.target_mean))
        )
        return _of_network(function, model.model_, encoder, has_names, outputs, is_classifier)
    if isinstance(model, TableNetwork):
        encoder = _of_numbers(_numbered("x", len(model.feature_mean)))
        outputs = _numbered("y", len(model.target_mean))
        return _of_network(function, model, encoder, False, outputs, False)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model must be a FittedModel, LMKANRegressor, LMKANClassifier or a chain "
            f"of layers, got {type(model).__name__}"
        )
    network = fuse(model)
    encoder = _of_numbers(_numbered("x", network.in_features))
    outputs = _numbered("y", network.arrays[-1].shape[-1])
    zeros, ones = np.zeros(len(encoder.names)), np.ones(len(encoder.names))
    return View(
        function, model, encoder, False, outputs, False, zeros, ones, np.zeros(1), np.ones(1)
    )


def _of_network(
    function: str,
    network: TableNetwork,
    encoder: Encoder,
    has_names: bool,
    outputs: Any,
    is_classifier: bool,
) -> View:
    return View(
        function,
        network.network,
        encoder,
        has_names,
        [*map(str, outputs)],
        is_classifier,
        network.feature_mean.numpy(),
        network.feature_scale.numpy(),
        network.target_mean.numpy(),
        network.target_scale.numpy(),
    )


def _of_numbers(names: Iterable[Any], seen: Iterable[Any] = repeat(None)) -> Encoder:
    """Return the encoder of columns of numbers, of which the least and the largest may be known."""
    number = {"kind": "number", "parts": ["value"], "fill": 0.0}
    return Encoder(
        [
            {"name": str(name), "seen": each, **number}
            for name, each in zip(names, seen, strict=False)
        ]
    )


def _numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]
