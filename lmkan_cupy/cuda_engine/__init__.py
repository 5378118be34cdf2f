"""The CUDA engine: CuPy arrays, kernels in ``cuda/``, which hold all of its mathematics.

The functions have the arguments of those in ``cpu_engine``: checked, C-contiguous arrays on one
device, ``knots`` on the host, results overwritten. They start kernels on CuPy's current stream of
the current device, wait for nothing, and allocate workspace through :mod:`..allocation`.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from .. import allocation
from ..array_library import Array
from . import kernel_cache, launch_plan
from .launch import aligned, run
from .launch_plan import Launch, Ring

#: A call with the shapes of an earlier one finds its plan again.
PLANS = _plan_forward, _plan_backward, _plan_penalty = (
    lru_cache(launch_plan.forward),
    lru_cache(launch_plan.backward),
    lru_cache(launch_plan.penalty),
)


def forward(x: Array, tables: Array, knots: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the layer of ``x`` [B, I] and ``tables`` [P, S, S, O]."""
    _evaluate(x, tables, knots, None, False, out)


def _evaluate(
    x: Array, tables: Array, knots: Array, ggx: Array | None, accumulate: bool, out: Array
) -> None:
    layer = launch_plan.layer(x, tables)
    plan = _plan_forward(
        layer,
        len(x),
        kernel_cache.device(),
        direction=ggx is not None,
        aligned=aligned(tables),
    )
    if plan.ring:
        evaluate_by_ring(plan.kernel, plan.ring, x, tables, knots, ggx, accumulate, out)
    else:
        sizes = (len(x), layer.in_features, layer.out_features)
        run(plan.kernel, knots, x, ggx, tables, out, *sizes, accumulate)


def evaluate_by_ring(
    kernel: Launch,
    ring: Ring,
    x: Array,
    tables: Array,
    knots: Array,
    ggx: Array | None,
    accumulate: bool,
    out: Array,
) -> None:
    """Pack what the kernel reads, and start it for one slice of the batch after the other."""
    pairs, out_features = len(tables), tables.shape[3]
    if ring.packed:
        dtype = x.dtype if ring.widened else tables.dtype
        size = pairs * ring.tiles * ring.tile_bytes // dtype.itemsize
        packed_tables = allocation.empty((size,), dtype, x)
        run(ring.pack_tables, knots, tables, packed_tables, pairs, out_features)
        tables = packed_tables
    packed_shape = (pairs, ring.slice_size, 2)
    packed = [
        None if each is None else allocation.empty(packed_shape, x.dtype, x) for each in (x, ggx)
    ]
    for first in range(0, len(x), ring.slice_size):
        y = out[first : first + ring.slice_size]
        stride = ring.padded(len(y))
        for source, target in zip((x, ggx), packed, strict=True):
            if source is not None:
                rows = source[first : first + ring.slice_size]
                run(ring.pack_x, knots, rows, target, len(y), stride, x.shape[1])
        whole = ring.splits == 1
        parts = y if whole else allocation.empty((ring.splits, *y.shape), x.dtype, x)
        sizes = (len(y), stride, pairs, ring.run, out_features)
        vectors = out_features % 4 == 0 and aligned(parts)
        launch = replace(kernel, blocks=ring.blocks(len(y)))
        run(launch, knots, *packed, tables, parts, *sizes, vectors, accumulate and whole)
        if not whole:
            run(ring.total, knots, parts, y, y.size, ring.splits, accumulate)


def backward(
    grad_y: Array,
    x: Array,
    tables: Array,
    knots: Array,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Overwrite ``grad_x`` [B, I] and ``grad_tables`` [P, S, S, O], where not None."""
    _pull_back(grad_y, x, knots, None, None, tables, grad_x, grad_tables)


def _pull_back(
    grad_y: Array,
    x: Array,
    knots: Array,
    ggx: Array | None,
    direction_tables: Array | None,
    layer_tables: Array | None,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Pull ``grad_y`` back through the derivative of the layer of ``direction_tables`` along
    ``ggx``, where not None, plus the layer of ``layer_tables``, where not None.

    With both, ``grad_tables`` is that of the first, as the double backward needs it.
    """
    if grad_tables is not None:
        grad_tables.fill(0)
    tables = direction_tables if direction_tables is not None else layer_tables
    assert tables is not None
    arrays = (grad_y, direction_tables, layer_tables, grad_tables)
    batch, in_features = x.shape
    out_features = tables.shape[3]
    layer = launch_plan.layer(x, tables)
    plan = _plan_backward(
        layer,
        batch,
        kernel_cache.device(),
        direction=ggx is not None,
        of_layer=layer_tables is not None,
        need_x=grad_x is not None,
        need_tables=grad_tables is not None,
        aligned=aligned(*(each for each in arrays if each is not None)),
    )

    def workspace(*shape: int, dtype: Any = x.dtype) -> Array:
        return allocation.empty(shape, np.dtype(dtype), x)

    places = workspace(layer.pairs, plan.chunk, 2, dtype=np.int32)
    fractions = workspace(layer.pairs, plan.chunk, 2)
    evens = workspace(layer.pairs, dtype=np.int32)
    slopes, slots = grad_x, None
    if plan.slopes:
        slopes = workspace(plan.tiles, layer.pairs, plan.chunk, 2)
    if plan.slots:
        slots = workspace(layer.pairs, plan.stretches, 4, out_features)
    # Cells that share rows of the tables' gradient lie in different halves, see backward.cu.
    halves = (2,) if grad_tables is None else (0, 1)

    for first in range(0, batch, plan.chunk):
        count = min(plan.chunk, batch - first)
        run(plan.sort, knots, x, places, fractions, evens, first, count, plan.chunk, in_features)
        sorted_samples = (places, fractions, evens)
        stretches = (plan.stretches, plan.stretch)
        sizes = (in_features, out_features)
        for half in halves:
            run(
                plan.walk,
                knots,
                *(grad_y, ggx, direction_tables, layer_tables, *sorted_samples),
                *(slopes, grad_tables, slots),
                *(first, count, plan.chunk, *stretches, half, *sizes),
            )
        if plan.slots:
            inputs = (places, evens, grad_tables, slots)
            run(plan.slots, knots, *inputs, count, plan.chunk, *stretches, *sizes)
        if plan.slopes:
            run(plan.slopes, knots, slopes, grad_x, first, count, plan.chunk, *sizes)


def backward_backward(
    ggx: Array | None,
    ggt: Array | None,
    grad_y: Array,
    x: Array,
    tables: Array,
    knots: Array,
    grad_grad_y: Array,
    grad_x: Array,
    grad_tables: Array,
) -> None:
    """Overwrite the cotangents of ``grad_y``, ``x`` and ``tables``.

    The double backward is the forward and the backward of the layer's derivative along ``ggx``,
    plus those of the layer with the tables ``ggt``, whose backward shares the walk of the first.
    """
    if ggx is not None:
        _evaluate(x, tables, knots, ggx, False, grad_grad_y)
        _pull_back(grad_y, x, knots, ggx, tables, ggt, grad_x, grad_tables)
    else:
        grad_tables.fill(0)
        _pull_back(grad_y, x, knots, None, None, ggt, grad_x, None)
    if ggt is not None:
        _evaluate(x, ggt, knots, None, ggx is not None, grad_grad_y)


def hessian_penalty(
    tables: Array,
    knots: Array,
    scale: float,
    grad: Array | None,
    penalty: Array,
    *,
    accumulate: bool = False,
) -> None:
    """Overwrite ``penalty`` [] with R and ``grad`` [P, S, S, O], where not None, with its gradient.

    That is ``scale dR/dT`` for the roughness R of all functions; with ``accumulate`` it is added.
    """
    pairs, _, _, out_features = tables.shape
    layer = launch_plan.layer_of_tables(tables, knots)
    arrays = (tables,) if grad is None else (tables, grad)
    plan = _plan_penalty(layer, kernel_cache.device(), aligned=aligned(*arrays))
    partial = allocation.empty((plan.partials,), np.dtype(np.float64), tables)
    run(plan.penalty, knots, tables, grad, partial, pairs, out_features, accumulate, scale)
    run(plan.total, knots, partial, penalty, plan.partials)


def warmup(
    in_features: int, out_features: int, knots: Array, dtype: np.dtype[Any], device: int
) -> None:
    """Compile, or load from the disk cache, what layers with tables of ``dtype`` need."""
    layer = launch_plan.Layer(
        in_features, out_features, len(knots) - 1, knots.dtype.name, dtype.name
    )
    with kernel_cache.on_device(device):
        for launch in launch_plan.launches(layer, kernel_cache.device()):
            kernel_cache.kernel(launch, knots)
