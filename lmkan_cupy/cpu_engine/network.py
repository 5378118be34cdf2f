"""Networks on the CPU engine: what the kernels are told of the layers, and their threads."""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..array_checks import LayerKind, LinearLayer, Network
from ..array_library import Array
from . import compiling, network_kernels
from .layout import contiguous, intervals, stored
from .threads import in_ranges

#: Rows that go through a network together: their inputs and cells stay in a core's caches.
_BLOCK = 128

#: The most rows of one call.
_MOST_ROWS = 4096


def network_forward(network: Network, x: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the network of ``x`` [B, I]."""
    steps, work = _steps(*_like(network), backward=False)
    arrays, _kept = _arrays(network)
    shift, scale = _standardisation(network)
    kernel = compiling.compiled(compiling.NETWORK, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(begin, end, _BLOCK, x, shift, scale, steps, arrays, out),
        len(x),
        most=_MOST_ROWS,
        work=len(x) * work,
    )


def network_value_and_grad(
    network: Network, x: Array, grad_y: Array, out: Array, grad_x: Array
) -> None:
    """Overwrite ``out`` [B, O] as :func:`network_forward` does, and ``grad_x`` [B, I]."""
    steps, work = _steps(*_like(network), backward=True)
    arrays, _kept = _arrays(network)
    shift, scale = _standardisation(network)
    kernel = compiling.compiled(compiling.NETWORK_GRAD, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(
            *(begin, end, _BLOCK, x, grad_y, shift, scale, steps, arrays, out, grad_x)
        ),
        len(x),
        most=_MOST_ROWS,
        work=3 * len(x) * work,
    )


def _like(network: Network) -> tuple[Any, ...]:
    """Return what the steps of a network depend on."""
    return network.x.shape[-1], network.x.dtype, network.kinds, network.bounds


def _arrays(network: Network) -> tuple[Array, list[Array]]:
    """Return the addresses [L, 3] of the arrays of the layers, and the arrays, to be kept."""
    addresses, kept = [], []
    for layer in network.layers:
        arrays = _arrays_of(layer)
        some = [array.ctypes.data for array in arrays]
        addresses.append(some if len(some) == 3 else [*some, 0, 0])
        kept += arrays
    return np.array(addresses, np.intp), kept


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
    backward: bool,
) -> tuple[Array, int]:
    """Return the layers as the kernels take them, and about how many elements a row touches."""
    steps, work = np.zeros(len(kinds), network_kernels.STEP), 0
    for step, kind, bound in zip(steps, kinds, bounds, strict=True):
        stored_dtype = stored(np.empty(0, kind.dtype)).dtype
        if kind.is_linear:
            functions = network_kernels.linear_forward, network_kernels.linear_backward
            work += in_features * kind.out_features // 4
        else:
            functions = network_kernels.tables_forward, network_kernels.tables_backward
            step["num_knots"] = kind.shape[1]
            step["intervals"] = intervals(kind.shape[1] - 1, dtype).ctypes.data
            work += kind.shape[0] * (kind.out_features + 16)
        for name, function in zip(("forward", "backward"), functions, strict=True):
            if name == "forward" or backward:
                step[name] = compiling.step_address(function, dtype, stored_dtype)
        step["in_features"], step["out_features"] = in_features, kind.out_features
        step["bound"] = bound
        in_features = kind.out_features
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
