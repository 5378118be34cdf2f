# mypy: ignore-errors
"""The kernels of an lmKAN layer for the CPU, compiled by Numba.

Symbols: B samples, I inputs, O outputs, d inputs of an inner function, here called a *pair* for any
d, P = ceil(I / d) pairs, G grid intervals, S = G + 1 knots. The axes of tables, which are ``[P, S,
..., S, O]``, tell d, see :mod:`.corners`; every kernel is compiled once for each d.

There are two ways through a layer. Most kernels take one pair at a time and group the samples of a
block by the cell that they fall into (:func:`_group`). Then they go from group to group: the table
rows of a cell, or the gradients of these rows, stay in registers for all samples of the cell.
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
from typing import Any

import numpy as np
from numba.extending import overload, register_jitable

from .corners import (
    add_corners,
    add_products,
    add_to_rows,
    by_axis,
    coefficients_at,
    coefficients_of,
    column,
    corner_weight_slopes,
    corner_weights,
    dimension_of,
    dot_products,
    gather_corners,
    load_corners,
    load_points,
    no_sums,
    node_of,
    num_nodes,
    partial_derivatives,
    partial_slopes,
    products,
    scatter,
)
from .layout import FIRST_SLOT
from .vectors import (
    chunked,
    count_reached,
    cut,
    element,
    inlined,
    jit,
    load,
    load_like,
    load_samples,
    look_up,
    no_count,
    pick,
    samples_from,
    spread,
    store,
    store_samples,
    whole_part,
)

# --- Grouping the samples of a block by cell ------------------------------------------------------

#: Features that are fetched together: in float32 one cache line of a row of ``x``.
_FEATURE_TILE = 16

#: Coordinates located together, along one axis.
LANES = 16

#: Where the N samples of a block lie for one pair: ``node``, that of the first corner of their
#: cell, for d = 2 i S + j; along each axis the ``position`` in the cell, ``scale``, one over the
#: cell's width, and the ``direction`` of the sample over that width, all three [d, N].
_Positions = namedtuple("_Positions", "node, position, scale, direction")

#: The samples of a block, sorted so that those of a cell stand together: ``sample [N]`` holds their
#: numbers, ``weights [N, 2^d]`` the weights of the corners. Group n is the samples of one cell:
#: ``node[n]`` is its first corner, and its samples have the places from ``start[n]`` to
#: ``start[n + 1]``.
Groups = namedtuple("Groups", "node, start, sample, weights")

#: Positions and groups with their workspace: ``coordinates [_FEATURE_TILE, N]``, ``count [S^d]``.
_Block = namedtuple("_Block", "positions, groups, coordinates, count")


#: The most samples of one call of a forward kernel: enough to be worth the call, but not so many
#: that caches overflow, or that one thread still works on its samples while the others are done.
MOST_SAMPLES = 4096


@register_jitable
def pair_tile(tables: Any) -> int:
    """How many pairs are fetched together."""
    return _FEATURE_TILE // dimension_of(tables)


@register_jitable
def num_grouped(nodes: int) -> int:
    """How many samples to group by so many nodes: several per cell, no more than caches hold."""
    return min(max(1024, 16 * nodes), MOST_SAMPLES)


@jit
def new_block(size, tables, dtype):
    """Room for ``size`` samples, and for reading on to a multiple of ``LANES``."""
    # An odd multiple: otherwise all rows of the coordinates would compete for the same cache lines.
    room = (-(-size // LANES) | 1) * LANES
    dimension = dimension_of(tables)
    positions = _Positions(
        np.empty(room, np.uint32),
        np.empty((dimension, room), dtype),
        np.empty((dimension, room), dtype),
        np.empty((dimension, room), dtype),
    )
    groups = Groups(
        np.empty(room + 1, np.uint32),
        np.empty(room + 1, np.int64),
        np.empty(room, np.uint32),
        np.empty((room, 2**dimension), dtype),
    )
    coordinates = np.empty((_FEATURE_TILE, room), dtype)
    count = np.empty(num_nodes(tables), np.uint32)
    return _Block(positions, groups, coordinates, count)


@jit
def fetch(x, bound, first_pair, tables, coordinates):
    """Transpose the features of some pairs, cut at ``+-bound``, into ``coordinates``."""
    size, in_features = x.shape
    dimension = dimension_of(tables)
    first = dimension * first_pair
    available = min(dimension * pair_tile(tables), in_features - first)
    for n in range(size):
        for k in range(available):
            value = x[n, first + k]
            value = bound if value > bound else value  # a NaN passes
            coordinates[k, n] = -bound if value < -bound else value
    while available % dimension:
        coordinates[available] = 0
        available += 1


@jit
def _locate_by_slot(x, intervals):
    """Do what :func:`locate` does on a fine grid, where a slot holds at most one inner knot."""
    origin, density, last = intervals[2, 0], intervals[2, 1], intervals[2, 2]
    slot = whole_part(density * (-origin + x), last)
    interval = whole_part(pick(intervals, 2, FIRST_SLOT + slot), last)
    interval = count_reached(x, pick(intervals, 0, np.uint32(1) + interval), interval)
    factor = pick(intervals, 1, interval)
    return interval, (x - pick(intervals, 0, interval)) * factor, factor


@inlined
def locate(x, num_knots, intervals):
    """Find the intervals of a vector of coordinates, the positions in them, one over their widths.

    ``intervals`` is that of :func:`.layout.intervals`. The interval is the number of inner knots
    that do not exceed the coordinate. That is ``clamp(floor(G sigma(x)), 0, G - 1)`` without an
    exponential or a clamp. A NaN, which is not greater than any knot, falls into interval 0.
    """
    if len(intervals) == 3:
        return _locate_by_slot(x, intervals)
    interval = no_count(x)
    for k in range(1, num_knots - 1):
        interval = count_reached(x, element(intervals, k), interval)
    factor = look_up(intervals, 1, interval)
    return interval, (x - look_up(intervals, 0, interval)) * factor, factor


def _locate_each(coordinates, num_knots, intervals):
    """Find the same for a tuple of vectors: a tuple of each of the three results."""


@overload(_locate_each, jit_options={"forceinline": True})
def _locate_one_by_one(coordinates, num_knots, intervals):
    if coordinates.count == 1:

        def locate_last(coordinates, num_knots, intervals):
            interval, u, scale = locate(coordinates[0], num_knots, intervals)
            return (interval,), (u,), (scale,)

        return locate_last

    def locate_first(coordinates, num_knots, intervals):
        interval, u, scale = locate(coordinates[0], num_knots, intervals)
        others = _locate_each(coordinates[1:], num_knots, intervals)
        return (interval, *others[0]), (u, *others[1]), (scale, *others[2])

    return locate_first


@jit
def locate_pair(tile, size, tables, intervals, block):
    """Find the cells and positions of ``size`` samples for pair ``tile`` of those fetched."""
    at, coordinates = block.positions, block.coordinates
    room, dimension = coordinates.shape[1], dimension_of(tables)
    num_knots = tables.shape[1]
    for n in range(0, size, LANES):
        node = spread(np.uint32(0), LANES)
        for axis in range(dimension):
            x = load(coordinates, (dimension * tile + axis) * room + n, LANES)
            interval, u, scale = locate(x, num_knots, intervals)
            node = np.uint32(num_knots) * node + interval
            store(at.position, axis * room + n, u)
            store(at.scale, axis * room + n, scale)
        store(at.node, n, node)


@jit
def _direct(pair, ggx, at):
    """Put the directions ``ggx`` [N, I] of the samples, in units of their cells, into ``at``."""
    size, in_features = ggx.shape
    dimension = at.direction.shape[0]
    for n in range(size):
        for axis in range(dimension):
            k = dimension * pair + axis
            at.direction[axis, n] = ggx[n, k] * at.scale[axis, n] if k < in_features else 0


@jit
def _put(n, place, is_directed, tables, at, groups):
    """Put sample ``n`` of a block into a place of the grouped order, with its weights."""
    position = column(at.position, n, tables)
    if is_directed:
        new = corner_weight_slopes(position, column(at.direction, n, tables))
    else:
        new = corner_weights(position)
    groups.sample[place] = n
    scatter(groups.weights, place * groups.weights.shape[1], 1, new)


@jit
def _group(x, bound, pair, first_pair, tables, intervals, ggx, block):
    """Locate the samples of a block ``x`` [N, I] for one pair and group them by their cell.

    The weights are those of the corners; with a cotangent ``ggx`` [N, I] (not empty) they are
    instead the derivatives of these weights in the direction ``ggx``. Calls come for one pair after
    the other, from ``first_pair`` on.

    Returns the number of groups.
    """
    size, is_directed = x.shape[0], ggx.size > 0
    tile = (pair - first_pair) % pair_tile(tables)
    if tile == 0:
        fetch(x, bound, pair, tables, block.coordinates)
    locate_pair(tile, size, tables, intervals, block)
    if is_directed:
        _direct(pair, ggx, block.positions)
    return group_located(size, is_directed, tables, block)


@jit
def group_located(size, is_directed, tables, block):
    """Group the samples of a block whose cells and positions are there; see :func:`_group`."""
    cells = block.positions.node
    node, start, count = block.groups.node, block.groups.start, block.count
    if 4 * size < count.size:  # so few samples rarely share a cell: each is a group
        for n in range(size):
            node[n] = cells[n]
            start[n] = n
            _put(n, n, is_directed, tables, block.positions, block.groups)
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
        _put(n, place, is_directed, tables, block.positions, block.groups)
    return num_groups


# --- Locating the samples of a block for some pairs, as they stand --------------------------------

#: Samples that are gathered together: their cells of ``pair_tile`` pairs stay in the first cache.
GATHERED = 128

#: How many coordinates or cells there is room for, as whole vectors are written and read.
ROOM = GATHERED * _FEATURE_TILE + 3 * LANES

#: Of N samples and Q pairs ``node [>= N Q]``, that of the first corner of the cell, and
#: ``weights [2^d, ROOM]``, those of the corners. ``coordinates, direction`` are workspace: the
#: elements of ``x`` and ``ggx`` for these pairs.
Cells = namedtuple("Cells", "node, weights, coordinates, direction")


@jit
def _new_cells(x, ggx, tables):
    """Room for ``GATHERED`` samples and ``pair_tile`` pairs."""
    return Cells(
        np.empty(ROOM, np.uint32),
        np.empty((2 ** dimension_of(tables), ROOM), x.dtype),
        np.empty(ROOM, x.dtype),
        np.empty(ROOM if ggx.size else 0, x.dtype),
    )


@jit
def _copy_pairs(begin, end, x, tables, rows):
    """Copy the pairs from ``begin`` to ``end``; what an incomplete last one lacks is 0."""
    size, in_features = x.shape
    dimension = dimension_of(tables)
    width = dimension * (end - begin)
    available = min(width, in_features - dimension * begin)
    for n in range(size):
        source = n * in_features + dimension * begin
        if source + _FEATURE_TILE <= x.size:  # the next row overwrites the surplus of this one
            store(rows, n * width, load(x, source, _FEATURE_TILE))
        else:
            for k in range(available):
                rows[n * width + k] = x[n, dimension * begin + k]
    for lacking in range(available, width):
        for n in range(size):
            rows[n * width + lacking] = 0


@jit
def _find_cells(begin, end, x, bound, ggx, tables, intervals, cells):
    """Find the cells of all samples ``x`` [N, I], cut at ``+-bound``, for some pairs.

    Those are the pairs from ``begin`` to ``end``. Weights are those of :func:`_put`.
    """
    num_knots = tables.shape[1]
    _copy_pairs(begin, end, x, tables, cells.coordinates)
    if ggx.size:
        _copy_pairs(begin, end, ggx, tables, cells.direction)
    for place in range(0, (end - begin) * x.shape[0], LANES):
        points = cut(load_points(cells.coordinates, place, LANES, tables), bound)
        knots, position, scale = _locate_each(by_axis(points, tables), num_knots, intervals)
        if ggx.size:
            direction = by_axis(load_points(cells.direction, place, LANES, tables), tables)
            weights = corner_weight_slopes(position, products(direction, scale))
        else:
            weights = corner_weights(position)
        store(cells.node, place, node_of(knots, num_knots))
        scatter(cells.weights, place, ROOM, weights)


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
    block = new_block(x.shape[0], tables, x.dtype)
    for pair in range(tables.shape[0]):
        num_groups = _group(x, bound, pair, 0, tables, intervals, ggx, block)
        add_rows(0, out.shape[1], num_groups, block.groups, pair, tables, out)


@chunked(64, 32, 16, 8, 4, 1)
def add_rows(width):
    """``out[b] += sum of w_n T[p, n]`` over the corners n, for the samples of all groups."""

    def walk(first, num_groups, groups, pair, tables, out):
        num_outputs, nodes = tables.shape[-1], num_nodes(tables)
        for group in range(num_groups):
            row = (pair * nodes + element(groups.node, group)) * num_outputs + first
            corners = load_corners(tables, row, width)
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
    cells = _new_cells(x, ggx, tables)
    no_bound = x.dtype.type(np.inf)
    if not accumulate:
        out[begin:end] = 0
    for first in range(begin, end, GATHERED):
        chosen = slice(first, min(first + GATHERED, end))
        add_gathered(tables, x[chosen], no_bound, ggx[chosen], intervals, cells, out[chosen])


@jit
def add_gathered(tables, x, bound, ggx, intervals, cells, out):
    """Add the same as :func:`add_grouped`, to the bit, sample by sample."""
    num_pairs, tile = tables.shape[0], pair_tile(tables)
    for pair in range(0, num_pairs, tile):
        end_pair = min(pair + tile, num_pairs)
        _find_cells(pair, end_pair, x, bound, ggx, tables, intervals, cells)
        gather_rows(
            *(0, out.shape[1], pair, end_pair, end_pair - pair, 1),
            *(cells.node, cells.weights, tables, out),
        )


@chunked(64, 32, 16, 8, 4, 1)
def gather_rows(width):
    """``out[b] += sum of w_n T[p, n]`` over the corners n, for the pairs ``begin <= p < end``.

    The steps are those from sample to sample and from pair to pair in ``nodes`` and ``weights``.
    """
    # As many samples at once as leave their sums in registers.
    count = min(max(64 // width, 1), 4)

    def walk(first, begin, end, sample_step, pair_step, nodes, weights, tables, out):
        size, num_outputs = out.shape
        table_size = num_nodes(tables) * num_outputs
        for n in range(0, size, count):
            samples = samples_from(n, size - 1, count)
            sums = load_samples(out, samples, first, num_outputs, width)
            for pair in range(begin, end):
                row, place = pair * table_size + first, (pair - begin) * pair_step
                # Without a star, which would make a variable of the constant.
                sums = gather_corners(
                    sums, samples, place, sample_step, nodes, weights, ROOM, tables, row
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
    no_bound = x.dtype.type(np.inf)
    block = new_block(min(block_size, batch), tables, x.dtype)
    slopes = np.empty((min(block_size, batch), 2 ** dimension_of(tables)), x.dtype)
    if grad_tables.size:
        rows = grad_tables.reshape(tables.shape[0], num_nodes(tables), num_outputs)
        rows[begin:end, :, first_output:end_output] = 0
    for first in range(0, batch, block_size):
        chosen = slice(first, min(first + block_size, batch))
        g = grad_y[chosen]
        for pair in range(begin, end):
            num_groups = _group(
                *(x[chosen], no_bound, pair, begin, tables, intervals, ggx[chosen], block)
            )
            if grad_tables.size:
                add_row_gradients(
                    first_output, end_output, num_groups, block.groups, pair, g, grad_tables
                )
            if grad_x.size:
                slopes[:] = 0
                add_slopes(0, num_outputs, num_groups, block.groups, pair, g, tables, slopes)
                finish(
                    *(pair, tables, block.positions, slopes, ggx.size > 0, accumulate),
                    grad_x[chosen],
                )


@chunked(64, 32, 16, 8, 4, 1)
def add_row_gradients(width):
    """``grad_tables[p, n] += sum over b of w_n grad_y[b]`` for the corners n of all groups.

    The samples of a block are added up by themselves: a sum over all samples, one after the other,
    would round as often as there are samples.
    """

    def walk(first, num_groups, groups, pair, grad_y, grad_tables):
        num_outputs, nodes = grad_tables.shape[-1], num_nodes(grad_tables)
        for group in range(num_groups):
            row = (pair * nodes + element(groups.node, group)) * num_outputs + first
            sums = no_sums(grad_tables, width)
            for place in range(element(groups.start, group), element(groups.start, group + 1)):
                g = load(grad_y, element(groups.sample, place) * num_outputs + first, width)
                sums = add_products(sums, groups.weights, place, g)
            add_to_rows(grad_tables, row, sums)

    return walk


@chunked(128, 64, 32, 16, 8, 4, 2, 1)
def add_slopes(width):
    """``slopes[b] += (g.c_1, g.c_2, ..., 0)`` for the samples of all groups, ``g = grad_y[b]``.

    ``c_1, c_2, ...`` are the coefficients of the functions in the cell, see :mod:`.corners`.
    """

    def walk(first, num_groups, groups, pair, grad_y, tables, slopes):
        num_outputs, nodes = tables.shape[-1], num_nodes(tables)
        corners = 2 ** dimension_of(tables)
        for group in range(num_groups):
            row = (pair * nodes + element(groups.node, group)) * num_outputs + first
            coefficients = coefficients_of(load_corners(tables, row, width))
            for place in range(element(groups.start, group), element(groups.start, group + 1)):
                b = np.int64(element(groups.sample, place))
                products = dot_products(load(grad_y, b * num_outputs + first, width), coefficients)
                store(slopes, corners * b, load_like(slopes, corners * b, products) + products)

    return walk


@jit
def finish(pair, tables, at, slopes, is_directed, accumulate, grad_x):
    """Turn the slopes of a block into ``grad_x[b, d p]`` to ``grad_x[b, d p + d - 1]``."""
    size, in_features = grad_x.shape
    dimension = dimension_of(tables)
    for n in range(size):
        coefficients, position = coefficients_at(slopes, n, tables), column(at.position, n, tables)
        if is_directed:
            partials = partial_slopes(coefficients, position, column(at.direction, n, tables))
        else:
            partials = partial_derivatives(coefficients, position)
        poison = 0 * position[0]  # NaN if a coordinate is not finite: then all are NaN
        for axis in range(1, dimension):
            poison += 0 * position[axis]
        for axis in range(dimension):
            k = dimension * pair + axis
            if k < in_features:
                if axis == 0:  # rounded once, after the sum
                    grad = np.float64(partials[0]) * at.scale[0, n] + poison
                else:
                    grad = partials[axis] * at.scale[axis, n] + poison
                grad_x[n, k] = grad_x[n, k] + grad if accumulate else grad
