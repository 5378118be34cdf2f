"""A chain of layers evaluated in one call, for inference: layers of tables and linear layers.

Blocks of rows go through all layers, on the CPU in a core's caches, on a GPU in shared memory, so
nothing is called, written to memory or waited for between the layers. On the CPU results are those
of the same steps one by one, to the bit: standardise, then for each layer cut and
:func:`lmkan_cupy.forward`; on a GPU, up to rounding. What a GPU's kernel does not serve is computed
in these steps.
"""

from collections.abc import Sequence
from typing import TypeAlias

from . import allocation, array_checks
from .array_checks import LinearLayer, Network
from .array_library import AnyArray, Array, array_library, on_device_of
from .functional import backward, engine_for, forward, output, samples

#: Tables [P, S, ..., S, O] of an lmKAN layer, or (weight [O, I], bias [O] or None) of a linear one.
NetworkLayer: TypeAlias = AnyArray | tuple[AnyArray, AnyArray | None]


def network_forward(
    x: AnyArray,
    layers: Sequence[NetworkLayer],
    *,
    shift: AnyArray | None = None,
    scale: AnyArray | None = None,
    bound: float | Sequence[float | None] | None = None,
    out: AnyArray | None = None,
) -> Array:
    """Evaluate a chain of layers.

    ``h_0 = (x - shift) * scale``; a layer of tables gives ``h_{k+1} = forward(cut(h_k), tables)``,
    where ``cut`` limits its inputs to ``+-bound``, and a linear layer ``h_{k+1} = weight h_k +
    bias``, without a cut.

    Parameters
    ----------
    x : array [..., I]
        Inputs, float32 or float64, any strides.
    layers : sequence
        At least one. Tables [P, S, ..., S, O] of an lmKAN layer, each with its own grid and
        dimension, or a pair of a linear layer's weight [O, I] and its bias [O] or None. Each takes
        as many features as the one before it gives. In the dtype of ``x``; with float32 x, tables
        may be float16 and, for CuPy arrays, bfloat16.
    shift, scale : array [I], optional
        Standardise the inputs; in the dtype of ``x``. None stands for zeros and ones.
    bound : float or sequence of (float or None), optional
        Where inputs of tables are cut, one for all layers or one for each; None cuts nothing. A NaN
        passes the cut, an infinity becomes ``+-bound``.
    out : array [..., O], optional
        Overwritten with the result; C-contiguous, dtype of ``x``.

    Returns
    -------
    array [..., O]
        In the dtype of ``x``. The values of other rows never change a row's outputs.

    Raises
    ------
    TypeError
        If an argument is not an array, or dtypes, libraries or devices do not fit.
    ValueError
        If there is no layer, shapes do not fit, a bound is not positive, or ``out`` is not
        contiguous or overlaps an input.
    """
    function = "network_forward"
    x = array_checks.check_samples(function, x)
    network = array_checks.check_network(function, x, layers, shift, scale, bound)
    return evaluate_network(function, network, x, out)


def network_value_and_grad(
    x: AnyArray,
    layers: Sequence[NetworkLayer],
    *,
    grad_y: AnyArray | None = None,
    shift: AnyArray | None = None,
    scale: AnyArray | None = None,
    bound: float | Sequence[float | None] | None = None,
) -> tuple[Array, Array]:
    """Evaluate a chain of layers and its derivative with respect to ``x``, in one pass.

    For energies with forces: the derivative is ``dL/dx`` for ``dL/dy = grad_y``.

    Parameters
    ----------
    x, layers, shift, scale, bound
        As in :func:`network_forward`.
    grad_y : array [..., O], optional
        In the dtype of ``x``; None stands for ones.

    Returns
    -------
    y : array [..., O]
        :func:`network_forward`, to the bit.
    grad_x : array [..., I]
        The derivative with respect to the raw ``x``, before ``shift`` and ``scale``; 0 for what is
        cut. At a knot it is one of the two one-sided derivatives.

    Raises
    ------
    TypeError, ValueError
        As :func:`network_forward`.
    """
    function = "network_value_and_grad"
    x = array_checks.check_samples(function, x)
    network = array_checks.check_network(function, x, layers, shift, scale, bound)
    return _value_and_grad(function, network, x, grad_y)


def evaluate_network(
    function: str, network: Network, x: Array, out: AnyArray | None = None
) -> Array:
    """Return :func:`network_forward` of a checked network and checked ``x``."""
    with on_device_of(x):
        shape = (*x.shape[:-1], network.out_features)
        inputs = {"x": x} if out is None else {"x": x, **network.arrays()}
        out = output(function, "out", out, shape, x.dtype, inputs)
        engine = engine_for(array_library(x))
        if not engine.network_forward(network, samples(x), samples(out)):
            out[...] = features_of_layers(network, x)[-1]
    return out


def _value_and_grad(
    function: str, network: Network, x: Array, grad_y: AnyArray | None
) -> tuple[Array, Array]:
    shape = (*x.shape[:-1], network.out_features)
    if grad_y is not None:
        grad_y = array_checks.check_companion(function, "grad_y", grad_y, shape, x.dtype, x, "x")
    with on_device_of(x):
        if grad_y is None:
            grad_y = allocation.empty(shape, x.dtype, x)
            grad_y.fill(1)
        y = allocation.empty(shape, x.dtype, x)
        grad_x = allocation.empty(x.shape, x.dtype, x)
        rows, engine = samples(x), engine_for(array_library(x))
        if not engine.network_value_and_grad(
            network, rows, samples(grad_y), samples(y), samples(grad_x)
        ):
            features = features_of_layers(network, x)
            if not engine.network_forward(network, rows, samples(y)):
                y = features[-1]
            grad_x = pull_back_by_layers(network, features, grad_y)
    return y, grad_x


def features_of_layers(network: Network, x: Array) -> list[Array]:
    """Return the features before, between and after the layers, computed layer by layer."""
    xp, h = array_library(x), x
    if network.shift is not None:
        h = h - network.shift
    if network.scale is not None:
        h = h * network.scale
    features = [h]
    for layer, bound in zip(network.layers, network.bounds, strict=True):
        if isinstance(layer, LinearLayer):
            h = h @ layer.weight.T if layer.bias is None else h @ layer.weight.T + layer.bias
        else:
            h = forward(xp.clip(h, -bound, bound), layer)
        features.append(h)
    return features


def pull_back_by_layers(network: Network, features: list[Array], grad_y: Array) -> Array:
    """Return ``grad_y`` pulled back to ``x``, computed layer by layer."""
    xp, grad = array_library(grad_y), grad_y
    steps = zip(network.layers, network.bounds, features, strict=False)
    for layer, bound, h in reversed([*steps]):
        if isinstance(layer, LinearLayer):
            grad = grad @ layer.weight
        else:
            grad_cut, _ = backward(grad, xp.clip(h, -bound, bound), layer, need_tables=False)
            grad = xp.where(abs(h) > bound, xp.zeros_like(h), grad_cut)
    return grad if network.scale is None else grad * network.scale
