"""The operators ``torch.ops.lmkan_cupy``: the functions of the core, registered with torch.

For each operator torch is told its kernel, the shapes and dtypes of its results, its derivative and
its rule for vmap; the table ``_OPERATORS`` lists them. Operators are defined by their schema and
not by ``torch.library.custom_op``, which costs more time per call.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import lmkan_cupy
from lmkan_cupy import array_checks

from . import dispatch, exchange
from .exchange import dtype_name

# --- Kernels --------------------------------------------------------------------------------------


def _not_needed(argument: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what stands for a gradient that is not needed, as an operator returns only tensors.

    It is empty and has as many axes as the argument.
    """
    return argument.new_empty([0] * argument.ndim, dtype=dtype)


def _forward(x: Tensor, tables: Tensor) -> Any:
    return exchange.run(lmkan_cupy.forward, x, tables)


def _jvp(tangent_x: Tensor | None, tangent_tables: Tensor | None, x: Tensor, tables: Tensor) -> Any:
    return exchange.run(lmkan_cupy.jvp, tangent_x, tangent_tables, x, tables)


def _backward(
    grad_y: Tensor, x: Tensor, tables: Tensor, need_x: bool, need_tables: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_tables = exchange.run(
        lmkan_cupy.backward, grad_y, x, tables, need_x=need_x, need_tables=need_tables
    )
    return (
        _not_needed(x, x.dtype) if grad_x is None else grad_x,
        _not_needed(tables, x.dtype) if grad_tables is None else grad_tables,
    )


def _backward_backward(
    ggx: Tensor | None, ggt: Tensor | None, grad_y: Tensor, x: Tensor, tables: Tensor
) -> Any:
    return exchange.run(lmkan_cupy.backward_backward, ggx, ggt, grad_y, x, tables)


def _hessian_penalty(tables: Tensor, need_grad: bool) -> Any:
    if need_grad:
        return exchange.run(lmkan_cupy.hessian_penalty_and_grad, tables)
    penalty = exchange.run(lmkan_cupy.hessian_penalty, tables)
    return penalty, _not_needed(tables, penalty.dtype)


def split(arrays: Iterable[Any]) -> list[Any]:
    """Return the layers of a network: each tables, or weight and bias."""
    rest = iter(arrays)
    return [each if each.ndim > 2 else (each, next(rest)) for each in rest]


def _network(
    x: Tensor,
    arrays: list[Tensor],
    bounds: list[float],
    shift: Tensor | None,
    scale: Tensor | None,
) -> Any:
    def network_forward(x: Any, shift: Any, scale: Any, *arrays: Any) -> Any:
        layers = split(arrays)
        return lmkan_cupy.network_forward(x, layers, shift=shift, scale=scale, bound=bounds)

    return exchange.run(network_forward, x, shift, scale, *arrays)


def _network_grad(
    grad_y: Tensor,
    x: Tensor,
    arrays: list[Tensor],
    bounds: list[float],
    shift: Tensor | None,
    scale: Tensor | None,
) -> Any:
    def network_grad(grad_y: Any, x: Any, shift: Any, scale: Any, *arrays: Any) -> Any:
        layers = split(arrays)
        return lmkan_cupy.network_value_and_grad(
            x, layers, grad_y=grad_y, shift=shift, scale=scale, bound=bounds
        )[1]

    return exchange.run(network_grad, grad_y, x, shift, scale, *arrays)


# --- Shapes and dtypes only, for compilers, fake and meta tensors ---------------------------------


def _forward_like(x: Tensor, tables: Tensor) -> Tensor:
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    return x.new_empty((*x.shape[:-1], tables.shape[-1]))


def _jvp_like(
    tangent_x: Tensor | None, tangent_tables: Tensor | None, x: Tensor, tables: Tensor
) -> Tensor:
    return x.new_empty((*x.shape[:-1], tables.shape[-1]))


def _backward_like(
    grad_y: Tensor, x: Tensor, tables: Tensor, need_x: bool, need_tables: bool
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape) if need_x else _not_needed(x, x.dtype),
        x.new_empty(tables.shape) if need_tables else _not_needed(tables, x.dtype),
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
        tables.new_empty(tables.shape, dtype=dtype) if need_grad else _not_needed(tables, dtype),
    )


def _network_like(x: Tensor, arrays: list[Tensor], *rest: Any) -> Tensor:
    last = arrays[-1]
    return x.new_empty((*x.shape[:-1], last.shape[-1]))


def _network_grad_like(grad_y: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


# --- Derivatives ----------------------------------------------------------------------------------
# Each operator has its derivative in reverse mode (vjp) and in forward mode (jvp); `recorder` of
# `dispatch` says how they are called. Gradients of half tables are float32; autograd expects
# gradients and tangents in the dtype of the tables.


def _inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor | None]:
    return inputs


def _forward_vjp(ctx: Any, kept: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return None, None
    x, tables = kept
    _, need_x, need_tables = ctx.needs_input_grad
    grad_x, grad_tables = backward(grad_y, x, tables, need_x, need_tables)
    return grad_x if need_x else None, grad_tables.to(tables.dtype) if need_tables else None


def _forward_jvp(
    ctx: Any, kept: Any, tangent_x: Tensor | None, tangent_tables: Tensor | None
) -> Tensor:
    x, tables = kept
    return jvp(tangent_x, _as_gradient(tangent_tables, x), x, tables)


def _as_gradient(tangent_tables: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a tangent of tables in the dtype of their gradient."""
    return None if tangent_tables is None else tangent_tables.to(x.dtype)


def _jvp_vjp(ctx: Any, kept: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 4
    *direction, x, tables = kept
    _, *of_direction, need_x, need_tables = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 4
    if any(of_direction):
        grads[:2] = backward(grad_y, x, tables, *of_direction)
    if need_x or need_tables:
        _, grad_x, grad_tables = backward_backward(*direction, grad_y, x, tables)
        grads[2:] = grad_x, grad_tables.to(tables.dtype)
    return tuple(
        grad if need else None
        for grad, need in zip(grads, (*of_direction, need_x, need_tables), strict=True)
    )


def _jvp_jvp(ctx: Any, kept: Any, *tangents: Tensor | None) -> None:
    raise NotImplementedError(
        "lmkan: forward mode inside forward mode is not implemented: take reverse mode inside, as "
        "torch.func.hessian does, or engine='torch'"
    )


def _tensors_and_needs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor]:
    *tensors, ctx.need_x, ctx.need_tables = inputs
    return tensors


def _backward_vjp(
    ctx: Any, kept: Any, ggx: Tensor | None, ggt: Tensor | None
) -> tuple[Tensor | None, ...]:
    ggx, ggt = ggx if ctx.need_x else None, ggt if ctx.need_tables else None
    if ggx is None and ggt is None:
        return (None,) * 5
    grad_y, x, tables = kept
    grad_grad_y, grad_x, grad_tables = backward_backward(ggx, ggt, grad_y, x, tables)
    return grad_grad_y, grad_x, grad_tables.to(tables.dtype), None, None


def _backward_jvp(
    ctx: Any,
    kept: Any,
    tangent_y: Tensor | None,
    tangent_x: Tensor | None,
    tangent_tables: Tensor | None,
    *needs: None,
) -> tuple[Tensor | None, ...]:
    """The backward is linear in ``grad_y``; its derivative in the layer is symmetric."""
    grad_y, x, tables = kept
    terms = []
    if tangent_y is not None:
        terms.append(backward(tangent_y, x, tables, ctx.need_x, ctx.need_tables))
    if tangent_x is not None or tangent_tables is not None:
        direction = tangent_x, _as_gradient(tangent_tables, x)
        terms.append(backward_backward(*direction, grad_y, x, tables)[1:])
    of_x, of_tables = zip(*terms, strict=True)
    return (
        sum(of_x[1:], start=of_x[0]) if ctx.need_x else _not_needed(x, x.dtype),
        sum(of_tables[1:], start=of_tables[0]) if ctx.need_tables else _not_needed(tables, x.dtype),
    )


def _nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor]:
    return ()


def _no_third_derivative(ctx: Any, kept: Any, *cotangents_or_tangents: Tensor | None) -> None:
    raise NotImplementedError(
        "lmkan: third derivatives are not implemented; engine='torch' has them"
    )


def _tables_or_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor]:
    tables, ctx.need_grad = inputs
    ctx.dtype = tables.dtype
    return [output[1] if ctx.need_grad else tables]


def _hessian_penalty_vjp(
    ctx: Any, kept: Any, of_penalty: Tensor | None, of_grad: Tensor | None
) -> tuple[Tensor | None, None]:
    """The penalty is a quadratic form: its gradient is linear and symmetric in the tables."""
    terms = []
    if of_penalty is not None:
        # Not in place: there may be a second backward.
        terms.append(of_penalty * _gradient(ctx, kept))
    if of_grad is not None and ctx.need_grad:
        terms.append(hessian_penalty(of_grad, True)[1])
    return sum(terms[1:], start=terms[0]).to(ctx.dtype) if terms else None, None


def _hessian_penalty_jvp(
    ctx: Any, kept: Any, tangent_tables: Tensor, *need_grad: None
) -> tuple[Tensor, Tensor]:
    of_penalty = (_gradient(ctx, kept) * tangent_tables).sum()
    if ctx.need_grad:
        return of_penalty, hessian_penalty(tangent_tables, True)[1]
    return of_penalty, _not_needed(tangent_tables, of_penalty.dtype)


def _gradient(ctx: Any, kept: Any) -> Tensor:
    """Return the gradient of a penalty from what was kept of its call."""
    (each,) = kept
    return each if ctx.need_grad else hessian_penalty(each, True)[1]


def _network_vjp(ctx: Any, kept: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 5
    x, shift, scale, *arrays = kept
    grad_x = network_grad(grad_y, x, arrays, ctx.bounds, shift, scale)
    return grad_x, None, None, None, None


def _of_network(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor | None]:
    x, arrays, ctx.bounds, shift, scale = inputs
    return x, shift, scale, *arrays


def _one_reverse_derivative(ctx: Any, kept: Any, *cotangents_or_tangents: Any) -> None:
    raise NotImplementedError(
        "fuse: a fused network has first derivatives in reverse mode only; the model that was "
        "fused has the others"
    )


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


def _jvp_vmap(
    info: Any,
    axes: Any,
    tangent_x: Tensor | None,
    tangent_tables: Tensor | None,
    x: Tensor,
    tables: Tensor,
) -> Any:
    if axes[1] is None and axes[3] is None:
        if tangent_x is not None:
            tangent_x = _in_front(tangent_x, axes[0], info.batch_size)
        return jvp(tangent_x, tangent_tables, _in_front(x, axes[2], info.batch_size), tables), 0
    return _one_by_one(jvp, info, axes, (tangent_x, tangent_tables, x, tables))


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


def _network_vmap(info: Any, axes: Any, x: Tensor, *network_arguments: Any) -> Any:
    _check_one_network(axes[1:])
    return network(x.movedim(axes[0], 0), *network_arguments), 0


def _network_grad_vmap(
    info: Any, axes: Any, grad_y: Tensor, x: Tensor, *network_arguments: Any
) -> Any:
    _check_one_network(axes[2:])
    samples = (
        _in_front(each, axis, info.batch_size) for each, axis in ((grad_y, axes[0]), (x, axes[1]))
    )
    return network_grad(*samples, *network_arguments), 0


def _check_one_network(axes: Any) -> None:
    """Require that only samples are mapped."""
    if any(axis is not None for axis in torch.utils._pytree.tree_leaves(axes)):
        raise NotImplementedError("fuse: vmap maps the inputs of a fused network, not its arrays")


# --- FLOPs ----------------------------------------------------------------------------------------
# As torch counts them: two for each multiply-add of `lmkan_cupy.flops`, from shapes alone. Each
# gradient and each tangent is a sum over the corners of the cells, as the forward is.


def _layer_flops(x: Sequence[int], tables: Sequence[int]) -> int:
    pairs, *knots, out_features = tables
    corners: int = 2 ** len(knots)
    return 2 * math.prod(x[:-1]) * corners * pairs * out_features


def _forward_flops(x: Any, tables: Any, **_: Any) -> int:
    return _layer_flops(x, tables)


def _jvp_flops(tangent_x: Any, tangent_tables: Any, x: Any, tables: Any, **_: Any) -> int:
    return _layer_flops(x, tables) * sum(each is not None for each in (tangent_x, tangent_tables))


def _backward_flops(
    grad_y: Any, x: Any, tables: Any, need_x: bool, need_tables: bool, **_: Any
) -> int:
    return _layer_flops(x, tables) * (need_x + need_tables)


def _backward_backward_flops(ggx: Any, ggt: Any, grad_y: Any, x: Any, tables: Any, **_: Any) -> int:
    """A direction of x reaches all three results, one of the tables only grad_grad_y and grad_x."""
    return _layer_flops(x, tables) * (3 * (ggx is not None) + 2 * (ggt is not None))


def _network_flops(x: Any, arrays: Any, *rest: Any, **_: Any) -> int:
    """A bias, like every sum by elements, is not counted."""
    rows = 2 * math.prod(x[:-1])
    return sum(
        _layer_flops(x, each) if len(each) > 2 else rows * math.prod(each)
        for each in arrays
        if len(each) > 1
    )


def _network_grad_flops(grad_y: Any, *arguments: Any, **_: Any) -> int:
    """The network is evaluated once more."""
    return 2 * _network_flops(*arguments)


#: By operator; the penalty is counted as little as other operations by elements.
_FLOPS: dict[str, Callable[..., int]] = {
    "forward": _forward_flops,
    "jvp": _jvp_flops,
    "backward": _backward_flops,
    "backward_backward": _backward_backward_flops,
    "network": _network_flops,
    "network_grad": _network_grad_flops,
}


# --- Registration ---------------------------------------------------------------------------------


class _Operator(NamedTuple):
    """What torch is told about an operator.

    ``like`` gives results of the right shapes and dtypes without values; ``saved``, ``vjp`` and
    ``jvp`` are its derivatives, see :func:`.dispatch.recorder`.
    """

    schema: str
    kernel: Callable[..., Any]
    like: Callable[..., Any]
    saved: Callable[..., Sequence[Tensor | None]]
    vjp: Callable[..., Any]
    jvp: Callable[..., Any]
    vmap: Callable[..., Any]


_OPERATORS = {
    "forward": _Operator(
        "(Tensor x, Tensor tables) -> Tensor",
        *(_forward, _forward_like, _inputs, _forward_vjp, _forward_jvp, _forward_vmap),
    ),
    "jvp": _Operator(
        "(Tensor? tangent_x, Tensor? tangent_tables, Tensor x, Tensor tables) -> Tensor",
        *(_jvp, _jvp_like, _inputs, _jvp_vjp, _jvp_jvp, _jvp_vmap),
    ),
    "backward": _Operator(
        "(Tensor grad_y, Tensor x, Tensor tables, bool need_x, bool need_tables)"
        " -> (Tensor, Tensor)",
        *(_backward, _backward_like, _tensors_and_needs, _backward_vjp, _backward_jvp),
        _backward_vmap,
    ),
    "backward_backward": _Operator(
        "(Tensor? ggx, Tensor? ggt, Tensor grad_y, Tensor x, Tensor tables)"
        " -> (Tensor, Tensor, Tensor)",
        *(_backward_backward, _backward_backward_like, _nothing),
        *(_no_third_derivative, _no_third_derivative, _backward_backward_vmap),
    ),
    "hessian_penalty": _Operator(
        "(Tensor tables, bool need_grad) -> (Tensor, Tensor)",
        *(_hessian_penalty, _hessian_penalty_like, _tables_or_gradient),
        *(_hessian_penalty_vjp, _hessian_penalty_jvp, _hessian_penalty_vmap),
    ),
    "network": _Operator(
        "(Tensor x, Tensor[] arrays, float[] bounds, Tensor? shift, Tensor? scale) -> Tensor",
        *(_network, _network_like, _of_network),
        *(_network_vjp, _one_reverse_derivative, _network_vmap),
    ),
    "network_grad": _Operator(
        "(Tensor grad_y, Tensor x, Tensor[] arrays, float[] bounds, Tensor? shift,"
        " Tensor? scale) -> Tensor",
        *(_network_grad, _network_grad_like, _nothing),
        *(_one_reverse_derivative, _one_reverse_derivative, _network_grad_vmap),
    ),
}

#: The operators exist as long as it does.
_library: Any = torch.library.Library("lmkan_cupy", "DEF")  # type: ignore[no-untyped-call]


def _define(name: str) -> Callable[..., Any]:
    """Register an operator; return a function that calls it the cheapest way."""
    schema, kernel, like, saved, vjp, jvp, vmap = _OPERATORS[name]
    to: Any = torch.library
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CPU")
    _library.impl(name, kernel, "CUDA")
    qualified = f"lmkan_cupy::{name}"
    to.register_fake(qualified, like, lib=_library)
    to.register_vmap(qualified, vmap, lib=_library)
    if name in _FLOPS:
        register_flop_formula(getattr(torch.ops.lmkan_cupy, name))(_FLOPS[name])
    recorded = dispatch.recorder(name, saved=saved, vjp=vjp, jvp=jvp)
    differentiated = dispatch.autograd_kernel(name, recorded)
    _library.impl(name, differentiated, "Autograd", with_keyset=True)
    return dispatch.call(name, kernel=kernel, recorded=recorded)


forward: Callable[..., Tensor] = _define("forward")
jvp: Callable[..., Tensor] = _define("jvp")
backward: Callable[..., tuple[Tensor, Tensor]] = _define("backward")
backward_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = _define("backward_backward")
hessian_penalty: Callable[..., tuple[Tensor, Tensor]] = _define("hessian_penalty")
network: Callable[..., Tensor] = _define("network")
network_grad: Callable[..., Tensor] = _define("network_grad")

_library.impl("forward", _forward_under_autocast, "AutocastCPU")
_library.impl("forward", _forward_under_autocast, "AutocastCUDA")
