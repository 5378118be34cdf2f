"""Small residual networks for images, with ordinary convolutions or with lmKAN convolutions.

Every block normalises before it convolves. Shortcuts have no parameters. The last layer, on the
mean over the image, is linear in both kinds.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lmkan_cupy.adapters.torch import LMKANConv2d
from lmkan_cupy.adapters.torch.training import BOUND, Rows, fold_, parameter_groups, penalty_for
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

import lmkan_cupy

from .experiment import Experiment, Task
from .image_data import Images
from .models import LEARNING_RATES, Model

STEPS = {"smoke": 4, "cpu": 2000, "gpu": 10_000}
ROWS = {"smoke": 120, "cpu": 60_000, "gpu": 2_000_000}  # at most
BATCH = {"smoke": None, "cpu": 128, "gpu": 128}  # None: as fit chooses it
ROWS_AT_ONCE = {"smoke": 64, "cpu": 512, "gpu": 2000}
WIDTHS = {
    "smoke": ([2], [2]),
    "cpu": ([2, 4], [4, 8, 16]),
    "gpu": ([4, 8, 16], [4, 8, 16, 32, 64]),
}
TIMING_SECONDS = {"smoke": 0.1, "cpu": 60.0, "gpu": 5.0}
VALIDATION_SEED = 2**20
SHIFT = 0.125  # largest shift of an image in augmentation, relative to its size


class Block(nn.Module):
    """Two convolutions and a shortcut around them, ``[N, C, H, W] -> [N, O, H / s, W / s]``."""

    def __init__(self, first: nn.Module, second: nn.Module, more_channels: int, stride: int):
        super().__init__()
        self.convolutions = nn.Sequential(first, second)
        self.more_channels = more_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        around = avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        y: Tensor = pad(around, (0, 0, 0, 0, 0, self.more_channels)) + self.convolutions(x)
        return y


@dataclass(frozen=True)
class CNN(Model):
    """Ordinary convolutions after batch normalisation and ReLU.

    Attributes
    ----------
    image : (int, int, int)
        Channels, rows and columns.
    classes, width : int
        Number of classes, and of channels after the first convolution; they double twice.
    """

    image: tuple[int, int, int]
    classes: int
    width: int
    learning_rates: tuple[float, ...] = LEARNING_RATES

    @property
    def kind(self) -> str:
        return "CNN"

    @property
    def label(self) -> str:
        return f"{self.kind} {self.width}"

    def convolution(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Return normalisation, activation and convolution."""
        return nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        )

    def first_convolution(self) -> nn.Module:
        """Return the first convolution, of images that are standardised already."""
        return nn.Conv2d(self.image[0], self.width, 3, stride=2, padding=1, bias=False)

    def build(self) -> nn.Sequential:
        modules = [self.first_convolution()]
        channels = self.width
        for stride in (1, 2, 2):
            wider = stride * channels
            first = self.convolution(channels, wider, stride)
            second = self.convolution(wider, wider, 1)
            modules.append(Block(first, second, wider - channels, stride))
            channels = wider
        head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*modules, *head, nn.Linear(channels, self.classes))

    def flops(self) -> int:
        """Return the multiply-adds of convolutions and the linear layer for one image."""
        total = 0

        def count(module: nn.Module, _: Any, output: Tensor) -> None:
            nonlocal total
            if isinstance(module, nn.Linear):
                total += module.weight.numel()
            elif isinstance(module, nn.Conv2d):
                total += module.weight.numel() * output[0, 0].numel()
            elif isinstance(module, LMKANConv2d):
                features = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
                total += lmkan_cupy.flops(features, module.out_channels) * output[0, 0].numel()

        with torch.device("meta"), torch.no_grad():  # shapes only
            network = self.build().eval()
            for module in network.modules():
                module.register_forward_hook(count)
            network(torch.zeros(1, *self.image))
        return total


@dataclass(frozen=True)
class LMKANCNN(CNN):
    """lmKAN convolutions of normalised and clamped inputs, with a linear branch while training."""

    num_grids: int = 8
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)

    @property
    def kind(self) -> str:
        return "lmKAN"

    @property
    def label(self) -> str:
        return f"{super().label} G={self.num_grids}"

    def convolution(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(in_channels, affine=False),
            nn.Hardtanh(-BOUND, BOUND),
            LMKANConv2d(
                in_channels,
                out_channels,
                3,
                stride,
                padding=1,
                num_grids=self.num_grids,
                residual="linear",
            ),
        )

    def first_convolution(self) -> nn.Module:
        return self.convolution(self.image[0], self.width, 2)

    def parameter_groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        return parameter_groups(network, lr)

    def deployed(self, network: nn.Module) -> nn.Module:
        fold_(network)
        return network


@dataclass(frozen=True)
class AugmentedImages(Rows):
    """Images of bytes; every batch is standardised, and shifted and mirrored at random."""

    standardised: Callable[[Tensor], Tensor] = Tensor.float

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.features.device).manual_seed(self.seed)
        for images, labels in super()._blocks():
            yield augmented(self.standardised(images), generator), labels


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image [N, C, H, W] at random, and mirror half of them."""
    device = images.device
    number, _, height, width = images.shape
    most = int(SHIFT * height)
    shifts = torch.randint(2 * most + 1, (2, number, 1), generator=generator, device=device)
    rows = shifts[0] + torch.arange(height, device=device)  # [N, H]
    columns = shifts[1] + torch.arange(width, device=device)
    mirrored = torch.rand(number, 1, generator=generator, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(number, device=device)[:, None, None]
    padded = pad(images, (most,) * 4)
    return padded[every, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def classification_errors(logits: Tensor, labels: Tensor) -> dict[str, float]:
    wrong = logits.argmax(dim=1) != labels
    return {
        "error rate": float(wrong.double().mean()),
        "cross-entropy": float(cross_entropy(logits, labels)),
    }


def mean_and_spread(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel of images of bytes [N, C, H, W].

    Computed from a histogram: as floats, the images might not fit into memory.
    """
    counts = torch.stack([each.flatten().bincount(minlength=256) for each in images.unbind(1)])
    values, number = torch.arange(256.0, dtype=torch.float64, device=images.device), counts[0].sum()
    mean = (counts * values).sum(1) / number
    return mean, ((counts * (values - mean[:, None]) ** 2).sum(1) / (number - 1)).sqrt()


def make_experiment(title: str, data: Images, arguments: argparse.Namespace) -> Experiment:
    """Return the experiment with CNNs of both kinds; a tenth of the images is for validation."""
    scale, device = arguments.scale, arguments.device
    order = torch.randperm(
        len(data.labels), generator=torch.Generator().manual_seed(VALIDATION_SEED)
    )[: ROWS[scale]]
    validation, training = order[: len(order) // 10], order[len(order) // 10 :]
    x, y = data.images[training].to(device), data.labels[training].to(device)
    mean, spread = (each.float()[:, None, None] for each in mean_and_spread(x))

    def standardised(images: Tensor) -> Tensor:
        return (images.float() - mean) / spread

    def some(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return standardised(images.to(device)), labels.to(device)

    task = Task(
        batches=lambda seed: AugmentedImages(x, y, seed, BATCH[scale], standardised),
        steps=STEPS[scale],
        validation=some(data.images[validation], data.labels[validation]),
        test=some(data.test_images[: ROWS[scale]], data.test_labels[: ROWS[scale]]),
        loss=cross_entropy,
        errors=classification_errors,
        penalty=penalty_for(len(y)),
        setting={
            "rows": len(y),
            "image": list(x.shape[1:]),
            "batch": BATCH[scale],
            "rows_at_once": ROWS_AT_ONCE[scale],
        },
        rows_at_once=ROWS_AT_ONCE[scale],
        keeps_statistics=False,
    )
    channels, height, width = x.shape[1:]
    image, classes = (channels, height, width), int(data.labels.max()) + 1
    lmkan_widths, cnn_widths = WIDTHS[scale]
    models: list[Model] = [
        *(LMKANCNN(image, classes, width) for width in lmkan_widths),
        *(CNN(image, classes, width) for width in cnn_widths),
    ]
    return Experiment(title, task, models, timing_seconds=TIMING_SECONDS[scale])
