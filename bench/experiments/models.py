"""The networks that an experiment compares, each with its inference cost and its way of training.

FLOPs are the paper's: multiply-adds of one row, 2 I O for an lmKAN layer and I O for a linear one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from lmkan_cupy.adapters.mlp import fused, make_mlp, mlp_flops
from lmkan_cupy.adapters.training import BOUND, block_chain, fold_chain_, parameter_groups
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_weights

import lmkan_cupy

from .fastkan import fastkan_flops, make_fastkan

#: Learning rates that are tried for every model; of the tables, for an lmKAN.
RATES = (3e-3, 1e-2, 3e-2)

#: Fewer for what costs much to train, and for variants of a model that has been tuned.
FEW_RATES = (3e-3, 1e-2)

#: More, where the best of these are at an edge.
MORE_RATES = (1e-3, *RATES, 1e-1)

#: Features of the hidden layers of pykan's networks; a step takes them long.
PYKAN_HIDDEN = {"smoke": [(2,)], "cpu": [(4, 4), (8, 8)], "gpu": [(4, 4), (8, 8), (16, 16)]}


def layers(number: int, *widths: int) -> list[tuple[int, ...]]:
    """Return the features of so many equal hidden layers, for every width."""
    return [(width,) * number for width in widths]


class Model(ABC):
    """A network that is not there yet.

    Attributes
    ----------
    kind : str
        A Pareto front is drawn through models of a kind, whichever way they are made.
    rates : tuple of float
        The learning rates to choose from.
    penalty_start : float
        The weight of the Hessian penalty at the start, where that is more than at the end.
    penalty_factor : float
        Times the task's weight is the one at the end.
    refined_num_grids : int or None
        The grid of the second part of the training, None for the same one.
    """

    rates: tuple[float, ...]
    penalty_start: float = 0.0
    penalty_factor: float = 1.0
    refined_num_grids: int | None = None

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    @abstractmethod
    def label(self) -> str:
        """The kind, the sizes and whatever else tells models apart."""

    @abstractmethod
    def flops(self) -> int:
        """Return the multiply-adds of inference on one row."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network to train, drawn by torch's random state."""

    def parameter_groups(self, network: nn.Module, rate: float) -> list[dict[str, Any]]:
        """Return what an optimiser takes."""
        return [{"params": [*network.parameters()], "lr": rate}]

    def deployed(self, network: nn.Module) -> nn.Module:
        """Return the trained network as it is used for inference."""
        return network


@dataclass(frozen=True)
class MLP(Model):
    """Linear layers, with batch normalisation and an activation between them.

    Activations are tried as learning rates are: MLPs with one and the other are of one kind.
    """

    sizes: tuple[int, ...]
    activation: Literal["ReLU", "SiLU"] = "ReLU"
    rates: tuple[float, ...] = RATES

    @property
    def kind(self) -> str:
        return "MLP"

    @property
    def label(self) -> str:
        sizes = "-".join(map(str, self.sizes))
        return f"{self.kind} {sizes}{', SiLU' if self.activation == 'SiLU' else ''}"

    def flops(self) -> int:
        return mlp_flops(self.sizes)

    def build(self) -> nn.Sequential:
        return make_mlp(self.sizes, getattr(nn, self.activation))

    def deployed(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, nn.Sequential)
        return fused(network)


SILU_MLP = partial(MLP, activation="SiLU")


@dataclass(frozen=True)
class FastKAN(Model):
    """Layers of Gaussian radial functions of one variable."""

    sizes: tuple[int, ...]
    num_grids: int = 8
    rates: tuple[float, ...] = RATES

    @property
    def kind(self) -> str:
        return "FastKAN"

    @property
    def label(self) -> str:
        return f"{self.kind} {'-'.join(map(str, self.sizes))} G={self.num_grids}"

    def flops(self) -> int:
        return fastkan_flops(self.sizes, self.num_grids)

    def build(self) -> nn.Sequential:
        return make_fastkan(self.sizes, self.num_grids)


@dataclass(frozen=True)
class PyKAN(Model):
    """Layers of the package pykan, cubic splines of one variable; trained as the others are.

    Inputs are normalised over the batch, and the grid stays where it is.
    """

    sizes: tuple[int, ...]
    num_grids: int = 8
    rates: tuple[float, ...] = FEW_RATES

    @property
    def kind(self) -> str:
        return "pykan"

    @property
    def label(self) -> str:
        return f"{self.kind} {'-'.join(map(str, self.sizes))} G={self.num_grids}"

    def flops(self) -> int:
        """Return the multiply-adds for one row; those that give the splines are not counted.

        Four cubic splines and the branch are not zero: the package computes with all of them.
        """
        return sum(5 * i * o for i, o in pairwise(self.sizes))

    def build(self) -> nn.Sequential:
        return nn.Sequential(*(PyKANBlock(i, o, self.num_grids) for i, o in pairwise(self.sizes)))


class PyKANBlock(nn.Module):
    """Batch normalisation, bounds, and pykan's layer, ``[B, I] -> [B, O]``."""

    def __init__(self, in_features: int, out_features: int, num_grids: int) -> None:
        super().__init__()
        from kan.KANLayer import KANLayer

        self.norm = nn.BatchNorm1d(in_features, affine=False)
        self.layer = KANLayer(in_features, out_features, num=num_grids, grid_range=(-BOUND, BOUND))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.norm(x).clamp(-BOUND, BOUND))[0]  # the rest is for plots
        return y


@dataclass(frozen=True)
class LMKAN(Model):
    """lmKAN blocks, fitted as ``python -m lmkan_cupy fit`` does; a variant is a kind of its own."""

    sizes: tuple[int, ...]
    num_grids: int = 8
    residual: Literal["linear", "relu"] | None = "linear"
    penalty_start: float = 0.0
    penalty_factor: float = 1.0
    refined_num_grids: int | None = None
    rates: tuple[float, ...] = RATES
    variant: str = ""

    @property
    def kind(self) -> str:
        return f"lmKAN, {self.variant}" if self.variant else "lmKAN"

    @property
    def label(self) -> str:
        num_grids = self.refined_num_grids or self.num_grids
        return f"{self.kind} {'-'.join(map(str, self.sizes))} G={num_grids}"

    def flops(self) -> int:
        return sum(lmkan_cupy.flops(i, o) for i, o in pairwise(self.sizes))

    def build(self) -> nn.Sequential:
        return block_chain(self.sizes, self.num_grids, BOUND, residual=self.residual)

    def parameter_groups(self, network: nn.Module, rate: float) -> list[dict[str, Any]]:
        return parameter_groups(network, rate)

    def deployed(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, nn.Sequential)
        fold_chain_(network)
        return network


@dataclass(frozen=True)
class LinearFirst(LMKAN):
    """A linear layer that mixes the inputs, and then lmKAN blocks: half the FLOPs of their first.

    What the first of two lmKAN layers does to a pair of inputs alone, the second can do to any.
    """

    @property
    def label(self) -> str:
        return f"{super().label}, first layer linear"

    def flops(self) -> int:
        return super().flops() - self.sizes[0] * self.sizes[1]

    def build(self) -> nn.Sequential:
        first, second, *_ = self.sizes
        blocks = block_chain(self.sizes[1:], self.num_grids, BOUND, residual=self.residual)
        return nn.Sequential(nn.Linear(first, second), *blocks)

    def deployed(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, nn.Sequential)
        mixing, *blocks = network
        fold_chain_(nn.Sequential(*blocks))
        norm = blocks[0].norm
        one, zero = torch.ones_like(norm.running_var), torch.zeros_like(norm.running_var)
        mixing.weight, mixing.bias = fuse_linear_bn_weights(
            mixing.weight, mixing.bias, norm.running_mean, norm.running_var, norm.eps, one, zero
        )
        blocks[0].norm = nn.Identity()
        return network


def variants(sizes: tuple[int, ...]) -> list[Model]:
    """Return an lmKAN's variants, each with one thing in its fitting changed."""
    return [
        LMKAN(sizes, residual="relu", variant="ReLU branch", rates=FEW_RATES),
        LMKAN(sizes, residual=None, variant="no branch", rates=FEW_RATES),
        LMKAN(sizes, penalty_start=1.0, variant="strong penalty at the start", rates=FEW_RATES),
        LMKAN(sizes, penalty_factor=0.0, variant="no penalty", rates=FEW_RATES),
        LMKAN(sizes, penalty_factor=100.0, variant="100 times the penalty", rates=FEW_RATES),
        LMKAN(sizes, num_grids=4, variant="coarse grid", rates=FEW_RATES),
        LMKAN(sizes, num_grids=16, variant="fine grid", rates=FEW_RATES),
        LMKAN(sizes, num_grids=4, refined_num_grids=8, variant="refined grid", rates=FEW_RATES),
    ]
