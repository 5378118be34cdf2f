"""Networks of lmKAN blocks for tables of numbers, and the one loop that trains them.

A network is a chain of :class:`~lmkan_cupy.adapters.torch.LMKANBlock` trained by Adam on a loss
plus the Hessian penalty, in two parts. In the first the learning rate is constant. In the second it
follows a cosine to zero, and batch normalisation keeps the statistics it has. Every layer starts
with a linear branch, which is folded into its tables in the end, and so is the normalisation
between layers.
"""

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from .replay import Replayed
from .torch import HessianSchedule, LMKANBlock, LMKANConv2d, LMKANLinear, hessian_penalty

# The procedure, and what each part of it buys: relative RMSE of a random teacher whose rows never
# repeat / test MAE in eV on methane, 80,000 rows to train by absolute errors, of lmKANs 16-16 wide,
# G = 8, medians of three seeds, learning rates chosen for each:
#   0.172 / 0.042   as it is
#   0.191 / 0.059   ReLU branches;  0.244 / 0.064 none
#   0.175 / 0.038   a strong penalty at the start that falls during the first part
#   0.173 / 0.056   no penalty at all;  0.174 / 0.046 a hundred times as much
#   0.187 / 0.049   G = 4;  0.184 / 0.038 G = 16
#   0.175 / 0.040   G = 4, refined to 8 after the first part
# All that is in bench/results/approximation-cpu-cpu.json and methane-cpu-cpu.json, and with a
# larger teacher and 480,000 rows to train in the files that end in gpu-cuda. There a strong start
# is level on the teacher and better on methane, too (0.030 eV against 0.036).
# MAE on methane of one or two seeds, in no file, trained by squared errors:
#   - Adam that forgets the squares of gradients in 1000, 100 and 20 steps (its second decay), with
#     G = 16: 0.067, 0.047 and 0.048; 32-32 wide 0.053, 0.039 and 0.043. A table's entry is met by
#     few rows and remembers one outlier's gradient for long. Level by absolute errors, level for
#     MLPs.
#   - a first part of 0.05, 0.1, 0.15 and 0.3 of the steps: 0.091, 0.066, 0.068 and 0.075 (an MLP:
#     0.081, 0.078, not tried, 0.080). Fixed statistics take away the noise of a batch's own, but
#     they must have settled, which takes longer the higher the rate: at 1e-2 networks 32 and 64
#     wide failed for some seeds, at 3e-3 for none. Statistics of the second part that follow those
#     of its batches slowly, with G = 16: 0.12 instead of 0.067.
#   - inputs bounded to 3, 4 and 6: 0.091, 0.077 and 0.106.
#   - rates that fall with the root of a layer's inputs, with G = 16: 0.058 instead of 0.067, and
#     level for wider networks.
#   - gradients smoothed along the grid, by absolute errors, with G = 16: 0.037 instead of 0.040,
#     and level for networks with a linear layer first.
MOST_STEPS = 10_000  # unless the number of epochs is given
FIRST_PART = 0.15  # of the steps
BOUND = 4.0  # standard deviations
_BATCH = 512
TABLES_RATE = 3e-3
_BRANCH_FACTOR = 10 / 3  # a branch learns so much faster than its tables
BETAS = (0.9, 0.99)  # of Adam
_VALIDATIONS = 50
_BURST = 5  # steps that are one graph on CUDA: more take longer to capture
_BATCHES_AT_ONCE = 16  # gathered from a table

ROWS_AT_ONCE = 2**14  # in inference


class TableNetwork(nn.Module):
    """A chain of lmKAN blocks that reads features and answers in the units of a table.

    Parameters
    ----------
    sizes : sequence of int
        Features before, between and after the layers: I first, K last.
    num_grids : int
        Grid intervals per axis.
    bound : float
        Of the inputs of every layer, in standard deviations.
    residual : {None, "linear"}
        The branch of every layer, see :class:`~lmkan_cupy.adapters.torch.LMKANLinear`.

    Attributes
    ----------
    network : nn.Sequential
        The blocks: from standardised features [N, I] to standardised targets [N, K].
    feature_mean, feature_scale : float64 Tensor [I]
    target_mean, target_scale : float64 Tensor [K]
    """

    feature_mean: Tensor
    feature_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        num_grids: int,
        bound: float,
        *,
        residual: Literal["linear"] | None = None,
    ) -> None:
        super().__init__()
        self.network = block_chain(sizes, num_grids, bound, residual=residual)
        for name, size in (("feature", sizes[0]), ("target", sizes[-1])):
            self.register_buffer(f"{name}_mean", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{name}_scale", torch.ones(size, dtype=torch.float64))

    def standardise_features_by(self, features: NDArray[np.float64]) -> None:
        """Take mean and scale of the features from rows [N, I]."""
        self._standardise_by("feature", features)

    def standardise_targets_by(self, targets: NDArray[np.float64]) -> None:
        """Take mean and scale of the targets from rows [N, K]."""
        self._standardise_by("target", targets)

    def _standardise_by(self, name: str, values: NDArray[np.float64]) -> None:
        scale = values.std(axis=0)
        getattr(self, f"{name}_mean").copy_(torch.from_numpy(values.mean(axis=0)))
        getattr(self, f"{name}_scale").copy_(torch.from_numpy(np.where(scale > 0, scale, 1.0)))

    def standardised(self, features: NDArray[np.float64]) -> Tensor:
        """Return what the network takes, float32 [N, I], for features [N, I]."""
        return ((torch.tensor(features) - self.feature_mean) / self.feature_scale).float()

    def standardised_targets(self, targets: NDArray[np.float64]) -> Tensor:
        """Return what the network should answer, float32 [N, K], for targets [N, K]."""
        return ((torch.tensor(targets) - self.target_mean) / self.target_scale).float()

    def answers(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the network's answers [N, K] in the targets' units for features [N, I]."""
        return self.in_units(evaluate(self.network, self.standardised(features)))

    def in_units(self, output: Tensor) -> NDArray[np.float64]:
        """Return the network's output [N, K] in the targets' units."""
        values: NDArray[np.float64] = (self.target_mean + self.target_scale * output).numpy()
        return values

    def error_in_units(self, loss: float) -> float:
        """Return the root of a mean square over standardised targets, in the targets' units."""
        return math.sqrt(loss) * float(self.target_scale.square().mean().sqrt())


def block_chain(
    sizes: Sequence[int],
    num_grids: int,
    bound: float,
    *,
    residual: Literal["linear", "relu"] | None,
) -> nn.Sequential:
    """Return lmKAN blocks, ``sizes[0]`` to ``sizes[-1]`` features: see :class:`TableNetwork`."""
    return nn.Sequential(
        *(
            LMKANBlock(in_features, out_features, num_grids, bound=bound, residual=residual)
            for in_features, out_features in pairwise(sizes)
        )
    )


def parameter_groups(network: nn.Module, rate: float = TABLES_RATE) -> list[dict[str, Any]]:
    """Return a network's parameters with their learning rates: tables ``rate``, others more."""
    tables: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (tables if name.rpartition(".")[2] == "tables" else others).append(parameter)
    return [{"params": tables, "lr": rate}, {"params": others, "lr": _BRANCH_FACTOR * rate}]


def fold_(network: nn.Module) -> None:
    """Absorb the branches of all lmKAN layers into their tables, in place."""
    for layer in lmkan_layers(network):
        layer.fold_()


@torch.no_grad()
def fold_chain_(chain: nn.Sequential) -> None:
    """Absorb what a chain of :class:`~lmkan_cupy.adapters.torch.LMKANBlock` can, in place.

    Tables take up their layer's branch and the batch normalisation of the next block, with the
    statistics that it has. The first block keeps its own.
    """
    fold_(chain)
    blocks = [each for each in chain if isinstance(each, LMKANBlock)]
    for block, following in pairwise(blocks):
        norm, tables = following.norm, block.layer.tables
        if isinstance(norm, nn.Identity):
            continue
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + norm.eps)
        # The weights of a function's knots sum to one, so a constant is shared out over the pairs.
        tables.mul_(scale).sub_(mean * scale / len(tables))
        following.norm = nn.Identity()


def refine_(network: nn.Module, num_grids: int, optimizer: torch.optim.Optimizer) -> None:
    """Go over to another grid in all lmKAN layers, in place, with the optimiser's moments."""
    for layer in lmkan_layers(network):
        layer.refine_(num_grids, optimizer)


def lmkan_layers(network: nn.Module) -> Iterator[LMKANLinear | LMKANConv2d]:
    """Yield all lmKAN layers of a network."""
    return (each for each in network.modules() if isinstance(each, LMKANLinear | LMKANConv2d))


@dataclass(frozen=True)
class Rows:
    """The rows of a table to train on, in batches: iterating begins the same order anew.

    Attributes
    ----------
    features, target : Tensor [N, I] and [N, ...]
        As network and loss take them.
    seed : int
        Of the order of the rows.
    batch : int or None
        Rows in a batch, see :func:`batch_size` for None.
    """

    features: Tensor
    target: Tensor
    seed: int
    batch: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the rows; what does not fill a batch is left out."""
        return len(self.target) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features and targets of every batch, for ever."""
        for block in self._blocks():
            yield from zip(*(torch.split(each, self._batch) for each in block), strict=True)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and targets of some batches at a time, gathered at once."""
        generator = torch.Generator().manual_seed(self.seed)
        used = self.steps_per_epoch * self._batch
        while True:
            order = torch.randperm(len(self.target), generator=generator)[:used]
            order = order.to(self.target.device)
            for rows in torch.split(order, _BATCHES_AT_ONCE * self._batch):
                yield self.features[rows], self.target[rows]

    @property
    def _batch(self) -> int:
        return self.batch or batch_size(len(self.target))


@dataclass(frozen=True)
class Training:
    """What :meth:`Trainer.train` did.

    Attributes
    ----------
    completed : bool
        Whether it came to its end: False after Ctrl-C.
    steps : int
        Batches trained on.
    validation_loss : float or None
        Of the state that was kept; None without rows for validation.
    """

    completed: bool
    steps: int
    validation_loss: float | None


@dataclass(frozen=True)
class Trainer:
    """Trains networks on the same batches with the same schedule.

    Attributes
    ----------
    batches : iterable of (Tensor [B, I], Tensor [B, ...])
        Features and targets as network and loss take them, at least ``steps`` times; iterated anew
        for every network.
    steps : int
        Batches to train on.
    validation : (Tensor [M, I], Tensor [M, ...]) or None
        Rows that pick the best state.
    loss : callable
        ``loss(answers, target)`` gives the mean over rows.
    penalty : float
        The weight of the Hessian penalty, see :func:`penalty_for`.
    penalty_start : float
        The weight that it starts with, where that is more: it falls during the first part.
    keeps_statistics : bool
        Whether batch normalisation keeps the statistics of the first part in the second.
    refined_num_grids : int or None
        Grid intervals per axis of all lmKAN layers in the second part, None for those they have.
    rows_at_once : int
        Of ``validation``, as many as memory holds.
    patience : int or None
        Stop after so many of the 50 validations without a better one, counted from the second part
        on: before, the penalty holds the network back.
    shown : callable or None
        Turns a loss into what a progress bar shows; None for no bar.
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    steps: int
    validation: tuple[Tensor, Tensor] | None
    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: float
    penalty_start: float = 0.0
    keeps_statistics: bool = True
    refined_num_grids: int | None = None
    rows_at_once: int = ROWS_AT_ONCE
    patience: int | None = None
    shown: Callable[[float], float] | None = None

    def train(
        self, label: str, network: nn.Module, parameter_groups: list[dict[str, Any]]
    ) -> Training:
        """Train; leave ``network`` in its best state by validation, without it in its last."""
        bursts = self.bursts(label, network, parameter_groups)
        stream = own_stream(next(network.parameters()).device)
        with one_thread(), torch.cuda.stream(stream):
            while True:
                try:
                    next(bursts)
                except StopIteration as end:
                    training: Training = end.value
                    return training

    def bursts(
        self, label: str, network: nn.Module, parameter_groups: list[dict[str, Any]]
    ) -> Generator[None, None, Training]:
        """Train as :meth:`train` does, and stop after every few steps that were begun.

        So several networks can be trained side by side, each on a stream of its own.
        """
        device = next(network.parameters()).device
        schedule = HessianSchedule(
            self.steps,
            start=max(self.penalty_start, self.penalty),
            floor=self.penalty,
            decay_fraction=FIRST_PART,
        )
        plan = torch.tensor([schedule(step) for step in range(self.steps)], device=device)
        at_once = _BURST if device.type == "cuda" else 1
        interval = max(1, self.steps // _VALIDATIONS)
        first_part = int(FIRST_PART * self.steps)
        optimizer = torch.optim.Adam(
            parameter_groups, betas=BETAS, fused=True, capturable=device.type == "cuda"
        )
        rates = [group["lr"] for group in optimizer.param_groups]

        def train_on(features: Tensor, target: Tensor, weights_and_factors: Tensor) -> Tensor:
            """Make a step on each of the batches [S, B, ...]; return their losses [S]."""
            losses = []
            for x, y, (weight, factor) in zip(features, target, weights_and_factors, strict=True):
                loss = self.loss(network(x), y)
                optimizer.zero_grad()
                torch.autograd.backward(loss + weight * hessian_penalty(network))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                optimizer.step()
                losses.append(loss.detach())
            return torch.stack(losses)

        burst, answer = Replayed(train_on), Replayed(network)
        best_error = math.inf
        best_state = network.state_dict()  # the current one, until there is a better
        checks_since_best = 0
        completed = False
        step = 0
        losses = []
        batches = iter(self.batches)
        try:
            with self._bar(label) as bar:
                while step < self.steps:
                    if step == first_part:
                        if self.refined_num_grids is not None:
                            refine_(network, self.refined_num_grids, optimizer)
                            best_error, best_state = math.inf, network.state_dict()
                        # In another mode, or on another grid.
                        burst, answer = Replayed(train_on), Replayed(network)
                    # In evaluation mode batch normalisation keeps its statistics; no other module
                    # here knows the difference.
                    network.train(step < first_part or not self.keeps_statistics)
                    part_ends = first_part if step < first_part else self.steps
                    check = min(interval - step % interval, self.steps - step)
                    size = min(at_once, part_ends - step, check)
                    some = [*islice(batches, size)]
                    if not some:
                        break
                    features, target = map(torch.stack, zip(*some, strict=True))
                    loss = burst(features, target, plan[step : step + len(some)])
                    losses.append(loss.clone())
                    step += len(some)
                    bar.update(len(some))
                    yield
                    if step % interval and step != self.steps:
                        continue
                    network.eval()
                    error = self._validate(answer)
                    if error < best_error:
                        best_error, best_state = error, copy.deepcopy(network.state_dict())
                        checks_since_best = 0
                    elif self.validation is not None and step > first_part:
                        checks_since_best += 1
                    self._show(bar, training=torch.cat(losses), validation=error)
                    losses.clear()
                    if checks_since_best == self.patience:
                        break
            completed = True
        except KeyboardInterrupt:
            pass
        finally:
            network.load_state_dict(best_state)
        found = best_error if math.isfinite(best_error) else None
        return Training(completed, step, found)

    def _validate(self, answer: Callable[[Tensor], Tensor]) -> float:
        """Return the loss on the rows for validation, infinite where there are none."""
        if self.validation is None:
            return math.inf
        features, target = self.validation
        return float(self.loss(_answers(answer, features, self.rows_at_once), target))

    def _bar(self, label: str) -> Any:
        return tqdm(
            total=self.steps, desc=label, unit="step", mininterval=0.5, disable=self.shown is None
        )

    def _show(self, bar: Any, training: Tensor, validation: float) -> None:
        if self.shown is not None:
            losses = {"training": float(training.mean()), "validation": validation}
            finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
            bar.set_postfix(
                {name: f"{self.shown(loss):.3g}" for name, loss in finite.items()}, refresh=False
            )


def batch_size(rows: int) -> int:
    """Return how many of ``rows`` make a batch."""
    return min(rows, _BATCH, max(16, rows // 8))


def epochs_for(rows: int, steps: float) -> int:
    """Return the number of passes over ``rows`` that make about so many steps."""
    return max(1, round(steps / (rows // batch_size(rows))))


def evaluate(network: nn.Module, features: Tensor, rows_at_once: int = ROWS_AT_ONCE) -> Tensor:
    """Return the network's answers [N, K] in float64."""
    return _answers(network.eval(), features, rows_at_once)


def _answers(answer: Callable[[Tensor], Tensor], features: Tensor, rows_at_once: int) -> Tensor:
    with torch.no_grad():  # not inference_mode: a network may differentiate itself
        parts = torch.split(features, rows_at_once)
        # Copies: what is replayed answers in the same memory every time.
        return torch.cat([answer(some).to(torch.float64, copy=True) for some in parts])


def penalty_for(rows: int) -> float:
    """Return the weight that the Hessian penalty falls to, for ``rows`` to train on.

    Measured on parts of the methane sample in steps of ten: 0.1 was best for 1000 and 5000 rows,
    1e-4 to 1e-2 were level for 20,000, 3e-5 to 3e-4 for 63,000. For 5000 rows 0.1 was also best
    with noise of 0.3 standard deviations on the target.
    """
    return 0.1 * min(1.0, (5000 / rows) ** 3)


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a new stream that waits for what is queued now, None where a device has no streams."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread.

    A step's operations are too small to gain from more, and where other programs keep the cores
    busy torch's threads wait for each other: then a step was measured to take 15 times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
