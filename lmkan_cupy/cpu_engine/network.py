"""Networks on the CPU engine: what the kernels are told of the layers, and their threads."""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..array_checks import LinearLayer, Network
from ..array_library import Array
from . import compiling, network_kernels
from .layout import contiguous, grid, stored
from .threads import in_ranges

#: Rows that go through a network together: their inputs and cells stay in a core's caches.
_BLOCK = 128

#: The most rows of one call.
_MOST_ROWS = 4096


def network_forward(network: Network, x: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the network of ``x`` [B, I]."""
    steps, _kept, work = _steps(network, backward=False)
    shift, scale = _standardisation(network)
    kernel = compiling.compiled(compiling.NETWORK, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(begin, end, _BLOCK, x, shift, scale, steps, out),
        len(x),
        most=_MOST_ROWS,
        work=len(x) * work,
    )


def network_value_and_grad(
    network: Network, x: Array, grad_y: Array, out: Array, grad_x: Array
) -> None:
    """Overwrite ``out`` [B, O] as :func:`network_forward` does, and ``grad_x`` [B, I]."""
    steps, _kept, work = _steps(network, backward=True)
    shift, scale = _standardisation(network)
    kernel = compiling.compiled(compiling.NETWORK_GRAD, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(begin, end, _BLOCK, x, grad_y, shift, scale, steps, out, grad_x),
        len(x),
        most=_MOST_ROWS,
        work=3 * len(x) * work,
    )


def _steps(network: Network, *, backward: bool) -> tuple[Array, list[list[Array]], int]:
    """Return the layers as the kernels take them, and about how many elements a row touches.

    The steps hold addresses, of the arrays in the list that comes second among others.
    """
    arrays = [_arrays(layer) for layer in network.layers]
    layers = tuple((each[0].shape, each[0].dtype) for each in arrays)
    x, bounds = network.x, tuple(network.bounds)
    template, work = _template(x.shape[-1], x.dtype, layers, bounds, backward)
    steps = template.copy()
    places = steps["arrays"]
    for k, some in enumerate(arrays):
        for n, array in enumerate(some):
            places[k, n] = array.__array_interface__["data"][0]
    return steps, arrays, work


def _arrays(layer: Array | LinearLayer) -> list[Array]:
    """Return the arrays of a step that are a layer's own, in their order."""
    if not isinstance(layer, LinearLayer):
        return [stored(contiguous(layer))]
    weight, bias = layer
    bias = np.zeros(len(weight), weight.dtype) if bias is None else bias
    return [contiguous(weight), contiguous(weight.T), contiguous(bias)]


@lru_cache
def _template(
    in_features: int,
    dtype: np.dtype[Any],
    layers: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...],
    bounds: tuple[float, ...],
    backward: bool,
) -> tuple[Array, int]:
    """Return all of the steps that is the same in most calls, and the work of a row.

    A layer is given by shape and dtype of its tables as they are stored, or of its weight.
    """
    steps, work = np.zeros(len(layers), network_kernels.STEP), 0
    for step, (shape, stored_dtype), bound in zip(steps, layers, bounds, strict=True):
        if len(shape) == 2:
            out_features, num_knots = shape[0], 0
            functions = network_kernels.linear_forward, network_kernels.linear_backward
            work += in_features * out_features // 4
        else:
            pairs, num_knots, _, out_features = shape
            functions = network_kernels.tables_forward, network_kernels.tables_backward
            step["arrays"][1] = grid(num_knots - 1, dtype).ctypes.data
            work += pairs * (out_features + 16)
        for name, function in zip(("forward", "backward"), functions, strict=True):
            if name == "forward" or backward:
                step[name] = compiling.step_address(function, dtype, stored_dtype)
        step["in_features"], step["out_features"] = in_features, out_features
        step["num_knots"], step["bound"] = num_knots, bound
        in_features = out_features
    return steps, work


def _standardisation(network: Network) -> tuple[Array, Array]:
    """Return shift and scale [I], both empty where there is neither."""
    x, shift, scale = network.x, network.shift, network.scale
    if shift is None and scale is None:
        return _none(x.dtype), _none(x.dtype)
    if shift is None:
        shift = np.zeros(x.shape[-1:], x.dtype)
    if scale is None:
        scale = np.ones(x.shape[-1:], x.dtype)
    return contiguous(shift), contiguous(scale)


@cache
def _none(dtype: np.dtype[Any]) -> Array:
    """Return the empty array that stands for None."""
    return np.empty(0, dtype)
