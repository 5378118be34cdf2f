"""The multilayer perceptrons that lmKAN networks are compared with."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

#: Learning rate of the MLP that ``fit`` trains, chosen on the methane sample.
LR = 3e-2


def make_mlp(
    sizes: Sequence[int],
    activation: type[nn.Module] = nn.ReLU,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return an MLP whose layers have ``sizes`` features, from inputs to outputs, in float32.

    Between its linear layers are batch normalisation and an activation. ``generator`` draws the
    parameters, by default torch's own.
    """
    modules: list[nn.Module] = []
    for in_features, out_features in pairwise(sizes):
        norm = nn.BatchNorm1d(out_features, device="cpu", dtype=torch.float32)
        modules += [_linear(in_features, out_features, generator), norm, activation()]
    return nn.Sequential(*modules[:-2])


def _linear(in_features: int, out_features: int, generator: torch.Generator | None) -> nn.Linear:
    """Return a linear layer with the parameters that its constructor would draw."""
    # Without drawing from torch's own generator.
    layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, in_features, out_features, dtype=torch.float32
    )
    nn.init.kaiming_uniform_(layer.weight, math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(in_features)
    nn.init.uniform_(layer.bias, -bound, bound, generator)
    return layer


def fused(mlp: nn.Sequential) -> nn.Sequential:
    """Return the MLP as it would be deployed: linear layers absorb batch normalisation."""
    modules: list[Any] = []
    for module in mlp.eval():
        if isinstance(module, nn.BatchNorm1d):
            modules[-1] = fuse_linear_bn_eval(modules[-1], module)
        else:
            modules.append(module)
    return nn.Sequential(*modules)


def mlp_flops(sizes: Sequence[int]) -> int:
    """Return the multiply-adds for one row, I O in every layer, as the paper counts them."""
    return sum(i * o for i, o in pairwise(sizes))


def mlp_sizes(sizes: Sequence[int], flops: int) -> list[int]:
    """Return the sizes of the widest MLP that takes at most so many FLOPs.

    It is as deep as an lmKAN network of the given ``sizes``, with at least one hidden layer.
    """

    def with_width(width: int) -> list[int]:
        return [sizes[0], *[width] * max(1, len(sizes) - 2), sizes[-1]]

    width = 1
    while mlp_flops(with_width(width + 1)) <= flops:
        width += 1
    return with_width(width)
