"""Calls from several threads, after a fork, and with other thread counts; the threads of torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fresh_process
import numba
import numpy as np
import pytest
from problems import Problem, Sizes, all_results, make_problem

SIZES = Sizes(batch=9000, in_features=10, out_features=20, num_grids=8)


def results_of(problem: Problem) -> list[bytes]:
    return [result.tobytes() for result in all_results(problem)]


def test_several_python_threads(rng: np.random.Generator) -> None:
    """Eight threads at once, each with its own arguments, give what one thread gives."""
    given = [make_problem(rng, SIZES._replace(out_features=20 + n)) for n in range(8)]
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
def test_thread_count_does_not_change_a_bit(rng: np.random.Generator, sizes: Sizes) -> None:
    problem = make_problem(rng, sizes)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            numba.set_num_threads(threads)
            results.append(results_of(problem))
            assert numba.get_num_threads() == threads
    finally:
        numba.set_num_threads(before)
    assert results[0] == results[1]


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


FORK = """
    import os, warnings
    import numpy as np
    import lmkan_cupy

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: what is tested
    x = np.random.default_rng(0).normal(size=(9000, 10)).astype("float32")
    tables = lmkan_cupy.init_tables(10, 20, 8, rng=0)

    def results():
        y = lmkan_cupy.forward(x, tables)
        return [y, *lmkan_cupy.backward(y, x, tables), lmkan_cupy.hessian_penalty(tables)]

    if {before_fork}:
        expected = results()
    child = os.fork()
    if child == 0:
        got = results()
        if {before_fork}:
            for one, other in zip(got, expected):
                np.testing.assert_array_equal(one, other)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {{status}}"
    results()
"""


@pytest.mark.parametrize("before_fork", [False, True], ids=["not-run-before", "run-before"])
def test_fork(tmp_path: Path, before_fork: bool) -> None:
    """A forked child, like a worker of a data loader, computes the same and does not hang."""
    fresh_process.run(FORK.format(before_fork=before_fork), tmp_path)
