"""What only a GPU can show: the hardware against oracle and emulator, streams, devices, graphs.

The tests of the functions themselves run here too, with CuPy arrays: see the fixture `xp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import emulated
import fresh_process
import numpy as np
import pytest
import tolerances
from crossing import NETWORK_ROWS, network_problem
from emulated import SMALL_CHUNK_SIZES
from emulator.fixtures import require_tools
from problems import DTYPES, Dtypes, Problem, Sizes, all_results, make_problem
from tolerances import Expected, check_each, host

import lmkan_cupy
from lmkan_cupy import cuda_engine, functional
from lmkan_cupy.array_checks import LinearLayer, Network
from lmkan_cupy.cuda_engine import forward_model, forward_pass, kernel_cache
from lmkan_cupy.cuda_engine.plan import Device, layer_shape
from lmkan_cupy.cuda_engine.ring import RINGS, RingShape, ring_shapes

pytestmark = pytest.mark.gpu

LAYER = Sizes(batch=3000, in_features=33, out_features=64, num_grids=8)

#: Keeps a multiprocessor busy for half a second.
DELAY = r"""
extern "C" __global__ void delay(long long cycles) {
    const long long begin = clock64();
    while (clock64() - begin < cycles) {}
}
"""
DELAY_CYCLES = 10**9


@pytest.fixture
def cupy() -> Any:
    return import_module("cupy")


def expected_results(problem: Problem) -> list[Expected]:
    """What `all_results` should give."""
    x, tables, grad_y, ggx, ggt = problem
    return [
        tolerances.forward(x, tables, in_half=tables.dtype == np.float16),
        tolerances.jvp(ggx, ggt, x, tables),
        *tolerances.backward(grad_y, x, tables),
        *tolerances.backward_backward(ggx, ggt, grad_y, x, tables),
        *tolerances.hessian_penalty(tables, x.dtype),
    ]


def assert_same_bits(results: list[Any], expected: list[Any]) -> None:
    for result, same in zip(results, expected, strict=True):
        assert host(result).tobytes() == host(same).tobytes()


@pytest.fixture(autouse=True)
def forget_plans() -> Iterator[None]:
    emulated.forget_plans()
    yield
    emulated.forget_plans()


def table_dtype(name: str) -> Any:
    return import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device said to have one multiprocessor, so that small problems fill it."""
    device = replace(kernel_cache.device(), multiprocessors=1)
    monkeypatch.setattr(kernel_cache, "device", lambda: device)


@pytest.mark.usefixtures("small_chunks", "small_device")
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SMALL_CHUNK_SIZES, ids=str)
class TestEveryRowOfThePlan:
    def test_against_the_oracle(
        self, cupy: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes
    ) -> None:
        problem = make_problem(rng, sizes, dtypes)
        results = all_results(problem.on(cupy))
        check_each(results, expected_results(problem))
        assert_same_bits(all_results(problem.on(cupy)), results)

    def test_against_the_emulator(
        self,
        cupy: Any,
        rng: np.random.Generator,
        sizes: Sizes,
        dtypes: Dtypes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Each keeps to the bound, so they differ by at most twice the bound.

        The compilers round differently: NVRTC fuses products and sums.
        """
        require_tools()
        problem = make_problem(rng, sizes, dtypes)
        results, device = all_results(problem.on(cupy)), kernel_cache.device
        emulated.install(monkeypatch)
        monkeypatch.setattr(kernel_cache, "device", device)
        monkeypatch.setattr(functional, "engine_for", lambda xp: cuda_engine)
        for result, same, expected in zip(
            results, all_results(problem), expected_results(problem), strict=True
        ):
            Expected(same, 2 * expected.bound).check(result)


@cache
def ring_problem(sizes: Sizes, dtype: str) -> tuple[Problem, list[Expected]]:
    """The same problem for every ring: the oracle takes longer than all of them together."""
    problem = make_problem(np.random.default_rng(0), sizes)
    problem = problem._replace(tables=problem.tables.astype(table_dtype(dtype)))
    return problem, expected_results(problem)


@pytest.mark.usefixtures("small_device")
@pytest.mark.parametrize("sizes", [Sizes(1100, 5, 33, 8), Sizes(3500, 8, 64, 9)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("chunks", [shape.chunks for shape in RINGS])
@pytest.mark.parametrize("slow", ["CHUNK_BYTES", "BULK_BYTES"], ids=["packed", "direct"])
def test_every_ring(
    cupy: Any,
    monkeypatch: pytest.MonkeyPatch,
    sizes: Sizes,
    dtype: str,
    chunks: int,
    slow: str,
) -> None:
    """Tables by way of shared memory, in the shapes of the plan; all other ways are made slow."""
    never = forward_model.Prediction({"L2": 1e9}, 0)
    monkeypatch.setattr(forward_model, "from_global", lambda *_: never)
    monkeypatch.setattr(forward_model, slow, 1e-9)

    def only(table: str, device: Device) -> tuple[RingShape, ...]:
        return tuple(shape for shape in ring_shapes(table, device) if shape.chunks == chunks)

    monkeypatch.setattr(forward_pass, "ring_shapes", only)
    problem, expected = ring_problem(sizes, dtype)
    layer = layer_shape(problem.x, problem.tables)
    plan = forward_pass.plan_forward(
        layer, sizes.batch, kernel_cache.device(), direction=False, aligned=True
    )
    assert plan.kernel.kernel == "forward_ring"
    results = all_results(problem.on(cupy))
    check_each(results, expected)
    assert_same_bits(all_results(problem.on(cupy)), results)


def test_bfloat16_tables(cupy: Any, rng: np.random.Generator) -> None:
    problem = make_problem(rng, Sizes(40, 5, 33, 8))
    bfloat16 = import_module("ml_dtypes").bfloat16
    problem = problem._replace(tables=problem.tables.astype(bfloat16))
    results = all_results(problem.on(cupy))
    assert all(each.dtype == "float32" for each in results)
    check_each(results, expected_results(problem))


def test_more_than_two_to_the_31_outputs(cupy: Any, rng: np.random.Generator) -> None:
    """All samples but the first and the last are zero, and so are their gradients."""
    batch, out_features, ends = 2**21 + 7, 1024, 40
    if cupy.cuda.Device().mem_info[0] < 12 * 2**30:
        pytest.skip("12 GB of free GPU memory are needed")
    first, last = (make_problem(rng, Sizes(ends, 2, out_features, 4)) for _ in range(2))
    tables = cupy.asarray(first.tables)
    x = cupy.zeros((batch, 2), "float32")
    x[:ends], x[-ends:] = cupy.asarray(first.x), cupy.asarray(last.x)

    y = lmkan_cupy.forward(x, tables)
    assert y.size > 2**31
    tolerances.forward(first.x, tables).check(y[:ends])
    tolerances.forward(last.x, tables).check(y[-ends:])

    y.fill(0)
    y[:ends], y[-ends:] = cupy.asarray(first.grad_y), cupy.asarray(last.grad_y)
    grad_x, grad_tables = lmkan_cupy.backward(y, x, tables)
    expected_x, expected_tables = tolerances.backward(
        np.concatenate([first.grad_y, last.grad_y]), np.concatenate([first.x, last.x]), tables
    )
    expected_x.check(cupy.concatenate([grad_x[:ends], grad_x[-ends:]]))
    assert not grad_x[ends:-ends].any()
    expected_tables.check(grad_tables)


class TestStreams:
    def test_waits_for_a_slow_producer_on_the_current_stream(
        self, cupy: Any, rng: np.random.Generator
    ) -> None:
        """Work on any other stream would find the NaN that the arguments hold before."""
        problem = make_problem(rng, LAYER).on(cupy)
        delay = cupy.RawKernel(DELAY, "delay")
        late = Problem(*(cupy.full_like(each, np.nan) for each in problem))
        with cupy.cuda.Stream(non_blocking=True) as stream:
            expected = all_results(problem)  # compiles, and leaves the stream's memory in the pool
            stream.synchronize()
            delay((1,), (1,), (np.int64(DELAY_CYCLES),))
            for array, value in zip(late, problem, strict=True):
                array[...] = value
            results = all_results(late)
            assert not stream.done, "the host waited for the device"
            stream.synchronize()
        assert_same_bits(results, expected)

    def test_several_python_threads_with_a_stream_each(
        self, cupy: Any, rng: np.random.Generator
    ) -> None:
        given = [make_problem(rng, LAYER._replace(out_features=60 + n)).on(cupy) for n in range(4)]
        expected = [all_results(problem) for problem in given]
        cupy.cuda.Device().synchronize()

        def work(problem: Problem) -> list[Any]:
            with cupy.cuda.Stream(non_blocking=True) as stream:
                results = all_results(problem)
                stream.synchronize()
            return results

        with ThreadPoolExecutor(len(given)) as pool:
            for results, same in zip(pool.map(work, given), expected, strict=True):
                assert_same_bits(results, same)


class TestSecondDevice:
    @pytest.fixture(autouse=True)
    def two_devices(self, cupy: Any) -> None:
        if cupy.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("there is only one CUDA device")

    def test_results_are_where_the_arguments_are(self, cupy: Any, rng: np.random.Generator) -> None:
        problem = make_problem(rng, LAYER)
        with cupy.cuda.Device(1):
            there = problem.on(cupy)
        results = all_results(there)
        assert all(each.device.id == 1 for each in results)
        check_each(results, expected_results(problem))

    def test_arguments_on_two_devices(self, cupy: Any, rng: np.random.Generator) -> None:
        x, tables, *_ = make_problem(rng).on(cupy)
        with cupy.cuda.Device(1):
            x = x.copy()
        with pytest.raises(TypeError, match="forward: x must be a cupy array on <CUDA Device 0>"):
            lmkan_cupy.forward(x, tables)


def test_arguments_of_two_libraries(cupy: Any, rng: np.random.Generator) -> None:
    x, tables, *_ = make_problem(rng)
    with pytest.raises(TypeError, match="forward: x must be a numpy array on cpu as tables is"):
        lmkan_cupy.forward(cupy.asarray(x), tables)


class TestGraphs:
    @pytest.fixture
    def stream(self, cupy: Any) -> Iterator[Any]:
        """A side stream with its own memory: a legacy default stream cannot be captured."""
        memory = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(memory.malloc), cupy.cuda.Stream(non_blocking=True) as own:
            yield own

    def test_capture_and_replay(self, cupy: Any, rng: np.random.Generator, stream: Any) -> None:
        problem = make_problem(rng, LAYER).on(cupy)
        all_results(problem)  # compiles
        stream.begin_capture()
        results = all_results(problem)
        graph = stream.end_capture()

        for _ in range(2):
            other = make_problem(rng, LAYER).on(cupy)
            for array, value in zip(problem, other, strict=True):
                array[...] = value
            # On the host: a replay writes where its workspace was, which is free for others now.
            expected = [host(each) for each in all_results(other)]
            graph.launch(stream)
            stream.synchronize()
            assert_same_bits(results, expected)

    def test_capture_of_a_network(self, cupy: Any, stream: Any) -> None:
        """After a warm-up nothing is compiled: the capture would fail."""
        given, rows = network_problem(NETWORK_ROWS["linear-in-front"], 3000)
        moved, x = on_gpu(cupy, given), cupy.asarray(rows)
        options = {"shift": moved.shift, "scale": moved.scale, "bound": list(moved.bounds)}
        lmkan_cupy.warmup(45, 9, 4, device="cuda")

        def results() -> list[Any]:
            y, grad_x = lmkan_cupy.network_value_and_grad(x, moved.layers, **options)
            return [y, grad_x, lmkan_cupy.network_forward(x, moved.layers, **options)]

        cupy.ones(1, "float32").fill(1)  # compiles what fills the outputs' gradient
        stream.begin_capture()
        captured = results()
        graph = stream.end_capture()
        for _ in range(2):
            x[...] = cupy.flipud(x)
            expected = [host(each) for each in results()]
            graph.launch(stream)
            stream.synchronize()
            assert_same_bits(captured, expected)

    def test_capture_of_what_is_not_compiled(
        self, cupy: Any, rng: np.random.Generator, stream: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, tables, grad_y, *_ = make_problem(rng).on(cupy)
        monkeypatch.setattr(kernel_cache, "_kernels", {})
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="is not compiled yet"):
                lmkan_cupy.forward(x, tables, out=grad_y)
        finally:
            stream.end_capture()


class TestCompiling:
    def test_nothing_is_left_after_warmup(
        self, cupy: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise AssertionError("a kernel was compiled")

        monkeypatch.setattr(kernel_cache, "_kernels", {})
        _, in_features, out_features, num_grids = LAYER
        lmkan_cupy.warmup(in_features, out_features, num_grids, device="cuda")
        monkeypatch.setattr(kernel_cache, "_compile", fail)
        for batch in (1, LAYER.batch):
            all_results(make_problem(rng, LAYER._replace(batch=batch)).on(cupy))

    def test_a_second_process_compiles_nothing(self, tmp_path: Path) -> None:
        """If it did, it would overwrite the files of the first."""
        cache = tmp_path / "cache"
        code = 'import lmkan_cupy; lmkan_cupy.warmup(5, 7, 8, device="cuda")'
        written = []
        for _ in range(2):
            fresh_process.run(code, tmp_path, CUPY_CACHE_DIR=str(cache))
            written.append({each: each.stat().st_mtime_ns for each in cache.iterdir()})
        assert written[0]
        assert written[1] == written[0]


def on_gpu(cupy: Any, network: Network) -> Network:
    def moved(array: Any) -> Any:
        return None if array is None else cupy.asarray(array)

    layers = [
        LinearLayer(*map(moved, each)) if isinstance(each, LinearLayer) else moved(each)
        for each in network.layers
    ]
    return network._replace(layers=layers, shift=moved(network.shift), scale=moved(network.scale))


@pytest.mark.parametrize("name", NETWORK_ROWS)
def test_networks_in_one_kernel(cupy: Any, name: str) -> None:
    """A large batch too, the samples of a small one among them; the same bits from call to call."""
    given, x = network_problem(NETWORK_ROWS[name], 200_000)
    expected = tolerances.network(x[:300], given)
    moved = on_gpu(cupy, given)
    grad_y = np.random.default_rng(0).normal(size=(len(x), given.out_features)).astype(x.dtype)
    of_grad, defined = tolerances.network_backward(grad_y[:300], x[:300], given)
    of_grad = Expected(of_grad.value[defined], of_grad.bound[defined])

    def results(batch: int) -> list[Any]:
        rows = cupy.asarray(x[:batch])
        y, same_y = (cupy.full((batch, given.out_features), cupy.nan, x.dtype) for _ in "ab")
        grad_x = cupy.full_like(rows, cupy.nan)
        assert cuda_engine.network_forward(moved, rows, y)
        assert cuda_engine.network_value_and_grad(
            moved, rows, cupy.asarray(grad_y[:batch]), same_y, grad_x
        )
        assert_same_bits([y], [same_y])
        return [y, grad_x]

    few, many = results(300), results(len(x))
    expected.check(few[0])
    of_grad.check(few[1][cupy.asarray(defined)])
    assert_same_bits([each[:300] for each in many], few)
    assert_same_bits(results(len(x)), many)
