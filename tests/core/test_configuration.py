"""`show_config` and `python -m lmkan_cupy info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fresh_process
import numba
import numpy as np
import pytest

from lmkan_cupy import installation
from lmkan_cupy.__main__ import main

SHOW = "import lmkan_cupy; lmkan_cupy.show_config()"
INFO = """
    import runpy, sys
    sys.argv = ["lmkan_cupy", "info", *{arguments}]
    try:
        runpy.run_module("lmkan_cupy", run_name="__main__")
    except SystemExit as end:
        assert not end.code
"""


def test_every_line_has_a_value(tmp_path: Path) -> None:
    """An empty value would leave a line that ends in the spaces of the column."""
    shown = fresh_process.run(SHOW, tmp_path).splitlines()
    assert shown
    assert [line for line in shown if line != line.rstrip()] == []


def test_versions_and_threads(tmp_path: Path) -> None:
    shown = fresh_process.run(SHOW, tmp_path, NUMBA_NUM_THREADS="1")
    for part in (np.__version__, numba.__version__, "NUMBA_NUM_THREADS", " 1 "):
        assert part in shown


def test_what_is_missing_comes_with_its_command(tmp_path: Path) -> None:
    hidden = f"""
        import importlib.metadata as metadata
        found = metadata.version
        def version(name):
            if name == "torch":
                raise metadata.PackageNotFoundError(name)
            return found(name)
        metadata.version = version
        {SHOW}
    """
    (line,) = (
        line
        for line in fresh_process.run(hidden, tmp_path).splitlines()
        if line.startswith("torch")
    )
    assert "missing" in line
    assert "pip install 'lmkan-cupy[torch]'" in line


@pytest.mark.parametrize(
    ("cuda", "text"),
    [(None, ", without CUDA"), ("12.8", ", for CUDA 12.8"), ("13.0", ", for CUDA 13.0")],
)
def test_cuda_majors_of_torch_and_cupy(tmp_path: Path, cuda: str | None, text: str) -> None:
    """With CuPy for CUDA 13, and a stand-in for torch that has only the file of its version."""
    pytest.importorskip("torch")
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('torch was imported')")
    (package / "version.py").write_text(f"cuda = {cuda!r}")
    code = f"""
        from lmkan_cupy import installation
        installation.cupy_distributions = lambda: ["cupy-cuda13x 14.2.0"]
        {SHOW}
    """
    lines = fresh_process.run(code, tmp_path).splitlines()
    (of_torch,) = (line for line in lines if line.startswith("torch "))
    assert of_torch.endswith(text)
    majors = [line for line in lines if line.startswith("cuda majors")]
    assert len(majors) == (cuda == "12.8")
    for line in majors:
        assert "torch is for CUDA 12, CuPy for CUDA 13" in line
        assert "pip uninstall cupy-cuda13x, then pip install 'lmkan-cupy[cuda12]'" in line


def test_info_is_the_configuration(tmp_path: Path) -> None:
    info = fresh_process.run(INFO.format(arguments=[]), tmp_path)
    assert info == fresh_process.run(SHOW, tmp_path)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Rows that `info --plan` prints where there is no GPU."""
    monkeypatch.setattr(installation, "cuda_obstacle", lambda: "no GPU")

    def rows(*sizes: int, dtype: str = "float32") -> dict[str, str]:
        arguments = ["info", "--dtype", dtype, "--plan", *map(str, sizes)]
        monkeypatch.setattr("sys.argv", ["lmkan_cupy", *arguments])
        assert main() == 0
        lines = capsys.readouterr().out.splitlines()
        return {line[:14].strip(): line[15:] for line in lines}

    return rows


def test_plan_of_a_large_batch(plan: Any) -> None:
    rows = plan(512, 512, 40, 2**20)
    assert rows["device"] == "sm_90, 132 multiprocessors (an H100, for want of a device here)"
    assert rows["kernel"] == "forward_ring, 2112 blocks of 512"
    assert rows["tables"] == "packed, 16 outputs wide, 2 in shared memory (215 KB)"
    assert rows["samples"] == "2048 per block, at most 135168 per launch"
    assert rows["pairs"] == "256 per block"
    assert rows["predicted"].endswith(" ms, held by shared memory")
    limits = dict(each.rsplit(" ", 1) for each in rows["limits, ms"].split(", "))
    assert set(limits) == {"shared memory", "L2", "memory"}
    seconds = float(limits["shared memory"]) + float(rows["besides, ms"].split()[0])
    assert float(rows["predicted"].split()[0]) == pytest.approx(seconds, rel=1e-3)
    assert "not a measurement" in rows["note"]


def test_plan_of_a_small_batch(plan: Any) -> None:
    assert plan(512, 512, 16, 1024)["pairs"] == "32 per block, 8 parts"
    assert plan(128, 128, 26, 1024)["tables"] == "in global memory"


@pytest.mark.parametrize(
    ("dtype", "kernel", "bound"),
    [
        ("float32", "forward_ring", "shared memory"),
        ("float16", "forward_ring", "issue"),
        ("bfloat16", "forward_ring", "issue"),
        ("float64", "forward", "memory"),
    ],
)
def test_plan_of_tables_of_other_dtypes(plan: Any, dtype: str, kernel: str, bound: str) -> None:
    rows = plan(512, 512, 16, 2**17, dtype=dtype)
    assert rows["kernel"].startswith(f"{kernel}, ")
    assert rows["predicted"].endswith(f"held by {bound}")


def test_plan_of_no_samples(plan: Any) -> None:
    rows = plan(512, 512, 16, 0)
    assert rows["kernel"] == "none: there is nothing to do for 0 samples"
    assert set(rows) == {"device", "kernel"}


def test_plan_refuses_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lmkan_cupy", "info", "--plan", "4", "4", "8", "-1"])
    assert main() == 2
    assert "batch must be at least 0, got -1" in capsys.readouterr().err
