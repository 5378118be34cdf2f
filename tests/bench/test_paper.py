"""The paper's setting of the experiments: teacher, methane, networks, their order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import first_short
from smoke_runs import made_up_molecules

from bench.experiments import (
    approximation,
    experiment,
    methane,
    methane_data,
    paper_methane,
    paper_teacher,
)
from bench.experiments.paper import PaperLMKAN, PaperMLP, StrongMLP, students
from bench.make_methane import distances

CPU = torch.device("cpu")


def run(module: Any, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run an experiment in the paper's setting, with one learning rate instead of four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.experiments.paper.PILOT_RATES", (1e-2,))
        out = folder / "out.json"
        arguments = ("--setting", "paper", "--data", str(folder), "--out", str(out), *arguments)
        patch.setattr("sys.argv", ["experiment", *arguments])
        module.main()
    results: dict[str, Any] = json.loads(out.read_text())
    return results


@pytest.mark.long
def test_the_teacher(tmp_path: Path) -> None:
    results = run(approximation, tmp_path)
    assert len(np.load(tmp_path / "teacher_4-2x16.npy")) == 3 * paper_teacher.BLOCK
    kinds = {"lmKAN", "MLP", "MLP, SiLU", "lmKAN, own procedure"}
    assert {run["kind"] for run in results["runs"]} == kinds == {*_kinds(results)}
    for run_ in results["runs"]:
        assert 0 < run_["errors"]["MSE / variance"] < 2
        steps, losses = zip(*run_["curve"], strict=True)
        assert steps == tuple(range(1, 21))
        assert min(losses) == pytest.approx(run_["validation_loss"], rel=1e-3)


def _kinds(results: dict[str, Any]) -> list[str]:
    """Return the kinds of the models that were timed."""
    return [model.rsplit(" 4-")[0] for model in results["rows_per_second"]]


@pytest.mark.long
def test_networks_can_be_added(tmp_path: Path) -> None:
    cheap = run(approximation, tmp_path, "--up-to", "64", "--untimed")
    assert {run["kind"] for run in cheap["runs"]} == {"MLP", "MLP, SiLU"}
    assert "rows_per_second" not in cheap
    both = run(approximation, tmp_path)
    assert both["runs"][: len(cheap["runs"])] == cheap["runs"]
    assert len(both["rows_per_second"]) == len(both["runs"]) == 4


@pytest.mark.long
@pytest.mark.parametrize("module", first_short([methane, approximation]))
def test_sweeps(tmp_path: Path, module: Any) -> None:
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    results = run(module, tmp_path, "--sweep")
    kinds = [run["kind"] for run in results["runs"]]
    assert kinds == ["lmKAN, grids", "lmKAN, grids", "lmKAN, penalty 0.0001"]
    assert len({run["parameters"] for run in results["runs"]}) == 3
    assert len({run["flops"] for run in results["runs"]}) == 1


@pytest.mark.long
@pytest.mark.parametrize("inputs", ["distances", "cartesian"])
def test_methane(tmp_path: Path, inputs: str) -> None:
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    results = run(methane, tmp_path, "--inputs", inputs)
    kinds = {"lmKAN", "lmKAN, ReLU first", "MLP", "MLP, SiLU", "lmKAN, own procedure"}
    assert {run["kind"] for run in results["runs"]} == kinds
    assert all(0 < run["errors"]["RMSE / STD"] < 10 for run in results["runs"])
    assert results["setting"]["a row is met"] == round(20 * 64 / 240, 2)


def test_kept_answers_are_those_of_new_rows_and_are_added_to(tmp_path: Path) -> None:
    teacher = paper_teacher.Teacher(paper_teacher.SETTINGS["smoke"], CPU)
    (file,) = [teacher.kept(tmp_path, 1), *tmp_path.glob("*.npy")][1:]
    x, y = teacher.kept(tmp_path, 2)
    again = teacher.kept(tmp_path, 1)
    for block, (inputs, answers) in zip(range(2), teacher.blocks(0), strict=False):
        rows = slice(block * paper_teacher.BLOCK, (block + 1) * paper_teacher.BLOCK)
        torch.testing.assert_close(x[rows], inputs, rtol=0, atol=0)
        torch.testing.assert_close(y[rows], answers, rtol=0, atol=0)
        torch.testing.assert_close(again[1], y[: len(again[1])], rtol=0, atol=0)
        assert len(again[0]) == paper_teacher.BLOCK
    assert len(np.load(file)) == 2 * paper_teacher.BLOCK


def test_rows_are_new_without_a_file() -> None:
    setting = replace(paper_teacher.SETTINGS["smoke"], blocks=None, batch=2**15)
    task = paper_teacher.make_task(setting, None, CPU)
    first = [x for (x, _), _ in zip(task.batches(0), range(4), strict=False)]
    other = [x for (x, _), _ in zip(task.batches(1), range(4), strict=False)]
    rows = torch.cat([*first, *other, task.validation[0], task.test[0]])
    assert len(rows.unique(dim=0)) == len(rows)


def test_the_teacher_needs_a_folder_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, text in (
        (["--setting", "paper"], "--setting paper needs --data"),
        (["--scale", "pilot"], "--scale pilot needs --setting paper"),
        (["--sweep"], "--sweep needs --setting paper"),
    ):
        monkeypatch.setattr("sys.argv", ["experiment", *arguments])
        with pytest.raises(SystemExit):
            approximation.main()
        assert text in capsys.readouterr().err


def test_distances_whose_hydrogens_change_places() -> None:
    """They are the distances of molecules whose hydrogens did."""
    positions = made_up_molecules(4)["positions"]
    columns = methane_data.permuted_columns().numpy()
    orders = [*methane_data.permutations(range(1, 5))]
    assert len({tuple(each) for each in columns.tolist()}) == 24
    for order, each in zip(orders, columns, strict=True):
        permuted = positions[:, [0, *order]]
        np.testing.assert_allclose(distances(permuted), distances(positions)[:, each], rtol=1e-6)
    x = torch.from_numpy(distances(positions))
    rows = methane_data.PermutedRows(x, torch.arange(4.0)[:, None], seed=0, batch=4)
    (first, y), (second, _) = (batch for batch, _ in zip(rows, range(2), strict=False))
    assert not torch.equal(first.sum(1), second.sum(1)) or not torch.equal(first, second)
    for row, number in zip(first, y[:, 0].int().tolist(), strict=True):
        assert any(torch.equal(row, x[number, each]) for each in methane_data.permuted_columns())


def test_flops_are_the_papers() -> None:
    first = PaperLMKAN((32, 32, 32, 1), 12, "relu")
    assert first.flops() == 4160
    assert PaperMLP((32, 1024, 1024, 1)).flops() == 1_082_368
    last = PaperLMKAN((10, 32, 32, 1), 28, "relu_last")
    assert last.flops() == 4128 - 32  # where it also counts a branch of the last layer


@pytest.mark.parametrize("branch", ["relu", "relu_last"])
def test_the_deployed_network_computes_what_was_trained(branch: Any) -> None:
    model = PaperLMKAN((3, 4, 5, 1), 6, branch)
    network = model.build()
    for layer in network:
        layer.layer.tables_weight.fill_(0.3)
    for _ in range(3):
        network(1 + 2 * torch.randn(64, 3))  # moves the statistics
    x = torch.randn(64, 3)
    expected = network.eval()(x)
    torch.testing.assert_close(model.deployed(network)(x), expected, rtol=1e-4, atol=1e-5)


def models(module: Any) -> list[Any]:
    rates = {"lmKAN": 0.1, "MLP": 0.2, "MLP, SiLU": 0.3}
    rates |= {"lmKAN, own procedure": 0.4, "lmKAN, ReLU first": 0.5}
    return students(10, module.KINDS, module.WIDTHS["cpu"], rates)


@pytest.mark.parametrize("module", [paper_methane, paper_teacher])
def test_cheap_networks_come_first_and_narrow_ones_have_more_seeds(module: Any) -> None:
    made = models(module)
    flops = [model.flops() for model in made]
    assert flops == sorted(flops)
    assert {model.kind: model.learning_rates for model in made}["MLP, SiLU"] == (0.3,)
    assert {model.seeds for model in made if "-128-" in model.label} == {1}
    assert {model.seeds for model in made if "-32-" in model.label} == {3}
    strong = [model for model in made if isinstance(model, StrongMLP)]
    assert {model.label.count("-") for model in strong} == {4}


def test_seed_0_of_all_models_comes_before_other_seeds() -> None:
    some = models(paper_teacher)[:3]
    task: Any = None
    missing = experiment.Experiment("", task, some)._missing([])
    done = [
        {"model": model.label, "rate": lr, "seed": seed, "validation_loss": 1.0}
        for model, lr, seed in missing[:2]
    ]
    rest = experiment.Experiment("", task, some)._missing(done)
    assert [seed for *_, seed in rest] == [0, 1, 1, 2, 2]


def test_the_learning_rates_are_those_of_a_pilot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["experiment", "--setting", "paper", "--scale", "gpu"])
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)
    with pytest.raises(SystemExit):
        approximation.main()
    path = tmp_path / "approximation-paper-pilot-cpu.json"
    assert f"{path}: there is no finished pilot" in capsys.readouterr().err
    runs = [
        {"model": f"{kind} 1", "kind": kind, "rate": lr, "seed": 0, "validation_loss": loss}
        for kind, lr, loss in (("A", 0.1, 2.0), ("A", 0.2, 1.0), ("B", 0.1, 1.0), ("B", 0.2, 2.0))
    ]
    path.write_text(json.dumps({"runs": runs}))
    with pytest.raises(FileNotFoundError, match="no finished pilot"):
        experiment.rates_of_pilot(path)
    path.write_text(json.dumps({"runs": runs, "rows_per_second": {"A 1": 1.0}}))
    assert experiment.rates_of_pilot(path) == {"A": 0.2, "B": 0.1}
