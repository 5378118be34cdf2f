"""The networks of ``--setting paper``: the paper's backbones, trained in its phases.

MLPs and lmKANs have two hidden layers of one width. An lmKAN layer has batch normalisation before
it, no bound of its inputs, and a branch with ReLU, either before its weight ("relu": not in the
first layer, and folded into the tables) or after it ("relu_last": not in the last layer, and
counted as a linear layer more). Adam has one learning rate for all parameters.

The paper says nothing of the statistics of batch normalisation. Here all networks, MLPs too, keep
them after the phases before the main part, except on images: with few steps the noise of every
batch's own costs lmKANs and MLPs a good part of the error (``bench/results/procedure.md``).
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, TypeVar

from lmkan_cupy.adapters.torch import LMKANBlock, PhasedSchedule, fuse
from torch import nn

import lmkan_cupy

from .models import LMKAN, MLP, FastKAN, Model

Tuned = TypeVar("Tuned", bound=Model)

#: Makes a network from its sizes.
Kind: TypeAlias = Callable[[tuple[int, ...]], Model]

#: Networks that are at most so wide are trained with three seeds.
NARROW = 32

#: Grids and penalties of a sweep; branches with the ReLU first need even grids.
SWEPT_GRIDS = {"smoke": [4, 6], "pilot": [4, 40], "cpu": [4, 6, 8, 12, 16, 20, 28, 40]}
SWEPT_PENALTIES = {"smoke": [1e-4], "pilot": [], "cpu": [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2]}

#: Where the ReLU of a branch is.
Branch: TypeAlias = Literal["relu", "relu_last"]

#: Learning rates of a pilot.
PILOT_RATES = (1e-3, 3e-3, 1e-2, 3e-2)

#: Without a penalty in the main part.
NO_PENALTY = 1e-20


class InPhases(Model, ABC):
    """A model that is trained in the paper's phases; of these an MLP has only the decay at the end.

    Attributes
    ----------
    penalty_floor : float
        Weight of the Hessian penalty in the main part.
    """

    penalty_floor: float = NO_PENALTY

    def trainer_options(self, steps: int, penalty: float) -> dict[str, Any]:
        return {
            "penalty": penalty,
            "schedule": PhasedSchedule(steps, floor=self.penalty_floor),
        }


@dataclass(frozen=True)
class PaperMLP(InPhases, MLP):
    """Two hidden layers with batch normalisation and ReLU."""


@dataclass(frozen=True)
class PaperLMKAN(InPhases):
    """Two hidden layers of an lmKAN with ReLU branches; a variant is its own kind."""

    sizes: tuple[int, ...]
    num_grids: int
    branch: Branch = "relu"
    learning_rates: tuple[float, ...] = PILOT_RATES
    seeds: int = 3
    penalty_floor: float = NO_PENALTY
    variant: str = ""

    @property
    def kind(self) -> str:
        return f"lmKAN, {self.variant}" if self.variant else "lmKAN"

    @property
    def label(self) -> str:
        return f"{self.kind} {'-'.join(map(str, self.sizes))} G={self.num_grids}"

    def flops(self) -> int:
        pairs = [*pairwise(self.sizes)]
        beside = pairs[:-1] if self.branch == "relu_last" else []
        return sum(lmkan_cupy.flops(i, o) for i, o in pairs) + sum(i * o for i, o in beside)

    def build(self) -> nn.Sequential:
        pairs = [*pairwise(self.sizes)]
        branches: list[Any] = [self.branch] * len(pairs)
        branches[0 if self.branch == "relu" else -1] = "linear"
        return nn.Sequential(
            *(
                LMKANBlock(i, o, self.num_grids, bound=None, residual=branch, tables_weight=0.0)
                for (i, o), branch in zip(pairs, branches, strict=True)
            )
        )

    def deployed(self, network: nn.Module) -> nn.Module:
        if self.branch == "relu":
            return fuse(network)
        network[-1].layer.fold_()
        return network


@dataclass(frozen=True)
class PaperFastKAN(InPhases, FastKAN):
    """FastKAN, trained like an MLP of the paper."""


@dataclass(frozen=True)
class OwnLMKAN(LMKAN):
    """An lmKAN with this project's own procedure, beside those of the paper."""

    variant: str = "own procedure"


@dataclass(frozen=True)
class StrongMLP(MLP):
    """The strongest MLP that is known to us: three layers with SiLU, by our own procedure."""

    activation: Literal["ReLU", "SiLU"] = "SiLU"

    @property
    def kind(self) -> str:
        return "MLP, SiLU"

    @property
    def label(self) -> str:
        return f"{self.kind} {'-'.join(map(str, self.sizes))}"


def tuned(model: Tuned, width: int, rates: Mapping[str, float]) -> Tuned:
    """Return the model with the learning rate of its kind, and three seeds if it is narrow.

    Without ``rates`` it gets those of a pilot, to choose from.
    """
    if not rates:
        return replace(model, learning_rates=PILOT_RATES, seeds=1)
    return replace(model, learning_rates=(rates[model.kind],), seeds=3 if width <= NARROW else 1)


def students(
    in_features: int,
    kinds: Sequence[Kind],
    widths: Sequence[Sequence[int]],
    rates: Mapping[str, float],
) -> list[Model]:
    """Return networks of the given kinds and widths, from the cheapest on.

    So the first runs are those of a front.
    """
    models = [
        tuned(make((in_features, *[width] * (3 if make is StrongMLP else 2), 1)), width, rates)
        for make, of_kind in zip(kinds, widths, strict=True)
        for width in of_kind
    ]
    return sorted(models, key=lambda model: model.flops())


def swept(lmkan: PaperLMKAN, scale: str, rates: Mapping[str, float]) -> list[Model]:
    """Return an lmKAN with other grids, and with other penalties in the main part, one seed each.

    The learning rate is that of its kind.
    """
    scale = "cpu" if scale == "gpu" else scale
    model = replace(tuned(lmkan, 0, rates), seeds=1)
    return [
        *(replace(model, num_grids=grids, variant="grids") for grids in SWEPT_GRIDS[scale]),
        *(
            replace(model, penalty_floor=floor, variant=f"penalty {floor:g}")
            for floor in SWEPT_PENALTIES[scale]
        ),
    ]
