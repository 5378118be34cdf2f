"""The operators ``torch.ops.lmkan_cupy``: the functions of the core, registered with torch.

For each operator torch is told its kernel, the shapes and dtypes of its results, its derivative and
its rule for vmap; the table ``_OPERATORS`` lists them. Those of layers and convolutions are in
:mod:`.layer_operators`. Operators are defined by their schema and
not by ``torch.library.custom_op``, which costs more time per call.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import lmkan_cupy
from lmkan_cupy import array_checks, windows

from . import dispatch, exchange
from .dispatch import Operator
from .exchange import dtype_name
from .layer_operators import LayerOperators, in_front, not_needed, nothing, one_by_one

# --- Kernels --------------------------------------------------------------------------------------


def _hessian_penalty(tables: Tensor, need_grad: bool) -> Any:
    if need_grad:
        return exchange.run(lmkan_cupy.hessian_penalty_and_grad, tables)
    penalty = exchange.run(lmkan_cupy.hessian_penalty, tables)
    return penalty, not_needed(tables, penalty.dtype)


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


def _hessian_penalty_like(tables: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    array_checks.check_tables_like("hessian_penalty", tables.shape, dtype_name(tables.dtype))
    dtype = torch.float64 if tables.dtype == torch.float64 else torch.float32
    return (
        tables.new_empty((), dtype=dtype),
        tables.new_empty(tables.shape, dtype=dtype) if need_grad else not_needed(tables, dtype),
    )


def _network_like(x: Tensor, arrays: list[Tensor], *rest: Any) -> Tensor:
    last = arrays[-1]
    return x.new_empty((*x.shape[:-1], last.shape[-1]))


def _network_grad_like(grad_y: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


# --- Derivatives ----------------------------------------------------------------------------------
# Each operator has its derivative in reverse mode (vjp) and in forward mode (jvp); `recorder` of
# `dispatch` says how they are called.


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
    return of_penalty, not_needed(tangent_tables, of_penalty.dtype)


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


def _conv2d_forward_under_autocast(x: Tensor, tables: Tensor, *window: Any) -> Tensor:
    return under_autocast(lambda x, tables: conv2d_forward(x, tables, *window), x, tables)


# --- vmap -----------------------------------------------------------------------------------------


def _hessian_penalty_vmap(info: Any, axes: Any, *arguments: Any) -> Any:
    return one_by_one(hessian_penalty, info, axes, arguments)


def _network_vmap(info: Any, axes: Any, x: Tensor, *network_arguments: Any) -> Any:
    _check_one_network(axes[1:])
    return network(x.movedim(axes[0], 0), *network_arguments), 0


def _network_grad_vmap(
    info: Any, axes: Any, grad_y: Tensor, x: Tensor, *network_arguments: Any
) -> Any:
    _check_one_network(axes[2:])
    samples = (
        in_front(each, axis, info.batch_size) for each, axis in ((grad_y, axes[0]), (x, axes[1]))
    )
    return network_grad(*samples, *network_arguments), 0


def _check_one_network(axes: Any) -> None:
    """Require that only samples are mapped."""
    if any(axis is not None for axis in torch.utils._pytree.tree_leaves(axes)):
        raise NotImplementedError("fuse: vmap maps the inputs of a fused network, not its arrays")


# --- FLOPs ----------------------------------------------------------------------------------------
# As torch counts them: two for each multiply-add of `lmkan_cupy.flops`, from shapes alone. Each
# gradient and each tangent is a sum over the corners of the cells, as the forward is.


def _layer_flops(y: Sequence[int], tables: Sequence[int], *window: Any) -> int:
    """Return those of a layer, or of a convolution, whose last argument are the groups."""
    pairs, *knots, _ = tables[1:] if window and window[-1] > 1 else tables
    corners: int = 2 ** len(knots)
    return 2 * math.prod(y) * corners * pairs


def _forward_flops(x: Any, tables: Any, *window: Any, out_shape: Any) -> int:
    return _layer_flops(out_shape, tables, *window)


def _jvp_flops(
    tangent_x: Any, tangent_tables: Any, x: Any, tables: Any, *window: Any, out_shape: Any
) -> int:
    terms = sum(each is not None for each in (tangent_x, tangent_tables))
    return _layer_flops(out_shape, tables, *window) * terms


def _backward_flops(
    grad_y: Any, x: Any, tables: Any, need_x: bool, need_tables: bool, *window: Any, **_: Any
) -> int:
    return _layer_flops(grad_y, tables, *window) * (need_x + need_tables)


def _backward_backward_flops(
    ggx: Any, ggt: Any, grad_y: Any, x: Any, tables: Any, *window: Any, **_: Any
) -> int:
    """A direction of x reaches all three results, one of the tables only grad_grad_y and grad_x."""
    terms = 3 * (ggx is not None) + 2 * (ggt is not None)
    return _layer_flops(grad_y, tables, *window) * terms


def _network_flops(x: Any, arrays: Any, *rest: Any, **_: Any) -> int:
    """A bias, like every sum by elements, is not counted."""
    rows = x[:-1]
    return sum(
        _layer_flops((*rows, each[-1]), each) if len(each) > 2 else 2 * math.prod((*rows, *each))
        for each in arrays
        if len(each) > 1
    )


def _network_grad_flops(grad_y: Any, *arguments: Any, **_: Any) -> int:
    """The network is evaluated once more."""
    return 2 * _network_flops(*arguments)


#: By operator; the penalty is counted as little as other operations by elements.
_FLOPS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("forward", "conv2d_forward"), _forward_flops),
    **dict.fromkeys(("jvp", "conv2d_jvp"), _jvp_flops),
    **dict.fromkeys(("backward", "conv2d_backward"), _backward_flops),
    **dict.fromkeys(("backward_backward", "conv2d_backward_backward"), _backward_backward_flops),
    "network": _network_flops,
    "network_grad": _network_grad_flops,
}


# --- Registration ---------------------------------------------------------------------------------


def _shape_of_y(x: Tensor, tables: Tensor) -> tuple[int, ...]:
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    return (*x.shape[:-1], tables.shape[-1])


def _window_options(
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> dict[str, Any]:
    """Return a window; ``padding`` are the pixels above, below, left and right of an image."""
    return {
        "kernel_size": tuple(kernel_size),
        "stride": tuple(stride),
        "padding": (tuple(padding[:2]), tuple(padding[2:])),
        "dilation": tuple(dilation),
        "groups": groups,
    }


def _shape_of_convolution(x: Tensor, tables: Tensor, *arguments: Any) -> tuple[int, ...]:
    options = _window_options(*arguments)
    groups = options.pop("groups")
    return windows.check_images_like(
        *("lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)),
        *(windows.check_window("lmkan", **options), groups),
    )


_layer = LayerOperators("", "", dict, _shape_of_y)
_convolution = LayerOperators(
    "conv2d_",
    ", int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups",
    _window_options,
    _shape_of_convolution,
)

_OPERATORS = {
    **dict(_layer.described()),
    **dict(_convolution.described()),
    "hessian_penalty": Operator(
        "(Tensor tables, bool need_grad) -> (Tensor, Tensor)",
        *(_hessian_penalty, _hessian_penalty_like, _tables_or_gradient),
        *(_hessian_penalty_vjp, _hessian_penalty_jvp, _hessian_penalty_vmap),
    ),
    "network": Operator(
        "(Tensor x, Tensor[] arrays, float[] bounds, Tensor? shift, Tensor? scale) -> Tensor",
        *(_network, _network_like, _of_network),
        *(_network_vjp, _one_reverse_derivative, _network_vmap),
    ),
    "network_grad": Operator(
        "(Tensor grad_y, Tensor x, Tensor[] arrays, float[] bounds, Tensor? shift,"
        " Tensor? scale) -> Tensor",
        *(_network_grad, _network_grad_like, nothing),
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


for _family in (_layer, _convolution):
    _family.call_each_other(_define)

forward, jvp = _layer.forward, _layer.jvp
backward, backward_backward = _layer.backward, _layer.backward_backward
conv2d_forward, conv2d_jvp = _convolution.forward, _convolution.jvp
conv2d_backward = _convolution.backward
conv2d_backward_backward = _convolution.backward_backward
hessian_penalty: Callable[..., tuple[Tensor, Tensor]] = _define("hessian_penalty")
network: Callable[..., Tensor] = _define("network")
network_grad: Callable[..., Tensor] = _define("network_grad")

for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl("forward", _forward_under_autocast, _key)
    _library.impl("conv2d_forward", _conv2d_forward_under_autocast, _key)
