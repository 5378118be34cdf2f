"""`import lmkan_cupy` is quick, loads no heavy package and needs no CuPy; each check can fail."""

from __future__ import annotations

from pathlib import Path

import fresh_process
import pytest

HEAVY = ["cupy", "torch", "numba", "jax", "sklearn", "scipy", "matplotlib", "pandas"]
LIMIT_IN_SECONDS = 0.3


def import_seconds(imports: str, folder: Path) -> float:
    """The fastest of a few runs: the machine may be busy, but never too fast."""
    code = f"""
        import time
        start = time.perf_counter()
        {imports}
        print(time.perf_counter() - start)
    """
    return min(float(fresh_process.run(code, folder)) for _ in range(5))


def heavy_packages(imports: str, folder: Path) -> list[str]:
    code = f"""
        import sys
        {imports}
        print(*(name for name in {HEAVY} if name in sys.modules))
    """
    return fresh_process.run(code, folder).split()


def run_without(package: str, folder: Path) -> None:
    """A forward pass where importing `package` fails, installed or not."""
    code = f"""
        import sys
        sys.modules[{package!r}] = None
        import lmkan_cupy, numpy
        tables = lmkan_cupy.init_tables(4, 3, 8)
        assert lmkan_cupy.forward(numpy.zeros((2, 4), "float32"), tables).shape == (2, 3)
    """
    fresh_process.run(code, folder)


def test_import_is_quick(tmp_path: Path) -> None:
    assert import_seconds("import lmkan_cupy", tmp_path) < LIMIT_IN_SECONDS


def test_slow_import_would_be_seen(tmp_path: Path) -> None:
    slow = f"import lmkan_cupy; time.sleep({LIMIT_IN_SECONDS})"
    assert import_seconds(slow, tmp_path) > LIMIT_IN_SECONDS


def test_import_loads_no_heavy_package(tmp_path: Path) -> None:
    assert heavy_packages("import lmkan_cupy", tmp_path) == []


def test_heavy_import_would_be_seen(tmp_path: Path) -> None:
    assert "numba" in heavy_packages("import lmkan_cupy, numba", tmp_path)


def test_adapters_load_their_own_framework_only(tmp_path: Path) -> None:
    assert heavy_packages("import lmkan_cupy.adapters.array", tmp_path) == []
    pytest.importorskip("torch")
    assert "numba" not in heavy_packages("import lmkan_cupy.adapters.torch", tmp_path)
    pytest.importorskip("jax")
    loaded = heavy_packages("import lmkan_cupy.adapters.jax", tmp_path)
    assert {"cupy", "torch", "numba", "sklearn"}.isdisjoint(loaded)


def test_works_without_cupy(tmp_path: Path) -> None:
    run_without("cupy", tmp_path)


def test_needed_package_would_be_missed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="numba"):
        run_without("numba", tmp_path)


def test_public_names(tmp_path: Path) -> None:
    """All names of the interface are there and listed."""
    code = """
        import lmkan_cupy
        for name in lmkan_cupy.__all__:
            assert callable(getattr(lmkan_cupy, name)), name
        print(*sorted(lmkan_cupy.__all__))
    """
    assert fresh_process.run(code, tmp_path).split() == [
        "backward",
        "backward_backward",
        "evaluate",
        "flops",
        "fold_linear",
        "fold_relu",
        "forward",
        "hessian_penalty",
        "hessian_penalty_and_grad",
        "hessian_penalty_grad",
        "init_tables",
        "memory",
        "num_parameters",
        "occupancy",
        "refine",
        "show_config",
        "sigma_grid",
        "warmup",
    ]
