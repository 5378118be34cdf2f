"""How `adapters.jax` reads and writes XLA's buffers; stand-ins for CUDA's need no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import emulated
import numpy as np
import pytest
import tolerances
from problems import SMALL, Problem, Sizes, make_problem

import lmkan_cupy
from lmkan_cupy import cuda_engine, functional

jax = pytest.importorskip("jax")
adapter = pytest.importorskip("lmkan_cupy.adapters.jax")

jnp, lmkan = jax.numpy, adapter.lmkan


@pytest.fixture(params=["eager", "jit"])
def compiled(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return jax.jit if request.param == "jit" else lambda function: function


def all_derivatives(x: Any, tables: Any, grad_y: Any, dx: Any, dtables: Any) -> list[Any]:
    """y and its derivatives as `problems.all_results` gives them, but for d/dgrad_y."""

    def pulled(x: Any, tables: Any) -> Any:
        return jax.vjp(lmkan, x, tables)[1](grad_y)

    y, dy = jax.jvp(lmkan, (x, tables), (dx, dtables))
    gradients, pull = jax.vjp(pulled, x, tables)
    return [y, dy, *gradients, *pull((dx, dtables))]


def of_the_core(problem: Problem) -> list[Any]:
    """The same by the functions of the core, on the library of the arrays."""
    x, tables, grad_y, dx, dtables = problem
    return [
        lmkan_cupy.forward(x, tables),
        lmkan_cupy.jvp(dx, dtables, x, tables),
        *lmkan_cupy.backward(grad_y, x, tables),
        *lmkan_cupy.backward_backward(dx, dtables, grad_y, x, tables)[1:],
    ]


def assert_same(results: Any, expected: Any) -> None:
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one, tolerances.host(other), strict=True)


class TestCpuBuffers:
    def test_are_read_and_written_in_place(
        self, rng: np.random.Generator, compiled: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        forward = lmkan_cupy.forward

        def recorded(x: Any, tables: Any, *, out: Any) -> Any:
            seen.extend(each.ctypes.data for each in (x, tables, out))
            return forward(x, tables, out=out)

        monkeypatch.setattr(lmkan_cupy, "forward", recorded)
        x, tables, *_ = map(jnp.asarray, make_problem(rng))
        y = compiled(lmkan)(x, tables).block_until_ready()
        assert seen == [each.unsafe_buffer_pointer() for each in (x, tables, y)]

    def test_hold_strided_arrays_in_order(self, rng: np.random.Generator, compiled: Any) -> None:
        """XLA could make a transposed one by another order of its axes in memory."""
        problem = make_problem(rng)

        def of_transposed(*arrays: Any) -> Any:
            return all_derivatives(*(each.T for each in arrays))

        results = compiled(of_transposed)(*(each.T for each in problem))
        assert_same(results, of_the_core(problem))

    def test_given_away_hold_the_results(self, rng: np.random.Generator) -> None:
        """A result that has to go into the memory of an argument comes after all that read it."""
        x, tables, grad_y, *_ = make_problem(rng, Sizes(33, 6, 6, 8))

        def step(x: Any, tables: Any) -> Any:
            y, pull = jax.vjp(lmkan, x, tables)
            return y, pull(grad_y)[1]

        given = jnp.array(x), jnp.array(tables)
        results = jax.jit(step, donate_argnums=(0, 1))(*given)
        assert all(each.is_deleted() for each in given)
        _, grad_tables = lmkan_cupy.backward(grad_y, x, tables)
        assert_same(results, [lmkan_cupy.forward(x, tables), grad_tables])


class Buffer:
    """Stands for a buffer of XLA on CUDA device 1, in host memory."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1


class TestCudaBuffers:
    """The callback with stand-ins for CuPy, XLA's stream and buffers, and kernels in the emulator.

    XLA's stream is 7.
    """

    @pytest.fixture
    def events(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        events: list[str] = []

        @contextmanager
        def context(name: str) -> Iterator[None]:
            events.append(f"enter {name}")
            yield
            events.append(f"leave {name}")

        cuda = SimpleNamespace(
            Device=lambda index: context(f"device {index}"),
            Stream=SimpleNamespace(
                from_external=lambda stream: context(f"stream {stream.__cuda_stream__()}")
            ),
        )
        cupy = SimpleNamespace(ndarray=type("ndarray", (), {}), asarray=np.asarray, cuda=cuda)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(functional, "engine_for", lambda xp: cuda_engine)
        emulated.install(monkeypatch)
        return events

    def run(self, operation: str, given: dict[str, Any], out: dict[str, Any]) -> None:
        adapter._call_back(
            SimpleNamespace(stream=7),
            [Buffer(each) for each in out.values()],
            *map(Buffer, given.values()),
            operation=operation,
            outputs=tuple(out),
            names=tuple(given),
        )

    def test_device_then_stream_then_work(
        self, rng: np.random.Generator, events: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On the memory of the buffers; at the end everything is as before."""

        def forward(x: Any, tables: Any, *, out: Any) -> Any:
            events.append("work")
            assert x is given["x"]
            assert tables is given["tables"]
            assert out is y
            return out

        monkeypatch.setattr(lmkan_cupy, "forward", forward)
        problem = make_problem(rng)
        given, y = {"x": problem.x, "tables": problem.tables}, problem.grad_y
        self.run("forward", given, {"y": y})
        assert events == [
            "enter device 1",
            "enter stream (0, 7)",
            "work",
            "leave stream (0, 7)",
            "leave device 1",
        ]

    @pytest.mark.long
    @pytest.mark.usefixtures("events")
    def test_every_operation_by_the_cuda_engine(self, rng: np.random.Generator) -> None:
        problem = make_problem(rng, emulated.ROW)
        x, tables, grad_y, dx, dtables = problem
        layer = {"x": x, "tables": tables}
        direction = {"dx": dx, "dtables": dtables}

        def empty(**like: Any) -> dict[str, Any]:
            return {name: np.full_like(each, np.nan) for name, each in like.items()}

        results = [
            (operation, given, empty(**out))
            for operation, given, out in (
                ("forward", layer, {"y": grad_y}),
                ("push", {**direction, **layer}, {"y": grad_y}),
                ("pull", {"grad_y": grad_y, **layer}, layer),
                ("curve", {**direction, "grad_y": grad_y, **layer}, layer),
            )
        ]
        for each in results:
            self.run(*each)
        assert_same(
            [array for _, _, out in results for array in out.values()], of_the_core(problem)
        )

    def test_program_hands_over_buffers(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And makes no other call: a callback of JAX's would copy to the host."""
        monkeypatch.setattr(adapter, "cuda_obstacle", lambda: None)
        traced = jax.jit(all_derivatives).trace(*make_problem(rng))
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert program.count("@xla_buffer_python_gpu_callback(") >= 4
        assert program.count("custom_call @") == program.count("@xla_buffer_python_gpu_callback(")

    def test_obstacle_comes_early_and_with_its_remedy(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(adapter, "cuda_obstacle", lambda: "CuPy is missing: install it")
        x, tables, *_ = make_problem(rng)
        traced = jax.jit(lmkan).trace(x, tables)
        with pytest.raises(
            RuntimeError, match="lmkan: the arrays are on a CUDA device, but CuPy is missing: ins"
        ):
            traced.lower(lowering_platforms=("cuda",))


@pytest.mark.gpu
class TestGpu:
    @pytest.fixture(autouse=True)
    def device(self) -> Iterator[Any]:
        try:
            device, *_ = jax.devices("cuda")
        except RuntimeError:
            pytest.skip("this JAX cannot use the GPU")
        with jax.default_device(device):
            yield device

    @pytest.mark.parametrize("sizes", [Sizes(0, 4, 3, 5), SMALL, Sizes(3000, 33, 64, 8)], ids=str)
    def test_is_the_core_on_cupy(
        self, rng: np.random.Generator, compiled: Any, device: Any, sizes: Sizes
    ) -> None:
        problem = make_problem(rng, sizes)
        results = compiled(all_derivatives)(*problem)
        assert all(each.devices() == {device} for each in results)
        assert_same(results, of_the_core(problem.on(import_module("cupy"))))

    def test_waits_for_a_slow_producer_and_is_waited_for(self, rng: np.random.Generator) -> None:
        """Work on any other stream than XLA's would read or give values of the wrong time."""
        problem = make_problem(rng, Sizes(3000, 33, 64, 8))
        large = jnp.asarray(rng.normal(size=(4096, 4096)), "float32") / 4096

        def late(*arrays: Any) -> Any:
            zero = 0 * jax.lax.fori_loop(0, 100, lambda _, each: each @ large, large).sum()
            return [2 * each for each in all_derivatives(*(each + zero for each in arrays))]

        expected = [2 * each for each in of_the_core(problem.on(import_module("cupy")))]
        assert_same(jax.jit(late)(*problem), expected)
