# mypy: ignore-errors
"""The kernels of a convolution for the CPU: windows are read from images as they are used.

Samples are the windows, in the order of images, rows and columns; the features of a window are in
the order of channels, rows and columns. Interval and position depend on the pixel alone, so
:func:`locate_kernel` finds them once, for all windows that the pixel is in. From then on the
mathematics is that of :mod:`.kernels`, block by block, so the results are its results for an array
of all windows, to the bit.

What is found lies in *planes* ``[N, C, L]``, one for each channel of an image with its margins. A
row of a plane is sorted by phase, the rest of the column divided by the stride: for a stride of 2

    columns 0 2 4 6 . | 1 3 5 7 .

so what windows side by side have at the same place stands side by side in a row. Where the last
pair is incomplete, there is one more channel, of zeros.

A pixel's gradient is the sum over its windows in their order. In every block of windows the pairs
are taken from the last one to the first: from one window to the next, a pixel moves towards the
window's first feature. So the sum does not depend on how the work is split.

The types are Numba's, not Python's, so this is not type-checked.
"""

from collections import namedtuple

import numpy as np

from .corners import (
    column,
    corner_weight_slopes,
    corner_weights,
    dimension_of,
    load_each,
    node_of,
    num_nodes,
    scatter,
)
from .kernels import (
    LANES,
    ROOM,
    Cells,
    add_row_gradients,
    add_rows,
    add_slopes,
    finish,
    gather_rows,
    group_located,
    locate,
    new_block,
)
from .vectors import jit, load, store

#: Sizes: those of images and of results; the stride; margins; the length of a phase, a row, a plane
#: and all planes of an image.
Geometry = namedtuple(
    "Geometry",
    "height, width, out_height, out_width, row_stride, column_stride, above, left, "
    "phase_length, row_length, plane_length, image_length",
)

#: Flat, with ``scale`` and ``direction`` as in a block's positions, or empty.
Planes = namedtuple("Planes", "interval, position, scale, direction")

#: Windows side by side in a block: run r has the samples from ``start[r]`` to ``start[r + 1]``; the
#: others say which window is its first one, and where that begins in the planes.
_Runs = namedtuple("_Runs", "start, image, row, column, place")


#: Windows and pairs that are gathered together. Their table rows, cells and results stay in the
#: second cache; more pairs at once would leave less room for windows that share the rows.
_WINDOWS = 512
_PAIRS = 4
assert _WINDOWS * _PAIRS + LANES <= ROOM


@jit
def _copy_plane(image, channel, x, geometry, plane):
    """Copy a channel of an image into its places in a plane."""
    stride = geometry.column_stride
    for phase in range(stride):
        first = (phase - geometry.left) % stride
        for y in range(geometry.height):
            place = (y + geometry.above) * geometry.row_length + phase * geometry.phase_length
            place += (first + geometry.left) // stride
            for k in range(first, geometry.width, stride):
                plane[place] = x[image, channel, y, k]
                place += 1


def locate_kernel(begin, end, x, ggx, num_knots, intervals, geometry, planes):
    """Fill the planes from ``begin`` to ``end`` with what is found for the pixels ``x``."""
    length = geometry.plane_length
    channels = geometry.image_length // length
    pixels, along = np.empty(length, x.dtype), np.empty(length, x.dtype)
    for number in range(begin, end):
        image, channel = number // channels, number % channels
        pixels[:] = 0
        along[:] = 0
        if channel < x.shape[1]:
            _copy_plane(image, channel, x, geometry, pixels)
            if ggx.size:
                _copy_plane(image, channel, ggx, geometry, along)
        for k in range(0, length, LANES):
            interval, u, scale = locate(load(pixels, k, LANES), num_knots, intervals)
            place = number * length + k
            store(planes.interval, place, interval)
            store(planes.position, place, u)
            if planes.scale.size:
                store(planes.scale, place, scale)
            if ggx.size:
                store(planes.direction, place, load(along, k, LANES) * scale)


@jit
def _new_runs(size):
    return _Runs(
        np.empty(size + 1, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
    )


@jit
def _find_runs(begin, end, geometry, runs):
    """Cut the windows from ``begin`` to ``end`` into runs; return how many there are."""
    count, window = 0, begin
    while window < end:
        row, k = window // geometry.out_width, window % geometry.out_width
        image, row = row // geometry.out_height, row % geometry.out_height
        runs.start[count] = window - begin
        runs.image[count] = image
        runs.row[count] = row
        runs.column[count] = k
        runs.place[count] = (
            image * geometry.image_length + row * geometry.row_stride * geometry.row_length + k
        )
        window += geometry.out_width - k
        count += 1
    runs.start[count] = end - begin
    return count


@jit
def _read_windows(pair, count, runs, places, tables, planes, at):
    """Read cells and positions of the windows of a block for one pair."""
    room, num_knots = at.position.shape[1], tables.shape[1]
    starts = column(places, pair, tables)
    for run in range(count):
        for n in range(runs.start[run], runs.start[run + 1], LANES):
            place = runs.place[run] + n - runs.start[run]
            store(at.node, n, node_of(load_each(planes.interval, starts, place, LANES), num_knots))
            scatter(at.position, n, room, load_each(planes.position, starts, place, LANES))
            if planes.scale.size:
                scatter(at.scale, n, room, load_each(planes.scale, starts, place, LANES))
            if planes.direction.size:
                scatter(at.direction, n, room, load_each(planes.direction, starts, place, LANES))


@jit
def _read_cells(begin, end, count, runs, places, tables, planes, cells):
    """Read the cells of windows for the pairs from ``begin`` to ``end``, one after the other."""
    num_knots = tables.shape[1]
    for pair in range(begin, end):
        first = (pair - begin) * _WINDOWS
        starts = column(places, pair, tables)
        for run in range(count):
            for n in range(runs.start[run], runs.start[run + 1], LANES):
                place = runs.place[run] + n - runs.start[run]
                position = load_each(planes.position, starts, place, LANES)
                if planes.direction.size:
                    direction = load_each(planes.direction, starts, place, LANES)
                    weights = corner_weight_slopes(position, direction)
                else:
                    weights = corner_weights(position)
                knots = load_each(planes.interval, starts, place, LANES)
                store(cells.node, first + n, node_of(knots, num_knots))
                scatter(cells.weights, first + n, ROOM, weights)


@jit
def _read_rows(count, runs, out, rows):
    """Copy the results of windows ``out`` [N, O, H', W'] into rows, one for each window."""
    for run in range(count):
        image, row, first = runs.image[run], runs.row[run], runs.column[run] - runs.start[run]
        for k in range(out.shape[1]):
            for n in range(runs.start[run], runs.start[run + 1]):
                rows[n, k] = out[image, k, row, first + n]


@jit
def _write_rows(count, runs, rows, out):
    """Copy rows to where :func:`_read_rows` finds them."""
    for run in range(count):
        image, row, first = runs.image[run], runs.row[run], runs.column[run] - runs.start[run]
        for k in range(out.shape[1]):
            for n in range(runs.start[run], runs.start[run + 1]):
                out[image, k, row, first + n] = rows[n, k]


# --- Kernels --------------------------------------------------------------------------------------
# As in :mod:`.kernels`, an empty array stands for None. ``places [d, P]`` are those of the features
# of window 0 in the planes of its image.


def convolve_kernel(begin, end, tables, places, geometry, planes, accumulate, out):
    """Compute ``out`` [N, O, H', W'] for the windows from ``begin`` to ``end``, one block.

    With directions in the planes it is the derivative in this direction. With ``accumulate`` it is
    added to ``out``.
    """
    size = end - begin
    runs, block = _new_runs(size), new_block(size + LANES, tables, planes.position.dtype)
    count = _find_runs(begin, end, geometry, runs)
    rows = np.zeros((size, out.shape[1]), planes.position.dtype)
    if accumulate:
        _read_rows(count, runs, out, rows)
    for pair in range(tables.shape[0]):
        _read_windows(pair, count, runs, places, tables, planes, block.positions)
        num_groups = group_located(size, planes.direction.size > 0, tables, block)
        add_rows(0, out.shape[1], num_groups, block.groups, pair, tables, rows)
    _write_rows(count, runs, rows, out)


def convolve_gather_kernel(begin, end, tables, places, geometry, planes, accumulate, out):
    """Compute the same as :func:`convolve_kernel`, to the bit, for any number of windows."""
    num_pairs, dtype = tables.shape[0], planes.position.dtype
    runs, rows = _new_runs(_WINDOWS), np.empty((_WINDOWS, out.shape[1]), dtype)
    cells = Cells(
        np.empty(ROOM, np.uint32),
        np.empty((2 ** dimension_of(tables), ROOM), dtype),
        planes.direction[:0],
        planes.direction[:0],
    )
    for first in range(begin, end, _WINDOWS):
        size = min(_WINDOWS, end - first)
        count = _find_runs(first, first + size, geometry, runs)
        if accumulate:
            _read_rows(count, runs, out, rows)
        else:
            rows[:] = 0
        for pair in range(0, num_pairs, _PAIRS):
            end_pair = min(pair + _PAIRS, num_pairs)
            _read_cells(pair, end_pair, count, runs, places, tables, planes, cells)
            gather_rows(
                *(0, out.shape[1], pair, end_pair, 1, _WINDOWS),
                *(cells.node, cells.weights, tables, rows[:size]),
            )
        _write_rows(count, runs, rows, out)


def convolve_backward_kernel(
    begin,
    end,
    first_image,
    end_image,
    first_output,
    end_output,
    block_size,
    grad_y,
    tables,
    places,
    taps,
    geometry,
    planes,
    grad_x,
    grad_tables,
):
    """Pull ``grad_y`` [N H' W', O] back for the pairs from ``begin`` to ``end``.

    Only the windows of the images from ``first_image`` to ``end_image`` are taken. ``grad_x``
    [N, C, H, W] and ``grad_tables`` are not computed where they are empty. Of ``grad_tables`` only
    the outputs from ``first_output`` to ``end_output`` are computed. With directions in the planes
    this is the backward of the derivative in this direction. The result is added to ``grad_x``, so
    calls at the same time must not share pixels of it.

    ``taps [P d, 3]`` are channel, row and column of the features of window 0.
    """
    dtype, dimension = planes.position.dtype, dimension_of(tables)
    num_outputs, is_directed = grad_y.shape[1], planes.direction.size > 0
    per_image = geometry.out_height * geometry.out_width
    last = end_image * per_image
    most = min(block_size, last - first_image * per_image)
    runs, block = _new_runs(most), new_block(most + LANES, tables, dtype)
    slopes = np.empty((most, 2**dimension), dtype)
    grads = np.empty((most, dimension), dtype)
    if grad_tables.size:
        rows = grad_tables.reshape(tables.shape[0], num_nodes(tables), num_outputs)
        rows[begin:end, :, first_output:end_output] = 0
    for first in range(first_image * per_image, last, block_size):
        size = min(block_size, last - first)
        count = _find_runs(first, first + size, geometry, runs)
        g = grad_y[first : first + size]
        for pair in range(end - 1, begin - 1, -1):
            _read_windows(pair, count, runs, places, tables, planes, block.positions)
            num_groups = group_located(size, is_directed, tables, block)
            if grad_tables.size:
                add_row_gradients(
                    first_output, end_output, num_groups, block.groups, pair, g, grad_tables
                )
            if grad_x.size:
                slopes[:] = 0
                add_slopes(0, num_outputs, num_groups, block.groups, pair, g, tables, slopes)
                finish(0, tables, block.positions, slopes, is_directed, False, grads[:size])
                for axis in range(dimension - 1, -1, -1):
                    tap = taps[pair * dimension + axis]
                    if tap[0] < grad_x.shape[1]:
                        _fold(axis, count, runs, tap, geometry, grads, grad_x)


@jit
def _fold(axis, count, runs, tap, geometry, grads, grad_x):
    """Add ``grads[b, axis]`` to the pixel that the windows b have at ``tap``, if not a margin's."""
    stride, width = geometry.column_stride, geometry.width
    for run in range(count):
        y = runs.row[run] * geometry.row_stride + tap[1]
        if 0 <= y < geometry.height:
            image, start = runs.image[run], runs.start[run]
            x = runs.column[run] * stride + tap[2]
            first = 0 if x >= 0 else (stride - 1 - x) // stride
            end = min(runs.start[run + 1] - start, (width - x + stride - 1) // stride)
            for n in range(first, end):
                grad_x[image, tap[0], y, x + n * stride] += grads[start + n, axis]
