"""Several operations as one node of autograd: a block, and the penalties of a model.

torch needs microseconds to dispatch an operation and to record it, which for narrow networks is
longer than to compute it. Here the same operations are computed unrecorded, and one function pulls
gradients back through all of them. Results and gradients are the same to the bit.

All this is for tensors of which :func:`.dispatch.is_eager` is true. Wherever torch has more to do,
the operations are recorded one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

import lmkan_cupy

from . import dispatch, exchange, operators

_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_hardtanh_backward = torch.ops.aten.hardtanh_backward.default

#: Tensors and None.
Tensors: TypeAlias = Sequence[Tensor | None]


def _one_node(
    name: str,
    compute: Callable[..., tuple[Tensor, Tensors]],
    pull_back: Callable[..., Tensors],
    one_by_one: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """Return a function of settings and tensors.

    Parameters
    ----------
    name : str
        Name of the function, for autograd's graph.
    compute : callable
        ``compute(settings, *tensors)`` returns the result, and what ``pull_back`` needs besides the
        tensors.
    pull_back : callable
        ``pull_back(settings, needs, grad, tensors, kept)`` returns the gradients of the tensors;
        ``needs`` tells which are needed.
    one_by_one : callable
        ``one_by_one(settings, *tensors)`` returns the result by operations of torch. Gradients are
        pulled back through these if they are to be differentiated or transformed themselves.
    """

    def forward(ctx: Any, settings: Any, *tensors: Tensor | None) -> Tensor:
        result, kept = compute(settings, *tensors)
        ctx.settings = settings
        ctx.save_for_backward(*tensors, *kept)
        return result

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, *needs = ctx.needs_input_grad
        saved = ctx.saved_tensors
        tensors, kept = saved[: len(needs)], saved[len(needs) :]
        if not torch.is_grad_enabled() and dispatch.is_eager([grad]):
            return None, *pull_back(ctx.settings, needs, grad, tensors, kept)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            # Views, since one of the tensors may have been computed from another.
            views = [None if each is None else each.view_as(each) for each in tensors]
            result = one_by_one(ctx.settings, *views)
            wanted: list[Any] = [each for each, need in zip(views, needs, strict=True) if need]
            grads = torch.autograd.grad(result, wanted, grad, create_graph=create_graph)
        some = iter(grads)
        return None, *[next(some) if need else None for need in needs]

    recorded = dispatch.autograd_function(name, forward=forward, backward=backward)

    def evaluate(settings: Any, *tensors: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            result: Tensor = recorded(settings, *tensors)
            return result
        return compute(settings, *tensors)[0]

    return evaluate


# --- A block --------------------------------------------------------------------------------------


class BlockSettings(NamedTuple):
    """How a block normalises: None, or whether in training, momentum and epsilon; and its limits.

    ``limits`` are where normalised features are cut, or None.
    """

    normalisation: tuple[bool, float, float] | None
    limits: tuple[float, float] | None


def _block(
    settings: BlockSettings,
    x: Tensor,
    tables: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
) -> tuple[Tensor, Tensors]:
    normalised, *statistics = _normalised(settings, x, mean, variance)
    cut = _cut(settings, normalised)
    y = exchange.run(lmkan_cupy.forward, cut, tables)
    if weight is not None:
        y += F.linear(cut, weight, bias)
    return y, (cut, *statistics)


def _normalised(
    settings: BlockSettings, x: Tensor, mean: Tensor | None, variance: Tensor | None
) -> tuple[Tensor, ...]:
    if settings.normalisation is None:
        return (x,)
    return torch.native_batch_norm(x, None, None, mean, variance, *settings.normalisation)


def _cut(settings: BlockSettings, x: Tensor) -> Tensor:
    return x if settings.limits is None else F.hardtanh(x, *settings.limits)


def _pull_back_through_block(
    settings: BlockSettings, needs: list[bool], grad_y: Tensor, tensors: Tensors, kept: Tensors
) -> Tensors:
    x, tables, weight, _, mean, variance = tensors
    cut, *statistics = kept
    need_x, need_tables, need_weight, need_bias, *_ = needs
    grad_x, grad_tables = exchange.run(
        lmkan_cupy.backward, grad_y, cut, tables, need_x=need_x, need_tables=need_tables
    )
    if need_x:
        if weight is not None:
            grad_x += grad_y.mm(weight)
        if settings.limits is not None:
            grad_x = _hardtanh_backward(grad_x, cut, *settings.limits)
        if settings.normalisation is not None:
            is_training, _, eps = settings.normalisation
            grad_x, *_ = _batch_norm_backward(
                *(grad_x, x, None, mean, variance, *statistics),
                *(is_training, eps, (True, False, False)),
            )
    grad_weight = grad_y.t().mm(cut) if need_weight and cut is not None else None
    grad_bias = grad_y.sum(0) if need_bias else None
    return grad_x, grad_tables, grad_weight, grad_bias, None, None


def _block_one_by_one(
    settings: BlockSettings,
    x: Tensor,
    tables: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
) -> Tensor:
    if settings.normalisation is not None and settings.normalisation[0]:
        mean = variance = None  # which must not be updated once more
    cut = _cut(settings, _normalised(settings, x, mean, variance)[0])
    y = operators.forward(cut, tables)
    return y if weight is None else y + F.linear(cut, weight, bias)


#: ``block(settings, x, tables, weight, bias, mean, variance)`` returns the output [B, O] of a block
#: for ``x`` [B, I] and ``tables`` [P, S, ..., O]. ``weight`` [O, I] and ``bias`` [O] are a linear
#: branch, ``mean`` and ``variance`` [I] running statistics, which training updates; None stands for
#: no branch, and for no normalisation.
block = _one_node("lmkan_cupy_block", _block, _pull_back_through_block, _block_one_by_one)


# --- The penalties of a model ---------------------------------------------------------------------


def _penalty(needs: Sequence[bool], *tables: Tensor) -> tuple[Tensor, Tensors]:
    penalties: list[Tensor] = []
    grads: list[Tensor | None] = []
    for each, need in zip(tables, needs, strict=True):
        grad = None
        if need:
            penalty, grad = exchange.run(lmkan_cupy.hessian_penalty_and_grad, each)
        else:
            penalty = exchange.run(lmkan_cupy.hessian_penalty, each)
        penalties.append(penalty)
        grads.append(grad)
    return sum(penalties[1:], penalties[0]), grads


def _pull_back_through_penalty(
    settings: Sequence[bool], needs: list[bool], grad: Tensor, tensors: Tensors, kept: Tensors
) -> Tensors:
    return [None if each is None else grad * each for each in kept]


def _penalty_one_by_one(needs: Sequence[bool], *tables: Tensor) -> Tensor:
    penalties = [operators.hessian_penalty(each, True)[0] for each in tables]
    return sum(penalties[1:], penalties[0])


#: ``penalty(needs, *tables)`` returns the sum of the Hessian penalties of ``tables``, each
#: [P, S, ..., S, O], 0-d. ``needs`` tells which of them need a gradient, which is then computed in
#: the same pass.
penalty = _one_node("lmkan_cupy_penalty", _penalty, _pull_back_through_penalty, _penalty_one_by_one)
