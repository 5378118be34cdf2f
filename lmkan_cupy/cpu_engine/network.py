"""Networks on the CPU engine: what the kernels are told of the layers, and their threads."""

import numpy as np

from ..array_checks import LinearLayer, Network
from ..array_library import Array
from . import compiling, network_kernels
from .layout import grid_of, stored
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


def _steps(network: Network, *, backward: bool) -> tuple[Array, list[Array], int]:
    """Return the layers as the kernels take them, and about how many elements a row touches.

    The steps hold addresses, of the arrays in the list that comes second.
    """
    steps, kept, work = [], [], 0
    dtype = network.x.dtype
    features = network.x.shape[-1]
    for layer, bound in zip(network.layers, network.bounds, strict=True):
        if isinstance(layer, LinearLayer):
            weight = np.ascontiguousarray(layer.weight)
            out_features, num_knots = len(weight), 0
            bias = np.zeros(out_features, dtype) if layer.bias is None else layer.bias
            arrays = [weight, np.ascontiguousarray(weight.T), np.ascontiguousarray(bias)]
            makers = network_kernels.linear_forward, network_kernels.linear_backward
            work += features * out_features // 4
        else:
            tables = stored(np.ascontiguousarray(layer))
            num_knots, out_features = tables.shape[2:]
            arrays = [tables, grid_of(tables, dtype), tables]
            makers = network_kernels.tables_forward, network_kernels.tables_backward
            work += len(tables) * (out_features + 16)
        addresses = [each.__array_interface__["data"][0] for each in arrays]
        functions = [
            compiling.step_address(make, dtype, arrays[0].dtype) for make in makers[: 1 + backward]
        ]
        functions += [0] * (2 - len(functions))
        steps.append((features, out_features, num_knots, bound, addresses, *functions))
        kept += arrays
        features = out_features
    return np.array(steps, network_kernels.STEP), kept, work


def _standardisation(network: Network) -> tuple[Array, Array]:
    """Return shift and scale [I], both empty where there is neither."""
    x, shift, scale = network.x, network.shift, network.scale
    if shift is None and scale is None:
        none = np.empty(0, x.dtype)
        return none, none
    if shift is None:
        shift = np.zeros(x.shape[-1:], x.dtype)
    if scale is None:
        scale = np.ones(x.shape[-1:], x.dtype)
    return np.ascontiguousarray(shift), np.ascontiguousarray(scale)
