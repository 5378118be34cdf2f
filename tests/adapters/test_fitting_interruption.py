"""Ctrl-C, SIGTERM and SIGHUP, at every stage of `fit`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest
import safetensors.numpy
import torch
from fits import FILES, QUICK, QUICK_ARGUMENTS, dataset, quick_fit, table, write_csv
from lmkan_cupy.adapters.fitting import FitResult, FittedModel, fit, load, pictures
from lmkan_cupy.adapters.fitting import command as commands
from lmkan_cupy.adapters.sklearn import LMKANRegressor
from lmkan_cupy.adapters.torch import training
from lmkan_cupy.adapters.torch.training import held_back
from problems import first_short
from torch import nn

Command = Callable[..., tuple[int, str, str]]
NAMES = ["SIGINT", "SIGTERM", "SIGHUP"]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals act as in a new process, before and after every test; then as they did."""
    defaults = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    numbers = [getattr(signal, name) for name in NAMES]
    before = [signal.signal(*each) for each in zip(numbers, defaults, strict=True)]
    yield
    after = [signal.signal(*each) for each in zip(numbers, before, strict=True)]
    assert after == defaults


def send(name: str) -> None:
    """Do what the signal does in this process, but for ending it."""
    handler = signal.getsignal(getattr(signal, name))
    assert callable(handler), f"{name} would end this process"
    handler(getattr(signal, name), None)


# Holding back


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_held_back_until_it_is_let_through(name: str) -> None:
    with held_back(*NAMES) as interruption:
        assert not interruption.came
        send(name)
        assert interruption.came
        with pytest.raises(KeyboardInterrupt), interruption.let_through():
            pytest.fail("was not raised at once")


def test_only_the_first_signal_is_raised() -> None:
    def end() -> None:
        with interruption.let_through():
            try:
                send("SIGINT")
            finally:
                send("SIGTERM")
                ended.append(True)

    ended: list[bool] = []
    with held_back(*NAMES) as interruption:
        with pytest.raises(KeyboardInterrupt):
            end()
        send("SIGINT")
    assert ended


def test_one_inside_of_another_is_the_same() -> None:
    with held_back("SIGTERM") as outer:
        with held_back("SIGINT") as inner:
            assert inner is outer
        send("SIGTERM")
        assert outer.came


def test_signals_that_are_ignored_or_handled_stay_so() -> None:
    handled: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    with held_back(*NAMES) as interruption:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]
    assert not interruption.came
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_nothing_is_let_through_where_it_is_held_back_once_more() -> None:
    with held_back("SIGINT") as interruption, interruption.let_through():
        with held_back("SIGINT"):
            send("SIGINT")
        assert interruption.came


def test_other_threads_hold_nothing_back() -> None:
    def came() -> bool:
        with held_back(*NAMES) as interruption, interruption.let_through():
            return interruption.came

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(came).result()


# In fit


def sending(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but twice there is a signal before it."""

    def called(*arguments: Any, **options: Any) -> Any:
        send(name)
        send(name)
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_during_the_training_keeps_the_best_model(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(training.Trainer, "_validate", sending(name, training.Trainer._validate))
    for each in ("save_parity_picture", "save_functions_picture"):
        monkeypatch.setattr(pictures, each, lambda path, **_: path.touch())
    write_csv(table(), tmp_path / "data.csv")
    code, out, _ = command("fit", "data.csv", "--out", "here", *QUICK_ARGUMENTS)
    assert code == 130
    assert "Interrupted: this is the best model so far." in out
    assert {each.name for each in (tmp_path / "here").iterdir()} == FILES
    metrics = json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert "mlp" not in metrics


@pytest.mark.parametrize(
    ("place", "stage"),
    [
        (training.Trainer, "train"),
        (nn.Sequential, "load_state_dict"),  # the last in a training
        (training.TableNetwork, "fold_"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_signal_before_or_after_the_training_of_an_estimator_keeps_its_model(
    monkeypatch: pytest.MonkeyPatch, place: Any, stage: str
) -> None:
    data = dataset()
    expected = LMKANRegressor(random_state=0, **QUICK).fit(data.encoded, data.values)
    monkeypatch.setattr(place, stage, sending("SIGINT", getattr(place, stage)))
    regressor = LMKANRegressor(random_state=0, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        regressor.fit(data.encoded, data.values)
    predictions = regressor.predict(data.encoded)
    if stage == "train":  # ends after its first step
        assert np.isfinite(predictions).all()
    else:
        np.testing.assert_array_equal(predictions, expected.predict(data.encoded))


def test_a_signal_at_the_end_of_a_training_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nn.Sequential, "load_state_dict", sending("SIGINT", nn.Sequential.load_state_dict)
    )
    network = nn.Sequential(nn.Linear(3, 1))
    trainer = training.Trainer([(torch.ones(1, 3), torch.ones(1, 1))], 1, None, nn.MSELoss(), 0.0)
    done = trainer.train("", network, [{"params": [*network.parameters()], "lr": 0.1}])
    assert (done.steps, done.completed) == (1, False)


def test_a_signal_before_there_is_a_model_leaves_nothing(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = import_module("lmkan_cupy.adapters.fitting.fit").LMKANRegressor
    monkeypatch.setattr(estimator, "fit", sending("SIGTERM", estimator.fit))
    write_csv(table(), tmp_path / "data.csv")
    code, _, err = command("fit", "data.csv", *QUICK_ARGUMENTS)
    assert code == 130
    assert err == "error: interrupted before there was a result; nothing was written\n"
    assert os.listdir(tmp_path) == ["data.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_while_predictions_are_written_leaves_nothing(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        send(name)

    quick_fit().model.save(tmp_path)
    write_csv(table(), tmp_path / "data.csv")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Path, "write_bytes", write_half)
    assert command("predict", ".", "data.csv", "--out", "y.csv") == (
        130,
        "",
        "error: interrupted before there was a result; nothing was written\n",
    )
    assert sorted(tmp_path.iterdir()) == before


def fit_without_raising() -> FitResult:
    try:
        return fit(dataset(), **QUICK)
    except KeyboardInterrupt:  # would end all tests
        pytest.fail("the model is lost")


@pytest.mark.parametrize("stage", ["_untrained_mlp", "_rows_per_second", "evaluate"])
def test_a_signal_between_and_after_the_trainings_keeps_the_model(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    module = import_module("lmkan_cupy.adapters.fitting.fit")
    monkeypatch.setattr(module, stage, sending("SIGINT", getattr(module, stage)))
    result = fit_without_raising()
    assert result.interrupted
    assert ("mlp" in result.metrics) == (stage != "_untrained_mlp")


def test_a_signal_during_the_training_of_the_mlp_leaves_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = training.Trainer.train

    def interrupted(self: Any, label: str, *arguments: Any) -> training.Training:
        if label == "MLP":
            send("SIGINT")
        return train(self, label, *arguments)

    monkeypatch.setattr(training.Trainer, "train", interrupted)
    result = fit_without_raising()
    assert result.interrupted
    assert set(result.test_predictions) == {"lmkan"}


@pytest.mark.parametrize(
    ("place", "stage"),
    first_short(
        [
            (safetensors.numpy, "save"),
            (FittedModel, "save"),
            (pictures, "save_parity_picture"),
            (pictures, "save_functions_picture"),
        ]
    ),
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_signal_while_all_is_saved_does_not_disturb_it(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, place: Any, stage: str
) -> None:
    monkeypatch.setattr(commands, "fit", lambda *_, **__: quick_fit())
    monkeypatch.setattr(place, stage, sending("SIGTERM", getattr(place, stage)))
    write_csv(table(), tmp_path / "data.csv")
    code, out, _ = command("fit", "data.csv", "--out", "here")
    assert code == 130
    assert "Interrupted" not in out  # the training was not
    assert {each.name for each in (tmp_path / "here").iterdir()} == FILES


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_from_outside_keeps_the_best_model(tmp_path: Path, name: str) -> None:
    write_csv(table(), tmp_path / "data.csv")
    arguments = ["fit", "data.csv", "--epochs", "1000000", "--out", "here"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmkan_cupy", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(fresh_process.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        progress = b""
        while b"step/s" not in progress:
            more = os.read(process.stderr.fileno(), 4096)
            assert more, progress
            progress += more
        process.send_signal(getattr(signal, name))
        out, err = process.communicate()
    finally:
        process.kill()  # a failure must not leave it training beside the other tests
    assert process.returncode == 130, err
    assert b"Interrupted: this is the best model so far." in out
    assert b"Traceback" not in err
    assert {each.name for each in (tmp_path / "here").iterdir()} == FILES
    assert "mlp" not in json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert np.isfinite(load(tmp_path / "here").predict(table().to_numpy()[:, :3])).all()
