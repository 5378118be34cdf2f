"""Chains of lmKAN blocks: building them, their parameter groups, folding, refining, evaluating."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import LMKANBlock, LMKANConv2d, LMKANLinear

#: Inputs of every layer are cut at so many standard deviations.
BOUND = 4.0

#: Learning rate of the tables.
TABLES_LR = 3e-3

#: Learning rate of all other parameters, relative to that of the tables.
_BRANCH_FACTOR = 10 / 3

#: Rows that are evaluated at once.
ROWS_AT_ONCE = 2**14


class TableNetwork(nn.Module):
    """A chain of lmKAN blocks between the features and the targets of a table, in their own units.

    Parameters
    ----------
    sizes : sequence of int
        Number of features before, between and after the layers: I first, K last.
    num_grids : int
        Grid intervals per axis.
    bound : float
        Inputs of every layer are cut at so many standard deviations.
    residual : {None, "linear"}
        The branch of every layer, see :class:`~lmkan_cupy.adapters.torch.LMKANLinear`.

    Attributes
    ----------
    network : nn.Sequential
        The blocks: from standardised features [N, I] to standardised targets [N, K].
    feature_mean, feature_scale : float64 Tensor [I]
    target_mean, target_scale : float64 Tensor [K]
    """

    feature_mean: Tensor
    feature_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        num_grids: int,
        bound: float,
        *,
        residual: Literal["linear"] | None = None,
    ) -> None:
        super().__init__()
        self.network = block_chain(sizes, num_grids, bound, residual=residual)
        for name, size in (("feature", sizes[0]), ("target", sizes[-1])):
            self.register_buffer(f"{name}_mean", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{name}_scale", torch.ones(size, dtype=torch.float64))

    def standardise_features_by(self, features: NDArray[np.float64]) -> None:
        """Take mean and scale of the features from rows [N, I]."""
        self._standardise_by("feature", features)

    def standardise_targets_by(self, targets: NDArray[np.float64]) -> None:
        """Take mean and scale of the targets from rows [N, K]."""
        self._standardise_by("target", targets)

    def _standardise_by(self, name: str, values: NDArray[np.float64]) -> None:
        scale = values.std(axis=0)
        getattr(self, f"{name}_mean").copy_(torch.from_numpy(values.mean(axis=0)))
        getattr(self, f"{name}_scale").copy_(torch.from_numpy(np.where(scale > 0, scale, 1.0)))

    def standardised(self, features: NDArray[np.float64]) -> Tensor:
        """Return features [N, I] as the network takes them, standardised, float32."""
        return ((torch.tensor(features) - self.feature_mean) / self.feature_scale).float()

    def standardised_targets(self, targets: NDArray[np.float64]) -> Tensor:
        """Return targets [N, K] as the network should give them, standardised, float32."""
        return ((torch.tensor(targets) - self.target_mean) / self.target_scale).float()

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return predictions [N, K] in the targets' units for features [N, I]."""
        return self.in_units(evaluate(self.network, self.standardised(features)))

    def in_units(self, output: Tensor) -> NDArray[np.float64]:
        """Return the network's output [N, K] in the targets' units."""
        values: NDArray[np.float64] = (self.target_mean + self.target_scale * output).numpy()
        return values

    def error_in_units(self, loss: float) -> float:
        """Return the root of a mean square over standardised targets, in the targets' units."""
        return math.sqrt(loss) * float(self.target_scale.square().mean().sqrt())


def block_chain(
    sizes: Sequence[int],
    num_grids: int,
    bound: float,
    *,
    residual: Literal["linear", "relu"] | None,
) -> nn.Sequential:
    """Return a chain of lmKAN blocks; the arguments are those of :class:`TableNetwork`."""
    return nn.Sequential(
        *(
            LMKANBlock(in_features, out_features, num_grids, bound=bound, residual=residual)
            for in_features, out_features in pairwise(sizes)
        )
    )


def parameter_groups(network: nn.Module, lr: float = TABLES_LR) -> list[dict[str, Any]]:
    """Return an optimiser's parameter groups: tables with ``lr``, the rest with a larger rate."""
    tables: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (tables if name.rpartition(".")[2] == "tables" else others).append(parameter)
    return [{"params": tables, "lr": lr}, {"params": others, "lr": _BRANCH_FACTOR * lr}]


def lmkan_layers(network: nn.Module) -> Iterator[LMKANLinear | LMKANConv2d]:
    """Yield all lmKAN layers of a network."""
    return (each for each in network.modules() if isinstance(each, LMKANLinear | LMKANConv2d))


def fold_(network: nn.Module) -> None:
    """Absorb the residual branches of all lmKAN layers into their tables, in place."""
    for layer in lmkan_layers(network):
        layer.fold_()


@torch.no_grad()
def fold_chain_(chain: nn.Sequential) -> None:
    """Absorb into the tables of a chain of blocks whatever they can absorb, in place.

    A layer's tables absorb its own residual branch, and the batch normalisation of the next block,
    which with its statistics fixed is an affine function of their outputs. The first block keeps
    its normalisation, since no tables stand before it.
    """
    fold_(chain)
    blocks = [each for each in chain if isinstance(each, LMKANBlock)]
    for block, following in pairwise(blocks):
        norm, tables = following.norm, block.layer.tables
        if isinstance(norm, nn.Identity):
            continue
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + norm.eps)
        # A constant added to all values of a table is added to its function. An output is the sum
        # over P pairs, so each pair's tables take 1 / P of the constant.
        tables.mul_(scale).sub_(mean * scale / len(tables))
        following.norm = nn.Identity()


def refine_(network: nn.Module, num_grids: int, optimizer: torch.optim.Optimizer) -> None:
    """Move all lmKAN layers to another grid, in place, and the optimiser's moments with them."""
    for layer in lmkan_layers(network):
        layer.refine_(num_grids, optimizer)


def evaluate(network: nn.Module, features: Tensor, rows_at_once: int = ROWS_AT_ONCE) -> Tensor:
    """Return the network's output [N, K] for features [N, I], in evaluation mode, as float64."""
    return in_parts(network.eval(), features, rows_at_once)


def in_parts(function: Callable[[Tensor], Tensor], features: Tensor, rows_at_once: int) -> Tensor:
    """Return a function's values [N, K] as float64, computed ``rows_at_once`` rows at a time."""
    with torch.no_grad():  # not inference_mode: a network may differentiate itself
        parts = torch.split(features, rows_at_once)
        # Copies, because a replayed CUDA graph writes every result to the same memory.
        return torch.cat([function(part).to(torch.float64, copy=True) for part in parts])
