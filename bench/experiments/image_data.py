"""Readers of image data sets: all images in memory, as bytes."""

import gzip
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """A data set of images.

    Attributes
    ----------
    images, test_images : uint8 Tensor [N, C, H, W]
    labels, test_labels : int64 Tensor [N]
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def read_fashion_mnist(folder: Path) -> Images:
    """Read the idx files of Fashion-MNIST, as Debian's ``dataset-fashion-mnist`` installs them."""
    parts = []
    for name in ("train", "t10k"):
        images = _read_idx(folder / f"{name}-images-idx3-ubyte.gz")
        labels = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
        parts += [torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()]
    return Images(*parts)


def read_cifar10(folder: Path) -> Images:
    """Read ``cifar10_jpeg.npz``, or the batches of the original archive for Python.

    Raises
    ------
    FileNotFoundError
        If neither is there.
    """
    packed = folder / "cifar10_jpeg.npz"
    parts = []
    if packed.exists():
        with np.load(packed) as arrays:
            for name in ("train", "test"):
                data, offsets = arrays[f"{name}_jpeg"].tobytes(), arrays[f"{name}_offsets"]
                files = [io.BytesIO(data[start:end]) for start, end in pairwise(offsets)]
                parts += [_stack([_pixels(file, None) for file in files])]
                parts += [torch.from_numpy(arrays[f"{name}_labels"]).long()]
        return Images(*parts)
    original = folder / "cifar-10-batches-py"
    if not original.exists():
        original = folder
    if not (original / "test_batch").exists():
        raise FileNotFoundError(
            f"{folder}: neither cifar10_jpeg.npz nor data_batch_1 to data_batch_5 and test_batch"
        )
    for names in ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]):
        batches = [_unpickled(original / name) for name in names]
        images = torch.from_numpy(np.concatenate([batch[b"data"] for batch in batches]))
        labels = torch.from_numpy(np.concatenate([batch[b"labels"] for batch in batches]))
        parts += [images.reshape(-1, 3, 32, 32), labels.long()]
    return Images(*parts)


def read_tree(folder: Path, size: int) -> Images:
    """Read ``train/<class>/*`` and ``val/<class>/*``, as ImageNet is laid out.

    Images are scaled and cropped to squares of ``size`` pixels; classes are numbered in order of
    their names. ImageNet at 64 pixels takes 16 GB, and twice that while it is read.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or empty.
    """
    parts = []
    classes: list[str] = []
    for name in ("train", "val"):
        classes = classes or sorted(
            each.name for each in (folder / name).glob("*") if each.is_dir()
        )
        files = [
            (path, label)
            for label, class_ in enumerate(classes)
            for path in sorted((folder / name / class_).glob("*"))
            if path.suffix.lower() in Image.registered_extensions()
        ]
        if not files:
            raise FileNotFoundError(f"{folder / name}: there are no images in folders of classes")
        parts += [
            _stack([_pixels(path, size) for path, _ in files]),
            torch.tensor([label for _, label in files]),
        ]
    return Images(*parts)


def _read_idx(path: Path) -> Bytes:
    """Read bytes in the format that http://yann.lecun.com/exdb/mnist describes."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _pixels(file: Any, size: int | None) -> Bytes:
    """Return the pixels [H, W, 3] of an image, cropped to a square of ``size`` pixels if given."""
    with Image.open(file) as image:
        colours = image.convert("RGB")
        return np.asarray(colours if size is None else ImageOps.fit(colours, (size, size)))


def _stack(images: Sequence[Bytes]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="bytes").load()


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled NumPy arrays, and refuses everything that could run other code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("_codecs", "encode") and (
            module.partition(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype")
        ):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch of images")
        return super().find_class(module, name)
