"""CNNs of the paper, whose windows do not overlap: each convolution is a layer on patches.

On CIFAR-10 five 2 x 2 convolutions of stride 2 lead from 32 x 32 pixels to one, then two layers to
the classes, all of one width. On ImageNet four 3 x 3 convolutions of stride 3 lead from 81 x 81
pixels to one, with 1, 3, 9 and 27 times the width. ``flat`` networks take an image as a row of
numbers and have one hidden layer, as the paper compares lmKANs with FastKAN.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lmkan_cupy.adapters.fitting.mlp import fused
from lmkan_cupy.adapters.torch import LMKANBlock, fuse
from lmkan_cupy.adapters.torch.training import penalty_for
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .experiment import Experiment, Task
from .image_data import Images
from .images import VALIDATION_SEED, mean_and_spread
from .models import Model
from .paper import NO_PENALTY, PILOT_RATES, InPhases, PaperFastKAN, PaperLMKAN, PaperMLP, tuned
from .paper_augmentation import Stream

ROWS = {"smoke": 120, "pilot": 60_000, "cpu": 60_000, "gpu": 2_000_000}  # at most
STEPS = {"smoke": 10, "pilot": 1000, "cpu": 14_000, "gpu": 350_000}
BATCH = {"smoke": 16, "pilot": 256, "cpu": 256, "gpu": 256}
#: Epochs of changed images, which are kept in files: 138 MB each for CIFAR-10.
EPOCHS = {"smoke": 1, "pilot": 6, "cpu": 16, "gpu": 100}
ROWS_AT_ONCE = {"smoke": 64, "pilot": 512, "cpu": 512, "gpu": 2000}
TIMING_SECONDS = {"smoke": 0.1, "pilot": 0.1, "cpu": 60.0, "gpu": 5.0}

NUM_GRIDS = 8

#: Widths of lmKANs and of CNNs.
WIDTHS = {
    "smoke": ([2], [2]),
    "pilot": ([16], [16]),
    "cpu": ([8, 16, 32], [8, 16, 32, 64]),
    "gpu": ([8, 16, 32], [8, 16, 32, 64]),
}

#: Hidden features of flat networks, and of lmKANs and FastKANs their grids: (G + 1)^2 and G + 1
#: parameters for every function.
FLAT_WIDTH = {"smoke": 4, "pilot": 64, "cpu": 256, "gpu": 256}
FLAT_GRIDS = {
    "smoke": ([4], [5]),
    "pilot": ([4], [8]),
    "cpu": ([4], [5, 8, 16, 31]),
    "gpu": ([4, 6, 8, 12, 16], [5, 8, 16, 32, 64, 128, 200]),
}


@dataclass(frozen=True)
class Backbone:
    """Sizes of a network.

    Attributes
    ----------
    pixels : int
        Rows and columns of an image, a power of ``window``.
    window : int
        Rows and columns of a window, and the stride.
    channels : tuple of int
        Channels of the image and after each convolution.
    classes : int
    """

    pixels: int
    window: int
    channels: tuple[int, ...]
    classes: int

    @property
    def width(self) -> int:
        """Features after the convolutions, of one pixel, and of the layer before the last."""
        return self.channels[-1]

    @property
    def heads(self) -> tuple[int, int, int]:
        return self.width, self.width, self.classes

    def weights(self) -> list[tuple[int, int]]:
        """Return for every layer its windows in an image, and its inputs times its outputs."""
        sizes = [self.pixels // self.window**depth for depth in range(1, len(self.channels))]
        area = self.window**2
        return [
            *(
                (size * size, area * i * o)
                for size, (i, o) in zip(sizes, pairwise(self.channels), strict=True)
            ),
            *((1, i * o) for i, o in pairwise(self.heads)),
        ]


def cifar10_backbone(width: int, classes: int) -> Backbone:
    return Backbone(32, 2, (3, *[width] * 5), classes)


def imagenet_backbone(width: int, classes: int) -> Backbone:
    return Backbone(81, 3, (3, width, 3 * width, 9 * width, 27 * width), classes)


@dataclass(frozen=True)
class PaperCNN(InPhases):
    """Convolutions and linear layers, with batch normalisation and ReLU between them."""

    backbone: Backbone
    learning_rates: tuple[float, ...] = PILOT_RATES
    seeds: int = 3
    runs_in_onnx: bool = True

    @property
    def kind(self) -> str:
        return "CNN"

    @property
    def label(self) -> str:
        return f"{self.kind} {self.backbone.channels[1]}"

    def flops(self) -> int:
        return sum(windows * weights for windows, weights in self.backbone.weights())

    def build(self) -> nn.Sequential:
        window = self.backbone.window
        modules: list[nn.Module] = []
        for i, o in pairwise(self.backbone.channels):
            modules += [nn.Conv2d(i, o, window, window), nn.BatchNorm2d(o), nn.ReLU()]
        modules.append(nn.Flatten())
        for i, o in pairwise(self.backbone.heads):
            modules += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
        return nn.Sequential(*modules[:-2])

    def deployed(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, nn.Sequential)
        modules: list[Any] = []
        for module in network.eval():
            if isinstance(module, nn.BatchNorm2d):
                modules[-1] = fuse_conv_bn_eval(modules[-1], module)
            else:
                modules.append(module)
        return fused(nn.Sequential(*modules))


class Patches(nn.Module):
    """Cuts images [N, H, W, C] into windows, [N, H / s, W / s, s s C]; of one, [N, s s C]."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        s, (n, rows, columns, _) = self.window, x.shape
        windows = x.reshape(n, rows // s, s, columns // s, s, -1).transpose(2, 3).flatten(3)
        return windows.flatten(0, 2) if rows == columns == s else windows


class ChannelsLast(nn.Module):
    """Maps [N, C, H, W] to [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


@dataclass(frozen=True)
class PaperLMKANCNN(InPhases):
    """lmKAN layers on patches, with ReLU branches; a variant is its own kind."""

    backbone: Backbone
    num_grids: int = NUM_GRIDS
    learning_rates: tuple[float, ...] = PILOT_RATES
    seeds: int = 3
    penalty_floor: float = NO_PENALTY

    @property
    def kind(self) -> str:
        return "lmKAN"

    @property
    def label(self) -> str:
        return f"{self.kind} {self.backbone.channels[1]} G={self.num_grids}"

    def flops(self) -> int:
        return 2 * sum(windows * weights for windows, weights in self.backbone.weights())

    def build(self) -> nn.Sequential:
        window, options = self.backbone.window, {"bound": None, "tables_weight": 0.0}
        modules: list[nn.Module] = [ChannelsLast()]
        residual = "linear"  # of the first layer
        for i, o in pairwise(self.backbone.channels):
            features = window * window * i
            block = LMKANBlock(features, o, self.num_grids, residual=residual, **options)
            modules += [Patches(window), block]
            residual = "relu"
        for i, o in pairwise(self.backbone.heads):
            modules.append(LMKANBlock(i, o, self.num_grids, residual=residual, **options))
        return nn.Sequential(*modules)

    def deployed(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, nn.Sequential)
        return nn.Sequential(
            *(fuse(each) if isinstance(each, LMKANBlock) else each for each in network)
        )


def make_models(
    scale: str, make: Callable[[int, int], Backbone], classes: int, rates: Mapping[str, float]
) -> list[Model]:
    """Return CNNs of both kinds, from the cheapest on."""
    kinds: list[Callable[[Backbone], Model]] = [PaperLMKANCNN, PaperCNN]
    models = [
        tuned(kind(make(width, classes)), width, rates)
        for kind, widths in zip(kinds, WIDTHS[scale], strict=True)
        for width in widths
    ]
    return sorted(models, key=lambda model: model.flops())


def make_flat_models(
    scale: str, features: int, classes: int, rates: Mapping[str, float]
) -> list[Model]:
    """Return networks with one hidden layer, of different grids."""
    width = FLAT_WIDTH[scale]
    sizes = (features, width, classes)
    lmkan_grids, fastkan_grids = FLAT_GRIDS[scale]
    models: list[Model] = [
        *(PaperLMKAN(sizes, grids) for grids in lmkan_grids),
        *(PaperFastKAN(sizes, grids) for grids in fastkan_grids),
        PaperMLP(sizes),
    ]
    return [tuned(model, width, rates) for model in models]


def make_experiment(
    title: str,
    data: Images,
    kept: Path,
    scale: str,
    device: torch.device,
    rates: Mapping[str, float],
    *,
    is_flat: bool = False,
) -> Experiment:
    """Return the experiment; augmented images are kept in the folder ``kept``.

    ``rates`` are the learning rates by kind of network; without any, each tries several.

    Images of 32 pixels go to the networks for CIFAR-10, of 81 pixels to those for ImageNet, whose
    error is that of the best five classes.
    """
    order = torch.randperm(
        len(data.labels), generator=torch.Generator().manual_seed(VALIDATION_SEED)
    )[: ROWS[scale]]
    validation, training = order[: len(order) // 10], order[len(order) // 10 :]
    x, y = data.images[training], data.labels[training]
    mean, spread = (each.float()[:, None, None].to(device) for each in mean_and_spread(x))
    channels, pixels, _ = x.shape[1:]
    classes = int(data.labels.max()) + 1
    features = channels * pixels * pixels

    def some(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        standardised = (images.to(device).float() - mean) / spread
        return in_shape(standardised), one_hot(labels, classes).float().to(device)

    def in_shape(images: Tensor) -> Tensor:
        return images.flatten(1) if is_flat else images

    stream = Stream(x, y, kept, EPOCHS[scale], BATCH[scale], mean, spread)
    best = 1 if pixels == 32 else 5
    task = Task(
        batches=lambda seed: ((in_shape(some), shares) for some, shares in stream.batches(seed)),
        steps=STEPS[scale],
        validation=some(data.images[validation], data.labels[validation]),
        test=some(data.test_images[: ROWS[scale]], data.test_labels[: ROWS[scale]]),
        loss=cross_entropy,
        errors=lambda logits, shares: {
            "error rate" if best == 1 else f"error rate of the best {best}": top_error(
                logits, shares, best
            )
        },
        penalty=penalty_for(len(y)),
        setting={
            "rows": len(y),
            "image": list(x.shape[1:]),
            "is_flat": is_flat,
            "keeps_statistics": False,
            "batch": BATCH[scale],
            "augmented epochs": EPOCHS[scale],
            "epochs": round(STEPS[scale] * BATCH[scale] / len(y), 1),
            "rows_at_once": ROWS_AT_ONCE[scale],
        },
        rows_at_once=ROWS_AT_ONCE[scale],
        keeps_statistics=False,
    )
    backbone = cifar10_backbone if pixels == 32 else imagenet_backbone
    models = (
        make_flat_models(scale, features, classes, rates)
        if is_flat
        else make_models(scale, backbone, classes, rates)
    )
    return Experiment(title, task, models, timing_seconds=TIMING_SECONDS[scale])


def top_error(logits: Tensor, shares: Tensor, best: int) -> float:
    """Return the share of images whose class is not among the ``best`` largest logits."""
    guesses = logits.topk(min(best, logits.shape[1]), dim=1).indices
    right = (guesses == shares.argmax(dim=1, keepdim=True)).any(dim=1)
    return 1 - float(right.double().mean())
