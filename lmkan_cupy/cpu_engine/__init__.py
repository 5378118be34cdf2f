"""The CPU engine: Numba's kernels run by threads of our own, for NumPy arrays.

Its functions are called by :mod:`lmkan_cupy.functional`, which has checked everything: inputs are
C-contiguous, and outputs, of uninitialised memory, are overwritten whole.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import event
from numba.np.ufunc import parallel

from ..array_library import Array
from . import kernels

_log = logging.getLogger("lmkan_cupy")

#: Below so many table elements per thread, waking the thread costs more than it gives.
_WORK_PER_THREAD = 500_000

#: Samples of one call of a forward kernel: many enough to be worth the call, and for the balance
#: of threads not too many.
_MOST_SAMPLES = 4096


def forward(x: Array, tables: Array, knots: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the layer of ``x`` [B, I] and ``tables`` [P, S, S, O]."""
    _evaluate(x, tables, knots, None, False, out)


def backward(
    grad_y: Array,
    x: Array,
    tables: Array,
    knots: Array,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Overwrite ``grad_x`` [B, I] and ``grad_tables`` [P, S, S, O], where not None."""
    _pull_back(grad_y, x, tables, knots, None, False, grad_x, grad_tables)


def backward_backward(
    ggx: Array | None,
    ggt: Array | None,
    grad_y: Array,
    x: Array,
    tables: Array,
    knots: Array,
    grad_grad_y: Array,
    grad_x: Array,
    grad_tables: Array,
) -> None:
    """Overwrite the three results of :func:`lmkan_cupy.backward_backward`.

    With the layer's derivative in the direction ``ggx`` in place of the layer, they are its forward
    and backward; ``ggt`` adds the forward of the layer with tables ``ggt``, and the ``grad_x`` of
    its backward.
    """
    has_ggx = ggx is not None
    if has_ggx:
        _evaluate(x, tables, knots, ggx, False, grad_grad_y)
        _pull_back(grad_y, x, tables, knots, ggx, False, grad_x, grad_tables)
    else:
        grad_tables.fill(0)
    if ggt is not None:
        _evaluate(x, ggt, knots, None, has_ggx, grad_grad_y)
        _pull_back(grad_y, x, ggt, knots, None, has_ggx, grad_x, None)


def hessian_penalty(
    tables: Array,
    knots: Array,
    scale: float,
    grad: Array | None,
    penalty: Array,
    *,
    accumulate: bool = False,
) -> None:
    """Overwrite ``penalty`` [] with R and ``grad`` [P, S, S, O], where not None, with its gradient.

    That is ``scale dR/dT`` for the roughness R of all functions; with ``accumulate`` it is added.
    """
    words = _stored(tables)
    kernel = _compiled(_penalty_kernel, knots.dtype, words.dtype)
    penalties = np.empty(len(tables))
    grad = _none(knots.dtype, 4) if grad is None else grad
    _in_ranges(
        lambda begin, end: kernel(begin, end, words, knots, scale, accumulate, penalties, grad),
        len(tables),
        most=kernels.PAIR_TILE,
        work=4 * tables.size,
    )
    penalty[...] = penalties.sum()


def warmup(dtype: np.dtype[Any], tables_dtype: np.dtype[Any]) -> None:
    """Compile, or load from the disk cache, what calls with these dtypes need."""
    words = _stored(np.empty(0, tables_dtype))
    for kernel in _KERNELS:
        _compiled(kernel, dtype, words.dtype)


def kernel_cache() -> str:
    """Return the folder that keeps compiled kernels."""
    return _KERNELS[0].stats.cache_path or "none can be written to"


def _evaluate(
    x: Array, tables: Array, knots: Array, ggx: Array | None, accumulate: bool, out: Array
) -> None:
    """Run one of the forward kernels over ranges of samples."""
    tables = _stored(tables)
    gathers = _gathers(x, tables)
    kernel = _compiled(_gather_kernel if gathers else _forward_kernel, x.dtype, tables.dtype)
    direction = _none(x.dtype, 2) if ggx is None else ggx
    _in_ranges(
        lambda begin, end: kernel(begin, end, x, tables, knots, direction, accumulate, out),
        len(x),
        most=_MOST_SAMPLES if gathers else _block_size(knots),
        work=_work(x, tables, locating=16 if gathers else 32),
    )


def _pull_back(
    grad_y: Array,
    x: Array,
    tables: Array,
    knots: Array,
    ggx: Array | None,
    accumulate: bool,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Run the backward kernel over pairs, which share nothing.

    Where there are fewer pairs than threads, ``grad_tables`` is cut by outputs and ``grad_x`` by
    samples instead; then the samples are grouped twice.
    """
    tables = _stored(tables)
    kernel = _compiled(_backward_kernel, x.dtype, tables.dtype)
    pairs, out_features = tables.shape[0], tables.shape[3]
    work, block_size = _work(x, tables), _block_size(knots)
    direction = _none(x.dtype, 2) if ggx is None else ggx
    no_x, no_tables = _none(x.dtype, 2), _none(x.dtype, 4)

    def by_pair(begin: int, end: int) -> None:
        some_x = no_x if grad_x is None else grad_x
        kernel(
            *(begin, end, 0, out_features, block_size),
            *(grad_y, x, tables, knots, direction, accumulate, some_x, grad_tables),
        )

    def tables_by_output(begin: int, end: int) -> None:
        kernel(
            *(0, pairs, begin, end, block_size),
            *(grad_y, x, tables, knots, direction, accumulate, no_x, grad_tables),
        )

    def x_by_sample(begin: int, end: int) -> None:
        assert grad_x is not None
        b = slice(begin, end)
        kernel(
            *(0, pairs, 0, out_features, block_size),
            *(grad_y[b], x[b], tables, knots, direction[b], accumulate, grad_x[b], no_tables),
        )

    if grad_tables is not None and pairs >= num_threads():
        _in_ranges(by_pair, pairs, most=kernels.PAIR_TILE, work=2 * work)
        return
    if grad_tables is not None:
        _in_ranges(tables_by_output, out_features, most=out_features, work=work)
    if grad_x is not None:
        _in_ranges(x_by_sample, len(x), most=_block_size(knots), work=work)


def _stored(tables: Array) -> Array:
    """Return tables as the kernels take them: Numba has no float16, so its words."""
    words: Array = tables.view(np.uint16) if tables.dtype == np.float16 else tables
    return words


def _none(dtype: np.dtype[Any], ndim: int) -> Array:
    return np.empty((0,) * ndim, dtype)


def _gathers(x: Array, tables: Array) -> bool:
    """Whether the forward goes from sample to sample or groups them, which is a matter of time.

    Measured in float32 on one core of an AMD EPYC (Zen 5), 1 MiB L2 per core, for 1 to 256 outputs,
    4 to 40 intervals, 10 to 512 inputs, 16 to 8192 samples. For 8192 samples grouping takes about 2
    times as long up to 16 outputs and 1.2 times at 32, but less where tables of more than some MiB
    come from afar, for it reads them in order. Few samples rarely share a cell: grouping 64 takes
    3 times as long for 16 outputs and still 1 to 1.5 times as long for 128.
    """
    out_features: int = tables.shape[3]
    is_narrow = out_features <= 32 and tables.nbytes <= 2**22
    return is_narrow or len(x) * out_features <= 2**13


def _work(x: Array, tables: Array, *, locating: int = 32) -> int:
    """Return about how many table elements one evaluation touches.

    ``locating`` is what finding the cell of a sample counts as, by default with grouping.
    """
    out_features: int = tables.shape[3]
    return len(x) * len(tables) * (out_features + locating)


def _block_size(knots: Array) -> int:
    """Return how many samples to group: several for a cell, but no more than caches hold."""
    return min(max(1024, 16 * knots.size**2), _MOST_SAMPLES)


# --- Compiling ------------------------------------------------------------------------------------


def _kernel(function: Callable[..., None]) -> Any:
    """Let Numba compile a kernel and keep it on disk, or in memory where it finds no folder."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        _warn_no_cache()
        return numba.njit(nogil=True)(function)


@lru_cache
def _warn_no_cache() -> None:
    _log.warning(
        "no folder can be written to for compiled kernels, so every process compiles them again; "
        "set NUMBA_CACHE_DIR to a folder that can be written to"
    )


_forward_kernel = _kernel(kernels.forward_kernel)
_gather_kernel = _kernel(kernels.gather_kernel)
_backward_kernel = _kernel(kernels.backward_kernel)
_penalty_kernel = _kernel(kernels.penalty_kernel)


class _AnnounceCompilation(event.Listener):
    """Says once that kernels are being compiled, for that takes seconds."""

    def __init__(self, kernels: tuple[Any, ...]) -> None:
        self.kernels = kernels

    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in self.kernels:
            _announce(kernel.stats.cache_path)

    def on_end(self, event: Any) -> None:
        pass


@lru_cache
def _announce(cache_path: str | None) -> None:
    _log.info(
        "compiling kernels for this processor, which takes some seconds, once; kept in %s",
        cache_path or "memory",
    )


_KERNELS = (_forward_kernel, _gather_kernel, _backward_kernel, _penalty_kernel)
event.register("numba:compile", _AnnounceCompilation(_KERNELS))  # type: ignore[no-untyped-call]


def _array(dtype: np.dtype[Any], ndim: int) -> Any:
    return types.Array(numba.from_dtype(dtype), ndim, "C")


@lru_cache
def _compiled(kernel: Any, dtype: np.dtype[Any], tables: np.dtype[Any]) -> Callable[..., None]:
    """The compiled kernel for a dtype of ``x`` and one of ``tables``.

    Called without Numba's look-up by argument types, which costs microseconds per call and would
    compile once more for every combination of read-only arrays.
    """
    index, flag = types.intp, types.boolean
    vector, matrix, table = _array(dtype, 1), _array(dtype, 2), _array(tables, 4)
    grad = _array(dtype, 4)
    arguments = {
        _forward_kernel: (matrix, table, vector, matrix, flag, matrix),
        _gather_kernel: (matrix, table, vector, matrix, flag, matrix),
        _backward_kernel: (
            *(index, index, index, matrix, matrix, table, vector, matrix, flag),
            *(matrix, grad),
        ),
        _penalty_kernel: (table, vector, types.float64, flag, types.float64[::1], grad),
    }[kernel]
    entry: Callable[..., None] = kernel.compile((index, index, *arguments))
    return entry


# --- Threads --------------------------------------------------------------------------------------
# Threads of our own, which wait for the kernels without the GIL: Numba's layers are either not safe
# to enter from several threads or end the process when entered after a fork, and they compile
# several times as long.

_config: Any = numba.config
_pool = ThreadPoolExecutor(_config.NUMBA_NUM_THREADS, "lmkan_cupy")
_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


os.register_at_fork(after_in_child=_note_fork)


def num_threads() -> int:
    """Numba's number of threads; 1 after a fork, which the threads of the pool do not survive.

    Before someone has set it, asking Numba would launch its threads and reset those of torch.
    """
    if _is_forked:
        return 1
    is_launched = getattr(parallel, "_is_initialized", False)
    return int(numba.get_num_threads() if is_launched else _config.NUMBA_NUM_THREADS)


def _in_ranges(run: Callable[[int, int], None], count: int, *, most: int, work: int) -> None:
    """Call ``run(begin, end)`` for ranges that make up ``range(count)``, in threads worth ``work``.

    Ranges have at most the length ``most``. Threads take the next range when they are done with
    one, so that a thread which the machine holds up does not hold up the others.
    """
    threads = max(1, min(num_threads(), work // _WORK_PER_THREAD))
    rounds = -(-count // (most * threads))
    length = max(1, -(-count // max(1, rounds * threads)))
    begins = deque(range(0, count, length))

    def take_ranges() -> None:
        while begins:
            try:
                begin = begins.popleft()
            except IndexError:  # another thread was faster
                return
            run(begin, min(begin + length, count))

    helpers = [_pool.submit(take_ranges) for _ in range(min(threads, len(begins)) - 1)]
    take_ranges()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
