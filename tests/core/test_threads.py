"""Calls from several threads, after a fork, at the end of a process, and with other thread counts;
what an interrupt leaves; the threads of torch.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import fresh_process
import interrupts
import numpy as np
import pytest
from problems import Problem, Sizes, all_results, first_short, make_problem

from lmkan_cupy import cpu_engine
from lmkan_cupy.cpu_engine import threads

SIZES = Sizes(batch=9000, in_features=10, out_features=20, num_grids=8)


def results_of(problem: Problem) -> list[bytes]:
    return [result.tobytes() for result in all_results(problem)]


@pytest.mark.parametrize("shared", [False, True], ids=["own-arguments", "shared-arguments"])
def test_several_python_threads(rng: np.random.Generator, shared: bool) -> None:
    """Eight threads at once give what one thread gives."""
    given = [make_problem(rng, SIZES._replace(out_features=20 + n)) for n in range(8)]
    if shared:
        given = given[:1] * 8
    expected = [results_of(problem) for problem in given]
    all_ready = Barrier(len(given))

    def work(problem: Problem) -> list[list[bytes]]:
        all_ready.wait()
        return [results_of(problem) for _ in range(5)]

    with ThreadPoolExecutor(len(given)) as pool:
        for repeated, once in zip(pool.map(work, given), expected, strict=True):
            assert all(results == once for results in repeated)


@pytest.mark.parametrize(
    "sizes",
    [SIZES, SIZES._replace(in_features=2, out_features=600)],
    ids=["cut-by-pair", "fewer-pairs-than-threads"],
)
def test_thread_count_does_not_change_a_bit(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, sizes: Sizes
) -> None:
    problem = make_problem(rng, sizes)
    results = []
    for number in (1, 2, 3):
        for module in (threads, cpu_engine):
            monkeypatch.setattr(module, "num_threads", lambda number=number: number)
        results.append(results_of(problem))
    assert results[0] == results[1] == results[2]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "num_threads", lambda: 2)


@pytest.fixture
def sigint_interrupts() -> Iterator[None]:
    """Python's own handler: a process that a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def in_two_ranges(run: Callable[[], None]) -> None:
    """Let two threads call `run`, this one and a helper."""
    threads.in_ranges(lambda begin, end: run(), 2, most=1, work=2 * threads._WORK_PER_THREAD)


@pytest.mark.usefixtures("two_threads", "sigint_interrupts")
class TestWhateverIsRaised:
    """No thread is at work any more when a call has ended: it would go on writing to `out`."""

    def test_an_interrupt_at_any_point(self) -> None:
        at_work: list[int] = []

        def call() -> None:
            helps = Event()

            def run() -> None:
                if threading.current_thread() is threading.main_thread():
                    helps.wait()
                else:
                    at_work.append(1)
                    helps.set()
                    time.sleep(0.002)
                    at_work.pop()

            in_two_ranges(run)

        points = 0
        for _ in interrupts.everywhere(call, threads):
            points += 1
            assert not at_work
        assert points > 100

    def test_more_interrupts_while_it_waits(self) -> None:
        main = threading.main_thread()
        ended = False

        def run() -> None:
            nonlocal ended
            if threading.current_thread() is main:
                Event().wait()
            elif ended:
                return
            for _ in range(3):
                signal.pthread_kill(main.ident or 0, signal.SIGINT)
                time.sleep(0.05)
            ended = True

        with pytest.raises(KeyboardInterrupt):
            in_two_ranges(run)
        assert ended

    def test_an_error_of_a_helper(self) -> None:
        helps = Event()

        def run() -> None:
            if threading.current_thread() is threading.main_thread():
                helps.wait()
            else:
                helps.set()
                raise MemoryError("of the helper")

        with pytest.raises(MemoryError, match="of the helper"):
            in_two_ranges(run)


def test_no_call_leaves_anything_behind(rng: np.random.Generator) -> None:
    problem = make_problem(rng, SIZES._replace(batch=3))
    results_of(problem)
    before = sys.getallocatedblocks()
    for _ in range(1000):
        results_of(problem)
    assert sys.getallocatedblocks() < before + 500


def test_torch_keeps_its_threads(rng: np.random.Generator) -> None:
    """Numba's OpenMP layer would reset them."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    other = before + 1
    torch.set_num_threads(other)
    try:
        results_of(make_problem(rng, SIZES))
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)


PREPARED = """
    import atexit, os, threading, warnings
    import numpy as np
    import lmkan_cupy

    x = np.random.default_rng(0).normal(size=(9000, 10)).astype("float32")
    tables = lmkan_cupy.init_tables(10, 20, 8, rng=0)

    def results():
        y = lmkan_cupy.forward(x, tables)
        return [y, *lmkan_cupy.backward(y, x, tables), lmkan_cupy.hessian_penalty(tables)]

    def check():
        for one, other in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(one, other)
"""
FORK = """
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: what is tested
    if {before_fork}:
        expected = results()
    ended = threading.Event()

    def work():
        while not ended.is_set():
            check()

    at_work = threading.Thread(target=work)
    if {while_computing}:
        at_work.start()
    child = os.fork()
    if child == 0:
        check() if {before_fork} else results()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {{status}}"
    ended.set()
    results()
"""


@pytest.mark.parametrize(
    ("before_fork", "while_computing"),
    first_short([(True, True), (True, False), (False, False)]),
    ids=["while-computing", "run-before", "not-run-before"],
)
def test_fork(tmp_path: Path, before_fork: bool, while_computing: bool) -> None:
    """A forked child, like a worker of a data loader, computes the same and does not hang."""
    fork = FORK.format(before_fork=before_fork, while_computing=while_computing)
    fresh_process.run(PREPARED + fork, tmp_path)


def test_the_end_of_a_process(tmp_path: Path) -> None:
    """Where Python starts no work in other threads any more, a call computes in its own."""
    code = """
    expected = results()

    def outlive():
        threading.main_thread().join()
        check()
        print("outlived")

    @atexit.register
    def at_exit():
        check()
        print("at exit")

    threading.Thread(target=outlive).start()
"""
    printed = fresh_process.run(PREPARED + code, tmp_path, NUMBA_NUM_THREADS="2")
    assert sorted(printed.splitlines()) == ["at exit", "outlived"]
