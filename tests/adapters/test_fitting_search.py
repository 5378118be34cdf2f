"""`fit --search N`: several settings are tried, and the one that is best by validation is kept."""

from __future__ import annotations

import dataclasses
import inspect
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fits import QUICK, QUICK_ARGUMENTS, dataset, table, write_csv
from lmkan_cupy.adapters.fitting import InputError, fit, load, search
from lmkan_cupy.adapters.torch import training

OPTIONS: dict[str, Any] = {
    name: each.default
    for name, each in inspect.signature(fit).parameters.items()
    if name not in ("data", "baseline", "validation")
}
FIRST = {"num_grids": 8, "penalty": 0.1, "learning_rate": 3e-3}


def test_settings_begin_with_the_given_one_and_follow_the_seed() -> None:
    given = {"num_grids": 9, "penalty": 0.0, "learning_rate": 1.0}
    first, *others = search.settings_to_try(200, given, 0.02, seed=2**64 - 1)
    assert first == given
    assert len(others) == 199
    assert {each["num_grids"] for each in others} == {*search.NUM_GRIDS}
    for name, least, most in (("penalty", 2e-4, 0.2), ("learning_rate", 1e-3, 1e-2)):
        values = np.log([each[name] for each in others])
        assert np.log(least) <= values.min() < values.max() <= np.log(most)
        assert values.mean() == pytest.approx(np.log(least * most) / 2, abs=0.5)
        assert [f"{each[name]:.3g}" for each in others] == [f"{each[name]}" for each in others]
    assert search.settings_to_try(200, given, 0.02, seed=2**64 - 1) == [first, *others]
    assert search.settings_to_try(200, given, 0.02, seed=0)[1:] != others
    assert search.settings_to_try(1, given, 0.02, seed=0) == [given]


@pytest.mark.parametrize(
    ("losses", "kept"), [([0.5, 0.3, 0.4, 0.3], 2), ([0.3, None], 1), ([None, 9.0], 2), ([None], 1)]
)
def test_the_first_of_the_least_losses_is_kept(
    losses: list[float | None], kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit_one(estimator: Any) -> None:
        estimator.model_, estimator.validation_loss_ = "model", losses[estimator.number - 1]

    settings = [{"number": each} for each in range(1, len(losses) + 1)]
    with training.held_back("SIGINT") as interruption:
        make: Any = SimpleNamespace
        best, trials, completed = search.best_of(make, settings, fit_one, interruption)
    assert (best.number, completed) == (kept, True)
    assert [each["validation_loss"] for each in trials] == losses
    lines = capsys.readouterr().out.splitlines()
    if len(losses) == 1:
        assert lines == []
    else:
        assert lines[0].startswith("trial 1: number 1: validation loss ")
        assert lines[-1] == f"trial {kept} has the least validation loss and is kept"
        assert len(lines) == len(losses) + 1


@pytest.mark.long
def test_the_kept_setting_gives_the_same_numbers_alone(
    tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(table(), tmp_path / "data.csv")
    arguments = ["--no-baseline", *QUICK_ARGUMENTS]
    code, out, _ = command("fit", "data.csv", "--search", "4", "--out", "model", *arguments)
    assert code == 0
    trials = json.loads((tmp_path / "model" / "metrics.json").read_text())["trials"]
    losses = [each.pop("validation_loss") for each in trials]
    assert trials[0] == FIRST
    kept = int(np.argmin(losses))
    assert kept > 0  # else the search would not be seen
    for number, (setting, loss) in enumerate(zip(trials, losses, strict=True), 1):
        values = ", ".join(f"{name} {value}" for name, value in setting.items())
        assert f"trial {number}: {values}: validation loss {loss:.4g}\n" in out
    assert f"trial {kept + 1} has the least validation loss and is kept\n" in out
    alone = fit(dataset(), baseline=False, **QUICK, **trials[kept])
    assert "trials" not in alone.metrics
    model = load("model")
    assert model.description == alone.model.description
    np.testing.assert_array_equal(
        model.predict(dataset().features), alone.model.predict(dataset().features)
    )


def test_ctrl_c_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    train = training.Trainer.train
    trainings: list[Any] = []

    def interrupted(*arguments: Any) -> training.Training:
        trainings.append(train(*arguments))
        return dataclasses.replace(trainings[-1], completed=len(trainings) < 2)

    monkeypatch.setattr(training.Trainer, "train", interrupted)
    result = fit(dataset(), search=5, **QUICK)
    assert result.interrupted
    assert "mlp" not in result.metrics
    losses = [each["validation_loss"] for each in result.metrics["trials"]]
    assert losses == [each.validation_loss for each in trainings]
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": 0}, "search must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": np.nan}, "learning_rate must be positive, got nan"),
    ],
    ids=str,
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(dataset(), **options)


def test_memory_is_that_of_the_finest_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("lmkan_cupy.adapters.fitting.fit")
    monkeypatch.setattr(module, "_memory_of", lambda _: 2**20)
    module.check_options(dataset(), **OPTIONS)
    with pytest.raises(InputError, match="num_grids 16 take 0 GiB of memory to train"):
        module.check_options(dataset(), **{**OPTIONS, "search": 2})
