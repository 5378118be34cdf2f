"""The experiments at their smallest scale, and the page that is made of their results."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pandas as pd
import pytest
import torch
from lmkan_cupy.adapters import training
from PIL import Image

from bench import report
from bench.experiments import (
    approximation,
    cifar10,
    experiment,
    fashion_mnist,
    image_data,
    images,
    methane,
)
from bench.experiments.fastkan import FastKANLayer
from bench.experiments.models import (
    FEW_RATES,
    LMKAN,
    MLP,
    MORE_RATES,
    RATES,
    FastKAN,
    LinearFirst,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Networks this small gain nothing from more."""
    before = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run an experiment's command line at the smallest scale; return what it wrote."""
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)

    def run(module: Any, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
        module.main()
        name = module.__name__.rpartition(".")[2]
        results: dict[str, Any] = json.loads((tmp_path / f"{name}-smoke-cpu.json").read_text())
        return results

    return run


def untimed(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: run[key] for key in run if key != "seconds"} for run in results["runs"]]


def keys(results: dict[str, Any]) -> list[tuple[str, float, int]]:
    return [(run["model"], run["rate"], run["seed"]) for run in results["runs"]]


# Experiments


def test_approximation_and_its_page(main: Any, tmp_path: Path) -> None:
    results = main(approximation)
    planned = approximation.students("smoke", 4, pykan=False)
    assert len(set(keys(results))) == len(results["runs"]) == sum(len(m.rates) + 2 for m in planned)
    assert set(results["rows_per_second"]) == {model.label for model in planned}
    for model in planned:
        runs = [run for run in results["runs"] if run["model"] == model.label]
        assert {run["rate"] for run in runs if run["seed"] == 0} == set(model.rates)
        chosen = min(runs[: len(model.rates)], key=lambda run: run["validation_loss"])["rate"]
        assert [run["rate"] for run in runs if run["seed"] > 0] == [chosen] * 2
        assert {run["flops"] for run in runs} == {model.flops()}
        assert len({run["errors"]["relative RMSE"] for run in runs}) == len(runs)
    assert min(run["errors"]["relative RMSE"] for run in results["runs"]) < 0.6
    check_page(tmp_path, results)


def test_pykan_takes_part_where_it_is_asked_for(
    main: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A linear layer with the package's interface in its place."""

    class KANLayer(torch.nn.Linear):
        def __init__(self, in_dim: int, out_dim: int, *, num: int, grid_range: Any) -> None:
            assert (num, grid_range) == (8, (-training.BOUND, training.BOUND))
            super().__init__(in_dim, out_dim)

        def forward(self, x: torch.Tensor) -> Any:
            assert x.abs().max() <= training.BOUND
            return super().forward(x), None, None, None

    for name, attributes in (("kan", {}), ("kan.KANLayer", {"KANLayer": KANLayer})):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    alone = untimed(main(approximation))
    (tmp_path / "approximation-smoke-cpu.json").unlink()
    both = main(approximation, "--pykan")
    runs = [run for run in both["runs"] if run["kind"] == "pykan"]
    assert [run for run in untimed(both) if run["kind"] != "pykan"] == alone
    assert {run["model"] for run in runs} == {"pykan 4-2-1 G=8"}
    assert {run["flops"] for run in runs} == {5 * (4 * 2 + 2 * 1)}
    assert len(runs) == len(FEW_RATES) + 2
    assert "pykan 4-2-1 G=8" in both["rows_per_second"]


def check_page(folder: Path, results: dict[str, Any]) -> None:
    (folder / "other.json").write_text('{"cases": []}')  # of another bench
    report.write_report(folder, folder)
    page, tables = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("data:image/png;base64,") == 2  # against FLOPs and time
    for label in {run["model"] for run in results["runs"]}:
        assert label in page
        assert f"| {label}" in tables


def made_up_molecules(rows: int = 300) -> dict[str, Any]:
    """Positions as the generator writes them, and a sum over pairs in place of the energy."""
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(rows, 5, 3))
    positions[:, 0] = 0
    between = positions[:, :, None] - positions[:, None]
    energies = -np.exp(-(between**2).sum(axis=-1)).sum(axis=(1, 2))
    forces = -4 * (between * np.exp(-(between**2).sum(axis=-1))[..., None]).sum(axis=2)
    return {
        "positions": positions.astype(np.float32),
        "energies": energies,
        "forces": forces.astype(np.float32),
        "metadata": "{}",
    }


@pytest.mark.parametrize("inputs", ["distances", "cartesian", "forces"])
def test_methane(main: Any, tmp_path: Path, inputs: str) -> None:
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    arguments = () if inputs == "distances" else ("--inputs", inputs, "--data", str(tmp_path))
    out = tmp_path / "methane-smoke-cpu.json"
    results = main(methane, *arguments, "--out", str(out))
    assert results["setting"]["inputs"] == inputs
    assert results["setting"]["source"] == (
        "methane.npz" if inputs == "distances" else "methane_xtb.npz"
    )
    kinds = {run["kind"] for run in results["runs"] if "," not in run["kind"]}
    assert kinds == {"lmKAN", "MLP", "FastKAN"}
    rates = {run["rate"] for run in results["runs"] if run["kind"] in kinds}
    assert rates == set(MORE_RATES if inputs == "cartesian" else RATES)
    for run in results["runs"]:
        assert all(0 < error < 10 for error in run["errors"].values())
        assert ("MAE of forces, eV / Angstrom" in run["errors"]) == (inputs == "forces")


def test_methane_is_learned_by_absolute_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "methane_xtb.npz", **made_up_molecules())
    answers, targets = torch.tensor([[3.0, 1.0, 5.0]] * 2), torch.tensor([[1.0, 2.0, 8.0]] * 2)
    distances, cartesian, both = (
        methane.make_experiment(inputs, "smoke", tmp_path, CPU, False).task
        for inputs in ("distances", "cartesian", "forces")
    )
    for task in (distances, cartesian):
        assert task.loss(answers[:, :1], targets[:, :1]) == 2
    assert both.loss(answers, targets) == 2 + (1 + 3) / 2


@pytest.mark.parametrize("inputs", ["cartesian", "forces"])
def test_methane_says_what_is_missing(tmp_path: Path, inputs: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"--inputs {inputs} needs --data"):
        methane.read(None, inputs, 10)
    without = {key: each for key, each in made_up_molecules().items() if key == "metadata"}
    np.savez(tmp_path / "methane_xtb.npz", **without)
    with pytest.raises(FileNotFoundError, match="is here with"):
        methane.read(tmp_path, inputs, 10)


def test_augmentation_turns_and_permutes() -> None:
    generator = torch.Generator().manual_seed(0)
    hydrogens = torch.randn(400, 4, 3, generator=generator, dtype=torch.float64)
    turned = methane.augmented(hydrogens.float(), generator).double()
    radii, turned_radii = hydrogens.norm(dim=2), turned.norm(dim=2)
    torch.testing.assert_close(
        turned_radii.sort(dim=1).values, radii.sort(dim=1).values, rtol=1e-5, atol=1e-5
    )
    order, turned_order = radii.argsort(dim=1), turned_radii.argsort(dim=1)
    in_place = (order == turned_order).all(dim=1).double().mean()
    assert 0.0 < float(in_place) < 0.15  # a permutation in 24 leaves all in place
    sorted_ = hydrogens.gather(1, order[..., None].expand_as(hydrogens))
    sorted_turned = turned.gather(1, turned_order[..., None].expand_as(turned))
    torch.testing.assert_close(
        sorted_turned @ sorted_turned.mT, sorted_ @ sorted_.mT, rtol=1e-4, atol=1e-4
    )
    mirrored = (
        torch.linalg.det(sorted_turned[:, :3]) * torch.linalg.det(sorted_[:, :3]) < 0
    ).double()
    assert 0.4 < float(mirrored.mean()) < 0.6
    assert sorted_turned[:, 0].mean(dim=0).abs().max() < 0.3  # in all directions


def test_forces_are_the_negative_derivative_of_the_energy() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).double()
    both = methane.EnergyAndForces(network, torch.ones(10).double(), 2 * torch.ones(10).double())
    positions = torch.from_numpy(made_up_molecules(3)["positions"]).double().flatten(1)
    forces = both(positions)[:, 1:]
    step = 1e-6
    for coordinate in range(15):
        shift = step * torch.nn.functional.one_hot(torch.tensor(coordinate), 15)
        energies = [both(positions + sign * shift)[:, 0] for sign in (1, -1)]
        slope = (energies[0] - energies[1]) / (2 * step)
        torch.testing.assert_close(forces[:, coordinate], -slope, rtol=1e-6, atol=1e-7)
    forces.square().sum().backward()  # as a fit to forces needs
    assert network[0].weight.grad.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(both(positions)[:, 1:], forces)


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3


def write_fashion_mnist(folder: Path) -> None:
    for name in ("train", "t10k"):
        for kind, values in (("images-idx3", PIXELS[..., 0]), ("labels-idx1", LABELS)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            data = gzip.compress(head + values.astype(np.uint8).tobytes())
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(data)


def write_packed_cifar10(folder: Path) -> None:
    files = [io.BytesIO() for _ in PIXELS]
    for file, pixels in zip(files, PIXELS, strict=True):
        Image.fromarray(pixels).save(file, "PNG")  # without loss, and found out by its first bytes
    data = [file.getvalue() for file in files]
    arrays = {
        "jpeg": np.frombuffer(b"".join(data), np.uint8),
        "offsets": np.cumsum([0, *map(len, data)]),
        "labels": LABELS,
    }
    named = {f"{part}_{key}": each for part in ("train", "test") for key, each in arrays.items()}
    np.savez(folder / "cifar10_jpeg.npz", **named)


def write_original_cifar10(folder: Path) -> None:
    (folder / "cifar-10-batches-py").mkdir()
    flat = PIXELS.transpose(0, 3, 1, 2).reshape(24, -1)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {b"data": flat, b"labels": LABELS.tolist()}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_tree(folder: Path) -> None:
    for part in ("train", "val"):
        for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            path = folder / part / f"n{label}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:, :24]).save(path)  # not a square
            path.with_name("LICENSE.txt").touch()


def test_fashion_mnist(main: Any, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    check_image_results(main(fashion_mnist, "--data", str(tmp_path)), [1, 32, 32])


def test_cifar10(main: Any, tmp_path: Path) -> None:
    write_packed_cifar10(tmp_path)
    check_image_results(main(cifar10, "--data", str(tmp_path)), [3, 32, 32])


def test_a_tree_of_images(main: Any, tmp_path: Path) -> None:
    write_tree(tmp_path / "folder")
    out = str(tmp_path / "cifar10-smoke-cpu.json")
    arguments = ("--data", str(tmp_path / "folder"), "--tree", "16", "--out", out)
    results = main(cifar10, *arguments)
    assert results["title"] == "Images of folder"
    check_image_results(results, [3, 16, 16])


def check_image_results(results: dict[str, Any], image: list[int]) -> None:
    assert results["setting"]["image"] == image
    assert {run["kind"] for run in results["runs"]} == {"lmKAN", "CNN"}
    assert {run["seed"] for run in results["runs"]} == {0, 1, 2}
    assert all(0 <= run["errors"]["error rate"] <= 1 for run in results["runs"])


def test_images_are_read_as_they_were_written(tmp_path: Path) -> None:
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    for name, write in (("packed", write_packed_cifar10), ("original", write_original_cifar10)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        data = image_data.read_cifar10(tmp_path / name)
        assert torch.equal(data.images[:24], expected)
        assert torch.equal(data.test_images, expected)
        assert data.labels[:24].tolist() == data.test_labels.tolist() == LABELS.tolist()
        assert len(data.labels) == len(data.images) == {"packed": 24, "original": 120}[name]
    write_fashion_mnist(tmp_path)
    data = image_data.read_fashion_mnist(tmp_path)
    assert torch.equal(data.images, expected[:, :1])
    assert data.labels.tolist() == LABELS.tolist()
    write_tree(tmp_path)
    data = image_data.read_tree(tmp_path, 24)
    order = np.argsort(LABELS, kind="stable")
    assert torch.equal(data.images, expected[order][:, :, 4:28, :24])  # the middle
    assert data.labels.tolist() == LABELS[order].tolist()


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write_original_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="has no place in a batch of images"):
        image_data.read_cifar10(tmp_path)


def test_missing_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nor data_batch_1 to"):
        image_data.read_cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="there are no images in folders of classes"):
        image_data.read_tree(tmp_path, 8)


def test_images_are_standardised_batch_by_batch() -> None:
    pixels = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    mean, spread = images.mean_and_spread(pixels)
    torch.testing.assert_close(mean, pixels.double().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(spread, pixels.double().std(dim=(0, 2, 3)))
    same = torch.full((16, 1, 8, 8), 100, dtype=torch.uint8)
    rows = images.AugmentedImages(same, torch.arange(16), 0, 16, lambda each: each.float() - 98)
    batch, _ = next(iter(rows))
    assert batch.unique().tolist() == [0.0, 2.0]  # the margins of shifted images are their mean


def test_images_are_shifted_and_mirrored() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(1.0, 2 * 8 * 8 + 1).reshape(1, 2, 8, 8)  # shifts are -1, 0 and 1
    seen = {
        tuple(each.flatten().tolist())
        for each in images.augmented(image.expand(500, -1, -1, -1), generator)
    }
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0]
    shifted = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    expected = [each.flip(2) for each in shifted] + shifted
    assert seen == {tuple(each.flatten().tolist()) for each in expected}


@pytest.mark.parametrize(
    ("kind", "factor", "window"), [(images.CNN, 1, 9), (images.LMKANCNN, 2, 10)]
)
def test_flops_of_a_cnn(kind: Any, factor: int, window: int) -> None:
    """The first window of an lmKAN has nine features, of which the last is a pair of its own."""
    convolutions = (
        (window * 1 * 2 + 9 * 2 * 2 * 2) * 4 * 4  # the first one and the first block
        + (9 * 2 * 4 + 9 * 4 * 4) * 2 * 2
        + (9 * 4 * 8 + 9 * 8 * 8) * 1 * 1
    )
    assert kind((1, 8, 8), 3, 2).flops() == factor * convolutions + 8 * 3


def test_an_lmkan_cnn_is_deployed_as_it_was_trained() -> None:
    model = images.LMKANCNN((1, 8, 8), 3, 2)
    network = model.build()
    network(torch.randn(16, 1, 8, 8))  # moves the statistics
    x = torch.randn(4, 1, 8, 8)
    expected = network.eval()(x)
    torch.testing.assert_close(model.deployed(network)(x), expected, rtol=1e-4, atol=1e-4)


def test_an_experiment_goes_on_where_it_stopped(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = main(approximation)
    path = tmp_path / "approximation-smoke-cpu.json"
    del whole["runs"][-3:], whole["rows_per_second"]
    path.write_text(json.dumps(whole))
    trained = []
    train = experiment.Experiment._train

    def counted(self: Any, *arguments: Any) -> Any:
        trained.append(arguments)
        return train(self, *arguments)

    monkeypatch.setattr(experiment.Experiment, "_train", counted)
    again = main(approximation)
    assert len(trained) == 3
    assert main(approximation) == again
    assert len(trained) == 3
    label, _ = again["rows_per_second"].popitem()  # as of a model that was added
    path.write_text(json.dumps(again))
    assert label in main(approximation)["rows_per_second"]
    assert len(trained) == 3


def test_an_interrupted_experiment_says_that_it_goes_on(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = experiment.Experiment._train

    def interrupted(self: Any, model: Any, rate: float, *rest: Any) -> Any:
        if rate > 3e-3:
            raise KeyboardInterrupt
        yield from train(self, model, rate, *rest)

    monkeypatch.setattr(experiment.Experiment, "_train", interrupted)
    with pytest.raises(SystemExit, match=r"^interrupted after 1 of \d+ runs: the same"):
        main(approximation)
    kept = json.loads((tmp_path / "approximation-smoke-cpu.json").read_text())
    assert len(kept["runs"]) == 1


@pytest.mark.parametrize(
    ("module", "arguments", "text"),
    [
        (methane, ["--inputs", "forces"], "--inputs forces needs --data, a folder"),
        (methane, ["--pykan"], "pip install -r bench/requirements.txt"),
        (cifar10, ["--data", "nowhere"], "nowhere: neither cifar10_jpeg.npz nor"),
        (fashion_mnist, ["--data", "nowhere"], "nowhere/train-images-idx3-ubyte.gz"),
    ],
)
def test_what_is_missing_is_named(
    module: Any,
    arguments: list[str],
    text: str,
    main: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(experiment, "find_spec", lambda package: None)
    with pytest.raises(SystemExit):
        main(module, *arguments)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "device"),
    [([], "cpu"), (["--scale", "gpu"], "cuda"), (["--scale", "gpu", "--device", "cpu"], "cpu")],
)
def test_the_scale_of_a_gpu_is_for_one(
    arguments: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
    assert experiment.parse(experiment.command_line("", None)).device.type == device


def test_runs_of_another_setting_are_not_mixed_in(main: Any, tmp_path: Path) -> None:
    path = tmp_path / "approximation-smoke-cpu.json"
    path.write_text(json.dumps({"setting": {"steps": 7}, "runs": []}))
    with pytest.raises(ValueError, match="move the file away"):
        main(approximation)


def test_a_rate_at_which_training_diverged_is_not_chosen() -> None:
    runs = [
        {"model": "A", "seed": 0, "rate": rate, "validation_loss": loss}
        for rate, loss in ((0.1, 2.0), (0.2, 1.0), (0.3, None))
    ]
    assert experiment.chosen_rate(runs, "A") == 0.2


def test_a_run_depends_on_its_seed_alone() -> None:
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


def test_the_setting_names_adams_betas(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(approximation)["setting"]["adam_betas"] == [0.9, 0.99]
    task = approximation.make_task(approximation.SETTINGS["smoke"], CPU)

    def errors() -> dict[str, float]:
        *_, run = experiment.Experiment("", task, [])._train(MLP((4, 6, 1)), 3e-2, 0, CPU)
        return run["errors"]

    before = errors()
    assert errors() == before
    monkeypatch.setattr(training, "BETAS", (0.9, 0.9))
    assert errors() != before


def test_more_runs_leave_what_was_timed_its_circumstances(main: Any, tmp_path: Path) -> None:
    results = main(approximation)
    here = results["circumstances"]["commit"]
    results["circumstances"] = {"commit": "of another day", "note": "written by hand"}
    *runs, last = results["runs"]
    unfinished = results | {"runs": runs}
    (tmp_path / "approximation-smoke-cpu.json").write_text(json.dumps(unfinished))
    again = main(approximation)
    assert again["circumstances"] == results["circumstances"]
    assert untimed(again) == untimed(results)
    assert last["commit"] == again["runs"][-1]["commit"] == here


def test_runs_side_by_side_are_those_one_after_another(
    main: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a GPU; other seeds wait for the rates of their model."""
    alone = main(approximation)
    (tmp_path / "approximation-smoke-cpu.json").unlink()
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
    together = main(approximation)
    assert most == 5

    def ordered(results: dict[str, Any]) -> list[dict[str, Any]]:
        return sorted(untimed(results), key=lambda run: (run["model"], run["rate"], run["seed"]))

    assert ordered(together) == ordered(alone)


@pytest.mark.parametrize(("part", "num_grids"), [(0.0, 12), (0.5, 12), (1.0, 6)])
def test_the_grid_is_refined_after_the_first_part(
    part: float, num_grids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "FIRST_PART", part)
    x = torch.randn(256, 2)
    trainer = training.Trainer(
        batches=training.Rows(x, x[:, :1] * x[:, 1:], seed=0),
        steps=10,
        validation=(x, x[:, :1] * x[:, 1:]),
        loss=torch.nn.functional.mse_loss,
        penalty=0.1,
        refined_num_grids=12,
    )
    network = LMKAN((2, 4, 1), num_grids=6).build()
    assert trainer.train("", network, training.parameter_groups(network)).completed
    assert {layer.num_grids for layer in training.lmkan_layers(network)} == {num_grids}


def test_the_teacher_is_standardised_and_always_the_same() -> None:
    setting = approximation.SETTINGS["smoke"]
    teacher, same = (approximation.Teacher(setting, CPU) for _ in range(2))
    x, y = teacher.rows(20_000, torch.Generator().manual_seed(3))
    assert abs(float(y.mean())) < 0.2  # standardised by 256 rows
    assert 0.8 < float(y.std()) < 1.2
    torch.testing.assert_close(same(x), y, rtol=0, atol=0)


def test_flops_are_the_papers() -> None:
    assert MLP((8, 16, 16, 1)).flops() == 8 * 16 + 16 * 16 + 16
    assert LMKAN((8, 16, 16, 1)).flops() == 2 * (8 * 16 + 16 * 16 + 16)
    assert LinearFirst((8, 16, 16, 1)).flops() == 8 * 16 + 2 * (16 * 16 + 16)
    assert FastKAN((8, 16, 1), num_grids=5).flops() == 5 * (8 * 16 + 16) + (8 * 16 + 16)


@pytest.mark.parametrize(
    "model",
    [LMKAN((3, 4, 5, 1)), LinearFirst((3, 4, 5, 1)), MLP((3, 4, 1)), FastKAN((3, 4, 1))],
    ids=lambda m: m.label,
)
def test_what_is_deployed_is_what_was_trained(model: Any) -> None:
    network = model.build()
    for _ in range(3):
        network(1 + 2 * torch.randn(64, 3))  # moves the statistics
    x = torch.randn(64, 3)
    expected = network.eval()(x)
    torch.testing.assert_close(model.deployed(network)(x), expected, rtol=1e-4, atol=1e-5)


def test_fastkan_is_a_sum_of_gaussians() -> None:
    layer = FastKANLayer(1, 1, num_grids=3).eval()  # centres -2, 0, 2
    with torch.no_grad():
        layer.spline.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.branch.weight.fill_(0.5)
        layer.branch.bias.fill_(0.25)
    far, near = np.exp(-((1 / 2) ** 2)), np.exp(-((3 / 2) ** 2))
    silu = 1 / (1 + np.exp(-1.0))
    expected = near + 2 * far + 3 * far + 0.5 * silu + 0.25
    assert layer(torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-4)  # eps of the norm


# The page


def test_the_committed_page_shows_the_committed_results(tmp_path: Path) -> None:
    report.write_report(report.RESULTS, tmp_path)
    committed = (report.RESULTS / "report.md").read_text()
    assert (tmp_path / "report.md").read_text() == committed, "run python -m bench.report"


def made_up_results(errors: dict[str, list[tuple[int, Any]]]) -> report.Results:
    """Of (FLOPs, error) by kind, at one rate; several errors are those of several seeds."""
    runs = pd.DataFrame(
        {"model": f"{kind} {flops}", "kind": kind, "seed": seed, "FLOPs": flops, "error": error}
        for kind, points in errors.items()
        for flops, of_seeds in points
        for seed, error in enumerate(np.atleast_1d(of_seeds).tolist())
    )
    runs = runs.assign(rate=0.1, parameters=1, validation=1.0, seconds=np.nan, chosen=True)
    return report.Results("made-up", "Made up", {}, {}, runs, ["error"])


def test_the_front_leaves_out_what_is_beaten() -> None:
    cost = np.array([1.0, 2.0, 3.0, 3.0, 4.0])
    error = np.array([0.5, 0.6, 0.2, 0.3, 0.2])
    assert report.pareto_front(cost, error).tolist() == [0, 2]


def test_cost_is_interpolated_in_logarithms() -> None:
    costs, errors = np.array([1.0, 100.0]), np.array([1.0, 0.01])
    assert report.cost_at(0.1, costs, errors) == pytest.approx(10.0)
    assert report.cost_at(0.01, costs, errors) == pytest.approx(100.0)
    assert report.cost_at(0.009, costs, errors) == np.inf
    assert report.cost_at(1.1, costs, errors) == pytest.approx(1.0)
    assert report.error_at(10.0, costs, errors) == pytest.approx(0.1)
    assert report.error_at(101.0, costs, errors) == pytest.approx(0.01)
    assert np.isnan(report.error_at(0.9, costs, errors))


def test_fronts_go_through_medians_over_seeds() -> None:
    """One lucky seed brings no network onto a front, and one unlucky seed none off it."""
    mlps = [(100, [0.3, 0.2, 0.01]), (400, [0.1, 0.1, 0.2])]
    lmkans = [(50, [0.2, 0.01, 0.2]), (60, [0.3, 0.3, 0.005]), (80, [0.09, 0.08, 0.2])]
    results = made_up_results({"MLP": mlps, "lmKAN": lmkans})
    rows = report.matched(results, "MLP", "FLOPs")
    assert rows["model"].tolist() == ["lmKAN 50"] * 3 + ["lmKAN 80"] * 3
    assert rows["ratio"].tolist() == pytest.approx([2, np.inf, 2, np.inf, np.inf, 100 / 80])
    table = report.ratio_table(results, "MLP", "FLOPs")
    assert table["MLP needs"].tolist() == ["2.00 times", "never reached"]
    assert table["from - to"].tolist() == [
        "2.00 times - never reached",
        "1.25 times - never reached",
    ]
    assert table["MLP at equal cost"].tolist() == ["", ""]


def test_ratios_at_matched_error() -> None:
    results = made_up_results(
        {"MLP": [(10, 1.0), (1000, 0.01)], "lmKAN": [(20, 0.1), (200, 0.05), (400, 0.001)]}
    )
    ratios = report.matched(results, "MLP", "FLOPs").set_index("model")
    assert ratios.loc["lmKAN 20", "ratio"] == pytest.approx(100 / 20)
    assert ratios.loc["lmKAN 200", "ratio"] == pytest.approx(200 / 200)
    assert ratios.loc["lmKAN 400", "ratio"] == np.inf
    assert ratios["theirs"].tolist() == pytest.approx([10 / 20, 10 / 200, 10 / 400])
    sentence = report.verdict(results, "MLP", "FLOPs")
    assert "1.00 to 5.00 times" in sentence
    assert "no MLP trained here is as accurate as lmKAN 400" in sentence
    assert "lose" not in sentence


def test_the_summary_counts_what_has_no_ratio() -> None:
    mlps = [(10, 1.0), (1000, 0.01)]
    lmkans = [(5, 3.0), (12, 2.0), (20, 0.1), (200, 0.05), (400, 0.001)]
    results = [made_up_results({"MLP": mlps, "lmKAN": each}) for each in (lmkans, lmkans[4:])]
    (column,) = (each for each in report.summary(results) if "FLOPs" in each)
    cells = report.summary(results)[column].tolist()
    assert cells == ["0.83, 1, 5; 1 not reached; 1 cheaper", "1 not reached"]


@pytest.mark.parametrize("error", [0.1, 2.0], ids=["on the front", "above the front"])
def test_the_page_says_where_lmkans_lose(error: float) -> None:
    results = made_up_results({"MLP": [(10, 1.0), (1000, 0.01)], "lmKAN": [(400, error)]})
    assert "lmKANs lose for lmKAN 400" in report.verdict(results, "MLP", "FLOPs")


def test_a_cheaper_and_less_accurate_network_loses_nothing() -> None:
    mlps = [(10, 1.0), (100, 3.0), (1000, 0.01)]  # one is on no front
    results = made_up_results({"MLP": mlps, "lmKAN": [(5, 2.0)]})
    assert "none as cheap" in report.verdict(results, "MLP", "FLOPs")


def test_the_chosen_rate_is_that_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    def run(rate: float, seed: int, validation: float, error: float) -> dict[str, Any]:
        losses = {"validation_loss": validation, "errors": {"error": error}}
        sizes = {"model": "A", "kind": "MLP", "flops": 1, "parameters": 1}
        return {**sizes, "rate": rate, "seed": seed, **losses}

    runs = [run(0.1, 0, 2.0, 0.1), run(0.2, 0, 1.0, 0.3), run(0.2, 1, 9.0, 0.5)]
    content = {"title": "", "setting": {}, "circumstances": {}, "runs": runs}
    (tmp_path / "made-up.json").write_text(json.dumps(content))
    results = report.read_results(tmp_path / "made-up.json")
    assert results.chosen["error"].tolist() == [0.3, 0.5]
    assert results.costs == ["FLOPs"]  # nothing was timed yet
    table = report.models_table(results)
    assert table["error"].tolist() == ["0.4 (0.3 - 0.5)"]
    assert table["rate"].tolist() == ["0.2 (highest tried)"]  # a better one may lie beyond


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no experiment has written its results here"):
        report.write_report(tmp_path, tmp_path)
