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

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")

FILES = (
    "lanes.cuh",
    "element.cuh",
    POSITION := "position.cuh",
    WARP := "warp.cuh",
    VECTORS := "row_vectors.cuh",
    RECORD := "record.cuh",
    FORWARD := "forward.cu",
    SHARED := "forward_shared.cu",
    COPIES := "async_copy.cuh",
    SORT := "sort.cu",
    BACKWARD := "backward.cu",
    PENALTY := "hessian_penalty.cu",
)

MUTANTS = [
    Mutant(POSITION, "? 1 - tail : tail", "? tail : 1 - tail", "sigma mirrored"),
    Mutant(POSITION, "REAL(NUM_GRIDS - 1)))", "REAL(NUM_GRIDS)))", "last interval + 1"),
    Mutant(POSITION, "max(position, REAL(0))", "position", "NaN converted"),
    Mutant(POSITION, "2 * pair + 1 < in_features ?", "true ?", "no constant for an odd I"),
    Mutant(POSITION, "{(1 - u) * (1 - v), (1 - u) * v, u", "{(1 - u) * (1 - v), u, u", "weight 1"),
    Mutant(POSITION, "b * (1 - u) - a * v,", "b * (1 - u) + a * v,", "sign along a direction"),
    Mutant(POSITION, "u * v}, {v, u}}", "u * v}, {u, v}}", "slopes: u and v exchanged"),
    Mutant(POSITION, "(corner >> 1) * NUM_KNOTS", "(corner >> 1) * NUM_GRIDS", "row above"),
    Mutant(WARP, "if (o < out_features) use(k, o);", "use(k, o);", "tail not masked"),
    Mutant(VECTORS, "+ k * LANES * VECTOR < out_features", "< out_features", "tail not masked"),
    Mutant(VECTORS, "lane_index() * VECTOR)", "lane_index())", "vectors overlap"),
    Mutant(RECORD, "places[2 * at + 1]", "places[2 * at]", "cell of a record"),
    Mutant(FORWARD, "accumulate ? own_y[o] + sum[k] : sum[k]", "sum[k]", "forward: overwrites"),
    Mutant(FORWARD, "begin += LANES", "begin += LANES - 1", "forward: a pair twice"),
    Mutant(FORWARD, "task / tiles", "task / (tiles + 1)", "forward: tiles miscounted"),
    Mutant(SHARED, "wait_for_copies();", "", "shared: no wait"),
    Mutant(SHARED, "__syncthreads();  // this", "//", "shared: no barrier for a pair"),
    Mutant(SHARED, "__syncthreads();  // the next", "//", "shared: no barrier for a task"),
    Mutant(SHARED, "stages + (pair + 1) % 2 * STAGE", "stages + pair % 2 * STAGE", "same stage"),
    Mutant(SHARED, "row[t ^ swizzle]", "row[t]", "shared: chunks stored in another order"),
    Mutant(COPIES, "cp.async.wait_all;", "", "copies: wait is empty"),
    Mutant(SORT, "i % 2 * EVEN_ROWS", "(i + 1) % 2 * EVEN_ROWS", "sort: halves exchanged"),
    Mutant(SORT, "(1u << lane) - 1u", "(2u << lane) - 1u", "sort: counts oneself"),
    Mutant(SORT, "if (active && before == 0) counts", "if (false) counts", "sort: not advanced"),
    Mutant(SORT, "return sum - value;", "return sum;", "sort: counts itself"),
    Mutant(SORT, "(number) << digit % 2 * 16", "(number)", "sort: counts of two digits"),
    Mutant(SORT, "sample_at = written;", "", "sort: the last pass is lost"),
    Mutant(
        SORT, "keys[sample] / unit % DIGITS", "keys[sample] % DIGITS", "sort: first digit twice"
    ),
    Mutant(SORT, "if (even && last)", "if (even)", "sort: evens counted early"),
    Mutant(SORT, "if (!even && place == 0) evens[pair] = 0;", "", "sort: no evens"),
    Mutant(BACKWARD, "half ? evens +", "half ?", "backward: odd half begins at 0"),
    Mutant(
        BACKWARD, "begin + length, half_end", "begin + length, count", "backward: into odd half"
    ),
    Mutant(BACKWARD, "half != stretch.half", "false", "backward: both halves at once"),
    Mutant(BACKWARD, "low_sum[k] += row[column][k]", "low_sum[k] = row[column][k]", "overwrites"),
    Mutant(BACKWARD, "cell >= 0 && next_cell == cell + 1", "cell >= 0", "backward: all neighbours"),
    Mutant(BACKWARD, "row[2][k] = row[3][k];", "row[2][k] = 0;", "backward: column not carried"),
    Mutant(BACKWARD, "left[k] = right[k];", "left[k] = left[k];", "backward: difference kept"),
    Mutant(BACKWARD, "row_2[k] - row_0[k]", "row_2[k] - row_1[k]", "backward: wrong difference"),
    Mutant(BACKWARD, "real ? position.weight[corner] : 0", "position.weight[corner]", "repeated"),
    Mutant(BACKWARD, "{position.mixed[0], pos", "{position.mixed[1], pos", "factors along"),
    Mutant(BACKWARD, "layer_factor = {v, u}", "layer_factor = {u, v}", "factors of the layer"),
    Mutant(BACKWARD, "lane_index() / GROUP * GROUP;", "0;", "backward: half the parts"),
    Mutant(BACKWARD, "samples - 1)]", "GROUP - 1)]", "backward: parts nobody wrote"),
    Mutant(
        BACKWARD, "lane > 0 ? cell_before : cell)", "cell_before)", "backward: batch's first cell"
    ),
    Mutant(BACKWARD, "(begin + IN_FLIGHT + lane)", "(begin + lane)", "backward: rows of grad_y"),
    Mutant(
        BACKWARD, "__syncwarp();\n                    const Two total", "const Two total", "parts"
    ),
    Mutant(BACKWARD, "__syncwarp();  // the next batch", "//", "backward: batch overwritten"),
    Mutant(BACKWARD, "entered & 1u << k", "entered & 1u", "backward: cell of the second"),
    Mutant(BACKWARD, "(tile * pairs + pair) * chunk", "pair * chunk", "backward: tiles of slopes"),
    Mutant(BACKWARD, "+ 0 * own.fraction.second", "", "not finite: first coordinate only"),
    Mutant(BACKWARD, "work.stretch) * CORNERS", "0) * CORNERS", "backward: one slot for all"),
    Mutant(BACKWARD, "sums.add_column_to(rows, 1, share, out_features);\n        }", "}", "slots"),
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
    Mutant(PENALTY, "if (accumulate) result = target;", "", "penalty: overwrites"),
]


def check(results: Sequence[Any], all_expected: Sequence[tolerances.Expected]) -> None:
    for result, expected in zip(results, all_expected, strict=True):
        expected.check(result)


def trial(texts: Sources) -> None:
    """Every kernel once, with several chunks, stretches, tiles and tasks of a block."""
    with emulated.sources(texts), allocation.allocator(nan_filled):
        check_forward(Sizes(2, 67, 33, 17))
        check_forward(Sizes(40, 5, 64, 17))  # tables in shared memory
        check_gradients(Sizes(90, 3, 260, 17))
        check_gradients(Sizes(40, 2, 2, 50))  # two digits of the sort
        check_gradients(Sizes(40, 2, 2, 50), constant=9)  # in a cell of an odd row
        check_penalty(Sizes(0, 1, 1, 5))
        check_penalty(Sizes(0, 1, 4, 52))  # two tiles of columns


def check_forward(sizes: Sizes) -> None:
    x, tables, *_ = make_problem(np.random.default_rng(0), sizes)
    x[0, :3] = [30, -30, 2]  # sigma of the first is 1 in float32
    y = np.full((sizes.batch, sizes.out_features), np.nan, np.float32)
    cuda_engine.forward(x, tables, sigma_grid(sizes.num_grids), y)
    check([y], [tolerances.forward(x, tables)])


def check_gradients(sizes: Sizes, constant: float | None = None) -> None:
    x, tables, grad_y, ggx, ggt = make_problem(np.random.default_rng(0), sizes)
    if constant is not None:
        x.fill(constant)
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
    knots = sigma_grid(sizes.num_grids)
    penalty = np.full((), np.nan, np.float32)
    cuda_engine.hessian_penalty(tables, knots, 1.0, grad, penalty)
    check([penalty, grad], tolerances.hessian_penalty(tables, "float32"))
    doubled = grad.copy()
    cuda_engine.hessian_penalty(tables, knots, 1.0, doubled, penalty, accumulate=True)
    assert (doubled == grad + grad).all(), "not added"


def survivors(mutants: list[Mutant], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Try the mutants; print all, return those that nothing noticed."""
    emulated.install(monkeypatch, "random")
    monkeypatch.setattr(launch_plan, "CHUNKS", {})
    monkeypatch.setattr(launch_plan, "MOST_CHUNK", 80)
    monkeypatch.setattr(launch_plan, "MOST_DIGITS", 1000)
    monkeypatch.setattr(launch_plan, "STRETCHES", (36,))
    monkeypatch.setitem(launch_plan.WARPS, "sort.cu", 2)
    monkeypatch.setattr(launch_plan, "MOST_BLOCKS", 1)
    outcomes = run_mutants(mutants, {file: kernel_source.read(file) for file in FILES}, trial)
    print(*outcomes, sep="\n")
    return [str(outcome) for outcome in outcomes if outcome.survived]


def test_every_sixth_mutant_is_noticed() -> None:
    tried = subprocess.run([sys.executable, __file__, "6"], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr


if __name__ == "__main__":
    if missing := emulator.missing_tools():
        sys.exit(missing)
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with pytest.MonkeyPatch.context() as patch:
        surviving = survivors(MUTANTS[::step], patch)
    sys.exit("\n".join(["survived:", *surviving]) if surviving else 0)
