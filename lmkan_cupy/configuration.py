"""`show_config`: what this installation can do, and the command that adds what it cannot do."""

import platform
import sys
from importlib import import_module

from . import installation

_REQUIRED = ("numpy", "numba", "safetensors")

#: Distribution -> what needs it, and the extra that installs it.
_OPTIONAL = {
    "torch": ("lmkan_cupy.adapters.torch and fit", "torch"),
    "jax": ("lmkan_cupy.adapters.jax", "jax"),
    "scikit-learn": ("lmkan_cupy.adapters.sklearn and fit", "sklearn"),
    "matplotlib": ("fit and plots", "fit"),
    "pandas": ("fit", "fit"),
    "pyarrow": ("fit on Parquet files", "fit"),
    "filelock": ("fit", "fit"),
    "tqdm": ("lmkan_cupy.adapters.sklearn and fit", "sklearn"),
}


def show_config() -> None:
    """Print versions, engines, threads, cache folder, and what is missing with its remedy."""
    for name, value in _configuration().items():
        print(f"{name:<14} {value}")


def _configuration() -> dict[str, str]:
    rows = {
        "lmkan-cupy": installation.installed_version("lmkan-cupy")
        or "run from a checkout, not installed",
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        **{name: installation.installed_version(name) or "missing" for name in _REQUIRED},
    }
    for name, (purpose, extra) in _OPTIONAL.items():
        remedy = installation.install_extra(extra)
        rows[name] = (
            installation.installed_version(name) or f"missing, needed for {purpose}: {remedy}"
        )
    if (torch_cuda := installation.torch_cuda()) is not None:
        rows["torch"] += f", for CUDA {torch_cuda}" if torch_cuda else ", without CUDA"
    rows["cupy"] = ", ".join(installation.cupy_distributions()) or "not installed"
    if difference := installation.difference_of_cuda_majors():
        rows["cuda majors"] = difference
    no_cpu_engine = installation.cpu_obstacle()
    rows["cpu engine"] = no_cpu_engine or "ready, for NumPy arrays"
    obstacle = installation.cuda_obstacle()
    rows["cuda engine"] = obstacle or "ready, for CuPy arrays"
    if obstacle is None:
        rows |= _cuda_configuration()
    if no_cpu_engine is None:
        rows |= _cpu_configuration()
    return rows


def _cpu_configuration() -> dict[str, str]:
    """Rows for a CPU engine that is ready: threads, cache."""
    from .cpu_engine import compiling, threads  # here, because importing Numba is slow

    return {
        "cpu threads": f"{threads.num_threads()} (set NUMBA_NUM_THREADS to change it)",
        "kernel cache": f"{compiling.cache_folder()} (set NUMBA_CACHE_DIR to change it)",
    }


def _cuda_configuration() -> dict[str, str]:
    """Rows for a CUDA engine that is ready: versions, devices, headers, cache."""
    from .cuda_engine import kernel_cache

    cupy = import_module("cupy")
    runtime = cupy.cuda.runtime
    rows = {
        "cuda": f"CuPy {installation.dotted(cupy.cuda.get_local_runtime_version())}, "
        f"driver {installation.dotted(runtime.driverGetVersion())}"
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
    rows["cuda cache"] = kernel_cache.cache_folder()
    return rows


def _cuda_headers() -> str | None:
    """Return the folder where CuPy finds CUDA's headers."""
    folder: str | None = import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
    return folder
