"""`python -m bench.networks --device cuda` without a GPU: on the CPU, with the host's clock."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lmkan_cupy.adapters.torch import LMKAN2DLayer

from bench import networks as command
from bench.gpu import networks
from bench.harness import authors, timing
from lmkan_cupy.cuda_engine import kernel_cache
from lmkan_cupy.cuda_engine.plan import H100

LMKANS = ["layer 8-8, G=8", "layer 16-16, G=8", "lmKAN 16, G=8"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy for CuPy, the CPU for CUDA, small batches; what is captured runs at once."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
        Stream=lambda: stream,
        current_stream=lambda: stream,
        graph=lambda graph: nullcontext(),
        stream=lambda stream: nullcontext(),
    )
    for name, stand_in in {
        "cuda": cuda,
        "cupy": np,
        "DEVICE": "cpu",
        "device_stopwatch": timing.stopwatch,
        "free_memory": lambda: None,
        "describe": lambda: {"name": "NVIDIA Test 9"},
        "cuda_obstacle": lambda: None,
        "BATCHES": [40, 60],
        "SECONDS": 0.0,
        "LMKANS": {name: networks.LMKANS[name] for name in LMKANS},
        "MLPS": [4],
    }.items():
        monkeypatch.setattr(networks, name, stand_in)
    monkeypatch.setattr(authors, "TRIED_SAMPLES", 60)
    monkeypatch.setattr(kernel_cache, "device", lambda: H100)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    theirs = ModuleType("lmKAN")
    theirs.LMKAN2DLayer = LMKAN2DLayer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmKAN", theirs)


@pytest.mark.long
def test_everything_is_timed_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "networks.json"
    arguments = ["--device", "cuda", "--peer", str(tmp_path), "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["networks", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    command.main()
    results = json.loads(path.read_text())
    ours = [networks.FUSED, networks.HALF, networks.BY_LAYERS]
    ways = {
        f"{name} | {how} | {wanted}"
        for names, of_name in (
            (LMKANS, [*ours, networks.AUTHORS]),
            (["MLP 4"], [networks.EAGER, networks.COMPILED]),
        )
        for name in names
        for how in of_name
        for wanted in (networks.ENERGIES, networks.FORCES)
    }
    assert [each["batch"] for each in results["batches"]] == [40, 60]
    for each in results["batches"]:
        assert each["ns per row"].keys() == ways
        assert min(each["ns per row"].values()) > 0
        assert not each["do not run"]
        assert set(each["errors"]) == set(LMKANS)
    assert len(results["targets"]) == 4


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = networks.fused
    monkeypatch.setattr(networks, "fused", lambda *arguments: 1.01 * fused(*arguments))
    with pytest.raises(AssertionError, match="layer 8-8, G=8, fused: off by"):
        networks.measure(40, with_authors=False)


@pytest.mark.long
def test_what_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(LMKAN2DLayer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(sys.modules["lmKAN"], "LMKAN2DLayer", Wrong)
    monkeypatch.setattr(networks, "of_mlp", out_of_memory)
    measured = networks.measure(40, with_authors=True)
    assert measured.do_not_run["MLP 4"] == "OutOfMemoryError: too large"
    assert "is not ours" in measured.do_not_run["lmKAN 16, G=8, authors"]
    assert (LMKANS[0], networks.FUSED, networks.FORCES) in measured.nanoseconds


def test_the_model_meets_the_targets_but_one() -> None:
    """A prediction, not a measurement."""
    predicted = networks.predictions(2**22, H100)
    assert [target.met for target in networks.check(predicted)] == [True, True, False, True]


def test_the_authors_need_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["networks", "--peer", "somewhere"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--peer needs --device cuda" in capsys.readouterr().err
