"""`adapters.jax`: the Hessian penalty, and new tables from a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from problems import DTYPES, FLOAT32, FLOAT64, SMALL, Dtypes, Sizes, first_short, make_problem
from tolerances import unit

import lmkan_cupy

jax = pytest.importorskip("jax")
adapter = pytest.importorskip("lmkan_cupy.adapters.jax")

hessian_penalty, init_tables, jnp = adapter.hessian_penalty, adapter.init_tables, jax.numpy


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["eager", "jit"])
def compiled(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return jax.jit if request.param == "jit" else lambda function: function


@pytest.fixture(params=first_short([FLOAT32, FLOAT64]), ids=str)
def tables(request: pytest.FixtureRequest, rng: np.random.Generator) -> Any:
    return jnp.asarray(make_problem(rng, Sizes(0, 3, 2, 4), request.param).tables)


class TestHessianPenalty:
    @pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
    def test_is_the_core(self, rng: np.random.Generator, compiled: Any, dtypes: Dtypes) -> None:
        given = jnp.asarray(make_problem(rng, SMALL, dtypes).tables)
        widened = np.asarray(given.astype(dtypes.x))
        expected, expected_grad = lmkan_cupy.hessian_penalty_and_grad(widened)
        penalty, grad = compiled(jax.value_and_grad(hessian_penalty))(given)
        np.testing.assert_array_equal(penalty, expected, strict=True)
        np.testing.assert_array_equal(grad, expected_grad.astype(dtypes.tables), strict=True)
        np.testing.assert_array_equal(compiled(hessian_penalty)(given), expected, strict=True)

    def test_value_and_gradient_come_from_one_pass(
        self, tables: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        both = lmkan_cupy.hessian_penalty_and_grad
        monkeypatch.setattr(
            lmkan_cupy, "hessian_penalty_and_grad", lambda tables: calls.append("") or both(tables)
        )
        for name in ("hessian_penalty", "hessian_penalty_grad"):
            monkeypatch.delattr(lmkan_cupy, name)
        jax.block_until_ready(jax.value_and_grad(hessian_penalty)(tables))
        assert len(calls) == 1

    def test_higher_derivatives(self, tables: Any, compiled: Any) -> None:
        """The gradient is linear in the tables and symmetric: its derivative is itself."""
        direction = tables[:, ::-1] ** 2
        gradient = jax.grad(hessian_penalty)

        def forward(tables: Any) -> Any:
            return jax.jvp(gradient, (tables,), (direction,))[1]

        def reverse(tables: Any) -> Any:
            return jax.vjp(gradient, tables)[1](direction)[0]

        expected = lmkan_cupy.hessian_penalty_grad(np.asarray(direction))
        for second in (forward, reverse):
            np.testing.assert_array_equal(compiled(second)(tables), expected)
            third = jax.jvp(compiled(second), (tables,), (direction,))[1]
            np.testing.assert_array_equal(third, 0)

    def test_gradient_in_the_direction_of_the_tables(self, tables: Any) -> None:
        """A quadratic form is half of its gradient times its argument."""
        product = jax.jvp(hessian_penalty, (tables,), (tables,))[1]
        rtol = tables.size * unit(tables.dtype.name)
        np.testing.assert_allclose(product, 2 * hessian_penalty(tables), rtol=rtol)

    def test_of_several_tables(self, tables: Any, compiled: Any) -> None:
        stack = jnp.stack([tables, 2 * tables])
        penalties, grads = compiled(jax.vmap(jax.value_and_grad(hessian_penalty)))(stack)
        np.testing.assert_array_equal(penalties, [hessian_penalty(each) for each in stack])
        np.testing.assert_array_equal(grads[1], jax.grad(hessian_penalty)(stack[1]))

    def test_of_what_is_no_table(self) -> None:
        with pytest.raises(ValueError, match=r"hessian_penalty: tables must have shape \[pairs, k"):
            jax.jit(hessian_penalty)(jnp.zeros((2, 5, 4, 1)))
        with pytest.raises(TypeError, match=r"hessian_penalty: tables must be float32, .* got int"):
            hessian_penalty(jnp.zeros((2, 5, 5, 1), int))


class TestInitTables:
    @pytest.mark.long
    @pytest.mark.parametrize("dtype", first_short(["float32", "float64", "float16", "bfloat16"]))
    def test_uniform_in_the_bounds(self, dtype: str) -> None:
        tables = init_tables(jax.random.key(0), 7, 50, 20, init_scale=3, dtype=dtype)
        assert tables.shape == (4, 21, 21, 50)
        assert tables.dtype == dtype
        relative = np.asarray(tables, "float64") / (3 / np.sqrt(7))
        assert 0.999 < abs(relative).max() <= 1 + float(jnp.finfo(dtype).eps)
        # Moments of U(-1, 1) up to five standard errors; one draw, fixed by the key.
        five_errors = 5 / np.sqrt(relative.size)
        assert abs(np.mean(relative)) < five_errors * np.sqrt(1 / 3)
        assert abs(np.mean(relative**2) - 1 / 3) < five_errors * np.sqrt(4 / 45)

    @pytest.mark.long
    def test_key_decides(self) -> None:
        keys = jax.random.split(jax.random.key(0))
        one, other = (init_tables(key, 4, 3, 5) for key in keys)
        assert (one != other).any()
        np.testing.assert_array_equal(init_tables(keys[0], 4, 3, 5), one)
        compiled = jax.jit(init_tables, static_argnums=(1, 2, 3))
        np.testing.assert_array_equal(compiled(keys[1], 4, 3, 5), other)

    def test_default_scale_is_that_of_the_core(self) -> None:
        drawn = init_tables(jax.random.key(0), 7, 50, 20) * np.sqrt(7)
        assert 0.0999 < abs(drawn).max() <= 0.1 * (1 + np.finfo("float32").eps)

    def test_sizes_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="init_tables: num_grids must be at least 3, got 2"):
            init_tables(jax.random.key(0), 4, 3, 2)
        with pytest.raises(TypeError, match=r"init_tables: dtype must be float32, .* got int64"):
            init_tables(jax.random.key(0), 4, 3, 5, dtype="int64")
