"""The rows of a table in batches, and the settings that depend on how many rows there are."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Steps of a training where the number of epochs is not given, at most.
MOST_STEPS = 10_000

#: Rows in a batch, at most.
_BATCH = 512

#: Batches whose rows are gathered in one operation.
_BATCHES_AT_ONCE = 16


@dataclass(frozen=True)
class Rows:
    """The rows to train on, in batches; every iteration starts from the same order.

    Attributes
    ----------
    features, target : Tensor [N, I] and [N, ...]
        As network and loss take them.
    seed : int
        Seed of the order of the rows.
    batch : int or None
        Rows in a batch; None for :func:`batch_size`.
    """

    features: Tensor
    target: Tensor
    seed: int
    batch: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the rows; rows that do not fill a batch are left out."""
        return len(self.target) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and targets batch by batch, without end."""
        for block in self._blocks():
            yield from zip(*(torch.split(each, self._batch) for each in block), strict=True)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and targets of several batches at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        used = self.steps_per_epoch * self._batch
        while True:
            order = torch.randperm(len(self.target), generator=generator, device="cpu")[:used]
            order = order.to(self.target.device)
            for rows in torch.split(order, _BATCHES_AT_ONCE * self._batch):
                yield self.features[rows], self.target[rows]

    @property
    def _batch(self) -> int:
        return self.batch or batch_size(len(self.target))


def batch_size(rows: int) -> int:
    """Return the rows in a batch: an eighth of all rows, but between 16 and 512."""
    return min(rows, _BATCH, max(16, rows // 8))


def epochs_for(rows: int, steps: float) -> int:
    """Return the number of passes over so many ``rows`` that make about ``steps`` steps."""
    return max(1, round(steps / (rows // batch_size(rows))))


def penalty_for(rows: int, layers: int = 2) -> float:
    """Return the weight of the Hessian penalty for so many rows of training data, and layers.

    It is 0.1 up to 5000 rows, then it falls with the cube of their number: the more rows there are,
    the fewer table entries are left without data, and the less has to be smoothed. One layer alone
    gets a tenth: between layers the functions may become small, since batch normalisation restores
    their size, and then the penalty hardly binds them. How this was measured:
    ``bench/results/procedure.md``.
    """
    return (0.1 if layers > 1 else 0.01) * min(1.0, (5000 / rows) ** 3)
