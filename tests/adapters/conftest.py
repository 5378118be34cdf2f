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


@pytest.fixture(params=["no_grad", "inference_mode", "autocast", "float64", "meta"])
def another_state_of_torch(request: pytest.FixtureRequest) -> Iterator[None]:
    """A mode, or a default dtype or device, that a caller may have set."""
    torch = pytest.importorskip("torch")
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)
    else:
        states = {
            "no_grad": torch.no_grad,
            "inference_mode": torch.inference_mode,
            "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
            "meta": lambda: torch.device("meta"),
        }
        with states[request.param]():
            yield


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
