"""The emulator catches every planted bug, and its tests notice every broken kernel."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import emulator
import numpy as np
import pytest
from emulator.mutate import changed, with_switches
from good_kernels import CHECKS, GOOD_SOURCES, HERE, bind, paste, read_sources

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")


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
    """For each kernel the marked line and the kind of its fault."""
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
    """In every order; and in at least one of them under its own name and line."""
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
    """This shows that the checks catch it, and not the launch."""
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

COPIES, KERNELS = GOOD_SOURCES
WAIT_AND_BARRIER = "wait_for_copies<0>();\n        __syncthreads();"
COPY_OR_ZERO = (
    'asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(target), "l"(global),\n'
    '                 "r"(source_bytes) : "memory");'
)
THOUGHT_OUT = [
    (KERNELS, WAIT_AND_BARRIER, "__syncthreads();", "lookup: no wait"),
    (KERNELS, WAIT_AND_BARRIER, "wait_for_copies<0>();", "lookup: no barrier"),
    (
        KERNELS,
        WAIT_AND_BARRIER,
        "__syncthreads(); wait_for_copies<0>();",
        "lookup: barrier before wait",
    ),
    (KERNELS, WAIT_AND_BARRIER, "wait_for_copies<1>(); __syncthreads();", "lookup: one copy less"),
    (KERNELS, "pair + 1 < pairs", "pair < pairs", "lookup: copy too many"),
    (
        KERNELS,
        "tiles + pair % 2 * TILE",
        "tiles",
        "lookup: one buffer",
        "tile = tiles + pair % 2 * TILE",
    ),
    (KERNELS, "sample < batch", "true", "lookup: reads beyond", "if (sample < batch) {"),
    (KERNELS, "sample < batch", "true", "lookup: writes beyond", "if (sample < batch) rein"),
    (KERNELS, "min(__float2int_rd(s), NODES - 2)", "__float2int_rd(s)", "lookup: last node"),
    (KERNELS, "corner[NODES * QUADS]", "corner[QUADS * 2]", "lookup: wrong corner"),
    (KERNELS, "u * (1.0f - v)", "v * (1.0f - u)", "lookup: weights exchanged"),
    (KERNELS, "i < TILE", "i < TILE - 1", "lookup: tile not complete"),
    (KERNELS, "(long long)pair * TILE", "(long long)TILE", "lookup: one table for all"),
    (COPIES, 'asm volatile("cp.async.commit_group;");', "", "copies: never committed"),
    (
        COPIES,
        'asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");',
        'asm volatile("cp.async.commit_group;");',
        "copies: no waits",
    ),
    (COPIES, COPY_OR_ZERO, COPY_OR_ZERO.replace(", %2", ""), "shifted: no zeros"),
    (KERNELS, "16", "8", "row_sums: half a warp", "offset = 16; offset > 0"),
    (KERNELS, "lane == 0", "true", "row_sums: all lanes write", "if (lane == 0) partial"),
    (KERNELS, "__syncthreads();", "", "row_sums: no barrier", "= sum;\n    __syncthreads();"),
    (KERNELS, "lane < warps", "lane <= warps", "row_sums: a part too many"),
    (KERNELS, "__syncwarp();", "", "positions: no syncwarp", "= 0;\n    __syncwarp();"),
    (KERNELS, "counts[warp][lane] = 0;", "", "positions: counts not cleared"),
    (KERNELS, "ALL_LANES", "0xffff", "match: mask", "__match_any_sync(ALL_LANES, key"),
    (KERNELS, "(1u << lane) - 1u", "(2u << lane) - 1u", "positions: counts oneself"),
    (KERNELS, "lane >= offset", "true", "positions: scan wraps"),
    (
        KERNELS,
        "__syncthreads();",
        "",
        "positions: no barrier",
        "__syncthreads();\n    if (i < count)",
    ),
    (KERNELS, "block_counts[k] = 0;", "", "histogram: not cleared"),
    (
        KERNELS,
        "atomicAdd(&block_counts[keys[i]], 1);",
        "++block_counts[keys[i]];",
        "histogram: plain in shared memory",
    ),
    (
        KERNELS,
        "atomicAdd(&counts[k], block_counts[k]);",
        "counts[k] += block_counts[k];",
        "histogram: plain in global memory",
    ),
    (KERNELS, "values[blockDim.x - 1 - threadIdx.x]", "values[threadIdx.x]", "not reversed"),
    (KERNELS, "wait_for_phase(&full[tile % 2], tile / 2 % 2);", "", "ring: no wait"),
    (KERNELS, "tile / 2 % 2", "tile % 2", "ring: parity", "&full[tile % 2], tile / 2 % 2)"),
    (KERNELS, "__syncwarp();", "", "ring: leaves before its warp", "__syncwarp();\n    if (thr"),
    (
        KERNELS,
        "threadIdx.x % 32 == 0",
        "threadIdx.x == 0",
        "ring: one warp",
        "if (threadIdx.x % 32 == 0) arr",
    ),
    (KERNELS, "2", "1", "ring: arrivals", "start(&empty[stage], 2);"),
    (KERNELS, "256", "128", "ring: bytes of half a tile", "tile % 2], 256)"),
    (
        KERNELS,
        "copy_bulk(stages[tile % 2] + 32, x + tile * 64 + 32, 128, &full[tile % 2]);",
        "copy_bulk(stages[tile % 2] + 32, x + tile * 64, 128, &full[tile % 2]);",
        "ring: a half twice",
    ),
    (
        KERNELS,
        "arrive_with_copies(&full[tile % 2]);",
        "arrive(&full[tile % 2]);",
        "ring: arrives without copies",
    ),
    (KERNELS, "__float2half2_rn(a)", "pairs_x[k]", "axpy: factor"),
]
MUTANTS = [changed(GOOD_SOURCES, *each) for each in THOUGHT_OUT]


def check_all(mutant: int) -> None:
    text = paste(with_switches(GOOD_SOURCES, MUTANTS))
    module = emulator.compile(text, list(CHECKS))
    for order in emulator.ORDERS:
        for check in CHECKS.values():
            check(bind(module, 900, order, seed=10, mutant=mutant))


@pytest.mark.long
def test_no_mutant_in_force() -> None:
    check_all(emulator.NO_MUTANT)


@pytest.mark.long
@pytest.mark.parametrize("mutant", range(len(MUTANTS)), ids=[each.description for each in MUTANTS])
def test_mutant_is_noticed(mutant: int) -> None:
    with pytest.raises(AssertionError):
        check_all(mutant)
