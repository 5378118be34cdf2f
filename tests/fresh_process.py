"""Python code in a fresh interpreter, where nothing is imported and no thread runs yet."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code: str, folder: Path, *, package: Path = ROOT, **environment: str) -> str:
    """Run `code` in `folder` with the package found in `package`; return what it printed.

    Warnings are errors, as in all tests; a failure shows what the process wrote to stderr.
    """
    done = subprocess.run(
        [sys.executable, "-Werror", "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
