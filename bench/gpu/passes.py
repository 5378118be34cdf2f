"""Other passes of one layer: one gradient alone, the double backward, concentrated inputs."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import cupy
import numpy as np
import torch

import lmkan_cupy

from ..harness import reference
from ..harness.cuda_device import device_stopwatch, free_memory
from ..harness.workload import Workload, make_workload

SIZES = {"in_features": 512, "out_features": 512, "num_grids": 16, "batch": 2**17}
REPEATS = 5

#: Number of samples on which the double backward is checked.
COMPARED = 64


def measure() -> dict[str, float]:
    """Return the milliseconds of each pass, after its results were checked."""
    workload = make_workload(**SIZES, xp=cupy)
    results = {**_backward(workload), **_double_backward(workload)}
    for name, x in _concentrated(workload.x).items():
        inputs = replace(workload, x=x)
        expected = reference.of_layer(inputs)
        forward, y = _milliseconds(lmkan_cupy.forward, x, inputs.tables)
        backward, grads = _milliseconds(lmkan_cupy.backward, inputs.grad_y, x, inputs.tables)
        expected.check(name, y, *grads)
        results |= {f"forward, {name}": forward, f"backward, {name}": backward}
        free_memory()
    return results


def _milliseconds(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the median time of a call after one warm-up, and its result."""
    result = call(*arguments)
    return 1e3 * median(device_stopwatch(call, *arguments)[0] for _ in range(REPEATS)), result


def _concentrated(x: Any) -> dict[str, Any]:
    """Return inputs by name: the first fall into all cells, the others into few."""
    constant_columns = x.copy()
    constant_columns[:, ::2] = 0.3
    return {
        "normal inputs": x,
        "ReLU zeros": cupy.maximum(x, 0),
        "constant columns": constant_columns,
        "one hot cell": cupy.full_like(x, 0.3),
    }


def _backward(workload: Workload) -> dict[str, float]:
    x, tables, grad_y = workload.x, workload.tables, workload.grad_y
    expected = reference.of_layer(workload)
    results = {}
    for wanted in {"need_x": True, "need_tables": False}, {"need_x": False, "need_tables": True}:
        name = f"backward, {' and '.join(need for need in wanted if wanted[need])} alone"
        results[name], (grad_x, grad_tables) = _milliseconds(
            lambda wanted=wanted: lmkan_cupy.backward(grad_y, x, tables, **wanted)
        )
        expected.check(name, None, grad_x, grad_tables)
    return results


def _double_backward(workload: Workload) -> dict[str, float]:
    """Checked with a ``grad_y`` that is 0 except for a few samples: only these count then."""
    x, tables = workload.x, workload.tables
    rng = cupy.random.default_rng(1)
    ggx, ggt = (rng.standard_normal(each.shape, dtype=np.float32) for each in (x, tables))
    defined = (
        reference.away_from_knots(torch.from_dlpack(x), workload.num_grids).all(1).nonzero()[:, 0]
    )
    samples = defined[:: -(-len(defined) // COMPARED)]
    chosen = cupy.from_dlpack(samples)
    some = cupy.zeros_like(workload.grad_y)
    some[chosen] = workload.grad_y[chosen]
    expected = reference.of_double_backward(replace(workload, grad_y=some), ggx, ggt, samples)
    grad_grad_y, grad_x, grad_tables = map(
        reference.as_tensor, lmkan_cupy.backward_backward(ggx, ggt, some, x, tables)
    )
    results = (grad_grad_y[samples], grad_x[samples], grad_tables[reference.ENDS])
    for name, result, each in zip(("grad_y", "x", "tables"), results, expected, strict=True):
        each.check(f"double backward, {name}", result)
    taken, _ = _milliseconds(lmkan_cupy.backward_backward, ggx, ggt, workload.grad_y, x, tables)
    return {"double backward": taken}
