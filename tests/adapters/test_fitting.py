"""`python -m lmkan_cupy fit` and `predict`, and the functions behind them, on small tables."""

from __future__ import annotations

import dataclasses
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pandas as pd
import pytest
import torch
from fits import (
    FILES,
    QUICK,
    QUICK_ARGUMENTS,
    WRITERS,
    check_refusal,
    dataset,
    table,
    with_cell,
    write_csv,
)
from lmkan_cupy.adapters.fitting import Dataset, fit, load, mlp, read_dataset
from lmkan_cupy.adapters.torch import training
from problems import first_short

import lmkan_cupy
from lmkan_cupy.installation import install_extra


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
    assert set(metrics) == {*("lmkan", "mlp", "rows", "columns", "seed", "seconds", "versions")}
    for name in ("lmkan", "mlp"):
        errors = {"r2", "rmse", "mae"}
        assert set(metrics[name]) == errors | {"parameters", "flops", "rows_per_second"}
        assert 0 < metrics[name]["mae"] <= metrics[name]["rmse"]
        assert metrics[name]["rows_per_second"] > 0
        assert all(f"{metrics[name][each]:.4g}" in out for each in errors)
    assert metrics["rows"] == {"train": 54, "test": 6}
    assert metrics["columns"] == dict.fromkeys("abc", "number")
    assert metrics["seed"] == 3
    # 3 -> 4 -> 4 -> 1 with pairs 2, 2, 2 and grids of 9 x 9 knots
    assert metrics["lmkan"]["parameters"] == 81 * 2 * (4 + 4 + 1)
    assert metrics["lmkan"]["flops"] == 8 * (4 + 4 + 1)


def test_metrics_are_those_of_the_model_on_rows_it_never_saw() -> None:
    data = dataset(200)
    result = fit(data, seed=1, **QUICK)
    errors = result.model.predict(result.test_table) - result.test_values[:, 0]
    assert len(errors) == 20
    assert result.metrics["lmkan"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert result.metrics["lmkan"]["mae"] == pytest.approx(np.abs(errors).mean())
    r2 = 1 - (errors**2).mean() / result.test_values.var()
    assert result.metrics["lmkan"]["r2"] == pytest.approx(r2)
    # Values that occur only in the test rows change nothing that is learned.
    chosen = np.isin(data.values, result.test_values)
    changed = Dataset(data.features, data.targets + 100.0 * chosen)
    again = fit(changed, seed=1, **QUICK)
    np.testing.assert_array_equal(
        again.model.predict(data.features), result.model.predict(data.features)
    )


def test_fit_learns() -> None:
    result = fit(dataset(1000), width=8, epochs=60)
    for name in ("lmkan", "mlp"):
        assert result.metrics[name]["rmse"] < 0.3 * result.test_values.std()


@pytest.mark.long
def test_bundled_sample(command: Any) -> None:
    code, out, _ = command("fit", "--epochs", "1", "--no-baseline")
    assert code == 0
    metrics = json.loads(Path("lmkan_fit", "metrics.json").read_text())
    assert "mlp" not in metrics
    assert "MLP" not in out
    assert metrics["rows"]["test"] >= 5000
    assert metrics["lmkan"]["mae"] < 1.0


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


def test_sizes_can_be_integers_of_numpy(tmp_path: Path) -> None:
    sizes = {name: np.int64(value) for name, value in {**QUICK, "layers": 2, "seed": 1}.items()}
    fit(dataset(), baseline=False, **sizes).save(tmp_path)
    assert load(tmp_path).description.width == QUICK["width"]


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
        assert ([*data.features], data.target_names) == ([*"abc"], ["y"])
        metrics.append(without_timing(fit(data, **QUICK).metrics))
    assert metrics[0] == metrics[1] == metrics[2]


def test_any_column_can_be_the_target(tmp_path: Path) -> None:
    write_csv(table(), tmp_path / "data.csv")
    data = read_dataset(tmp_path / "data.csv", "b")
    assert ([*data.features], data.target_names) == ([*"acy"], ["b"])
    np.testing.assert_array_equal(data.values[:, 0], pd.read_csv(tmp_path / "data.csv")["b"])


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
    scaled = Dataset(1000.0 * data.features + 5e6, 1e-6 * data.targets + 3.0)
    prediction = fit(data, **QUICK).model.predict(data.features)
    again = fit(scaled, **QUICK).model.predict(scaled.features)
    np.testing.assert_allclose((again - 3.0) / 1e-6, prediction, atol=1e-2)


# Errors: one sentence, exit code 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.csv"], "nowhere.csv: there is no such file"),
        (["data.txt"], "data.txt: the file name must end in .csv, .csv.gz, .tsv, .parquet or .npz"),
        (["taken"], "taken: is a folder without Parquet files"),
        (["empty.csv"], "empty.csv: cannot be read as csv: "),
        (["broken.parquet"], "broken.parquet: cannot be read as parquet: "),
        (["broken.npz"], "broken.npz: cannot be read as npz: "),
        (["pickled.npz"], "pickled.npz: cannot be read as npz: "),
        (["other.npz"], "other.npz: there is no array 'features' of shape [rows, columns]"),
        (["data.csv", "--target", "z"], "there is no target 'z'; those there are: k, a, b, c, y"),
        (["data.csv", "--drop", "y", "--target", "y"], "there is no target 'y'; those there are"),
        (["data.csv", "--out", "taken"], "taken: exists already; choose another --out"),
        (
            ["data.csv", "--target", "z", "--target", "w"],
            "there is no target 'z', 'w'; those there",
        ),
        (["data.csv", "--sep", ";;"], "data.csv: sep must be one character, got ';;'"),
        (["data.csv", "--patience", "0"], "patience must be at least 1, got 0"),
        (["data.csv", "--penalty", "-1"], "penalty must be at least 0, got -1"),
        (
            ["data.csv", "--loss", "mse"],
            "loss must be one of squared_error, absolute_error, huber",
        ),
        (
            ["data.csv", "--task", "classification", "--target", "k", "--loss", "huber"],
            "loss can be chosen for numbers, but 'k' is classes",
        ),
        (["data.csv", "--penalty", "nan"], "penalty must be at least 0, got nan"),
        (["data.csv", "--layers", "0"], "layers must be at least 1, got 0"),
        (["data.csv", "--width", "0"], "width must be at least 1, got 0"),
        (["data.csv", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["data.csv", "--num-grids", "2"], "num_grids must be at least 3, got 2"),
        (["data.csv", "--seed", "-1"], "seed must be at least 0 and below 2^64, got -1"),
        (["data.csv", "--seed", f"{2**64}"], "seed must be at least 0 and below 2^64, got 18"),
        (["data.csv", "--width", "100000"], "GiB of memory to train, but this machine has"),
        (["data.csv", "--layers", f"{10**12}"], "GiB of memory to train, but this machine has"),
        (["data.csv", "--num-grids", f"{10**9}"], "GiB of memory to train, but this machine has"),
        (["data.csv", "--device", "cuda"], "fit: torch finds no device 'cuda', only 'cpu'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(tmp_path: Path, command: Any, arguments: list[str], sentence: str) -> None:
    write_csv(table().assign(k=[0, 1] * 30)[[*"kabcy"]], tmp_path / "data.csv")
    for name in ("data.txt", "empty.csv", "broken.parquet", "broken.npz"):
        (tmp_path / name).write_text("" if name == "empty.csv" else "a,b\n1,2\n")
    np.savez(tmp_path / "pickled.npz", features=np.array([{}], dtype=object))
    np.savez(tmp_path / "other.npz", x=np.zeros((60, 3)))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    check_refusal(command("fit", *arguments), sentence)
    assert sorted(tmp_path.rglob("*")) == before


def test_predict_refuses_tables_that_do_not_fit(tmp_path: Path, command: Any) -> None:
    fit(dataset(), baseline=False, **QUICK).save(tmp_path)
    for frame, sentence in (
        (table().drop(columns=["b", "c"]), "there is no column 'b'; there is no column 'c'"),
        (with_cell(6, "b", None), "column 'b': row 7 has no value"),
        (with_cell(6, "b", np.inf), "column 'b': row 7 holds inf, which is no finite number"),
        (with_cell(6, "b", "x"), "column 'b': row 7 holds 'x', which is no finite number"),
        (table().set_axis([*"abby"], axis=1).assign(c=1.0), "2 columns are called 'b'"),
    ):
        write_csv(frame, tmp_path / "data.csv")
        check_refusal(command("predict", ".", "data.csv", "--out", "y.csv"), "data.csv: ", sentence)
        assert not (tmp_path / "y.csv").exists()


@pytest.mark.parametrize(
    "package",
    first_short(["torch", "sklearn", "matplotlib", "pandas", "tqdm"]),
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
    assert out == f"error: fit needs {package}: {install_extra('fit')}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_broken_package_is_a_sentence(tmp_path: Path, error: str) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}('libtorch.so: no such file')")
    code = """
        import sys
        sys.argv = ["lmkan_cupy", "fit"]
        sys.stderr = sys.stdout
        from lmkan_cupy.__main__ import main
        assert main() == 2
    """
    out = fresh_process.run(code, tmp_path)
    assert out == (
        "error: fit needs a package that is installed but cannot be loaded: "
        "libtorch.so: no such file\n"
    )


# The training


def test_ctrl_c_during_the_baseline_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    train = training.Trainer.train

    def interrupted(self: Any, label: str, *arguments: Any) -> training.Training:
        return dataclasses.replace(train(self, label, *arguments), completed=label != "MLP")

    monkeypatch.setattr(training.Trainer, "train", interrupted)
    result = fit(dataset(), **QUICK)
    assert result.interrupted
    assert set(result.test_predictions) == {"lmkan"}
    assert "mlp" not in result.metrics


def test_the_second_part_keeps_the_statistics_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 2 * 20  # 40 rows in batches of 16
    monkeypatch.setattr(training.TableNetwork, "fold_", lambda self: self)  # would absorb them
    result = fit(dataset(50), width=4, epochs=20)
    first, *_ = result.model.module.network
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_mlp_does_not_depend_on_torchs_default_dtype(dtype: torch.dtype) -> None:
    def parameters() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [*mlp.make_mlp([3, 8, 1]).parameters()]

    expected, before = parameters(), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        given = parameters()
    finally:
        torch.set_default_dtype(before)
    for each, other in zip(given, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=0, atol=0)
