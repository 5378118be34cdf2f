"""What the paper's phases of training need: branches, the tables' weight, the schedule."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
training = pytest.importorskip("lmkan_cupy.adapters.torch.training")

nn = torch.nn
LMKANConv2d, LMKANLinear = adapter.LMKANConv2d, adapter.LMKANLinear
PhasedSchedule = adapter.PhasedSchedule


def linear(**options: Any) -> Any:
    return LMKANLinear(5, 7, 6, dtype=torch.float64, **options), (33, 5)


def convolution(**options: Any) -> Any:
    layer = LMKANConv2d(4, 6, 2, 2, groups=2, num_grids=4, dtype=torch.float64, **options)
    return layer, (3, 4, 6, 6)


MAKERS = pytest.mark.parametrize("make", [linear, convolution])


@MAKERS
def test_a_branch_with_its_relu_last(make: Any) -> None:
    layer, shape = make(residual="relu_last")
    x = torch.randn(shape, dtype=torch.float64)
    tables, branch = copy.deepcopy(layer), copy.deepcopy(layer)
    tables.weight = tables.bias = None
    branch.residual = "linear"
    torch.testing.assert_close(layer(x), tables(x) + torch.relu(branch(x) - tables(x)))
    with pytest.raises(ValueError, match="fold_: the branch of residual='relu_last' is no sum of"):
        layer.fold_()


def test_a_branch_with_its_relu_last_is_not_fused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), adapter.LMKANBlock(5, 2, 6, residual="relu_last"))
    with pytest.raises(TypeError, match=r"fuse: 1\.layer has residual='relu_last', which tables"):
        adapter.fuse(model)


@MAKERS
@pytest.mark.parametrize("residual", [None, "linear", "relu"])
def test_the_weight_of_the_tables(make: Any, residual: str | None) -> None:
    layer, shape = make(residual=residual, tables_weight=0.3)
    x = torch.randn(shape, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    twin.tables_weight = None
    twin.tables.data *= 0.3
    y = layer(x)
    torch.testing.assert_close(y, twin(x))
    assert layer.state_dict()["tables_weight"] == 0.3
    layer.fold_()
    assert [*layer.state_dict()] == ["tables"]
    torch.testing.assert_close(layer(x), y)


def test_the_weight_of_the_tables_in_a_block() -> None:
    torch.manual_seed(0)
    block = adapter.LMKANBlock(5, 7, 6, residual="linear", tables_weight=0.0).eval()
    x = torch.randn(9, 5)
    branch = block.layer
    bounded = block.bound(block.norm(x))
    torch.testing.assert_close(block(x), bounded @ branch.weight.T + branch.bias)


def test_the_weight_of_the_tables_of_a_layer_without_memory() -> None:
    layer = LMKANLinear(5, 7, 6, tables_weight=0.3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert float(layer.tables_weight) == pytest.approx(0.3)


class TestPhasedSchedule:
    def test_phases(self) -> None:
        schedule = PhasedSchedule(
            100, start=2.0, floor=0.02, shares=(0.1, 0.2, 0.2), decay=0.25, lr_fall=0.01
        )
        penalties, factors, weights = zip(*map(schedule, range(101)), strict=True)
        assert weights[:11] == (0.0,) * 11
        assert weights[20] == pytest.approx(0.15)
        assert weights[30:] == pytest.approx([0.3] * 71)
        assert penalties[:31] == (2.0,) * 31
        assert penalties[40] == pytest.approx(0.2)
        assert penalties[50:] == pytest.approx([0.02] * 51)
        assert factors[:76] == (1.0,) * 76
        assert factors[88] == pytest.approx(0.01 ** (13 / 25))
        assert factors[100] == pytest.approx(0.01)

    def test_empty_phases(self) -> None:
        schedule = PhasedSchedule(10, floor=0.1, shares=(0.0, 0.0, 0.0), decay=0.0)
        assert schedule(0) == schedule(9) == (pytest.approx(0.1), 1.0, 0.3)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
            ({"floor": 2.0}, "must be 0 < floor <= start, got floor=2.0, start=1.0"),
            ({"floor": 0.0}, "must be 0 < floor <= start, got floor=0.0"),
            ({"decay": 0.9}, "at most 1 together, got shares=.* and|decay=0.9"),
            ({"shares": (-0.1, 0.1, 0.1)}, r"not be negative.*got shares=\(-0.1, 0.1, 0.1\)"),
            ({"lr_fall": 0.0}, r"lr_fall must be in \(0, 1\], got 0.0"),
        ],
        ids=["no-steps", "floor", "no-floor", "too-long", "negative", "fall"],
    )
    def test_errors(self, arguments: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=f"PhasedSchedule: .*{text}"):
            PhasedSchedule(**({"total_steps": 10} | arguments))


class TestTraining:
    @pytest.fixture
    def x(self) -> Any:
        torch.manual_seed(0)
        return torch.randn(256, 2)

    def trained(
        self, x: Any, schedule: Any, steps: int, has_validation: bool = False
    ) -> tuple[Any, Any]:
        """Return a network after some steps of a schedule, and what the trainer says of them."""
        torch.manual_seed(1)
        y = x[:, :1] * x[:, 1:]
        network = nn.Sequential(
            adapter.LMKANBlock(2, 4, 6, residual="relu_last", tables_weight=1.0),
            adapter.LMKANBlock(4, 1, 6, residual="linear", tables_weight=1.0),
        )
        trainer = training.Trainer(
            batches=training.Rows(x, y, seed=0, batch=32),
            steps=steps,
            validation=(x, y) if has_validation else None,
            loss=nn.functional.mse_loss,
            penalty=0.0,
            schedule=schedule,
            keeps_statistics=False,
        )
        done = trainer.train("", network, [{"params": [*network.parameters()], "lr": 1e-2}])
        return network, done

    def test_the_schedule_sets_the_weight_of_the_tables(self, x: Any) -> None:
        schedule = PhasedSchedule(10, shares=(0.5, 0.5, 0.0), decay=0.0)
        for steps, weight in ((5, 0.0), (8, 0.3 * 2 / 5), (10, 0.3 * 4 / 5)):
            network, done = self.trained(x, schedule, steps)
            for block in network:
                assert float(block.layer.tables_weight) == pytest.approx(weight)
            assert done.curve == ()

    def test_tables_of_no_weight_do_not_learn(self, x: Any) -> None:
        """Only the penalty changes them, and it flattens them."""
        schedule = PhasedSchedule(20, shares=(1.0, 0.0, 0.0), decay=0.0)
        network, _ = self.trained(x, schedule, 20)
        plain, _ = self.trained(x, None, 20)
        assert adapter.hessian_penalty(network) < 0.5 * adapter.hessian_penalty(plain)

    def test_the_curve(self, x: Any) -> None:
        _, done = self.trained(x, PhasedSchedule(100), 100, has_validation=True)
        steps, losses = zip(*done.curve, strict=True)
        assert steps == tuple(range(2, 101, 2))
        assert min(losses) == done.validation_loss
