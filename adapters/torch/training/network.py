"""Chains of lmKAN blocks: building them, their parameter groups, folding, refining, evaluating."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from lmkan_cupy.array_checks import check_dense, check_unmasked
from lmkan_cupy.fitted import FittedNetwork

from .. import LMKANBlock, LMKANConv2d, LMKANLinear, fuse

#: Inputs of every layer are cut at so many standard deviations.
BOUND = 4.0

#: Learning rate of the tables.
TABLES_LR = 3e-3

#: Learning rate of all other parameters, relative to that of the tables.
_BRANCH_FACTOR = 10 / 3

#: With more features than this the first layer of a table's network learns more slowly, in
#: proportion: an output is a sum over all pairs, so a step changes it the more, the more there are.
_FEATURES_AT_FULL_LR = 16

#: Rows that are evaluated at once.
ROWS_AT_ONCE = 2**14

#: A column whose values differ by no more than this, relative to the largest of them, is constant:
#: they differ by rounding.
_ROUNDING = 4 * np.finfo(np.float64).eps


class TableNetwork(nn.Module):
    """A chain of lmKAN blocks between the features and the targets of a table, in their own units.

    Called, it answers in the units of the targets, or with logits where those are classes. It is
    made on the CPU and in float32, whatever torch's default device and dtype are.

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
    seed : int
        Seed of the initial parameters.

    Attributes
    ----------
    num_grids, bound
        As given.
    network : nn.Sequential
        The blocks: from standardised features [N, I] to standardised targets [N, K].
    feature_mean, feature_scale : float64 Tensor [I]
    target_mean, target_scale : float64 Tensor [K]
        Mean and standard deviation of every column. The scale of a constant column is the size of
        its value, or 1 for zeros.
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_grids, self.bound = num_grids, bound
        generator = torch.Generator().manual_seed(seed)
        self.network = block_chain(sizes, num_grids, bound, residual=residual, generator=generator)
        for name, size in (("feature", sizes[0]), ("target", sizes[-1])):
            self.register_buffer(f"{name}_mean", torch.from_numpy(np.zeros(size)))
            self.register_buffer(f"{name}_scale", torch.from_numpy(np.ones(size)))

    def forward(self, x: Tensor) -> Tensor:
        """Return targets in their units, or logits, [..., K] for encoded features x [..., I].

        x is float32 or float64, and so is the answer. In evaluation mode, ``torch.export`` and
        ``torch.onnx.export`` take the folded network, and it gives what :meth:`predict` does.

        Raises
        ------
        TypeError, ValueError
            If x has another dtype, or not I features.
        """
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"TableNetwork: x must be float32 or float64, got {x.dtype}")
        if x.shape[-1:] != self.feature_mean.shape:
            raise ValueError(
                f"TableNetwork: x must have {len(self.feature_mean)} features on its last axis, "
                f"got x.shape={tuple(x.shape)}"
            )
        output: Tensor = self.network(_relative(x, self.feature_mean, self.feature_scale))
        return (self.target_mean + self.target_scale * output).to(x.dtype)

    @property
    def sizes(self) -> list[int]:
        """Number of features before, between and after the layers; pruning makes some smaller."""
        outputs = (each.tables.shape[-1] for each in lmkan_layers(self.network))
        return [len(self.feature_mean), *outputs]

    def standardise_features_by(self, features: NDArray[np.float64]) -> None:
        """Take mean and scale of the features from rows [N, I]."""
        self._standardise_by("feature", features)

    def standardise_targets_by(self, targets: NDArray[np.float64]) -> None:
        """Take mean and scale of the targets from rows [N, K]."""
        self._standardise_by("target", targets)

    def _standardise_by(self, name: str, values: NDArray[np.float64]) -> None:
        mean, scale = _mean_and_scale(values)
        getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
        getattr(self, f"{name}_scale").copy_(torch.from_numpy(scale))

    def standardised(self, features: NDArray[np.float64]) -> Tensor:
        """Return features [N, I] as the network takes them, standardised, float32."""
        return _standardised("features", features, self.feature_mean, self.feature_scale)

    def standardised_targets(self, targets: NDArray[np.float64]) -> Tensor:
        """Return targets [N, K] as the network should give them, standardised, float32."""
        return _standardised("targets", targets, self.target_mean, self.target_scale)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return an optimiser's groups as :func:`parameter_groups` does.

        The first layer has a lower rate where there are many features.
        """
        first, *others = self.network
        first_lr = lr * min(1.0, _FEATURES_AT_FULL_LR / len(self.feature_mean))
        return parameter_groups(first, first_lr) + parameter_groups(nn.ModuleList(others), lr)

    def fold_(self) -> Self:
        """Make tables of everything, for inference: the branches and all normalisations."""
        fold_chain_(self.network)
        norm = self.network[0].norm
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self.feature_mean += self.feature_scale * norm.running_mean
            self.feature_scale *= torch.sqrt(norm.running_var.double() + norm.eps)
            self.network[0].norm = nn.Identity()
        return self

    def unfolded(self) -> Self:
        """Return a network that computes what this folded one does, to train it further.

        Its branches are zero, and its normalisations are those by mean 0 and variance 1: such are
        the inputs that folded tables expect.
        """
        model = type(self)(self.sizes, self.num_grids, self.bound, residual="linear")
        blocks: list[Any] = [*model.network]
        with torch.no_grad():
            for block, folded in zip(blocks, lmkan_layers(self.network), strict=True):
                block.layer.tables.copy_(folded.tables)
                block.layer.weight.zero_()
                block.layer.bias.zero_()
                block.norm.running_var.fill_(1 - block.norm.eps)
            for name, buffer in self.named_buffers(recurse=False):
                getattr(model, name).copy_(buffer)
        return model

    def fitted(
        self, feature_names: Sequence[str], target_names: Sequence[str], **description: Any
    ) -> FittedNetwork:
        """Return the folded network without torch; they share memory.

        ``description`` are further attributes of a :class:`~lmkan_cupy.fitted.FittedNetwork`.
        """
        return FittedNetwork(
            feature_names,
            target_names,
            self.bound,
            [each.tables.detach().numpy() for each in lmkan_layers(self.network)],
            *(self.feature_mean.numpy(), self.feature_scale.numpy()),
            *(self.target_mean.numpy(), self.target_scale.numpy()),
            **description,
        )

    @classmethod
    def of(cls, fitted: FittedNetwork) -> Self:
        """Return a fitted network as a folded module; they share memory."""
        first, *_ = tables = [*map(torch.from_numpy, fitted.layers)]
        sizes = [len(fitted.feature_names), *(each.shape[3] for each in tables)]
        module = cls(sizes, first.shape[1] - 1, fitted.bound).fold_()
        for layer, each in zip(lmkan_layers(module.network), tables, strict=True):
            layer.tables = nn.Parameter(each)
        for name in ("feature_mean", "feature_scale", "target_mean", "target_scale"):
            setattr(module, name, torch.from_numpy(getattr(fitted, name)))
        return module.eval()

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return predictions [N, K] in the targets' units for features [N, I]."""
        return self.in_units(evaluate(fuse(self.network), self.standardised(features)))

    def in_units(self, output: Tensor) -> NDArray[np.float64]:
        """Return the network's output [N, K] in the targets' units."""
        values: NDArray[np.float64] = (self.target_mean + self.target_scale * output).numpy()
        return values

    def error_in_units(self, loss: float) -> float:
        """Return the root of a mean square over standardised targets, in the targets' units."""
        # Not by squaring the scales, which would leave the range of float64.
        return math.sqrt(loss / len(self.target_scale)) * math.hypot(*self.target_scale.tolist())


def _mean_and_scale(values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean [K] and scale [K] of the columns of ``values`` [N, K]."""
    size = np.maximum(values.max(axis=0), -values.min(axis=0))
    # The squares of very large and very small numbers leave the range of float64. Divided by a
    # power of two, the numbers of every column are below 1, and no other bit of them changes.
    exponent = np.frexp(size)[1]
    reduced = np.ldexp(values, -exponent)
    deviation = np.ldexp(reduced.std(axis=0), exponent)
    is_constant = (np.ptp(reduced, axis=0) <= _ROUNDING) | (deviation == 0)
    scale = np.where(is_constant, np.where(size > 0, size, 1.0), deviation)
    return np.ldexp(reduced.mean(axis=0), exponent), scale


def _standardised(name: str, values: NDArray[np.float64], mean: Tensor, scale: Tensor) -> Tensor:
    """Return rows [N, K] less their mean, divided by their scale, as float32.

    Arrays of users come here in any memory layout; torch takes no negative strides.
    """
    check_unmasked("TableNetwork", name, values)
    check_dense("TableNetwork", name, values)
    ordinary = torch.tensor(np.ascontiguousarray(values, np.float64), device="cpu")
    return _relative(ordinary, mean, scale)


def _relative(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return rows [..., K] less their mean, divided by their scale, as float32.

    In float64: a date is a large number that differs little between rows.
    """
    return ((values.double() - mean) / scale).float()


def block_chain(
    sizes: Sequence[int],
    num_grids: int,
    bound: float,
    *,
    residual: Literal["linear", "relu"] | None,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return a chain of lmKAN blocks on the CPU, in float32.

    ``generator`` draws the parameters, by default torch's own; the other arguments are those of
    :class:`TableNetwork`.
    """
    options: dict[str, Any] = {"bound": bound, "residual": residual, "dtype": torch.float32}
    # First without memory, so that nothing is drawn from torch's own generator.
    chain = nn.Sequential(
        *(LMKANBlock(i, o, num_grids, device="meta", **options) for i, o in pairwise(sizes))
    ).to_empty(device="cpu")
    for each in chain.modules():
        if isinstance(each, LMKANLinear):
            each.reset_parameters(generator)
        elif isinstance(each, nn.BatchNorm1d):
            each.reset_parameters()
    return chain


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
    # Not in inference_mode, since a network may differentiate itself.
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        parts = torch.split(features, rows_at_once)
        # Copies, because a replayed CUDA graph writes every result to the same memory.
        return torch.cat([function(part).to(torch.float64, copy=True) for part in parts])
