"""Progress bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import math
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("tqdm")

from lmkan_cupy.adapters.torch.training import progress_bar


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What a bar of 13 steps writes, one in each second."""
    with progress_bar(total=13, desc="lmKAN", maxinterval=math.inf) as bar:
        for second in range(1, 14):
            bar._time = lambda now=bar.start_t + second: now
            bar.set_postfix(loss=second, refresh=False)
            bar.update()
    return capsys.readouterr().err


def test_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    err = shown(capsys)
    assert "\r" not in err
    assert [line.split("|")[0] for line in err.splitlines()] == [
        "lmKAN:   0%",
        "lmKAN:  38%",
        "lmKAN:  77%",
        "lmKAN: 100%",
    ]
    assert "13/13" in err.splitlines()[-1]
    assert "loss=13" in err.splitlines()[-1]


def test_one_line_that_changes_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    err = shown(capsys)
    assert err.count("\r") == 15  # at the beginning, at every step and at the end
    assert err.count("\n") == 1
