"""The threads that run the kernels: a pool of our own, in which kernels run without the GIL.

Numba's own threads will not do: each of its threading layers either is unsafe to enter from several
Python threads or ends the process when entered after a fork, and kernels that use them take several
times as long to compile.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

import numba
from numba.np.ufunc import parallel

#: With fewer table elements per thread than this, waking a thread costs more than it saves.
_WORK_PER_THREAD = 500_000

_config: Any = numba.config
_pool = ThreadPoolExecutor(_config.NUMBA_NUM_THREADS, "lmkan_cupy")
_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


os.register_at_fork(after_in_child=_note_fork)


def num_threads() -> int:
    """Return Numba's number of threads; 1 after a fork, which the pool's threads do not survive.

    Numba is only asked once its own threads run: asking earlier would start them and reset the
    number of threads of torch.
    """
    if _is_forked:
        return 1
    is_launched = getattr(parallel, "_is_initialized", False)
    return int(numba.get_num_threads() if is_launched else _config.NUMBA_NUM_THREADS)


def in_ranges(run: Callable[[int, int], None], count: int, *, most: int, work: int) -> None:
    """Call ``run(begin, end)`` for ranges that together make up ``range(count)``.

    The number of threads follows from ``work``, the table elements that all calls touch together.
    No range is longer than ``most``. A thread that is done takes the next range, so that one thread
    that the machine slows down does not hold up the others. Whatever is raised, an interrupt
    (Ctrl-C) included, no thread is at work any more when this returns.
    """
    useful = work // _WORK_PER_THREAD
    threads = 1 if useful < 2 else min(num_threads(), useful)
    if threads == 1 and count <= most:
        if count:
            run(0, count)
        return
    rounds = -(-count // (most * threads))
    length = max(1, -(-count // max(1, rounds * threads)))
    begins = deque(range(0, count, length))
    # A helper holds its lock while it works. One that comes too late finds no range.
    at_work = [Lock() for _ in range(min(threads, len(begins)) - 1)]
    errors: list[BaseException] = []

    def take_ranges() -> None:
        while begins:
            try:
                begin = begins.popleft()
            except IndexError:  # another thread was faster
                return
            run(begin, min(begin + length, count))

    def help_out(own: Lock) -> None:
        with own:
            try:
                take_ranges()
            except BaseException as error:  # for the caller, see below
                begins.clear()
                errors.append(error)

    try:
        for own in at_work:
            with suppress(RuntimeError):  # no new thread, as the interpreter is ending
                _pool.submit(help_out, own)
        take_ranges()
        _wait_for(at_work)
    except BaseException:
        begins.clear()
        _wait_for(at_work)
        raise
    if errors:
        raise errors[0]


def _wait_for(at_work: list[Lock]) -> None:
    """Wait until every lock was free, however often an interrupt comes; then raise that."""
    try:
        while at_work:
            with at_work[-1]:
                at_work.pop()
    except BaseException:
        _wait_for(at_work)
        raise
