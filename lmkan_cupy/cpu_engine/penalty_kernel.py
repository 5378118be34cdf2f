# mypy: ignore-errors
"""The kernel of the Hessian penalty for the CPU, compiled by Numba.

Symbols as in :mod:`.kernels`; the axes of a table are x, y and z. The types are Numba's, not
Python's, so this is not type-checked.
"""

import numpy as np

from .corners import dimension_of
from .vectors import chunked, jit, lane_sum, load, multiply_add, spread, store, to_float64


def penalty_kernel(begin, end, tables, knots, factor, accumulate, penalties, grad):
    """Write the roughness of the pairs from ``begin`` to ``end``, one by one, to ``penalties`` [P].

    ``grad``, unless it is empty, becomes ``factor`` times the derivative of their sum; with
    ``accumulate`` that is added to it.
    """
    step, span = _reciprocals(knots, 1), _reciprocals(knots, 2)
    penalties[begin:end] = 0
    if grad.size and not accumulate:
        grad[begin:end] = 0
    for pair in range(begin, end):
        _add_penalty(0, tables.shape[-1], pair, tables, step, span, factor, penalties, grad)


@jit
def _reciprocals(knots, distance):
    """``1 / (k_{i + distance} - k_i)``."""
    scale = np.empty(knots.size - distance, knots.dtype)
    for i in range(scale.size):
        scale[i] = 1 / (knots[i + distance] - knots[i])
    return scale


@chunked(16, 4, 1)
def _add_penalty(width):
    """Add ``mean of the squared second derivatives`` over the inner knots, summed over the outputs.

    Mixed derivatives count twice. ``step`` holds ``1 / (k_{i+1} - k_i)``, ``span`` holds
    ``1 / (k_{i+2} - k_i)``.
    """

    def walk(first, pair, tables, step, span, factor, penalties, grad):
        dimension, num_outputs, num_knots = dimension_of(tables), tables.shape[-1], tables.shape[1]
        # Axes that tables lack have one knot, at which nothing changes.
        size_y, size_z = num_knots if dimension > 1 else 1, num_knots if dimension > 2 else 1
        along_x, along_y, along_z = size_y * size_z * num_outputs, size_z * num_outputs, num_outputs
        num_inner = (num_knots - 2) ** dimension
        scale = 4 * factor / num_inner
        total, nothing = spread(0.0, width), spread(grad.dtype.type(0), width)
        for i in range(1, num_knots - 1):
            for j in range(min(1, size_y - 1), max(1, size_y - 1)):
                for k in range(min(1, size_z - 1), max(1, size_z - 1)):
                    row = (((pair * num_knots + i) * size_y + j) * size_z + k) * num_outputs + first
                    f_yy, f_zz, f_xy, f_xz, f_yz = nothing, nothing, nothing, nothing, nothing
                    f_xx = second(tables, row, along_x, step, span, i)
                    if dimension > 1:
                        f_yy = second(tables, row, along_y, step, span, j)
                        f_xy = mixed(tables, row, along_x, along_y, span, i, j)
                    if dimension > 2:
                        f_zz = second(tables, row, along_z, step, span, k)
                        f_xz = mixed(tables, row, along_x, along_z, span, i, k)
                        f_yz = mixed(tables, row, along_y, along_z, span, j, k)

                    squares = 2 * f_xy * f_xy
                    if dimension > 2:
                        squares = squares + 2 * f_xz * f_xz + 2 * f_yz * f_yz
                        squares = multiply_add(f_zz, f_zz, squares)
                    squares = multiply_add(f_xx, f_xx, multiply_add(f_yy, f_yy, squares))
                    total = total + to_float64(squares)
                    if grad.size:
                        add_second(grad, row, along_x, step, span, i, scale, f_xx)
                        if dimension > 1:
                            add_second(grad, row, along_y, step, span, j, scale, f_yy)
                            add_mixed(grad, row, along_x, along_y, span, i, j, scale, f_xy)
                        if dimension > 2:
                            add_second(grad, row, along_z, step, span, k, scale, f_zz)
                            add_mixed(grad, row, along_x, along_z, span, i, k, scale, f_xz)
                            add_mixed(grad, row, along_y, along_z, span, j, k, scale, f_yz)
        penalties[pair] += lane_sum(total) / num_inner

    @jit
    def second(tables, row, along, step, span, i):
        """The second derivative at knot i of an axis; ``along`` leads to the next knot."""
        f = load(tables, row, width)
        ahead = step[i] * (load(tables, row + along, width) - f)
        behind = step[i - 1] * (f - load(tables, row - along, width))
        return 2 * span[i - 1] * (ahead - behind)

    @jit
    def mixed(tables, row, along, across, span, i, j):
        """The derivative along two axes, at knots i and j of them."""
        ahead = load(tables, row + along + across, width)
        behind = load(tables, row - along + across, width)
        ahead = ahead - load(tables, row + along - across, width)
        behind = behind - load(tables, row - along - across, width)
        return span[i - 1] * span[j - 1] * (ahead - behind)

    @jit
    def add_second(grad, row, along, step, span, i, scale, derivative):
        scale = scale * span[i - 1]
        add(grad, row + along, scale * step[i], derivative)
        add(grad, row, -scale * (step[i] + step[i - 1]), derivative)
        add(grad, row - along, scale * step[i - 1], derivative)

    @jit
    def add_mixed(grad, row, along, across, span, i, j, scale, derivative):
        scale = scale * span[i - 1] * span[j - 1]
        add(grad, row + along + across, scale, derivative)
        add(grad, row + along - across, -scale, derivative)
        add(grad, row - along + across, -scale, derivative)
        add(grad, row - along - across, scale, derivative)

    @jit
    def add(grad, row, coefficient, vector):
        store(grad, row, multiply_add(coefficient, vector, load(grad, row, width)))

    return walk
