"""What this installation can do, and the command that mends what it cannot."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, distributions, version

#: Distribution -> what needs it, and the command that installs it.
_OPTIONAL = {
    "torch": ("lmkan_cupy.adapters.torch and fit", "pip install 'lmkan-cupy[torch]'"),
    "safetensors": ("fit", "pip install 'lmkan-cupy[fit]'"),
    "matplotlib": ("fit and plots", "pip install 'lmkan-cupy[fit]'"),
    "pandas": ("fit", "pip install 'lmkan-cupy[fit]'"),
    "pyarrow": ("fit on Parquet files", "pip install 'lmkan-cupy[fit]'"),
    "tqdm": ("fit", "pip install 'lmkan-cupy[fit]'"),
}


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
    rows["cupy"] = ", ".join(_cupy_distributions()) or "not installed"
    rows["engines"] = "cpu (Numba), for NumPy arrays; CuPy arrays have no engine in this version"
    rows["cpu threads"] = f"{cpu_engine.num_threads()} (set NUMBA_NUM_THREADS to change it)"
    rows["kernel cache"] = f"{cpu_engine.kernel_cache()} (set NUMBA_CACHE_DIR to change it)"
    return rows


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cupy_distributions() -> list[str]:
    names = (each.metadata["Name"] for each in distributions())
    return sorted({f"{name} {version(name)}" for name in names if name.startswith("cupy")})
