"""`adapters.jax`: the core's numbers under every transformation of JAX, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest
from problems import FLOAT32, FLOAT64, SMALL, Dtypes, Problem, Sizes, first_short, make_problem
from tolerances import unit

import lmkan_cupy

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax.test_util import check_grads  # noqa: E402
from lmkan_cupy.adapters.jax import lmkan  # noqa: E402


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["eager", "jit"])
def compiled(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return jax.jit if request.param == "jit" else lambda function: function


@pytest.fixture(params=first_short([FLOAT32, FLOAT64]), ids=str)
def problem(request: pytest.FixtureRequest, rng: np.random.Generator) -> Problem:
    """Arrays small enough for whole Hessians."""
    return make_problem(rng, Sizes(3, 3, 2, 4), request.param)


def cubes(x: Any, tables: Any) -> Any:
    """A scalar whose second derivatives depend on those of the layer."""
    return (lmkan(x, tables) ** 3).sum()


def assert_close(one: Any, other: Any) -> None:
    """Equal up to the rounding of a few hundred terms, relative to the largest entry."""
    other = np.asarray(other)
    atol = 500 * unit(other.dtype.name) * abs(other).max()
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


# The same numbers as the core


@pytest.mark.parametrize("dtypes", first_short([FLOAT32, FLOAT64]), ids=str)
@pytest.mark.parametrize("sizes", [SMALL, Sizes(0, 4, 3, 5), Sizes(9000, 4, 33, 6)], ids=str)
def test_value_and_gradients_are_the_core(
    rng: np.random.Generator, compiled: Any, sizes: Sizes, dtypes: Dtypes
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, sizes, dtypes)
    given = jnp.asarray(x), jnp.asarray(tables)
    y, pull = jax.vjp(compiled(lmkan), *given)
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(y, lmkan_cupy.forward(x, tables), strict=True)
    grads = pull(jnp.asarray(grad_y))
    for one, other in zip(grads, lmkan_cupy.backward(grad_y, x, tables), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.long
@pytest.mark.parametrize("dimension", [1, 3])
def test_other_dimensions_are_the_core(
    rng: np.random.Generator, compiled: Any, dimension: int
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, Sizes(3, 4, 2, 3), FLOAT64, dimension=dimension)
    given = jnp.asarray(x), jnp.asarray(tables)
    y, pull = jax.vjp(compiled(lmkan), *given)
    np.testing.assert_array_equal(y, lmkan_cupy.forward(x, tables), strict=True)
    for one, other in zip(
        pull(jnp.asarray(grad_y)), lmkan_cupy.backward(grad_y, x, tables), strict=True
    ):
        np.testing.assert_array_equal(one, other, strict=True)
    check_grads(compiled(cubes), given, order=2, modes=("rev",))


def test_forward_mode_is_the_core(
    rng: np.random.Generator, compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One `jvp`, and nothing of a backward."""
    x, tables, _, dx, dtables = make_problem(rng, SMALL)
    for name in ("backward", "backward_backward"):
        monkeypatch.delattr(lmkan_cupy, name)
    _, dy = jax.jvp(compiled(lmkan), (x, tables), (dx, dtables))
    np.testing.assert_array_equal(dy, lmkan_cupy.jvp(dx, dtables, x, tables), strict=True)
    _, dy = jax.jvp(compiled(lambda x: lmkan(x, tables)), (x,), (dx,))
    np.testing.assert_array_equal(dy, lmkan_cupy.jvp(dx, None, x, tables), strict=True)


def test_numpy_arrays_and_any_leading_axes(rng: np.random.Generator, compiled: Any) -> None:
    x, tables, *_ = make_problem(rng, Sizes(24, 5, 7, 10))
    y = compiled(lmkan)(x.reshape(2, 3, 4, 5), tables)
    np.testing.assert_array_equal(y.reshape(24, 7), lmkan_cupy.forward(x, tables))
    np.testing.assert_array_equal(compiled(lmkan)(x[0], tables), lmkan_cupy.forward(x[0], tables))


@pytest.mark.parametrize("dtype", first_short(["bfloat16", "float16"]))
def test_half_tables_are_widened(rng: np.random.Generator, dtype: str) -> None:
    x, tables, grad_y, *_ = make_problem(rng)
    half = jnp.asarray(tables, dtype)
    y, pull = jax.vjp(lmkan, jnp.asarray(x), half)
    widened = np.asarray(half.astype("float32"))
    np.testing.assert_array_equal(y, lmkan_cupy.forward(x, widened), strict=True)
    _, grad_tables = pull(jnp.asarray(grad_y))
    assert grad_tables.dtype == dtype
    _, expected = lmkan_cupy.backward(grad_y, x, widened)
    np.testing.assert_array_equal(grad_tables, jnp.asarray(expected).astype(dtype))


def test_single_precision_is_kept_without_x64(rng: np.random.Generator) -> None:
    x, tables, *_ = make_problem(rng)
    with jax.enable_x64(False):
        assert lmkan(x, tables).dtype == np.float32
        assert jax.jit(lmkan)(x, tables).dtype == np.float32


def test_where_compilation_is_disabled(problem: Problem) -> None:
    x, tables, *_ = problem
    with jax.disable_jit():
        np.testing.assert_array_equal(lmkan(x, tables), lmkan_cupy.forward(x, tables))


# Derivatives


@pytest.mark.long  # float64; in the short run derivatives are those of the core
def test_derivatives_are_those_of_finite_differences(
    rng: np.random.Generator, compiled: Any
) -> None:
    x, tables, *_ = map(jnp.asarray, make_problem(rng, Sizes(3, 3, 2, 4), FLOAT64))
    check_grads(compiled(lmkan), (x, tables), order=1, modes=("fwd", "rev"), eps=1e-6)
    check_grads(compiled(lmkan), (x, tables), order=2, modes=("rev",), eps=1e-6)
    check_grads(compiled(jax.grad(cubes, (0, 1))), (x, tables), 1, ("fwd", "rev"), eps=1e-6)


@pytest.mark.parametrize("argument", first_short([0, 1]), ids=["x", "tables"])
def test_hessians_in_both_modes_agree_and_are_symmetric(
    problem: Problem, compiled: Any, argument: int
) -> None:
    gradient = jax.grad(cubes, argument)
    arguments = jnp.asarray(problem.x), jnp.asarray(problem.tables)
    forward = compiled(jax.jacfwd(gradient, argument))(*arguments)
    reverse = compiled(jax.jacrev(gradient, argument))(*arguments)
    size = arguments[argument].size
    assert abs(forward).max() > 0
    assert_close(forward, reverse)
    assert_close(forward.reshape(size, size).T, forward.reshape(size, size))


def test_only_the_gradients_in_need_are_computed(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = []
    backward = lmkan_cupy.backward

    def recorded(*arguments: Any, need_x: bool, need_tables: bool, **out: Any) -> Any:
        needs.append((need_x, need_tables))
        return backward(*arguments, need_x=need_x, need_tables=need_tables, **out)

    monkeypatch.setattr(lmkan_cupy, "backward", recorded)
    for arguments in (0, 1, (0, 1)):
        jax.block_until_ready(jax.grad(cubes, arguments)(problem.x, problem.tables))
    assert needs == [(True, False), (False, True), (True, True)]


def test_within_loops_and_checkpoints(problem: Problem) -> None:
    x, tables = jnp.asarray(problem.x[:, :2]), jnp.asarray(problem.tables[:1])

    def steps(tables: Any) -> Any:
        step = jax.checkpoint(lambda x, _: (lmkan(x, tables), None))
        return jax.lax.scan(step, x, length=3)[0].sum()

    unrolled = jax.grad(lambda tables: lmkan(lmkan(lmkan(x, tables), tables), tables).sum())
    assert_close(jax.grad(steps)(tables), unrolled(tables))


# vmap


def test_batch_of_samples(problem: Problem, compiled: Any) -> None:
    x, tables = jnp.asarray(problem.x), jnp.asarray(problem.tables)
    for axes, given in (((0, None), x), ((1, None), x.T)):
        batched = compiled(jax.vmap(lmkan, axes))(given, tables)
        np.testing.assert_array_equal(batched, lmkan(x, tables))


def test_gradient_of_a_batch_is_one_call(problem: Problem) -> None:
    """Shared tables get one gradient, not one per sample to be summed afterwards."""
    x, tables = jnp.asarray(problem.x), jnp.asarray(problem.tables)

    def loss(tables: Any) -> Any:
        return (jax.vmap(lmkan, (0, None))(x, tables) ** 3).sum()

    np.testing.assert_array_equal(jax.grad(loss)(tables), jax.grad(cubes, 1)(x, tables))
    program = jax.make_jaxpr(jax.grad(loss))(tables)
    pulls = [each for each in program.eqns if each.params.get("operation") == "pull"]
    assert [each.outvars[0].aval.shape for each in pulls] == [tables.shape]


def test_gradients_per_sample(problem: Problem, compiled: Any) -> None:
    x, tables = jnp.asarray(problem.x), jnp.asarray(problem.tables)
    gradients = compiled(jax.vmap(jax.grad(cubes, (0, 1)), (0, None)))(x, tables)
    for n in range(len(x)):
        for one, other in zip(gradients, jax.grad(cubes, (0, 1))(x[n], tables), strict=True):
            np.testing.assert_array_equal(one[n], other)


def test_several_tables(problem: Problem, compiled: Any) -> None:
    x = jnp.asarray(problem.x)
    tables = jnp.stack([problem.tables, problem.ggt])
    of_one_x = compiled(jax.vmap(lmkan, (None, 0)))(x, tables)
    of_each_x = compiled(jax.vmap(lmkan))(jnp.stack([x, -x]), tables)
    for n in range(2):
        np.testing.assert_array_equal(of_one_x[n], lmkan(x, tables[n]))
        np.testing.assert_array_equal(of_each_x[n], lmkan((-1) ** n * x, tables[n]))


# Threads, devices


@pytest.mark.long
def test_no_deadlock_on_few_threads(tmp_path: Path) -> None:
    """Arrays of many megabytes, many calls in one program, and calls from several threads."""
    code = """
        from concurrent.futures import ThreadPoolExecutor
        import jax, lmkan_cupy
        from lmkan_cupy.adapters.jax import lmkan

        tables = lmkan_cupy.init_tables(10, 8, 8, rng=0)
        x = jax.random.normal(jax.random.key(0), (1_000_000, 10))
        step = jax.jit(jax.value_and_grad(
            lambda tables, x: sum((lmkan(jax.numpy.sin(i * x), tables) ** 2).mean() for i in (1, 2))
        ))
        first = step(tables, x)[0]
        with ThreadPoolExecutor(4) as pool:
            rows = [100_000 + n for n in range(4)]
            list(pool.map(lambda n: jax.block_until_ready(step(tables, x[:n])), rows))
        assert step(tables, x)[0] == first
    """
    fresh_process.run(code, tmp_path)


@pytest.mark.long
def test_sharded_batches(tmp_path: Path) -> None:
    code = """
        import jax, lmkan_cupy, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from lmkan_cupy.adapters.jax import lmkan

        mesh = jax.make_mesh((2,), ("batch",))
        x = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
        tables = lmkan_cupy.init_tables(10, 8, 8, rng=0)
        shards = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
        expected = lmkan_cupy.forward(x, tables)
        np.testing.assert_array_equal(jax.jit(lmkan)(shards, tables), expected)
        np.testing.assert_array_equal(lmkan(shards, tables), expected)
        try:
            lmkan(*(jax.device_put(*each) for each in zip((x, tables), jax.devices())))
        except ValueError as error:
            print(error)
    """
    printed = fresh_process.run(
        code, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2"
    )
    assert printed.startswith("Received incompatible devices for jitted computation.")
    assert "arguments['x']" in printed


# Errors


@pytest.mark.parametrize("call", [lmkan, jax.jit(lmkan)], ids=["eager", "jit"])
def test_errors_are_those_of_the_core_and_come_early(problem: Problem, call: Any) -> None:
    with pytest.raises(ValueError, match="lmkan: tables has 2 pairs, but x has 6 features"):
        call(jnp.zeros((3, 6), problem.x.dtype), problem.tables)
    with pytest.raises(TypeError, match="lmkan: x must be float64 where tables is float64, got fl"):
        call(problem.x.astype("float32"), problem.tables.astype("float64"))
    with pytest.raises(TypeError, match="lmkan: x must be float32 or float64, got int"):
        call(jnp.zeros((3, 3), int), problem.tables)


def test_other_platforms_are_an_error(problem: Problem) -> None:
    traced = jax.jit(lmkan).trace(problem.x, problem.tables)
    with pytest.raises(NotImplementedError, match="lmkan: there is no engine for tpu, only for"):
        traced.lower(lowering_platforms=("tpu",))


def test_derivatives_that_are_not_there_are_an_error(problem: Problem) -> None:
    x, tables = problem.x, problem.tables
    with pytest.raises(NotImplementedError, match=r"need reverse mode inside, such as jax\."):
        jax.jacfwd(jax.jacfwd(cubes))(x, tables)
    with pytest.raises(NotImplementedError, match="there are no third derivatives"):
        jax.grad(lambda x: jax.hessian(cubes)(x, tables).sum())(x)
