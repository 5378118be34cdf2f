"""Modules: the layer that stands where ``nn.Linear`` stands, and the safe block around it."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy.tables import init_bound, tables_shape

from . import exchange, functional
from .functional import Engine


def hessian_penalty(module: nn.Module) -> Tensor:
    """Return the sum of the Hessian penalties of all lmKAN layers of a model, 0 for none."""
    layers = [each for each in module.modules() if isinstance(each, LMKANLinear)]
    penalties = [each.hessian_penalty() for each in layers]
    return sum(penalties[1:], penalties[0]) if penalties else torch.zeros(())


class LMKANLinear(nn.Module):
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
        residual: Literal["linear", "relu"] | None = None,
        init_scale: float = 0.1,
        engine: Engine = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = tables_shape("LMKANLinear", in_features, out_features, num_grids)
        _check_residual("LMKANLinear", residual, num_grids)
        functional.check_engine("LMKANLinear", engine)
        self.in_features = in_features
        self.out_features = out_features
        self.residual = residual
        self.init_scale = init_scale
        self.engine = engine
        self.tables = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if residual is not None:
            self.weight = nn.Parameter(
                torch.empty((out_features, in_features), device=device, dtype=dtype)
            )
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def num_grids(self) -> int:
        """Grid intervals per axis."""
        return self.tables.shape[1] - 1

    def reset_parameters(self) -> None:
        """Draw new parameters; the branch is drawn as ``nn.Linear`` draws its own."""
        bound = init_bound(self.in_features, self.init_scale)
        nn.init.uniform_(self.tables, -bound, bound)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(
                    parameter, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features)
                )

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
        branch = torch.relu(x) if self.residual == "relu" else x
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return y + nn.functional.linear(branch, weight, bias)

    def hessian_penalty(self) -> Tensor:
        """Return the roughness of the tables: :func:`lmkan_cupy.hessian_penalty`."""
        return functional.hessian_penalty_of(self.tables, engine=self.engine)

    @torch.no_grad()
    def fold_(self) -> "LMKANLinear":
        """Absorb the residual branch into the tables, in place, and remove it."""
        if self.weight is not None and self.bias is not None:
            fold = lmkan_cupy.fold_relu if self.residual == "relu" else lmkan_cupy.fold_linear
            arguments = (_widened(each) for each in (self.tables, self.weight, self.bias))
            self.tables.copy_(exchange.run(fold, *arguments))
            self.weight = self.bias = self.residual = None
        return self

    @torch.no_grad()
    def refine_(
        self, num_grids: int, optimizer: torch.optim.Optimizer | None = None
    ) -> "LMKANLinear":
        """Go over to another grid, in place: :func:`lmkan_cupy.refine`.

        ``tables`` stays the same Parameter, so an optimiser keeps it; pass the ``optimizer`` to
        have its moments resampled too, else its next step fails on their old shape.
        """
        _check_residual("refine_", self.residual, num_grids)
        states = optimizer.state.get(self.tables, {}) if optimizer is not None else {}
        for name, state in states.items():
            if isinstance(state, Tensor) and state.shape == self.tables.shape:
                states[name] = _refined(state, num_grids)
                if (state >= 0).all():  # extrapolation must not make a mean of squares negative
                    states[name].clamp_(min=0)
        self.tables.data = _refined(self.tables, num_grids)
        self.tables.grad = None
        return self

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_grids={self.num_grids}, residual={self.residual!r}, "
            f"engine={self.engine or self.tables.device.type!r}"
        )


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
    refined: Tensor = exchange.run(lmkan_cupy.refine, _widened(tables), num_grids)
    return refined.to(tables.dtype)


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
