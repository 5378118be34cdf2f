"""The CUDA engine: CuPy arrays, kernels in ``cuda/``, which hold all of its mathematics.

The functions have the arguments of those in ``cpu_engine``: checked, C-contiguous arrays on one
device, ``knots`` on the host, results overwritten. They start kernels on CuPy's current stream of
the current device, wait for nothing, and allocate workspace through :mod:`..allocation`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..array_library import Array
from . import kernel_cache
from . import plan as launch_plan
from .launch import Kernel, Workspace, aligned, clear
from .plan import Device, Layer

#: Calls made ready, by what they depend on: see `_ready`.
_calls: dict[tuple[Any, ...], Callable[..., None]] = {}
_MOST_CALLS = 256


def _ready(
    make: Callable[..., Callable[..., None]], knots: Array, layer: Layer, *choices: Any
) -> Callable[..., None]:
    """Return what ``make`` makes of a layer and further choices, for the current device.

    A call with the shapes of an earlier one finds it again: plan, compiled kernels, their numbers.
    """
    device = kernel_cache.device()
    key = (make, device, layer, *choices)
    call = _calls.get(key)
    if call is None:
        call = make(knots, device, layer, *choices)
        if len(_calls) >= _MOST_CALLS:  # batches of ever new sizes
            _calls.clear()
        _calls[key] = call
    return call


def forget() -> None:
    """Make every call ready anew, because what plans are made of was changed."""
    _calls.clear()


def forward(x: Array, tables: Array, knots: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the layer of ``x`` [B, I] and ``tables`` [P, S, S, O]."""
    _evaluate(x, tables, knots, None, False, out)


def _evaluate(
    x: Array, tables: Array, knots: Array, ggx: Array | None, accumulate: bool, out: Array
) -> None:
    layer = launch_plan.layer(x, tables)
    choices = (ggx is not None, accumulate, aligned(tables), aligned(out))
    _ready(_evaluation, knots, layer, len(x), *choices)(x, ggx, tables, out)


def _evaluation(
    knots: Array,
    device: Device,
    layer: Layer,
    batch: int,
    direction: bool,
    accumulate: bool,
    tables_aligned: bool,
    out_aligned: bool,
) -> Callable[..., None]:
    plan = launch_plan.forward(layer, batch, device, direction=direction, aligned=tables_aligned)
    return by_plan(plan, knots, layer, batch, direction, accumulate, out_aligned)


def by_plan(
    plan: launch_plan.Forward,
    knots: Array,
    layer: Layer,
    batch: int,
    direction: bool = False,
    accumulate: bool = False,
    out_aligned: bool = True,
) -> Callable[..., None]:
    """Return a function of ``x, ggx, tables, out`` that does what a plan says."""
    if plan.ring:
        return ByRing(knots, plan, layer, batch, direction, accumulate, out_aligned)
    return Kernel(plan.kernel, knots, batch, layer.in_features, layer.out_features, accumulate)


class ByRing:
    """A forward through shared memory: what its kernel reads is packed, then slice by slice read.

    Parameters
    ----------
    knots, plan, layer, batch
    direction, accumulate : bool
        Along a direction; added to the output.
    out_aligned : bool
        The output begins at a multiple of 16 bytes.
    """

    def __init__(
        self,
        knots: Array,
        plan: launch_plan.Forward,
        layer: Layer,
        batch: int,
        direction: bool,
        accumulate: bool,
        out_aligned: bool,
    ) -> None:
        assert plan.ring
        ring, pairs, outputs = plan.ring, layer.pairs, layer.out_features
        whole = ring.splits == 1
        number = np.dtype(layer.real).itemsize
        self._workspace = Workspace(
            pairs * ring.tiles * ring.tile_bytes if ring.packed else 0,
            packed_x := pairs * ring.slice_size * 2 * number,
            packed_x if direction else 0,
            0 if whole else ring.splits * batch * outputs * number,
        )
        self._pack_tables = Kernel(ring.pack_tables, knots, pairs, outputs) if ring.packed else None
        vectors = outputs % 4 == 0 and (out_aligned or not whole)
        self._slices = []
        for first in range(0, batch, ring.slice_size):
            count = min(ring.slice_size, batch - first)
            stride = ring.padded(count)
            sizes = (count, stride, pairs, ring.run, outputs)
            launch = replace(plan.kernel, blocks=ring.blocks(count))
            self._slices.append(
                (
                    slice(first, first + count),
                    Kernel(ring.pack_x, knots, count, stride, layer.in_features),
                    Kernel(launch, knots, *sizes, vectors, accumulate and whole),
                    None
                    if whole
                    else Kernel(ring.total, knots, count * outputs, ring.splits, accumulate),
                )
            )

    def __call__(self, x: Array, ggx: Array | None, tables: Array, out: Array) -> None:
        packed_tables, packed_x, packed_ggx, parts = self._workspace.parts(x)
        if self._pack_tables:
            self._pack_tables(tables, packed_tables)
            tables = packed_tables
        for rows, pack_x, evaluate, total in self._slices:
            pack_x(_rows(x, rows), packed_x)
            if ggx is not None:
                pack_x(_rows(ggx, rows), packed_ggx)
            y = _rows(out, rows)
            target = y if parts is None else parts
            evaluate(packed_x, packed_ggx, tables, target)
            if total:
                total(parts, y)


def _rows(array: Array, rows: slice) -> Array:
    """Return some rows of an array; CuPy takes microseconds for a slice that is the whole."""
    return array if len(array) == rows.stop - rows.start else array[rows]


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
    tables = direction_tables if direction_tables is not None else layer_tables
    assert tables is not None
    layer = launch_plan.layer(x, tables)
    choices = (
        ggx is not None,
        layer_tables is not None,
        grad_x is not None,
        grad_tables is not None,
        aligned(x, grad_y, direction_tables, layer_tables, grad_tables),
    )
    pull_back = _ready(_PullBack, knots, layer, len(x), *choices)
    if grad_tables is not None:
        clear(grad_tables)
    pull_back(grad_y, x, ggx, direction_tables, layer_tables, grad_x, grad_tables)


class _PullBack:
    """A backward, chunk by chunk of the batch: sorted, walked, and what is left is added up."""

    def __init__(
        self,
        knots: Array,
        device: Device,
        layer: Layer,
        batch: int,
        direction: bool,
        of_layer: bool,
        need_x: bool,
        need_tables: bool,
        all_aligned: bool,
    ) -> None:
        plan = launch_plan.backward(
            layer,
            batch,
            device,
            direction=direction,
            of_layer=of_layer,
            need_x=need_x,
            need_tables=need_tables,
            aligned=all_aligned,
        )
        pairs, outputs = layer.pairs, layer.out_features
        number, index = np.dtype(layer.real).itemsize, np.dtype(np.int32).itemsize
        of_records = pairs * plan.chunk * 2
        self._workspace = Workspace(
            of_records * index,  # places
            of_records * number,  # fractions
            pairs * index,  # evens
            plan.tiles * of_records * number if plan.slopes else 0,
            2 * pairs * plan.parts * 4 * outputs * number if plan.slots else 0,
        )
        # Cells that share rows of the tables' gradient lie in different halves, see backward.cu.
        halves = (0, 1) if need_tables else (2,)
        sizes = (layer.in_features, outputs)
        self._chunks = []
        for first in range(0, batch, plan.chunk):
            count = min(plan.chunk, batch - first)
            span = (first, count, plan.chunk)
            self._chunks.append(
                (
                    Kernel(plan.sort, knots, *span, layer.in_features),
                    [Kernel(plan.walk, knots, *span, plan.parts, half, *sizes) for half in halves],
                    Kernel(plan.slots, knots, count, plan.chunk, plan.parts, *sizes)
                    if plan.slots
                    else None,
                    Kernel(plan.slopes, knots, *span, *sizes) if plan.slopes else None,
                )
            )

    def __call__(
        self,
        grad_y: Array,
        x: Array,
        ggx: Array | None,
        direction_tables: Array | None,
        layer_tables: Array | None,
        grad_x: Array | None,
        grad_tables: Array | None,
    ) -> None:
        *sorted_samples, slopes, slots = self._workspace.parts(x)
        places, _, evens = sorted_samples
        given = (grad_y, ggx, direction_tables, layer_tables, *sorted_samples)
        results = (grad_x if slopes is None else slopes, grad_tables, slots)
        for sort, walks, add_slots, add_slopes in self._chunks:
            sort(x, *sorted_samples)
            for walk in walks:
                walk(*given, *results)
            if add_slots:
                add_slots(places, evens, grad_tables, slots)
            if add_slopes:
                add_slopes(slopes, grad_x)


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
        clear(grad_tables)
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
    layer = launch_plan.layer_of_tables(tables, knots)
    penalize = _ready(_Penalty, knots, layer, aligned(tables, grad), accumulate)
    penalize(tables, scale, grad, penalty)


class _Penalty:
    """The penalty of all functions: partial sums, then their sum."""

    def __init__(
        self, knots: Array, device: Device, layer: Layer, all_aligned: bool, accumulate: bool
    ) -> None:
        plan = launch_plan.penalty(layer, device, aligned=all_aligned)
        self._workspace = Workspace(plan.partials * np.dtype(np.float64).itemsize)
        sizes = (layer.pairs, layer.out_features)
        self._penalty = Kernel(plan.penalty, knots, *sizes, accumulate)
        self._total = Kernel(plan.total, knots, plan.partials)

    def __call__(self, tables: Array, scale: float, grad: Array | None, penalty: Array) -> None:
        (partial,) = self._workspace.parts(tables)
        self._penalty(tables, grad, partial, np.float64(scale))
        self._total(partial, penalty)


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
