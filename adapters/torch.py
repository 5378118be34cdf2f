"""lmKAN layers for PyTorch: a differentiable function of tensors, layers, and their penalty.

Tensors and arrays share memory by DLPack; outputs are allocated by torch.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import lmkan_cupy
from lmkan_cupy import allocation
from lmkan_cupy.array_library import Array
from lmkan_cupy.tables import init_bound, tables_shape

#: Decades by which the penalty weight falls before it is switched off where there is no floor; the
#: authors' fitting schedule: 250 epochs of a tenth every 30.
_DECADES_TO_ZERO = 250 / 30


def lmkan(x: Tensor, tables: Tensor) -> Tensor:
    """Evaluate an lmKAN layer; differentiable twice in ``x`` and ``tables``.

    Parameters
    ----------
    x : Tensor [..., I]
        On the CPU, float32 or float64.
    tables : Tensor [P, S, S, O]
        In the dtype of ``x``; float16 and bfloat16 are widened to float32.

    Returns
    -------
    Tensor [..., O]
        In the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit: see :func:`lmkan_cupy.forward`.
    """
    _check_tensor("x", x)
    tables = _widened(tables)
    _check_tensor("tables", tables)
    return _forward(x, tables)


def hessian_penalty(module: nn.Module) -> Tensor:
    """Return the sum of the Hessian penalties of all lmKAN layers of a model, 0 for none."""
    layers = [each for each in module.modules() if isinstance(each, LMKANLinear)]
    return sum((each.hessian_penalty() for each in layers), start=torch.zeros(()))


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
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = tables_shape("LMKANLinear", in_features, out_features, num_grids)
        _check_residual("LMKANLinear", residual, num_grids)
        self.in_features = in_features
        self.out_features = out_features
        self.residual = residual
        self.init_scale = init_scale
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
        y = lmkan(x, self.tables)
        if self.weight is None:
            return y
        branch = torch.relu(x) if self.residual == "relu" else x
        return y + nn.functional.linear(branch, self.weight, self.bias)

    def hessian_penalty(self) -> Tensor:
        """Return the roughness of the tables: :func:`lmkan_cupy.hessian_penalty`."""
        tables = _widened(self.tables)
        _check_tensor("tables", tables)
        return _hessian_penalty(tables)

    @torch.no_grad()
    def fold_(self) -> "LMKANLinear":
        """Absorb the residual branch into the tables, in place, and remove it."""
        if self.residual is not None:
            fold = lmkan_cupy.fold_relu if self.residual == "relu" else lmkan_cupy.fold_linear
            branch = (_widened(each) for each in (self.weight, self.bias) if each is not None)
            self.tables.copy_(_run(fold, _widened(self.tables), *branch))
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
            f"num_grids={self.num_grids}, residual={self.residual!r}, engine='cpu'"
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


class HessianSchedule:
    """The authors' fitting schedule: a strong penalty first, relaxed step by step.

    In the first part the weight decays exponentially from ``start`` to ``floor`` at a constant
    learning rate; then it stays at ``floor`` while the learning rate follows a cosine to zero. For
    ``floor=0`` the weight decays as in the authors' schedule, by a tenth every 30 of 250 epochs,
    before it is switched off.

    Parameters
    ----------
    total_steps : int
        Steps of the whole fit.
    start, floor : float
        Penalty weights, ``start > 0`` and ``0 <= floor <= start``.
    decay_fraction : float
        Share of the steps in the first part, in [0, 1].
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start: float = 1.0,
        floor: float = 0.0,
        decay_fraction: float = 0.5,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"HessianSchedule: total_steps must be at least 1, got {total_steps}")
        if not 0 <= floor <= start or start <= 0:
            raise ValueError(
                "HessianSchedule: floor and start must be 0 <= floor <= start and start > 0, "
                f"got floor={floor}, start={start}"
            )
        if not 0 <= decay_fraction <= 1:
            raise ValueError(
                f"HessianSchedule: decay_fraction must be in [0, 1], got {decay_fraction}"
            )
        self.total_steps = total_steps
        self.start = start
        self.floor = floor
        self.decay_fraction = decay_fraction

    def __call__(self, step: int) -> tuple[float, float]:
        """Return ``(penalty_weight, learning_rate_factor)`` of a step counted from 0."""
        decay_steps = self.decay_fraction * self.total_steps
        if step < decay_steps:
            end = self.floor or self.start * 10**-_DECADES_TO_ZERO
            return self.start * (end / self.start) ** (step / decay_steps), 1.0
        progress = (step - decay_steps) / max(self.total_steps - decay_steps, 1)
        return self.floor, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tables: Tensor) -> Any:
        ctx.save_for_backward(x, tables)
        return _run(lmkan_cupy.forward, x, tables)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        return _backward(grad_y, *ctx.saved_tensors, *ctx.needs_input_grad)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_y: Tensor, x: Tensor, tables: Tensor, need_x: bool, need_tables: bool
    ) -> Any:
        ctx.save_for_backward(grad_y, x, tables)
        ctx.set_materialize_grads(False)
        return _run(lmkan_cupy.backward, grad_y, x, tables, need_x=need_x, need_tables=need_tables)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ggx: Tensor | None, ggt: Tensor | None) -> Any:
        if ggx is None and ggt is None:
            return (None,) * 5
        grads = _run(lmkan_cupy.backward_backward, ggx, ggt, *ctx.saved_tensors)
        return (*grads, None, None)


class _HessianPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tables: Tensor) -> Any:
        ctx.save_for_backward(tables)
        return _run(lmkan_cupy.hessian_penalty, tables)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * _hessian_penalty_grad(*ctx.saved_tensors)


class _HessianPenaltyGrad(torch.autograd.Function):
    """``tables -> dR/dT``: linear and symmetric, so it is its own derivative."""

    @staticmethod
    def forward(ctx: Any, tables: Tensor) -> Any:
        return _run(lmkan_cupy.hessian_penalty_grad, tables)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _hessian_penalty_grad(grad)


_forward: Callable[..., Tensor] = _Forward.apply
_backward: Callable[..., Any] = _Backward.apply
_hessian_penalty: Callable[..., Tensor] = _HessianPenalty.apply
_hessian_penalty_grad: Callable[..., Tensor] = _HessianPenaltyGrad.apply


def _run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of the core on tensors; results are allocated by torch."""
    arrays = (_array(each) if isinstance(each, Tensor) else each for each in arguments)
    with allocation.allocator(_allocate):
        results = function(*arrays, **options)
    if not isinstance(results, tuple):
        return torch.from_numpy(results)
    return tuple(None if each is None else torch.from_numpy(each) for each in results)


def _refined(tables: Tensor, num_grids: int) -> Tensor:
    refined: Tensor = _run(lmkan_cupy.refine, _widened(tables), num_grids)
    return refined.to(tables.dtype)


def _array(tensor: Tensor) -> Array:
    return np.from_dlpack(tensor.detach())


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    array: Array = torch.empty(shape, dtype=getattr(torch, dtype.name)).numpy()
    return array


def _widened(tables: Tensor) -> Tensor:
    return tables.float() if tables.dtype in (torch.float16, torch.bfloat16) else tables


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise TypeError(
            f"lmkan: {name} is on {tensor.device}, which has no engine in this version; "
            f"use {name}.cpu()"
        )
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"lmkan: {name} must be float32 or float64, got {tensor.dtype}")


def _check_residual(function: str, residual: str | None, num_grids: int) -> None:
    if residual not in (None, "linear", "relu"):
        raise ValueError(f"{function}: residual must be None, 'linear' or 'relu', got {residual!r}")
    if residual == "relu" and num_grids % 2:
        raise ValueError(
            f"{function}: residual='relu' needs an even num_grids (a knot at 0), got {num_grids}"
        )
