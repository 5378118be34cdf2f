"""`network_forward` and `network_value_and_grad` against the same steps one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import DTYPES, FLOAT32, FLOAT64, LAYOUTS, Dtypes
from special_values import BAD_VALUES
from tolerances import host

import lmkan_cupy
from lmkan_cupy import array_checks, network

#: Odd and even sizes, one output, a wide layer; a grid for each layer.
_SIZES = (5, 9, 1, 70, 33, 3)
_GRIDS = (8, 3, 24, 10, 40)

_BATCHES = [0, 1, 3, 33, 1000, 9000]


def _layers(
    rng: np.random.Generator, dtypes: Dtypes = FLOAT32, sizes: tuple[int, ...] = _SIZES
) -> list[Any]:
    layers = []
    for inputs, outputs, num_grids in zip(sizes, sizes[1:], _GRIDS, strict=False):
        shape = ((inputs + 1) // 2, num_grids + 1, num_grids + 1, outputs)
        layers.append(rng.uniform(-2, 2, shape).astype(dtypes.tables))
    return layers


def _linear(
    rng: np.random.Generator, inputs: int, outputs: int, dtypes: Dtypes = FLOAT32
) -> tuple[Any, Any]:
    weight = rng.normal(size=(outputs, inputs)).astype(dtypes.x)
    return weight, rng.normal(size=outputs).astype(dtypes.x)


def _rows(rng: np.random.Generator, batch: int, dtypes: Dtypes = FLOAT32) -> Any:
    return rng.normal(0, 2, (batch, _SIZES[0])).astype(dtypes.x)


def _equal(got: Any, expected: Any) -> None:
    np.testing.assert_array_equal(host(got), host(expected))


def _on(xp: Any, layers: list[Any]) -> list[Any]:
    return [
        tuple(map(xp.asarray, layer)) if isinstance(layer, tuple) else xp.asarray(layer)
        for layer in layers
    ]


def _one_by_one(x: Any, layers: list[Any], grad_y: Any, **options: Any) -> tuple[Any, Any]:
    """y and grad_x, bit by bit: every layer of tables by `forward` and `backward`."""
    arguments = {"shift": None, "scale": None, "bound": None, **options}
    checked = array_checks.check_network("test", x, layers, **arguments)
    features = network.features_of_layers(checked)
    return features[-1], network.pull_back_by_layers(checked, features, grad_y)


@pytest.mark.parametrize("bound", [None, 1.5, (None, 2.0, 0.5, None, 1.0)], ids=str)
@pytest.mark.parametrize("batch", _BATCHES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_same_bits_as_the_steps_one_by_one(
    xp: Any, rng: np.random.Generator, dtypes: Dtypes, batch: int, bound: Any
) -> None:
    layers = _on(xp, _layers(rng, dtypes))
    x = xp.asarray(_rows(rng, batch, dtypes))
    grad_y = xp.asarray(rng.normal(size=(batch, _SIZES[-1])).astype(dtypes.x))
    options: dict[str, Any] = {
        "bound": bound,
        "shift": xp.asarray(rng.normal(size=_SIZES[0]).astype(dtypes.x)),
        "scale": xp.asarray(rng.uniform(0.5, 2, _SIZES[0]).astype(dtypes.x)),
    }
    expected, expected_grad = _one_by_one(x, layers, grad_y, **options)
    y = lmkan_cupy.network_forward(x, layers, **options)
    assert y.dtype == x.dtype
    _equal(y, expected)
    y, grad_x = lmkan_cupy.network_value_and_grad(x, layers, grad_y=grad_y, **options)
    _equal(y, expected)
    _equal(grad_x, expected_grad)
