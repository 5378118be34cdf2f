"""``python -m bench.experiments.methane``: energies of randomly displaced methane molecules.

``--inputs distances`` learns the energy from the ten interatomic distances, with the hydrogens in
order of their distance from the carbon, on the sample that the package ships, or with ``--data`` on
a larger file. ``cartesian`` learns it from the hydrogens' coordinates, the carbon at the origin;
the molecules of every batch are rotated, mirrored and their hydrogens permuted at random.
``forces`` learns energies and forces together: a function of the distances and its derivative. The
last two need ``--data``, a folder with the files of ``python -m bench.make_methane generate``.

Errors are in eV, those of forces in eV / Angstrom. All networks are trained on absolute errors:
about one configuration in a hundred is above 4 eV, and these few would dominate squared errors.

``--setting paper`` learns as the paper does, from distances or coordinates of ``--data`` with the
hydrogens in no order, and by squared errors; its errors are divided by the standard deviation.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lmkan_cupy.adapters.torch.training import Rows, penalty_for
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ..make_methane import FIRST, SECOND
from . import paper_methane
from .experiment import (
    Experiment,
    Task,
    carry_out,
    command_line,
    paper_rates,
    parse,
    with_pykan,
    with_sweep,
)
from .methane_data import AugmentedRows, Standardised, read, split, standardised
from .models import (
    LMKAN,
    MLP,
    MORE_LEARNING_RATES,
    PYKAN_HIDDEN,
    SILU_MLP,
    FastKAN,
    LinearFirst,
    Model,
    PyKAN,
    hidden_layers,
    variants,
)

STEPS = {
    "distances": {"smoke": 20, "cpu": 10_000, "gpu": 12_000},
    "cartesian": {"smoke": 20, "cpu": 10_000, "gpu": 10_000},
    "forces": {"smoke": 20, "cpu": 10_000, "gpu": 5_000},
}
ROWS = {"smoke": 1000, "cpu": 100_000, "gpu": 600_000}  # at most
BATCH = {"smoke": None, "cpu": None, "gpu": 1024}  # None: as fit chooses it
ROWS_AT_ONCE = {"smoke": 2**10, "cpu": 2**14, "gpu": 2**17}
TIMING_SECONDS = {"smoke": 0.1, "cpu": 60.0, "gpu": 5.0}

LOW = 4.0  # eV: errors are also reported below this energy

TITLES = {
    "distances": "distances",
    "cartesian": "coordinates",
    "forces": "energies and forces",
}

Networks: TypeAlias = dict[Callable[[tuple[int, ...]], Model], list[tuple[int, ...]]]

SMOKE: Networks = {
    LMKAN: [(4,)],
    LinearFirst: [(4,)],
    MLP: [(6,)],
    SILU_MLP: [(6,)],
    FastKAN: [(2,)],
}

LMKAN_24 = partial(LMKAN, num_grids=24)
LINEAR_FIRST_16 = partial(LinearFirst, num_grids=16)

FORCES: Networks = {
    LMKAN: [(8, 8), (16, 16), (32, 32)],
    MLP: [(32, 32), (64, 64), (128, 128)],
    SILU_MLP: [*hidden_layers(2, 32, 64, 128), *hidden_layers(3, 32, 64, 128)],
}

#: Widths of the hidden layers, by input, scale and kind of network.
HIDDEN: dict[str, dict[str, Networks]] = {
    "distances": {
        "smoke": SMOKE,
        "cpu": {
            LMKAN: [(8, 8), (16, 16), (32, 32), (64, 64)],
            LinearFirst: [(64,), (32, 16), (64, 32)],
            LMKAN_24: [(8, 8), (16, 16), (32, 32), (64, 64)],
            LINEAR_FIRST_16: [(12, 12), (16, 16), (32, 16), (32, 16, 16)],
            MLP: [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256)],
            SILU_MLP: [*hidden_layers(2, 16, 32, 64, 128, 256), *hidden_layers(3, 16, 32, 64, 128)],
            FastKAN: [(8, 8), (16, 16)],
        },
        "gpu": {
            LMKAN: [(8, 8), (16, 16), (32, 32), (64, 64)],
            LinearFirst: [(32, 16), (64, 32), (128, 64)],
            LMKAN_24: [(8, 8), (16, 16), (32, 32)],
            LINEAR_FIRST_16: [(12, 12), (16, 16), (32, 16), (32, 16, 16), (64, 32)],
            MLP: [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512)],
            SILU_MLP: [
                *hidden_layers(2, 16, 32, 64, 128, 256, 512),
                *hidden_layers(3, 16, 32, 64, 128, 256),
            ],
            FastKAN: [(8, 8), (16, 16), (32, 32)],
        },
    },
    "cartesian": {
        "smoke": SMOKE,
        "cpu": {
            LMKAN: [*hidden_layers(2, 16, 32, 64), *hidden_layers(3, 16, 32)],
            LinearFirst: [(64, 32), (64, 32, 32)],
            MLP: [*hidden_layers(2, 32, 64, 128, 256), *hidden_layers(3, 64, 128)],
            SILU_MLP: [(32, 32), (64, 64), (128, 128), (256, 256)],
            FastKAN: [(16, 16)],
        },
        "gpu": {
            LMKAN: [*hidden_layers(2, 16, 32, 64), *hidden_layers(3, 16, 32, 64)],
            LinearFirst: [(64, 32), (128, 64), (64, 32, 32)],
            MLP: [*hidden_layers(2, 32, 64, 128, 256), *hidden_layers(3, 64, 128)],
            SILU_MLP: [(32, 32), (64, 64), (128, 128), (256, 256)],
            FastKAN: [(16, 16), (32, 32)],
        },
    },
    "forces": {
        "smoke": SMOKE,
        "cpu": FORCES,
        "gpu": FORCES,
    },
}

#: Hidden widths of the lmKAN of which variants are trained on distances.
VARIED = {"smoke": (4,), "cpu": (16, 16), "gpu": (16, 16)}


def energy_errors(energy: Standardised) -> Callable[[Tensor, Tensor], dict[str, float]]:
    def errors(predictions: Tensor, targets: Tensor) -> dict[str, float]:
        in_ev = energy.scale.double() * (predictions - targets.double())
        low = (energy.mean + energy.scale * targets).double() < LOW
        return {
            "MAE, eV": float(in_ev.abs().mean()),
            "RMSE, eV": float(in_ev.square().mean().sqrt()),
            "RMSE below 4 eV, eV": float(in_ev[low].square().mean().sqrt()),
        }

    return errors


class EnergyAndForces(nn.Module):
    """Maps coordinates [B, 15] to the energy and its negative derivative, the forces [B, 1 + 15].

    Energies are in units of their standard deviation, forces in the same units per Angstrom.

    Parameters
    ----------
    network : nn.Module
        From standardised distances [B, 10] to energies [B, 1].
    mean, scale : Tensor [10]
        Of the distances, Angstrom.
    """

    mean: Tensor
    scale: Tensor
    first: Tensor  # the atoms of every distance
    second: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("first", torch.from_numpy(FIRST))
        self.register_buffer("second", torch.from_numpy(SECOND))

    def forward(self, positions: Tensor) -> Tensor:
        learns = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            energy = self.network((self._distances(positions) - self.mean) / self.scale)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=learns)
        return torch.cat([energy, -gradient], dim=1)

    def _distances(self, positions: Tensor) -> Tensor:
        """Return the distances [B, 10], with the hydrogens in order of distance from the carbon."""
        atoms = positions.reshape(-1, 5, 3)
        carbon, hydrogens = atoms[:, :1], atoms[:, 1:]
        order = (hydrogens - carbon).norm(dim=2).argsort(dim=1)[..., None].expand_as(hydrogens)
        atoms = torch.cat([carbon, hydrogens.gather(1, order)], dim=1)
        between = atoms.index_select(1, self.first) - atoms.index_select(1, self.second)
        distances: Tensor = between.norm(dim=2)
        return distances


class WithForces(Model):
    """A model of the energy, with forces from its derivative; FLOPs are those of the energy."""

    def __init__(self, energy: Model, mean: Tensor, scale: Tensor) -> None:
        self.energy = energy
        self.learning_rates = energy.learning_rates
        self.mean, self.scale = mean, scale  # of the distances

    @property
    def kind(self) -> str:
        return self.energy.kind

    @property
    def label(self) -> str:
        return self.energy.label

    def flops(self) -> int:
        return self.energy.flops()

    def build(self) -> EnergyAndForces:
        return EnergyAndForces(self.energy.build(), self.mean, self.scale)

    def parameter_groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        return self.energy.parameter_groups(network, lr)

    def deployed(self, network: nn.Module) -> EnergyAndForces:
        energy = self.energy.deployed(network.get_submodule("network"))
        return EnergyAndForces(energy, self.mean, self.scale).to(self.mean.device)


def make_experiment(
    inputs: str, scale: str, data: Path | None, device: torch.device, pykan: bool
) -> Experiment:
    arrays, source = read(data, inputs, ROWS[scale])
    training, validation, test = split(len(arrays["energies"]))
    energy = standardised(arrays["energies"][:, None], training, device)
    distances = standardised(arrays["distances"], training, device)
    x, y = distances.values, energy.values
    loss: Callable[[Tensor, Tensor], Tensor] = l1_loss
    errors = energy_errors(energy)
    kind_of_rows, copies = Rows, 1
    if inputs == "cartesian":
        hydrogens = arrays["positions"][:, 1:].reshape(-1, 12)
        # One scale for all coordinates, so that molecules can be rotated in these units.
        x = torch.from_numpy(hydrogens / hydrogens[training].std()).to(device)
        kind_of_rows, copies = AugmentedRows, 48  # its permutations, and mirrored
    elif inputs == "forces":
        x = torch.from_numpy(arrays["positions"].reshape(-1, 15)).to(device)
        forces = torch.from_numpy(arrays["forces"].reshape(-1, 15)).to(device)
        y = torch.cat([energy.values, forces / energy.scale], dim=1)
        loss, errors = energy_and_forces_loss, energy_and_forces_errors(energy)
    features = 12 if inputs == "cartesian" else 10
    kinds = HIDDEN[inputs][scale] | ({PyKAN: PYKAN_HIDDEN[scale]} if pykan else {})
    models = [
        make((features, *hidden, 1)) for make, networks in kinds.items() for hidden in networks
    ]
    if inputs == "cartesian":
        models = [replace(each, learning_rates=MORE_LEARNING_RATES) for each in models]
    if inputs == "distances":
        models += variants((features, *VARIED[scale], 1))
    if inputs == "forces":
        models = [WithForces(each, distances.mean, distances.scale) for each in models]
    x_training, y_training = x[training], y[training]
    task = Task(
        batches=lambda seed: kind_of_rows(x_training, y_training, seed, BATCH[scale]),
        steps=STEPS[inputs][scale],
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
        loss=loss,
        errors=errors,
        penalty=penalty_for(copies * len(training)),
        setting={
            "inputs": inputs,
            "source": source,
            "loss": "absolute errors",
            "rows": len(y),
            "batch": BATCH[scale],
            "rows_at_once": ROWS_AT_ONCE[scale],
        },
        rows_at_once=ROWS_AT_ONCE[scale],
    )
    return Experiment(
        f"Methane, {TITLES[inputs]}", task, models, timing_seconds=TIMING_SECONDS[scale]
    )


def energy_and_forces_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    return l1_loss(predictions[:, 0], targets[:, 0]) + l1_loss(predictions[:, 1:], targets[:, 1:])


def energy_and_forces_errors(
    energy: Standardised,
) -> Callable[[Tensor, Tensor], dict[str, float]]:
    def errors(predictions: Tensor, targets: Tensor) -> dict[str, float]:
        off = l1_loss(predictions[:, 1:], targets[:, 1:].double()) * energy.scale
        of_energies = energy_errors(energy)(predictions[:, :1], targets[:, :1])
        return {**of_energies, "MAE of forces, eV / Angstrom": float(off)}

    return errors


def main() -> None:
    parser = with_sweep(with_pykan(command_line("methane", __doc__, has_paper=True)))
    parser.add_argument("--inputs", choices=TITLES, default="distances", help="default: distances")
    parser.add_argument("--data", type=Path, help="a folder with files of bench.make_methane")
    arguments = parse(parser)
    inputs, scale, data = arguments.inputs, arguments.scale, arguments.data
    is_paper = arguments.setting == "paper"
    if is_paper and (data is None or inputs == "forces"):
        parser.error("--setting paper needs --data, and --inputs distances or cartesian")
    name = "methane" if inputs == "distances" else f"methane_{inputs}"
    try:
        if is_paper:
            rates = paper_rates(name, arguments)
            experiment = paper_methane.make_experiment(
                inputs, scale, data, arguments.device, rates, is_sweep=arguments.sweep
            )
            name += "_sweep" * arguments.sweep
        else:
            experiment = make_experiment(inputs, scale, data, arguments.device, arguments.pykan)
    except FileNotFoundError as error:
        parser.error(str(error))
    carry_out(experiment, name, arguments)


if __name__ == "__main__":
    main()
