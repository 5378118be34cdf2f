"""The networks of the experiments: FLOPs, and their form for inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lmkan_cupy.adapters.torch import training

from bench.experiments.fastkan import FastKANLayer
from bench.experiments.models import LMKAN, MLP, FastKAN, LinearFirst


def test_flops_are_counted_as_in_the_paper() -> None:
    assert MLP((8, 16, 16, 1)).flops() == 8 * 16 + 16 * 16 + 16
    assert LMKAN((8, 16, 16, 1)).flops() == 2 * (8 * 16 + 16 * 16 + 16)
    assert LinearFirst((8, 16, 16, 1)).flops() == 8 * 16 + 2 * (16 * 16 + 16)
    assert FastKAN((8, 16, 1), num_grids=5).flops() == 5 * (8 * 16 + 16) + (8 * 16 + 16)


@pytest.mark.parametrize(
    "model",
    [LMKAN((3, 4, 5, 1)), LinearFirst((3, 4, 5, 1)), MLP((3, 4, 1)), FastKAN((3, 4, 1))],
    ids=lambda m: m.label,
)
def test_the_deployed_network_computes_what_was_trained(model: Any) -> None:
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


@pytest.mark.parametrize(("part", "num_grids"), [(0.0, 12), (0.5, 12), (1.0, 6)])
def test_the_grid_is_refined_after_the_first_part(
    part: float, num_grids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.trainer, "FIRST_PART", part)
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
