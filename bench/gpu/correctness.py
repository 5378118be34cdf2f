"""The tests that need a GPU, and a few of them under compute-sanitizer where it is installed."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: Tools of compute-sanitizer. Its initcheck is not needed: the tests fill all memory with NaN, so
#: they notice memory that is read before it is written.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED = "(TestEveryRowOfThePlan and oracle and float32-float32) or (every_ring and B1100)"


class Failed(Exception):
    """Tests failed; the message is their output."""


def measure() -> dict[str, dict[str, Any]]:
    """Run tests and sanitizers side by side; return how each ended, and its seconds.

    Raises
    ------
    Failed
        If one did not pass.
    """
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    runs: dict[str, tuple[list[str], list[str]]] = {"tests": (workers, [])}
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in SANITIZERS:
            runs[tool] = (
                ["-p", "no:xdist", "-k", SANITIZED],
                [sanitizer, f"--tool={tool}", "--error-exitcode=9"],
            )
    with ThreadPoolExecutor() as pool:
        ended = dict(zip(runs, pool.map(lambda run: _run_pytest(*run), runs.values()), strict=True))
    if failed := [f"{name} failed:\n{text}" for name, (_, text) in ended.items() if text]:
        raise Failed("\n".join([*failed, "nothing was timed"]))
    return {name: result for name, (result, _) in ended.items()}


def _run_pytest(options: list[str], under: list[str]) -> tuple[dict[str, Any], str]:
    """Run the tests that need a GPU, under a sanitizer's command or none.

    Returns their result, and their output if they failed. Warnings are not errors here, for
    libraries may be of other versions than those tested.
    """
    start = time.perf_counter()
    command = [*under, sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    written = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    result = next((line for line in reversed(written) if " in " in line), written[-1])
    return (
        {"result": result, "seconds": round(time.perf_counter() - start, 1)},
        "\n".join([*written, done.stderr]) if done.returncode else "",
    )
