"""Chains of layers: which modules they are made of, and in which order these are called."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .layers import LMKANBlock, LMKANLinear, is_altered

#: Modules that do nothing in evaluation.
NOTHING = (nn.Identity, nn.Dropout)


class Selection(nn.Module):
    """Some of the features, ``[..., I] -> [..., len(columns)]``: in front of a pruned chain.

    Parameters
    ----------
    in_features : int
        Size I.
    columns : int64 Tensor
        Which features to take, in this order.
    """

    columns: Tensor

    def __init__(self, in_features: int, columns: Tensor) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer("columns", columns)

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected features of ``x [..., I]``."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"Selection: x must have {self.in_features} features on its last axis, "
                f"got x.shape={tuple(x.shape)}"
            )
        return x.index_select(-1, self.columns)

    def extra_repr(self) -> str:
        """Describe the module in ``print(module)``."""
        return f"in_features={self.in_features}, columns={self.columns.tolist()}"


#: Modules whose children are called one after the other.
_CHAINS = (nn.Sequential, LMKANBlock)

_PARTS = (LMKANLinear, nn.Linear, nn.BatchNorm1d, nn.Hardtanh, Selection, *NOTHING)


def chain_parts(function: str, model: nn.Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the modules of a chain, with their paths, in the order in which they are called.

    The path of the model itself is "".

    Raises
    ------
    TypeError
        If the model holds anything that is part of no chain; the message names it.
    """
    kind, name = type(model), path or "the model"
    if kind not in (*_CHAINS, *_PARTS):
        raise TypeError(
            f"{function}: {name} is a {kind.__name__}; a chain is made of Sequential, LMKANBlock, "
            "LMKANLinear, Linear, BatchNorm1d, Hardtanh, Selection, Identity and Dropout"
        )
    if is_altered(model):
        raise TypeError(
            f"{function}: {name} has hooks or a forward of its own, which would be lost"
        )
    if kind in _PARTS:
        yield path, model
        return
    for key, child in model._modules.items():  # not named_children, which skips repetitions
        assert child is not None
        yield from chain_parts(function, child, f"{path}.{key}" if path else key)
