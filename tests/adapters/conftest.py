"""Fixtures of the adapters' tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmkan_cupy.__main__ import main


@pytest.fixture
def deterministic_torch() -> Iterator[None]:
    """Allow only deterministic algorithms; torch then also fills new memory with NaN."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `python -m lmkan_cupy` with arguments in `tmp_path`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmkan_cupy", *arguments])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as exit_by_argparse:
            code = int(exit_by_argparse.code or 0)
        return code, *capsys.readouterr()

    return run
