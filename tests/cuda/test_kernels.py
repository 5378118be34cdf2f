"""The kernels of the CUDA engine in the emulator: every row of the plan, against the oracle.

Each call runs in three orders of threads and blocks and must give the same bits in all of them. The
emulator reports every access out of bounds, race and read of memory that was not written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import emulated
import emulator
import numpy as np
import pytest
import tolerances

# The tests of special values, collected here once more: they run on the engine that is in place.
from core.test_special_values import (  # noqa: F401
    TestNonFinite,
    TestOnKnots,
    test_zero_belongs_to_the_cell_on_its_right,
)
from devices import DEVICES, largest_grid
from emulated import SMALL_CHUNK_SIZES
from problems import DTYPES, FLOAT32, HALF_TABLES, Dtypes, Problem, Sizes, make_problem

import lmkan_cupy
from lmkan_cupy import allocation, cuda_engine, functional, sigma_grid
from lmkan_cupy.cuda_engine import forward_model, kernel_cache, launch
from lmkan_cupy.cuda_engine import plan as launch_plan
from lmkan_cupy.cuda_engine.plan import Launch, RingShape

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")

RINGS = {
    "128-byte rows": RingShape(chunks=8, samples=2, warps=2),
    "64-byte rows": RingShape(chunks=4, samples=3, warps=2),
    "32-byte rows": RingShape(chunks=2, samples=2, warps=4),
}
"""Those of the plan with fewer warps: less to emulate, and the same text."""

BFLOAT16_TABLES = Dtypes("float32", "bfloat16")
RING_DTYPES = [FLOAT32, HALF_TABLES, BFLOAT16_TABLES]

RING_SIZES = [Sizes(37, 5, 32, 8), Sizes(200, 24, 64, 9), Sizes(300, 2, 96, 4)]
"""For the tables in shared memory: odd pairs and half a block; several blocks by several tiles,
more pairs than stages and warps; tiles in several bunches, the last of them incomplete."""

ROWS = [
    (name, table, shape.chunks, direction)
    for name, table, direction in (
        ("sm_90", "float32", False),
        ("sm_90", "float32", True),
        ("sm_90", "float16", False),
        ("sm_90", "bfloat16", False),
        ("sm_100", "float16", False),
        ("sm_120", "bfloat16", False),
    )
    for shape in launch_plan.ring_shapes(table, DEVICES[name])
]
"""Every row of the plan's table; from sm_100 on those of half tables are others."""

HALF_RING_SIZES = Sizes(150, 9, 128, 6)
"""The second for half tables, whose tiles have twice as many outputs."""


@pytest.fixture(scope="session")
def xp() -> Any:
    """The tests of special values run here with the arrays that the emulator takes."""
    return np


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA engine in the place of the CPU engine, its kernels in the emulator."""
    monkeypatch.setattr(functional, "_engine", lambda xp: cuda_engine)
    emulated.install(monkeypatch)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> Callable[..., tuple[Any, ...]]:
    """Calls a function in every order and returns its results, which must not differ."""

    def in_every_order(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        all_results = []
        for order in emulator.ORDERS:
            emulated.install(monkeypatch, order, seed=7)
            results = function(*arguments, **more)
            all_results.append(results if isinstance(results, tuple) else (results,))
        for results in all_results[1:]:
            for result, first in zip(results, all_results[0], strict=True):
                np.testing.assert_array_equal(result, first)
        return all_results[0]

    return in_every_order


def check(results: tuple[Any, ...], all_expected: Any) -> None:
    for result, expected in zip(results, all_expected, strict=True):
        expected.check(result)


def check_layer(run: Callable[..., Any], problem: Problem) -> None:
    x, tables, grad_y, *_ = problem
    check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])
    check(run(lmkan_cupy.backward, grad_y, x, tables), tolerances.backward(grad_y, x, tables))
    check(run(lmkan_cupy.backward_backward, *cotangents(problem)), expected_twice(problem))


def cotangents(problem: Problem) -> tuple[Any, ...]:
    return problem.ggx, problem.ggt, problem.grad_y, problem.x, problem.tables


def expected_twice(problem: Problem) -> Any:
    return tolerances.backward_backward(*cotangents(problem))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SMALL_CHUNK_SIZES, ids=str)
def test_layer(run: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    check_layer(run, make_problem(rng, sizes, dtypes))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [Sizes(0, 1, 1, 3), Sizes(0, 5, 33, 8), Sizes(0, 2, 68, 8), Sizes(0, 2, 3, 50)],
    ids=str,
)
def test_penalty(run: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    """Every vector; one and two tiles of outputs and of columns of knots."""
    tables = make_problem(rng, sizes, dtypes).tables
    results = run(lmkan_cupy.hessian_penalty_and_grad, tables)
    check(results, tolerances.hessian_penalty(tables, dtypes.x))
    assert run(lmkan_cupy.hessian_penalty, tables) == results[:1]


def test_penalty_in_many_tiles(
    run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_plan, "PENALTY_COLUMNS", 6)
    tables = make_problem(rng, Sizes(0, 3, 8, 7)).tables
    penalty, grad = run(lmkan_cupy.hessian_penalty_and_grad, tables, scale=0.5)
    check([penalty, 2 * grad], tolerances.hessian_penalty(tables, "float32"))


def test_gradient_of_penalty_is_added(
    run: Callable[..., tuple[Any, ...]], rng: np.random.Generator
) -> None:
    tables = make_problem(rng, Sizes(0, 3, 8, 7)).tables

    def added_to_ones() -> tuple[Any, ...]:
        ones = np.ones_like(tables)
        return lmkan_cupy.hessian_penalty_and_grad(tables, 0.5, add_to=ones)

    _, grad = run(lmkan_cupy.hessian_penalty_and_grad, tables, 0.5)
    _, total = run(added_to_ones)
    np.testing.assert_array_equal(total, 1 + grad)


CONCENTRATED: dict[str, Callable[[Any], Any]] = {
    "one cell": lambda x: np.full_like(x, 0.1),
    "one cell of an odd row": lambda x: np.full_like(x, 100),
    "one hot cell": lambda x: np.where(np.arange(len(x))[:, None] % 8, x.dtype.type(0.1), x),
    "constant column": lambda x: np.where(np.arange(x.shape[1]) == 1, x.dtype.type(0.1), x),
    "after a ReLU": lambda x: np.maximum(x, 0),
}
"""Inputs of which many samples share cells. In one cell every stretch begins and ends in it, and no
launch of the other half has samples."""


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CONCENTRATED)
def test_concentrated_inputs(run: Any, rng: np.random.Generator, dtypes: Dtypes, kind: str) -> None:
    problem = make_problem(rng, Sizes(70, 3, 7, 8), dtypes)
    check_layer(run, problem._replace(x=CONCENTRATED[kind](problem.x)))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("size", [90, 1e15])
def test_far_outside(run: Any, rng: np.random.Generator, dtypes: Dtypes, size: float) -> None:
    problem = make_problem(rng, Sizes(50, 3, 7, 8), dtypes)
    check_layer(run, problem._replace(x=problem.x * np.asarray(size, dtypes.x)))


def test_many_cells_per_stretch(
    run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warp adds rows of neighbouring cells itself, and only its last goes through a slot."""
    monkeypatch.setattr(launch_plan, "MOST_CHUNK", 600)
    monkeypatch.setattr(launch_plan, "STRETCH", 40)
    check_layer(run, make_problem(rng, Sizes(600, 3, 5, 8)))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("needed", ["x", "tables"])
def test_one_gradient_alone(
    run: Any, rng: np.random.Generator, needed: str, dtypes: Dtypes
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, Sizes(70, 5, 33, 8), dtypes)
    options = {"need_x": needed == "x", "need_tables": needed == "tables"}
    both = lmkan_cupy.backward(grad_y, x, tables)

    def call() -> Any:
        results = lmkan_cupy.backward(grad_y, x, tables, **options)
        assert results[needed == "x"] is None
        return results[needed == "tables"]

    np.testing.assert_array_equal(run(call)[0], both[needed == "tables"])


def test_arrays_that_begin_anywhere(run: Any, rng: np.random.Generator) -> None:
    """Not at multiples of the 16 bytes that a lane reads at once."""
    problem = make_problem(rng, Sizes(40, 4, 64, 4))
    shifted = [np.empty(each.size + 1, each.dtype)[1:].reshape(each.shape) for each in problem]
    for target, array in zip(shifted, problem, strict=True):
        target[...] = array
    check_layer(run, Problem(*shifted))


def test_chunk_fits_into_shared_memory(
    run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sort halves it, here from 256 samples to 64: 64 digits of 36 bytes and 4 per sample."""
    monkeypatch.setattr(launch_plan, "MOST_CHUNK", 256)
    device = replace(emulated.DEVICE, shared_bytes=64 * 36 + 64 * 4 + 100)
    monkeypatch.setattr(emulated, "DEVICE", device)
    x, tables, grad_y, *_ = make_problem(rng, Sizes(150, 3, 5, 8))
    check(run(lmkan_cupy.backward, grad_y, x, tables), tolerances.backward(grad_y, x, tables))


@pytest.mark.parametrize("without", ["ggx", "ggt"])
@pytest.mark.parametrize("dtypes", [FLOAT32, HALF_TABLES], ids=str)
def test_missing_cotangent_is_zero(
    run: Any, rng: np.random.Generator, without: str, dtypes: Dtypes
) -> None:
    problem = make_problem(rng, Sizes(40, 5, 33, 8), dtypes)
    given = problem._replace(**{without: None})
    zeros = problem._replace(**{without: np.zeros_like(getattr(problem, without))})
    check(run(lmkan_cupy.backward_backward, *cotangents(given)), expected_twice(zeros))


def use_ring(monkeypatch: pytest.MonkeyPatch, shape: RingShape) -> None:
    monkeypatch.setattr(launch_plan, "ring_shapes", lambda *_: (shape,))
    emulated.forget_plans()


def problem_with(rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> Problem:
    """As `make_problem`, also with the dtype that NumPy does not have."""
    if dtypes != BFLOAT16_TABLES:
        return make_problem(rng, sizes, dtypes)
    problem = make_problem(rng, sizes)
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    return problem._replace(tables=problem.tables.astype(bfloat16))


def forward(problem: Problem) -> Any:
    """Without the checks of the public function, which takes no bfloat16 from NumPy."""
    y = np.full_like(problem.grad_y, np.nan)
    knots = sigma_grid(problem.tables.shape[1] - 1)
    cuda_engine.forward(problem.x, problem.tables, knots, y)
    return y


def double_backward(problem: Problem) -> tuple[Any, ...]:
    """Likewise."""
    x, tables, grad_y, ggx, ggt = problem
    results = tuple(np.full_like(each, np.nan) for each in (grad_y, x, ggt))
    knots = sigma_grid(tables.shape[1] - 1)
    cuda_engine.backward_backward(ggx, ggt, grad_y, x, tables, knots, *results)
    return results


def expected_by_ring(problem: Problem) -> tolerances.Expected:
    in_half = problem.tables.dtype == np.float16
    return tolerances.forward(problem.x, problem.tables, in_half=in_half)


@pytest.mark.parametrize(("name", "table", "chunks", "direction"), ROWS)
def test_rows_of_the_plan(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    table: str,
    chunks: int,
    direction: bool,
) -> None:
    """With all their warps and samples, and the largest grid of the device."""
    device = DEVICES[name]
    shapes = launch_plan.ring_shapes(table, device)
    (shape,) = (shape for shape in shapes if shape.chunks == chunks)
    num_grids = largest_grid(table, shape, device)
    of_block = launch_plan.LANES * shape.samples * shape.warps
    sizes = Sizes(of_block - 1, 6, 3, num_grids)
    problem = problem_with(rng, sizes, Dtypes("float32", table))
    x, tables, grad_y, ggx, _ = problem
    layer = launch_plan.layer(x, tables)
    plan = launch_plan.through_ring(
        layer, len(x), device, direction, True, shape, launch_plan.FEWEST_STAGES, layer.pairs
    )
    assert plan.kernel.threads == launch_plan.LANES * shape.warps
    some = slice(None, None, 31)  # of each warp: the oracle takes long
    if direction:
        zeros = np.zeros_like(tables)
        given = (ggx[some], zeros, grad_y[some], x[some], tables)
        expected = tolerances.backward_backward(*given)[0]
    else:
        expected = expected_by_ring(problem._replace(x=x[some]))
    for order in emulator.ORDERS:
        emulated.install(monkeypatch, order, seed=7, arch=10 * device.capability)
        y = np.full_like(grad_y, np.nan)
        call = cuda_engine.by_plan(plan, sigma_grid(num_grids), layer, len(x), direction)
        call(x, ggx if direction else None, tables, y)
        assert np.isfinite(y).all()
        expected.check(y[some])


class TestForwardRing:
    """Tables in shared memory: every shape, from packed tables and from those of the layer."""

    @pytest.fixture(autouse=True)
    def always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = forward_model.Prediction({"L2": 1e9}, 0)
        monkeypatch.setattr(forward_model, "from_global", lambda *_: slow)
        use_ring(monkeypatch, RINGS["128-byte rows"])

    @pytest.fixture(params=RINGS)
    def shape(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        use_ring(monkeypatch, RINGS[request.param])

    @pytest.fixture(params=["packed", "direct"])
    def way(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """Of the tables to shared memory; the other is made slow."""
        way: str = request.param
        slow = {"packed": "CHUNK_BYTES", "direct": "BULK_BYTES"}[way]
        monkeypatch.setattr(forward_model, slow, 1e-9)
        return way

    def plan(self, problem: Problem) -> launch_plan.Ring:
        x, tables, *_ = problem
        layer = launch_plan.layer(x, tables)
        plan = launch_plan.forward(layer, len(x), emulated.DEVICE, direction=False, aligned=True)
        assert plan.kernel.kernel == "forward_ring"
        assert plan.ring
        return plan.ring

    @pytest.mark.parametrize("sizes", RING_SIZES, ids=str)
    def test_layer(
        self, run: Any, rng: np.random.Generator, shape: None, way: str, sizes: Sizes
    ) -> None:
        problem = make_problem(rng, sizes)
        assert self.plan(problem).packed == (way == "packed")
        check(
            run(lmkan_cupy.forward, problem.x, problem.tables),
            [tolerances.forward(problem.x, problem.tables)],
        )

    @pytest.mark.parametrize(
        ("splits", "dtypes"), [(1, HALF_TABLES), (2, FLOAT32), (1, BFLOAT16_TABLES)]
    )
    def test_double_backward(
        self,
        run: Any,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
        shape: None,
        splits: int,
        dtypes: Dtypes,
    ) -> None:
        """Along a direction, then added to it; the sums of parts as well. In float throughout."""
        monkeypatch.setattr(launch_plan, "SPLITS", (splits,))
        problem = problem_with(rng, RING_SIZES[0], dtypes)
        check(run(double_backward, problem), expected_twice(problem))

    @pytest.mark.parametrize(
        ("arch", "way"), [(800, "packed"), (800, "direct"), (750, "direct")], indirect=["way"]
    )
    def test_without_bulk_copies(
        self,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
        shape: None,
        way: str,
        arch: int,
    ) -> None:
        x, tables, *_ = make_problem(rng, RING_SIZES[1])
        y = lmkan_cupy.forward(x, tables)
        for order in emulator.ORDERS:
            emulated.install(monkeypatch, order, seed=7, arch=arch)
            np.testing.assert_array_equal(lmkan_cupy.forward(x, tables), y)

    @pytest.mark.parametrize("arch", [900, 800, 750])
    def test_two_stages(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, way: str, arch: int
    ) -> None:
        monkeypatch.setattr(launch_plan, "MOST_STAGES", 2)
        problem = make_problem(rng, RING_SIZES[1])
        assert self.plan(problem).stages == 2
        for order in emulator.ORDERS:
            emulated.install(monkeypatch, order, seed=7, arch=arch)
            y = lmkan_cupy.forward(problem.x, problem.tables)
            tolerances.forward(problem.x, problem.tables).check(y)

    @pytest.mark.parametrize("outputs", [1, 31, 33, 68])
    @pytest.mark.parametrize("dtypes", RING_DTYPES, ids=str)
    def test_tiles_that_are_not_full(
        self, run: Any, rng: np.random.Generator, outputs: int, dtypes: Dtypes
    ) -> None:
        problem = problem_with(rng, Sizes(70, 5, outputs, 8), dtypes)
        assert self.plan(problem).packed
        check(run(forward, problem), [expected_by_ring(problem)])

    @pytest.mark.parametrize("dtypes", RING_DTYPES[1:], ids=str)
    def test_half_tables(
        self, run: Any, rng: np.random.Generator, shape: None, way: str, dtypes: Dtypes
    ) -> None:
        problem = problem_with(rng, HALF_RING_SIZES, dtypes)
        plan = self.plan(problem)
        assert plan.packed == (way == "packed")
        check(run(forward, problem), [expected_by_ring(problem)])

    @pytest.mark.parametrize("dtypes", RING_DTYPES[1:], ids=str)
    @pytest.mark.parametrize("arch", [800, 750])
    def test_half_tables_without_bulk_copies(
        self,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
        way: str,
        dtypes: Dtypes,
        arch: int,
    ) -> None:
        problem = problem_with(rng, HALF_RING_SIZES, dtypes)
        y = forward(problem)
        emulated.install(monkeypatch, "random", seed=7, arch=arch)
        np.testing.assert_array_equal(forward(problem), y)

    @pytest.mark.parametrize("dtypes", RING_DTYPES[1:], ids=str)
    @pytest.mark.parametrize("size", [1, 1e3, 1e15])
    @pytest.mark.parametrize("values", ["largest", "any", "subnormal"])
    def test_range_of_half_tables(
        self, rng: np.random.Generator, dtypes: Dtypes, size: float, values: str
    ) -> None:
        """Nothing overflows inside a cell, and what is rounded to steps keeps to its bound."""
        problem = problem_with(rng, Sizes(64, 5, 64, 8), dtypes)
        shape = problem.tables.shape
        factors = {
            "largest": rng.choice([65504.0, -65504.0], shape),
            "any": problem.tables.astype(float) * 10.0 ** rng.uniform(-9, 4.8, shape),
            "subnormal": problem.tables.astype(float) * 2.0**-20,
        }
        problem = problem._replace(
            x=problem.x * np.float32(size), tables=factors[values].astype(problem.tables.dtype)
        )
        expected_by_ring(problem).check(forward(problem))

    def test_largest_tables_give_themselves(self) -> None:
        """Rounded weights may add up to more than 1; sums of pairs leave the range of halves."""
        x = np.linspace(-2, 2, 400, dtype=np.float32).reshape(100, 4)
        y = lmkan_cupy.forward(x, np.full((2, 9, 9, 64), 65504, np.float16))
        np.testing.assert_allclose(y, 2 * 65504, rtol=5 * 2.0**-11)

    def test_results_anywhere_in_memory(self, rng: np.random.Generator) -> None:
        x, tables, *_ = make_problem(rng, RING_SIZES[0])
        y = lmkan_cupy.forward(x, tables)
        memory = np.full(y.size + 1, np.nan, np.float32)
        odd = memory[1:].reshape(y.shape)
        np.testing.assert_array_equal(lmkan_cupy.forward(x, tables, out=odd), y)

    def test_tables_anywhere_in_memory(self, rng: np.random.Generator) -> None:
        x, tables, *_ = make_problem(rng, RING_SIZES[0])
        memory = np.empty(tables.size + 1, np.float32)
        odd = memory[1:].reshape(tables.shape)
        odd[:] = tables
        np.testing.assert_array_equal(lmkan_cupy.forward(x, odd), lmkan_cupy.forward(x, tables))

    @pytest.mark.parametrize("splits", [2, 5])
    def test_split_over_pairs(
        self, run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, splits: int
    ) -> None:
        monkeypatch.setattr(launch_plan, "SPLITS", (splits,))
        problem = make_problem(rng, RING_SIZES[1])
        assert self.plan(problem).splits == splits - (splits == 5)  # 12 pairs in runs of 3
        x, tables, *_ = problem
        check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])

    def test_slices(
        self, run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last has as many blocks as it has samples for."""
        monkeypatch.setattr(launch_plan, "SLICE_BYTES", 256 * 3 * 8)  # of three pairs
        problem = make_problem(rng, Sizes(300, 5, 32, 8))
        assert self.plan(problem).slice_size == 256
        x, tables, *_ = problem
        check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])

        blocks = []

        class Recorded(launch.Kernel):
            def __init__(self, plan: Launch, *arguments: Any) -> None:
                blocks.append((plan.kernel, plan.blocks))
                super().__init__(plan, *arguments)

        monkeypatch.setattr(cuda_engine, "Kernel", Recorded)
        emulated.forget_plans()
        lmkan_cupy.forward(x, tables)
        assert [number for kernel, number in blocks if kernel == "forward_ring"] == [2, 1]

    @pytest.mark.parametrize("dtypes", RING_DTYPES, ids=str)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e15])
    def test_one_bad_sample(
        self, rng: np.random.Generator, shape: None, value: float, dtypes: Dtypes
    ) -> None:
        problem = problem_with(rng, RING_SIZES[0], dtypes)
        problem.tables[::2] = 0
        expected = forward(problem)
        problem.x[7, 2] = value
        y = forward(problem)
        others = np.arange(len(y)) != 7
        assert np.isfinite(y[7]).any() == np.isfinite(y[7]).all() == np.isfinite(value)
        np.testing.assert_array_equal(y[others], expected[others])


def test_empty_batch(run: Any, rng: np.random.Generator) -> None:
    x, tables, grad_y, ggx, ggt = make_problem(rng, Sizes(0, 4, 3, 8))
    (y,) = run(lmkan_cupy.forward, x, tables)
    grad_x, grad_tables = run(lmkan_cupy.backward, grad_y, x, tables)
    *empty, twice = run(lmkan_cupy.backward_backward, ggx, ggt, grad_y, x, tables)
    assert y.size == grad_x.size == sum(each.size for each in empty) == 0
    assert not grad_tables.any()
    assert not twice.any()


def test_bfloat16_tables(run: Any, rng: np.random.Generator) -> None:
    """Their check is left out: without CuPy they are no argument of the public functions."""
    problem = problem_with(rng, Sizes(40, 5, 33, 8), BFLOAT16_TABLES)
    x, tables, grad_y, *_ = problem
    knots = sigma_grid(8)

    def call() -> tuple[Any, ...]:
        grad_x = np.full_like(x, np.nan)
        grad_tables = np.full(tables.shape, np.nan, np.float32)
        grad = np.full(tables.shape, np.nan, np.float32)
        cuda_engine.backward(grad_y, x, tables, knots, grad_x, grad_tables)
        penalty = np.full((), np.nan, np.float32)
        cuda_engine.hessian_penalty(tables, knots, 1.0, grad, penalty)
        return forward(problem), grad_x, grad_tables, penalty, grad, *double_backward(problem)

    check(
        run(call),
        [
            tolerances.forward(x, tables),
            *tolerances.backward(grad_y, x, tables),
            *tolerances.hessian_penalty(tables, "float32"),
            *expected_twice(problem),
        ],
    )


def test_samples_do_not_depend_on_each_other(small_chunks: None, rng: np.random.Generator) -> None:
    x, tables, grad_y, *_ = make_problem(rng, Sizes(70, 5, 33, 8))
    y = lmkan_cupy.forward(x, tables)
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables)
    for part in (slice(0, 31), slice(31, 70)):
        np.testing.assert_array_equal(lmkan_cupy.forward(x[part], tables), y[part])
        alone, _ = lmkan_cupy.backward(grad_y[part], x[part], tables, need_tables=False)
        np.testing.assert_array_equal(alone, grad_x[part])


def test_few_blocks_do_the_work_of_many(
    run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid is limited: warps and blocks then take several tasks in turn."""
    monkeypatch.setattr(launch_plan, "MOST_BLOCKS", 2)
    sizes = Sizes(40, 7, 65, 8)
    check_layer(run, make_problem(rng, sizes))
    tables = make_problem(rng, sizes).tables
    results = run(lmkan_cupy.hessian_penalty_and_grad, tables)
    check(results, tolerances.hessian_penalty(tables, "float32"))


class TestLaunch:
    """What CuPy's raw kernels would take silently."""

    @pytest.fixture
    def plan(self) -> Launch:
        layer = launch_plan.Layer(2, 1, 3, "float32", "float32")
        plan = launch_plan.forward(layer, 1, emulated.DEVICE, direction=False, aligned=True)
        return plan.kernel

    @pytest.fixture
    def arguments(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Those of the last launch."""
        seen: list[Any] = []

        def call(grid: Any, block: Any, arguments: Any, shared_bytes: int) -> None:
            seen[:] = arguments

        monkeypatch.setattr(kernel_cache, "kernel", lambda *_: call)
        return seen

    def test_given_arguments_then_numbers(self, plan: Launch, arguments: list[Any]) -> None:
        launch.Kernel(plan, sigma_grid(3), 2**40, True)(None, np.float64(0.5))
        assert arguments == [None, 0.5, 2**40, 1]
        assert [type(argument) for argument in arguments[2:]] == [np.int64, np.int64]

    def test_an_empty_grid_starts_nothing(self, arguments: list[Any]) -> None:
        layer = launch_plan.Layer(2, 1, 3, "float32", "float32")
        plan = launch_plan.forward(layer, 0, emulated.DEVICE, direction=False, aligned=True)
        launch.Kernel(plan.kernel, sigma_grid(3), 1)(None)
        assert not arguments

    def test_a_workspace_is_one_piece(self) -> None:
        """Of which each part begins at a multiple of 256 bytes and has the size it asked for."""
        sizes: list[int] = []

        def allocate(shape: Any, dtype: Any, beside: Any) -> Any:
            sizes.extend(shape)
            return np.empty(shape, dtype)

        with allocation.allocator(allocate):
            first, none, second = launch.Workspace(300, 0, 7).parts(np.empty(0))
        assert sizes == [768]
        assert none is None
        assert (first.nbytes, second.nbytes) == (300, 7)
        assert second.ctypes.data - first.ctypes.data == 512
