"""The cases of the kernels' tests: rows of the plan, what is wanted and how long it takes, crossed.

A row of the plan is a set of kernels: it follows from sizes and dtypes. What is wanted is a forward
or a gradient, one alone or all, of the layer, along a direction, or of both at once. How long: a
block has one task or all of them, a stretch a few samples or several batches of 32, and a call has
several chunks. In every case some coordinates are not finite: the first of a pair, the second,
both, and the last of an odd number.

`cuda/test_crossing.py` runs all cases. `cuda/test_mutants.py` requires that every mutant fails in
one of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise, product
from typing import NamedTuple

import emulated
import numpy as np
import oracle
import pytest
import tolerances
from emulated import (
    BFLOAT16_TABLES,
    ROW,
    SMALL_CHUNK_SIZES,
    cotangents,
    expected_twice,
    problem_with,
)
from oracle import Array
from problems import DTYPES, FLOAT32, FLOAT64, HALF_TABLES, Dtypes, Problem, Sizes
from tolerances import Expected

from lmkan_cupy import cuda_engine, sigma_grid
from lmkan_cupy.array_checks import LayerKind, LinearLayer, Network
from lmkan_cupy.cuda_engine import backward_pass, forward_model, forward_pass, network_pass
from lmkan_cupy.cuda_engine import penalty as penalty_pass
from lmkan_cupy.cuda_engine.forward_model import Prediction
from lmkan_cupy.cuda_engine.plan import layer_shape
from lmkan_cupy.cuda_engine.ring import RingShape


class Case(NamedTuple):
    """A check of some kernels in the emulator.

    files : tuple of str
        The files of `cuda/` with these kernels.
    check : callable
        Returns the results, or fails with an AssertionError; the engine has to be installed in the
        emulator before.
    """

    name: str
    files: tuple[str, ...]
    check: Callable[[], list[Array]]


# ---- how long ------------------------------------------------------------------------------------


class Length(NamedTuple):
    """How much a call has to do, and how few blocks, chunks, stretches and warps there are for it.

    A batch of None is the row's.
    """

    batch: int | None
    blocks: int
    chunk: int
    stretch: int
    shortest_stretch: int
    sort_warps: int


LENGTHS = {
    "short": Length(None, 2**20, chunk=32, stretch=3, shortest_stretch=2, sort_warps=16),
    "long": Length(190, 1, chunk=170, stretch=300, shortest_stretch=32, sort_warps=2),
}


@contextmanager
def limits(length: Length) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backward_pass, "CHUNKS", {})
        patch.setattr(backward_pass, "MOST_CHUNK", length.chunk)
        patch.setattr(backward_pass, "STRETCH", length.stretch)
        patch.setattr(backward_pass, "SHORTEST_STRETCH", length.shortest_stretch)
        patch.setattr(backward_pass, "SORT_WARPS", length.sort_warps)
        patch.setattr(forward_model, "from_global", lambda *_: Prediction({"L2": 0}, 0))
        emulated.limit_blocks(patch, length.blocks)
        yield
    emulated.forget_plans()


# ---- special values ------------------------------------------------------------------------------


class Hit(NamedTuple):
    """The elements of y [B, O], of x [B, I] and of tables [P, S, S, O] that become non-finite."""

    y: Array
    x: Array
    tables: Array


SPECIAL = [(np.nan, None), (None, np.nan), (np.inf, None), (None, -np.inf), (-np.inf, np.nan)]
"""First and second coordinate of a pair; None is left as it is."""


def with_special_values(problem: Problem) -> tuple[Problem, Problem, Hit]:
    """The problem with special values; the same with finite ones in these cells; what they hit."""
    bad, good = problem.x.copy(), problem.x.copy()
    pairs, num_knots, *_ = problem.tables.shape
    dimension = problem.tables.ndim - 2
    knots = sigma_grid(num_knots - 1, dtype=bad.dtype).astype(float)
    hit = Hit(*(np.zeros(each.shape, bool) for each in (problem.grad_y, bad, problem.tables)))
    in_pairs = [(pair % pairs, values) for pair, values in enumerate(SPECIAL)]
    in_pairs.append((pairs - 1, SPECIAL[0]))  # the last of an odd number of features has no partner
    samples = range(2, len(bad), 5)
    for sample, (pair, values) in zip(samples, in_pairs, strict=False):
        begin = dimension * pair
        own = slice(begin, begin + dimension)
        for feature, value in enumerate(values[: bad[sample, own].size], begin):
            if value is not None:
                bad[sample, feature] = value
                outermost = slice(-2, None) if value > 0 else slice(0, 2)
                good[sample, feature] = knots[outermost].mean()
        if not np.isfinite(bad[sample, own]).all():
            point = oracle.by_group(good, dimension)[:, sample, pair]
            cell = np.searchsorted(knots[1:-1], point, side="right")
            corners = tuple(slice(each, each + 2) for each in cell)
            hit.y[sample] = hit.x[sample, own] = hit.tables[(pair, *corners)] = True
    return problem._replace(x=bad), problem._replace(x=good), hit


def checked(result: Array, expected: Expected, hit: Array) -> Array:
    np.testing.assert_array_equal(~np.isfinite(result), hit, err_msg="not finite")
    expected.check(np.where(hit, expected.value, result))
    return result


# ---- what is wanted ------------------------------------------------------------------------------

FORWARD, BACKWARD = ("forward.cu",), ("sort.cu", "backward.cu")


def unwritten(*arrays: Array) -> tuple[Array, ...]:
    """Room for results, each with the shape of an array; those of tables in the dtype of x."""
    return tuple(np.full(each.shape, np.nan, arrays[0].dtype) for each in arrays)


def check_forward(problem: Problem) -> list[Array]:
    given, finite, hit = with_special_values(problem)
    return [checked(emulated.forward(given), tolerances.forward(finite.x, finite.tables), hit.y)]


def check_backward(need_x: bool, need_tables: bool, problem: Problem) -> list[Array]:
    given, finite, hit = with_special_values(problem)
    x, tables, grad_y, *_ = given
    grad_x, grad_tables = unwritten(x, tables)
    cuda_engine.backward(
        grad_y, x, tables, grad_x if need_x else None, grad_tables if need_tables else None
    )
    of_x, of_tables = tolerances.backward(grad_y, finite.x, tables)
    results = [checked(grad_x, of_x, hit.x)] if need_x else []
    return results + ([checked(grad_tables, of_tables, hit.tables)] if need_tables else [])


def check_double_backward(without: str, problem: Problem) -> list[Array]:
    given, finite, hit = with_special_values(problem)
    if without:
        finite = finite._replace(**{without: np.zeros_like(getattr(finite, without))})
        given = given._replace(**{without: None})
    of_one_variable = problem.tables.ndim == 3
    # Then the gradient of the tables is zero; of one variable no position counts along ggx.
    if without == "ggx" or of_one_variable:
        hit.tables[...] = False
    if without == "ggt" and of_one_variable:
        hit.y[...] = False
    results = unwritten(problem.grad_y, problem.x, problem.tables)
    cuda_engine.backward_backward(*cotangents(given), *results)
    return list(map(checked, results, expected_twice(finite), hit))


WANTED: dict[str, tuple[tuple[str, ...], Callable[[Problem], list[Array]]]] = {
    "y": (FORWARD, check_forward),
    "both gradients": (BACKWARD, partial(check_backward, True, True)),
    "gradient of x": (BACKWARD, partial(check_backward, True, False)),
    "gradient of tables": (BACKWARD, partial(check_backward, False, True)),
    "double backward": (FORWARD + BACKWARD, partial(check_double_backward, "")),
    "along ggx": (FORWARD + BACKWARD, partial(check_double_backward, "ggt")),
    "with ggt": (FORWARD + BACKWARD, partial(check_double_backward, "ggx")),
}


def check_row(
    sizes: Sizes, dtypes: Dtypes, dimension: int, wanted: str, length: str
) -> list[Array]:
    most = LENGTHS[length]
    problem = row_problem(sizes._replace(batch=most.batch or sizes.batch), dtypes, dimension)
    if length == "long":
        problem = problem._replace(x=concentrated(problem.x, sizes.num_grids))
    with limits(most):
        return WANTED[wanted][1](problem)


@cache
def row_problem(sizes: Sizes, dtypes: Dtypes, dimension: int = 2) -> Problem:
    rng = np.random.default_rng(zlib.crc32(f"{sizes} {dtypes}".encode()))
    return problem_with(rng, sizes, dtypes, dimension)


def concentrated(x: Array, num_grids: int) -> Array:
    """x with nine tenths of the first coordinates in one interval, so that stretches are long."""
    knots = sigma_grid(num_grids, dtype=x.dtype)
    x = x.copy()
    within = np.linspace(0.2, 0.8, len(x))[:, None] * (knots[3] - knots[2]) + knots[2]
    x[:, ::2] = np.where(np.arange(len(x))[:, None] % 10, within, x[:, ::2])
    return x


def row_cases(
    sizes: Sizes,
    dtypes: Dtypes = FLOAT32,
    wanted: Iterable[str] = WANTED,
    lengths: Iterable[str] = LENGTHS,
    dimension: int = 2,
) -> list[Case]:
    return [
        Case(
            f"{sizes}-{dtypes}-{each}-{length}" + "-of-one-variable" * (dimension == 1),
            WANTED[each][0],
            partial(check_row, sizes, dtypes, dimension, each, length),
        )
        for each, length in product(wanted, lengths)
    ]


# ---- the forward through shared memory -----------------------------------------------------------


class RingRow(NamedTuple):
    """A ring, with pairs in runs of `run`, on a device of architecture `arch`."""

    sizes: Sizes
    dtypes: Dtypes
    shape: RingShape
    stages: int
    packed: bool
    run: int
    arch: int = 900


RING_ROWS = {
    "split-with-a-tail": RingRow(
        Sizes(70, 19, 36, 5), FLOAT32, RingShape(8, 2, 2), stages=3, packed=True, run=6
    ),
    "many-pairs": RingRow(
        Sizes(70, 67, 7, 4), FLOAT32, RingShape(2, 2, 2), stages=3, packed=True, run=34
    ),
    "direct": RingRow(
        Sizes(70, 19, 32, 4), FLOAT32, RingShape(4, 2, 2), stages=3, packed=False, run=10
    ),
    "two-bunches": RingRow(
        Sizes(200, 4, 48, 4), FLOAT32, RingShape(2, 2, 2), stages=2, packed=False, run=2
    ),
    "plain-copies": RingRow(
        Sizes(70, 19, 32, 4), FLOAT32, RingShape(4, 2, 2), stages=3, packed=False, run=10, arch=750
    ),
    "plain-copies-two-stages": RingRow(
        Sizes(70, 19, 36, 4), FLOAT32, RingShape(8, 2, 2), stages=2, packed=True, run=10, arch=750
    ),
    "half": RingRow(
        Sizes(70, 7, 36, 4), HALF_TABLES, RingShape(4, 2, 2), stages=3, packed=True, run=4
    ),
    "half-direct": RingRow(
        Sizes(70, 7, 32, 4), HALF_TABLES, RingShape(4, 2, 2), stages=3, packed=False, run=4
    ),
    "bfloat16": RingRow(
        Sizes(70, 7, 36, 4), BFLOAT16_TABLES, RingShape(4, 2, 2), stages=3, packed=True, run=4
    ),
}


def check_ring(row: RingRow) -> list[Array]:
    """The forward, then its derivative along a direction and another forward added to it.

    Half tables have values of every size, and samples so far outside that weights exceed halves.
    """
    problem = row_problem(row.sizes, row.dtypes)
    if row.dtypes != FLOAT32:
        problem = extreme(problem)
    given, finite, hit = with_special_values(problem)
    y, twice = unwritten(given.grad_y, given.grad_y)
    of_y = tolerances.forward(finite.x, finite.tables, in_half=row.dtypes == HALF_TABLES)
    with limits(LENGTHS["long"]), emulated.using(arch=row.arch):
        evaluate(row, given.x, None, given.tables, y)
        if row.dtypes != FLOAT32:
            return [checked(y, of_y, hit.y)]
        evaluate(row, given.x, given.ggx, given.tables, twice)
        evaluate(row, given.x, None, given.ggt, twice, accumulate=True)
    return [checked(y, of_y, hit.y), checked(twice, expected_twice(finite)[0], hit.y)]


def evaluate(
    row: RingRow, x: Array, ggx: Array | None, tables: Array, y: Array, accumulate: bool = False
) -> None:
    """In slices of two blocks."""
    layer, direction = layer_shape(x, tables), ggx is not None
    plan = forward_pass.through_ring(
        *(layer, len(x), emulated.DEVICE, direction),
        *(row.packed, row.shape, row.stages, row.run),
    )
    assert plan.ring
    plan = replace(plan, ring=replace(plan.ring, slice_size=2 * plan.ring.samples))
    forward_pass.by_plan(plan, layer, len(x), direction, accumulate)(x, ggx, tables, y)


def extreme(problem: Problem) -> Problem:
    rng = np.random.default_rng(0)
    x = problem.x.copy()
    x[::3] *= 1e6
    x[0, :2] = 5e18
    tables = problem.tables.astype(float) * 10.0 ** rng.uniform(-2, 4, problem.tables.shape)
    tables[0] *= 1e-5  # the weights there nearly fill the range of float
    tables[1] = 65504
    return problem._replace(x=x, tables=tables.astype(problem.tables.dtype))


# ---- the penalty ---------------------------------------------------------------------------------

PENALTY_SIZES = [Sizes(0, 1, 1, 5), Sizes(0, 5, 9, 7)]
"""One tile, and several along both axes, which are more than a warp has lanes."""


def check_penalty(sizes: Sizes, dtypes: Dtypes, blocks: int, dimension: int = 2) -> list[Array]:
    tables = row_problem(sizes, dtypes, dimension).tables
    penalty, grad = (np.full(shape, np.nan, np.float32) for shape in ((), tables.shape))
    of_penalty, of_grad = tolerances.hessian_penalty(tables, "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(penalty_pass, "MOST_COLUMNS", 6)
        patch.setattr(penalty_pass, "MOST_THREADS", 32)
        emulated.limit_blocks(patch, blocks)
        cuda_engine.hessian_penalty(tables, 0.5, None, penalty)
        of_penalty.check(penalty)
        cuda_engine.hessian_penalty(tables, 0.5, grad, penalty)
        of_penalty.check(penalty)
        of_grad.check(2 * grad)
        doubled = grad.copy()
        cuda_engine.hessian_penalty(tables, 0.5, doubled, penalty, accumulate=True)
        assert (doubled == grad + grad).all(), "not added"
    emulated.forget_plans()
    return [penalty, grad]


# ---- a network in one kernel ---------------------------------------------------------------------


class NetworkRow(NamedTuple):
    """Sizes of the layers, and a block; `shared_kb` decides whether the tables are resident.

    linear : tuple of int
        The numbers of the linear layers; one at the end has no bias.
    """

    features: tuple[int, ...]
    num_grids: int
    dtypes: Dtypes = FLOAT32
    warps: int = 1
    shared_kb: int = 227
    standardised: bool = True
    bound: float = 1.5
    linear: tuple[int, ...] = ()


NETWORK_ROWS = {
    "resident": NetworkRow((10, 16, 16, 1), 4),
    "in-stages": NetworkRow((5, 9, 33, 12, 3), 4, shared_kb=20),
    "in-stages-of-one-pair": NetworkRow((5, 33, 34, 2), 4, shared_kb=17, bound=np.inf),
    "a-layer": NetworkRow((1, 1), 8, warps=2, standardised=False),
    "a-layer-of-several-tiles": NetworkRow((4, 43), 4, bound=np.inf),
    "double": NetworkRow((5, 20, 7), 5, FLOAT64, standardised=False),
    "half": NetworkRow((6, 40, 20, 9), 5, HALF_TABLES, warps=2),
    "bfloat16": NetworkRow((5, 20, 7), 4, BFLOAT16_TABLES, shared_kb=12, bound=np.inf),
    "linear-in-front": NetworkRow((5, 45, 9, 2), 4, linear=(0,)),
    "linear-in-stages": NetworkRow((5, 9, 35, 6, 3, 4, 2), 4, shared_kb=18, linear=(1, 3, 5)),
    "linear-double": NetworkRow((5, 12, 7), 5, FLOAT64, linear=(0,)),
    "linear-half": NetworkRow((5, 20, 9, 2), 5, HALF_TABLES, warps=2, linear=(0, 2)),
    "linear-bfloat16": NetworkRow((5, 20, 7), 4, BFLOAT16_TABLES, linear=(0,)),
}


def network_problem(row: NetworkRow, batch: int) -> tuple[Network, Array]:
    """A network and x [B, I]; features of all layers are about as large as x."""
    rng = np.random.default_rng(zlib.crc32(str(row).encode()))
    real = np.dtype(row.dtypes.x)
    layers: list[Array | LinearLayer] = []
    kinds = []
    for k, (inputs, outputs) in enumerate(pairwise(row.features)):
        if k in row.linear:
            weight = rng.normal(0, inputs**-0.5, (outputs, inputs)).astype(real)
            has_bias = k + 2 < len(row.features)
            bias = rng.normal(size=outputs).astype(real) if has_bias else None
            layers.append(LinearLayer(weight, bias))
            kinds.append(LayerKind(weight.shape, real, True))
        else:
            tables = row_problem(Sizes(0, inputs, outputs, row.num_grids), row.dtypes).tables
            layers.append((tables / np.sqrt(len(tables))).astype(tables.dtype))
            kinds.append(LayerKind(tables.shape, tables.dtype, False))
    inputs = row.features[0]
    shift, scale = rng.normal(size=inputs).astype(real), rng.uniform(0.5, 2, inputs).astype(real)
    network = Network(
        inputs,
        real,
        layers,
        tuple(kinds),
        (row.bound,) * len(layers),
        *((shift, scale) if row.standardised else (None, None)),
    )
    return network, rng.normal(0, 2, (batch, inputs)).astype(real)


def check_network(row: NetworkRow, gradient: bool) -> list[Array]:
    """In three tasks of one block, and a few samples, in another order, in one it does not fill.

    A NaN passes the cut, an infinity does not.
    """
    network, x = network_problem(row, 70 * row.warps)
    rng = np.random.default_rng(0)
    grad_y = rng.normal(size=(len(x), network.out_features)).astype(x.dtype) if gradient else None
    given, bad, of_pair = x.copy(), np.zeros(len(x), bool), np.zeros(x.shape, bool)
    x[2, 0], given[2, 0] = 1e6, np.inf
    x[5, -1], given[5, -1] = -1e6, -np.inf
    given[8, 0] = given[11, -1] = np.nan
    bad[[8, 11]], bad[[2, 5]] = True, row.bound == np.inf
    last_pair = slice((x.shape[1] - 1) // 2 * 2, None)
    of_pair[[2, 8], :2], of_pair[[5, 11], last_pair] = True, True
    y, grad_x = in_one_kernel(row, network, given, grad_y)
    some = np.random.default_rng(0).permutation(len(x))[:20]
    repeated = in_one_kernel(row, network, given[some], grad_y[some] if gradient else None)
    np.testing.assert_array_equal(repeated[0], y[some])
    results = [checked(y, tolerances.network(x, network), np.broadcast_to(bad[:, None], y.shape))]
    if gradient:
        np.testing.assert_array_equal(repeated[1], grad_x[some])
        expected, defined = tolerances.network_backward(grad_y, x, network)
        assert defined.mean() > 0.9
        # What is not finite reaches all inputs from the second layer, its own pair from the first.
        of_sample = of_pair if len(row.features) == 2 else True
        is_cut = (np.abs(standardised(network, given)) > row.bound) & (0 not in row.linear)
        hit = bad[:, None] & of_sample & ~is_cut
        rows = defined | bad
        some_expected = tolerances.Expected(expected.value[rows], expected.bound[rows])
        results.append(checked(grad_x[rows], some_expected, hit[rows]))
    return results


def standardised(network: Network, x: Array) -> Array:
    shifted = x if network.shift is None else x - network.shift
    return shifted if network.scale is None else shifted * network.scale


def in_one_kernel(
    row: NetworkRow, network: Network, x: Array, grad_y: Array | None
) -> tuple[Array, Array | None]:
    y = np.full((len(x), network.out_features), np.nan, x.dtype)
    grad_x = None if grad_y is None else np.full_like(x, np.nan)
    shape = network_pass.network_shape(network)
    device = replace(emulated.DEVICE, shared_bytes=row.shared_kb * 1024)
    plan = network_pass.through_shared(
        shape, len(x), device, row.warps, gradient=grad_y is not None
    )
    network_pass.by_plan(plan, shape, len(x))(network, x, grad_y, y, grad_x)
    return y, grad_x


# ---- all cases -----------------------------------------------------------------------------------

ROWS = [*product(SMALL_CHUNK_SIZES, DTYPES), (ROW, BFLOAT16_TABLES)]

#: More pairs of a warp than lanes, and more than `backward_slopes` adds up at once.
MANY_PAIRS = row_cases(Sizes(3, 267, 33, 5), wanted=["y"])
MANY_PAIRS += row_cases(Sizes(40, 35, 260, 4), wanted=["gradient of x"], lengths=["short"])

RINGS = [
    Case(f"ring-{name}", ("pack.cu", "forward_ring.cu"), partial(check_ring, row))
    for name, row in RING_ROWS.items()
]
PENALTIES = [
    Case(
        f"penalty-{sizes}-{dtypes}-in-{most}-blocks",
        ("hessian_penalty.cu",),
        partial(check_penalty, sizes, dtypes, most),
    )
    for sizes, dtypes, most in product(PENALTY_SIZES, (FLOAT32, BFLOAT16_TABLES), (1, 1000))
]
NETWORKS = [
    Case(
        f"network-{name}" + "-gradient" * gradient,
        ("network.cu",),
        partial(check_network, row, gradient),
    )
    for name, row in NETWORK_ROWS.items()
    for gradient in (False, True)
]
#: Functions of one variable: one and two digits of the sort, one and several tiles.
ONE_VARIABLE = [
    case
    for sizes, dtypes in ((ROW, FLOAT32), (Sizes(40, 3, 260, 4), HALF_TABLES))
    for case in row_cases(sizes, dtypes, dimension=1)
]
ONE_VARIABLE += row_cases(Sizes(65, 3, 2, 3000), FLOAT64, ["both gradients"], dimension=1)
ONE_VARIABLE += [
    Case(
        f"penalty-{PENALTY_SIZES[1]}-of-one-variable-in-{most}-blocks",
        ("hessian_penalty.cu",),
        partial(check_penalty, PENALTY_SIZES[1], FLOAT32, most, 1),
    )
    for most in (1, 1000)
]
CASES = [case for row in ROWS for case in row_cases(*row)]
CASES += MANY_PAIRS + RINGS + PENALTIES + NETWORKS + ONE_VARIABLE
