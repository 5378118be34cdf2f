"""Runs of experiments at their smallest scale, for the tests of bench/experiments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.experiments import experiment


def run(module: Any, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run an experiment's command, with its results in a folder; return what it wrote there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "RESULTS", folder)
        patch.setattr(sys, "argv", ["experiment", *arguments])
        module.main()
    return read(module, folder)


def path(module: Any, folder: Path) -> Path:
    name = module.__name__.rpartition(".")[2]
    return folder / f"{name}-smoke-cpu.json"


def read(module: Any, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path(module, folder).read_text())
    return results


def untimed(results: dict[str, Any], runs: str = "runs") -> list[dict[str, Any]]:
    """Return the runs without the times that they took."""
    times = ("seconds", "cpu_seconds", "rows_per_second")
    return [{key: run[key] for key in run if key not in times} for run in results[runs]]


def made_up_molecules(rows: int = 300) -> dict[str, Any]:
    """Return arrays as the generator writes them, with a sum over pairs as the energy."""
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(rows, 5, 3))
    positions[:, 0] = 0
    between = positions[:, :, None] - positions[:, None]
    energies = -np.exp(-(between**2).sum(axis=-1)).sum(axis=(1, 2))
    forces = -4 * (between * np.exp(-(between**2).sum(axis=-1))[..., None]).sum(axis=2)
    return {
        "positions": positions.astype(np.float32),
        "energies": energies,
        "forces": forces.astype(np.float32),
        "metadata": "{}",
    }
