"""What all experiments share: resuming, learning rates, seeds, and the setting in the file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import smoke_runs
import torch
from lmkan_cupy.adapters.torch import training
from smoke_runs import untimed

from bench.experiments import approximation, cifar10, experiment, fashion_mnist, methane
from bench.experiments.models import LMKAN, MLP

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def few_students() -> Iterator[None]:
    """Leave only two networks to train."""
    students = [LMKAN((4, 4, 1)), MLP((4, 6, 1))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximation, "students", lambda *_: students)
        yield


@pytest.fixture(scope="module")
def finished(few_students: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of a finished experiment; tests change copies of them."""
    return smoke_runs.run(approximation, tmp_path_factory.mktemp("finished"))


@pytest.mark.long
def test_an_experiment_resumes_where_it_stopped(
    finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = smoke_runs.path(approximation, tmp_path)
    stopped = finished | {"runs": finished["runs"][:-3]}
    del stopped["rows_per_second"]
    path.write_text(json.dumps(stopped))
    trained = []
    train = experiment.Experiment._train

    def counted(self: Any, *arguments: Any) -> Any:
        trained.append(arguments)
        return train(self, *arguments)

    monkeypatch.setattr(experiment.Experiment, "_train", counted)
    resumed = smoke_runs.run(approximation, tmp_path)
    assert untimed(resumed) == untimed(finished)
    assert len(trained) == 3
    assert smoke_runs.run(approximation, tmp_path) == resumed
    assert len(trained) == 3
    label, _ = resumed["rows_per_second"].popitem()  # as if its model had been added
    path.write_text(json.dumps(resumed))
    assert label in smoke_runs.run(approximation, tmp_path)["rows_per_second"]
    assert len(trained) == 3


def test_an_interrupted_experiment_says_how_to_resume_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = experiment.Experiment._train

    def interrupted(self: Any, model: Any, lr: float, *rest: Any) -> Any:
        if lr > 3e-3:
            raise KeyboardInterrupt
        yield from train(self, model, lr, *rest)

    monkeypatch.setattr(experiment.Experiment, "_train", interrupted)
    with pytest.raises(SystemExit, match=r"^interrupted after 1 of 10 runs: the same"):
        smoke_runs.run(approximation, tmp_path)
    assert len(smoke_runs.read(approximation, tmp_path)["runs"]) == 1


@pytest.mark.parametrize(
    ("module", "arguments", "text"),
    [
        (methane, ["--inputs", "forces"], "--inputs forces needs --data, a folder"),
        (methane, ["--pykan"], "pip install -r bench/requirements.txt"),
        (cifar10, ["--data", "nowhere"], "nowhere: neither cifar10_jpeg.npz nor"),
        (fashion_mnist, ["--data", "nowhere"], "nowhere/train-images-idx3-ubyte.gz"),
    ],
)
def test_missing_data_and_packages_are_named(
    module: Any,
    arguments: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(experiment, "find_spec", lambda package: None)
    with pytest.raises(SystemExit):
        smoke_runs.run(module, tmp_path, *arguments)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "device"),
    [([], "cpu"), (["--scale", "gpu"], "cuda"), (["--scale", "gpu", "--device", "cpu"], "cpu")],
)
def test_the_scale_gpu_runs_on_a_gpu(
    arguments: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
    assert experiment.parse(experiment.command_line("", None)).device.type == device


def test_runs_of_another_setting_are_not_mixed_in(tmp_path: Path) -> None:
    path = smoke_runs.path(approximation, tmp_path)
    path.write_text(json.dumps({"setting": {"steps": 7}, "runs": []}))
    with pytest.raises(ValueError, match="move the file away"):
        smoke_runs.run(approximation, tmp_path)


def test_a_learning_rate_that_diverged_is_not_chosen() -> None:
    runs = [
        {"model": "A", "seed": 0, "rate": lr, "validation_loss": loss}
        for lr, loss in ((0.1, 2.0), (0.2, 1.0), (0.3, None))
    ]
    assert experiment.chosen_lr(runs, "A") == 0.2


def test_a_run_depends_only_on_its_seed() -> None:
    task = approximation.make_task(approximation.SETTINGS["smoke"], CPU)
    trial = experiment.Experiment("", task, [])
    first, same, other = (
        untimed({"runs": [[*trial._train(LMKAN((4, 4, 1)), 3e-3, seed, CPU)][-1]]})
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first[0]["errors"] != other[0]["errors"]


def test_a_model_weighs_the_penalty() -> None:
    task = approximation.make_task(approximation.SETTINGS["smoke"], CPU)

    def errors(penalty: float, factor: float) -> dict[str, float]:
        trial = experiment.Experiment("", replace(task, penalty=penalty), [])
        *_, run = trial._train(LMKAN((4, 4, 1), penalty_factor=factor), 3e-3, 0, CPU)
        return run["errors"]

    assert errors(1.0, 0.0) == errors(0.0, 1.0)
    assert errors(1.0, 0.5) == errors(0.5, 1.0) != errors(1.0, 1.0)


@pytest.mark.long
def test_the_setting_names_adams_betas(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished["setting"]["adam_betas"] == [0.9, 0.99]
    task = approximation.make_task(approximation.SETTINGS["smoke"], CPU)

    def errors() -> dict[str, float]:
        *_, run = experiment.Experiment("", task, [])._train(MLP((4, 6, 1)), 3e-2, 0, CPU)
        return run["errors"]

    before = errors()
    assert errors() == before
    monkeypatch.setattr(training.trainer, "BETAS", (0.9, 0.9))
    assert errors() != before


@pytest.mark.long
def test_more_runs_leave_the_circumstances_of_the_timings(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    here = finished["circumstances"]["commit"]
    before = {"commit": "of another day", "note": "written by hand"}
    *runs, last = finished["runs"]
    unfinished = finished | {"circumstances": before, "runs": runs}
    smoke_runs.path(approximation, tmp_path).write_text(json.dumps(unfinished))
    resumed = smoke_runs.run(approximation, tmp_path)
    assert resumed["circumstances"] == before
    assert untimed(resumed) == untimed(finished)
    assert last["commit"] == resumed["runs"][-1]["commit"] == here


@pytest.mark.long
def test_runs_side_by_side_are_those_one_after_another(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a GPU; seeds above 0 wait for the learning rates of their model."""
    monkeypatch.setattr(experiment, "TOGETHER", {"cpu": 5})
    train = experiment.Experiment._train
    under_way, most = 0, 0

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            yield from train(self, *arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(experiment.Experiment, "_train", counted)
    together = smoke_runs.run(approximation, tmp_path)
    assert most == 5

    def ordered(results: dict[str, Any]) -> list[dict[str, Any]]:
        return sorted(untimed(results), key=lambda run: (run["model"], run["rate"], run["seed"]))

    assert ordered(together) == ordered(finished)
