"""Methane in the paper's setting: hydrogens in no order, augmentation at every step, RMSE / STD.

The paper learns seven million energies by DFT; here they are 600,000 by GFN2-xTB of molecules that
are displaced in the same way. ``distances`` have the hydrogens in another random order in every
batch; ``cartesian`` molecules are also rotated and mirrored.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lmkan_cupy.adapters.torch.training import penalty_for
from torch import Tensor
from torch.nn.functional import mse_loss

from ..make_methane import distances
from .experiment import Experiment, Task
from .methane_data import (
    AugmentedRows,
    PermutedRows,
    Standardised,
    read,
    split,
    standardised,
)
from .paper import Kind, OwnLMKAN, PaperLMKAN, PaperMLP, StrongMLP, students, swept

ROWS = {"smoke": 1000, "pilot": 600_000, "cpu": 600_000, "gpu": 600_000}  # at most
STEPS = {"smoke": 20, "pilot": 2000, "cpu": 20_000, "gpu": 1_000_000}
BATCH = {"smoke": 64, "pilot": 1024, "cpu": 1024, "gpu": 2048}
ROWS_AT_ONCE = {"smoke": 2**10, "pilot": 2**14, "cpu": 2**14, "gpu": 2**17}
TIMING_SECONDS = {"smoke": 0.1, "pilot": 0.1, "cpu": 60.0, "gpu": 5.0}

NUM_GRIDS = 28

#: Hidden features of the lmKAN of a sweep.
SWEPT = (32, 32)

#: The paper's networks, with ReLU behind the branch or, foldable, before it; and beside them ours.
KINDS: list[Kind] = [
    partial(PaperLMKAN, num_grids=NUM_GRIDS, branch="relu_last"),
    partial(PaperLMKAN, num_grids=NUM_GRIDS, branch="relu", variant="ReLU first"),
    PaperMLP,
    partial(OwnLMKAN, num_grids=NUM_GRIDS),
    StrongMLP,
]

#: Widths of their hidden layers.
WIDTHS: dict[str, Sequence[Sequence[int]]] = {
    "smoke": [[4]] * 5,
    "pilot": [[32]] * 5,
    "cpu": [
        [8, 16, 32, 64],
        [8, 16, 32, 64],
        [8, 16, 32, 64, 128, 256, 512, 1024],
        [8, 16, 32, 64],
        [16, 32, 64, 128, 256],
    ],
    "gpu": [
        [8, 16, 32, 64, 128, 256],
        [8, 16, 32, 64, 128, 256],
        [8, 16, 32, 64, 128, 256, 512, 1024, 2048],
        [8, 16, 32, 64, 128],
        [16, 32, 64, 128, 256, 512],
    ],
}


def make_experiment(
    inputs: str,
    scale: str,
    data: Path,
    device: torch.device,
    rates: Mapping[str, float],
    *,
    is_sweep: bool = False,
) -> Experiment:
    """Return the experiment for ``inputs``, "distances" or "cartesian".

    ``rates`` are the learning rates by kind of network; without any, each tries several.
    With ``is_sweep`` one lmKAN is trained with other grids and penalties.

    Raises
    ------
    FileNotFoundError
        If ``data`` has no file of molecules.
    """
    arrays, source = read(data, "cartesian", ROWS[scale])
    training, validation, test = split(len(arrays["energies"]))
    energy = standardised(arrays["energies"][:, None], training, device)
    if inputs == "distances":
        rows, copies = PermutedRows, 24  # the orders of the hydrogens
        parts = np.split(distances(arrays["positions"]), [4], axis=1)  # of carbon, of hydrogens
        # One mean and scale for all columns of a part, so that hydrogens can change places.
        parts = [(part - part[training].mean()) / part[training].std() for part in parts]
        x = torch.from_numpy(np.concatenate(parts, axis=1)).float().to(device)
    else:
        rows, copies = AugmentedRows, 48  # and mirrored
        hydrogens = arrays["positions"][:, 1:].reshape(-1, 12)
        x = torch.from_numpy(hydrogens / hydrogens[training].std()).to(device)
    y, features = energy.values, x.shape[1]
    x_training, y_training = x[training], y[training]
    task = Task(
        batches=lambda seed: rows(x_training, y_training, seed, BATCH[scale]),
        steps=STEPS[scale],
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
        loss=mse_loss,
        errors=lambda predictions, targets: _errors(energy, predictions, targets),
        penalty=penalty_for(copies * len(training)),
        setting={
            "inputs": inputs,
            "source": source,
            "loss": "squared errors",
            "keeps_statistics": True,
            "rows": len(y),
            "batch": BATCH[scale],
            "a row is met": round(STEPS[scale] * BATCH[scale] / len(training), 2),
            "rows_at_once": ROWS_AT_ONCE[scale],
        },
        rows_at_once=ROWS_AT_ONCE[scale],
    )
    return Experiment(
        f"Methane in the paper's setting, {inputs}",
        task,
        swept(PaperLMKAN((features, *SWEPT, 1), NUM_GRIDS, "relu_last"), scale, rates)
        if is_sweep
        else students(features, KINDS, WIDTHS[scale], rates),
        timing_seconds=TIMING_SECONDS[scale],
    )


def _errors(energy: Standardised, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    off = predictions - targets.double()
    return {
        "RMSE / STD": float(off.square().mean().sqrt()),
        "MAE, eV": float(off.abs().mean() * energy.scale),
    }
