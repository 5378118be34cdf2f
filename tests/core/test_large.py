"""Tables of more than 2^31 elements: offsets do not fit into 32 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import Sizes

import lmkan_cupy

SIZES = Sizes(batch=3, in_features=40, out_features=2**16, num_grids=40)
OUTPUTS = slice(None, None, 2**12)  # the outputs that the oracle computes


@pytest.mark.long
def test_more_than_two_to_the_31(xp: Any, rng: np.random.Generator) -> None:
    """Four gigabytes of zeros, of which only the cells of three samples are read.

    Only the last cell of the last pair is not zero, and only its offset is large. `forward` and
    `backward` both read it.
    """
    _, in_features, out_features, num_grids = SIZES
    shape = (SIZES.pairs, num_grids + 1, num_grids + 1, out_features)
    assert np.prod(shape, dtype=np.int64) > 2**31
    tables = xp.zeros(shape, "float16")
    tables[-1, -2:, -2:] = xp.asarray(rng.uniform(-1, 1, (2, 2, out_features)))
    x = xp.full((SIZES.batch, in_features), 3.4, "float32")  # in the last of 40 intervals
    x[:, -2:] += xp.asarray(rng.uniform(-0.1, 0.1, (SIZES.batch, 2)), dtype="float32")
    last_pair = x[:, -2:], tables[-1:, :, :, OUTPUTS]

    y = lmkan_cupy.forward(x, tables)
    tolerances.forward(*last_pair).check(y[:, OUTPUTS])

    grad_y = xp.zeros_like(y)
    grad_y[:, OUTPUTS] = 1
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables, need_tables=False)
    expected, _ = tolerances.backward(grad_y[:, OUTPUTS], *last_pair)
    expected.check(grad_x[:, -2:])
    assert not grad_x[:, :-2].any()
