"""What all experiments share: runs that can be interrupted and resumed, kept in one JSON file.

Every model is trained with every learning rate, seed 0; the rate with the lowest validation loss is
kept for its other seeds. All runs are in the file, so it shows what was tried.

A small network leaves most of a GPU idle: there several are trained at once, each on a stream of
its own. Their ``seconds`` are those they took side by side; ``rows_per_second`` is measured alone.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numpy as np
import torch
from lmkan_cupy.adapters.replay import Replayed
from lmkan_cupy.adapters.training import (
    BETAS,
    FIRST_PART,
    ROWS_AT_ONCE,
    Trainer,
    evaluate,
    one_thread,
    own_stream,
)
from torch import Tensor, nn
from tqdm import tqdm

from ..harness.results_file import RESULTS, circumstances, read, write
from ..harness.timing import interleave, stopwatch
from .models import Model

#: Runs that share a device.
TOGETHER = {"cpu": 1, "cuda": 16}

#: Batches in one timing of inference: on a CPU so many that the first, with cold caches, counts
#: little; a GPU's stopwatch repeats its own.
BATCHES_TIMED = {"cpu": 8, "cuda": 1}

#: What a run is told by: model, learning rate and seed.
Key: TypeAlias = tuple[Model, float, int]

_Run: TypeAlias = Generator[dict[str, Any] | None, None, None]


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes
    ----------
    batches : callable
        Gives the training batches for a seed, on the device, endlessly.
    steps : int
        Batches that every model is trained on.
    validation, test : (Tensor [M, ...], Tensor [M, ...])
        Inputs and targets: to choose state and learning rate by, and to report.
    loss : callable
        ``loss(answers, targets)``, the mean over rows.
    errors : callable
        ``errors(answers, targets)`` by name, the main one first; lower is better.
    penalty : float
        The weight of the Hessian penalty.
    setting : dict
        What else the results depend on, for the record.
    rows_at_once : int
        In inference, also when it is timed.
    keeps_statistics : bool
        As of the :class:`~lmkan_cupy.adapters.training.Trainer`.
    """

    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    steps: int
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    errors: Callable[[Tensor, Tensor], dict[str, float]]
    penalty: float
    setting: Mapping[str, Any]
    rows_at_once: int = ROWS_AT_ONCE
    keeps_statistics: bool = True


@dataclass(frozen=True)
class Experiment:
    """Models to be trained on a task, several seeds each, and to be timed for some seconds."""

    title: str
    task: Task
    models: Sequence[Model]
    seeds: int = 3
    timing_seconds: float = 30.0

    def run(self, path: Path, device: torch.device) -> None:
        """Do what the file at ``path`` lacks; after every run it is written anew.

        Raises
        ------
        ValueError
            If the file holds results of another setting.
        SystemExit
            After Ctrl-C.
        """
        setting = {
            **self.task.setting,
            "steps": self.task.steps,
            "first_part": FIRST_PART,
            "adam_betas": [*BETAS],
            "penalty": self.task.penalty,
        }
        results = read(path) or {"title": self.title, "setting": setting, "runs": []}
        if results["setting"] != setting:
            raise ValueError(
                f"{path} holds results of the setting {results['setting']}, but this is {setting}: "
                "move the file away"
            )
        torch.set_num_threads(numba.get_num_threads())  # the same for everybody
        here, runs = _circumstances(device), results["runs"]
        results.setdefault("circumstances", here)
        total = sum(len(model.rates) + self.seeds - 1 for model in self.models)
        try:
            with tqdm(total=total, initial=len(runs), unit="run", desc=path.stem) as bar:
                for run in self._trained(runs, device):
                    run["commit"] = here["commit"]
                    bar.set_postfix_str(f"{run['model']}, rate {run['rate']:g}, seed {run['seed']}")
                    bar.update()
                    write(path, results)
        except KeyboardInterrupt:
            sys.exit(f"interrupted after {len(runs)} of {total} runs: the same command goes on")
        timed = results.setdefault("rows_per_second", {})
        if not timed.keys() >= {model.label for model in self.models}:
            timed |= self._rows_per_second(device)
            results["circumstances"] = here
            write(path, results)
        print(f"{path} has all {len(runs)} runs")

    def _trained(
        self, runs: list[dict[str, Any]], device: torch.device
    ) -> Iterator[dict[str, Any]]:
        """Yield the runs that are missing as they end, each appended to ``runs``."""
        under_way: dict[Key, tuple[torch.cuda.Stream | None, _Run]] = {}

        def begin() -> None:
            for key in self._missing(runs):
                if len(under_way) < TOGETHER[device.type] and key not in under_way:
                    under_way[key] = own_stream(device), self._train(*key, device)

        begin()
        with one_thread():
            while under_way:
                for key, (stream, run) in [*under_way.items()]:
                    # Who is still busy waits, so that no queue is so full that all wait for it.
                    if stream is not None and not stream.query():
                        continue
                    with torch.cuda.stream(stream):
                        if (result := next(run)) is None:
                            continue
                    del under_way[key]
                    runs.append(result)
                    begin()
                    yield result

    def _missing(self, runs: Sequence[Mapping[str, Any]]) -> list[Key]:
        """Return the runs that can be begun, other seeds of a model once its rates are tried."""
        done = {(run["model"], run["rate"], run["seed"]) for run in runs}
        planned: list[Key] = []
        for model in self.models:
            planned += [(model, rate, 0) for rate in model.rates]
            if all((model.label, rate, 0) in done for rate in model.rates):
                rate = chosen_rate(runs, model.label)
                planned += [(model, rate, seed) for seed in range(1, self.seeds)]
        return [key for key in planned if (key[0].label, *key[1:]) not in done]

    def _train(self, model: Model, rate: float, seed: int, device: torch.device) -> _Run:
        """Train a network; yield None after every few steps, and what is to be kept at the end."""
        task = self.task
        torch.manual_seed(seed)
        network = model.build().to(device)
        trainer = Trainer(
            batches=task.batches(seed),
            steps=task.steps,
            validation=task.validation,
            loss=task.loss,
            penalty=model.penalty_factor * task.penalty,
            penalty_start=model.penalty_start,
            refined_num_grids=model.refined_num_grids,
            keeps_statistics=task.keeps_statistics,
            rows_at_once=task.rows_at_once,
        )
        started = time.perf_counter()
        bursts = trainer.bursts(model.label, network, model.parameter_groups(network, rate))
        training = yield from bursts
        if not training.completed:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - started
        deployed = model.deployed(network)
        inputs, targets = task.test
        yield {
            "model": model.label,
            "kind": model.kind,
            "flops": model.flops(),
            "parameters": sum(each.numel() for each in deployed.parameters()),
            "rate": rate,
            "seed": seed,
            "validation_loss": training.validation_loss,
            "errors": task.errors(evaluate(deployed, inputs, task.rows_at_once), targets),
            "seconds": round(seconds, 2),
        }

    def _rows_per_second(self, device: torch.device) -> dict[str, float]:
        """Measure inference of all models, in turn, in batches of ``rows_at_once`` rows.

        The time depends on sizes alone, so the networks are new ones.
        """
        rows = BATCHES_TIMED[device.type] * self.task.rows_at_once
        inputs, _ = self.task.test
        inputs = inputs[torch.arange(rows, device=device) % len(inputs)]
        networks = {each.label: each.deployed(each.build().to(device)) for each in self.models}
        if device.type == "cuda":
            from ..harness.cuda_device import device_stopwatch  # needs CuPy

            def measure(network: nn.Module) -> Callable[[], tuple[float]]:
                forward = Replayed(network.eval())
                return lambda: device_stopwatch(forward, inputs)[:1]

        else:

            def measure(network: nn.Module) -> Callable[[], tuple[float]]:
                return lambda: stopwatch(evaluate, network, inputs, self.task.rows_at_once)[:1]

        measurements = {label: measure(each) for label, each in networks.items()}
        with torch.no_grad(), torch.cuda.stream(own_stream(device)):
            taken = interleave(measurements, seconds=self.timing_seconds)
        return {label: len(inputs) / float(np.median(each)) for label, each in taken.items()}


def chosen_rate(runs: Iterable[Mapping[str, Any]], label: str) -> float:
    """Return the rate of a model's run with seed 0 that has the lowest validation loss."""

    def validation_loss(run: Mapping[str, Any]) -> float:
        loss = run["validation_loss"]
        return math.inf if loss is None else float(loss)  # None: it was never finite

    tried = [run for run in runs if run["model"] == label and run["seed"] == 0]
    return float(min(tried, key=validation_loss)["rate"])


def command_line(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return what reads the arguments that all experiments take."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=("smoke", "cpu", "gpu"), default="smoke")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="cuda for the scale gpu, else cpu"
    )
    parser.add_argument("--out", type=Path, help="the file to write, and to resume from")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments, ``device`` as torch's."""
    arguments = parser.parse_args()
    if getattr(arguments, "pykan", False) and find_spec("kan") is None:
        parser.error("--pykan needs that package: pip install -r bench/requirements.txt")
    arguments.device = torch.device(
        arguments.device or ("cuda" if arguments.scale == "gpu" else "cpu")
    )
    return arguments


def with_pykan(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let the rivals be complete where their package is installed."""
    parser.add_argument(
        "--pykan", action="store_true", help="networks of the package too: bench/requirements.txt"
    )
    return parser


def results_path(name: str, arguments: argparse.Namespace) -> Path:
    """Return where the results go: ``--out``, or a file named after the experiment."""
    file = f"{name}-{arguments.scale}-{arguments.device.type}.json"
    return arguments.out or RESULTS / file


def _circumstances(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return circumstances()
    from ..harness.cuda_device import describe  # needs CuPy

    return circumstances() | {"gpu": describe()}
