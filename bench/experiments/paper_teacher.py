"""The paper's random teacher, ``32 -> 10 x 1024 tanh -> 1``, and its students.

Its parameters are torch's initial ones, all weights times 3, and inputs are standard normal. On a
GPU every row is new. A CPU needs five minutes for the answers to a million rows, so they are
computed once and kept in a file; the inputs are drawn again each time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from lmkan_cupy.adapters.torch.training import Rows, penalty_for, progress_bar
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .experiment import Experiment, Task
from .paper import Kind, OwnLMKAN, PaperLMKAN, PaperMLP, StrongMLP, students, swept

#: Rows whose inputs are drawn with one seed. The first two blocks are for validation and test.
BLOCK = 2**16

TEACHER_SEED, ROWS_SEED = 2**20, 2**21  # the seed of a block is ROWS_SEED and its number

#: Blocks from the start of one seed's rows to that of the next, where every row is new.
BLOCKS_OF_A_SEED = 2**24

GAIN = 3.0

NUM_GRIDS = 12

#: Hidden features of the lmKAN of a sweep.
SWEPT = (64, 64)


@dataclass(frozen=True)
class Setting:
    """The teacher, and the training of its students.

    Attributes
    ----------
    features, width, depth : int
        Inputs of the teacher, width and number of its hidden layers.
    blocks : int or None
        Blocks of rows for training, which are met again and again; None if every row is new.
    steps, batch, rows : int
        Training steps, their batch size, and the rows of each of validation and test.
    rows_at_once : int
        Batch size of inference.
    """

    features: int
    width: int
    depth: int
    blocks: int | None
    steps: int
    batch: int
    rows: int = BLOCK
    rows_at_once: int = 2**14


SETTINGS = {
    "smoke": Setting(4, 16, 2, blocks=1, steps=20, batch=64, rows=256),
    "pilot": Setting(32, 1024, 10, blocks=62, steps=2000, batch=512),
    "cpu": Setting(32, 1024, 10, blocks=62, steps=20_000, batch=512),
    "gpu": Setting(32, 1024, 10, blocks=None, steps=10**6, batch=1024, rows_at_once=2**17),
}

TIMING_SECONDS = {"smoke": 0.1, "pilot": 0.1, "cpu": 60.0, "gpu": 5.0}


class Teacher:
    """A fixed random function, [B, I] -> [B, 1]."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device = setting, device
        sizes = [setting.features, *[setting.width] * setting.depth, 1]
        modules: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(TEACHER_SEED)
            for i, o in pairwise(sizes):
                layer = nn.Linear(i, o)
                layer.weight *= GAIN
                modules += [layer, nn.Tanh()]
        self.network = nn.Sequential(*modules[:-1]).to(device)

    def inputs(self, block: int) -> Tensor:
        """Return the inputs [BLOCK, I] of a block."""
        generator = torch.Generator(self.device).manual_seed(ROWS_SEED + block)
        return torch.randn(BLOCK, self.setting.features, generator=generator, device=self.device)

    def blocks(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and answers [BLOCK, 1] of one block after the other, without end."""
        while True:
            inputs = self.inputs(first)
            with torch.no_grad():
                yield inputs, torch.cat([self.network(some) for some in inputs.split(2**12)])
            first += 1

    def kept(self, data: Path, number: int) -> tuple[Tensor, Tensor]:
        """Return the first ``number`` blocks; answers that the file in ``data`` lacks are added."""
        setting = self.setting
        path = data / f"teacher_{setting.features}-{setting.depth}x{setting.width}.npy"
        answers = np.load(path) if path.exists() else np.empty((0, 1), np.float32)
        done = len(answers) // BLOCK
        new = islice(self.blocks(done), max(0, number - done))
        for _, more in progress_bar(new, desc=path.name, unit="block", initial=done, total=number):
            answers = np.concatenate([answers, more.numpy()])
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, answers)
            unfinished.replace(path)
        inputs = torch.cat([self.inputs(block) for block in range(number)])
        return inputs, torch.from_numpy(answers[: len(inputs)])


def make_task(setting: Setting, data: Path | None, device: torch.device) -> Task:
    """Return the task; ``data`` is the folder of the answers, if rows are kept."""
    # Kept answers are to inputs that a CPU draws.
    teacher = Teacher(setting, device if setting.blocks is None else torch.device("cpu"))
    if setting.blocks is None:
        number = setting.steps * setting.batch
        blocks = [*islice(teacher.blocks(0), 2)]
    else:
        assert data is not None
        number = setting.blocks * BLOCK
        kept = teacher.kept(data, 2 + setting.blocks)
        blocks = [*zip(*(each.split(BLOCK) for each in kept), strict=True)]
    (_, first), *_ = blocks
    mean, spread = first.mean(), first.std()
    validation, test, *training = (
        (x.to(device), ((y - mean) / spread).to(device)) for x, y in blocks
    )

    def new_rows(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in teacher.blocks(2 + seed * BLOCKS_OF_A_SEED):
            yield from zip(
                x.split(setting.batch), ((y - mean) / spread).split(setting.batch), strict=True
            )

    def kept_rows(seed: int) -> Iterable[tuple[Tensor, Tensor]]:
        return Rows(*features_and_target, seed, setting.batch)

    features_and_target = [torch.cat(each) for each in zip(*training, strict=True)]
    return Task(
        batches=kept_rows if training else new_rows,
        steps=setting.steps,
        validation=tuple(each[: setting.rows] for each in validation),
        test=tuple(each[: setting.rows] for each in test),
        loss=mse_loss,
        errors=lambda y, expected: {"MSE / variance": float(mse_loss(y, expected.double()))},
        penalty=penalty_for(number),
        setting={
            **asdict(setting),
            "keeps_statistics": True,
            "variance": round(float(spread) ** 2, 4),
            "a row is met": round(setting.steps * setting.batch / number, 2),
        },
        rows_at_once=setting.rows_at_once,
    )


#: The paper's networks, and beside them ours.
KINDS: list[Kind] = [
    partial(PaperLMKAN, num_grids=NUM_GRIDS, branch="relu"),
    PaperMLP,
    partial(OwnLMKAN, num_grids=NUM_GRIDS),
    StrongMLP,
]

#: Widths of their hidden layers.
WIDTHS: dict[str, Sequence[Sequence[int]]] = {
    "smoke": [[4]] * 4,
    "pilot": [[32]] * 4,
    "cpu": [[32, 64, 128], [32, 64, 128, 256, 512], [32, 64, 128], [32, 64, 128, 256]],
    "gpu": [
        [32, 64, 128, 256],
        [32, 64, 128, 256, 512, 1024],
        [32, 64, 128, 256],
        [32, 64, 128, 256, 512],
    ],
}


def make_experiment(
    scale: str,
    data: Path | None,
    device: torch.device,
    rates: Mapping[str, float],
    *,
    is_sweep: bool = False,
) -> Experiment:
    """Return the experiment.

    ``data`` is the folder of the answers, if rows are kept; ``rates`` are the learning rates by
    kind of network, and without any, each tries several. With ``is_sweep`` one lmKAN is trained
    with other grids and penalties.
    """
    setting = SETTINGS[scale]
    return Experiment(
        title="General function approximation, the paper's teacher",
        task=make_task(setting, data, device),
        models=swept(PaperLMKAN((setting.features, *SWEPT, 1), NUM_GRIDS), scale, rates)
        if is_sweep
        else students(setting.features, KINDS, WIDTHS[scale], rates),
        timing_seconds=TIMING_SECONDS[scale],
    )
