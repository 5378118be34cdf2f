"""The Hessian penalty of a layer of 512 x 512 features, beside a copy of its tables."""

from collections.abc import Callable
from statistics import median

import cupy

import lmkan_cupy

from ..harness import reference
from ..harness.cuda_device import device_stopwatch, free_memory

FEATURES, GRIDS = 512, (8, 16, 26, 40)
REPEATS = 20


def measure() -> dict[str, dict[str, float]]:
    """Return milliseconds by G, after the results were checked."""
    results = {}
    for num_grids in GRIDS:
        tables = lmkan_cupy.init_tables(FEATURES, FEATURES, num_grids, rng=0, xp=cupy)
        reference.check_penalty(tables, *lmkan_cupy.hessian_penalty_and_grad(tables))
        other = cupy.empty_like(tables)

        def milliseconds(call: Callable[..., object], *arguments: object) -> float:
            return 1e3 * median(device_stopwatch(call, *arguments)[0] for _ in range(REPEATS))

        results[str(num_grids)] = {
            "with gradient, ms": milliseconds(lmkan_cupy.hessian_penalty_and_grad, tables),
            "alone, ms": milliseconds(lmkan_cupy.hessian_penalty, tables),
            "copy of the tables, ms": milliseconds(cupy.copyto, other, tables),
        }
        del tables, other
        free_memory()
    return results
