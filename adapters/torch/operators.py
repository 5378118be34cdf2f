"""The operators ``torch.ops.lmkan_cupy``: the functions of the core, registered with torch.

For each operator torch is told its kernel, the shapes and dtypes of its results, its derivative and
its rule for vmap; the table ``_OPERATORS`` lists them. Operators are defined by their schema and
not by ``torch.library.custom_op``, which costs more time per call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lmkan_cupy
from lmkan_cupy import array_checks

from . import dispatch, exchange
from .exchange import dtype_name

# --- Kernels --------------------------------------------------------------------------------------


def _forward(x: Tensor, tables: Tensor) -> Any:
    return exchange.run(lmkan_cupy.forward, x, tables)


def _backward(
    grad_y: Tensor, x: Tensor, tables: Tensor, need_x: bool, need_tables: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_tables = exchange.run(
        lmkan_cupy.backward, grad_y, x, tables, need_x=need_x, need_tables=need_tables
    )
    # An operator returns only tensors: an empty one with as many axes stands for "not needed".
    return (
        x.new_empty([0] * x.ndim) if grad_x is None else grad_x,
        x.new_empty([0] * tables.ndim) if grad_tables is None else grad_tables,
    )


def _backward_backward(
    ggx: Tensor | None, ggt: Tensor | None, grad_y: Tensor, x: Tensor, tables: Tensor
) -> Any:
    return exchange.run(lmkan_cupy.backward_backward, ggx, ggt, grad_y, x, tables)


def _hessian_penalty(tables: Tensor, need_grad: bool) -> Any:
    if need_grad:
        return exchange.run(lmkan_cupy.hessian_penalty_and_grad, tables)
    penalty = exchange.run(lmkan_cupy.hessian_penalty, tables)
    return penalty, penalty.new_empty([0] * tables.ndim)


# --- Shapes and dtypes only, for compilers, fake and meta tensors ---------------------------------


def _forward_like(x: Tensor, tables: Tensor) -> Tensor:
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    return x.new_empty((*x.shape[:-1], tables.shape[3]))


def _backward_like(
    grad_y: Tensor, x: Tensor, tables: Tensor, need_x: bool, need_tables: bool
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else [0] * x.ndim),
        x.new_empty(tables.shape if need_tables else [0] * tables.ndim),
    )


def _backward_backward_like(
    ggx: Tensor | None, ggt: Tensor | None, grad_y: Tensor, x: Tensor, tables: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(grad_y.shape), x.new_empty(x.shape), x.new_empty(tables.shape)


def _hessian_penalty_like(tables: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    array_checks.check_tables_like("hessian_penalty", tables.shape, dtype_name(tables.dtype))
    dtype = torch.float64 if tables.dtype == torch.float64 else torch.float32
    return (
        tables.new_empty((), dtype=dtype),
        tables.new_empty(tables.shape if need_grad else [0] * tables.ndim, dtype=dtype),
    )


# --- Derivatives ----------------------------------------------------------------------------------
# Gradients of half tables are float32; autograd expects them in the dtype of the tables.


def _save_tensors(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(each for each in inputs if isinstance(each, Tensor)))


def _forward_vjp(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, tables = ctx.saved_tensors
    need_x, need_tables = ctx.needs_input_grad
    grad_x, grad_tables = backward(grad_y, x, tables, need_x, need_tables)
    return grad_x if need_x else None, grad_tables.to(tables.dtype) if need_tables else None


def _save_for_backward_vjp(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save_tensors(ctx, inputs, output)
    ctx.set_materialize_grads(False)
    *_, ctx.need_x, ctx.need_tables = inputs


def _backward_vjp(ctx: Any, ggx: Tensor | None, ggt: Tensor | None) -> tuple[Any, ...]:
    ggx, ggt = ggx if ctx.need_x else None, ggt if ctx.need_tables else None
    if ggx is None and ggt is None:
        return (None,) * 5
    grad_y, x, tables = ctx.saved_tensors
    grad_grad_y, grad_x, grad_tables = backward_backward(ggx, ggt, grad_y, x, tables)
    return grad_grad_y, grad_x, grad_tables.to(tables.dtype), None, None


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _backward_backward_vjp(ctx: Any, *cotangents: Tensor | None) -> None:
    raise NotImplementedError(
        "lmkan: third derivatives are not implemented; engine='torch' has them"
    )


def _save_for_penalty_vjp(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    tables, ctx.need_grad = inputs
    ctx.dtype = tables.dtype
    ctx.save_for_backward(output[1] if ctx.need_grad else tables)


def _hessian_penalty_vjp(
    ctx: Any, of_penalty: Tensor | None, of_grad: Tensor | None
) -> tuple[Tensor | None, None]:
    """The penalty is a quadratic form: its gradient is linear and symmetric in the tables."""
    terms = []
    if of_penalty is not None:
        (kept,) = ctx.saved_tensors
        grad = kept if ctx.need_grad else hessian_penalty(kept, True)[1]
        terms.append(of_penalty * grad)  # not in place: there may be a second backward
    if of_grad is not None and ctx.need_grad:
        terms.append(hessian_penalty(of_grad, True)[1])
    return sum(terms[1:], start=terms[0]).to(ctx.dtype) if terms else None, None


# --- Autocast -------------------------------------------------------------------------------------


def under_autocast(
    evaluate: Callable[[Tensor, Tensor], Tensor], x: Tensor, tables: Tensor
) -> Tensor:
    """Evaluate a layer by the rules of autocast.

    ``x`` is computed in float32, ``tables`` in the autocast dtype on CUDA and in float32 elsewhere,
    and ``y`` has the autocast dtype. As everywhere in torch, float64 is left alone.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        if torch.float64 in (x.dtype, tables.dtype):
            return evaluate(x, tables)
        tables = tables.to(dtype if device == "cuda" else torch.float32)
        return evaluate(x.float(), tables).to(dtype)


def _forward_under_autocast(x: Tensor, tables: Tensor) -> Tensor:
    return under_autocast(forward, x, tables)


# --- vmap -----------------------------------------------------------------------------------------


def _in_front(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    """Return a tensor with its mapped axis first; a tensor without one is repeated along it."""
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _one_by_one(operator: Callable[..., Any], info: Any, axes: Any, arguments: Any) -> Any:
    """Return the stacked results of an operator for each index along the mapped axes."""
    members = [
        [
            each if axis is None else each.select(axis, index)
            for each, axis in zip(arguments, axes, strict=True)
        ]
        for index in range(info.batch_size)
    ]
    results = [operator(*member) for member in members]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def _forward_vmap(info: Any, axes: Any, x: Tensor, tables: Tensor) -> Any:
    x_axis, tables_axis = axes
    if tables_axis is None:  # samples may have any number of leading axes
        return forward(x.movedim(x_axis, 0), tables), 0
    return _one_by_one(forward, info, axes, (x, tables))


def _backward_vmap(
    info: Any, axes: Any, grad_y: Tensor, x: Tensor, tables: Tensor, *needs: bool
) -> Any:
    need_x, need_tables = needs
    if axes[2] is None and not need_tables:
        samples = (
            _in_front(each, axis, info.batch_size)
            for each, axis in ((grad_y, axes[0]), (x, axes[1]))
        )
        return backward(*samples, tables, need_x, False), (0, None)
    return _one_by_one(backward, info, axes, (grad_y, x, tables, *needs))


def _backward_backward_vmap(info: Any, axes: Any, *arguments: Any) -> Any:
    return _one_by_one(backward_backward, info, axes, arguments)


def _hessian_penalty_vmap(info: Any, axes: Any, *arguments: Any) -> Any:
    return _one_by_one(hessian_penalty, info, axes, arguments)


# --- Registration ---------------------------------------------------------------------------------


class _Operator(NamedTuple):
    """What torch is told about an operator.

    ``like`` gives results of the right shapes and dtypes without values; ``vjp`` is the derivative
    (vector-Jacobian product), from what ``saved`` kept of a call.
    """

    schema: str
    kernel: Callable[..., Any]
    like: Callable[..., Any]
    vjp: Callable[..., Any]
    saved: Callable[..., None]
    vmap: Callable[..., Any]


_OPERATORS = {
    "forward": _Operator(
        "(Tensor x, Tensor tables) -> Tensor",
        *(_forward, _forward_like, _forward_vjp, _save_tensors, _forward_vmap),
    ),
    "backward": _Operator(
        "(Tensor grad_y, Tensor x, Tensor tables, bool need_x, bool need_tables)"
        " -> (Tensor, Tensor)",
        *(_backward, _backward_like, _backward_vjp, _save_for_backward_vjp, _backward_vmap),
    ),
    "backward_backward": _Operator(
        "(Tensor? ggx, Tensor? ggt, Tensor grad_y, Tensor x, Tensor tables)"
        " -> (Tensor, Tensor, Tensor)",
        *(_backward_backward, _backward_backward_like, _backward_backward_vjp, _save_nothing),
        _backward_backward_vmap,
    ),
    "hessian_penalty": _Operator(
        "(Tensor tables, bool need_grad) -> (Tensor, Tensor)",
        *(_hessian_penalty, _hessian_penalty_like, _hessian_penalty_vjp, _save_for_penalty_vjp),
        _hessian_penalty_vmap,
    ),
}


def _register() -> Any:
    """Register the operators; they exist as long as the returned library does."""
    to: Any = torch.library
    library = to.Library("lmkan_cupy", "DEF")
    for name, operator in _OPERATORS.items():
        library.define(name + operator.schema, tags=torch.Tag.pt2_compliant_tag)
        library.impl(name, operator.kernel, "CPU")
        library.impl(name, operator.kernel, "CUDA")
        qualified = f"lmkan_cupy::{name}"
        to.register_fake(qualified, operator.like, lib=library)
        to.register_autograd(qualified, operator.vjp, setup_context=operator.saved, lib=library)
        to.register_vmap(qualified, operator.vmap, lib=library)
    library.impl("forward", _forward_under_autocast, "AutocastCPU")
    library.impl("forward", _forward_under_autocast, "AutocastCUDA")
    return library


def _call(name: str) -> Callable[..., Any]:
    """Return a function that calls an operator the cheapest way, see :mod:`.dispatch`."""
    _, kernel, _, vjp, saved, vmap = _OPERATORS[name]
    return dispatch.call(name, kernel=kernel, vjp=vjp, saved=saved, vmap=vmap)


_library = _register()

forward: Callable[..., Tensor] = _call("forward")
backward: Callable[..., tuple[Tensor, Tensor]] = _call("backward")
backward_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = _call("backward_backward")
hessian_penalty: Callable[..., tuple[Tensor, Tensor]] = _call("hessian_penalty")
