"""`prune_`: how much smaller a chain becomes, and what that costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANLinear = adapter.LMKANBlock, adapter.LMKANLinear
fuse, prune_ = adapter.fuse, adapter.prune_
nn = torch.nn


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def with_statistics(model: Any) -> Any:
    for each in model.modules():
        if isinstance(each, nn.BatchNorm1d):
            nn.init.normal_(each.running_mean)
            nn.init.uniform_(each.running_var, 0.5, 2.0)
            if each.affine:
                nn.init.uniform_(each.weight, -2.0, 2.0)
                nn.init.normal_(each.bias)
    return model.eval()


@torch.no_grad()
def without(layer: Any, feature: int) -> None:
    """Make the functions of a layer constant in an input, for x of any size."""
    axis = 1 + feature % 2
    tables = layer.tables[feature // 2].unsqueeze(0)
    layer.tables[feature // 2] = tables.mean(axis, keepdim=True).expand_as(tables)[0]


def chain(*, affine: bool = False) -> Any:
    """Of 5-7-6-2 features; inputs 0, 1 and 3 and hidden features 0, 2, 3, 6 and 5 are not used."""
    blocks = [LMKANBlock(i, o, 6, init_scale=3.0) for i, o in ((5, 7), (7, 6), (6, 2))]
    for block, features in zip(blocks, ((0, 1, 3), (0, 2, 3, 6), (5,)), strict=True):
        for feature in features:
            without(block.layer, feature)
    if affine:
        blocks.insert(1, nn.BatchNorm1d(7))
    return with_statistics(nn.Sequential(*blocks))


def sizes(model: Any) -> list[tuple[int, int, int]]:
    """Of every layer: inputs, pairs, outputs."""
    return [
        (each.in_features, len(each.tables), each.out_features)
        for each in model.modules()
        if isinstance(each, LMKANLinear)
    ]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_not_used_goes_and_costs_nothing(affine: bool, dtype: Any) -> None:
    model, x = chain(affine=affine).to(dtype), 2 * torch.randn(300, 5, dtype=dtype)
    expected = model(x).detach()
    error = prune_(model, x, 1e-5)
    assert sizes(model) == [(2, 1, 3), (3, 2, 5), (5, 3, 2)]
    assert error <= 50 * torch.finfo(dtype).eps
    assert relative_change(fuse(model)(x), expected) <= 50 * torch.finfo(dtype).eps
    assert sum(each.numel() for each in model.parameters() if each.ndim == 4) == 49 * (3 + 10 + 6)


def relative_change(after: Any, before: Any) -> float:
    deviation = (before - before.mean(0)).square().mean().sqrt()
    return ((after - before).square().mean().sqrt() / deviation).item()


@torch.no_grad()
def test_again_takes_from_the_selection() -> None:
    model, x = chain(), 2 * torch.randn(300, 5)
    prune_(model, x, 1e-5)
    for tolerance in (0.3, 0.95):
        before = model(x)
        error = prune_(model, x, tolerance)
        assert 0 < error <= tolerance
        assert error == pytest.approx(relative_change(model(x), before), rel=1e-4)
        assert fuse(model)(x).shape == (300, 2)
    selections = [each for each in model.modules() if type(each).__name__ == "Selection"]
    assert len(selections) == 1
    assert len(selections[0].columns) == sizes(model)[0][0] == 1


@torch.no_grad()
def test_what_is_left_of_a_function_is_its_average() -> None:
    model, x = nn.Sequential(LMKANLinear(2, 1, 6, init_scale=1.0)), torch.randn(400, 2)
    layer = copy.deepcopy(model[0])
    prune_(model, x, 1.0)
    (kept,) = model[0][0].columns.tolist()
    for value in (-3.0, -0.2, 0.7, 3.0):
        rows = x.clone()
        rows[:, kept] = value
        torch.testing.assert_close(model(rows)[0, 0], layer(rows).mean())


@torch.no_grad()
def test_branches_are_folded() -> None:
    sizes_of_blocks = {"residual": "linear", "num_grids": 6}
    model = nn.Sequential(LMKANBlock(4, 3, **sizes_of_blocks), LMKANBlock(3, 1, **sizes_of_blocks))
    with_statistics(model)
    x = torch.randn(50, 4)
    expected = model(x)
    assert prune_(model, x, 0.0) < 1e-5
    assert sizes(model) == [(4, 2, 3), (3, 2, 1)]
    assert all(each.residual is None for each in model.modules() if isinstance(each, LMKANLinear))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("wrap", [False, True], ids=["option", "block"])
def test_inputs_stay(wrap: bool) -> None:
    """By the option, and where there is no room for a selection."""
    inner, x = chain(), 2 * torch.randn(300, 5)
    model = inner
    if wrap:
        model = LMKANBlock(5, 5, bound=None)
        model.norm, model.layer = nn.Identity(), inner
    expected = model(x).detach()
    prune_(model, x, 1e-5, keep_inputs=not wrap)
    assert sizes(model) == [(5, 3, 3), (3, 2, 5), (5, 3, 2)]
    torch.testing.assert_close(model(x), expected)


def test_trains_further() -> None:
    model, x = chain(), 2 * torch.randn(300, 5)
    prune_(model, x, 0.2)
    target = x[:, 2:3] * torch.ones(1, 2)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.03)
    errors = []
    for _ in range(40):
        error = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


def test_half_tables_and_the_plain_engine() -> None:
    model, x = chain(), 2 * torch.randn(300, 5)
    for block in model:
        block.layer.engine = "torch"
        block.layer.half()
    assert prune_(model, x, 1e-2) <= 1e-2
    assert sizes(model) == [(2, 1, 3), (3, 2, 5), (5, 3, 2)]
    assert {each.layer.engine for each in model.modules() if isinstance(each, LMKANBlock)} == {
        "torch"
    }
    assert {each.dtype for each in model.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0, got -1.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be at least 0, got nan"),
        ({"data": torch.zeros(5)}, ValueError, r"data must have shape \[N, I\], got \(5,\)"),
        ({"data": torch.zeros(0, 5)}, ValueError, r"data must have shape \[N, I\], got \(0, 5\)"),
        ({"data": torch.zeros(9, 5)}, ValueError, "output of model must not be the same for all"),
        ({"model": LMKANBlock(5, 2)}, ValueError, "nothing can be removed"),
        ({"model": nn.Sequential(nn.Linear(5, 2))}, ValueError, "nothing can be removed"),
        ({"model": nn.Sequential(nn.ReLU())}, TypeError, "0 is a ReLU; a chain is made of"),
        ({"model": nn.Sequential(*2 * [LMKANLinear(5, 5)])}, ValueError, "hold a layer twice"),
    ],
    ids=lambda value: None,
)
def test_errors(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"model": chain(), "data": torch.randn(9, 5), "tolerance": 0.1} | change
    with pytest.raises(error, match=f"prune_: .*{text}"):
        prune_(**arguments)


def test_a_selection_is_in_front() -> None:
    model = chain()
    prune_(model, 2 * torch.randn(300, 5), 1e-5)
    with pytest.raises(ValueError, match=r"Selection: x must have 5 features on its last axis"):
        model(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"fuse: 1\.0\.0 is a Selection, which must be in front"):
        fuse(nn.Sequential(LMKANLinear(5, 5), model))
