"""Python code in a fresh interpreter, where nothing is imported and no thread runs yet."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: torch.compile still uses what torch itself warns of.
TORCH_OF_ITSELF = "ignore:`torch.jit.script:DeprecationWarning"


def run(code: str, folder: Path, *, package: Path = ROOT, **environment: str) -> str:
    """Run `code` in `folder` with the package found in `package`; return what it printed.

    Warnings are errors, as in all tests; a failure shows what the process wrote to stderr.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCH_OF_ITSELF, "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
