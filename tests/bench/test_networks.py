"""`python -m bench.networks` with two small networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import networks


@pytest.mark.long
def test_everything_is_timed_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(networks, "LMKANS", [(4, 8)])
    monkeypatch.setattr(networks, "MLPS", [4])
    monkeypatch.setattr(networks, "PART", 64)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # which asks for a compiler
    path = tmp_path / "networks.json"
    monkeypatch.setattr(sys, "argv", ["networks", "--quick", "--json", str(path)])
    networks.main()
    results = json.loads(path.read_text())
    ways = {
        *(f"lmKAN 4, G=8 | {way}" for way in (networks.BY_LAYERS, networks.FUSED, networks.HALF)),
        *(f"{network} | {networks.ONNX}" for network in ("lmKAN 4, G=8", "MLP 4")),
        *(f"MLP 4 | {way}" for way in (networks.EAGER, networks.COMPILED)),
    }
    assert [(each["batch"], each["threads"]) for each in results["seconds_per_row"]] == [
        *((64, threads) for threads in (1, 2))
    ]
    for each in results["seconds_per_row"]:
        assert each["medians"].keys() == ways
        assert min(each["medians"].values()) > 0
    assert 0 < results["errors"]["lmKAN 4, G=8"][networks.FUSED] < 1e-4
