# mypy: ignore-errors
"""The kernel of the Hessian penalty for the CPU, compiled by Numba.

Symbols as in :mod:`.kernels`. The types are Numba's, not Python's, so this is not type-checked.
"""

import numpy as np

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
        _add_penalty(0, tables.shape[3], pair, tables, step, span, factor, penalties, grad)


@jit
def _reciprocals(knots, distance):
    """``1 / (k_{i + distance} - k_i)``."""
    scale = np.empty(knots.size - distance, knots.dtype)
    for i in range(scale.size):
        scale[i] = 1 / (knots[i + distance] - knots[i])
    return scale


@chunked(16, 4, 1)
def _add_penalty(width):
    """Add ``mean of f_xx^2 + 2 f_xy^2 + f_yy^2`` over the inner knots, summed over the outputs.

    ``step`` holds ``1 / (k_{i+1} - k_i)``, ``span`` holds ``1 / (k_{i+2} - k_i)``.
    """

    def walk(first, pair, tables, step, span, factor, penalties, grad):
        num_knots, num_outputs = tables.shape[2], tables.shape[3]
        num_inner = (num_knots - 2) ** 2
        # From the row of knot (i, j) to those of (i + 1, j) and (i, j + 1).
        down, right = num_knots * num_outputs, num_outputs
        total = spread(0.0, width)
        for i in range(1, num_knots - 1):
            for j in range(1, num_knots - 1):
                row = ((pair * num_knots + i) * num_knots + j) * num_outputs + first
                f = load(tables, row, width)

                ahead = step[i] * (load(tables, row + down, width) - f)
                behind = step[i - 1] * (f - load(tables, row - down, width))
                f_xx = 2 * span[i - 1] * (ahead - behind)

                ahead = step[j] * (load(tables, row + right, width) - f)
                behind = step[j - 1] * (f - load(tables, row - right, width))
                f_yy = 2 * span[j - 1] * (ahead - behind)

                ahead = load(tables, row + down + right, width)
                behind = load(tables, row - down + right, width)
                ahead = ahead - load(tables, row + down - right, width)
                behind = behind - load(tables, row - down - right, width)
                f_xy = span[i - 1] * span[j - 1] * (ahead - behind)

                squares = multiply_add(f_xx, f_xx, multiply_add(f_yy, f_yy, 2 * f_xy * f_xy))
                total = total + to_float64(squares)
                if grad.size:
                    c_xx = 4 * factor / num_inner * span[i - 1]
                    add(grad, row + down, c_xx * step[i], f_xx)
                    add(grad, row, -c_xx * (step[i] + step[i - 1]), f_xx)
                    add(grad, row - down, c_xx * step[i - 1], f_xx)

                    c_yy = 4 * factor / num_inner * span[j - 1]
                    add(grad, row + right, c_yy * step[j], f_yy)
                    add(grad, row, -c_yy * (step[j] + step[j - 1]), f_yy)
                    add(grad, row - right, c_yy * step[j - 1], f_yy)

                    c_xy = 4 * factor / num_inner * span[i - 1] * span[j - 1]
                    add(grad, row + down + right, c_xy, f_xy)
                    add(grad, row + down - right, -c_xy, f_xy)
                    add(grad, row - down + right, -c_xy, f_xy)
                    add(grad, row - down - right, c_xy, f_xy)
        penalties[pair] += lane_sum(total) / num_inner

    @jit
    def add(grad, row, coefficient, vector):
        store(grad, row, multiply_add(coefficient, vector, load(grad, row, width)))

    return walk
