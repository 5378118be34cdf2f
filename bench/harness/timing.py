"""Comparable timings: everything is measured in turn, round by round, so that drift cancels."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key")
Result = TypeVar("Result")

#: Takes a function and its arguments; returns the seconds that the call took, and its result.
Stopwatch: TypeAlias = Callable[..., tuple[float, Any]]


def stopwatch(call: Callable[..., Result], *arguments: object) -> tuple[float, Result]:
    """Return the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def interleave(
    measurements: Mapping[Key, Callable[[], Sequence[float]]],
    *,
    seconds: float,
    rounds: tuple[int, int] = (5, 30),
) -> dict[Key, NDArray[np.float64]]:
    """Take every measurement in turn (A, B, C, A, B, C, ...), after one round of warm-up.

    The timers of torch.utils.benchmark and pyperf finish A before they start B, so the machine's
    drift would be part of their difference.

    Parameters
    ----------
    measurements : mapping to functions
        Each returns the seconds of the one or more things that it measures.
    seconds : float
        After this time no further round is begun.
    rounds : (int, int)
        Least and largest number of rounds, whatever time they take.

    Returns
    -------
    dict of arrays [things, rounds]
        Seconds.
    """

    def one_round() -> dict[Key, Sequence[float]]:
        taken = {}
        for key, measure in measurements.items():
            time.sleep(0.005)  # the previous one's thread pool spins on for a while
            taken[key] = measure()
        return taken

    one_round()  # compiles
    fewest, most = rounds
    kept: list[dict[Key, Sequence[float]]] = []
    end = time.perf_counter() + seconds
    while len(kept) < fewest or (len(kept) < most and time.perf_counter() < end):
        kept.append(one_round())
    return {key: np.array([taken[key] for taken in kept]).T for key in measurements}


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles over the rounds of the ratio of two timings."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(times: NDArray[np.float64], reference: NDArray[np.float64]) -> Ratio:
    low, median, high = np.quantile(times / reference, [0.25, 0.5, 0.75]).round(4).tolist()
    return Ratio(median, low, high)
