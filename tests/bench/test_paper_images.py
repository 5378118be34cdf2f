"""The paper's setting on images: backbones, patches, augmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from problems import first_short

from bench.experiments import cifar10, paper_images
from bench.experiments.paper_augmentation import Stream, changed_images, mixed

needs_kornia = pytest.mark.usefixtures("kornia")


@pytest.fixture
def kornia() -> Any:
    return pytest.importorskip("kornia")


def write_tree(folder: Path, size: int) -> None:
    """Write images in ImageNet's layout, with bright and dark classes."""
    rng = np.random.default_rng(0)
    for part, number in (("train", 20), ("val", 8)):
        for class_ in range(3):
            place = folder / part / f"class{class_}"
            place.mkdir(parents=True)
            for each in range(number):
                pixels = rng.integers(60 * class_, 60 * class_ + 90, (size, size, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{each}.png")


def write_cifar10(folder: Path) -> None:
    """Write random images as CIFAR-10's archive for Python has them."""
    import pickle

    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = rng.integers(0, 10, 24)
        data = (rng.integers(0, 100, (24, 3072)) + 15 * labels[:, None]).astype(np.uint8)
        content = {b"data": data, b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))


@needs_kornia
@pytest.mark.parametrize("case", first_short(["cifar10", "cifar10_flat", "tree"]))
def test_every_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    arguments = {"cifar10": [], "cifar10_flat": ["--flat"], "tree": ["--tree", "81"]}[case]
    if case == "tree":
        write_tree(tmp_path, 90)
    else:
        write_cifar10(tmp_path)
    out = tmp_path / "out.json"
    monkeypatch.setattr("bench.experiments.paper.PILOT_RATES", (1e-2,))
    arguments = ["--setting", "paper", "--data", str(tmp_path), "--out", str(out), *arguments]
    monkeypatch.setattr("sys.argv", ["experiment", *arguments])
    cifar10.main()
    results = json.loads(out.read_text())
    rivals = {"FastKAN", "MLP"} if case == "cifar10_flat" else {"CNN"}
    assert {run["kind"] for run in results["runs"]} == {"lmKAN", *rivals}
    (error,) = {key for run in results["runs"] for key in run["errors"]}
    assert error == ("error rate of the best 5" if case == "tree" else "error rate")
    assert len({run["flops"] for run in results["runs"]}) == 1 + len(rivals)
    assert [*tmp_path.glob("augmented_*.npy")]


def test_flops_are_the_papers() -> None:
    for width, flops in ((8, 46e3), (16, 137e3), (32, 448e3), (64, 1.59e6)):
        cnn = paper_images.PaperCNN(paper_images.cifar10_backbone(width, 10))
        assert cnn.flops() == pytest.approx(flops, rel=0.02)
        lmkan = paper_images.PaperLMKANCNN(paper_images.cifar10_backbone(width, 10))
        assert lmkan.flops() == 2 * cnn.flops()


@pytest.mark.parametrize("make", ["cifar10_backbone", "imagenet_backbone"])
def test_the_layers_are_those_of_the_backbone(make: str) -> None:
    backbone = getattr(paper_images, make)(2, 7)
    cnn = paper_images.PaperCNN(backbone).build()
    lmkan = paper_images.PaperLMKANCNN(backbone, 4).build()
    weights = [layer.weight.numel() for layer in cnn if hasattr(layer, "stride")]
    weights += [layer.weight.numel() for layer in cnn if hasattr(layer, "in_features")]
    assert weights == [number for _, number in backbone.weights()]
    blocks = [each.layer for each in lmkan if hasattr(each, "layer")]
    assert [each.weight.numel() for each in blocks] == weights
    assert [each.residual for each in blocks] == ["linear"] + ["relu"] * (len(blocks) - 1)
    images = torch.randn(2, 3, backbone.pixels, backbone.pixels)
    assert cnn.eval()(images).shape == lmkan.eval()(images).shape == (2, 7)


def test_patches_are_the_windows_of_a_convolution() -> None:
    x = torch.randn(2, 3, 6, 6)
    convolution = torch.nn.Conv2d(3, 5, 2, 2)
    patches = torch.nn.Sequential(paper_images.ChannelsLast(), paper_images.Patches(2))(x)
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    expected = convolution(x).movedim(1, -1)
    torch.testing.assert_close(patches @ weight.T + convolution.bias, expected)
    assert paper_images.Patches(6)(x.movedim(1, -1)).shape == (2, 108)


@pytest.mark.parametrize("model", [paper_images.PaperCNN, paper_images.PaperLMKANCNN])
def test_the_deployed_network_computes_what_was_trained(model: Any) -> None:
    backbone = paper_images.cifar10_backbone(2, 3)
    options = {"num_grids": 4} if model is paper_images.PaperLMKANCNN else {}
    made = model(backbone=backbone, **options)
    network = made.build()
    for block in network:
        if hasattr(block, "layer"):
            block.layer.tables_weight.fill_(0.3)
    for _ in range(3):
        network(1 + 2 * torch.randn(16, 3, 32, 32))  # moves the statistics
    x = torch.randn(16, 3, 32, 32)
    expected = network.eval()(x)
    torch.testing.assert_close(made.deployed(network)(x), expected, rtol=1e-3, atol=1e-4)


@needs_kornia
def test_changed_images_depend_on_the_seed_alone() -> None:
    images = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8)
    before = torch.get_rng_state()
    first, same, other = (changed_images(images, seed) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    assert first.shape == tuple(images.shape)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any(axis=(1, 2, 3)).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_mixing() -> None:
    """Shares of the classes are those of the images."""
    rng = np.random.default_rng(0)
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 32, 32)
    classes = torch.eye(8)
    is_whole = []
    for _ in range(50):
        some, shares = mixed(images, classes, rng)
        values = shares @ torch.arange(8.0)
        torch.testing.assert_close(some.mean(dim=(1, 2, 3)), values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shares.sum(1), torch.ones(8))
        is_whole.append(bool((some == some.round()).all()))
    assert 15 < sum(is_whole) < 45  # CutMix: each pixel is of one image
    assert images.shape == (8, 3, 32, 32)


def test_epochs_are_met_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def changed(images: Any, seed: int) -> Any:
        made.append(seed)
        return np.full(images.shape, seed, np.uint8)

    monkeypatch.setattr("bench.experiments.paper_augmentation.changed_images", changed)
    zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    labels = torch.arange(10)
    stream = Stream(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), labels, tmp_path, 2, 4, zero, one)
    epochs = [
        float(images.max()) for (images, _), _ in zip(stream.batches(0), range(8), strict=False)
    ]
    assert epochs == [0, 0, 1, 1, 0, 0, 1, 1]  # rows that do not fill a batch are left out
    assert made == [0, 1]


def test_the_error_of_the_best_classes() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    shares = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert [paper_images.top_error(logits, shares, best) for best in (1, 2, 5)] == [1.0, 0.5, 0.0]
