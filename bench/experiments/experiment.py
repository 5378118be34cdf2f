"""What all experiments share: runs that can be interrupted and resumed, kept in one JSON file.

First every model is trained with every learning rate, seed 0; the rate with the lowest validation
loss is kept for the model's other seeds. All runs are in the file, so it shows what was tried.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from lmkan_cupy.adapters.training import ROWS_AT_ONCE, Trainer, evaluate
from torch import Tensor, nn
from tqdm import tqdm

from ..record import circumstances, gpu_circumstances, read, write
from ..timing import interleave
from .models import Model

RESULTS = Path(__file__).parents[1] / "results"


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
        What the Hessian penalty falls to.
    setting : dict
        What else the results depend on, for the record.
    rows_at_once, keeps_statistics
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
        """
        setting = {**self.task.setting, "steps": self.task.steps, "penalty": self.task.penalty}
        results = read(path) or {"title": self.title, "setting": setting, "runs": []}
        if results["setting"] != setting:
            raise ValueError(
                f"{path} holds results of the setting {results['setting']}, but this is {setting}: "
                "move the file away"
            )
        torch.set_num_threads(numba.get_num_threads())  # the same for everybody
        runs = results["runs"]
        total = sum(len(model.rates) + self.seeds - 1 for model in self.models)
        with tqdm(total=total, unit="run", desc=path.stem) as bar:
            for model, rate, seed in self._planned(runs):
                if _find(runs, model, rate, seed) is None:
                    bar.set_postfix_str(f"{model.label}, rate {rate:g}, seed {seed}")
                    runs.append(self._train(model, rate, seed, device))
                    results["circumstances"] = _circumstances(device)
                    write(path, results)
                bar.update()
        if "rows_per_second" not in results:
            results["rows_per_second"] = self._rows_per_second(device)
            write(path, results)

    def _planned(self, runs: list[dict[str, Any]]) -> Iterator[tuple[Model, float, int]]:
        """Yield all runs in turn; ``runs`` has grown by those before."""
        for model in self.models:
            for rate in model.rates:
                yield model, rate, 0
        for seed in range(1, self.seeds):
            for model in self.models:
                yield model, chosen_rate(runs, model.label), seed

    def _train(self, model: Model, rate: float, seed: int, device: torch.device) -> dict[str, Any]:
        task = self.task
        torch.manual_seed(seed)
        network = model.build().to(device)
        trainer = Trainer(
            batches=task.batches(seed),
            steps=task.steps,
            validation=task.validation,
            loss=task.loss,
            penalty=task.penalty,
            penalty_start=model.penalty_start,
            keeps_statistics=task.keeps_statistics,
            rows_at_once=task.rows_at_once,
        )
        started = time.perf_counter()
        training = trainer.train(model.label, network, model.parameter_groups(network, rate))
        if not training.completed:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - started
        deployed = model.deployed(network)
        inputs, targets = task.test
        return {
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
        """Measure inference of all models, in turn, on the rows of the test.

        The time depends on sizes alone, so the networks are new ones.
        """
        inputs, _ = self.task.test

        def measure(network: nn.Module) -> Callable[[], tuple[float]]:
            def seconds() -> tuple[float]:
                start = time.perf_counter()
                evaluate(network, inputs, self.task.rows_at_once)  # ends with a copy of the answers
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                return (time.perf_counter() - start,)

            return seconds

        networks = {each.label: each.deployed(each.build().to(device)) for each in self.models}
        measurements = {label: measure(each) for label, each in networks.items()}
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
    parser.add_argument("--device", type=torch.device, default="cpu", help='"cpu" or "cuda"')
    parser.add_argument("--out", type=Path, help="the file to write, and to resume from")
    return parser


def results_path(name: str, arguments: argparse.Namespace) -> Path:
    """Return where the results go: ``--out``, or a file named after the experiment."""
    file = f"{name}-{arguments.scale}-{arguments.device.type}.json"
    return arguments.out or RESULTS / file


def _find(
    runs: Iterable[Mapping[str, Any]], model: Model, rate: float, seed: int
) -> Mapping[str, Any] | None:
    key = (model.label, rate, seed)
    return next((run for run in runs if (run["model"], run["rate"], run["seed"]) == key), None)


def _circumstances(device: torch.device) -> dict[str, Any]:
    gpu = {"gpu": gpu_circumstances()} if device.type == "cuda" else {}
    return {**circumstances(), **gpu}
