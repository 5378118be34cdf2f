"""The CUDA engine: CuPy arrays, kernels in ``cuda/``, which hold all of its mathematics.

The functions have the arguments of those in ``cpu_engine``: checked, C-contiguous arrays on one
device, results overwritten. They start kernels on CuPy's current stream of the current device, wait
for nothing, and allocate workspace through :mod:`..allocation`.

Each of the passes `forward_pass`, `backward_pass`, `penalty` and `network_pass` has a module with
its plan, its workspace and its launches. The forward also has `ring`, its tiles in shared memory,
`forward_model`, which predicts its time, and `show_plan`. What the passes share is in `plan`,
`launch`, `kernel_source` and `kernel_cache`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from ..array_checks import Network, compute_dtype_of
from ..array_library import Array
from . import kernel_cache
from .backward_pass import plan_backward, pull_back
from .forward_pass import candidates, evaluate
from .launch import clear
from .network_pass import candidates as network_candidates
from .network_pass import evaluate_network, pull_back_network
from .penalty import penalize, plan_penalty
from .plan import Device, Launch, LayerShape, NetworkShape, check_dimension


def forward(x: Array, tables: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the layer of ``x`` [B, I] and ``tables`` [P, S, S, O]."""
    evaluate(x, tables, None, False, out)


def jvp(
    tangent_x: Array | None,
    tangent_tables: Array | None,
    x: Array,
    tables: Array,
    tangent_y: Array,
) -> None:
    """Overwrite ``tangent_y`` [B, O] with the layer's derivative along both tangents together.

    Along ``tangent_tables`` it is the layer with these tables.
    """
    if tangent_x is not None:
        evaluate(x, tables, tangent_x, False, tangent_y)
    if tangent_tables is not None:
        evaluate(x, tangent_tables, None, tangent_x is not None, tangent_y)


def backward(
    grad_y: Array,
    x: Array,
    tables: Array,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Overwrite ``grad_x`` [B, I] and ``grad_tables`` [P, S, S, O], where not None."""
    pull_back(grad_y, x, None, None, tables, grad_x, grad_tables)


def backward_backward(
    ggx: Array | None,
    ggt: Array | None,
    grad_y: Array,
    x: Array,
    tables: Array,
    grad_grad_y: Array,
    grad_x: Array,
    grad_tables: Array,
) -> None:
    """Overwrite ``grad_grad_y`` [B, O], ``grad_x`` [B, I] and ``grad_tables`` [P, S, S, O].

    They are the results of :func:`lmkan_cupy.backward_backward`. The first is :func:`jvp` along
    ``ggx`` and ``ggt``. For ``ggx`` the others are a backward in which the layer's derivative along
    ``ggx`` takes the place of the layer; ``ggt`` adds to ``grad_x`` that of the layer with tables
    ``ggt``. One walk along the samples does both backwards.
    """
    jvp(ggx, ggt, x, tables, grad_grad_y)
    if ggx is not None:
        pull_back(grad_y, x, ggx, tables, ggt, grad_x, grad_tables)
    else:
        clear(grad_tables)
        pull_back(grad_y, x, None, None, ggt, grad_x, None)


def hessian_penalty(
    tables: Array,
    scale: float,
    grad: Array | None,
    penalty: Array,
    *,
    accumulate: bool = False,
) -> None:
    """Overwrite ``penalty`` [] with the roughness R of all inner functions, in tables [P, S, S, O].

    ``grad`` [P, S, S, O], where not None, becomes ``scale dR/dT``; with ``accumulate`` that is
    added to it.
    """
    penalize(tables, scale, grad, penalty, accumulate)


def network_forward(network: Network, x: Array, out: Array) -> bool:
    """Overwrite ``out`` [B, O] with the network of ``x`` [B, I] and return True.

    Or return False where no plan for one kernel serves it: then it has to go layer by layer.
    """
    return evaluate_network(network, x, out)


def network_value_and_grad(
    network: Network, x: Array, grad_y: Array, out: Array, grad_x: Array
) -> bool:
    """Overwrite ``grad_x`` [B, I], too, with ``grad_y`` [B, O] pulled back to ``x``, likewise."""
    return pull_back_network(network, x, grad_y, out, grad_x)


def warmup(
    in_features: int,
    out_features: int,
    num_grids: int,
    dimension: int,
    dtype: np.dtype[Any],
    device: int,
) -> None:
    """Compile, or load from the disk cache, what layers with tables of ``dtype`` need."""
    check_dimension(dimension)
    real = compute_dtype_of(dtype)
    layer = LayerShape(in_features, out_features, num_grids, real.name, dtype.name, dimension)
    with kernel_cache.on_device(device):
        for launch in launches(layer, kernel_cache.device()):
            kernel_cache.kernel(launch)


def launches(layer: LayerShape, device: Device) -> list[Launch]:
    """Return one launch of every kernel that calls with such a layer may need, of any batch."""
    found = list(plan_penalty(layer, device, aligned=True).launches)
    # The kernel of a network with such a layer is that of a network of it alone.
    features = (layer.in_features, layer.out_features)
    network = NetworkShape(
        features, layer.num_grids, layer.real, layer.table, dimension=layer.dimension
    )
    for gradient in (False, True):
        plans = network_candidates(network, 1, device, gradient=gradient)
        found += [possible.kernel for possible in plans]
    # The double backward takes cotangents of the tables through the layer, in the dtype of x.
    for each in (layer, replace(layer, table=layer.real)):
        for direction, of_layer, need_x, need_tables in (
            (False, True, True, True),
            (False, True, True, False),
            (False, True, False, True),
            (True, False, True, True),
            (True, True, True, True),
        ):
            backward = plan_backward(
                each,
                1,
                device,
                direction=direction,
                of_layer=of_layer,
                need_x=need_x,
                need_tables=need_tables,
                aligned=True,
            )
            found += backward.launches
        for direction in (False, True):
            for possible in candidates(each, 1, device, direction, aligned=True):
                found += possible.launches
    return list(dict.fromkeys(found))
