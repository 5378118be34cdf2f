"""The times of convolutions, at a small size."""

from __future__ import annotations

import pytest

convolutions = pytest.importorskip("bench.harness.convolutions")


def test_times_and_targets() -> None:
    shape = convolutions.Shape(channels=16, size=4, images=2)
    results = convolutions.time_convolutions([shape], seconds=0)
    assert {*results[shape]} == {"forward", "both"}
    whats = [target.what for target in convolutions.check_convolutions(results)]
    assert whats == [f"{shape}, {pass_}: all windows / ours" for pass_ in ("forward", "both")]


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "of_all_windows", lambda layer, images: layer(images) + 1)
    with pytest.raises(RuntimeError, match="16 channels, 4 x 4, N = 2: the convolution differs"):
        convolutions.time_convolutions([convolutions.Shape(16, 4, 2)], seconds=0)
