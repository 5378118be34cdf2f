"""The experiment on methane: inputs, augmentation, forces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import smoke_runs
import torch
from smoke_runs import made_up_molecules

from bench.experiments import methane, methane_data
from bench.experiments.models import LEARNING_RATES, MORE_LEARNING_RATES


@pytest.mark.long
@pytest.mark.parametrize("inputs", ["distances", "cartesian", "forces"])
def test_every_input(tmp_path: Path, inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variants, which test_approximation trains."""
    monkeypatch.setattr(methane, "variants", lambda sizes: [])
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    arguments = () if inputs == "distances" else ("--inputs", inputs, "--data", str(tmp_path))
    out = smoke_runs.path(methane, tmp_path)
    results = smoke_runs.run(methane, tmp_path, *arguments, "--out", str(out))
    assert results["setting"]["inputs"] == inputs
    assert results["setting"]["source"] == (
        "methane.npz" if inputs == "distances" else "methane_xtb.npz"
    )
    assert {run["kind"] for run in results["runs"]} == {"lmKAN", "MLP", "FastKAN"}
    assert {run["rate"] for run in results["runs"]} == set(
        MORE_LEARNING_RATES if inputs == "cartesian" else LEARNING_RATES
    )
    for run in results["runs"]:
        assert all(0 < error < 10 for error in run["errors"].values())
        assert ("MAE of forces, eV / Angstrom" in run["errors"]) == (inputs == "forces")


def test_variants_are_trained_on_distances_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    for inputs, number in (("distances", 8), ("cartesian", 0), ("forces", 0)):
        data = None if inputs == "distances" else tmp_path
        made = methane.make_experiment(inputs, "smoke", data, torch.device("cpu"), False)
        assert sum(model.kind.startswith("lmKAN, ") for model in made.models) == number


def test_the_loss_is_the_absolute_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    predictions, targets = torch.tensor([[3.0, 1.0, 5.0]] * 2), torch.tensor([[1.0, 2.0, 8.0]] * 2)
    distances, cartesian, both = (
        methane.make_experiment(inputs, "smoke", tmp_path, torch.device("cpu"), False).task
        for inputs in ("distances", "cartesian", "forces")
    )
    for task in (distances, cartesian):
        assert task.loss(predictions[:, :1], targets[:, :1]) == 2
    assert both.loss(predictions, targets) == 2 + (1 + 3) / 2


@pytest.mark.parametrize("inputs", ["cartesian", "forces"])
def test_missing_data_are_named(tmp_path: Path, inputs: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"--inputs {inputs} needs --data"):
        methane.read(None, inputs, 10)
    without = {key: each for key, each in made_up_molecules().items() if key == "metadata"}
    np.savez(tmp_path / "methane_xtb.npz", **without)
    with pytest.raises(FileNotFoundError, match="is here with"):
        methane.read(tmp_path, inputs, 10)


def test_augmentation_rotates_mirrors_and_permutes() -> None:
    generator = torch.Generator().manual_seed(0)
    hydrogens = torch.randn(400, 4, 3, generator=generator, dtype=torch.float64)
    turned = methane_data.augmented(hydrogens.float(), generator).double()
    radii, turned_radii = hydrogens.norm(dim=2), turned.norm(dim=2)
    torch.testing.assert_close(
        turned_radii.sort(dim=1).values, radii.sort(dim=1).values, rtol=1e-5, atol=1e-5
    )
    order, turned_order = radii.argsort(dim=1), turned_radii.argsort(dim=1)
    in_place = (order == turned_order).all(dim=1).double().mean()
    assert 0.0 < float(in_place) < 0.15  # a permutation in 24 leaves all in place
    sorted_ = hydrogens.gather(1, order[..., None].expand_as(hydrogens))
    sorted_turned = turned.gather(1, turned_order[..., None].expand_as(turned))
    torch.testing.assert_close(
        sorted_turned @ sorted_turned.mT, sorted_ @ sorted_.mT, rtol=1e-4, atol=1e-4
    )
    mirrored = (
        torch.linalg.det(sorted_turned[:, :3]) * torch.linalg.det(sorted_[:, :3]) < 0
    ).double()
    assert 0.4 < float(mirrored.mean()) < 0.6
    assert sorted_turned[:, 0].mean(dim=0).abs().max() < 0.3  # in all directions


def test_forces_are_the_negative_derivative_of_the_energy() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).double()
    both = methane.EnergyAndForces(network, torch.ones(10).double(), 2 * torch.ones(10).double())
    positions = torch.from_numpy(made_up_molecules(3)["positions"]).double().flatten(1)
    forces = both(positions)[:, 1:]
    step = 1e-6
    for coordinate in range(15):
        shift = step * torch.nn.functional.one_hot(torch.tensor(coordinate), 15)
        energies = [both(positions + sign * shift)[:, 0] for sign in (1, -1)]
        slope = (energies[0] - energies[1]) / (2 * step)
        torch.testing.assert_close(forces[:, coordinate], -slope, rtol=1e-6, atol=1e-7)
    forces.square().sum().backward()  # as a fit to forces needs
    assert network[0].weight.grad.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(both(positions)[:, 1:], forces)
