"""How far a correct result may be from the exact one: the rule that tests and benchmarks share.

Every quantity of the library is a sum of products of hat functions, their slopes, table values and
cotangents. A floating-point sum of n products of f factors is off, to first order in the rounding
unit r, by at most (n + f) r sum |product|, plus what the errors of the factors contribute (Higham,
"Accuracy and Stability of Numerical Algorithms", chapter 3). Both parts come from one evaluation on
magnitudes: each factor is replaced by the complex number

    |factor| + i (bound of the factor's own error),

so that the real part of the result is sum |product| and the imaginary part the propagated error.
No number here is chosen by taste. The functions take NumPy arrays and torch tensors alike;
``tests/tolerances.py`` applies them to all knots, ``bench/harness/reference.py`` to the corners of
a cell, on any device.
"""

from typing import Any

EXP_ULP = 4
"""Largest error of an exponential in use, in units in the last place: 4 in the less accurate
variant of Intel's SVML, which Numba may call; 2 in CUDA, 1 in glibc."""

MAX_FACTORS = 5
"""Most factors in one product: cotangent, grad_y, two hats or slopes, table value."""

HAT_ROUNDINGS = 4
"""Roundings of u = (x - k) / h: width, its reciprocal, difference, product, in any order."""

SLOPE_ROUNDINGS = 2
"""Roundings of 1 / h: width, reciprocal."""

STENCIL_ROUNDINGS = 6
"""Roundings of a coefficient of the penalty: two widths, their sum, two quotients, a product."""


def size_and_error(factor: Any, roundings: int, unit: float) -> Any:
    """Return |factor| + i error of a real factor that takes so many roundings of this unit."""
    return abs(factor) * (1 + 1j * roundings * unit)


def error_bound(magnitude: Any, terms: Any, unit: float) -> Any:
    """Return the largest error of a sum of ``terms`` products with this sum of magnitudes.

    Products of errors alone may be negative, so the size of the imaginary part counts.
    """
    return abs(magnitude.imag) + unit * (terms + MAX_FACTORS) * abs(magnitude.real)
