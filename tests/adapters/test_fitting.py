"""`python -m lmkan_cupy fit` and `predict`, and the functions behind them, on small tables."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pandas as pd
import pytest
import torch
from lmkan_cupy.adapters.fitting import Dataset, InputError, fit, load, mlp, pictures, read_dataset
from lmkan_cupy.adapters.torch import training
from problems import first_short

import lmkan_cupy
from lmkan_cupy.__main__ import main

QUICK = {"width": 4, "epochs": 3}
QUICK_ARGUMENTS = ["--width", "4", "--epochs", "3"]
FILES = {"model.safetensors", "model.json", "metrics.json", "parity.png", "functions.png"}


def table(rows: int = 60, features: int = 3) -> pd.DataFrame:
    """Columns a, b, ... and a smooth function of them, "y"."""
    x = np.random.default_rng(0).normal(size=(rows, features))
    frame = pd.DataFrame(x, columns=list("abcdefgh"[:features]))
    return frame.assign(y=np.sin(x[:, 0]) + x[:, 0] * x[:, -1])


def dataset(rows: int = 60, features: int = 3) -> Dataset:
    frame = table(rows, features)
    names = list(frame)[:-1]
    return Dataset(frame[names].to_numpy(), frame["y"].to_numpy(), names, "y")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path)


def write_npz(frame: pd.DataFrame, path: Path) -> None:
    names = list(frame)[:-1]
    np.savez(path, features=frame[names].to_numpy(), feature_names=names, y=frame["y"].to_numpy())


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".npz": write_npz,
}


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `python -m lmkan_cupy` with arguments in `tmp_path`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmkan_cupy", *arguments])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as exit_by_argparse:
            code = int(exit_by_argparse.code or 0)
        return code, *capsys.readouterr()

    return run


def without_timing(metrics: dict[str, Any]) -> dict[str, Any]:
    untimed = {name: each for name, each in metrics.items() if name != "seconds"}
    for name in ("lmkan", "mlp"):
        untimed[name] = {key: metrics[name][key] for key in metrics[name] if "second" not in key}
    return untimed


# What fit writes and prints


def test_fit_writes_everything_in_the_documented_format(tmp_path: Path, command: Any) -> None:
    write_csv(table(), tmp_path / "data.csv")
    code, out, _ = command("fit", "data.csv", "--seed", "3", "--out", "here", *QUICK_ARGUMENTS)
    assert code == 0
    assert {each.name for each in (tmp_path / "here").iterdir()} == FILES
    assert [each.name for each in tmp_path.iterdir() if each.name != "data.csv"] == ["here"]
    for picture in ("parity.png", "functions.png"):
        assert (tmp_path / "here" / picture).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert set(metrics) == {"lmkan", "mlp", "rows", "seed", "seconds", "versions"}
    for name in ("lmkan", "mlp"):
        assert set(metrics[name]) == {"rmse", "mae", "parameters", "flops", "rows_per_second"}
        assert 0 < metrics[name]["mae"] <= metrics[name]["rmse"]
        assert metrics[name]["rows_per_second"] > 0
        assert f"{metrics[name]['rmse']:.4g}" in out
    assert metrics["rows"] == {"train": 54, "test": 6}
    assert metrics["seed"] == 3
    # 3 -> 4 -> 4 -> 1 with pairs 2, 2, 2 and grids of 9 x 9 knots
    assert metrics["lmkan"]["parameters"] == 81 * 2 * (4 + 4 + 1)
    assert metrics["lmkan"]["flops"] == 8 * (4 + 4 + 1)


def test_metrics_are_those_of_the_model_on_rows_it_never_saw() -> None:
    data = dataset(200)
    result = fit(data, seed=1, **QUICK)
    errors = result.model.predict(result.test_features) - result.test_target
    assert len(errors) == 20
    assert result.metrics["lmkan"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert result.metrics["lmkan"]["mae"] == pytest.approx(np.abs(errors).mean())
    # Values that occur only in the test rows change nothing that is learned.
    chosen = np.isin(data.target, result.test_target)
    changed = Dataset(data.features, data.target + 100.0 * chosen, data.feature_names, "y")
    again = fit(changed, seed=1, **QUICK)
    np.testing.assert_array_equal(
        again.model.predict(data.features), result.model.predict(data.features)
    )


def test_fit_learns() -> None:
    result = fit(dataset(1000), width=8, epochs=60)
    for name in ("lmkan", "mlp"):
        assert result.metrics[name]["rmse"] < 0.3 * result.test_target.std()


@pytest.mark.long
def test_bundled_sample(command: Any) -> None:
    code, out, _ = command("fit", "--epochs", "1", "--no-baseline")
    assert code == 0
    metrics = json.loads(Path("lmkan_fit", "metrics.json").read_text())
    assert "mlp" not in metrics
    assert "MLP" not in out
    assert metrics["rows"]["test"] >= 5000
    assert metrics["lmkan"]["mae"] < 1.0


@pytest.mark.long
def test_the_default_folder_is_a_new_one_every_time(tmp_path: Path, command: Any) -> None:
    write_csv(table(), tmp_path / "data.csv")
    for _ in range(3):
        assert command("fit", "data.csv", "--no-baseline", *QUICK_ARGUMENTS)[0] == 0
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {
        "lmkan_fit",
        "lmkan_fit-2",
        "lmkan_fit-3",
    }


def test_an_empty_folder_is_filled(tmp_path: Path, command: Any) -> None:
    write_csv(table(), tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    assert command("fit", "data.csv", "--out", "empty", *QUICK_ARGUMENTS)[0] == 0
    assert {each.name for each in (tmp_path / "empty").iterdir()} == FILES


@pytest.mark.parametrize(
    ("features", "layers", "num_grids"),
    first_short([(1, 3, 8), (2, 1, 8), (3, 1, 3), (5, 2, 7)]),
    ids=["one-feature", "one-layer", "one-layer-odd", "odd-grid"],
)
def test_awkward_sizes(tmp_path: Path, features: int, layers: int, num_grids: int) -> None:
    data = dataset(60, features)
    result = fit(data, layers=layers, num_grids=num_grids, **QUICK)
    result.save(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == FILES
    np.testing.assert_array_equal(
        load(tmp_path).predict(data.features), result.model.predict(data.features)
    )


# The same numbers again


@pytest.mark.long
def test_a_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    data = dataset()
    first, same, other = (fit(data, seed=seed, **QUICK) for seed in (0, 0, 1))
    assert without_timing(first.metrics) == without_timing(same.metrics)
    np.testing.assert_array_equal(
        first.model.predict(data.features), same.model.predict(data.features)
    )
    assert first.metrics["lmkan"]["rmse"] != other.metrics["lmkan"]["rmse"]
    assert first.metrics["mlp"]["rmse"] != other.metrics["mlp"]["rmse"]


def test_fit_leaves_the_state_of_torch_alone() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit(dataset(), **QUICK)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.long
def test_file_formats_give_the_same_fit(tmp_path: Path) -> None:
    metrics = []
    for suffix, write in WRITERS.items():
        path = tmp_path / f"data{suffix}"
        write(table(), path)
        data = read_dataset(path)
        assert (list(data.feature_names), data.target_name) == (["a", "b", "c"], "y")
        metrics.append(without_timing(fit(data, **QUICK).metrics))
    assert metrics[0] == metrics[1] == metrics[2]


def test_any_column_can_be_the_target(tmp_path: Path) -> None:
    write_csv(table(), tmp_path / "data.csv")
    data = read_dataset(tmp_path / "data.csv", "b")
    assert (list(data.feature_names), data.target_name) == (["a", "c", "y"], "b")
    np.testing.assert_array_equal(data.target, pd.read_csv(tmp_path / "data.csv")["b"])


# Predicting


def test_predict_gives_what_the_loaded_model_gives(tmp_path: Path, command: Any) -> None:
    frame = table()
    write_csv(frame, tmp_path / "data.csv")
    command("fit", "data.csv", "--out", "model", *QUICK_ARGUMENTS)
    shuffled = frame[["y", "c", "b", "a"]].assign(remark="text")  # further columns are allowed
    write_csv(shuffled, tmp_path / "new.csv")
    expected = load(tmp_path / "model").predict(frame[["a", "b", "c"]].to_numpy())

    code, out, _ = command("predict", "model", "new.csv")
    assert code == 0
    assert out.splitlines()[0] == "y"
    np.testing.assert_allclose([float(each) for each in out.splitlines()[1:]], expected, rtol=1e-8)
    assert command("predict", "model", "new.csv", "--out", "y.csv")[:2] == (0, "")
    assert (tmp_path / "y.csv").read_text() == out
    assert not list(tmp_path.glob("*part*"))


def test_the_saved_model_is_the_fitted_one(tmp_path: Path) -> None:
    data = dataset()
    result = fit(data, **QUICK)
    result.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.description == result.model.description
    assert all(block.layer.residual is None for block in loaded.module.network)
    prediction = loaded.predict(data.features)
    np.testing.assert_array_equal(prediction, result.model.predict(data.features))
    # In the table's units: as wide as the target, not as the standardised one.
    assert loaded.predict(data.features[:0]).shape == (0,)


def test_predict_follows_the_units_of_the_table() -> None:
    data = dataset(200)
    scaled = Dataset(1000.0 * data.features + 5e6, 1e-6 * data.target + 3.0, data.feature_names)
    prediction = fit(data, **QUICK).model.predict(data.features)
    again = fit(scaled, **QUICK).model.predict(scaled.features)
    np.testing.assert_allclose((again - 3.0) / 1e-6, prediction, atol=1e-2)


def test_load_says_what_is_wrong(tmp_path: Path, command: Any) -> None:
    fit(dataset(), baseline=False, **QUICK).save(tmp_path)
    description, weights = tmp_path / "model.json", tmp_path / "model.safetensors"
    text, data = description.read_text(), weights.read_bytes()

    description.write_text(text.replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(InputError, match="format version 3, but this version of lmkan_cupy reads"):
        load(tmp_path)
    for damaged in ("{", "[]", text.replace('"width": 4', '"width": 5')):
        description.write_text(damaged)
        with pytest.raises(InputError, match="damaged"):
            load(tmp_path)
    description.write_text(text)
    weights.write_bytes(data[:-1])
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"there is no model\.safetensors"):
        load(tmp_path)
    write_csv(table(), tmp_path / "data.csv")
    code, _, err = command("predict", str(tmp_path), "data.csv", "--out", "y.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "y.csv").exists()


# Errors: one sentence, exit code 2, nothing written


def with_cell(row: int, column: str, value: object) -> pd.DataFrame:
    frame = table().astype(object)
    frame.loc[row, column] = value
    return frame


BAD_TABLES: dict[str, tuple[pd.DataFrame, str]] = {
    "text": (with_cell(6, "b", "n/k"), "column 'b' is not numeric: row 7 holds 'n/k'"),
    "missing": (with_cell(6, "b", None), "missing or infinite in 1 rows, first in row 7, colum"),
    "infinite": (with_cell(6, "b", np.inf), "missing or infinite in 1 rows, first in row 7, col"),
    "constant": (table().assign(b=4.0), "column 'b' is constant; leave it out"),
    "constant-target": (table().assign(y=4.0), "column 'y' is constant; leave it out"),
    "few-rows": (table(49), "49 rows are too few; at least 50 are needed"),
    "no-rows": (table(60)[:0], "0 rows are too few; at least 50 are needed"),
    "no-features": (table()[["y"]], "there is no column beside the target 'y'"),
    "no-header": (table().set_axis(["1.5", "2", "-3", "1e3"], axis=1), "must name the columns"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(tmp_path: Path, command: Any, name: str) -> None:
    frame, sentence = BAD_TABLES[name]
    write_csv(frame, tmp_path / "data.csv")
    check_refusal(command("fit", "data.csv"), "data.csv: ", sentence)
    assert os.listdir(tmp_path) == ["data.csv"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.csv"], "nowhere.csv: there is no such file"),
        (["data.txt"], "data.txt: the file name must end in .csv, .parquet or .npz"),
        (["empty.csv"], "empty.csv: cannot be read as csv: "),
        (["broken.parquet"], "broken.parquet: cannot be read as parquet: "),
        (["broken.npz"], "broken.npz: cannot be read as npz: "),
        (["pickled.npz"], "pickled.npz: cannot be read as npz: "),
        (["other.npz"], "other.npz: there is no array 'features' of shape [rows, columns]"),
        (["data.csv", "--target", "z"], "there is no target 'z'; those there are: a, b, c, y"),
        (["data.csv", "--out", "taken"], "taken: exists already; choose another --out"),
        (["data.csv", "--out", "data.csv"], "data.csv: exists already; choose another --out"),
        (["data.csv", "--out", "data.csv/x"], "data.csv/x: cannot be written"),
        (["data.csv", "--layers", "0"], "layers must be at least 1, got 0"),
        (["data.csv", "--width", "0"], "width must be at least 1, got 0"),
        (["data.csv", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["data.csv", "--num-grids", "2"], "num_grids must be at least 3, got 2"),
        (["data.csv", "--device", "cuda"], "device must be 'cpu' in this version, got 'cuda'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(tmp_path: Path, command: Any, arguments: list[str], sentence: str) -> None:
    write_csv(table(), tmp_path / "data.csv")
    for name in ("data.txt", "empty.csv", "broken.parquet", "broken.npz"):
        (tmp_path / name).write_text("" if name == "empty.csv" else "a,b\n1,2\n")
    np.savez(tmp_path / "pickled.npz", features=np.array([{}], dtype=object))
    np.savez(tmp_path / "other.npz", x=np.zeros((60, 3)))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    check_refusal(command("fit", *arguments), sentence)
    assert sorted(tmp_path.rglob("*")) == before


def check_refusal(outcome: tuple[int, str, str], *sentences: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for sentence in sentences:
        assert sentence in err


def test_predict_refuses_tables_that_do_not_fit(tmp_path: Path, command: Any) -> None:
    fit(dataset(), baseline=False, **QUICK).save(tmp_path)
    for frame, sentence in (
        (table().drop(columns="b"), "there is no column 'b', which the model needs"),
        (with_cell(6, "b", None), "missing or infinite in 1 rows, first in row 7, column 'b'"),
        (with_cell(6, "b", "x"), "column 'b' is not numeric: row 7 holds 'x'"),
    ):
        write_csv(frame, tmp_path / "data.csv")
        check_refusal(command("predict", ".", "data.csv", "--out", "y.csv"), "data.csv: ", sentence)
        assert not (tmp_path / "y.csv").exists()


@pytest.mark.parametrize(
    "package",
    first_short(["torch", "sklearn", "safetensors", "matplotlib", "pandas", "tqdm"]),
)
def test_a_missing_package_is_named_with_the_command_to_install_it(
    tmp_path: Path, package: str
) -> None:
    code = f"""
        import sys
        sys.modules[{package!r}] = None
        sys.argv = ["lmkan_cupy", "fit"]
        sys.stderr = sys.stdout
        from lmkan_cupy.__main__ import main
        assert main() == 2
    """
    out = fresh_process.run(code, tmp_path)
    assert out == f"error: fit needs {package}: pip install 'lmkan-cupy[fit]'\n"
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    write_csv(table(), tmp_path / "data.csv")
    monkeypatch.setattr(pictures, "save_functions_picture", fail)
    with pytest.raises(OSError, match="disk full"):
        command("fit", "data.csv", "--out", "here", *QUICK_ARGUMENTS)
    assert os.listdir(tmp_path) == ["data.csv"]


# Ctrl-C


@pytest.mark.long
def test_ctrl_c_keeps_the_best_model_so_far(tmp_path: Path) -> None:
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
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()  # a failure must not leave it training beside the other tests
    assert process.returncode == 130, err
    assert b"Interrupted: this is the best model so far." in out
    assert b"Traceback" not in err
    assert {each.name for each in (tmp_path / "here").iterdir()} == FILES
    assert "mlp" not in json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert np.isfinite(load(tmp_path / "here").predict(table().to_numpy()[:, :3])).all()


def test_ctrl_c_during_the_baseline_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    train = training.Trainer.train

    def interrupted(self: Any, label: str, *arguments: Any) -> training.Training:
        return dataclasses.replace(train(self, label, *arguments), completed=label != "MLP")

    monkeypatch.setattr(training.Trainer, "train", interrupted)
    result = fit(dataset(), **QUICK)
    assert result.interrupted
    assert set(result.test_predictions) == {"lmkan"}
    assert "mlp" not in result.metrics


def test_the_second_part_keeps_the_statistics_of_the_first() -> None:
    steps = 2 * 20  # 40 rows in batches of 16
    result = fit(dataset(50), width=4, epochs=20)
    first, *_ = result.model.module.network  # the others' statistics are in the tables
    assert first.norm.num_batches_tracked == training.trainer.FIRST_PART * steps


def test_the_best_state_by_validation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    validate = training.Trainer._validate
    errors: dict[int, list[float]] = {}
    last: list[tuple[Any, Any]] = []

    def recorded(self: Any, forward: Any) -> float:
        error, network = validate(self, forward), forward._function
        errors.setdefault(id(network), []).append(error)
        last.append((self, network))
        return error

    monkeypatch.setattr(training.Trainer, "_validate", recorded)
    monkeypatch.setattr(mlp, "LR", 1.0)  # so that the last state is not the best
    fit(dataset(200), width=4, epochs=30)
    trainer, network = last[-1]
    assert min(errors[id(network)]) < errors[id(network)][-1]
    assert validate(trainer, network) == min(errors[id(network)])


# The baseline


@pytest.mark.parametrize("sizes", [[10, 32, 32, 1], [10, 1], [1, 1, 1], [7, 5, 5, 5, 1]], ids=str)
def test_the_mlp_has_the_same_flops(sizes: list[int]) -> None:
    budget = sum(lmkan_cupy.flops(i, o) for i, o in pairwise(sizes))
    first, *hidden, last = mlp.mlp_sizes(sizes, budget)

    def flops(width: int) -> int:
        return mlp.mlp_flops([first, *[width] * len(hidden), last])

    assert (first, last) == (sizes[0], 1)
    assert len(hidden) == max(1, len(sizes) - 2)
    assert len(set(hidden)) == 1
    assert flops(hidden[0]) <= budget < flops(hidden[0] + 1) or hidden[0] == 1


def test_the_deployed_mlp_is_the_trained_one() -> None:
    trained = mlp.make_mlp([3, 8, 8, 1])
    for _ in range(5):
        trained(2 + 3 * torch.randn(64, 3))  # moves the statistics
    x = torch.randn(64, 3)
    expected = trained.eval()(x)
    fused = mlp.fused(trained)
    assert not any(isinstance(each, torch.nn.BatchNorm1d) for each in fused)
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)
