"""The experiments on images: readers, augmentation, networks."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smoke_runs
import torch
from PIL import Image

from bench.experiments import cifar10, fashion_mnist, image_data, images

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
        Image.fromarray(pixels).save(file, "PNG")  # lossless; readers go by the first bytes
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


@pytest.mark.long
def test_fashion_mnist(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    check_image_results(
        smoke_runs.run(fashion_mnist, tmp_path, "--data", str(tmp_path)), [1, 32, 32]
    )


@pytest.mark.long
def test_cifar10(tmp_path: Path) -> None:
    write_packed_cifar10(tmp_path)
    check_image_results(smoke_runs.run(cifar10, tmp_path, "--data", str(tmp_path)), [3, 32, 32])


@pytest.mark.long
def test_images_in_the_layout_of_imagenet(tmp_path: Path) -> None:
    write_tree(tmp_path / "folder")
    out = str(smoke_runs.path(cifar10, tmp_path))
    arguments = ("--data", str(tmp_path / "folder"), "--tree", "16", "--out", out)
    results = smoke_runs.run(cifar10, tmp_path, *arguments)
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
    assert batch.unique().tolist() == [0.0, 2.0]  # shifted images are padded with their mean


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
    """An lmKAN's first window has nine features, so its last pair has only one."""
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
