"""The tests of the kernels notice when a kernel is broken on purpose.

A few mutants are tried here. All of them: `python tests/test_cuda_mutants.py`; every fifth: with
the argument 5. They run in a process of their own, because each leaves its libraries behind.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as pytest's pythonpath does
    sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import emulated
import emulator
import numpy as np
import pytest
import tolerances
from emulator.mutate import Mutant, Sources, run_mutants
from problems import Sizes, make_problem, nan_filled

from lmkan_cupy import allocation, cuda_engine, sigma_grid
from lmkan_cupy.cuda_engine import kernel_source, launch_plan
from lmkan_cupy.cuda_engine.launch_plan import RingShape

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")

POSITION, WARP, FORWARD, TILE, RING, BY_RING, PACK, SORT, BACKWARD, PENALTY = FILES = (
    "position.cuh",
    "warp.cuh",
    "forward.cu",
    "tile.cuh",
    "ring.cuh",
    "forward_ring.cu",
    "pack.cu",
    "sort.cu",
    "backward.cu",
    "hessian_penalty.cu",
)

MUTANTS = [
    Mutant(POSITION, "? 1 - tail : tail", "? tail : 1 - tail", "sigma mirrored"),
    Mutant(POSITION, "REAL(NUM_GRIDS - 1)))", "REAL(NUM_GRIDS)))", "last interval + 1"),
    Mutant(POSITION, "max(position, REAL(0))", "position", "NaN converted"),
    Mutant(POSITION, "2 * pair + 1 < in_features ?", "true ?", "no constant for an odd I"),
    Mutant(
        POSITION, "h1.lower * h2.upper, h1.upper * h2.l", "h1.upper * h2.lower * h2.l", "weights"
    ),
    Mutant(POSITION, "h1.lower - h1.along * h2.upper", "h1.lower + h1.along * h2.upper", "sign"),
    Mutant(POSITION, "{v, u},", "{u, v},", "slopes: u and v exchanged"),
    Mutant(POSITION, "0 * u + 0 * v", "0 * u", "not finite: first coordinate only"),
    Mutant(POSITION, "(corner >> 1) * NUM_KNOTS", "(corner >> 1) * NUM_GRIDS", "row above"),
    Mutant(WARP, "if (o < out_features) use(k, o);", "use(k, o);", "tail not masked"),
    Mutant(WARP, "offset = LANES / 2", "offset = LANES / 4", "sum over half a warp"),
    Mutant(FORWARD, "accumulate ? own_y[o] + sum[k] : sum[k]", "sum[k]", "forward: overwrites"),
    Mutant(FORWARD, "begin += LANES", "begin += LANES - 1", "forward: a pair twice"),
    Mutant(FORWARD, "task / tiles", "task / (tiles + 1)", "forward: tiles miscounted"),
    Mutant(TILE, "lane % CHUNKS * 16", "0", "tile: all lanes begin with the same chunk"),
    Mutant(TILE, "step = -step;", "", "tile: turned, and goes on in the old direction"),
    Mutant(TILE, "{hats.upper, hats.lower, -hats.along}", "hats", "tile: hats in the old order"),
    Mutant(TILE, "hats.lower, -hats.along", "hats.lower, hats.along", "tile: slope not turned"),
    Mutant(
        TILE, "(i / 2 * BLOCKS + j / 2)", "(i / 2 * (BLOCKS - 1) + j / 2)", "tile: blocks overlap"
    ),
    Mutant(TILE, "slot_of(i, j + 1) - slot_of(i, j)", "1", "tile: neighbour in another block"),
    Mutant(TILE, "block % BLOCKS * 2 + slot % 2", "block % BLOCKS * 2", "tile: node of a row"),
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
    Mutant(BY_RING, "(t ^ threadIdx.x % CHUNKS)", "t", "forward: chunks stored in another order"),
    Mutant(BY_RING, "if (o >= left) continue;", "", "forward: tail not masked"),
    Mutant(BY_RING, "if (o + k < left) row", "row", "forward: tail not masked, single"),
    Mutant(
        BY_RING, "if (accumulate) add_product(value, 1, *target);", "", "forward: sums forgotten"
    ),
    Mutant(BY_RING, "parts + split * batch * out", "parts + split * out", "forward: parts overlap"),
    Mutant(BY_RING, "split = 0; split < splits", "split = 1; split < splits", "sum: first part"),
    Mutant(BY_RING, "knots[k] = {GRID[k / COPIES][0]", "knots[k] = {GRID[k % COPIES][0]", "knots"),
    Mutant(PACK, "sample < batch", "sample <= batch", "pack: a sample too many"),
    Mutant(PACK, "&& first + o < out_features", "", "pack: outputs too many"),
    Mutant(PACK, "target[(first_pair + n) * stride", "target[n * stride", "pack: first pairs only"),
    Mutant(
        PACK,
        "        __syncthreads();\n        for (int n = warp; n < LANES && first",
        "        for (int n = warp; n < LANES && first",
        "pack: no barrier",
    ),
    Mutant(SORT, "i % 2 == 0", "i % 2 == 1", "sort: halves exchanged"),
    Mutant(SORT, "(1u << lane) - 1u", "(2u << lane) - 1u", "sort: counts oneself"),
    Mutant(SORT, "counts[warp][digit] += __popc(equals);", "", "sort: place not advanced"),
    Mutant(SORT, "digit > 0 ? totals[digit - 1] : 0", "totals[digit]", "sort: counts itself"),
    Mutant(SORT, "(PASSES - pass) % 2 ? order", "(PASSES - pass) % 2 ? spare", "sort: target"),
    Mutant(BACKWARD, "half == 1 ? evens : 0", "0", "backward: odd half begins at 0"),
    Mutant(BACKWARD, "cell == first_cell || cell", "cell", "backward: first cell is no end"),
    Mutant(BACKWARD, "first_cell || cell == last_cell", "first_cell", "backward: last cell"),
    Mutant(BACKWARD, "2 * task + (cell != first_cell)", "2 * task", "backward: one slot for both"),
    Mutant(BACKWARD, "target[o] += row", "target[o] = row", "backward: rows overwritten"),
    Mutant(BACKWARD, "if (TABLES_GRADIENT) leave_cell();", "", "backward: last cell forgotten"),
    Mutant(BACKWARD, "accumulate || first > 0", "accumulate", "backward: one tile of slopes"),
    Mutant(BACKWARD, "lane_index() == n", "lane_index() == 0", "backward: slopes to one lane"),
    Mutant(BACKWARD, "? 1 : 2;", "? 2 : 2;", "boundaries: a slot that nobody wrote"),
    Mutant(PENALTY, "i > 0 && i < NUM_GRIDS", "i >= 0 && i < NUM_GRIDS", "penalty: border"),
    Mutant(PENALTY, "di * dj * factor", "factor", "penalty: signs of the mixed difference"),
    Mutant(PENALTY, "2 * f_xy * f_xy", "f_xy * f_xy", "penalty: mixed term once"),
]


def check(results: Sequence[Any], all_expected: Sequence[tolerances.Expected]) -> None:
    for result, expected in zip(results, all_expected, strict=True):
        expected.check(result)


def trial(texts: Sources) -> None:
    """Every kernel once, with several chunks, stretches, tiles and tasks of a block."""
    with emulated.sources(texts), allocation.allocator(nan_filled):
        check_forward(Sizes(2, 67, 33, 17))
        check_rings()
        check_gradients(Sizes(90, 3, 129, 17))
        check_penalty(Sizes(0, 1, 1, 5))


def check_forward(sizes: Sizes) -> None:
    x, tables, *_ = make_problem(np.random.default_rng(0), sizes)
    x[0, :3] = [30, -30, 2]  # sigma of the first is 1 in float32
    y = np.full((sizes.batch, sizes.out_features), np.nan, np.float32)
    cuda_engine.forward(x, tables, sigma_grid(sizes.num_grids), y)
    check([y], [tolerances.forward(x, tables)])


def check_rings() -> None:
    """Tables in shared memory: packed and split, packed with a tail, direct."""
    check_ring(Sizes(70, 19, 36, 4), RingShape(8, 2, 2), stages=3, packed=True, run=6)
    check_ring(Sizes(70, 67, 7, 4), RingShape(2, 2, 2), stages=3, packed=True, run=34)
    check_ring(Sizes(70, 19, 32, 4), RingShape(4, 2, 2), stages=3, packed=False, run=10)


def check_ring(sizes: Sizes, shape: RingShape, **choices: Any) -> None:
    """The forward, then its derivative along a direction and another forward added to it."""
    x, tables, grad_y, ggx, ggt = make_problem(np.random.default_rng(0), sizes)
    layer, batch, device = launch_plan.layer(x, tables), len(x), emulated.DEVICE
    forward, along = (
        launch_plan.through_ring(layer, batch, device, direction, shape=shape, **choices)
        for direction in (False, True)
    )

    def evaluate(plan: launch_plan.Forward, tables: Any, *further: Any) -> None:
        assert plan.ring
        knots = sigma_grid(sizes.num_grids)
        cuda_engine.evaluate_by_ring(plan.kernel, plan.ring, x, tables, knots, *further)

    y = np.full_like(grad_y, np.nan)
    evaluate(forward, tables, None, False, y)
    check([y], [tolerances.forward(x, tables)])
    evaluate(along, tables, ggx, False, y)
    evaluate(forward, ggt, None, True, y)
    check([y], tolerances.backward_backward(ggx, ggt, grad_y, x, tables)[:1])


def check_gradients(sizes: Sizes) -> None:
    x, tables, grad_y, ggx, ggt = make_problem(np.random.default_rng(0), sizes)
    knots = sigma_grid(sizes.num_grids)
    results = [np.full_like(each, np.nan) for each in (grad_y, x, tables)]
    cuda_engine.backward(grad_y, x, tables, knots, *results[1:])
    check(results[1:], tolerances.backward(grad_y, x, tables))
    cuda_engine.backward_backward(ggx, ggt, grad_y, x, tables, knots, *results)
    check(results, tolerances.backward_backward(ggx, ggt, grad_y, x, tables))

    x[0, :2] = np.nan
    x[1, 1] = np.inf
    cuda_engine.backward(grad_y, x, tables, knots, *results[1:])
    _, grad_x, grad_tables = results
    assert not np.isfinite(grad_x[:2, :2]).any(), "a coordinate that is not finite, hidden"
    assert not np.isfinite(grad_tables[0, :2, :2]).any(), "NaN belongs to cell 0"


def check_penalty(sizes: Sizes) -> None:
    tables = make_problem(np.random.default_rng(0), sizes).tables
    grad = np.full_like(tables, np.nan)
    penalty = cuda_engine.hessian_penalty(tables, sigma_grid(sizes.num_grids), 1.0, grad)
    check([penalty, grad], tolerances.hessian_penalty(tables, "float32"))


def survivors(mutants: list[Mutant], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Try the mutants; print all, return those that nothing noticed."""
    emulated.install(monkeypatch, "random")
    monkeypatch.setattr(launch_plan, "CHUNK", 64)
    monkeypatch.setattr(launch_plan, "STRETCHES", (8,))
    monkeypatch.setattr(launch_plan, "MOST_BLOCKS", 1)
    outcomes = run_mutants(mutants, {file: kernel_source.read(file) for file in FILES}, trial)
    print(*outcomes, sep="\n")
    return [str(outcome) for outcome in outcomes if outcome.survived]


def test_every_tenth_mutant_is_noticed() -> None:
    tried = subprocess.run([sys.executable, __file__, "10"], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr


if __name__ == "__main__":
    if missing := emulator.missing_tools():
        sys.exit(missing)
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with pytest.MonkeyPatch.context() as patch:
        surviving = survivors(MUTANTS[::step], patch)
    sys.exit("\n".join(["survived:", *surviving]) if surviving else 0)
