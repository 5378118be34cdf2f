"""Convolutions on the CPU: where windows lie in images, and the calls of the kernels."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..array_library import Array
from ..windows import Window
from . import compiling, kernels
from .convolution_kernels import Geometry, Planes
from .corners import dimension_of, num_nodes
from .layout import intervals_of, is_gathered, stored
from .threads import in_ranges, num_threads

#: Bytes of planes that a forward finds at once. They pass from the first kernel to the second one
#: in the caches, and the whole batch needs no more memory than this.
_PLANE_BYTES = 2**22


def conv2d_forward(x: Array, tables: Array, window: Window, out: Array) -> None:
    """Overwrite ``out`` [N, O, H', W'] with the layer of all windows of ``x`` [N, C, H, W]."""
    _convolve(x, tables, None, window, False, out)


def conv2d_jvp(
    tangent_x: Array | None,
    tangent_tables: Array | None,
    x: Array,
    tables: Array,
    window: Window,
    tangent_y: Array,
) -> None:
    """Overwrite ``tangent_y`` [N, O, H', W'] with the derivative along both tangents together."""
    if tangent_x is not None:
        _convolve(x, tables, tangent_x, window, False, tangent_y)
    if tangent_tables is not None:
        _convolve(x, tangent_tables, None, window, tangent_x is not None, tangent_y)


def conv2d_backward(
    grad_y: Array,
    x: Array,
    tables: Array,
    window: Window,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Overwrite ``grad_x`` [N, C, H, W] and ``grad_tables`` [P, S, ..., O], where not None."""
    _pull_back(grad_y, x, tables, None, window, False, grad_x, grad_tables)


def conv2d_backward_backward(
    ggx: Array | None,
    ggt: Array | None,
    grad_y: Array,
    x: Array,
    tables: Array,
    window: Window,
    grad_grad_y: Array,
    grad_x: Array,
    grad_tables: Array,
) -> None:
    """Overwrite the last three as :func:`lmkan_cupy.cpu_engine.backward_backward` does."""
    conv2d_jvp(ggx, ggt, x, tables, window, grad_grad_y)
    if ggx is not None:
        _pull_back(grad_y, x, tables, ggx, window, False, grad_x, grad_tables)
    else:
        grad_tables.fill(0)
    if ggt is not None:
        _pull_back(grad_y, x, ggt, None, window, ggx is not None, grad_x, None)


@lru_cache(256)
def _geometry(height: int, width: int, window: Window, in_features: int) -> Geometry:
    """Return the sizes that the kernels need; ``in_features`` includes those that are lacking."""
    rows, columns = window.padded(height, width)
    out_height, out_width = window.out_size(height, width)
    (above, _), (left, _) = window.margins
    stride = window.stride[1]
    phase_length = -(-columns // stride)
    row_length = stride * phase_length
    # Whole vectors are read: past the end of a row is the next one, past the last one is this.
    plane_length = -(-(rows * row_length + kernels.LANES) // kernels.LANES) * kernels.LANES
    num_planes = -(-in_features // window.num_pixels)  # with those of what the last pair lacks
    return Geometry(
        *(height, width, out_height, out_width, *window.stride),
        *(above, left, phase_length, row_length, plane_length, num_planes * plane_length),
    )


@lru_cache(256)
def _taps(geometry: Geometry, window: Window, dimension: int, pairs: int) -> tuple[Array, Array]:
    """Return where the features of window 0 lie: places in the planes, and pixels."""
    numbers = np.arange(pairs * dimension)
    channel, rest = np.divmod(numbers, window.num_pixels)
    row, column = (
        gap * number
        for gap, number in zip(window.dilation, np.divmod(rest, window.kernel_size[1]), strict=True)
    )
    shift, phase = np.divmod(column, geometry.column_stride)
    places = channel * geometry.plane_length + row * geometry.row_length
    places += phase * geometry.phase_length + shift
    taps = np.stack([channel, row - geometry.above, column - geometry.left], -1)
    by_axis = np.ascontiguousarray(places.reshape(pairs, dimension).T)
    return by_axis, np.ascontiguousarray(taps)


def _locate(
    x: Array, ggx: Array | None, tables: Array, geometry: Geometry, *, need_scale: bool
) -> Planes:
    """Find interval and position of every pixel."""
    intervals = intervals_of(tables, x.dtype)
    size = len(x) * geometry.image_length
    none = np.empty(0, x.dtype)
    planes = Planes(
        np.empty(size, np.uint32),
        np.empty(size, x.dtype),
        np.empty(size, x.dtype) if need_scale else none,
        none if ggx is None else np.empty(size, x.dtype),
    )
    along = np.empty((0, 0, 0, 0), x.dtype) if ggx is None else ggx
    kernel = compiling.compiled(compiling.LOCATE, x.dtype, x.dtype)
    in_ranges(
        lambda begin, end: kernel(
            *(begin, end, x, along, tables.shape[1], intervals, geometry, planes)
        ),
        size // geometry.plane_length,
        most=64,
        work=4 * size,
    )
    return planes


def _convolve(
    x: Array, tables: Array, ggx: Array | None, window: Window, accumulate: bool, out: Array
) -> None:
    """Run one of the two forward kernels on some images at a time, each thread on some windows."""
    tables, dimension = stored(tables), dimension_of(tables)
    pairs, *_, out_features = tables.shape
    geometry = _geometry(*x.shape[2:], window, pairs * dimension)
    places, _ = _taps(geometry, window, dimension, pairs)
    gathers = is_gathered(tables.nbytes)
    kernel = compiling.compiled(
        compiling.CONVOLVE_GATHER if gathers else compiling.CONVOLVE,
        *(x.dtype, tables.dtype, dimension),
    )
    num_windows = geometry.out_height * geometry.out_width
    images = max(1, _PLANE_BYTES // (geometry.image_length * 8))
    for first in range(0, len(x), images):
        some = slice(first, first + images)
        planes = _locate(
            x[some], None if ggx is None else ggx[some], tables, geometry, need_scale=False
        )
        given = tables, places, geometry, planes, accumulate, out[some]
        count = len(x[some]) * num_windows
        in_ranges(
            partial(_run, kernel, given),
            count,
            most=kernels.MOST_SAMPLES if gathers else kernels.num_grouped(num_nodes(tables)),
            work=count * pairs * (out_features + 8),
        )


def _run(kernel: Callable[..., None], arguments: tuple[Any, ...], begin: int, end: int) -> None:
    kernel(begin, end, *arguments)


def _pull_back(
    grad_y: Array,
    x: Array,
    tables: Array,
    ggx: Array | None,
    window: Window,
    accumulate: bool,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Run the backward kernel, each thread for the pairs of some channels.

    Then every pixel has one owner. Where there are fewer such channels than threads,
    ``grad_tables`` is split by pairs or outputs and ``grad_x`` by images instead, and the windows
    are grouped twice. ``grad_x`` alone is always split by images, ``grad_tables`` alone never by
    channels.
    """
    tables, dimension = stored(tables), dimension_of(tables)
    pairs, *_, out_features = tables.shape
    geometry = _geometry(*x.shape[2:], window, pairs * dimension)
    places, taps = _taps(geometry, window, dimension, pairs)
    planes = _locate(x, ggx, tables, geometry, need_scale=True)
    kernel = compiling.compiled(compiling.CONVOLVE_BACKWARD, x.dtype, tables.dtype, dimension)
    rows = np.ascontiguousarray(grad_y.transpose(0, 2, 3, 1)).reshape(-1, out_features)
    block_size = kernels.num_grouped(num_nodes(tables))
    no_x, no_tables = np.empty((0, 0, 0, 0), x.dtype), np.empty((0,) * tables.ndim, x.dtype)
    if grad_x is not None and not accumulate:
        grad_x[...] = 0

    def run(
        pair_range: tuple[int, int],
        image_range: tuple[int, int],
        output_range: tuple[int, int],
        some_x: Array | None,
        some_tables: Array | None,
    ) -> None:
        kernel(
            *(*pair_range, *image_range, *output_range, block_size),
            *(rows, tables, places, taps, geometry, planes),
            no_x if some_x is None else some_x,
            no_tables if some_tables is None else some_tables,
        )

    # The fewest channels whose features are whole pairs.
    channels = dimension // int(np.gcd(dimension, window.num_pixels))
    unit = channels * window.num_pixels // dimension
    units = -(-pairs // unit)
    work = len(rows) * pairs * (out_features + 16)
    all_pairs, all_images, all_outputs = (0, pairs), (0, len(x)), (0, out_features)
    if grad_tables is not None and grad_x is not None and units >= num_threads():
        in_ranges(
            lambda begin, end: run(
                (begin * unit, min(end * unit, pairs)), all_images, all_outputs, grad_x, grad_tables
            ),
            units,
            most=max(1, kernels.pair_tile(tables) // unit),
            work=2 * work,
        )
        return
    if grad_tables is not None and pairs >= num_threads():
        in_ranges(
            lambda begin, end: run((begin, end), all_images, all_outputs, None, grad_tables),
            pairs,
            most=kernels.pair_tile(tables),
            work=work,
        )
    elif grad_tables is not None:
        in_ranges(
            lambda begin, end: run(all_pairs, all_images, (begin, end), None, grad_tables),
            out_features,
            most=out_features,
            work=work,
        )
    if grad_x is not None:
        in_ranges(
            lambda begin, end: run(all_pairs, (begin, end), all_outputs, grad_x, None),
            len(x),
            most=len(x),
            work=work,
        )
