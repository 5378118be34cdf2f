"""The emulator of the CUDA kernels: it lets correct kernels pass and catches every planted bug."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import emulator
import numpy as np
import pytest
from emulator import inline_ptx
from emulator.mutate import Mutant, run_mutants
from numpy.typing import NDArray

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")

HERE = Path(emulator.__file__).parent
ARCHITECTURES = [900, 800, 750]
"""With asynchronous copies also in bulk, with small ones only, and with plain ones instead."""

Array = NDArray[Any]


def read_sources(*files: str) -> dict[str, str]:
    return {file: (HERE / file).read_text() for file in files}


def paste(sources: Mapping[str, str]) -> str:
    """One text, as `kernel_source` makes it: each file under its own name and line numbers."""
    return "\n".join(f'#line 1 "{file}"\n{text}' for file, text in sources.items())


def kernel_names(text: str) -> list[str]:
    return re.findall(r"__global__ void\s(?:__launch_bounds__\(\d+\))?\s*(\w+)\(", text)


# ---- correct kernels -----------------------------------------------------------------------------
# All values are integers, or small enough multiples of powers of two, that every order of additions
# gives the same result: it is compared bit by bit.


class Run(NamedTuple):
    """A module's `launch`, bound to an order, and what the module was compiled for."""

    launch: Callable[..., None]
    arch: int


def check_lookup(run: Run) -> None:
    rng = np.random.default_rng(1)
    batch, pairs, nodes, outputs = 37, 3, 5, 8
    x = rng.integers(0, 65, (batch, pairs, 2)).astype(np.float32) / 64
    x[5] = 1  # at the last node
    tables = rng.integers(-9, 10, (pairs, nodes, nodes, outputs)).astype(np.float32)
    y = np.full((batch, outputs), np.nan, np.float32)
    shared_bytes = 2 * nodes * nodes * outputs * 4
    arguments = [x, tables, y, np.int32(batch), np.int32(pairs)]
    run.launch("lookup", (3, 1, 1), (32, 1, 1), arguments, shared_bytes)
    hat = np.maximum(0, 1 - np.abs(x[..., None] * (nodes - 1) - np.arange(nodes)))
    expected = np.einsum("bpi,bpj,pijo->bo", hat[:, :, 0], hat[:, :, 1], tables)
    np.testing.assert_array_equal(y, expected)


def check_row_sums(run: Run) -> None:
    for columns, threads in [(1, 32), (100, 64), (1000, 256)]:
        x = np.random.default_rng(2).integers(-99, 100, (3, columns)).astype(np.float32)
        sums = np.full(3, np.nan, np.float32)
        run.launch("row_sums", (3, 1, 1), (threads, 1, 1), [x, sums, np.int32(columns)])
        np.testing.assert_array_equal(sums, x.sum(axis=1))


def check_stable_positions(run: Run) -> None:
    threads, count = 96, 250
    keys = np.random.default_rng(3).integers(0, 31, count).astype(np.int32)
    positions = np.full(count, -1, np.int32)
    run.launch("stable_positions", (3, 1, 1), (threads, 1, 1), [keys, positions, np.int32(count)])
    for start in range(0, count, threads):
        chunk = slice(start, min(start + threads, count))
        expected = np.argsort(np.argsort(keys[chunk], kind="stable"), kind="stable")
        np.testing.assert_array_equal(positions[chunk], expected)


def check_histogram(run: Run) -> None:
    count, bins = 1000, 50
    keys = np.random.default_rng(4).integers(0, bins, count).astype(np.int32)
    counts = np.zeros(bins, np.int32)
    arguments = [keys, counts, np.int32(count), np.int32(bins)]
    run.launch("histogram", (3, 1, 1), (64, 1, 1), arguments, bins * 4)
    np.testing.assert_array_equal(counts, np.bincount(keys, minlength=bins))


def check_half_axpy(run: Run) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 8 * 45)).astype(np.float16)
    expected = (1.5 * x.astype(np.float64) + y).astype(np.float16)
    run.launch("half_axpy", (2, 1, 1), (32, 1, 1), [np.float32(1.5), x, y, np.int32(45)])
    np.testing.assert_array_equal(y, expected)


def rounded_to_bfloat16(x: Array) -> Array:
    mantissa, exponent = np.frexp(x)
    rounded: Array = np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)
    return rounded


def bfloat16_bits(x: Array) -> Array:
    return (rounded_to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)


def check_bfloat16_axpy(run: Run) -> None:
    rng = np.random.default_rng(6)
    x, y = rounded_to_bfloat16(rng.standard_normal((2, 8 * 45)).astype(np.float32))
    bits = bfloat16_bits(y)
    expected = bfloat16_bits((1.5 * x.astype(np.float64) + y).astype(np.float32))
    arguments = [np.float32(1.5), bfloat16_bits(x), bits, np.int32(45)]
    run.launch("bfloat16_axpy", (2, 1, 1), (32, 1, 1), arguments)
    np.testing.assert_array_equal(bits, expected)


def check_halves_side_by_side(run: Run) -> None:
    x = np.arange(64, dtype=np.float16)
    y = np.full_like(x, np.nan)
    run.launch("halves_side_by_side", (1, 1, 1), (64, 1, 1), [x, y])
    np.testing.assert_array_equal(y, x[::-1])


def check_shifted(run: Run) -> None:
    x = np.arange(1, 41, dtype=np.float32)
    y = np.full_like(x, np.nan)
    run.launch("shifted", (1, 1, 1), (40, 1, 1), [x, y], x.nbytes)
    np.testing.assert_array_equal(y, np.arange(40))


def check_collectives(run: Run) -> None:
    rng = np.random.default_rng(7)
    x = rng.integers(-3, 4, 32).astype(np.int32)
    lane = np.arange(32)
    positive = x > 0
    votes = np.int64(np.sum(positive.astype(np.int64) << lane))
    halves = np.where(lane < 16, votes & 0xFFFF, votes & 0xFFFF0000)
    matches = np.sum((x[:, None] == x).astype(np.int64) << lane, axis=1)
    agreement = int((x == 5).any()) + 2 * int((x < 100).all())
    expected = [
        np.full(32, x[3]),
        x[lane // 8 * 8 + 3],
        x[np.where(lane < 5, lane, lane - 5)],
        x[np.where(lane > 26, lane, lane + 5)],
        x[np.where(lane % 8 > 5, lane, lane + 2)],
        x[lane ^ 9],
        np.full(32, votes),
        np.full(32, agreement),
        matches,
        np.full(32, positive.sum()),
        np.full(32, agreement),
        halves,
    ]
    if run.arch >= 800:
        expected += [
            np.full(32, x.sum()),
            np.full(32, x.min()),
            np.where(lane < 16, x[:16].max(), x[16:].max()),
            np.full(32, np.bitwise_xor.reduce(x)),
        ]
    results = np.zeros((len(expected), 32), np.int32)
    run.launch("collectives", (1, 1, 1), (32, 1, 1), [x, results])
    np.testing.assert_array_equal(results, np.array(expected).astype(np.uint32).view(np.int32))


def check_tickets(run: Run) -> None:
    tickets, following = np.full(96, -1, np.int32), np.zeros(1, np.int32)
    run.launch("tickets", (3, 1, 1), (32, 1, 1), [tickets, following])
    np.testing.assert_array_equal(np.sort(tickets), np.arange(96))


def check_ring(kernel: str, run: Run) -> None:
    for tiles in (1, 2, 7):
        x = np.random.default_rng(11).integers(-99, 100, (tiles, 64)).astype(np.float32)
        sums = np.full(64, np.nan, np.float32)
        run.launch(kernel, (1, 1, 1), (64, 1, 1), [x, sums, np.int32(tiles)])
        expected = sum(np.roll(row, -number) for number, row in enumerate(x))
        np.testing.assert_array_equal(sums, expected)


AWKWARD_FLOATS = np.array(
    [0, -0.0, 0.1, 1 / 3, -1.7, 255.9, 1e-5, 2049, -3e-8, 1e4, np.inf, -np.inf, np.nan], np.float32
)


def check_half_operations(run: Run) -> None:
    x = AWKWARD_FLOATS
    with np.errstate(all="ignore"):
        low, high = x.astype(np.float16), (2 * x).astype(np.float16)
        exact_low, exact_high = low.astype(np.float64), high.astype(np.float64)
        three = np.full_like(low, 3)
        expected = [low, low, high, low, high, three, low, low, low, low, high]
        expected += [high + high, low - high, low * low]
        expected += [(exact_low * exact_low + exact_high).astype(np.float16), low]
    results = np.zeros((len(expected), x.size), np.float32)
    run.launch("half_operations", (1, 1, 1), (x.size, 1, 1), [x, results])
    np.testing.assert_array_equal(results, np.array(expected, np.float32))


def check_bfloat16_operations(run: Run) -> None:
    x = AWKWARD_FLOATS
    low, high = rounded_to_bfloat16(x), rounded_to_bfloat16(2 * x)
    three = np.full_like(low, 3)
    expected = [low, low, high, low, high, three, low, low, low]
    expected += [rounded_to_bfloat16(high + high), rounded_to_bfloat16(low * low), low]
    results = np.zeros((len(expected), x.size), np.float32)
    run.launch("bfloat16_operations", (1, 1, 1), (x.size, 1, 1), [x, results])
    np.testing.assert_array_equal(results, np.array(expected))


def check_scalar_operations(run: Run) -> None:
    x = np.append(AWKWARD_FLOATS, np.array([0.5, 1.5, -2.5, 3e9, -3e9], np.float32))
    limits = np.iinfo(np.int32)

    def saturated(whole: Array) -> Array:
        inside = np.nan_to_num(whole.astype(np.float64), nan=0, posinf=1e10, neginf=-1e10)
        return np.clip(inside, limits.min, limits.max).astype(np.int32)

    bits = x.view(np.int32)
    texts = [f"{int(word):032b}" for word in x.view(np.uint32)]
    expected = [
        *(saturated(rounding(x)) for rounding in (np.rint, np.floor, np.ceil, np.trunc)),
        bits,
        np.fmin(x, np.float32(2)).view(np.int32),
        np.fmax(x, np.float32(2)).view(np.int32),
        np.array([text.count("1") for text in texts]),
        np.array([(32 - text.rfind("1")) % 33 for text in texts]),
        np.array([len(text) - len(text.lstrip("0")) for text in texts]),
        np.maximum(bits, 5),
        np.minimum(bits, 5),
    ]
    results = np.zeros((len(expected), x.size), np.int32)
    run.launch("scalar_operations", (1, 1, 1), (x.size, 1, 1), [x, results])
    np.testing.assert_array_equal(results, np.array(expected))


GOOD_FILES = ("async_copy.cuh", "good_kernels.cu")
CHECKS: dict[str, Callable[[Run], None]] = {
    "lookup": check_lookup,
    "row_sums": check_row_sums,
    "stable_positions": check_stable_positions,
    "histogram": check_histogram,
    "half_axpy": check_half_axpy,
    "bfloat16_axpy": check_bfloat16_axpy,
    "halves_side_by_side": check_halves_side_by_side,
    "shifted": check_shifted,
    "collectives": check_collectives,
    "tickets": check_tickets,
    "half_operations": check_half_operations,
    "bfloat16_operations": check_bfloat16_operations,
    "scalar_operations": check_scalar_operations,
    "ring_sums": partial(check_ring, "ring_sums"),
    "ring_of_chunks": partial(check_ring, "ring_of_chunks"),
}


def good_module(arch: int, check: bool = True) -> emulator.Module:
    return emulator.compile(paste(read_sources(*GOOD_FILES)), list(CHECKS), arch=arch, check=check)


def bind(module: emulator.Module, arch: int, order: str = "ascending", seed: int = 0) -> Run:
    def launch(*arguments: Any) -> None:
        module.launch(*arguments, order=order, seed=seed)

    return Run(launch, arch)


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", CHECKS)
def test_good_kernel(kernel: str, arch: int, check: bool) -> None:
    module = good_module(arch, check)
    for order in emulator.ORDERS:
        CHECKS[kernel](bind(module, arch, order, seed=8))


def test_every_good_kernel_has_a_check() -> None:
    assert kernel_names(paste(read_sources(*GOOD_FILES))) == list(CHECKS)


# ---- planted bugs --------------------------------------------------------------------------------


class Launch(NamedTuple):
    """How a planted bug is launched, with y as an array of the parameter's element type."""

    arguments: tuple[Any, ...] = ("y",)
    grid: int = 1
    block: int = 32
    shared_bytes: int = 0


X_TO_Y = Launch(("x", "y"))
PLANTED: dict[str, Launch] = {
    "read_without_barrier": Launch(("x", "y"), block=256),
    "overwrite_without_barrier": Launch(("x", "y", np.int32(4)), block=256),
    "no_syncwarp": Launch(),
    "shuffle_orders_no_memory": Launch(),
    "syncwarp_between_warps": Launch(block=64),
    "ordered_with_one_of_two_warps": Launch(block=64),
    "plain_beside_atomic": Launch(("counts",)),
    "same_half_twice": Launch(),
    "blocks_add_to_one_array": Launch(("x", "y"), grid=3),
    "block_reads_its_neighbour": Launch(grid=3),
    "all_blocks_read_one_writes": Launch(grid=2),
    "beyond_dynamic_shared": Launch(("y", np.int32(100)), block=64, shared_bytes=400),
    "beyond_static_shared": Launch(("y", np.int32(32))),
    "wrong_inner_index": Launch(("y", np.int32(2)), block=256),
    "no_tail_guard": Launch(grid=8, block=250),
    "before_the_array": X_TO_Y,
    "negative_as_unsigned": Launch(("x", "y", np.int32(2))),
    "into_another_threads_stack": Launch(),
    "writes_its_input": X_TO_Y,
    "half_initialised": Launch(block=64),
    "counts_from_garbage": Launch(("counts",)),
    "relies_on_earlier_block": Launch(grid=2),
    "barrier_in_branch": Launch(),
    "return_before_barrier": Launch(("y", np.int32(100)), grid=2, block=64),
    "two_barriers": Launch(block=64),
    "barrier_against_shuffle": Launch(),
    "shuffle_in_branch": Launch(),
    "shuffle_in_both_branches": Launch(),
    "caller_not_in_mask": Launch(),
    "shuffle_from_idle_lane": Launch(),
    "misaligned_vector": X_TO_Y,
    "index_overflow": Launch(("x", "y", np.int32(300_000_000))),
    "division_by_zero": Launch(("counts", np.int32(0))),
    "cast_of_nan": Launch(("nans", "counts")),
    "null_pointer": Launch((np.uint64(0), "y")),
    "stack_overflow": Launch(("y", np.int32(10))),
    "waits_for_a_later_thread": Launch(("counts",)),
    "copy_without_wait": X_TO_Y,
    "own_copy_without_wait": X_TO_Y,
    "wait_after_barrier": X_TO_Y,
    "wait_for_too_few": X_TO_Y,
    "copy_over_what_is_read": Launch(("x", "y", np.int32(3))),
    "copy_forgotten": X_TO_Y,
    "copy_to_odd_address": X_TO_Y,
    "copy_beyond_source": Launch(("short", "y")),
    "copy_to_no_shared_memory": X_TO_Y,
    "bulk_copy_without_wait": X_TO_Y,
    "wait_for_the_wrong_parity": X_TO_Y,
    "another_lane_has_waited": X_TO_Y,
    "refill_while_others_read": Launch(("x", "y"), block=64),
    "leaves_before_it_has_read": Launch(("x", "y"), block=64),
    "leaves_for_its_warp_too_early": Launch(("x", "y"), block=64),
    "one_warp_does_not_leave": Launch(("x", "y"), block=64),
    "more_bytes_than_expected": X_TO_Y,
    "fewer_bytes_than_expected": X_TO_Y,
    "arrival_too_many": Launch(),
    "mbarrier_never_initialised": Launch(),
    "mbarrier_used_at_once": Launch(),
    "bulk_copy_forgotten": X_TO_Y,
    "bulk_copy_of_odd_size": X_TO_Y,
    "bulk_copy_beyond_source": Launch(("short", "y")),
    "arrival_without_its_copies": X_TO_Y,
}


def planted_launch(module: emulator.Module, kernel: str, order: str) -> None:
    arrays = {
        "x": np.ones(1024, np.float32),
        "short": np.ones(128, np.float32),
        "nans": np.full(1024, np.nan, np.float32),
        "y": np.zeros(1024, np.float32),
        "counts": np.zeros(1024, np.int32),
    }
    launch = PLANTED[kernel]
    arguments = [arrays[each] if isinstance(each, str) else each for each in launch.arguments]
    grid, block = (launch.grid, 1, 1), (launch.block, 1, 1)
    module.launch(kernel, grid, block, arguments, launch.shared_bytes, order=order, seed=9)


def planted_module(check: bool) -> emulator.Module:
    sources = read_sources("async_copy.cuh", "planted_bugs.cu")
    return emulator.compile(paste(sources), list(PLANTED), check=check)


def marked_faults() -> dict[str, tuple[str, str]]:
    """By kernel: the marked line, and the kind of its fault."""
    faults = {}
    kernel = mark = None
    for number, line in enumerate((HERE / "planted_bugs.cu").read_text().splitlines(), 1):
        if found := re.search(r"// caught: ([\w-]+)$", line):
            mark = (f"planted_bugs.cu:{number}", found[1])
        if found := re.search(r"__global__ void (\w+)\(", line):
            kernel = found[1]
        if line == "}" and kernel and mark:  # a marked helper stands before its kernel
            faults[kernel] = mark
            kernel = mark = None
    return faults


@pytest.mark.parametrize("kernel", PLANTED)
def test_planted_bug_is_caught(kernel: str) -> None:
    """In every order, and at least in one of them by its own name and line."""
    module = planted_module(check=True)
    reports: list[emulator.Report] = []
    for order in emulator.ORDERS:
        with pytest.raises(emulator.KernelFault) as caught:
            planted_launch(module, kernel, order)
        reports += caught.value.reports
    found = [(place, each.kind) for each in reports for place in each.trace]
    assert marked_faults()[kernel] in found, "\n".join(map(str, reports))


def test_every_kind_of_fault_is_planted() -> None:
    faults = marked_faults()
    assert list(faults) == list(PLANTED)
    assert {kind for _, kind in faults.values()} == set(emulator.KINDS)


SAFE_WITHOUT_CHECKS = [
    kernel
    for kernel, (_, kind) in marked_faults().items()
    if kind in ("race", "unwritten-shared-read", "write-to-read-only")
]


@pytest.mark.parametrize("kernel", SAFE_WITHOUT_CHECKS)
def test_planted_bug_goes_unseen_without_checks(kernel: str) -> None:
    """So it is the checks that catch it, and not the launch."""
    planted_launch(planted_module(check=False), kernel, "ascending")


def test_the_end_of_an_array_is_guarded_without_checks_too() -> None:
    line, _ = marked_faults()["no_tail_guard"]
    with pytest.raises(emulator.KernelFault) as caught:
        planted_launch(planted_module(check=False), "no_tail_guard", "ascending")
    (report,) = caught.value.reports
    assert (report.kind, report.trace) == ("bad-address", (line,))
    assert "argument 0, at byte +4096" in report.message


def test_a_report_says_everything() -> None:
    with pytest.raises(emulator.KernelFault) as caught:
        planted_launch(planted_module(check=True), "copy_over_what_is_read", "ascending")
    races = [each for each in caught.value.reports if each.kind == "race"]
    (report,) = [each for each in races if each.trace[0].startswith("async_copy.cuh:")]
    assert report.kernel == "copy_over_what_is_read"
    assert report.block == (0, 0, 0)
    assert report.thread > 0
    assert report.count > 1
    assert "copy_over_what_is_read" in report.message
    in_wrapper, in_kernel = report.trace
    assert in_kernel == marked_faults()["copy_over_what_is_read"][0]
    (reader,) = report.other_trace
    assert reader.startswith("planted_bugs.cu:")
    for part in (in_wrapper, in_kernel, reader, report.message, "race"):
        assert part in str(caught.value)


# ---- mutants -------------------------------------------------------------------------------------

COPIES, KERNELS = GOOD_FILES
WAIT = "wait_for_copies<0>();\n        "
WAIT_AND_BARRIER = WAIT + "__syncthreads();"
MUTANTS = [
    Mutant(KERNELS, WAIT_AND_BARRIER, "__syncthreads();", "lookup: no wait"),
    Mutant(KERNELS, WAIT_AND_BARRIER, WAIT, "lookup: no barrier"),
    Mutant(KERNELS, WAIT_AND_BARRIER, "__syncthreads();" + WAIT, "lookup: barrier before wait"),
    Mutant(KERNELS, WAIT, "wait_for_copies<1>();", "lookup: waits for one copy too few"),
    Mutant(
        KERNELS, "if (pair + 1 < pairs) load", "if (pair < pairs) load", "lookup: copy too many"
    ),
    Mutant(KERNELS, "tile = tiles + pair % 2 * TILE;", "tile = tiles;", "lookup: one buffer"),
    Mutant(KERNELS, "if (sample < batch) {", "{", "lookup: reads beyond the batch"),
    Mutant(KERNELS, "if (sample < batch) rein", "rein", "lookup: writes beyond the batch"),
    Mutant(KERNELS, "min(__float2int_rd(s), NODES - 2)", "__float2int_rd(s)", "lookup: last node"),
    Mutant(KERNELS, "corner[NODES * QUADS]", "corner[QUADS * 2]", "lookup: wrong corner"),
    Mutant(KERNELS, "sum, u * (1.0f - v)", "sum, v * (1.0f - u)", "lookup: weights exchanged"),
    Mutant(KERNELS, "i < TILE;", "i < TILE - 1;", "lookup: tile not complete"),
    Mutant(KERNELS, "(long long)pair * TILE", "(long long)TILE", "lookup: one table for all"),
    Mutant(COPIES, '"cp.async.commit_group;"', '""', "copies: never committed"),
    Mutant(COPIES, '"cp.async.wait_group %0;"', '"cp.async.commit_group;"', "copies: no waits"),
    Mutant(COPIES, "[%0], [%1], 4, %2;", "[%0], [%1], 4;", "shifted: no zeros"),
    Mutant(KERNELS, "offset = 16; offset > 0", "offset = 8; offset > 0", "row_sums: half a warp"),
    Mutant(KERNELS, "if (lane == 0) partial", "partial", "row_sums: all lanes write"),
    Mutant(KERNELS, "= sum;\n    __syncthreads();", "= sum;", "row_sums: no barrier"),
    Mutant(KERNELS, "lane < warps ?", "lane <= warps ?", "row_sums: a part too many"),
    Mutant(KERNELS, "= 0;\n    __syncwarp();", "= 0;", "positions: no syncwarp"),
    Mutant(KERNELS, "counts[warp][lane] = 0;", "", "positions: counts not cleared"),
    Mutant(
        KERNELS, "__match_any_sync(ALL_LANES, key", "__match_any_sync(0xffff, key", "match: mask"
    ),
    Mutant(KERNELS, "((1u << lane) - 1u)", "((2u << lane) - 1u)", "positions: counts oneself"),
    Mutant(KERNELS, "if (lane >= offset) before", "before", "positions: scan wraps"),
    Mutant(KERNELS, "__syncthreads();\n    if (i < count)", "if (i < count)", "positions: barrier"),
    Mutant(KERNELS, "block_counts[k] = 0;", "", "histogram: not cleared"),
    Mutant(
        KERNELS, "atomicAdd(&block_counts[keys[i]], 1)", "++block_counts[keys[i]]", "shared: plain"
    ),
    Mutant(KERNELS, "atomicAdd(&counts[k], b", "counts[k] += (b", "histogram: plain in global"),
    Mutant(KERNELS, "values[blockDim.x - 1 - threadIdx.x]", "values[threadIdx.x]", "not reversed"),
    Mutant(KERNELS, "wait_for_phase(&full[tile % 2], tile / 2 % 2);", "", "ring: no wait"),
    Mutant(KERNELS, "&full[tile % 2], tile / 2 % 2)", "&full[tile % 2], tile % 2)", "ring: parity"),
    Mutant(KERNELS, "__syncwarp();\n    if (thr", "if (thr", "ring: leaves before its warp"),
    Mutant(
        KERNELS, "if (threadIdx.x % 32 == 0) arr", "if (threadIdx.x == 0) arr", "ring: one warp"
    ),
    Mutant(KERNELS, "start(&empty[stage], 2);", "start(&empty[stage], 1);", "ring: arrivals"),
    Mutant(KERNELS, "tile % 2], 256)", "tile % 2], 128)", "ring: bytes of half a tile"),
    Mutant(KERNELS, "+ 32, x + tile * 64 + 32, 128", ", x + tile * 64, 128", "ring: a half twice"),
    Mutant(KERNELS, "arrive_with_copies(&full", "arrive(&full", "ring: arrives without copies"),
    Mutant(KERNELS, "__float2half2_rn(a), pairs_x[k]", "pairs_x[k], pairs_x[k]", "axpy: factor"),
]


def trial(sources: Mapping[str, str]) -> None:
    module = emulator.compile(paste(sources), list(CHECKS))
    for order in emulator.ORDERS:
        for check in CHECKS.values():
            check(bind(module, 900, order, seed=10))


def test_all_mutants_are_killed() -> None:
    outcomes = run_mutants(MUTANTS, read_sources(*GOOD_FILES), trial)
    print(*outcomes, sep="\n")
    assert [outcome.mutant for outcome in outcomes] == MUTANTS
    assert not [str(outcome) for outcome in outcomes if outcome.survived]
    assert {outcome.killed_by for outcome in outcomes} == {"fault", "wrong result"}


def test_a_mutant_that_changes_nothing_survives() -> None:
    harmless = Mutant(KERNELS, "NODES = 5, OUTPUTS = 8", "NODES = 5,  OUTPUTS = 8", "a blank")
    (outcome,) = run_mutants([harmless], read_sources(*GOOD_FILES), trial)
    assert outcome.survived


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        ("not there", "", "occurs 0 times"),
        ("float", "int", "times"),
        ("NODES = 5,", "?", "compile"),
    ],
)
def test_a_mutant_that_proves_nothing_is_refused(
    pattern: str, replacement: str, message: str
) -> None:
    mutant = Mutant(KERNELS, pattern, replacement, "useless")
    with pytest.raises(ValueError, match=message):
        run_mutants([mutant], read_sources(*GOOD_FILES), trial)


# ---- compiling -----------------------------------------------------------------------------------


def test_a_second_compilation_reads_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    good_module(900)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "run", fail)
    CHECKS["row_sums"](bind(good_module(900), 900))


def kernel_text(statement: str, parameters: str = "float* y, int n") -> str:
    return f'extern "C" __global__ void kernel({parameters}) {{\n{statement}\n}}\n'


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("y[0] = unknown;", r"mine\.cu:2.*undeclared identifier 'unknown'"),
        ("atomicAdd(y, 1.0f);", "no floating-point atomics"),
        ("__shared__ int count = 3; y[0] = count++;", "cannot have an initial value"),
        ('asm volatile("bar.sync 0;");', "no translation of PTX bar.sync 0"),
        ('asm("cp.async.ca.shared.global [%0], [%1], 5;"::"r"(n), "l"(y));', "size of cp.async"),
    ],
)
def test_text_that_does_not_compile(statement: str, message: str) -> None:
    with pytest.raises(emulator.BuildError, match=f"(?s){message}"):
        emulator.compile(kernel_text(statement), ["kernel"], file="mine.cu")


@pytest.mark.parametrize("call", ["__reduce_add_sync(~0u, n)", 'asm("cp.async.wait_all;")'])
def test_what_older_architectures_lack_does_not_compile(call: str) -> None:
    text = kernel_text(f"{call};")
    emulator.compile(text, ["kernel"], arch=800)
    with pytest.raises(emulator.BuildError, match=r"undeclared|no member"):
        emulator.compile(text, ["kernel"], arch=750)


def test_ptx_in_a_branch_not_taken_is_no_error() -> None:
    statement = '#if __CUDA_ARCH__ >= 900\nasm("wgmma.fence;");\n#endif\ny[0] = n;'
    emulator.compile(kernel_text(statement), ["kernel"], arch=800)
    with pytest.raises(emulator.BuildError, match="wgmma"):
        emulator.compile(kernel_text(statement), ["kernel"], arch=900)


def test_inline_ptx_keeps_line_numbers_and_operands() -> None:
    text = 'a;\nasm volatile(\n"cp.async.cg.shared.global [%0], "\n"[%1], 16;" :: "r"(f(x, ":")),\n'
    translated = inline_ptx.translate(text + '"l"(p::q) : "memory");\nb;')
    first, call, *rest = translated.split("\n")
    assert (first, rest) == ("a;", ["", "", ";", "b;"])
    assert 'emulator::ptx_cp_async((f(x, ":")), (const void*)((p::q)), 16, 16);' in call


def test_dynamic_shared_memory_may_come_out_of_a_macro_or_a_template() -> None:
    text = """
        #define DYNAMIC(T, name) extern __shared__ __align__(16) T name[]
        template <class T, int N> __device__ T* scratch() { __shared__ T values[N]; return values; }
        extern "C" __global__ void first(float* y) {
            DYNAMIC(float, floats);
            floats[threadIdx.x] = 1.0f;
            scratch<float, 8>()[threadIdx.x] = 2.0f;
            y[threadIdx.x] = floats[threadIdx.x] + scratch<float, 8>()[threadIdx.x];
        }
        extern "C" __global__ void second(float* y) {
            DYNAMIC(double, doubles);
            doubles[threadIdx.x] = scratch<double, 8>()[threadIdx.x] = 2.0;
            y[threadIdx.x] = doubles[threadIdx.x];
        }
    """
    module = emulator.compile(text, ["first", "second"])
    assert module.static_shared_bytes == 8 * 4 + 8 * 8
    y = np.zeros(8, np.float32)
    module.launch("first", (1, 1, 1), (8, 1, 1), [y], 8 * 4)
    np.testing.assert_array_equal(y, 3)
    module.launch("second", (1, 1, 1), (8, 1, 1), [y], 8 * 8)
    np.testing.assert_array_equal(y, 2)
    with pytest.raises(emulator.KernelFault, match="dynamic shared memory, which has 60 bytes"):
        module.launch("second", (1, 1, 1), (8, 1, 1), [y], 60)


# ---- launching -----------------------------------------------------------------------------------

ONE = (1, 1, 1)


def simple_module(statement: str = "", parameters: str = "float* y, int n") -> emulator.Module:
    return emulator.compile(kernel_text(statement, parameters), ["kernel"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([np.zeros(1, np.float32), 1], "argument 1 of kernel must be a NumPy scalar of int32"),
        ([np.zeros(1, np.float32), 1.0], "not float"),
        ([np.zeros(1, np.float32), np.int64(1)], "not int64 scalar"),
        ([np.zeros(1, np.float32), np.uint32(1)], "not uint32 scalar"),
        ([np.zeros(1, np.float32), np.zeros(1, np.int32)], "not ndarray"),
        ([np.zeros(1, np.float64), np.int32(1)], "array of float32, not of float64"),
        ([np.float32(0), np.int32(1)], "must be an array, not float32 scalar"),
        ([np.uint64(1), np.int32(1)], "must be an array, not uint64 scalar"),
        ([None, np.int32(1)], "must be an array, not NoneType"),
        ([np.zeros(1, np.float32)], "takes 2 arguments, got 1"),
    ],
)
def test_arguments_that_cupy_would_misunderstand_are_refused(
    arguments: list[Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        simple_module().launch("kernel", ONE, ONE, arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": (0, 1, 1)},
        {"grid": (1, 65536, 1)},
        {"block": (1025, 1, 1)},
        {"block": (1, 1, 65)},
        {"block": (32, 0, 1)},
        {"shared_bytes": -1},
        {"shared_bytes": 227 * 1024 + 1},
        {"order": "sorted"},
    ],
    ids=str,
)
def test_a_launch_that_cuda_would_refuse_is_refused(wrong: dict[str, Any]) -> None:
    launch = {"grid": ONE, "block": ONE, "args": [np.zeros(1, np.float32), np.int32(1)], **wrong}
    with pytest.raises(ValueError, match="|".join(wrong)):
        simple_module().launch("kernel", **launch)


def test_every_scalar_type_arrives() -> None:
    types = {
        "bool": np.bool_(True),
        "int": np.int32(-2),
        "unsigned": np.uint32(2**32 - 3),
        "long long": np.int64(-(2**40)),
        "unsigned long long": np.uint64(2**63),
        "float": np.float32(0.1),
        "double": np.float64(0.1),
    }
    named = {f"v{i}": kind for i, kind in enumerate(types)}
    parameters = ", ".join(["double* y", *(f"{kind} {name}" for name, kind in named.items())])
    module = simple_module(" ".join(f"y[{name[1:]}] = {name};" for name in named), parameters)
    y = np.zeros(len(types))
    module.launch("kernel", ONE, ONE, [y, *types.values()])
    np.testing.assert_array_equal(y, [float(value) for value in types.values()])


def test_positions_in_three_dimensions() -> None:
    statement = """
        const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        y[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
    """
    y = np.zeros(2 * 3 * 4 * 5 * 6 * 7, np.int32)
    module = simple_module(statement, "int* y")
    module.launch("kernel", (2, 3, 4), (5, 6, 7), [y], order="random")
    np.testing.assert_array_equal(
        y.reshape(24, 210), np.arange(24)[:, None] * 1000 + np.arange(210)
    )


@pytest.mark.parametrize("kind", ["transposed", "reversed", "stepped", "broadcast"])
def test_an_array_is_an_address_and_strides_are_arguments(kind: str) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = {
        "transposed": base.T,
        "reversed": base[::-1, ::-1],
        "stepped": base[1::2, ::3],
        "broadcast": np.broadcast_to(base[:1], (3, 6)),
    }[kind]
    module = simple_module(
        "const int i = threadIdx.y, j = threadIdx.x;"
        "y[i * (int)blockDim.x + j] = x[i * rows + j * columns];",
        "const float* x, float* y, long long rows, long long columns",
    )
    y = np.full(x.shape, np.nan, np.float32)
    rows, columns = (np.int64(stride // 4) for stride in x.strides)
    module.launch("kernel", ONE, (x.shape[1], x.shape[0], 1), [x, y, rows, columns])
    np.testing.assert_array_equal(y, x)


def test_arguments_may_share_memory_as_on_a_gpu() -> None:
    module = simple_module("y[threadIdx.x] = 2 * x[threadIdx.x];", "const float* x, float* y")
    memory = np.arange(10, dtype=np.float32)
    module.launch("kernel", ONE, (10, 1, 1), [memory, memory])
    np.testing.assert_array_equal(memory, 2 * np.arange(10))
    with pytest.raises(emulator.KernelFault, match="argument 0 and argument 1"):
        module.launch("kernel", ONE, (9, 1, 1), [memory[:-1], memory[1:]])


def test_raw_memory_fits_every_pointer() -> None:
    module = simple_module("y[threadIdx.x] = make_float4(1, 2, 3, 4);", "float4* y")
    memory = np.zeros(32, np.uint8)
    module.launch("kernel", ONE, (2, 1, 1), [memory])
    np.testing.assert_array_equal(memory.view(np.float32), [1, 2, 3, 4] * 2)


def test_an_array_that_is_read_only_must_not_be_written() -> None:
    module = simple_module("y[0] = n;")
    y = np.zeros(1, np.float32)
    module.launch("kernel", ONE, ONE, [y, np.int32(7)])
    assert y[0] == 7
    y.flags.writeable = False
    with pytest.raises(emulator.KernelFault, match="argument 0, which is read-only"):
        module.launch("kernel", ONE, ONE, [y, np.int32(8)])


def test_an_empty_array_and_null_hold_nothing() -> None:
    module = simple_module("if (n) y[0] = x == nullptr;", "const void* x, float* y, int n")
    empty = np.zeros((0, 3), np.float32)
    module.launch("kernel", ONE, ONE, [np.uint64(0), empty, np.int32(0)])
    with pytest.raises(emulator.KernelFault, match="out-of-bounds"):
        module.launch("kernel", ONE, ONE, [np.uint64(0), empty, np.int32(1)])


def test_offsets_beyond_32_bits_are_not_wrapped() -> None:
    module = simple_module("y[(long long)n << 31] = 1.0f;")
    with pytest.raises(emulator.KernelFault, match=rf"at byte \+{2**33} of argument 0"):
        module.launch("kernel", ONE, ONE, [np.zeros(1, np.float32), np.int32(1)])


def test_syncwarp_orders_memory_through_a_third_lane() -> None:
    """Lanes 0 and 2 never meet, but what 0 wrote before meeting 1 is there when 2 has met 1."""
    statement = """
        __shared__ float value;
        const int lane = threadIdx.x;
        if (lane == 0) value = 5.0f;
        if (lane < 2) __syncwarp(3);
        if (lane > 0) __syncwarp(6);
        if (lane == 2) y[0] = value;
    """
    module = simple_module(statement, "float* y")
    for order in emulator.ORDERS:
        y = np.zeros(1, np.float32)
        module.launch("kernel", ONE, (3, 1, 1), [y], order=order)
        assert y[0] == 5


def test_a_lane_may_change_what_others_read_before_syncwarp() -> None:
    """Although it reads the word itself after that, which is what `word += n` begins with."""
    statement = """
        __shared__ int word;
        if (threadIdx.x == 0) word = 1;
        __syncwarp();
        const int before = word;
        __syncwarp();
        if (threadIdx.x == 5) word += 2;
        __syncwarp();
        y[threadIdx.x] = 10 * before + word;
    """
    module = simple_module(statement, "int* y")
    for order in emulator.ORDERS:
        y = np.zeros(32, np.int32)
        module.launch("kernel", ONE, (32, 1, 1), [y], order=order)
        np.testing.assert_array_equal(y, 13)


def test_orders() -> None:
    module = good_module(900)

    def tickets(order: str, seed: int = 0) -> list[int]:
        drawn, following = np.zeros(96, np.int32), np.zeros(1, np.int32)
        module.launch("tickets", (3, 1, 1), (32, 1, 1), [drawn, following], order=order, seed=seed)
        return list(drawn)

    assert tickets("ascending") == list(range(96))
    assert tickets("descending") == list(range(96))[::-1]
    assert tickets("random", 1) == tickets("random", 1)
    assert tickets("random", 1) != tickets("random", 2)


# ---- tools ---------------------------------------------------------------------------------------


def test_missing_tools_skip_here_and_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulator import fixtures  # not earlier: pytest has to import a plugin itself

    fixtures.require_tools()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not found: ziglang"):
        fixtures.require_tools()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="were not run"):
        fixtures.require_tools()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(pytest.fail.Exception, match="not for Linux on aarch64"):
        fixtures.require_tools()
