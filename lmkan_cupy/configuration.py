"""What this installation can do, and the command that mends what it cannot."""

import os
import platform
import re
import runpy
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path

#: Distribution -> what needs it, and the command that installs it.
_OPTIONAL = {
    "torch": ("lmkan_cupy.adapters.torch and fit", "pip install 'lmkan-cupy[torch]'"),
    "jax": ("lmkan_cupy.adapters.jax", "pip install 'lmkan-cupy[jax]'"),
    "scikit-learn": ("lmkan_cupy.adapters.sklearn and fit", "pip install 'lmkan-cupy[sklearn]'"),
    "safetensors": ("fit", "pip install 'lmkan-cupy[fit]'"),
    "matplotlib": ("fit and plots", "pip install 'lmkan-cupy[fit]'"),
    "pandas": ("fit", "pip install 'lmkan-cupy[fit]'"),
    "pyarrow": ("fit on Parquet files", "pip install 'lmkan-cupy[fit]'"),
    "tqdm": ("lmkan_cupy.adapters.sklearn and fit", "pip install 'lmkan-cupy[sklearn]'"),
}

_INSTALL_CUPY = "pip install 'lmkan-cupy[cuda13]', or [cuda12] for an older NVIDIA driver"


def show_config() -> None:
    """Print versions, engines, threads, cache folder, and what is missing with its remedy."""
    for name, value in _configuration().items():
        print(f"{name:<14} {value}")


def _configuration() -> dict[str, str]:
    from . import cpu_engine  # on demand: Numba is slow to import

    rows = {
        "lmkan-cupy": installed_version("lmkan-cupy") or "run from a checkout, not installed",
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "numpy": installed_version("numpy") or "",
        "numba": installed_version("numba") or "",
    }
    for name, (purpose, command) in _OPTIONAL.items():
        rows[name] = installed_version(name) or f"missing, needed for {purpose}: {command}"
    if (torch_cuda := _torch_cuda()) is not None:
        rows["torch"] += f", for CUDA {torch_cuda}" if torch_cuda else ", without CUDA"
    rows["cupy"] = ", ".join(_cupy_distributions()) or "not installed"
    if difference := _difference_of_cuda_majors():
        rows["cuda majors"] = difference
    rows["cpu engine"] = "ready, for NumPy arrays"
    obstacle = cuda_obstacle()
    rows["cuda engine"] = obstacle or "ready, for CuPy arrays"
    if obstacle is None:
        rows |= _cuda_configuration()
    rows["cpu threads"] = f"{cpu_engine.num_threads()} (set NUMBA_NUM_THREADS to change it)"
    rows["kernel cache"] = f"{cpu_engine.kernel_cache()} (set NUMBA_CACHE_DIR to change it)"
    return rows


def cuda_obstacle() -> str | None:
    """Return what keeps the CUDA engine from running, with the command that mends it, or None."""
    names = [each.partition(" ")[0] for each in _cupy_distributions()]
    if len(names) > 1:
        return (
            f"{len(names)} distributions of CuPy are installed and spoil each other: "
            f"pip uninstall {' '.join(names)}, then {_INSTALL_CUPY}"
        )
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        return f"CuPy cannot be imported ({error}): {_INSTALL_CUPY}"
    runtime = cupy.cuda.runtime
    driver, built_for = runtime.driverGetVersion(), cupy.cuda.get_local_runtime_version()
    if driver == 0:
        return "there is no NVIDIA driver: install one from https://www.nvidia.com/drivers"
    if driver // 1000 < built_for // 1000:
        return (
            f"the NVIDIA driver is for CUDA {_dotted(driver)}, CuPy for {_dotted(built_for)}: "
            "install a newer driver from https://www.nvidia.com/drivers, or "
            f"pip uninstall {' '.join(names)}, then pip install "
            f"'lmkan-cupy[cuda{driver // 1000}]'"
        )
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"CUDA finds no device ({error}): see whether nvidia-smi lists one"
    return None


def _torch_cuda() -> str | None:
    """Return the CUDA version of torch, "" where it has none, None where there is no torch.

    Out of the file that torch itself reads: importing torch takes seconds.
    """
    spec = find_spec("torch")
    if installed_version("torch") is None or spec is None or spec.origin is None:
        return None
    return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"] or "")


def _difference_of_cuda_majors() -> str | None:
    """Return what to do where torch and CuPy are for different CUDA majors."""
    of_torch = (_torch_cuda() or "").partition(".")[0]
    of_cupy = re.findall(r"cupy-cuda(\d+)x", " ".join(_cupy_distributions()))
    if not of_torch or not of_cupy or of_cupy == [of_torch]:
        return None
    return (
        f"differ: torch is for CUDA {of_torch}, CuPy for CUDA {' and '.join(of_cupy)}; for one set "
        f"of CUDA libraries, pip uninstall {' '.join(f'cupy-cuda{each}x' for each in of_cupy)}, "
        f"then pip install 'lmkan-cupy[cuda{of_torch}]'"
    )


def _cuda_configuration() -> dict[str, str]:
    """What there is to say of a working CUDA engine."""
    cupy = import_module("cupy")
    runtime = cupy.cuda.runtime
    rows = {
        "cuda": f"CuPy {_dotted(cupy.cuda.get_local_runtime_version())}, "
        f"driver {_dotted(runtime.driverGetVersion())}"
    }
    for index in range(runtime.getDeviceCount()):
        properties = runtime.getDeviceProperties(index)
        rows[f"cuda:{index}"] = (
            f"{properties['name'].decode()}, sm_{properties['major']}{properties['minor']}, "
            f"{properties['sharedMemPerBlockOptin'] // 1024} KB of shared memory per block"
        )
    rows["cuda headers"] = _cuda_headers() or (
        "missing, needed for tables in half precision: "
        f"pip install 'cupy-cuda{cupy.cuda.get_local_runtime_version() // 1000}x[ctk]'"
    )
    rows["cuda cache"] = os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser(
        "~/.cupy/kernel_cache"
    )
    return rows


def _cuda_headers() -> str | None:
    """Return the folder where CuPy finds CUDA's headers."""
    folder: str | None = import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
    return folder


def _dotted(cuda_version: int) -> str:
    """Return 12.4 for 12040."""
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cupy_distributions() -> list[str]:
    names = (each.metadata["Name"] for each in distributions())
    return sorted({f"{name} {version(name)}" for name in names if name.startswith("cupy")})
