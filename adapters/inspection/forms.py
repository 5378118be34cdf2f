"""The named functions that the functions of a network are compared with.

Each is a sum of terms with coefficients, which least squares determine, and each term may have
parameters of its own. They are written once for NumPy and SymPy: ``m`` is one of the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Parameters: TypeAlias = tuple[float, ...]

#: The values of one variable or two, each an array.
Variables: TypeAlias = Sequence[NDArray[np.float64]]


@dataclass(frozen=True)
class Form:
    """A named function of one or two variables.

    Attributes
    ----------
    terms : callable
        ``terms(m, x, parameters)``, a list of terms in the variables ``x``.
    starts : callable
        ``starts(x)``, the parameters to start a search at.
    """

    terms: Callable[[Any, Any, Parameters], list[Any]]
    starts: Callable[[Variables], list[Parameters]] = lambda x: [()]


#: Rates to start at, of waves and exponentials of a variable of standard deviation 1.
_RATES = (0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0)


def _rates(x: Variables) -> list[Parameters]:
    """Return a rate for each variable: positive for the first, of both signs for a second."""
    rates = [[rate / each.std() for rate in _RATES[:: len(x)]] for each in x]
    for each in rates[1:]:
        each += [-rate for rate in each]
    return [*product(*rates)]


def _rates_of_both_signs(x: Variables) -> list[Parameters]:
    rates = _rates(x)
    return rates + [tuple(-rate for rate in each) for each in rates]


def _shifts(x: Variables) -> list[Parameters]:
    """Return shifts by which all values become positive."""
    return [(share * np.ptp(x[0]) - x[0].min(),) for share in (0.01, 0.1, 0.5, 2.0)]


def _centres(x: Variables) -> list[Parameters]:
    return [(centre,) for centre in np.quantile(x[0], (0.1, 0.3, 0.5, 0.7, 0.9))]


def _rates_and_centres(x: Variables) -> list[Parameters]:
    rates = [rate / x[0].std() for rate in (0.5, 1.0, 2.0)]
    return [*product(rates, np.quantile(x[0], (0.2, 0.5, 0.8)))]


def _phase(x: Any, rates: Parameters) -> Any:
    return sum(rate * each for rate, each in zip(rates, x, strict=True))


_EXPONENTIAL = Form(lambda m, x, p: [m.exp(_phase(x, p))], _rates_of_both_signs)
_SINE = Form(lambda m, x, p: [m.sin(_phase(x, p))], _rates)
_COSINE = Form(lambda m, x, p: [m.cos(_phase(x, p))], _rates)

#: A sine of any phase, which is linear in sine and cosine; its expression is a ``SHIFTED_SINE``.
WAVE = Form(lambda m, x, p: [m.sin(_phase(x, p)), m.cos(_phase(x, p))], _rates)
SHIFTED_SINE = Form(lambda m, x, p: [m.sin(_phase(x, p[:-1]) + p[-1])])

#: Of one variable, the simplest first.
OF_ONE = (
    Form(lambda m, x, p: [x[0]]),
    Form(lambda m, x, p: [x[0], x[0] ** 2]),
    _SINE,
    _COSINE,
    _EXPONENTIAL,
    Form(lambda m, x, p: [m.log(x[0] + p[0])], _shifts),
    Form(lambda m, x, p: [m.sqrt(x[0] + p[0])], _shifts),
    Form(lambda m, x, p: [1 / (x[0] + p[0])], _shifts),
    Form(lambda m, x, p: [abs(x[0] - p[0])], _centres),
    WAVE,
    Form(lambda m, x, p: [m.tanh(p[0] * (x[0] - p[1]))], _rates_and_centres),
    Form(lambda m, x, p: [m.exp(-((p[0] * (x[0] - p[1])) ** 2))], _rates_and_centres),
    Form(lambda m, x, p: [x[0], x[0] ** 2, x[0] ** 3]),
)

#: Of two variables, to be added to functions of one.
OF_BOTH = (
    Form(lambda m, x, p: [x[0] * x[1]]),
    Form(lambda m, x, p: [x[0] ** i * x[1] ** j for i in (1, 2) for j in (1, 2)]),
)

#: Of two variables, in place of all of these.
OF_TWO = (
    Form(lambda m, x, p: [m.sqrt(x[0] ** 2 + x[1] ** 2)]),
    Form(lambda m, x, p: [x[0] / x[1]]),
    Form(lambda m, x, p: [x[1] / x[0]]),
    _SINE,
    _COSINE,
    _EXPONENTIAL,
    WAVE,
)
