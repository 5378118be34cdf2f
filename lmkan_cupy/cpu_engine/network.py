"""Networks on the CPU engine: what the kernels are told of the layers, and their threads."""

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..array_checks import LayerKind, LinearLayer, Network
from ..array_library import Array
from . import compiling, network_kernels
from .kernels import GATHERED, MOST_SAMPLES, num_grouped
from .layout import contiguous, intervals, is_gathered, stored
from .threads import in_ranges

#: From so many rows on, several share a cell of a layer that is grouped.
_MANY_ROWS = 1024


def network_forward(network: Network, x: Array, out: Array) -> bool:
    """Overwrite ``out`` [B, O] with the network of ``x`` [B, I] and return True.

    The CUDA engine, which does not serve every network, may return False.
    """
    steps, block, work = _steps(*_like(network), len(x) >= _MANY_ROWS, backward=False)
    arrays, shift, scale = _arguments(network)
    kernel = compiling.compiled(compiling.NETWORK, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(begin, end, block, x, shift, scale, steps, arrays, out),
        len(x),
        most=MOST_SAMPLES,
        work=len(x) * work,
    )
    return True


def network_value_and_grad(
    network: Network, x: Array, grad_y: Array, out: Array, grad_x: Array
) -> bool:
    """Overwrite ``grad_x`` [B, I], too, with ``grad_y`` [B, O] pulled back to ``x``, likewise."""
    steps, block, work = _steps(*_like(network), len(x) >= _MANY_ROWS, backward=True)
    arrays, shift, scale = _arguments(network)
    kernel = compiling.compiled(compiling.NETWORK_GRAD, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(
            *(begin, end, block, x, grad_y, shift, scale, steps, arrays, out, grad_x)
        ),
        len(x),
        most=MOST_SAMPLES,
        work=3 * len(x) * work,
    )
    return True


def _like(network: Network) -> tuple[Any, ...]:
    """Return what the steps of a network depend on."""
    return network.in_features, network.dtype, network.kinds, network.bounds


def _arguments(network: Network) -> tuple[Array, Array, Array]:
    """Return the addresses [L, 3] of the arrays of the layers, shift and scale.

    The network keeps them, and so the arrays: NumPy takes microseconds to tell an address.
    """
    if network.arguments is None:
        kept = [_arrays_of(layer) for layer in network.layers]
        rows = [[array.ctypes.data for array in arrays] for arrays in kept]
        addresses = np.array([[*row, 0, 0][:3] for row in rows], np.intp)
        network.arguments = (addresses, *_standardisation(network)), kept
    arguments: tuple[Array, Array, Array] = network.arguments[0]
    return arguments


def _arrays_of(layer: Array | LinearLayer) -> list[Array]:
    """Return the arrays of a step, in their order."""
    if not isinstance(layer, LinearLayer):
        return [contiguous(layer)]
    weight, bias = layer
    bias = np.zeros(len(weight), weight.dtype) if bias is None else bias
    return [contiguous(weight), contiguous(weight.T), contiguous(bias)]


@lru_cache
def _steps(
    in_features: int,
    dtype: np.dtype[Any],
    kinds: tuple[LayerKind, ...],
    bounds: tuple[float, ...],
    many_rows: bool,
    backward: bool,
) -> tuple[Array, int, int]:
    """Return the layers as the kernels take them, the rows of a block, and the work of a row."""
    steps = np.zeros(len(kinds), network_kernels.STEP)
    block, work = GATHERED, 0
    for step, kind, bound in zip(steps, kinds, bounds, strict=True):
        stored_dtype = stored(np.empty(0, kind.dtype)).dtype
        if kind.is_linear:
            functions = network_kernels.linear_forward, network_kernels.linear_backward
            work += in_features * kind.out_features // 4
        else:
            forward = network_kernels.gathered_forward
            if many_rows and not is_gathered(math.prod(kind.shape) * stored_dtype.itemsize):
                forward = network_kernels.grouped_forward
                block = max(block, num_grouped(math.prod(kind.shape[1:-1])))
            functions = forward, network_kernels.tables_backward
            step["num_knots"] = kind.shape[1]
            of_grid = intervals(kind.shape[1] - 1, dtype)
            step["intervals"] = of_grid.ctypes.data
            step["interval_rows"], step["interval_length"] = of_grid.shape
            work += kind.shape[0] * (kind.out_features + 16)
        for name, function in zip(("forward", "backward"), functions, strict=True):
            if name == "forward" or backward:
                dimension = len(kind.shape) - 2
                step[name] = compiling.step_address(function, dtype, stored_dtype, dimension)
        step["in_features"], step["out_features"] = in_features, kind.out_features
        step["bound"] = bound
        in_features = kind.out_features
    return steps, block, work


def _standardisation(network: Network) -> tuple[Array, Array]:
    """Return shift and scale [I], both empty where there is neither."""
    shift, scale = network.shift, network.scale
    if shift is None and scale is None:
        return _none(network.dtype), _none(network.dtype)
    if shift is None:
        shift = np.zeros(network.in_features, network.dtype)
    if scale is None:
        scale = np.ones(network.in_features, network.dtype)
    return contiguous(shift), contiguous(scale)


@cache
def _none(dtype: np.dtype[Any]) -> Array:
    """Return the empty array that stands for None."""
    return np.empty(0, dtype)
