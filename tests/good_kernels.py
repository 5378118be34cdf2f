"""The emulator's correct kernels, `emulator/good_kernels.cu`: what each should compute.

All values are integers, or small enough multiples of powers of two, that every order of additions
gives the same result: it is compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import emulator
import numpy as np
from numpy.typing import NDArray

HERE = Path(emulator.__file__).parent
Array = NDArray[Any]


def read_sources(*files: str) -> dict[str, str]:
    return {file: (HERE / file).read_text() for file in files}


def paste(sources: Mapping[str, str]) -> str:
    """One text, as `kernel_source` makes it: each file keeps its name and line numbers."""
    return "\n".join(f'#line 1 "{file}"\n{text}' for file, text in sources.items())


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


GOOD_SOURCES = read_sources("async_copy.cuh", "good_kernels.cu")
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
    return emulator.compile(paste(GOOD_SOURCES), list(CHECKS), arch=arch, check=check)


def bind(module: emulator.Module, arch: int, order: str = "ascending", **options: Any) -> Run:
    def launch(*arguments: Any) -> None:
        module.launch(*arguments, order=order, **options)

    return Run(launch, arch)
