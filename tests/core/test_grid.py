"""The knots, and the count of samples in their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from problems import away_from_knots
from tolerances import Expected, host, unit

import lmkan_cupy

NUM_GRIDS = [3, 4, 5, 8, 10, 26, 40, 101]
DTYPES = ["float32", "float64"]


@pytest.mark.parametrize("num_grids", NUM_GRIDS)
@pytest.mark.parametrize("dtype", DTYPES)
class TestSigmaGrid:
    def test_knots(self, xp: Any, num_grids: int, dtype: str) -> None:
        knots = lmkan_cupy.sigma_grid(num_grids, dtype=dtype, xp=xp)
        assert isinstance(knots, xp.ndarray)
        assert knots.dtype == dtype
        value = oracle.sigma_grid(num_grids)
        # A rounded argument and a logarithm off by one unit in the last place, three times where
        # the outermost knots are extrapolated; then rounded to dtype.
        computed = Expected(value, 3 * unit("float64") * (1 + 2 * np.abs(value)))
        computed.stored(dtype).check(knots)

    def test_antisymmetric_to_the_bit(self, xp: Any, num_grids: int, dtype: str) -> None:
        knots = host(lmkan_cupy.sigma_grid(num_grids, dtype=dtype, xp=xp))
        np.testing.assert_array_equal(knots, -knots[::-1])
        if num_grids % 2 == 0:
            assert knots[num_grids // 2].tobytes() == bytes(knots.itemsize)  # +0, not -0

    def test_increasing(self, xp: Any, num_grids: int, dtype: str) -> None:
        assert (np.diff(host(lmkan_cupy.sigma_grid(num_grids, dtype=dtype, xp=xp))) > 0).all()


def test_grid_by_hand(xp: Any) -> None:
    """sigma(-log 2) = 1/4; the outermost intervals are as wide as their neighbours."""
    expected = np.log(2) * np.array([-2, -1, 0, 1, 2])
    actual = host(lmkan_cupy.sigma_grid(4, dtype="float64", xp=xp))
    np.testing.assert_allclose(actual, expected, rtol=4 * unit("float64"))


def test_float32_by_default(xp: Any) -> None:
    assert lmkan_cupy.sigma_grid(8, xp=xp).dtype == "float32"


@pytest.mark.parametrize("dtype", DTYPES)
def test_knots_belong_to_the_caller(xp: Any, dtype: str) -> None:
    """The caller may overwrite them; later calls still get the right knots."""
    untouched = host(lmkan_cupy.sigma_grid(8, dtype=dtype, xp=xp)).copy()
    lmkan_cupy.sigma_grid(8, dtype=dtype, xp=xp)[:] = 0
    np.testing.assert_array_equal(host(lmkan_cupy.sigma_grid(8, dtype=dtype, xp=xp)), untouched)


class TestOccupancy:
    def test_by_hand(self, xp: Any) -> None:
        """Knots of a grid of 4 at -1.39, -0.69, 0, 0.69, 1.39."""
        x = [[-9.0, 0.5], [-1.0, 0.1], [-0.1, 0.6], [1.3, 99.0], [1.5, 0.7]]
        counts, outside = lmkan_cupy.occupancy(xp.asarray(x, dtype="float32"), 4)
        np.testing.assert_array_equal(host(counts), [[2, 1, 0, 2], [0, 0, 3, 2]])
        np.testing.assert_array_equal(host(outside), [2 / 5, 1 / 5])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("num_grids", [3, 10, 40])
    def test_against_a_sorted_search(
        self, xp: Any, rng: np.random.Generator, num_grids: int, dtype: str
    ) -> None:
        knots = oracle.sigma_grid(num_grids)
        x = away_from_knots(rng.laplace(size=(10, 20, 3)), knots).astype(dtype)
        counts, outside = lmkan_cupy.occupancy(xp.asarray(x), num_grids)
        for feature, samples in enumerate(np.moveaxis(x, -1, 0)):
            interval = np.searchsorted(knots[1:-1], samples.ravel(), side="right")
            expected = np.bincount(interval, minlength=num_grids)
            np.testing.assert_array_equal(host(counts)[feature], expected)
            expected_outside = np.mean((samples < knots[0]) | (samples > knots[-1]))
            assert host(outside)[feature] == pytest.approx(expected_outside, rel=4 * unit(dtype))

    def test_non_finite_samples_are_outside(self, xp: Any) -> None:
        x = xp.asarray([[np.nan], [np.inf], [-np.inf], [0.0]], dtype="float32")
        counts, outside = lmkan_cupy.occupancy(x, 4)
        assert host(counts).sum() == 4
        assert host(outside) == 3 / 4

    def test_no_samples(self, xp: Any) -> None:
        counts, outside = lmkan_cupy.occupancy(xp.empty((0, 2), dtype="float32"), 4)
        assert not host(counts).any()
        assert counts.shape == (2, 4)
        np.testing.assert_array_equal(host(outside), [0, 0])
