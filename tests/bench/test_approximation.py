"""The experiment with a random network as teacher, with all its students."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import smoke_runs
import torch
from lmkan_cupy.adapters.torch import training
from smoke_runs import untimed

from bench.experiments import approximation
from bench.experiments.models import FEW_LEARNING_RATES, MLP


@pytest.mark.long
def test_every_student_is_trained_with_its_learning_rates_and_seeds(tmp_path: Path) -> None:
    results = smoke_runs.run(approximation, tmp_path)
    planned = approximation.students("smoke", 4, pykan=False)
    runs = [(run["model"], run["rate"], run["seed"]) for run in results["runs"]]
    assert len(set(runs)) == len(runs) == sum(len(model.learning_rates) + 2 for model in planned)
    assert set(results["rows_per_second"]) == {model.label for model in planned}
    for model in planned:
        runs = [run for run in results["runs"] if run["model"] == model.label]
        assert {run["rate"] for run in runs if run["seed"] == 0} == set(model.learning_rates)
        tried = runs[: len(model.learning_rates)]
        chosen = min(tried, key=lambda run: run["validation_loss"])["rate"]
        assert [run["rate"] for run in runs if run["seed"] > 0] == [chosen] * 2
        assert {run["flops"] for run in runs} == {model.flops()}
        assert len({run["errors"]["relative RMSE"] for run in runs}) == len(runs)
    assert min(run["errors"]["relative RMSE"] for run in results["runs"]) < 0.6


@pytest.mark.long
def test_pykan_is_trained_too_if_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside an MLP; a linear layer with the interface of pykan's layer stands in for it."""

    class KANLayer(torch.nn.Linear):
        def __init__(self, in_dim: int, out_dim: int, *, num: int, grid_range: Any) -> None:
            assert (num, grid_range) == (8, (-training.BOUND, training.BOUND))
            super().__init__(in_dim, out_dim)

        def forward(self, x: torch.Tensor) -> Any:
            assert x.abs().max() <= training.BOUND
            return super().forward(x), None, None, None

    for name, attributes in (("kan", {}), ("kan.KANLayer", {"KANLayer": KANLayer})):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(approximation, "HIDDEN", {"smoke": {MLP: [(6,)]}})
    monkeypatch.setattr(approximation, "variants", lambda sizes: [])
    alone = untimed(smoke_runs.run(approximation, tmp_path))
    smoke_runs.path(approximation, tmp_path).unlink()
    both = smoke_runs.run(approximation, tmp_path, "--pykan")
    runs = [run for run in both["runs"] if run["kind"] == "pykan"]
    assert [run for run in untimed(both) if run["kind"] != "pykan"] == alone
    assert {run["model"] for run in runs} == {"pykan 4-2-1 G=8"}
    assert {run["flops"] for run in runs} == {5 * (4 * 2 + 2 * 1)}
    assert len(runs) == len(FEW_LEARNING_RATES) + 2
    assert "pykan 4-2-1 G=8" in both["rows_per_second"]


def test_the_teacher_is_standardised_and_always_the_same() -> None:
    setting = approximation.SETTINGS["smoke"]
    cpu = torch.device("cpu")
    teacher, same = (approximation.Teacher(setting, cpu) for _ in range(2))
    x, y = teacher.rows(20_000, torch.Generator().manual_seed(3))
    assert abs(float(y.mean())) < 0.2  # standardised by 256 rows
    assert 0.8 < float(y.std()) < 1.2
    torch.testing.assert_close(same(x), y, rtol=0, atol=0)
