"""``python -m bench.make_methane``: randomly displaced methane molecules with GFN2-xTB energies.

``generate`` draws configurations and computes their energies, about 2 ms each; it needs ``pip
install tblite==0.8.0``. The carbon is at the origin, and the four hydrogens are uniform in the
volume of a sphere; a configuration with two atoms too close to each other is drawn again. This is
the distribution of Pozdnyakov et al., PRL 125, 166001 (2020), whose energies are from DFT.

``sample`` turns such a file into the one that the package ships: the energy, and the ten
interatomic distances, which do not depend on how a molecule is rotated.

    python -m bench.make_methane generate --num 100000 --out methane_xtb.npz
    python -m bench.make_methane sample methane_xtb.npz
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from lmkan_cupy.adapters.torch.training import progress_bar
from numpy.typing import NDArray

BUNDLED = Path(__file__).parents[1] / "lmkan_cupy" / "data" / "methane.npz"

BOHR = 0.529177210903  # Angstrom
HARTREE = 27.211386245988  # eV
KELVIN = 3.166811563e-6  # Hartree

NUMBERS = np.array([6, 1, 1, 1, 1])
FIRST, SECOND = np.array(list(combinations(range(5), 2))).T  # carbon-hydrogen pairs come first
BLOCK = 500  # configurations that share a random stream

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Recipe:
    """What a configuration and its energy depend on, besides the configuration's number."""

    seed: int
    radius_angstrom: float = 3.5
    min_distance_angstrom: float = 0.5
    method: str = "GFN2-xTB"
    # Far from equilibrium the self-consistent field only converges, and is smooth, with smearing.
    electronic_temperature_kelvin: float = 3000.0


def distances(positions: Floats) -> Floats:
    """Return the distances [..., 10] between all pairs of the atoms [..., 5, 3]."""
    between: Floats = positions[..., FIRST, :] - positions[..., SECOND, :]
    lengths: Floats = np.linalg.norm(between, axis=-1)
    return lengths


def draw(rng: np.random.Generator, recipe: Recipe) -> NDArray[np.float32]:
    """Draw one configuration [5, 3], in float32 before its energy is computed."""
    while True:
        direction = rng.standard_normal((4, 3))
        radius = recipe.radius_angstrom * rng.random((4, 1)) ** (1 / 3)
        hydrogens = radius * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        positions = np.vstack([np.zeros((1, 3)), hydrogens]).astype(np.float32)
        if distances(positions).min() >= recipe.min_distance_angstrom:
            return positions


def single_point(
    numbers: NDArray[np.int64], positions: Floats, recipe: Recipe
) -> tuple[float, Floats]:
    """Return the energy in eV and the forces in eV / Angstrom."""
    from tblite.interface import Calculator  # only here, once OMP_NUM_THREADS is set

    calculator = Calculator(recipe.method, numbers, positions.astype(np.float64) / BOHR)
    calculator.set("verbosity", 0)
    calculator.set("temperature", recipe.electronic_temperature_kelvin * KELVIN)
    result = calculator.singlepoint()
    return result.get("energy") * HARTREE, -result.get("gradient") * HARTREE / BOHR


def atom_energy(number: int, recipe: Recipe) -> float:
    return single_point(np.array([number]), np.zeros((1, 3)), recipe)[0]


def make_block(block: int, recipe: Recipe) -> list[tuple[int, Floats, float, Floats]]:
    """Return number, positions, energy and forces of the configurations that converged."""
    rng = np.random.default_rng([recipe.seed, block])
    rows = []
    for number in range(BLOCK * block, BLOCK * (block + 1)):
        positions = draw(rng, recipe)
        try:
            rows.append((number, positions, *single_point(NUMBERS, positions, recipe)))
        except RuntimeError:  # did not converge; --num counts it all the same
            continue
    return rows


def generate(num: int, jobs: int, recipe: Recipe) -> dict[str, Any]:
    """Compute the first ``num`` configurations, rounded up to whole blocks.

    A configuration depends only on the recipe and its own number, so a shorter file is the
    beginning of a longer one.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: one process per core
    blocks = -(-num // BLOCK)
    rows = []
    with multiprocessing.Pool(jobs) as pool:
        atoms = {s: pool.apply(atom_energy, (z, recipe)) for s, z in (("C", 6), ("H", 1))}
        parts = pool.imap(partial(make_block, recipe=recipe), range(blocks))
        for part in progress_bar(parts, total=blocks, unit="block"):
            rows += part
    index, positions, energies, forces = (np.array(column) for column in zip(*rows, strict=True))
    reference = atoms["C"] + 4 * atoms["H"]
    metadata = {
        "system": "CH4, carbon at the origin, 4 H uniform in a sphere",
        **asdict(recipe),
        "energy": "electronic free energy (E - T S), eV, minus reference_ev",
        "reference_ev": reference,
        "atom_energies_ev": atoms,
        "requested": blocks * BLOCK,
        "scf_failures": blocks * BLOCK - len(rows),
        "versions": {name: version(name) for name in ("tblite", "numpy")},
    }
    return {
        "positions": positions,  # [N, 5, 3] float32, Angstrom, carbon first
        "energies": energies - reference,  # [N] float64, eV
        "forces": forces.astype(np.float32),  # [N, 5, 3], eV / Angstrom
        "index": index,
        "numbers": NUMBERS,
        "metadata": json.dumps(metadata),
    }


def sample(source: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the first rows of a generated file as a table of ten features and an energy.

    Distances are rounded to multiples of 1/4096 Angstrom, so that as float32 they compress to 2.5
    bytes each. At the root-mean-square force, 10 eV / Angstrom, that shifts an energy by 1 meV.
    """
    positions = source["positions"][:rows].astype(np.float64)
    carbon, hydrogens = positions[:, :1], positions[:, 1:]
    nearest_first = np.argsort(distances(positions)[:, :4], axis=1)
    hydrogens = np.take_along_axis(hydrogens, nearest_first[..., None], axis=1)
    features = distances(np.concatenate([carbon, hydrogens], axis=1))
    atoms = np.array(["C", "H1", "H2", "H3", "H4"])
    metadata = {
        "title": "randomly displaced CH4, GFN2-xTB energies",
        "features": "interatomic distances, Angstrom; hydrogens in order of their C-H distance",
        "energy": "eV, relative to the atoms",
        "feature_step": 1 / 4096,
        "generator": "python -m bench.make_methane",
        "source": json.loads(str(source["metadata"])),
    }
    return {
        "features": (np.round(features * 4096) / 4096).astype(np.float32),  # [N, 10]
        "energy": source["energies"][:rows].astype(np.float32),  # [N]
        "feature_names": np.char.add(np.char.add(atoms[FIRST], "-"), atoms[SECOND]),
        "metadata": json.dumps(metadata),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.make_methane",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("generate", help="draw configurations, compute their energies")
    command.add_argument(
        "--num", type=int, default=100_000, help="how many, rounded up to a multiple of 500"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    command.add_argument(
        "--no-forces", action="store_true", help="leave out the forces: a third of the size"
    )
    command.add_argument("--out", type=Path, default=Path("methane_xtb.npz"))
    command = commands.add_parser("sample", help="make the file that the package ships")
    command.add_argument("source", type=Path, help="a generated file")
    command.add_argument("--rows", type=int, default=100_000)
    command.add_argument("--out", type=Path, default=BUNDLED)
    arguments = parser.parse_args()

    if arguments.command == "generate":
        arrays = generate(arguments.num, arguments.jobs, Recipe(arguments.seed))
        if arguments.no_forces:
            del arrays["forces"]
    else:
        with np.load(arguments.source) as source:
            arrays = sample(source, arguments.rows)
    np.savez_compressed(arguments.out, **arrays)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {', '.join(arrays)}; {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
