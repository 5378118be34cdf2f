"""``python -m bench.experiments.approximation``: networks learn the function of a random network.

The teacher is an MLP with tanh and fixed random weights. Inputs are standard normal and no row is
repeated, so there is no overfitting, and the error shows what a network of its size can express. It
is the root mean square error divided by the standard deviation of the teacher's outputs.

``--setting paper`` has the paper's teacher, ten layers deep, and its students and training. It
needs ``--data``, a folder where the teacher's answers are kept once they are computed, and students
meet a row several times; with ``--scale gpu`` every row is new. The error is the mean square,
relative to the variance.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from lmkan_cupy.adapters.torch.training import penalty_for
from torch import Tensor
from torch.nn.functional import mse_loss

from . import paper_teacher
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
from .models import (
    LMKAN,
    MLP,
    PYKAN_HIDDEN,
    SILU_MLP,
    FastKAN,
    LinearFirst,
    Model,
    PyKAN,
    hidden_layers,
    variants,
)

TEACHER_SEED, ROWS_SEED = 2**20, 2**20 + 1  # not seeds of students


@dataclass(frozen=True)
class Setting:
    """The teacher, and the training of the students.

    Attributes
    ----------
    features, width, depth : int
        Inputs of the teacher, width and number of its hidden layers.
    gain : float
        The standard deviation of a weight, times the square root of its layer's inputs: the larger,
        the less linear is the teacher.
    steps, batch, rows : int
        Training steps, their batch size, and the rows of each of validation and test.
    rows_at_once : int
        Batch size of inference.
    """

    features: int
    width: int
    depth: int
    gain: float
    steps: int
    batch: int
    rows: int
    rows_at_once: int = 2**14


SETTINGS = {
    "smoke": Setting(
        features=4, width=16, depth=2, gain=2.0, steps=20, batch=64, rows=256, rows_at_once=2**10
    ),
    "cpu": Setting(features=8, width=256, depth=2, gain=2.0, steps=5_000, batch=512, rows=16_384),
    "gpu": Setting(
        features=8,
        width=1024,
        depth=2,
        gain=2.0,
        steps=12_000,
        batch=1024,
        rows=2**16,
        rows_at_once=2**17,
    ),
}

TIMING_SECONDS = {"smoke": 0.1, "cpu": 60.0, "gpu": 5.0}


class Teacher:
    """A fixed function of standard normal inputs, with mean 0 and variance 1."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(TEACHER_SEED)
        sizes = [setting.features, *[setting.width] * setting.depth, 1]
        self.features = setting.features
        self.weights = [
            (torch.randn(o, i, generator=generator) * setting.gain / math.sqrt(i)).to(device)
            for i, o in pairwise(sizes)
        ]
        self.mean, self.spread = torch.zeros((), device=device), torch.ones((), device=device)
        _, outputs = self.rows(setting.rows, torch.Generator(device).manual_seed(TEACHER_SEED))
        self.mean, self.spread = outputs.mean(), outputs.std()

    def __call__(self, x: Tensor) -> Tensor:
        """Return [B, 1] for [B, I]."""
        *hidden, last = self.weights
        for weight in hidden:
            x = torch.tanh(x @ weight.T)
        return (x @ last.T - self.mean) / self.spread

    def rows(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random inputs and the teacher's outputs."""
        x = torch.randn(number, self.features, generator=generator, device=generator.device)
        with torch.no_grad():
            return x, torch.cat([self(some) for some in x.split(2**15)])


def make_task(setting: Setting, device: torch.device) -> Task:
    teacher = Teacher(setting, device)

    @cache
    def training_rows(seed: int) -> tuple[Tensor, Tensor]:
        """Return all rows of a training, the same for every model."""
        generator = torch.Generator(device).manual_seed(seed)
        rows = teacher.rows(setting.steps * setting.batch, generator)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # other streams read them, too
        return rows

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(each.split(setting.batch) for each in training_rows(seed)), strict=True)

    generator = torch.Generator(device).manual_seed(ROWS_SEED)
    return Task(
        batches=batches,
        steps=setting.steps,
        validation=teacher.rows(setting.rows, generator),
        test=teacher.rows(setting.rows, generator),
        loss=mse_loss,
        errors=lambda y, expected: {"relative RMSE": math.sqrt(mse_loss(y, expected.double()))},
        penalty=penalty_for(setting.steps * setting.batch),
        setting=asdict(setting),
        rows_at_once=setting.rows_at_once,
    )


#: Widths of the hidden layers, by scale and kind of network.
HIDDEN: dict[str, dict[Callable[[tuple[int, ...]], Model], list[tuple[int, ...]]]] = {
    "smoke": {
        LMKAN: [(4,)],
        LinearFirst: [(4,)],
        MLP: [(6,)],
        SILU_MLP: [(6,)],
        FastKAN: [(2,)],
    },
    "cpu": {
        LMKAN: [(8, 8), (16, 16), (32, 32), (128,)],
        LinearFirst: [(32,), (64,), (128,), (256,), (512,)],
        MLP: [
            *hidden_layers(2, 16, 32, 64, 128, 256),
            *hidden_layers(1, 64, 128, 256, 512, 1024, 2048),
        ],
        SILU_MLP: [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256)],
        FastKAN: [(8, 8), (16, 16)],
    },
    "gpu": {
        LMKAN: [(8, 8), (16, 16), (32, 32), (64, 64)],
        LinearFirst: [(64,), (128,), (256,), (512,), (64, 64)],
        MLP: [
            *hidden_layers(2, 16, 32, 64, 128, 256, 512),
            *hidden_layers(1, 256, 512, 1024, 2048),
        ],
        SILU_MLP: [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512)],
        FastKAN: [(8, 8), (16, 16), (32, 32)],
    },
}

#: Hidden widths of the lmKAN of which variants are trained.
VARIED = {"smoke": (4,), "cpu": (16, 16), "gpu": (16, 16)}


def students(scale: str, features: int, pykan: bool) -> list[Model]:
    """Return the models to train, with those of pykan if asked for."""
    kinds = HIDDEN[scale] | ({PyKAN: PYKAN_HIDDEN[scale]} if pykan else {})
    networks = [
        make((features, *hidden, 1)) for make, networks in kinds.items() for hidden in networks
    ]
    return [*networks, *variants((features, *VARIED[scale], 1))]


def make_experiment(scale: str, device: torch.device, pykan: bool) -> Experiment:
    setting = SETTINGS[scale]
    return Experiment(
        title="General function approximation",
        task=make_task(setting, device),
        models=students(scale, setting.features, pykan),
        timing_seconds=TIMING_SECONDS[scale],
    )


def main() -> None:
    parser = with_sweep(with_pykan(command_line("approximation", __doc__, has_paper=True)))
    parser.add_argument("--data", type=Path, help="a folder for the answers of the paper's teacher")
    arguments = parse(parser)
    scale, data, device = arguments.scale, arguments.data, arguments.device
    name = f"approximation{'_sweep' * arguments.sweep}"
    if arguments.setting == "own":
        experiment = make_experiment(scale, device, arguments.pykan)
    elif data is None and scale != "gpu":
        parser.error("--setting paper needs --data, a folder for the teacher's answers")
    else:
        try:
            rates = paper_rates("approximation", arguments)
        except FileNotFoundError as error:
            parser.error(str(error))
        experiment = paper_teacher.make_experiment(
            scale, data, device, rates, is_sweep=arguments.sweep
        )
    carry_out(experiment, name, arguments)


if __name__ == "__main__":
    main()
