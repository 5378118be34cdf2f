"""What an import loads: no package that takes long to load or need not be installed.

Each check can fail.
"""

from __future__ import annotations

from pathlib import Path

import fresh_process
import pytest


def loaded_packages(imports: str, folder: Path) -> set[str]:
    """What is loaded beside Python's own packages and NumPy."""
    code = f"""
        import sys, numpy
        before = set(sys.modules)
        {imports}
        loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        print(*(loaded - sys.stdlib_module_names - {{"numpy"}}))
    """
    return set(fresh_process.run(code, folder).split())


def run_without(package: str, folder: Path) -> None:
    """Evaluate a layer where importing `package` fails, whether it is installed or not."""
    code = f"""
        import sys
        sys.modules[{package!r}] = None
        import lmkan_cupy, numpy
        tables = lmkan_cupy.init_tables(4, 3, 8)
        assert lmkan_cupy.forward(numpy.zeros((2, 4), "float32"), tables).shape == (2, 3)
    """
    fresh_process.run(code, folder)


def test_import_loads_no_other_package(tmp_path: Path) -> None:
    assert loaded_packages("import lmkan_cupy", tmp_path) == {"lmkan_cupy"}


def test_other_packages_would_be_seen(tmp_path: Path) -> None:
    assert loaded_packages("import lmkan_cupy, numba", tmp_path) >= {"lmkan_cupy", "numba"}


@pytest.mark.long
def test_adapters_load_their_own_framework_only(tmp_path: Path) -> None:
    assert loaded_packages("import lmkan_cupy.adapters.array", tmp_path) == {"lmkan_cupy"}
    pytest.importorskip("torch")
    assert "numba" not in loaded_packages("import lmkan_cupy.adapters.torch", tmp_path)
    pytest.importorskip("jax")
    loaded = loaded_packages("import lmkan_cupy.adapters.jax", tmp_path)
    assert {"cupy", "torch", "numba", "sklearn"}.isdisjoint(loaded)


def test_works_without_cupy(tmp_path: Path) -> None:
    run_without("cupy", tmp_path)


def test_needed_package_would_be_missed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="numba"):
        run_without("numba", tmp_path)


def test_public_names(tmp_path: Path) -> None:
    """All names of the interface exist, and `__all__` lists them and no others."""
    code = """
        import lmkan_cupy
        for name in lmkan_cupy.__all__:
            assert callable(getattr(lmkan_cupy, name)), name
        print(*sorted(lmkan_cupy.__all__))
    """
    assert fresh_process.run(code, tmp_path).split() == [
        "backward",
        "backward_backward",
        "conv2d_backward",
        "conv2d_backward_backward",
        "conv2d_forward",
        "conv2d_jvp",
        "evaluate",
        "flops",
        "fold_linear",
        "fold_relu",
        "forward",
        "hessian_penalty",
        "hessian_penalty_and_grad",
        "hessian_penalty_grad",
        "init_tables",
        "jvp",
        "load_network",
        "memory",
        "network_forward",
        "network_value_and_grad",
        "num_parameters",
        "occupancy",
        "refine",
        "show_config",
        "sigma_grid",
        "warmup",
    ]
