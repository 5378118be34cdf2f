"""The paper's augmentation of CIFAR-10: a stream of changed images that all runs share.

Crops, mirroring, colours, RandAugment and erasing take longer than a training step of a small
network, so some epochs of changed images are kept in files, and met again after the last. Batches
are mixed anew each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from lmkan_cupy.adapters.torch.training import progress_bar
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

#: Images that RandAugment changes by the same two operations, each by a strength of its own.
_ALIKE = 50

#: Of MixUp: the weight of an image is drawn from Beta(alpha, alpha). That of CutMix is uniform.
MIXUP_ALPHA = 0.2


@dataclass(frozen=True)
class Stream:
    """Batches of augmented and mixed images, without end.

    Attributes
    ----------
    images : uint8 Tensor [N, C, H, W]
    labels : int64 Tensor [N]
        On the CPU.
    folder : Path
        Where augmented images are kept, in a file for each epoch.
    epochs : int
        Files.
    batch : int
        Images in a batch.
    mean, spread : Tensor [C, 1, 1]
        Of every channel; their device is that of the batches.
    """

    images: Tensor
    labels: Tensor
    folder: Path
    epochs: int
    batch: int
    mean: Tensor
    spread: Tensor

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield standardised images [B, C, H, W] and shares of the classes [B, K]."""
        rng = np.random.default_rng(seed)
        classes = one_hot(self.labels).float().to(self.mean.device)
        for number in count():
            images = self.epoch(number % self.epochs)
            order = rng.permutation(len(images))
            for rows in np.split(order, range(self.batch, len(order), self.batch)):
                if len(rows) == self.batch:
                    some = torch.from_numpy(images[rows]).to(self.mean.device).float()
                    yield mixed((some - self.mean) / self.spread, classes[rows], rng)

    def epoch(self, number: int) -> NDArray[np.uint8]:
        """Return the changed images of an epoch [N, C, H, W], from its file or made anew."""
        path = self.folder / f"augmented_{len(self.images)}_{number:03}.npy"
        if path.exists():
            kept: NDArray[np.uint8] = np.load(path)
            return kept
        changed = changed_images(self.images, seed=number)
        unfinished = path.with_suffix(".unfinished.npy")
        np.save(unfinished, changed)
        unfinished.replace(path)
        return changed


def changed_images(images: Tensor, seed: int) -> NDArray[np.uint8]:
    """Return the images [N, C, H, W], each changed at random, without mixing them."""
    import kornia.augmentation as changes  # takes a second
    from kornia.augmentation.auto import RandAugment

    change = nn.Sequential(
        changes.RandomCrop(tuple(images.shape[2:]), padding=4),
        changes.RandomHorizontalFlip(),
        changes.ColorJitter(0.3, 0.3, 0.3, 0.05, p=1.0),
        RandAugment(n=2, m=7),
        changes.RandomErasing(p=0.25, scale=(0.05, 0.2)),
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        parts = progress_bar(images.split(_ALIKE), desc=f"augmented epoch {seed}", leave=False)
        return torch.cat(
            [(change(part / 255).clamp(0, 1) * 255).round().to(torch.uint8) for part in parts]
        ).numpy()


def mixed(images: Tensor, classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order, by MixUp or CutMix, each half of the time.

    Parameters
    ----------
    images : Tensor [B, C, H, W]
    classes : Tensor [B, K]
        Shares of the classes.
    """
    others = images.flip(0)
    if rng.random() < 0.5:
        share = float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))
        images = share * images + (1 - share) * others
    else:
        height, width = images.shape[2:]
        half = np.sqrt(rng.random()) / 2  # of the rectangle's sides, relative to the image's
        rows, columns = (
            slice(*np.clip(np.round([c - half * size, c + half * size]), 0, size).astype(int))
            for size in (height, width)
            for c in [rng.random() * size]
        )
        images = images.clone()
        images[:, :, rows, columns] = others[:, :, rows, columns]
        covered = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - covered / (height * width)
    return images, share * classes + (1 - share) * classes.flip(0)
