"""The forward through shared memory in the emulator: every ring of the plan, against the oracle.

As in `test_kernels`, calls run in three orders of threads and blocks.
"""

from __future__ import annotations

from typing import Any

import emulated
import emulator
import numpy as np
import pytest
import tolerances
from devices import DEVICES, largest_grid
from emulated import (
    BFLOAT16_TABLES,
    check,
    double_backward,
    expected_twice,
    forward,
    problem_with,
)
from problems import FLOAT32, HALF_TABLES, Dtypes, Problem, Sizes, first_short, make_problem

import lmkan_cupy
from lmkan_cupy.cuda_engine import forward_model, forward_pass, launch
from lmkan_cupy.cuda_engine.plan import LANES, Launch, layer_shape
from lmkan_cupy.cuda_engine.ring import FEWEST_STAGES, Ring, RingShape, ring_shapes

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools", "engine")

RINGS = {
    "128-byte rows": RingShape(chunks=8, samples=2, warps=2),
    "64-byte rows": RingShape(chunks=4, samples=3, warps=2),
    "32-byte rows": RingShape(chunks=2, samples=2, warps=4),
}
"""The shapes of the plan with fewer warps: less to emulate, and the same text."""

RING_DTYPES = [FLOAT32, HALF_TABLES, BFLOAT16_TABLES]

RING_SIZES = [Sizes(37, 5, 32, 8), Sizes(200, 24, 64, 9), Sizes(300, 2, 96, 4)]
"""An odd number of pairs and half a block; several blocks by several tiles, with more pairs than
stages and warps; tiles in several bunches, the last of them incomplete."""

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
    for shape in ring_shapes(table, DEVICES[name])
]
"""Every shape of a ring that the plan knows; from sm_100 on half tables have other shapes."""

SHORT_ROWS = ROWS[:1]

HALF_RING_SIZES = Sizes(150, 9, 128, 6)
"""As the second of `RING_SIZES`, for half tables, whose tiles have twice as many outputs."""


def use_ring(monkeypatch: pytest.MonkeyPatch, shape: RingShape) -> None:
    monkeypatch.setattr(forward_pass, "ring_shapes", lambda *_: (shape,))
    emulated.forget_plans()


def expected_by_ring(problem: Problem) -> tolerances.Expected:
    in_half = problem.tables.dtype == np.float16
    return tolerances.forward(problem.x, problem.tables, in_half=in_half)


@pytest.mark.parametrize(
    ("name", "table", "chunks", "direction"),
    [pytest.param(*row, marks=[] if row in SHORT_ROWS else pytest.mark.long) for row in ROWS],
)
def test_rows_of_the_plan(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    table: str,
    chunks: int,
    direction: bool,
) -> None:
    """With all their warps and samples, and the largest grid that fits into the device."""
    device = DEVICES[name]
    shapes = ring_shapes(table, device)
    (shape,) = (shape for shape in shapes if shape.chunks == chunks)
    num_grids = largest_grid(table, shape, device)
    of_block = LANES * shape.samples * shape.warps
    sizes = Sizes(of_block - 1, 6, 3, num_grids)
    problem = problem_with(rng, sizes, Dtypes("float32", table))
    x, tables, grad_y, ggx, _ = problem
    layer = layer_shape(x, tables)
    plan = forward_pass.through_ring(
        layer, len(x), device, direction, True, shape, FEWEST_STAGES, layer.pairs
    )
    assert plan.kernel.threads == LANES * shape.warps
    some = slice(None, None, 31)  # of each warp: the oracle takes long
    if direction:
        zeros = np.zeros_like(tables)
        given = (ggx[some], zeros, grad_y[some], x[some], tables)
        expected = tolerances.backward_backward(*given)[0]
    else:
        expected = expected_by_ring(problem._replace(x=x[some]))
    for order in emulator.ORDERS:
        emulated.install(monkeypatch, order=order, seed=7, arch=10 * device.capability)
        y = np.full_like(grad_y, np.nan)
        call = forward_pass.by_plan(plan, layer, len(x), direction)
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

    @pytest.fixture(params=first_short(RINGS))
    def shape(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        use_ring(monkeypatch, RINGS[request.param])

    @pytest.fixture(params=first_short(["packed", "direct"]))
    def way(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """How tables come to shared memory; the model is told that the other way is slow."""
        way: str = request.param
        slow = {"packed": "CHUNK_BYTES", "direct": "BULK_BYTES"}[way]
        monkeypatch.setattr(forward_model, slow, 1e-9)
        return way

    def plan(self, problem: Problem) -> Ring:
        x, tables, *_ = problem
        layer = layer_shape(x, tables)
        plan = forward_pass.plan_forward(
            layer, len(x), emulated.DEVICE, direction=False, aligned=True
        )
        assert plan.kernel.kernel == "forward_ring"
        assert plan.ring
        return plan.ring

    @pytest.mark.parametrize("sizes", first_short(RING_SIZES), ids=str)
    def test_layer(
        self, run: Any, rng: np.random.Generator, shape: None, way: str, sizes: Sizes
    ) -> None:
        problem = make_problem(rng, sizes)
        assert self.plan(problem).packed == (way == "packed")
        check(
            run(lmkan_cupy.forward, problem.x, problem.tables),
            [tolerances.forward(problem.x, problem.tables)],
        )

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("splits", "dtypes"),
        [
            pytest.param(1, HALF_TABLES, marks=pytest.mark.long),
            (2, FLOAT32),
            pytest.param(1, BFLOAT16_TABLES, marks=pytest.mark.long),
        ],
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
        """A forward along a direction and one added to it, with sums of parts; all in float."""
        monkeypatch.setattr(forward_pass, "SPLITS", (splits,))
        problem = problem_with(rng, RING_SIZES[0], dtypes)
        check(run(double_backward, problem), expected_twice(problem))

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("arch", "way"),
        [
            pytest.param(800, "packed", marks=pytest.mark.long),
            (800, "direct"),
            pytest.param(750, "direct", marks=pytest.mark.long),
        ],
        indirect=["way"],
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
            emulated.install(monkeypatch, order=order, seed=7, arch=arch)
            np.testing.assert_array_equal(lmkan_cupy.forward(x, tables), y)

    @pytest.mark.long
    @pytest.mark.parametrize("arch", [900, 800, 750])
    def test_two_stages(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, way: str, arch: int
    ) -> None:
        monkeypatch.setattr("lmkan_cupy.cuda_engine.ring.MOST_STAGES", 2)
        problem = make_problem(rng, RING_SIZES[1])
        assert self.plan(problem).stages == 2
        for order in emulator.ORDERS:
            emulated.install(monkeypatch, order=order, seed=7, arch=arch)
            y = lmkan_cupy.forward(problem.x, problem.tables)
            tolerances.forward(problem.x, problem.tables).check(y)

    @pytest.mark.parametrize("outputs", [1, 31, 33, 68])
    @pytest.mark.parametrize("dtypes", first_short(RING_DTYPES), ids=str)
    def test_tiles_that_are_not_full(
        self, run: Any, rng: np.random.Generator, outputs: int, dtypes: Dtypes
    ) -> None:
        problem = problem_with(rng, Sizes(70, 5, outputs, 8), dtypes)
        assert self.plan(problem).packed
        check(run(forward, problem), [expected_by_ring(problem)])

    @pytest.mark.long
    @pytest.mark.parametrize("dtypes", RING_DTYPES[1:], ids=str)
    def test_half_tables(
        self, run: Any, rng: np.random.Generator, shape: None, way: str, dtypes: Dtypes
    ) -> None:
        problem = problem_with(rng, HALF_RING_SIZES, dtypes)
        plan = self.plan(problem)
        assert plan.packed == (way == "packed")
        check(run(forward, problem), [expected_by_ring(problem)])

    @pytest.mark.long
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
        emulated.install(monkeypatch, order="random", seed=7, arch=arch)
        np.testing.assert_array_equal(forward(problem), y)

    @pytest.mark.long
    @pytest.mark.parametrize("dtypes", RING_DTYPES[1:], ids=str)
    @pytest.mark.parametrize("size", [1, 1e3, 1e15])
    @pytest.mark.parametrize("values", ["largest", "any", "subnormal"])
    def test_range_of_half_tables(
        self, rng: np.random.Generator, dtypes: Dtypes, size: float, values: str
    ) -> None:
        """Nothing overflows within a cell, and rounding to halves stays within its bound."""
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

    @pytest.mark.long
    def test_largest_tables_give_themselves(self) -> None:
        """Although rounded weights may add up to over 1 and sums exceed the range of halves."""
        x = np.linspace(-2, 2, 400, dtype=np.float32).reshape(100, 4)
        y = lmkan_cupy.forward(x, np.full((2, 9, 9, 64), 65504, np.float16))
        np.testing.assert_allclose(y, 2 * 65504, rtol=5 * 2.0**-11)

    def test_results_anywhere_in_memory(self, rng: np.random.Generator) -> None:
        x, tables, *_ = make_problem(rng, RING_SIZES[0])
        y = lmkan_cupy.forward(x, tables)
        memory = np.full(y.size + 1, np.nan, np.float32)
        odd = memory[1:].reshape(y.shape)
        np.testing.assert_array_equal(lmkan_cupy.forward(x, tables, out=odd), y)

    @pytest.mark.long
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
        monkeypatch.setattr(forward_pass, "SPLITS", (splits,))
        problem = make_problem(rng, RING_SIZES[1])
        assert self.plan(problem).splits == splits - (splits == 5)  # 12 pairs in runs of 3
        x, tables, *_ = problem
        check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])

    def test_slices(
        self, run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last slice has only as many blocks as its samples need."""
        monkeypatch.setattr(forward_pass, "SLICE_BYTES", 256 * 3 * 8)  # of three pairs
        problem = make_problem(rng, Sizes(300, 5, 32, 8))
        assert self.plan(problem).slice_size == 256
        x, tables, *_ = problem
        check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])

        blocks = []

        class Recorded(launch.Kernel):
            def __init__(self, plan: Launch, *arguments: Any) -> None:
                blocks.append((plan.kernel, plan.blocks))
                super().__init__(plan, *arguments)

        monkeypatch.setattr(forward_pass, "Kernel", Recorded)
        emulated.forget_plans()
        lmkan_cupy.forward(x, tables)
        assert [number for kernel, number in blocks if kernel == "forward_ring"] == [2, 1]

    @pytest.mark.parametrize("dtypes", first_short(RING_DTYPES), ids=str)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e15])
    def test_bad_samples(
        self, rng: np.random.Generator, shape: None, value: float, dtypes: Dtypes
    ) -> None:
        """The first of a pair, the second, and the last of an odd number of features."""
        problem = problem_with(rng, RING_SIZES[0], dtypes)
        problem.tables[::2] = 0
        expected = forward(problem)
        bad = [7, 8, 9]
        problem.x[bad, [2, 3, 4]] = value
        y = forward(problem)
        others = ~np.isin(np.arange(len(y)), bad)
        assert (np.isfinite(y[bad]) == np.isfinite(value)).all()
        np.testing.assert_array_equal(y[others], expected[others])
