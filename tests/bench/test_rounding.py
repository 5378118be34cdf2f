"""The rule for error bounds that tests and benchmarks share, on numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.harness.rounding import MAX_FACTORS, error_bound, size_and_error


@pytest.mark.parametrize("array", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_sizes_and_errors(array: type) -> None:
    assert size_and_error(array([-2.0, 4.0]), 3, 0.25).tolist() == [2 + 1.5j, 4 + 3j]
    magnitude = array([2 + 3j, -2 - 3j])  # products of errors alone may be negative
    assert error_bound(magnitude, 10, 0.5).tolist() == [3 + 0.5 * (10 + MAX_FACTORS) * 2] * 2
