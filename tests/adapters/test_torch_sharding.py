"""Two processes on the CPU: data parallel, sharded by pairs or by outputs, and checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fresh_process import ROOT

pytest.importorskip("torch")
import two_processes
from lmkan_cupy.adapters.torch import sharding_rules


def torchrun(script: Path, *arguments: object) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(two_processes.PROCESSES), script, *map(str, arguments)),
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """For each process, by the name of the check, what went wrong."""
    folder = tmp_path_factory.mktemp("two-processes")
    torchrun(Path(two_processes.__file__), folder)
    return [json.loads(each.read_text()) for each in sorted(folder.glob("failures-*.json"))]


@pytest.mark.long
@pytest.mark.parametrize("check", [each.__name__ for each in two_processes.CHECKS])
def test_check(failures: list[dict[str, str]], check: str) -> None:
    assert len(failures) == two_processes.PROCESSES
    for of_process in failures:
        assert check not in of_process, of_process[check]


@pytest.mark.parametrize(
    ("processes", "size", "fills"),
    [(2, 1, False), (2, 7, True), (4, 4, True), (4, 5, False), (4, 6, False), (4, 7, True)],
)
def test_no_process_is_left_without_tables(processes: int, size: int, fills: bool) -> None:
    """Four processes get 2, 2, 1 and 0 of 5 outputs, as with `torch.chunk`."""
    mesh = SimpleNamespace(size=lambda: processes)
    tables = SimpleNamespace(mesh=mesh, shape=(3, 7, 7, size))
    assert sharding_rules._fills_all(tables, sharding_rules.Shard(3)) == fills


@pytest.mark.long
def test_example(tmp_path: Path) -> None:
    """The loss of the example falls."""
    printed = torchrun(ROOT / "bench" / "examples" / "distributed.py")
    losses: list[Any] = [float(line.split()[-1]) for line in printed.splitlines()]
    assert losses[-1] < 0.2 * losses[0]
