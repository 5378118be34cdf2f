"""The JSON files in ``bench/results``: measurements, and the circumstances they were taken in."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

RESULTS = Path(__file__).parents[1] / "results"

#: The name of our layers in results.
OURS = "lmkan_cupy"

#: Circumstances that must be the same for a run to resume an earlier one.
_DECISIVE = ("commit", "versions", "gpu", "peer")


def circumstances() -> dict[str, Any]:
    """Return machine, versions, commit and date."""
    return {
        "cpu": f"{_cpu_model()} ({llvmlite.binding.get_host_cpu_name()})",
        "cores": os.cpu_count(),
        "threads": numba.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "numba", "torch")},
        "commit": commit_of(Path(__file__).parent),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def commit_of(folder: Path) -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,  # a source archive has no commit
    )
    return described.stdout.strip() or "unknown"


def resumed(
    bench: str, circumstances: Mapping[str, Any], path: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Return where a GPU benchmark writes its results, and the results to resume from.

    Parameters
    ----------
    bench : str
        The name of the benchmark.
    circumstances : dict
        With the "gpu". Only results of the same commit, versions, GPU, driver and package of the
        authors (or none) are resumed.
    path : Path, optional
        By default the newest file with such results, or a new one with today's date.

    Raises
    ------
    ValueError
        If ``path`` holds results of other circumstances.
    """
    new = {"bench": bench, "circumstances": dict(circumstances), "cases": []}
    device = re.sub(r"[^a-z0-9]+", "-", circumstances["gpu"]["name"].lower())
    name = f"{bench}-{device.removeprefix('nvidia-')}"
    if path is None:
        for each in sorted(RESULTS.glob(f"{name}-*.json"), key=_modified, reverse=True):
            if not _differences(read(each), circumstances):
                return each, read(each)
        today = f"{name}-{datetime.now(timezone.utc):%Y-%m-%d}"
        paths = (RESULTS / f"{today}{f'-{number}' * (number > 1)}.json" for number in count(1))
        path = next(each for each in paths if not each.exists())
    results = read(path)
    if results and (different := _differences(results, circumstances)):
        raise ValueError(f"{path} has another {' and '.join(different)}: choose another --json")
    return path, results or new


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _differences(results: Mapping[str, Any], circumstances: Mapping[str, Any]) -> list[str]:
    """Return the circumstances that keep a run from resuming these results."""
    before = results.get("circumstances", {})
    return [name for name in _DECISIVE if before.get(name) != circumstances.get(name)]


def read(path: Path) -> dict[str, Any]:
    """Return what was written there; nothing if there is no file."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def of_same_setting(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Return the results of an experiment to resume from, or ``new`` where there is no file.

    Raises
    ------
    ValueError
        If there are results of another "setting".
    """
    results = read(path) or new
    if results["setting"] != new["setting"]:
        raise ValueError(
            f"{path} holds results of the setting {results['setting']}, "
            f"but this is {new['setting']}: move the file away"
        )
    return results


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results in one step: an interruption leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(path)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
