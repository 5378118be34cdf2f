"""``python -m bench.experiments.approximation``: networks that learn a large random network.

The teacher is an MLP with tanh and random weights that stay as they are; inputs are standard normal
and drawn anew for every step, so nothing can be learned by heart and the error says what a network
of its size can express. The error is the root mean square over the spread of the teacher's answers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from lmkan_cupy.adapters.training import penalty_for
from torch import Tensor
from torch.nn.functional import mse_loss

from .experiment import Experiment, Task, command_line, results_path
from .models import LMKAN, MLP, FastKAN, Model

TEACHER_SEED, ROWS_SEED = 2**20, 2**20 + 1  # apart from those of the students


@dataclass(frozen=True)
class Setting:
    """What is taught, and for how long.

    Attributes
    ----------
    features, width, depth : int
        Of the teacher: inputs, and its hidden layers.
    gain : float
        The standard deviation of a weight is so many times the root of one over its inputs: the
        larger, the less linear is the teacher.
    steps, batch, rows : int
        Steps and rows of each, and rows of validation and of test.
    """

    features: int
    width: int
    depth: int
    gain: float
    steps: int
    batch: int
    rows: int


SETTINGS = {
    "smoke": Setting(features=4, width=16, depth=2, gain=2.0, steps=20, batch=64, rows=256),
    "cpu": Setting(features=8, width=256, depth=2, gain=2.0, steps=5_000, batch=512, rows=16_384),
    "gpu": Setting(
        features=32, width=1024, depth=3, gain=2.0, steps=500_000, batch=4096, rows=2**18
    ),
}

TIMING_SECONDS = {"smoke": 0.1, "cpu": 60.0, "gpu": 60.0}


class Teacher:
    """A function of standard normal inputs with mean 0 and variance 1, the same every time."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(TEACHER_SEED)
        sizes = [setting.features, *[setting.width] * setting.depth, 1]
        self.features = setting.features
        self.weights = [
            (torch.randn(o, i, generator=generator) * setting.gain / math.sqrt(i)).to(device)
            for i, o in pairwise(sizes)
        ]
        self.mean, self.spread = torch.zeros((), device=device), torch.ones((), device=device)
        _, answers = self.rows(setting.rows, torch.Generator(device).manual_seed(TEACHER_SEED))
        self.mean, self.spread = answers.mean(), answers.std()

    def __call__(self, x: Tensor) -> Tensor:
        """Return [B, 1] for [B, I]."""
        *hidden, last = self.weights
        for weight in hidden:
            x = torch.tanh(x @ weight.T)
        return (x @ last.T - self.mean) / self.spread

    def rows(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(number, self.features, generator=generator, device=generator.device)
        with torch.no_grad():
            return x, self(x)


def make_task(setting: Setting, device: torch.device) -> Task:
    teacher = Teacher(setting, device)

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(device).manual_seed(seed)
        while True:
            yield teacher.rows(setting.batch, generator)

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
    )


#: Features of the hidden layers of every kind's networks.
HIDDEN: dict[str, dict[Callable[[tuple[int, ...]], Model], list[tuple[int, ...]]]] = {
    "smoke": {LMKAN: [(4,)], MLP: [(6,)], FastKAN: [(2,)]},
    "cpu": {
        LMKAN: [(8, 8), (16, 16), (32, 32), (32,)],
        MLP: [(8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (64,), (256,)],
        FastKAN: [(8, 8), (16, 16)],
    },
    "gpu": {
        LMKAN: [(width,) * depth for depth in (2, 3) for width in (16, 32, 64, 128, 256)],
        MLP: [(width,) * depth for depth in (2, 3) for width in (32, 64, 128, 256, 512, 1024)],
        FastKAN: [(width,) * depth for depth in (2, 3) for width in (16, 32, 64, 128)],
    },
}

#: The lmKAN that is trained anew with stages of its fitting changed.
VARIED = {"smoke": (4,), "cpu": (16, 16), "gpu": (64, 64)}


def students(scale: str, features: int) -> list[Model]:
    varied = (features, *VARIED[scale], 1)
    return [
        *(
            make((features, *hidden, 1))
            for make, networks in HIDDEN[scale].items()
            for hidden in networks
        ),
        LMKAN(varied, residual="relu", variant="ReLU branch"),
        LMKAN(varied, residual=None, variant="no branch"),
        LMKAN(varied, penalty_start=1e-12, variant="weak penalty from the start"),
        LMKAN(varied, num_grids=4, variant="coarse grid"),
        LMKAN(varied, num_grids=16, variant="fine grid"),
    ]


def main() -> None:
    arguments = command_line("approximation", __doc__).parse_args()
    setting = SETTINGS[arguments.scale]
    experiment = Experiment(
        title="General function approximation",
        task=make_task(setting, arguments.device),
        models=students(arguments.scale, setting.features),
        timing_seconds=TIMING_SECONDS[arguments.scale],
    )
    experiment.run(results_path("approximation", arguments), arguments.device)


if __name__ == "__main__":
    main()
