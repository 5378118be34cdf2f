"""The two forward kernels give the same bits; when kernels are compiled, and what the log says:
`warmup`, the disk cache, folders that cannot be written to.
"""

from __future__ import annotations

import errno
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fresh_process
import numba
import numpy as np
import pytest
from numba.core.caching import IndexDataCacheFile
from problems import DTYPES, Dtypes, Sizes, first_short, make_problem
from special_values import BAD_VALUES, around_knots

import lmkan_cupy
from lmkan_cupy import cpu_engine
from lmkan_cupy.cpu_engine import compiling

#: A single pair, an odd number of features, several tiles of pairs; chunks of every width.
SIZES = [
    Sizes(0, in_features=1, out_features=1, num_grids=3),
    Sizes(0, in_features=2, out_features=2, num_grids=40),
    Sizes(0, in_features=15, out_features=31, num_grids=8),
    Sizes(0, in_features=16, out_features=4, num_grids=5),
    Sizes(0, in_features=19, out_features=7, num_grids=26),
    Sizes(0, in_features=34, out_features=16, num_grids=8),
]


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3, 33, 1000])
def test_both_forward_kernels_give_the_same_bits(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    sizes: Sizes,
    dtypes: Dtypes,
) -> None:
    """The layer, and its derivative along a direction, to which a further layer is added."""
    x, tables, _, ggx, ggt = make_problem(rng, sizes._replace(batch=batch), dtypes)
    special = [*BAD_VALUES.values(), 0.0, -0.0, *around_knots(sizes.num_grids, dtypes.x)]
    chosen = rng.random(x.shape) < 0.1
    x[chosen] = rng.choice(np.asarray(special, dtypes.x), chosen.sum())

    def values(*, gathers: bool) -> list[bytes]:
        monkeypatch.setattr(cpu_engine, "_gathers", lambda x, tables: gathers)
        y = lmkan_cupy.forward(x, tables)
        only_ggx = lmkan_cupy.jvp(ggx, None, x, tables)
        both = lmkan_cupy.jvp(ggx, ggt, x, tables)
        # Which of several kinds of NaN a result is, is not promised.
        return [np.where(np.isnan(each), np.nan, each).tobytes() for each in (y, only_ggx, both)]

    assert values(gathers=True) == values(gathers=False)


SCRIPT = """
    import logging
    import numba.core.event
    import numpy as np
    import lmkan_cupy

    lines = []
    recorder = logging.Handler()
    recorder.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("lmkan_cupy")
    logger.setLevel("INFO")
    logger.addHandler(recorder)

    x, grad_y = np.zeros((3, 5), "float32"), np.zeros((3, 4), "float32")
    tables = lmkan_cupy.init_tables(5, 4, 8)
    with numba.core.event.install_recorder("numba:compile") as compiled:
        {first_call}
    with numba.core.event.install_recorder("numba:compile") as compiled_later:
        {later_calls}
    print(len(compiled.buffer), len(compiled_later.buffer), *lines, sep="\\n")
"""
FORWARD = "lmkan_cupy.forward(x, tables)"
ALL = f"""{FORWARD}
        lmkan_cupy.jvp(x, tables, x, tables)
        lmkan_cupy.backward(grad_y, x, tables)
        lmkan_cupy.backward_backward(x, tables, grad_y, x, tables)
        lmkan_cupy.hessian_penalty_and_grad(tables)
        lmkan_cupy.network_value_and_grad(x, [tables], grad_y=grad_y)
"""


class Report(NamedTuple):
    """How many compilations the first call caused, and later calls; the lines of the log."""

    compiled: int
    compiled_later: int
    log: list[str]


def run(first_call: str, later_calls: str, folder: Path, **options: Any) -> Report:
    code = SCRIPT.format(first_call=first_call, later_calls=later_calls)
    printed = fresh_process.run(code, folder, **options)
    compiled, compiled_later, *log = printed.splitlines()
    return Report(int(compiled), int(compiled_later), log)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cold(cache: Path) -> Report:
    return run("lmkan_cupy.warmup(5, 4, 8)", ALL, cache, NUMBA_CACHE_DIR=str(cache))


@pytest.mark.long
def test_warmup_compiles_all_that_later_calls_need(cold: Report) -> None:
    assert cold.compiled > 0
    assert cold.compiled_later == 0


@pytest.mark.long
def test_compiling_is_logged_once(cold: Report) -> None:
    (line,) = cold.log
    assert "compil" in line


@pytest.mark.long
def test_next_process_compiles_nothing(cache: Path, cold: Report) -> None:
    assert run(FORWARD, ALL, cache, NUMBA_CACHE_DIR=str(cache)) == Report(0, 0, [])


@pytest.mark.long
def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Files take the places of the cache folders, so that not even root can make these folders."""
    package = tmp_path / "lmkan_cupy"
    shutil.copytree(
        fresh_process.ROOT / "lmkan_cupy", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "cpu_engine" / "__pycache__").touch()
    no_folder = tmp_path / "file"
    no_folder.touch()
    no_folders = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(no_folder))
    report = run(FORWARD, FORWARD, tmp_path, package=tmp_path, NUMBA_CACHE_DIR="", **no_folders)
    assert report.compiled > report.compiled_later == 0
    assert ["NUMBA_CACHE_DIR" in line for line in report.log].count(True) == 1


class TestCacheThatFails:
    """A small function in the place of a kernel, with a folder of its own."""

    @pytest.fixture
    def kernel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        """Returns the function as a new process has it: nothing is compiled, nothing logged."""
        file = tmp_path / "doubles.py"
        file.write_text("def double(x):\n    return 2 * x\n")
        spec = importlib.util.spec_from_file_location("doubles", file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

        def kernel() -> Any:
            monkeypatch.setattr(compiling, "_has_warned", False)
            return compiling._kernel(module.double)

        return kernel

    @staticmethod
    def is_compiled(kernel: Any) -> bool:
        """Call it; tell whether it had to be compiled for that."""
        assert kernel(21) == 42
        return not kernel.stats.cache_hits

    @pytest.mark.parametrize("ending", ["nbi", "nbc"])
    @pytest.mark.parametrize("left", [0, 0.5, 0.99])
    def test_truncated_file(
        self,
        kernel: Callable[[], Any],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        ending: str,
        left: float,
    ) -> None:
        assert self.is_compiled(kernel())
        assert not self.is_compiled(kernel())
        (file,) = tmp_path.glob(f"cache/*/*.{ending}")
        file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
        assert not caplog.messages
        assert self.is_compiled(kernel())
        (line,) = caplog.messages
        assert str(file.parent) in line
        assert not self.is_compiled(kernel())  # the file has been replaced

    @pytest.mark.parametrize("ending", ["nbi", "nbc"])
    def test_unreadable_file(
        self,
        kernel: Callable[[], Any],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        ending: str,
    ) -> None:
        """A folder takes its place, which not even root can read or replace as a file."""
        assert self.is_compiled(kernel())
        (file,) = tmp_path.glob(f"cache/*/*.{ending}")
        file.unlink()
        file.mkdir()
        assert self.is_compiled(kernel())
        (line,) = caplog.messages
        assert str(file.parent) in line

    def test_full_disk(
        self,
        kernel: Callable[[], Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", fail)
        one = kernel()
        assert self.is_compiled(one)
        assert one(0.5) == 1
        (line,) = caplog.messages
        assert str(tmp_path / "cache") in line
        assert "No space left" in line


def test_numba_that_must_not_compile(tmp_path: Path) -> None:
    code = """
        import numpy as np
        import lmkan_cupy

        tables = lmkan_cupy.init_tables(4, 3, 8)
        lmkan_cupy.show_config()
        try:
            lmkan_cupy.forward(np.zeros((2, 4), "float32"), tables)
        except RuntimeError as error:
            print(error)
    """
    shown = fresh_process.run(code, tmp_path, NUMBA_DISABLE_JIT="1").splitlines()
    assert "cpu engine     Numba is told not to compile: unset NUMBA_DISABLE_JIT" in shown
    assert shown[-1].startswith("the CPU engine cannot run: Numba is told not to compile")
