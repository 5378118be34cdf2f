"""What all experiments share: runs that can be interrupted and resumed, kept in one JSON file.

Every model is trained with each of its learning rates and seed 0; the one with the lowest
validation loss is used for its other seeds. The file has all runs, so it shows what was tried.

A small network leaves most of a GPU idle, so several are trained there at once, each on its own
stream. The ``seconds`` of a run are those it took beside the others and whatever else the machine
did, ``cpu_seconds`` those of the process; ``rows_per_second`` is measured one network at a time.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numpy as np
import torch
from lmkan_cupy.adapters.torch.training import ROWS_AT_ONCE, Trainer, evaluate, progress_bar
from lmkan_cupy.adapters.torch.training.cuda_graph import GraphedFunction, new_stream
from lmkan_cupy.adapters.torch.training.trainer import BETAS, FIRST_PART, one_thread
from torch import Tensor, nn

from ..harness.results_file import RESULTS, circumstances, of_same_setting, read, write
from ..harness.timing import interleave, stopwatch
from .models import Model

#: Number of runs that share a device.
TOGETHER = {"cpu": 1, "cuda": 16}

#: Batches in one timing of inference: on a CPU enough that the first, with cold caches, counts
#: little. On a GPU one is enough, for the stopwatch waits until the batch is queued.
BATCHES_TIMED = {"cpu": 8, "cuda": 1}

#: Scales of the paper's setting that try several learning rates; the others take a pilot's.
SEVERAL_RATES = ("smoke", "pilot")

#: What identifies a run: model, learning rate and seed.
Key: TypeAlias = tuple[Model, float, int]

_Run: TypeAlias = Generator[dict[str, Any] | None, None, None]


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes
    ----------
    batches : callable
        Returns the training batches for a seed, on the device, without end.
    steps : int
        Number of batches that every model is trained on.
    validation, test : (Tensor [M, ...], Tensor [M, ...])
        Inputs and targets: to choose state and learning rate, and to report errors.
    loss : callable
        ``loss(predictions, targets)``, the mean over rows.
    errors : callable
        ``errors(predictions, targets)`` by name, the main one first; lower is better.
    penalty : float
        The weight of the Hessian penalty.
    setting : dict
        Whatever else the results depend on, for the results file.
    rows_at_once : int
        Batch size of inference, also when it is timed.
    keeps_statistics : bool
        As for the :class:`~lmkan_cupy.adapters.torch.training.Trainer`.
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
    """Models to train on a task, with their seeds, and to time for some seconds, if any."""

    title: str
    task: Task
    models: Sequence[Model]
    timing_seconds: float = 30.0

    def run(self, path: Path, device: torch.device) -> None:
        """Do the runs that the file at ``path`` lacks, and write it after each of them.

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
        results = of_same_setting(path, {"title": self.title, "setting": setting, "runs": []})
        torch.set_num_threads(numba.get_num_threads())  # the same for all networks
        here, runs = _circumstances(device), results["runs"]
        results.setdefault("circumstances", here)
        total = sum(len(model.learning_rates) + model.seeds - 1 for model in self.models)
        with (
            told_how_to_resume(runs, total),
            progress_bar(total=total, initial=len(runs), unit="run", desc=path.stem) as bar,
        ):
            for run in self._trained(runs, device):
                run["commit"] = here["commit"]
                bar.set_postfix_str(
                    f"{run['model']}, lr {run['rate']:g}, seed {run['seed']}", refresh=False
                )
                bar.update()
                write(path, results)
        timed = results.setdefault("rows_per_second", {})
        if self.timing_seconds and not timed.keys() >= {model.label for model in self.models}:
            timed |= self._rows_per_second(device)
            results["circumstances"] = here
            write(path, results)
        print(f"{path} has all {len(runs)} runs")

    def _trained(
        self, runs: list[dict[str, Any]], device: torch.device
    ) -> Iterator[dict[str, Any]]:
        """Yield the missing runs as they finish, and append each to ``runs``."""
        under_way: dict[Key, tuple[torch.cuda.Stream | None, _Run]] = {}

        def begin() -> None:
            for key in self._missing(runs):
                if len(under_way) < TOGETHER[device.type] and key not in under_way:
                    under_way[key] = new_stream(device), self._train(*key, device)

        begin()
        with one_thread():
            while under_way:
                for key, (stream, run) in [*under_way.items()]:
                    # Leave a busy stream alone: were its queue full, all runs would wait for it.
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
        """Return the runs that can start; seeds above 0 once a model's learning rates are tried.

        Seed 0 of every model comes first, so that the results are soon of all models.
        """
        done = {(run["model"], run["rate"], run["seed"]) for run in runs}
        planned: list[Key] = []
        for model in self.models:
            planned += [(model, lr, 0) for lr in model.learning_rates]
            if all((model.label, lr, 0) in done for lr in model.learning_rates):
                lr = chosen_lr(runs, model.label)
                planned += [(model, lr, seed) for seed in range(1, model.seeds)]
        missing = [key for key in planned if (key[0].label, *key[1:]) not in done]
        return sorted(missing, key=lambda key: key[2])

    def _train(self, model: Model, lr: float, seed: int, device: torch.device) -> _Run:
        """Train a network; yield None after every few steps, and at the end what the file keeps."""
        task = self.task
        torch.manual_seed(seed)
        network = model.build().to(device)
        options = {"keeps_statistics": task.keeps_statistics}
        options |= model.trainer_options(task.steps, task.penalty)
        trainer = Trainer(
            batches=task.batches(seed),
            steps=task.steps,
            validation=task.validation,
            loss=task.loss,
            rows_at_once=task.rows_at_once,
            **options,
        )
        started, cpu_started = time.perf_counter(), time.process_time()
        groups = model.parameter_groups(network, lr)
        training = yield from trainer.train_in_chunks(model.label, network, groups)
        if not training.completed:
            raise KeyboardInterrupt
        seconds = {"seconds": round(time.perf_counter() - started, 2)}
        if TOGETHER[device.type] == 1:  # else it is the time of all that train side by side
            seconds["cpu_seconds"] = round(time.process_time() - cpu_started, 2)
        deployed = model.deployed(network)
        inputs, targets = task.test
        yield {
            "model": model.label,
            "kind": model.kind,
            "flops": model.flops(),
            "parameters": sum(each.numel() for each in deployed.parameters()),
            "rate": lr,
            "seed": seed,
            "validation_loss": training.validation_loss,
            "curve": [
                (step, float(f"{loss:.4g}")) for step, loss in training.curve if math.isfinite(loss)
            ],
            "errors": task.errors(evaluate(deployed, inputs, task.rows_at_once), targets),
            **seconds,
        }

    def _rows_per_second(self, device: torch.device) -> dict[str, float]:
        """Time inference of all models, in turn, in batches of ``rows_at_once`` rows.

        The time depends only on the sizes, so the networks need not be the trained ones. On the CPU
        some are also timed in onnxruntime, and the faster way counts.
        """
        rows = BATCHES_TIMED[device.type] * self.task.rows_at_once
        inputs, _ = self.task.test
        inputs = inputs[torch.arange(rows, device=device) % len(inputs)]
        networks = {each.label: each.deployed(each.build().to(device)) for each in self.models}
        if device.type == "cuda":
            from ..harness.cuda_device import device_stopwatch  # needs CuPy

            def measure(network: nn.Module) -> Callable[[], tuple[float]]:
                forward = GraphedFunction(network.eval())
                return lambda: device_stopwatch(forward, inputs)[:1]

        else:

            def measure(network: nn.Module) -> Callable[[], tuple[float]]:
                return lambda: stopwatch(evaluate, network, inputs, self.task.rows_at_once)[:1]

        measurements = {(label, "torch"): measure(each) for label, each in networks.items()}
        if device.type == "cpu":
            measurements |= {
                (model.label, "onnxruntime"): self._in_onnxruntime(networks[model.label], inputs)
                for model in self.models
                if model.runs_in_onnx
            }
        with torch.no_grad(), torch.cuda.stream(new_stream(device)):
            taken = interleave(measurements, seconds=self.timing_seconds)
        seconds: dict[str, float] = {}
        for (label, _), each in taken.items():
            seconds[label] = min(float(np.median(each)), seconds.get(label, math.inf))
        return {label: len(inputs) / fastest for label, fastest in seconds.items()}

    def _in_onnxruntime(self, network: nn.Module, inputs: Tensor) -> Callable[[], tuple[float]]:
        from ..harness import onnx  # takes seconds to import

        rows = inputs.flatten(1)
        network = nn.Sequential(nn.Unflatten(1, inputs.shape[1:]), network)
        evaluated = onnx.session(network, rows.shape[1], torch.get_num_threads())
        parts = [each.numpy() for each in torch.split(rows, self.task.rows_at_once)]
        return lambda: stopwatch(lambda: [evaluated(part) for part in parts])[:1]


@contextmanager
def told_how_to_resume(runs: Sized, total: int) -> Iterator[None]:
    """After Ctrl-C, exit and say how many of the ``total`` runs there are."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"interrupted after {len(runs)} of {total} runs: the same command resumes them")


def chosen_lr(runs: Iterable[Mapping[str, Any]], label: str) -> float:
    """Return the learning rate of a model's run with seed 0 and the lowest validation loss."""

    def validation_loss(run: Mapping[str, Any]) -> float:
        loss = run["validation_loss"]
        return math.inf if loss is None else float(loss)  # None: never finite

    tried = [run for run in runs if run["model"] == label and run["seed"] == 0]
    return float(min(tried, key=validation_loss)["rate"])


def command_line(
    name: str, description: str | None, *, has_paper: bool = False
) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all experiments take.

    ``has_paper``: there is a ``--setting paper``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--setting",
        choices=("own", "paper") if has_paper else ("own",),
        default="own",
        help="sizes, data and training of this project, or of the paper; default: own",
    )
    parser.add_argument(
        "--scale",
        choices=("smoke", "pilot", "cpu", "gpu"),
        default="smoke",
        help="default: smoke; pilot, which chooses learning rates, is only for --setting paper",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda for --scale gpu, else cpu"
    )
    parser.add_argument(
        "--up-to",
        type=float,
        default=math.inf,
        metavar="FLOPS",
        help="leave out networks with more FLOPs; a later command can add them",
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave out the timing of inference, on a busy machine; a later command can add it",
    )
    parser.add_argument("--out", type=Path, help="the file to write, and to resume from")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments, with ``device`` as a torch.device."""
    arguments = parser.parse_args()
    if getattr(arguments, "pykan", False) and find_spec("kan") is None:
        parser.error("--pykan needs the package pykan: pip install -r bench/requirements.txt")
    if arguments.scale == "pilot" and arguments.setting != "paper":
        parser.error("--scale pilot needs --setting paper")
    if getattr(arguments, "sweep", False) and arguments.setting != "paper":
        parser.error("--sweep needs --setting paper")
    arguments.device = torch.device(
        arguments.device or ("cuda" if arguments.scale == "gpu" else "cpu")
    )
    return arguments


def with_pykan(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the argument ``--pykan``."""
    parser.add_argument(
        "--pykan", action="store_true", help="also train networks of the package pykan"
    )
    return parser


def rates_of_pilot(path: Path) -> dict[str, float]:
    """Return the learning rate of every kind of network that was best in a pilot.

    Raises
    ------
    FileNotFoundError
        If there is no file of a finished pilot.
    """
    results = read(path)
    if not results.get("rows_per_second"):  # measured at its end
        raise FileNotFoundError(
            f"{path}: there is no finished pilot, whose learning rates are taken: "
            "run --scale pilot first"
        )
    kinds = {run["model"]: run["kind"] for run in results["runs"]}
    return {kind: chosen_lr(results["runs"], model) for model, kind in kinds.items()}


def with_sweep(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the argument ``--sweep``."""
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="with --setting paper: one lmKAN with many grids and penalties",
    )
    return parser


def carry_out(experiment: Experiment, name: str, arguments: argparse.Namespace) -> None:
    """Do the runs of an experiment that the arguments ask for."""
    models = [model for model in experiment.models if model.flops() <= arguments.up_to]
    seconds = 0.0 if arguments.untimed else experiment.timing_seconds
    asked_for = replace(experiment, models=models, timing_seconds=seconds)
    asked_for.run(results_path(name, arguments), arguments.device)


def results_path(name: str, arguments: argparse.Namespace) -> Path:
    """Return the file to write: ``--out``, or one named after the experiment."""
    setting = "-paper" if arguments.setting == "paper" else ""
    file = f"{name}{setting}-{arguments.scale}-{arguments.device.type}.json"
    return arguments.out or RESULTS / file


def paper_rates(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the learning rates for ``--setting paper``: none for a scale that tries several.

    The pilot's file is beside the one to write.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if arguments.scale in SEVERAL_RATES:
        return {}
    return rates_of_pilot(results_path(name, arguments).with_name(f"{name}-paper-pilot-cpu.json"))


def _circumstances(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return circumstances()
    from ..harness.cuda_device import describe  # needs CuPy

    return circumstances() | {"gpu": describe()}
