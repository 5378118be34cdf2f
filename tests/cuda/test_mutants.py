"""The tests of the kernels notice when a kernel is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import emulated
import ml_dtypes
import numpy as np
import pytest
import tolerances
from emulator.mutate import Mutant
from problems import Sizes, make_problem

from lmkan_cupy import cuda_engine
from lmkan_cupy.cuda_engine import backward_pass, forward_pass, kernel_source
from lmkan_cupy.cuda_engine.forward_pass import ForwardPlan
from lmkan_cupy.cuda_engine.plan import layer_shape
from lmkan_cupy.cuda_engine.ring import RingShape

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")

FILES = (
    "lanes.cuh",
    "element.cuh",
    "warp.cuh",
    GRID := "grid.cuh",
    STENCIL := "stencil.cuh",
    VECTORS := "row_vectors.cuh",
    RECORD := "record.cuh",
    FORWARD := "forward.cu",
    TILE := "tile.cuh",
    CELL := "cell.cuh",
    RING := "ring.cuh",
    BY_RING := "forward_ring.cu",
    PACK := "pack.cu",
    SORT := "sort.cu",
    STRETCH := "stretch.cuh",
    SUMS := "cell_sums.cuh",
    DIFFERENCES := "differences.cuh",
    BACKWARD := "backward.cu",
    PENALTY := "hessian_penalty.cu",
)

MUTANTS = [
    Mutant(GRID, "? 1 - tail : tail", "? tail : 1 - tail", "sigma mirrored"),
    Mutant(GRID, "REAL(NUM_GRIDS - 1)))", "REAL(NUM_GRIDS)))", "last interval + 1"),
    Mutant(GRID, "max(scaled, REAL(0))", "scaled", "NaN converted"),
    Mutant(GRID, "2 * pair + 1 < in_features ?", "true ?", "no constant for an odd I"),
    Mutant(
        STENCIL, "h1.lower * h2.upper, h1.upper * h2.l", "h1.upper * h2.lower * h2.l", "weights"
    ),
    Mutant(STENCIL, "h1.lower - h1.along * h2.upper", "h1.lower + h1.along * h2.upper", "sign"),
    Mutant(STENCIL, "0)), {v, u}}", "0)), {u, v}}", "slopes: u and v exchanged"),
    Mutant(STENCIL, "(corner >> 1) * NUM_KNOTS", "(corner >> 1) * NUM_GRIDS", "row above"),
    Mutant(VECTORS, "+ k * LANES * VECTOR < out_features", "< out_features", "tail not masked"),
    Mutant(VECTORS, "lane_index() * VECTOR)", "lane_index())", "vectors overlap"),
    Mutant(RECORD, "sorted_samples[2 * at + 1]", "sorted_samples[2 * at]", "cell of a record"),
    Mutant(FORWARD, "accumulate ? *target : 0", "0", "forward: overwrites"),
    Mutant(FORWARD, "begin += LANES", "begin += LANES - 1", "forward: a pair twice"),
    Mutant(FORWARD, "task / tiles", "task / (tiles + 1)", "forward: tiles miscounted"),
    Mutant(FORWARD, "min(first_pair + run, pairs)", "first_pair + run", "forward: last run"),
    Mutant(FORWARD, "exists = sample < batch", "exists = true", "forward: a sample too many"),
    Mutant(FORWARD, "if (o >= out_features) break;", "", "forward: tail not masked"),
    Mutant(FORWARD, "each < SPLIT", "each < SPLIT - 1", "forward: a part left out"),
    Mutant(FORWARD, "sum);\n        __syncthreads();", "sum);", "forward: parts read too early"),
    Mutant(
        FORWARD,
        "        }\n        __syncthreads();\n    }",
        "        }\n    }",
        "forward: parts overwritten too early",
    ),
    Mutant(TILE, "lane % CHUNKS * 16", "0", "tile: all lanes begin with the same chunk"),
    Mutant(TILE, "step = -step;", "", "tile: turned, and goes on in the old direction"),
    Mutant(TILE, "{hats.upper, hats.lower, -hats.along}", "hats", "tile: hats in the old order"),
    Mutant(TILE, "hats.lower, -hats.along", "hats.lower, hats.along", "tile: slope not turned"),
    Mutant(
        TILE, "(i / 2 * BLOCKS + j / 2)", "(i / 2 * (BLOCKS - 1) + j / 2)", "tile: blocks overlap"
    ),
    Mutant(TILE, "slot_of(i, j + 1) - slot_of(i, j)", "1", "tile: neighbour in another block"),
    Mutant(TILE, "block % BLOCKS * 2 + slot % 2", "block % BLOCKS * 2", "tile: node of a row"),
    Mutant(
        CELL, "size += fabsf(weights.corner[corner])", "size += weights.corner[corner]", "sizes"
    ),
    Mutant(CELL, "fminf(size, 0x1p125f)", "size", "cell: scale without an inverse"),
    Mutant(CELL, "+ 0x01000000u", "+ 0x00000000u", "cell: scale too small"),
    Mutant(CELL, "weight[3] * inverse", "weight[3]", "cell: weight not scaled"),
    Mutant(CELL, "corner % 2 ? __high2half2", "corner % 2 == 0 ? __high2half2", "cell: weights"),
    Mutant(CELL, "corner < 2 ? lower : upper", "lower", "cell: rows of the lower knot twice"),
    Mutant(CELL, "add_product(sum[k], factors.scale", "add_product(sum[k], 2", "cell: scale of 2"),
    Mutant(CELL, "value[2 * k + 1])", "value[2 * k])", "cell: pairs of outputs twice"),
    Mutant(CELL, "& 0xffff0000u", "& 0xfffffff0u", "cell: a tail of the lower half"),
    Mutant(
        CELL,
        "add_product(sum[1], weight, {lower(chunk.z)",
        "add_product(sum[1], weight, {lower(chunk.x)",
        "cell: first words twice",
    ),
    Mutant(RING, "STAGES - 2 : 1;", "STAGES : 1;", "ring: fills what is still to be read"),
    Mutant(
        RING,
        "start_barrier(empty + stage * 8, WARPS);",
        "start_barrier(empty + stage * 8, 1);",
        "ring: one warp empties a stage",
    ),
    Mutant(RING, "HAS_BULK_COPIES ? 1 : THREADS", "1", "ring: one thread fills a stage"),
    Mutant(
        RING,
        "(empty + stage * 8, (n / STAGES ^ 1) & 1);\n            arrive",
        "(empty + stage * 8, 1);\n            arrive",
        "ring: parity to fill",
    ),
    Mutant(
        RING, "(full + stage * 8, n / STAGES & 1)", "(full + stage * 8, 0)", "ring: parity to read"
    ),
    Mutant(
        RING,
        "arrive_expecting(full + stage * 8, TILE_BYTES);",
        "arrive_expecting(full + stage * 8, TILE_BYTES / 2);",
        "ring: expects half a tile",
    ),
    Mutant(
        RING,
        "arrive_with_copies(full + stage * 8);",
        "arrive(full + stage * 8);",
        "ring: arrives without its copies",
    ),
    Mutant(
        RING,
        "        __syncwarp();\n        if (threadIdx.x % 32 == 0) arrive",
        "        if (threadIdx.x % 32 == 0) arrive",
        "ring: leaves before its warp",
    ),
    Mutant(RING, "threadIdx.x == n % WARPS * 32", "threadIdx.x % 32 == 0", "ring: all warps fill"),
    Mutant(BY_RING, "fill(n + AHEAD);", "fill(n + AHEAD + 1);", "forward: a tile left out"),
    Mutant(BY_RING, "if (n + 1 < task.pairs) {", "{", "forward: x behind the last pair"),
    Mutant(BY_RING, "points += task.stride;", "points += batch;", "forward: stride of packed x"),
    Mutant(BY_RING, "first_pair = split * run;", "first_pair = 0;", "forward: every run the first"),
    Mutant(
        BY_RING, "pairs = min(run, all_pairs - first_pair);", "pairs = run;", "forward: last run"
    ),
    Mutant(
        BY_RING, "in_bunch % together", "in_bunch % BUNCH", "forward: tiles of an incomplete bunch"
    ),
    Mutant(BY_RING, "in_bunch / together", "in_bunch / BUNCH", "forward: samples of these"),
    Mutant(BY_RING, "blocks_of_tile) * BUNCH;", "blocks_of_tile);", "forward: bunches overlap"),
    Mutant(BY_RING, "blockIdx.x / blocks_of_split", "0", "forward: first run for all"),
    Mutant(
        BY_RING,
        "(t / QUADS ^ threadIdx.x % CHUNKS)",
        "t / QUADS",
        "forward: chunks stored in another order",
    ),
    Mutant(BY_RING, "if (o >= left) continue;", "", "forward: tail not masked"),
    Mutant(BY_RING, "if (o + k < left) row", "row", "forward: tail not masked, single"),
    Mutant(
        BY_RING, "if (accumulate) add_product(value, 1, *target);", "", "forward: sums forgotten"
    ),
    Mutant(BY_RING, "parts + split * batch * out", "parts + split * out", "forward: parts overlap"),
    Mutant(BY_RING, "split = 0; split < splits", "split = 1; split < splits", "sum: first part"),
    Mutant(BY_RING, "knots[k] = {GRID[k / COPIES][0]", "knots[k] = {GRID[k % COPIES][0]", "knots"),
    Mutant(
        PACK, "target = packed + task * SLOTS", "target = packed + task / 2 * SLOTS", "pack: tiles"
    ),
    Mutant(PACK, "sample < batch", "sample <= batch", "pack: a sample too many"),
    Mutant(PACK, "&& first + o < out_features", "", "pack: outputs too many"),
    Mutant(PACK, "target[(first_pair + n) * stride", "target[n * stride", "pack: first pairs only"),
    Mutant(
        PACK,
        "        __syncthreads();\n        for (int n = warp; n < LANES && first",
        "        for (int n = warp; n < LANES && first",
        "pack: no barrier",
    ),
    Mutant(SORT, "i % 2 * EVEN_ROWS", "(i + 1) % 2 * EVEN_ROWS", "sort: halves exchanged"),
    Mutant(SORT, "(1u << lane) - 1u", "(2u << lane) - 1u", "sort: counts oneself"),
    Mutant(SORT, "if (active && before == 0) counts", "if (false) counts", "sort: not advanced"),
    Mutant(SORT, "return sum - value;", "return sum;", "sort: counts itself"),
    Mutant(SORT, "(number) << digit % 2 * 16", "(number)", "sort: counts of two digits"),
    Mutant(SORT, "sample_at = written;", "", "sort: the last pass is lost"),
    Mutant(
        SORT, "keys[sample] / unit % DIGITS", "keys[sample] % DIGITS", "sort: first digit twice"
    ),
    Mutant(
        SORT, "{both.first, both.second}", "{both.second, both.first}", "sort: i and j exchanged"
    ),
    Mutant(SORT, "(is_even(key) && last)", "(is_even(key))", "sort: evens counted early"),
    Mutant(SORT, "if (!is_even(key) && place == 0) evens[pair] = 0;", "", "sort: no evens"),
    Mutant(STRETCH, "half == 1 ? evens : 0", "0", "backward: odd half begins at 0"),
    Mutant(STRETCH, "(half == 0 ? evens : count)", "count", "backward: even half ends behind"),
    Mutant(BACKWARD, "stretch(part * WARPS +", "stretch(part +", "backward: stretches overlap"),
    Mutant(BACKWARD, "max(min(place, work.end - 1), 0)", "min(place, work.end - 1)", "empty half"),
    Mutant(
        SUMS,
        "neighbours = cell >= 0 && next_cell == cell + 1",
        "neighbours = cell >= 0",
        "merger",
    ),
    Mutant(SUMS, "neighbours && corner % 2 == 1", "neighbours", "merger: left column lost"),
    Mutant(SUMS, "if (!shared) rows[", "rows[", "merger: shared column added twice"),
    Mutant(
        SUMS,
        "out_features)] += row[corner]",
        "out_features)] = row[corner]",
        "merger: overwrites",
    ),
    Mutant(SUMS, "neighbours ? row[corner + 1] : 0", "0", "merger: column not carried"),
    Mutant(BACKWARD, "merger.row[n] += left", "merger.row[n] = left", "merger: last warp only"),
    Mutant(
        BACKWARD,
        "            __syncthreads();\n            const long long first",
        "            const long long first",
        "backward: merges what is not there yet",
    ),
    Mutant(
        BACKWARD,
        "            }\n            __syncthreads();\n        }\n    }\n}\n\n// Adds the slots",
        "            }\n        }\n    }\n}\n\n// Adds the slots",
        "backward: next task while others merge",
    ),
    Mutant(BACKWARD, "half = n >= parts,", "half = 0,", "slots: even half twice"),
    Mutant(BACKWARD, "records.cell(range.end - 1)", "records.cell(range.begin)", "slots: cell"),
    Mutant(BACKWARD, "        merger.enter(-1, out_features);", "", "slots: last cell lost"),
    Mutant(SUMS, "low_sum[k] += row[column][k]", "low_sum[k] = row[column][k]", "overwrites"),
    Mutant(
        BACKWARD, "next_to_it = cell >= 0 && next_cell == cell + 1", "next_to_it = cell >= 0", "all"
    ),
    Mutant(SUMS, "row[2][k] = row[3][k];", "row[2][k] = 0;", "backward: column not carried"),
    Mutant(DIFFERENCES, "left[k] = right[k];", "left[k] = left[k];", "backward: difference kept"),
    Mutant(DIFFERENCES, "row_2[k] - row_0[k]", "row_2[k] - row_1[k]", "backward: wrong difference"),
    Mutant(
        STRETCH,
        "real ? stencil.weights.corner[corner] : 0",
        "stencil.weights.corner[corner]",
        "repeated",
    ),
    Mutant(STRETCH, "{stencil.mixed[0], st", "{stencil.mixed[1], st", "factors along"),
    Mutant(STRETCH, "layer_factor = {v, u}", "layer_factor = {u, v}", "factors of the layer"),
    Mutant(STRETCH, "lane_index() / GROUP * GROUP;", "0;", "backward: half the parts"),
    Mutant(STRETCH, "samples - 1)]", "GROUP - 1)]", "backward: parts nobody wrote"),
    Mutant(
        BACKWARD, "lane > 0 ? cell_before : cell)", "cell_before)", "backward: batch's first cell"
    ),
    Mutant(BACKWARD, "(begin + IN_FLIGHT + lane)", "(begin + lane)", "backward: rows of grad_y"),
    Mutant(
        BACKWARD,
        "__syncwarp();\n                    const Real2 total",
        "const Real2 total",
        "parts",
    ),
    Mutant(BACKWARD, "__syncwarp();  // all lanes", "//", "backward: task overwritten"),
    Mutant(BACKWARD, "__syncwarp();  // the next batch", "//", "backward: batch overwritten"),
    Mutant(BACKWARD, "entered & 1u << k", "entered & 1u", "backward: cell of the second"),
    Mutant(BACKWARD, "(tile * pairs + pair) * chunk", "pair * chunk", "backward: tiles of slopes"),
    Mutant(BACKWARD, "+ 0 * own.fraction.second", "", "not finite: first coordinate only"),
    Mutant(BACKWARD, "work.pair) * parts + work.part;", "work.pair) * parts;", "one slot for all"),
    Mutant(BACKWARD, "(half * pairs + work.pair)", "work.pair", "backward: slots of one half"),
    Mutant(
        BACKWARD,
        "sum.second += part.second;\n                }\n                of",
        "}\n of",
        "sum",
    ),
    Mutant(PENALTY, "i > 0 && i < NUM_GRIDS", "i >= 0 && i < NUM_GRIDS", "penalty: border"),
    Mutant(PENALTY, "2 * (at_left.mixed", "(at_left.mixed", "penalty: gradient of the mixed term"),
    Mutant(PENALTY, "2 * f_xy * f_xy", "f_xy * f_xy", "penalty: mixed term once"),
    Mutant(PENALTY, "shared[i % 2]", "shared[0]", "penalty: one row in shared memory"),
    Mutant(PENALTY, "across_2.at[n] = across.at[n]", "across_2.at[n] = beside", "penalty: rows"),
    Mutant(PENALTY, "column >= HALO && ", "", "penalty: the halo is owned"),
    Mutant(PENALTY, "factors_at(j + 1).backward", "factors_at(j + 1).forward", "penalty: right"),
    Mutant(PENALTY, "2 * scale / INNER", "2.0 / INNER", "penalty: unscaled gradient"),
    Mutant(PENALTY, "if (accumulate) result = target;", "", "penalty: overwrites"),
]


def check(results: Sequence[Any], all_expected: Sequence[tolerances.Expected]) -> None:
    for result, expected in zip(results, all_expected, strict=True):
        expected.check(result)


def check_forward(sizes: Sizes) -> None:
    x, tables, *_ = make_problem(np.random.default_rng(0), sizes)
    x[0, :3] = [30, -30, 2]  # sigma of the first is 1 in float32
    y = np.full((sizes.batch, sizes.out_features), np.nan, np.float32)
    cuda_engine.forward(x, tables, y)
    check([y], [tolerances.forward(x, tables)])


def check_rings() -> None:
    """Tables in shared memory: packed and split, packed with a tail, direct, in two bunches."""
    check_ring(Sizes(70, 19, 36, 4), RingShape(8, 2, 2), stages=3, packed=True, run=6)
    check_ring(Sizes(70, 67, 7, 4), RingShape(2, 2, 2), stages=3, packed=True, run=34)
    check_ring(Sizes(70, 19, 32, 4), RingShape(4, 2, 2), stages=3, packed=False, run=10)
    check_ring(Sizes(200, 4, 48, 4), RingShape(2, 2, 2), stages=2, packed=False, run=2)
    check_half_ring(Sizes(70, 7, 36, 4), np.float16, packed=True)
    check_half_ring(Sizes(70, 7, 32, 4), np.float16, packed=False)
    check_half_ring(Sizes(70, 7, 36, 4), ml_dtypes.bfloat16, packed=True)


def check_half_ring(sizes: Sizes, dtype: Any, packed: bool) -> None:
    """With tables of every size, and samples so far outside that weights exceed halves."""
    rng = np.random.default_rng(0)
    x, tables, grad_y, *_ = make_problem(rng, sizes)
    x[::3] *= 1e6
    x[0, :2] = 5e18
    tables *= 10.0 ** rng.uniform(-2, 4, tables.shape)
    tables[0] *= 1e-5  # the weights there nearly fill the range of float
    tables[1] = 65504
    tables = tables.astype(dtype)
    layer, batch = layer_shape(x, tables), len(x)
    plan = forward_pass.through_ring(
        layer, batch, emulated.DEVICE, False, packed, RingShape(4, 2, 2), stages=3, run=4
    )
    y = np.full_like(grad_y, np.nan)
    forward_pass.by_plan(plan, layer, batch)(x, None, tables, y)
    check([y], [tolerances.forward(x, tables, in_half=dtype is np.float16)])


def check_ring(sizes: Sizes, shape: RingShape, **choices: Any) -> None:
    """The forward, then its derivative along a direction and another forward added to it."""
    x, tables, grad_y, ggx, ggt = make_problem(np.random.default_rng(0), sizes)
    layer, batch, device = layer_shape(x, tables), len(x), emulated.DEVICE
    forward, along = (
        forward_pass.through_ring(layer, batch, device, direction, shape=shape, **choices)
        for direction in (False, True)
    )

    def evaluate(plan: ForwardPlan, tables: Any, ggx: Any, accumulate: bool) -> None:
        assert plan.ring
        plan = replace(plan, ring=replace(plan.ring, slice_size=2 * plan.ring.samples))
        direction = ggx is not None
        by_ring = forward_pass.ByRing(plan, layer, batch, direction, accumulate, True)
        by_ring(x, ggx, tables, y)

    y = np.full_like(grad_y, np.nan)
    evaluate(forward, tables, None, False)
    check([y], [tolerances.forward(x, tables)])
    evaluate(along, tables, ggx, False)
    evaluate(forward, ggt, None, True)
    check([y], tolerances.backward_backward(ggx, ggt, grad_y, x, tables)[:1])


def check_gradients(sizes: Sizes, constant: float | None = None) -> None:
    x, tables, grad_y, ggx, ggt = make_problem(np.random.default_rng(0), sizes)
    if constant is not None:
        x.fill(constant)
    results = [np.full_like(each, np.nan) for each in (grad_y, x, tables)]
    cuda_engine.backward(grad_y, x, tables, *results[1:])
    check(results[1:], tolerances.backward(grad_y, x, tables))
    cuda_engine.backward(grad_y, x, tables, None, results[2])
    cuda_engine.backward(grad_y, x, tables, results[1], None)
    check(results[1:], tolerances.backward(grad_y, x, tables))
    cuda_engine.backward_backward(ggx, ggt, grad_y, x, tables, *results)
    check(results, tolerances.backward_backward(ggx, ggt, grad_y, x, tables))

    x[0, :2] = np.nan
    x[1, 1] = np.inf
    cuda_engine.backward(grad_y, x, tables, *results[1:])
    _, grad_x, grad_tables = results
    assert not np.isfinite(grad_x[:2, :2]).any(), "a coordinate that is not finite, hidden"
    assert not np.isfinite(grad_tables[0, :2, :2]).any(), "NaN belongs to cell 0"


def check_penalty(sizes: Sizes) -> None:
    tables = make_problem(np.random.default_rng(0), sizes).tables
    grad = np.full_like(tables, np.nan)
    penalty = np.full((), np.nan, np.float32)
    cuda_engine.hessian_penalty(tables, 0.5, grad, penalty)
    check([penalty, 2 * grad], tolerances.hessian_penalty(tables, "float32"))
    doubled = grad.copy()
    cuda_engine.hessian_penalty(tables, 0.5, doubled, penalty, accumulate=True)
    assert (doubled == grad + grad).all(), "not added"


CHECKS: list[Callable[[], None]] = [
    partial(check_forward, Sizes(2, 267, 33, 5)),
    partial(check_forward, Sizes(3, 5, 33, 17)),
    check_rings,
    partial(check_gradients, Sizes(90, 3, 260, 17)),
    partial(check_gradients, Sizes(330, 2, 2, 4)),  # neighbouring cells in neighbouring stretches
    partial(check_gradients, Sizes(40, 2, 2, 50)),  # two digits of the sort
    # In a cell of an odd row: no even half; more samples of a warp than lanes; fewer than warps
    partial(check_gradients, Sizes(304, 2, 2, 50), constant=9),
    partial(check_penalty, Sizes(0, 1, 1, 5)),
    partial(check_penalty, Sizes(0, 1, 4, 52)),  # two tiles of columns
]
"""Every kernel once, with several chunks, stretches, tiles and tasks of a block."""


class Sources(dict[str, str]):
    """Texts by file name, which remember what was read."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__(texts)
        self.read: set[str] = set()

    def __getitem__(self, file: str) -> str:
        self.read.add(file)
        return super().__getitem__(file)


def original() -> dict[str, str]:
    return {file: kernel_source.read(file) for file in FILES}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in the emulator, in a random order, with little work for each block."""
    emulated.install(monkeypatch, "random")
    monkeypatch.setattr(backward_pass, "CHUNKS", {})
    monkeypatch.setattr(backward_pass, "MOST_CHUNK", 300)
    monkeypatch.setattr(backward_pass, "MOST_DIGITS", 1000)
    monkeypatch.setattr(backward_pass, "STRETCH", 20)
    monkeypatch.setattr(backward_pass, "SORT_WARPS", 2)
    emulated.limit_blocks(monkeypatch, 1)


def run(check: Callable[[], None], texts: dict[str, str]) -> set[str]:
    """Run a check on kernels of these texts; return which it read."""
    sources = Sources(texts)
    with emulated.sources(sources):
        check()
    return sources.read


@cache
def files_read() -> list[set[str]]:
    """Which files each check reads; it has to pass with the kernels as they are."""
    return [run(check, original()) for check in CHECKS]


def run_all(checks: Sequence[Callable[[], None]], texts: dict[str, str]) -> None:
    for each in checks:
        run(each, texts)


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: f"{each.file}-{each.description}")
def test_mutant_is_noticed(mutant: Mutant) -> None:
    """By one of the checks that read its file. (One that does not compile is another error.)"""
    concerned = [
        each for each, files in zip(CHECKS, files_read(), strict=True) if mutant.file in files
    ]
    mutated = mutant.apply(original())
    with pytest.raises(AssertionError):
        run_all(concerned, mutated)
