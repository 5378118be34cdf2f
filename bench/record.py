"""The circumstances of a measurement, and the JSON files that keep it in ``bench/results``."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

#: The name of our layers in results.
OURS = "lmkan_cupy"


def circumstances() -> dict[str, Any]:
    """Return machine, versions, commit and date."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,  # a source archive has no commit
    )
    return {
        "cpu": f"{_cpu_model()} ({llvmlite.binding.get_host_cpu_name()})",
        "cores": os.cpu_count(),
        "threads": numba.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "numba", "torch")},
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def gpu_circumstances() -> dict[str, str]:
    """Return what ``nvidia-smi`` says of the first CUDA device: name, driver, clocks in MHz."""
    fields = ["name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm"]
    query = f"--query-gpu={','.join(fields)}"
    answer = subprocess.run(
        ["nvidia-smi", "--id=0", query, "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(fields, answer.stdout.strip().split(", "), strict=True))


def gpu_path(bench: str, gpu: Mapping[str, str]) -> Path:
    """Return the file of a bench's results on a GPU, of today."""
    device = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).removeprefix("nvidia-")
    today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    return Path(__file__).parent / "results" / f"{bench}-{device}-{today}.json"


def read(path: Path) -> dict[str, Any]:
    """Return what was written there, nothing where there is no file."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results, at once: whoever interrupts this leaves the file of before."""
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
