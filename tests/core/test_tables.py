"""Making, folding, refining, reading and counting tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tolerances
from oracle import Array
from problems import DTYPES, Dtypes, Sizes, make_problem
from tolerances import host, to_float64

import lmkan_cupy


class TestInitTables:
    @pytest.mark.parametrize("in_features", [1, 4, 7])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_uniform_in_the_bounds(self, xp: Any, in_features: int, dtype: str) -> None:
        tables = lmkan_cupy.init_tables(
            in_features, 50, 20, init_scale=3, dtype=dtype, rng=0, xp=xp
        )
        assert isinstance(tables, xp.ndarray)
        assert tables.dtype == dtype
        assert tables.shape == ((in_features + 1) // 2, 21, 21, 50)
        drawn = to_float64(tables)
        bound = 3 / np.sqrt(in_features)
        assert np.abs(drawn).max() <= bound * (1 + tolerances.unit(dtype))
        # Moments of U(-1, 1) up to five standard errors; one draw, fixed by the seed.
        five_errors = 5 / np.sqrt(drawn.size)
        assert abs(np.mean(drawn / bound)) < five_errors * np.sqrt(1 / 3)
        assert abs(np.mean((drawn / bound) ** 2) - 1 / 3) < five_errors * np.sqrt(4 / 45)

    def test_default_scale(self, xp: Any) -> None:
        drawn = host(lmkan_cupy.init_tables(4, 50, 20, rng=0, xp=xp))
        assert 0.0499 < np.abs(drawn).max() <= np.float32(0.05)

    def test_seed_and_generator(self, xp: Any) -> None:
        def draw(rng: Any) -> Array:
            return host(lmkan_cupy.init_tables(4, 3, 5, rng=rng, xp=xp))

        np.testing.assert_array_equal(draw(7), draw(7))
        np.testing.assert_array_equal(draw(7), draw(xp.random.default_rng(7)))
        generator = xp.random.default_rng(7)
        assert (draw(generator) != draw(generator)).any()
        assert (draw(None) != draw(None)).any()

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_legacy_generator(self, xp: Any, dtype: str) -> None:
        legacy, twin = xp.random.RandomState(7), xp.random.RandomState(7)
        tables = lmkan_cupy.init_tables(4, 3, 5, dtype=dtype, rng=legacy, xp=xp)
        assert tables.dtype == dtype
        drawn = host(twin.random_sample(tables.shape)) - 0.5
        roundings = 4 * 0.1 * tolerances.unit(dtype)  # each of a number of at most 0.1
        np.testing.assert_allclose(to_float64(tables), 0.1 * drawn, rtol=0, atol=roundings)


FOLDS: dict[str, tuple[Callable[..., Any], Callable[[Array], Array]]] = {
    "fold_linear": (lmkan_cupy.fold_linear, lambda knots: knots),
    "fold_relu": (lmkan_cupy.fold_relu, lambda knots: np.maximum(knots, 0)),
}


@pytest.mark.parametrize(("fold", "activation"), FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("in_features", [1, 5, 6])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_fold_adds_the_branch_at_the_knots(
    xp: Any,
    rng: np.random.Generator,
    fold: Callable[..., Any],
    activation: Callable[[Array], Array],
    in_features: int,
    has_bias: bool,
    dtypes: Dtypes,
) -> None:
    sizes = Sizes(batch=0, in_features=in_features, out_features=4, num_grids=6)
    tables = make_problem(rng, sizes, dtypes).tables
    weight = rng.normal(size=(4, in_features)).astype(dtypes.x)
    bias = has_bias * rng.normal(size=4).astype(dtypes.x)

    given = xp.asarray(tables)
    folded = fold(given, xp.asarray(weight), xp.asarray(bias) if has_bias else None)
    assert folded.dtype == dtypes.tables
    np.testing.assert_array_equal(host(given), tables)

    tolerances.fold(tables, weight, bias, activation, dtypes.x).check(folded)


@pytest.mark.parametrize(("old", "new"), [(3, 9), (4, 8), (8, 8), (5, 7), (10, 4)])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_refine_samples_at_the_new_knots(
    xp: Any, rng: np.random.Generator, old: int, new: int, dtypes: Dtypes
) -> None:
    """The outermost knots of both grids differ, so the new ones may lie outside the old grid."""
    tables = make_problem(rng, Sizes(0, 5, 4, old), dtypes).tables
    refined = lmkan_cupy.refine(xp.asarray(tables), new)
    assert refined.dtype == dtypes.tables
    tolerances.refine(tables, new, dtypes.x).check(refined)


class TestEvaluate:
    @pytest.mark.parametrize("dtypes", DTYPES, ids=str)
    def test_one_function(self, xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
        x, tables, *_ = make_problem(rng, Sizes(100, 6, 4, 5), dtypes)
        x1, x2 = x[:, 0], x[:, 1]
        values = lmkan_cupy.evaluate(xp.asarray(tables), 2, 3, xp.asarray(x1), xp.asarray(x2))
        assert values.dtype == dtypes.x
        expected = tolerances.forward(np.stack([x1, x2], axis=1), tables[2:, ..., 3:])
        expected.check(values[:, None])

    def test_points_broadcast(self, xp: Any, rng: np.random.Generator) -> None:
        x, tables, *_ = make_problem(rng, Sizes(4, 6, 4, 5))
        x1, x2 = x[:3, :1], x[:, 0]
        values = lmkan_cupy.evaluate(xp.asarray(tables), 0, 1, xp.asarray(x1), xp.asarray(x2))
        points = np.stack(np.broadcast_arrays(x1, x2), axis=-1).reshape(-1, 2)
        tolerances.forward(points, tables[:1, ..., 1:2]).check(values.reshape(-1, 1))

    def test_numbers(self, xp: Any, rng: np.random.Generator) -> None:
        tables = make_problem(rng, Sizes(0, 6, 4, 5)).tables
        value = lmkan_cupy.evaluate(xp.asarray(tables), 0, 0, 0.25, -1)
        assert value.shape == ()
        point = np.array([[0.25, -1]], np.float32)
        tolerances.forward(point, tables[:1, ..., :1]).check(value.reshape(1, 1))


class TestCounts:
    """P = 3 pairs of 5 inputs, 7 outputs, 11 knots: 3 * 7 * 121 = 2541 values."""

    def test_num_parameters(self) -> None:
        assert lmkan_cupy.num_parameters(5, 7, 10) == 2541
        assert lmkan_cupy.num_parameters(5, 7, 10) == lmkan_cupy.init_tables(5, 7, 10).size

    def test_flops(self) -> None:
        assert lmkan_cupy.flops(5, 7) == 4 * 3 * 7
        assert lmkan_cupy.flops(512, 512) == 2 * 512 * 512  # twice a linear layer

    @pytest.mark.parametrize(
        ("dtype", "item", "compute_item"), [("float32", 4, 4), ("float64", 8, 8), ("float16", 2, 4)]
    )
    @pytest.mark.parametrize(("optimizer", "states"), [("adam", 2), ("momentum", 1), ("sgd", 0)])
    def test_memory(
        self, dtype: str, item: int, compute_item: int, optimizer: str, states: int
    ) -> None:
        assert lmkan_cupy.memory(5, 7, 10, 100, dtype=dtype, optimizer=optimizer) == {
            "parameters": 2541 * item,
            "gradients": 2541 * compute_item,
            "optimizer_state": states * 2541 * compute_item,
            "workspace": 2 * 100 * (5 + 7) * compute_item,  # x, y and their gradients
        }

    def test_memory_by_default(self) -> None:
        by_default = lmkan_cupy.memory(5, 7, 10, 100)
        assert by_default == lmkan_cupy.memory(5, 7, 10, 100, dtype="float32", optimizer="adam")
