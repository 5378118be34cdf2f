"""What is installed, and what keeps an engine from running, with the command that fixes it.

It imports nothing of this package, so every module may import it.
"""

import re
import runpy
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def install_extra(extra: str) -> str:
    """Return the command that adds an extra of this package, which is on no index."""
    wheel = f"lmkan_cupy-{installed_version('lmkan-cupy') or 'VERSION'}-py3-none-any.whl"
    return f"pip install '.[{extra}]' in the checkout, or '{wheel}[{extra}]' beside the wheel"


def _install_cupy() -> str:
    return f"{install_extra('cuda13')}; with cuda12 for an older NVIDIA driver"


def cupy_distributions() -> list[str]:
    """Return name and version of every installed distribution of CuPy; two or more conflict."""
    names = (each.metadata["Name"] for each in distributions())
    return sorted({f"{name} {version(name)}" for name in names if name.startswith("cupy")})


def torch_cuda() -> str | None:
    """Return the CUDA version of torch, "" where it has none, None where there is no torch.

    Read from the file that torch itself reads, because importing torch takes seconds.
    """
    spec = find_spec("torch")
    if installed_version("torch") is None or spec is None or spec.origin is None:
        return None
    return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"] or "")


def cpu_obstacle() -> str | None:
    """Return what keeps the CPU engine from running, with its remedy, or None."""
    if import_module("numba").config.DISABLE_JIT:
        return "Numba is told not to compile: unset NUMBA_DISABLE_JIT"
    return None


def cuda_obstacle() -> str | None:
    """Return what keeps the CUDA engine from running, with the command that fixes it, or None."""
    names = [each.partition(" ")[0] for each in cupy_distributions()]
    if len(names) > 1:
        return (
            f"{len(names)} distributions of CuPy are installed and conflict with each other: "
            f"pip uninstall {' '.join(names)}, then {_install_cupy()}"
        )
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        return f"CuPy cannot be imported ({error}): {_install_cupy()}"
    runtime = cupy.cuda.runtime
    driver, built_for = runtime.driverGetVersion(), cupy.cuda.get_local_runtime_version()
    if driver == 0:
        return "there is no NVIDIA driver: install one from https://www.nvidia.com/drivers"
    if driver // 1000 < built_for // 1000:
        return (
            f"the NVIDIA driver is for CUDA {dotted(driver)}, CuPy for {dotted(built_for)}: "
            "install a newer driver from https://www.nvidia.com/drivers, or "
            f"pip uninstall {' '.join(names)}, then {install_extra(f'cuda{driver // 1000}')}"
        )
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"CUDA finds no device ({error}): see whether nvidia-smi lists one"
    return None


def difference_of_cuda_majors() -> str | None:
    """Return what to do where torch and CuPy are for different CUDA major versions, else None."""
    of_torch = (torch_cuda() or "").partition(".")[0]
    of_cupy = re.findall(r"cupy-cuda(\d+)x", " ".join(cupy_distributions()))
    if not of_torch or not of_cupy or of_cupy == [of_torch]:
        return None
    return (
        f"differ: torch is for CUDA {of_torch}, CuPy for CUDA {' and '.join(of_cupy)}; for one set "
        f"of CUDA libraries, pip uninstall {' '.join(f'cupy-cuda{each}x' for each in of_cupy)}, "
        f"then {install_extra(f'cuda{of_torch}')}"
    )


def dotted(cuda_version: int) -> str:
    """Return "12.4" for 12040, the form in which CUDA gives its versions."""
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"
