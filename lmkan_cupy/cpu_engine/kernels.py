# mypy: ignore-errors
"""The kernels of an lmKAN layer for the CPU, compiled by Numba.

Symbols: B samples, I inputs, O outputs, P = ceil(I / 2) pairs, G grid intervals, S = G + 1 knots.

There are two ways through a layer. Most kernels take one pair at a time and group the samples of a
block by the cell that they fall into (:func:`_group`). Then they go from group to group: the four
table rows of a cell, or the gradients of these rows, stay in registers for all samples of the cell.
Where rows are short, grouping takes longer than it saves. There the forward
(:func:`gather_kernel`) goes from sample to sample: the sums of a few samples stay in registers for
several pairs. A row of O outputs is cut into chunks of a fixed number of outputs. Each chunk is a
vector (:class:`Vector`) that fits the processor's instructions, so nothing is left to a compiler's
automatic vectorisation.

The result of a sample depends only on its own values. The gradients of tables are added in the
order of the samples, block by block, and the size of a block follows from the grid. So results do
not depend on how the work is split.

The types are Numba's, not Python's, so this is not type-checked.
"""

from collections import namedtuple

import numpy as np
from numba.extending import register_jitable

from .vectors import (
    add_corners,
    chunked,
    count_reached,
    cut,
    dot_products,
    element,
    every_other,
    gather_corners,
    jit,
    load,
    load_corners,
    load_samples,
    look_up,
    multiply_add,
    samples_from,
    spread,
    store,
    store_samples,
)

# --- Grouping the samples of a block by cell ------------------------------------------------------

#: Pairs whose coordinates are fetched together: in float32 one cache line of a row of ``x``.
PAIR_TILE = 8
_FEATURE_TILE = 2 * PAIR_TILE

#: Coordinates located together, and those of as many pairs.
_LANES = 16
_PAIR_LANES = 2 * _LANES

#: Where the N samples of a block lie for one pair: ``cell``, i S + j for its intervals i and j;
#: ``u, v``, the positions in them; ``scale_1, scale_2``, one over their widths; all [N].
_Positions = namedtuple("_Positions", "cell, u, v, scale_1, scale_2")

#: The samples of a block, sorted so that those of a cell stand together: ``sample [N]`` holds their
#: numbers, ``weights [N, 4]`` the weights of the corners (i, j), (i, j+1), (i+1, j), (i+1, j+1).
#: Group n is the samples of one cell: ``node[n]`` is i S + j of the cell, and its samples have the
#: places from ``start[n]`` to ``start[n + 1]``.
Groups = namedtuple("Groups", "node, start, sample, weights")

#: Positions and groups with their workspace: ``coordinates [_FEATURE_TILE, N]``, ``count [S S]``.
_Block = namedtuple("_Block", "positions, groups, coordinates, count")


#: The most samples of one call of a forward kernel: enough to be worth the call, but not so many
#: that caches overflow, or that one thread still works on its samples while the others are done.
MOST_SAMPLES = 4096


@register_jitable
def num_grouped(num_knots: int) -> int:
    """How many samples to group: several per cell, but no more than caches hold."""
    return min(max(1024, 16 * num_knots * num_knots), MOST_SAMPLES)


@jit
def new_block(size, num_knots, dtype):
    """Room for ``size`` samples, and for reading on to a multiple of ``_LANES``."""
    # An odd multiple: otherwise all rows of the coordinates would compete for the same cache lines.
    room = (-(-size // _LANES) | 1) * _LANES
    positions = _Positions(
        np.empty(room, np.uint32),
        np.empty(room, dtype),
        np.empty(room, dtype),
        np.empty(room, dtype),
        np.empty(room, dtype),
    )
    groups = Groups(
        np.empty(room + 1, np.int64),
        np.empty(room + 1, np.int64),
        np.empty(room, np.uint32),
        np.empty((room, 4), dtype),
    )
    coordinates = np.empty((_FEATURE_TILE, room), dtype)
    count = np.empty(num_knots * num_knots, np.uint32)
    return _Block(positions, groups, coordinates, count)


@jit
def fetch(x, bound, first_pair, coordinates):
    """Transpose the features of some pairs, cut at ``+-bound``, into ``coordinates``."""
    size, in_features = x.shape
    first = 2 * first_pair
    available = min(_FEATURE_TILE, in_features - first)
    for n in range(size):
        for k in range(available):
            value = x[n, first + k]
            value = bound if value > bound else value  # a NaN passes
            coordinates[k, n] = -bound if value < -bound else value
    if available % 2 == 1:
        coordinates[available] = 0


@jit
def _locate(x, num_knots, intervals):
    """Find the interval of ``_LANES`` coordinates, the position in it, and one over its width.

    ``intervals [2, L]`` holds the left knots and one over the widths. The interval is the number
    of inner knots that do not exceed the coordinate. That is ``clamp(floor(G sigma(x)), 0, G - 1)``
    without an exponential or a clamp. A NaN, which is not greater than any knot, falls into
    interval 0.
    """
    interval = spread(np.uint32(0), _LANES)
    for k in range(1, num_knots - 1):
        interval = count_reached(x, element(intervals, k), interval)
    factor = look_up(intervals, 1, interval)
    return interval, (x - look_up(intervals, 0, interval)) * factor, factor


@jit
def _weights(one, u, v):
    """Weights of the corners (i, j), (i, j+1), (i+1, j), (i+1, j+1) at a position in a cell."""
    return (one - u) * (one - v), (one - u) * v, u * (one - v), u * v


@jit
def _weight_slopes(one, u, v, a, b):
    """Derivative of these weights in the direction ``(a, b)``."""
    return (
        -one * a * (one - v) - b * (one - u),
        b * (one - u) - a * v,
        a * (one - v) - b * u,
        a * v + b * u,
    )


@jit
def locate_pair(tile, size, num_knots, intervals, block):
    """Find the cells and positions of ``size`` samples for pair ``tile`` of those fetched."""
    at, coordinates = block.positions, block.coordinates
    first = 2 * tile * coordinates.shape[1]
    second = first + coordinates.shape[1]
    for n in range(0, size, _LANES):
        row, u, scale_1 = _locate(load(coordinates, first + n, _LANES), num_knots, intervals)
        column, v, scale_2 = _locate(load(coordinates, second + n, _LANES), num_knots, intervals)
        store(at.cell, n, np.uint32(num_knots) * row + column)
        store(at.u, n, u)
        store(at.v, n, v)
        store(at.scale_1, n, scale_1)
        store(at.scale_2, n, scale_2)


@jit
def _put(n, place, pair, ggx, at, groups):
    """Put sample ``n`` of a block into a place of the grouped order, with its weights."""
    u, v, one = at.u[n], at.v[n], at.u.dtype.type(1)
    if ggx.size:
        a = ggx[n, 2 * pair] * at.scale_1[n]
        b = ggx[n, 2 * pair + 1] * at.scale_2[n] if 2 * pair + 1 < ggx.shape[1] else one - one
        new = _weight_slopes(one, u, v, a, b)
    else:
        new = _weights(one, u, v)
    groups.sample[place] = n
    weights = groups.weights[place]
    weights[0], weights[1], weights[2], weights[3] = new


@jit
def _group(x, bound, pair, first_pair, num_knots, intervals, ggx, block):
    """Locate the samples of a block ``x`` [N, I] for one pair and group them by their cell.

    The weights are those of the corners; with a cotangent ``ggx`` [N, I] (not empty) they are
    instead the derivatives of these weights in the direction ``ggx``. Calls come for one pair after
    the other, from ``first_pair`` on.

    Returns the number of groups.
    """
    size = x.shape[0]
    tile = (pair - first_pair) % PAIR_TILE
    if tile == 0:
        fetch(x, bound, pair, block.coordinates)
    locate_pair(tile, size, num_knots, intervals, block)

    cells = block.positions.cell
    node, start, count = block.groups.node, block.groups.start, block.count
    if 4 * size < count.size:  # so few samples rarely share a cell: each is a group
        for n in range(size):
            node[n] = cells[n]
            start[n] = n
            _put(n, n, pair, ggx, block.positions, block.groups)
        start[size] = size
        return size

    # A stable sort: count the samples of each cell, give each cell its places, then fill them.
    count[:] = 0
    for n in range(size):
        count[cells[n]] += np.uint32(1)
    num_groups = place = 0
    for cell in range(count.size):
        members = count[cell]
        count[cell] = place
        node[num_groups] = cell  # kept only if there are members: no branch that is hard to predict
        start[num_groups] = place
        num_groups += members > 0
        place += members
    start[num_groups] = size
    for n in range(size):
        cell = cells[n]
        place = count[cell]
        count[cell] = place + np.uint32(1)
        _put(n, place, pair, ggx, block.positions, block.groups)
    return num_groups


# --- Locating the samples of a block for some pairs, as they stand --------------------------------

#: Samples that are gathered together: their cells of ``PAIR_TILE`` pairs stay in the first cache.
GATHERED = 128

#: How many cells there is room for, as whole vectors are written and read.
ROOM = GATHERED * PAIR_TILE + _LANES

#: Of N samples and Q pairs ``cell [>= N Q]``, i S + j for the intervals i and j, and
#: ``weights [4, ROOM]``, those of the corners. ``coordinates, direction`` are workspace: the
#: elements of ``x`` and ``ggx`` for these pairs.
Cells = namedtuple("Cells", "cell, weights, coordinates, direction")


@jit
def _new_cells(x, ggx):
    """Room for ``GATHERED`` samples and ``PAIR_TILE`` pairs."""
    return Cells(
        np.empty(ROOM, np.uint32),
        np.empty((4, ROOM), x.dtype),
        np.empty(2 * ROOM, x.dtype),
        np.empty(2 * ROOM if ggx.size else 0, x.dtype),
    )


@jit
def _copy_pairs(begin, end, x, rows):
    """Copy the pairs from ``begin`` to ``end``, where the partner of an odd last feature is 0."""
    size, in_features = x.shape
    width = 2 * (end - begin)
    available = min(width, in_features - 2 * begin)
    for n in range(size):
        source = n * in_features + 2 * begin
        if source + _FEATURE_TILE <= x.size:  # the next row overwrites the surplus of this one
            store(rows, n * width, load(x, source, _FEATURE_TILE))
        else:
            for k in range(available):
                rows[n * width + k] = x[n, 2 * begin + k]
    if available < width:
        for n in range(size):
            rows[(n + 1) * width - 1] = 0


@jit
def _find_cells(begin, end, x, bound, ggx, num_knots, intervals, cells):
    """Find the cells of all samples ``x`` [N, I], cut at ``+-bound``, for some pairs.

    Those are the pairs from ``begin`` to ``end``. Weights are those of :func:`_put`.
    """
    one = x.dtype.type(1)
    _copy_pairs(begin, end, x, cells.coordinates)
    if ggx.size:
        _copy_pairs(begin, end, ggx, cells.direction)
    for place in range(0, (end - begin) * x.shape[0], _LANES):
        coordinates = cut(load(cells.coordinates, 2 * place, _PAIR_LANES), bound)
        row, u, scale_1 = _locate(every_other(coordinates, 0), num_knots, intervals)
        column, v, scale_2 = _locate(every_other(coordinates, 1), num_knots, intervals)
        if ggx.size:
            direction = load(cells.direction, 2 * place, _PAIR_LANES)
            a, b = every_other(direction, 0) * scale_1, every_other(direction, 1) * scale_2
            weights = _weight_slopes(one, u, v, a, b)
        else:
            weights = _weights(one, u, v)
        store(cells.cell, place, np.uint32(num_knots) * row + column)
        store(cells.weights, place, weights[0])
        store(cells.weights, place + ROOM, weights[1])
        store(cells.weights, place + 2 * ROOM, weights[2])
        store(cells.weights, place + 3 * ROOM, weights[3])


# --- Kernels --------------------------------------------------------------------------------------
# Python calls these for a range of samples or of pairs. An empty array stands for None, so that
# each kernel is compiled only once for each pair of dtypes.


def forward_kernel(begin, end, x, tables, intervals, ggx, accumulate, out):
    """Compute ``out`` [B, O] for the samples from ``begin`` to ``end``, one block.

    With ``ggx`` it is the derivative of the layer in the direction ``ggx``. With ``accumulate`` it
    is added to ``out``.
    """
    if not accumulate:
        out[begin:end] = 0
    chosen, no_bound = slice(begin, end), x.dtype.type(np.inf)
    add_grouped(tables, x[chosen], no_bound, ggx[chosen], intervals, out[chosen])


@jit
def add_grouped(tables, x, bound, ggx, intervals, out):
    """Add a layer, or its derivative in the direction ``ggx``, to ``out``, cell by cell.

    The inputs are cut at ``+-bound``.
    """
    num_pairs, num_knots = tables.shape[0], tables.shape[1]
    block = new_block(x.shape[0], num_knots, x.dtype)
    for pair in range(num_pairs):
        num_groups = _group(x, bound, pair, 0, num_knots, intervals, ggx, block)
        _add_rows(0, out.shape[1], num_groups, block.groups, pair, tables, out)


@chunked(64, 32, 16, 8, 4, 1)
def _add_rows(width):
    """``out[b] += sum of w_n T[p, n]`` over the four corners n, for the samples of all groups."""

    def walk(first, num_groups, groups, pair, tables, out):
        num_knots, num_outputs = tables.shape[2], tables.shape[3]
        for group in range(num_groups):
            node = pair * num_knots * num_knots + element(groups.node, group)
            row = node * num_outputs + first
            corners = load_corners(tables, row, num_outputs, num_knots * num_outputs, width)
            for place in range(element(groups.start, group), element(groups.start, group + 1)):
                target = element(groups.sample, place) * num_outputs + first
                store(
                    out,
                    target,
                    add_corners(load(out, target, width), groups.weights, place, corners),
                )

    return walk


def gather_kernel(begin, end, x, tables, intervals, ggx, accumulate, out):
    """Compute the same as :func:`forward_kernel`, to the bit, for any number of samples."""
    cells = _new_cells(x, ggx)
    no_bound = x.dtype.type(np.inf)
    if not accumulate:
        out[begin:end] = 0
    for first in range(begin, end, GATHERED):
        chosen = slice(first, min(first + GATHERED, end))
        add_gathered(tables, x[chosen], no_bound, ggx[chosen], intervals, cells, out[chosen])


@jit
def add_gathered(tables, x, bound, ggx, intervals, cells, out):
    """Add the same as :func:`add_grouped`, to the bit, sample by sample."""
    num_pairs, num_knots = tables.shape[0], tables.shape[1]
    for pair in range(0, num_pairs, PAIR_TILE):
        end_pair = min(pair + PAIR_TILE, num_pairs)
        _find_cells(pair, end_pair, x, bound, ggx, num_knots, intervals, cells)
        _gather_rows(0, out.shape[1], pair, end_pair, cells.cell, cells.weights, tables, out)


@chunked(64, 32, 16, 8, 4, 1)
def _gather_rows(width):
    """``out[b] += sum of w_n T[p, n]`` over the corners n, for the pairs ``begin <= p < end``."""
    # As many samples at once as leave their sums in registers.
    count = min(max(64 // width, 1), 4)

    def walk(first, begin, end, cells, weights, tables, out):
        size, num_outputs = out.shape
        num_knots, num_pairs = tables.shape[1], end - begin
        down = num_knots * num_outputs
        for n in range(0, size, count):
            samples = samples_from(n, size - 1, count)
            sums = load_samples(out, samples, first, num_outputs, width)
            for pair in range(num_pairs):
                row = (begin + pair) * num_knots * down + first
                # Without a star, which would make a variable of the constant.
                sums = gather_corners(
                    sums,
                    samples,
                    pair,
                    num_pairs,
                    cells,
                    weights,
                    ROOM,
                    tables,
                    row,
                    num_outputs,
                    down,
                )
            store_samples(out, samples, first, num_outputs, sums)

    return walk


def backward_kernel(
    begin,
    end,
    first_output,
    end_output,
    block_size,
    grad_y,
    x,
    tables,
    intervals,
    ggx,
    accumulate,
    grad_x,
    grad_tables,
):
    """Pull ``grad_y`` [B, O] back for the pairs from ``begin`` to ``end``.

    ``grad_x`` and ``grad_tables`` are not computed where they are empty. Of ``grad_tables`` only
    the outputs from ``first_output`` to ``end_output`` are computed. With ``ggx`` this is the
    backward of the layer's derivative in the direction ``ggx``. With ``accumulate``, the result is
    added to ``grad_x``.
    """
    batch, num_outputs = grad_y.shape
    num_knots, no_bound = tables.shape[1], x.dtype.type(np.inf)
    block = new_block(min(block_size, batch), num_knots, x.dtype)
    slopes = np.empty((min(block_size, batch), 4), x.dtype)
    if grad_tables.size:
        grad_tables[begin:end, :, :, first_output:end_output] = 0
    for first in range(0, batch, block_size):
        chosen = slice(first, min(first + block_size, batch))
        g = grad_y[chosen]
        for pair in range(begin, end):
            num_groups = _group(
                *(x[chosen], no_bound, pair, begin, num_knots, intervals, ggx[chosen], block)
            )
            if grad_tables.size:
                _add_row_gradients(
                    first_output, end_output, num_groups, block.groups, pair, g, grad_tables
                )
            if grad_x.size:
                slopes[:] = 0
                add_slopes(0, num_outputs, num_groups, block.groups, pair, g, tables, slopes)
                finish(pair, block.positions, slopes, ggx[chosen], accumulate, grad_x[chosen])


@chunked(64, 32, 16, 8, 4, 1)
def _add_row_gradients(width):
    """``grad_tables[p, n] += sum over b of w_n grad_y[b]`` for the corners n of all groups.

    The samples of a block are added up by themselves: a sum over all samples, one after the other,
    would round as often as there are samples.
    """

    @jit
    def add(grad_tables, row, total):
        store(grad_tables, row, load(grad_tables, row, width) + total)

    def walk(first, num_groups, groups, pair, grad_y, grad_tables):
        num_knots, num_outputs = grad_tables.shape[2], grad_tables.shape[3]
        nothing = spread(grad_tables.dtype.type(0), width)
        for group in range(num_groups):
            node = pair * num_knots * num_knots + element(groups.node, group)
            row_00 = node * num_outputs + first
            row_01 = row_00 + num_outputs
            row_10 = row_00 + num_knots * num_outputs
            row_11 = row_10 + num_outputs
            grad_00, grad_01, grad_10, grad_11 = nothing, nothing, nothing, nothing
            for place in range(element(groups.start, group), element(groups.start, group + 1)):
                g = load(grad_y, element(groups.sample, place) * num_outputs + first, width)
                grad_00 = multiply_add(element(groups.weights, 4 * place), g, grad_00)
                grad_01 = multiply_add(element(groups.weights, 4 * place + 1), g, grad_01)
                grad_10 = multiply_add(element(groups.weights, 4 * place + 2), g, grad_10)
                grad_11 = multiply_add(element(groups.weights, 4 * place + 3), g, grad_11)
            add(grad_tables, row_00, grad_00)
            add(grad_tables, row_01, grad_01)
            add(grad_tables, row_10, grad_10)
            add(grad_tables, row_11, grad_11)

    return walk


@chunked(128, 64, 32, 16, 8, 4, 2, 1)
def add_slopes(width):
    """``slopes[b] += (g.D1, g.D2, g.D12, 0)`` for the samples of all groups, ``g = grad_y[b]``.

    The differences of the cell's rows are ``D1 = T[i+1, j] - T[i, j]``,
    ``D2 = T[i, j+1] - T[i, j]`` and ``D12 = T[i+1, j+1] - T[i+1, j] - D2``.
    """

    def walk(first, num_groups, groups, pair, grad_y, tables, slopes):
        num_knots, num_outputs = tables.shape[2], tables.shape[3]
        for group in range(num_groups):
            node = pair * num_knots * num_knots + element(groups.node, group)
            row = node * num_outputs + first
            row_00, row_01, row_10, row_11 = load_corners(
                tables, row, num_outputs, num_knots * num_outputs, width
            )
            d_1, d_2 = row_10 - row_00, row_01 - row_00
            d_12 = row_11 - row_10 - d_2
            for place in range(element(groups.start, group), element(groups.start, group + 1)):
                b = np.int64(element(groups.sample, place))
                g = load(grad_y, b * num_outputs + first, width)
                sums = load(slopes, 4 * b, 4) + dot_products(g, d_1, d_2, d_12)
                store(slopes, 4 * b, sums)

    return walk


@jit
def finish(pair, at, slopes, ggx, accumulate, grad_x):
    """Turn the slopes of a block into ``grad_x[b, 2p]`` and ``grad_x[b, 2p + 1]``."""
    is_complete = 2 * pair + 1 < grad_x.shape[1]
    for n in range(grad_x.shape[0]):
        u, v, scale_1, scale_2 = at.u[n], at.v[n], at.scale_1[n], at.scale_2[n]
        slope_12 = slopes[n, 2]
        if ggx.size:
            slope_1 = ggx[n, 2 * pair + 1] * scale_2 * slope_12 if is_complete else 0 * slope_12
            slope_2 = ggx[n, 2 * pair] * scale_1 * slope_12
        else:
            slope_1 = slopes[n, 0] + v * slope_12
            slope_2 = slopes[n, 1] + u * slope_12
        poison = 0 * u + 0 * v  # NaN if a coordinate is not finite: then both are NaN
        grad_1, grad_2 = slope_1 * scale_1 + poison, slope_2 * scale_2 + poison
        if accumulate:
            grad_1 += grad_x[n, 2 * pair]
            if is_complete:
                grad_2 += grad_x[n, 2 * pair + 1]
        grad_x[n, 2 * pair] = grad_1
        if is_complete:
            grad_x[n, 2 * pair + 1] = grad_2
