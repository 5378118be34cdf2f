"""The training loop: Adam on a loss plus the Hessian penalty, in two parts.

In the first part the learning rate is constant and batch normalisation uses each batch's own mean
and variance. In the second part the learning rate falls to zero along half a cosine, and batch
normalisation keeps the running statistics it has gathered. :func:`.network.fold_chain_` can then
absorb them into the tables, together with the residual branches.

What each of these choices contributes was measured: see ``bench/results/procedure.md``.
"""

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from threading import Lock, Thread
from typing import Any

import torch
from torch import Tensor, nn

from .. import HessianSchedule, PhasedSchedule
from ..layers import Layer, penalty_of, table_modules
from .cuda_graph import GraphedFunction, new_stream
from .interruption import held_back
from .network import ROWS_AT_ONCE, in_parts, refine_
from .progress import progress_bar

#: Share of the steps in the first part. Much shorter, and the statistics of batch normalisation
#: have not settled when they are fixed.
FIRST_PART = 0.15

#: Decay rates of Adam's moments. The second is below the usual 0.999: few rows reach a table entry,
#: so a single outlier's gradient would slow it down for long.
BETAS = (0.9, 0.99)

#: Validations in a training.
_VALIDATIONS = 50

#: Steps that are captured as one CUDA graph: more take longer to capture.
_STEPS_PER_GRAPH = 5

#: Held while a thread reads or changes its number of threads.
_changes_threads = Lock()


@dataclass(frozen=True)
class Training:
    """What :meth:`Trainer.train` did.

    Attributes
    ----------
    completed : bool
        False after Ctrl-C.
    steps : int
        Batches trained on.
    losses : Tensor [steps]
        Of these batches, without the penalty, on the CPU.
    validation_loss : float or None
        Loss of the state that was kept; None where there were no rows for validation, or where it
        was never finite.
    curve : tuple of (int, float)
        Steps done and validation loss, at every validation.
    """

    completed: bool
    steps: int
    losses: Tensor
    validation_loss: float | None
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Trainer:
    """Trains networks on the same batches with the same schedule.

    The weight of the Hessian penalty is constant, ``penalty``, unless ``penalty_start`` is larger:
    then it falls from ``penalty_start`` to ``penalty`` during the first part, exponentially
    (:class:`~lmkan_cupy.adapters.torch.HessianSchedule`).

    Attributes
    ----------
    batches : iterable of (Tensor [B, I], Tensor [B, ...])
        Features and targets as network and loss take them, at least ``steps`` batches; iterated
        from the start for every network.
    steps : int
        Batches to train on.
    validation : (Tensor [M, I], Tensor [M, ...]) or None
        Rows that pick the best state.
    loss : callable
        ``loss(predictions, target)``, the mean over rows.
    penalty : float
        The weight of the Hessian penalty, see :func:`.rows.penalty_for`.
    penalty_start : float
        The weight at the first step; ignored unless larger than ``penalty``.
    schedule : PhasedSchedule, optional
        In place of the schedule that ``penalty`` and ``penalty_start`` give. It also sets
        ``tables_weight`` of the layers that have one.
    keeps_statistics : bool
        Whether the second part keeps the batch statistics of the first.
    refined_num_grids : int or None
        Grid intervals per axis of all lmKAN layers in the second part; None leaves the grid as it
        is.
    rows_at_once : int
        Rows of ``validation`` that are evaluated at once, as many as fit into memory.
    patience : int or None
        Stop after so many validations without a better one; None never stops early. There are 50
        validations in a training, and only those of the second part count: until then the learning
        rate does not fall.
    shown : callable or None
        Turns a loss into the number that the progress bar shows; None for no bar.
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    steps: int
    validation: tuple[Tensor, Tensor] | None
    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: float
    penalty_start: float = 0.0
    schedule: PhasedSchedule | None = None
    keeps_statistics: bool = True
    refined_num_grids: int | None = None
    rows_at_once: int = ROWS_AT_ONCE
    patience: int | None = None
    shown: Callable[[float], float] | None = None

    def train(
        self, label: str, network: nn.Module, parameter_groups: list[dict[str, Any]]
    ) -> Training:
        """Train ``network`` in place and return what was done.

        The network is left in the state with the lowest validation loss, or in the last state if
        there are no rows for validation.

        Parameters
        ----------
        label : str
            Name of the network in the progress bar.
        network : Module
            Maps features [B, I] to predictions.
        parameter_groups : list of dict
            As ``torch.optim.Adam`` takes them, each with its "lr".
        """
        chunks = self.train_in_chunks(label, network, parameter_groups)
        device = next(network.parameters()).device
        with (
            held_back("SIGINT") as interruption,  # between two steps the network is whole
            one_thread(),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.cuda.stream(new_stream(device)),
        ):
            try:
                while True:
                    next(chunks)
                    if interruption.came:
                        chunks.throw(KeyboardInterrupt)
            except StopIteration as end:
                training: Training = end.value
        return replace(training, completed=training.completed and not interruption.came)

    def train_in_chunks(
        self, label: str, network: nn.Module, parameter_groups: list[dict[str, Any]]
    ) -> Generator[None, None, Training]:
        """Train as :meth:`train` does, and yield each time a few steps have been queued.

        So several networks can be trained side by side, each on a stream of its own.
        """
        device = next(network.parameters()).device
        schedule = self.schedule or HessianSchedule(
            self.steps,
            start=max(self.penalty_start, self.penalty),
            floor=self.penalty,
            decay_fraction=FIRST_PART,
        )
        all_scheduled = torch.tensor(
            [schedule(step) for step in range(self.steps)], dtype=torch.float32, device=device
        )
        at_once = _STEPS_PER_GRAPH if device.type == "cuda" else 1
        interval = max(1, self.steps // _VALIDATIONS)
        first_part = int(FIRST_PART * self.steps)
        optimizer = torch.optim.Adam(
            parameter_groups, betas=BETAS, fused=True, capturable=device.type == "cuda"
        )
        layers = table_modules(network)
        tables_weights = [
            each.tables_weight
            for each in layers
            if isinstance(each, Layer) and each.tables_weight is not None
        ]
        lrs = [group["lr"] for group in optimizer.param_groups]

        def train_on(features: Tensor, target: Tensor, scheduled: Tensor) -> Tensor:
            """Take one step on each of the batches [S, B, ...]; return their losses [S]."""
            losses = []
            for x, y, (weight, factor, *of_tables) in zip(features, target, scheduled, strict=True):
                for held, value in product(tables_weights, of_tables):
                    held.copy_(value)
                loss = self.loss(network(x), y)
                optimizer.zero_grad()
                torch.autograd.backward(loss + weight * penalty_of(layers) if layers else loss)
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * factor
                optimizer.step()
                losses.append(loss.detach())
            return torch.stack(losses)

        train_chunk, forward = GraphedFunction(train_on), GraphedFunction(network)
        best_error = math.inf
        best_state = network.state_dict()  # the current one, until there is a better one
        checks_since_best = 0
        completed = False
        step = shown = 0
        losses = torch.empty(self.steps, dtype=torch.float32, device=device)
        curve = []
        batches = iter(self.batches)
        try:
            with self._bar(label) as bar:
                while step < self.steps:
                    if step == first_part:
                        if self.refined_num_grids is not None:
                            refine_(network, self.refined_num_grids, optimizer)
                            best_error, best_state = math.inf, network.state_dict()
                        # New graphs: the network is in another mode, perhaps on another grid.
                        train_chunk, forward = GraphedFunction(train_on), GraphedFunction(network)
                    # In evaluation mode batch normalisation keeps its statistics; to all other
                    # modules here the mode makes no difference.
                    is_training = step < first_part or not self.keeps_statistics
                    if network.training != is_training:  # setting it takes a while
                        network.train(is_training)
                    part_ends = first_part if step < first_part else self.steps
                    check = min(interval - step % interval, self.steps - step)
                    size = min(at_once, part_ends - step, check)
                    some = [*islice(batches, size)]
                    if not some:
                        break
                    features, target = map(torch.stack, zip(*some, strict=True))
                    scheduled = all_scheduled[step : step + len(some)]
                    losses[step : step + len(some)] = train_chunk(features, target, scheduled)
                    step += len(some)
                    bar.update(len(some))
                    yield
                    if step % interval and step != self.steps:
                        continue
                    network.eval()
                    error = self._validate(forward)
                    curve.append((step, error))
                    if error < best_error:
                        best_error, best_state = error, copy.deepcopy(network.state_dict())
                        checks_since_best = 0
                    elif self.validation is not None and step > first_part:
                        checks_since_best += 1
                    self._show(bar, training=losses[shown:step], validation=error)
                    shown = step
                    if checks_since_best == self.patience:
                        break
            completed = True
        except KeyboardInterrupt:
            pass
        finally:
            network.load_state_dict(best_state)
        best = best_error if math.isfinite(best_error) else None
        of_steps = tuple(curve) if self.validation else ()
        return Training(completed, step, losses[:step].cpu(), best, of_steps)

    def _validate(self, forward: Callable[[Tensor], Tensor]) -> float:
        """Return the loss on the rows for validation, infinite where there are none."""
        if self.validation is None:
            return math.inf
        features, target = self.validation
        return float(self.loss(in_parts(forward, features, self.rows_at_once), target))

    def _bar(self, label: str) -> Any:
        return progress_bar(
            total=self.steps, desc=label, unit="step", mininterval=0.5, disable=self.shown is None
        )

    def _show(self, bar: Any, training: Tensor, validation: float) -> None:
        if self.shown is not None:
            losses = {"training": float(training.mean()), "validation": validation}
            finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
            bar.set_postfix(
                {name: f"{self.shown(loss):.3g}" for name, loss in finite.items()}, refresh=False
            )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread only for what the calling thread computes.

    A step's operations are too small to gain from more threads, and on a busy machine threads that
    wait for each other make it many times slower.
    """
    with _changes_threads:
        threads = torch.get_num_threads()
    try:
        _set_num_threads(1)
        yield
    finally:
        _set_num_threads(threads)


def _set_num_threads(number: int) -> None:
    """Set torch's number of threads for the calling thread alone.

    torch hands the number that was set last, in whichever thread, on to all threads that begin
    later. So a new thread reads it before, and sets it again after.
    """
    with _changes_threads:
        handed_on = _in_new_thread(torch.get_num_threads)
        try:
            torch.set_num_threads(number)
        finally:
            if handed_on is not None:
                _in_new_thread(partial(torch.set_num_threads, handed_on))


def _in_new_thread(function: Callable[[], Any]) -> Any:
    """Return a function's result in a new thread; None where Python ends and starts no more."""
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(function()))
    try:
        thread.start()
    except RuntimeError:
        return None
    thread.join()
    return results[0]
