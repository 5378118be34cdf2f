"""Molecules of methane: reading them, their splits, and their augmentation in training."""

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lmkan_cupy.adapters.torch.training import Rows
from numpy.typing import NDArray
from torch import Tensor, nn

from ..make_methane import BUNDLED, FIRST, SECOND, sample

#: Files in order of preference; the first that has the arrays needed is taken.
FILES = ("methane_xtb_600k_noforces.npz", "methane_xtb_100k.npz", "methane_xtb.npz")

SPLIT_SEED = 2**20

Floats = NDArray[np.floating[Any]]


class Standardised(NamedTuple):
    """The standardised rows of an array, with mean and standard deviation."""

    values: Tensor  # [N, K], mean 0 and standard deviation 1 over the training rows
    mean: Tensor  # [K]
    scale: Tensor  # [K]


def standardised(values: Floats, training: NDArray[np.intp], device: torch.device) -> Standardised:
    values = values.astype(np.float64)
    mean, scale = values[training].mean(axis=0), values[training].std(axis=0)
    arrays = ((values - mean) / scale, mean, scale)
    return Standardised(*(torch.from_numpy(each).float().to(device) for each in arrays))


def read(data: Path | None, inputs: str, rows: int) -> tuple[dict[str, Floats], str]:
    """Return at most ``rows`` rows of the arrays that ``inputs`` needs, and their file's name.

    Raises
    ------
    FileNotFoundError
        If no file has these arrays.
    """
    if data is None:
        if inputs != "distances":
            raise FileNotFoundError(f"--inputs {inputs} needs --data, a folder with one of {FILES}")
        with np.load(BUNDLED) as arrays:
            return {
                "distances": arrays["features"][:rows],
                "energies": arrays["energy"][:rows],
            }, BUNDLED.name
    needed = "forces" if inputs == "forces" else "positions"
    for path in (data / name for name in FILES):
        if not path.exists():
            continue
        with np.load(path) as arrays:
            if needed in arrays:
                names = {"positions", "energies", needed}
                table = {name: arrays[name][:rows] for name in sorted(names)}
                return {"distances": sample(arrays, rows)["features"], **table}, path.name
    raise FileNotFoundError(f"{data}: none of {FILES} is here with {needed!r} in it")


def split(rows: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows for training, validation and test: 80, 10 and 10 %."""
    order = np.random.default_rng(SPLIT_SEED).permutation(rows)
    test, validation, training = np.split(order, [rows // 10, 2 * (rows // 10)])
    return training, validation, test


def augmented(positions: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, mirror and permute the hydrogens [B, 4, 3] of every molecule at random."""
    device = positions.device
    # Uniform directions of quaternions make uniform rotations.
    quaternions = torch.randn(len(positions), 4, generator=generator, device=device)
    w, x, y, z = nn.functional.normalize(quaternions, dim=1).unbind(dim=1)
    rotations = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ],
        dim=1,
    ).reshape(-1, 3, 3)
    mirrored = torch.rand(len(positions), 1, 1, generator=generator, device=device) < 0.5
    rotations = torch.where(mirrored, -rotations, rotations)
    keys = torch.rand(positions.shape[:2], generator=generator, device=device)
    order = keys.argsort(dim=1)[..., None].expand_as(positions)
    turned: Tensor = positions.gather(1, order) @ rotations
    return turned


class AugmentedRows(Rows):
    """Rows of the hydrogens' coordinates [N, 12], augmented differently in every batch."""

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.features.device).manual_seed(self.seed)
        for positions, energy in super()._blocks():
            yield augmented(positions.reshape(-1, 4, 3), generator).flatten(1), energy


class PermutedRows(Rows):
    """Rows of unsorted distances [N, 10], with the hydrogens in another order in every batch."""

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.features.device
        generator = torch.Generator(device).manual_seed(self.seed)
        columns = permuted_columns().to(device)
        for distances, energy in super()._blocks():
            order = torch.randint(
                len(columns), (len(distances),), generator=generator, device=device
            )
            yield distances.gather(1, columns[order]), energy


def permuted_columns() -> Tensor:
    """Return the columns [24, 10] of the distances for every order of the hydrogens."""
    pairs = [*zip(FIRST.tolist(), SECOND.tolist(), strict=True)]
    return torch.tensor(
        [
            [pairs.index(tuple(sorted((order[i], order[j])))) for i, j in pairs]
            for order in [(0, *each) for each in permutations(range(1, 5))]
        ]
    )
