"""The examples of networks in libraries on JAX."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from fresh_process import ROOT


@pytest.mark.long
@pytest.mark.parametrize("library", ["equinox", "flax"])
def test_loss_falls(library: str) -> None:
    if missing := [each for each in (library, "jax", "optax") if find_spec(each) is None]:
        pytest.skip(f"the example needs pip install {' '.join(missing)}")
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "examples" / f"{library}_network.py"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert losses[-1] < 0.2 * losses[0]
