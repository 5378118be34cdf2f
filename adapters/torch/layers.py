"""Modules: the layer that stands where ``nn.Linear`` stands, and the safe block around it."""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

import lmkan_cupy
from lmkan_cupy.tables import init_bound, tables_shape

from . import exchange, functional
from .functional import Engine

#: Branch beside the tables.
Residual: TypeAlias = Literal["linear", "relu"] | None


def hessian_penalty(module: nn.Module) -> Tensor:
    """Return the sum of the Hessian penalties of all lmKAN layers of a model, 0 for none.

    Where tables require a gradient, it comes from the same pass over them as the value and is kept
    until the backward: as many bytes as tables in float32, or in float64 if they are.
    """
    layers = [each for each in module.modules() if isinstance(each, TablesModule)]
    penalties = [each.hessian_penalty() for each in layers]
    return sum(penalties[1:], penalties[0]) if penalties else torch.zeros(())


class TablesModule(nn.Module):
    """A module with ``tables [..., P, S, S, O]``, which :func:`hessian_penalty` finds."""

    tables: Tensor
    engine: Engine

    @property
    def num_grids(self) -> int:
        """Grid intervals per axis."""
        return self.tables.shape[-2] - 1

    def hessian_penalty(self) -> Tensor:
        """Return the roughness of the tables: :func:`lmkan_cupy.hessian_penalty`."""
        tables = self.tables.flatten(0, -4)  # groups and pairs
        return functional.hessian_penalty_of(tables, engine=self.engine)

    def engine_name(self) -> str:
        """Return what computes: the device's engine, or plain torch."""
        return self.engine or self.tables.device.type


class Layer(TablesModule):
    """What the layers share: parameters, folding, refining.

    Parameters
    ----------
    in_features, out_features, num_grids
        Of one group: a function of so many features.
    groups : tuple of int
        Leading axes of the tables.
    kernel_size : tuple of int
        Trailing axes of the branch's weight; with them it has ``in_features`` elements per output.
    residual, init_scale, engine, device, dtype
        As of :class:`LMKANLinear`.
    """

    tables: nn.Parameter
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int,
        *,
        groups: tuple[int, ...] = (),
        kernel_size: tuple[int, ...] = (),
        residual: Residual,
        init_scale: float,
        engine: Engine,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        shape = tables_shape(name, in_features, out_features, num_grids)
        _check_residual(name, residual, num_grids)
        functional.check_engine(name, engine)
        self.residual = residual
        self.init_scale = init_scale
        self.engine = engine
        self._features = in_features
        self.tables = nn.Parameter(torch.empty((*groups, *shape), device=device, dtype=dtype))
        if residual is None:
            self.weight = self.bias = None
        else:
            outputs = math.prod(groups) * out_features
            columns = in_features // math.prod(kernel_size)
            self.weight = nn.Parameter(
                torch.empty((outputs, columns, *kernel_size), device=device, dtype=dtype)
            )
            self.bias = nn.Parameter(torch.empty(outputs, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters; the branch is drawn as torch's own layers draw theirs."""
        bound = init_bound(self._features, self.init_scale)
        nn.init.uniform_(self.tables, -bound, bound)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                bound = 1 / math.sqrt(self._features)
                nn.init.uniform_(parameter, -bound, bound)

    @torch.no_grad()
    def fold_(self) -> Self:
        """Absorb the residual branch into the tables, in place, and remove it."""
        if self.weight is not None and self.bias is not None:
            fold = lmkan_cupy.fold_relu if self.residual == "relu" else lmkan_cupy.fold_linear
            groups = self.tables.reshape(-1, *self.tables.shape[-4:])
            weights = self.weight.flatten(1).chunk(len(groups))
            parts = zip(groups, weights, self.bias.chunk(len(groups)), strict=True)
            folded = [exchange.run(fold, *map(_widened, part)) for part in parts]
            self.tables.copy_(torch.stack(folded).reshape(self.tables.shape))
            self.weight = self.bias = self.residual = None
        return self

    @torch.no_grad()
    def refine_(self, num_grids: int, optimizer: torch.optim.Optimizer | None = None) -> Self:
        """Go over to another grid, in place: :func:`lmkan_cupy.refine`.

        ``tables`` stays the same Parameter, so an optimiser keeps it; pass the ``optimizer`` to
        have its moments resampled too, else its next step fails on their old shape. Call it between
        steps: no backward goes through a forward on the old grid any more.
        """
        _check_residual("refine_", self.residual, num_grids)
        states = optimizer.state.get(self.tables, {}) if optimizer is not None else {}
        for name, state in states.items():
            if isinstance(state, Tensor) and state.shape == self.tables.shape:
                states[name] = _resampled(state, num_grids)
        self.tables.data = _refined(self.tables, num_grids)
        self.tables.grad = None
        return self

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return (
            f"num_grids={self.num_grids}, residual={self.residual!r}, engine={self.engine_name()!r}"
        )

    def _activation(self, x: Tensor) -> Tensor:
        """Return what the branch's weight is applied to."""
        return torch.relu(x) if self.residual == "relu" else x


class LMKANLinear(Layer):
    """An lmKAN layer that stands where ``nn.Linear`` stands, ``[..., I] -> [..., O]``.

    Inputs should be standardised and bounded: see :class:`LMKANBlock`.

    Parameters
    ----------
    in_features, out_features : int
        Sizes I and O.
    num_grids : int
        Grid intervals per axis, G >= 3; the paper advises to start with 8 to 10.
    residual : {None, "linear", "relu"}
        A branch ``weight @ act(x) + bias`` added to the output, which steadies the early training;
        :meth:`fold_` absorbs it into the tables ("relu" needs an even ``num_grids``).
    init_scale : float
        The tables are drawn from U(-a, a), ``a = init_scale / sqrt(in_features)``.
    engine : {None, "torch"}
        None computes on the engine of the device, see :func:`lmkan`.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    tables : Parameter [P, S, S, O]
        Values of the inner functions at the knots, P = ceil(I / 2), S = G + 1.
    weight, bias : Parameter [O, I] and [O], or None
        The residual branch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int = 10,
        *,
        residual: Residual = None,
        init_scale: float = 0.1,
        engine: Engine = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            num_grids,
            residual=residual,
            init_scale=init_scale,
            engine=engine,
            device=device,
            dtype=dtype,
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Return ``y [..., O]`` for ``x [..., I]``."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"LMKANLinear: x must have {self.in_features} features on its last axis, "
                f"got x.shape={tuple(x.shape)}"
            )
        y = functional.lmkan(x, self.tables, engine=self.engine)
        if self.weight is None or self.bias is None:
            return y
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return y + nn.functional.linear(self._activation(x), weight, bias)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {super().extra_repr()}"


class LMKANBlock(nn.Module):
    """The safe building block: batch normalisation, bounds, :class:`LMKANLinear`.

    The grid expects standardised inputs. A bilinear function goes on quadratically in its pair, so
    one outlier can ruin a deep network's output: inputs are cut at ``+-bound``.

    Parameters
    ----------
    in_features, out_features, num_grids
        As in :class:`LMKANLinear`.
    bound : float or None
        In standard deviations; None leaves the inputs unbounded.
    **layer_arguments
        Further arguments of :class:`LMKANLinear`.
    """

    norm: nn.BatchNorm1d | nn.Identity

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int = 10,
        *,
        bound: float | None = 3.0,
        **layer_arguments: Any,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(
            in_features,
            affine=False,
            device=layer_arguments.get("device"),
            dtype=layer_arguments.get("dtype"),
        )
        self.bound = nn.Identity() if bound is None else nn.Hardtanh(-bound, bound)
        self.layer = LMKANLinear(in_features, out_features, num_grids, **layer_arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``y [..., O]`` for ``x [..., I]``; statistics are taken over all leading axes."""
        normed = self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        y: Tensor = self.layer(self.bound(normed))
        return y


def _refined(tables: Tensor, num_grids: int) -> Tensor:
    *groups, pairs, num_knots, _, out_features = tables.shape
    flat = _widened(tables).reshape(-1, num_knots, num_knots, out_features)
    refined: Tensor = exchange.run(lmkan_cupy.refine, flat, num_grids)
    shape = (*groups, pairs, *refined.shape[1:])
    return refined.to(tables.dtype).reshape(shape).contiguous()


def _resampled(moments: Tensor, num_grids: int) -> Tensor:
    """Return an optimiser's moments ``[..., S, S, O]`` at the knots of another grid.

    Unlike tables they are not extrapolated: every new one is a mean of old ones. So a mean of
    squares stays at least the square of the mean, and Adam's next step as small as the last.
    """
    old = lmkan_cupy.sigma_grid(moments.shape[-2] - 1, dtype="float64")
    new = lmkan_cupy.sigma_grid(num_grids, dtype="float64")
    weights = torch.from_numpy(np.stack([np.interp(new, old, each) for each in np.eye(len(old))]))
    wide = _widened(moments)
    weights = weights.to(wide)  # [S, new S]
    resampled = torch.einsum("...ijo,ik,jl->...klo", wide, weights, weights).to(moments.dtype)
    return resampled.contiguous()  # as the tables: fused optimisers want that


def _widened(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype of sums."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_residual(function: str, residual: str | None, num_grids: int) -> None:
    if residual not in (None, "linear", "relu"):
        raise ValueError(f"{function}: residual must be None, 'linear' or 'relu', got {residual!r}")
    if residual == "relu" and num_grids % 2:
        raise ValueError(
            f"{function}: residual='relu' needs an even num_grids (a knot at 0), got {num_grids}"
        )
