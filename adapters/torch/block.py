"""``LMKANBlock`` as one node of autograd: normalisation, cut, layer and branch.

torch needs microseconds to dispatch an operation and to record it, which for the narrow networks
that are built of blocks is longer than to compute it. Here the same operations are computed
unrecorded, and one function pulls gradients back through all of them, to the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import lmkan_cupy

from . import dispatch, exchange, operators

_batch_norm_backward = torch.ops.aten._batch_norm_impl_index_backward.default
_hardtanh_backward = torch.ops.aten.hardtanh_backward.default


def evaluate(*arguments: Any) -> Tensor:
    """Return the output [B, O] of a block, of tensors for which :func:`.dispatch.is_eager` is true.

    Parameters
    ----------
    x : Tensor [B, I]
    tables : Tensor [P, S, S, O]
    weight, bias : Tensor [O, I] and [O], or None
        A linear branch.
    mean, variance : Tensor [I], or None
        Running statistics, which training updates.
    normalisation : (bool, float, float) or None
        Whether training, the momentum of the statistics, and what is added to the variance.
    limits : (float, float) or None
        Where the normalised features are cut.
    """
    if torch.is_grad_enabled():
        y: Tensor = _recorded(*arguments)
        return y
    return _steps(operators.forward_kernel, *arguments)[0]


def _steps(
    layer: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    tables: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    normalisation: tuple[bool, float, float] | None,
    limits: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Any]:
    """Return the output, what the layer gets, and what ``_batch_norm_backward`` takes."""
    statistics: Any = None, None, None, None
    if normalisation is not None:
        options = *normalisation, torch.backends.cudnn.enabled
        x, *statistics = torch._batch_norm_impl_index(x, None, None, mean, variance, *options)
    if limits is not None:
        x = F.hardtanh(x, *limits)
    y = layer(x, tables)
    if weight is not None:
        y = y + F.linear(x, weight, bias)
    return y, x, statistics


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.normalisation, ctx.limits = arguments
        y, cut, (*statistics, ctx.implementation) = _steps(operators.forward_kernel, *arguments)
        ctx.save_for_backward(*tensors, cut, *statistics)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or not dispatch.is_eager([grad_y]):
            return _pull_back_by_steps(ctx, grad_y)
        need_x, need_tables, need_weight, need_bias, *_ = ctx.needs_input_grad
        x, tables, weight, _, mean, variance, cut, *statistics, reserve = ctx.saved_tensors
        grad_x, grad_tables = exchange.run(
            lmkan_cupy.backward, grad_y, cut, tables, need_x=need_x, need_tables=need_tables
        )
        if need_x:
            if weight is not None:
                grad_x += grad_y.mm(weight)
            if ctx.limits is not None:
                grad_x = _hardtanh_backward(grad_x, cut, *ctx.limits)
            if ctx.normalisation is not None:
                is_training, _, eps = ctx.normalisation
                grad_x, *_ = _batch_norm_backward(
                    *(ctx.implementation, x, grad_x, None, mean, variance, *statistics),
                    *(is_training, eps, (True, False, False), reserve),
                )
        grad_weight = grad_y.t().mm(cut) if need_weight else None
        grad_bias = grad_y.sum(0) if need_bias else None
        return grad_x, grad_tables, grad_weight, grad_bias, *_NO_GRADIENTS


_NO_GRADIENTS = (None,) * 4  # of statistics and numbers

# As in `dispatch.recorder`.
_recorded: Callable[..., Tensor] = super(torch.autograd.Function, _Block).apply


def _pull_back_by_steps(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """Pull a gradient back by operations that torch can differentiate and transform."""
    *inputs, mean, variance = ctx.saved_tensors[:6]
    if ctx.normalisation is not None and ctx.normalisation[0]:
        mean = variance = None  # not updated once more
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(grad_y.device.type, enabled=False):
        # Views, since one input may have been computed from another.
        views = [None if each is None else each.view_as(each) for each in inputs]
        settings = ctx.normalisation, ctx.limits
        y, *_ = _steps(operators.forward, *views, mean, variance, *settings)
        needs = ctx.needs_input_grad[:4]
        wanted = [each for each, need in zip(views, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=create_graph))
    return *(next(grads) if need else None for need in needs), *_NO_GRADIENTS
