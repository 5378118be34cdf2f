"""The networks that an experiment compares: how to build and train each, and what inference costs.

FLOPs are the paper's: multiply-adds of one row, 2 I O for an lmKAN layer and I O for a linear one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from lmkan_cupy.adapters.fitting.mlp import fused, make_mlp, mlp_flops
from lmkan_cupy.adapters.torch import fuse
from lmkan_cupy.adapters.torch.training import BOUND, block_chain, parameter_groups
from torch import Tensor, nn

import lmkan_cupy

from .fastkan import fastkan_flops, make_fastkan

#: Learning rates that are tried for every model; for an lmKAN, those of the tables.
LEARNING_RATES = (3e-3, 1e-2, 3e-2)

#: Fewer for networks that take long to train, and for variants of a model that has been tuned.
FEW_LEARNING_RATES = (3e-3, 1e-2)

#: More, for models whose best usual learning rate is the lowest or the highest.
MORE_LEARNING_RATES = (1e-3, *LEARNING_RATES, 1e-1)

#: Widths of the hidden layers of pykan's networks, which are few because they are slow.
PYKAN_HIDDEN = {"smoke": [(2,)], "cpu": [(4, 4), (8, 8)], "gpu": [(4, 4), (8, 8), (16, 16)]}


def hidden_layers(number: int, *widths: int) -> list[tuple[int, ...]]:
    """Return the widths of ``number`` equal hidden layers, for every width."""
    return [(width,) * number for width in widths]


class Model(ABC):
    """A network to build, train and deploy.

    Attributes
    ----------
    kind : str
        A Pareto front is drawn through all models of a kind.
    learning_rates : tuple of float
        The learning rates to choose from.
    penalty_start : float
        The weight of the Hessian penalty at the start, where it is more than at the end.
    penalty_factor : float
        The weight at the end, as a multiple of the task's.
    refined_num_grids : int or None
        The grid of the second part of the training, None for the same grid.
    seeds : int
        Seeds that the model is trained with.
    runs_in_onnx : bool
        Whether inference on a CPU is timed in onnxruntime, too.
    """

    learning_rates: tuple[float, ...]
    penalty_start: float = 0.0
    penalty_factor: float = 1.0
    refined_num_grids: int | None = None
    seeds: int = 3
    runs_in_onnx: bool = False

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    @abstractmethod
    def label(self) -> str:
        """Kind, sizes, and whatever else distinguishes the model from others."""

    @abstractmethod
    def flops(self) -> int:
        """Return the multiply-adds of inference for one row."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new network, initialised from torch's random state."""

    def parameter_groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Return the parameter groups for an optimiser."""
        return [{"params": [*network.parameters()], "lr": lr}]

    def trainer_options(self, steps: int, penalty: float) -> dict[str, Any]:
        """Return what of a Trainer depends on the model, for so many steps and a task's penalty."""
        return {
            "penalty": self.penalty_factor * penalty,
            "penalty_start": self.penalty_start,
            "refined_num_grids": self.refined_num_grids,
        }

    def deployed(self, network: nn.Module) -> nn.Module:
        """Return the trained network in the form that is used for inference."""
        return network


@dataclass(frozen=True)
class MLP(Model):
    """Linear layers, with batch normalisation and an activation between them.

    MLPs with either activation are of one kind: the activation is tuned like the learning rate.
    """

    sizes: tuple[int, ...]
    activation: Literal["ReLU", "SiLU"] = "ReLU"
    learning_rates: tuple[float, ...] = LEARNING_RATES
    seeds: int = 3
    runs_in_onnx: bool = True

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
    learning_rates: tuple[float, ...] = LEARNING_RATES
    seeds: int = 3

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
    """Layers of the package pykan, cubic splines of one variable, trained like the others.

    Inputs are normalised over the batch, and the grid is fixed.
    """

    sizes: tuple[int, ...]
    num_grids: int = 8
    learning_rates: tuple[float, ...] = FEW_LEARNING_RATES

    @property
    def kind(self) -> str:
        return "pykan"

    @property
    def label(self) -> str:
        return f"{self.kind} {'-'.join(map(str, self.sizes))} G={self.num_grids}"

    def flops(self) -> int:
        """Return the multiply-adds for one row, without those that evaluate the splines.

        For each input, four cubic splines and the branch are not zero, and only these are counted;
        the package evaluates all splines.
        """
        return sum(5 * i * o for i, o in pairwise(self.sizes))

    def build(self) -> nn.Sequential:
        return nn.Sequential(*(PyKANBlock(i, o, self.num_grids) for i, o in pairwise(self.sizes)))


class PyKANBlock(nn.Module):
    """Batch normalisation, clamping, and pykan's layer, ``[B, I] -> [B, O]``."""

    def __init__(self, in_features: int, out_features: int, num_grids: int) -> None:
        super().__init__()
        from kan.KANLayer import KANLayer

        self.norm = nn.BatchNorm1d(in_features, affine=False)
        self.layer = KANLayer(in_features, out_features, num=num_grids, grid_range=(-BOUND, BOUND))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        y, *_for_plots = self.layer(self.norm(x).clamp(-BOUND, BOUND))
        return y


@dataclass(frozen=True)
class LMKAN(Model):
    """lmKAN blocks, trained as ``python -m lmkan_cupy fit`` does; a variant is its own kind."""

    sizes: tuple[int, ...]
    num_grids: int = 8
    residual: Literal["linear", "relu"] | None = "linear"
    penalty_start: float = 0.0
    penalty_factor: float = 1.0
    refined_num_grids: int | None = None
    learning_rates: tuple[float, ...] = LEARNING_RATES
    variant: str = ""
    seeds: int = 3

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

    def parameter_groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        return parameter_groups(network, lr)

    def deployed(self, network: nn.Module) -> nn.Module:
        return fuse(network)


@dataclass(frozen=True)
class LinearFirst(LMKAN):
    """A linear layer, then lmKAN blocks.

    The linear layer mixes the inputs, at half the FLOPs of an lmKAN layer of its size; the blocks
    after it learn functions of pairs.
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


def variants(sizes: tuple[int, ...]) -> list[Model]:
    """Return variants of an lmKAN, each with one part of its training changed."""
    lmkan = partial(LMKAN, sizes, learning_rates=FEW_LEARNING_RATES)
    return [
        lmkan(residual="relu", variant="ReLU branch"),
        lmkan(residual=None, variant="no branch"),
        lmkan(penalty_start=1.0, variant="strong penalty at the start"),
        lmkan(penalty_factor=0.0, variant="no penalty"),
        lmkan(penalty_factor=100.0, variant="100 times the penalty"),
        lmkan(num_grids=4, variant="coarse grid"),
        lmkan(num_grids=16, variant="fine grid"),
        lmkan(num_grids=4, refined_num_grids=8, variant="refined grid"),
    ]
