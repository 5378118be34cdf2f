"""The picture of a network, the command that draws it, and what carries weight in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import MODEL, check_refusal, quick_fit
from lmkan_cupy.adapters.inspection import plot_network, prune_
from lmkan_cupy.adapters.inspection.flows import layers_of
from lmkan_cupy.adapters.inspection.view import view
from lmkan_cupy.adapters.sklearn import LMKANRegressor
from lmkan_cupy.adapters.torch import LMKANBlock, LMKANLinear
from PIL import Image

import lmkan_cupy

nn = torch.nn


def known() -> Any:
    """y = x0 x1 + 2 x2 + x4, whose variances are 1, 4 and 1."""
    layer = LMKANLinear(5, 1, 8)
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(8))
    nn.init.zeros_(layer.tables)
    layer.tables.data[0, :, :, 0] = knots[:, None] * knots
    layer.tables.data[1, :, :, 0] = 2 * knots[:, None]
    layer.tables.data[2, :, :, 0] = knots[:, None]
    return layer


@pytest.mark.parametrize("with_data", [False, True])
def test_shares_of_a_known_function(with_data: bool) -> None:
    data = np.random.default_rng(0).standard_normal((2000, 5)) if with_data else None
    (layer,) = layers_of(view("", known()), data)
    np.testing.assert_allclose(layer.carried[:, 0], np.array([1, 4, 1]) / 6, atol=0.02)
    np.testing.assert_allclose(layer.of_inputs, np.array([0.5, 0.5, 4, 0, 1]) / 6, atol=0.02)
    assert (layer.sizes, [*layer.groups]) == ((5, 1), [(0, 1), (2, 3), (4,)])


def test_shares_go_through_all_layers() -> None:
    """Also through linear ones; a hidden feature that nothing reads carries nothing."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 5)
    linear.weight.data[2] = 0
    model = nn.Sequential(linear, LMKANBlock(5, 5, 6, residual="linear"), known()).eval()
    layers = layers_of(view("", model), np.random.default_rng(0).standard_normal((100, 4)))
    for layer in layers:
        assert layer.carried.sum() == pytest.approx(1)
        assert layer.of_inputs.sum() == pytest.approx(1)
    assert [each.functions is None for each in layers] == [True, False, False]
    assert layers[2].of_inputs[3] == pytest.approx(0, abs=1e-12)
    assert layers[1].carried[:, 3].sum() == pytest.approx(0, abs=1e-12)


def texts(figure: Any) -> list[str]:
    figure.draw_without_rendering()
    return [each.get_text() for each in figure.axes[0].texts]


def maps(figure: Any) -> list[Any]:
    return figure.axes[0].child_axes


def test_a_small_network_with_its_functions() -> None:
    x = np.random.default_rng(0).standard_normal((200, 4))
    model = LMKANRegressor(8, 2, epochs=2, random_state=0).fit(x, x[:, 0])
    figure = plot_network(model, x)
    shown = texts(figure)
    assert {"2 pairs x 8 functions", "4 pairs x 1 functions", "y0"} <= {*shown}
    names = [each.split("  ")[0] for each in shown if "%" in each]
    assert names == ["x0", "x1", "x2", "x3"]
    assert len(maps(figure)) == 2 * 8 + 4


@pytest.mark.long
def test_a_large_network() -> None:
    layers = [LMKANBlock(i, o, 4) for i, o in ((10, 32), (32, 32), (32, 1))]
    figure = plot_network(nn.Sequential(*layers).eval())
    assert "16 pairs x 32 functions" in texts(figure)
    assert len(maps(figure)) == 16
    lines = [each for each in figure.axes[0].lines if each.get_color() == "tab:blue"]
    assert len(lines) == 2 * 150 + 16 + 10 + 32 + 32


def test_a_map_is_its_function() -> None:
    figure = plot_network(known(), np.random.default_rng(0).standard_normal((500, 5)))
    pictures = [each.images[0].get_array() for each in maps(figure) if each.images]
    curves = [each.lines[0].get_xydata() for each in maps(figure) if each.lines]
    assert (len(pictures), len(curves)) == (2, 1)
    np.testing.assert_allclose(curves[0][:, 0], curves[0][:, 1], atol=1e-5)
    product = next(each for each in pictures if abs(each[0, 0] - each[-1, -1]) < 3)
    assert product[0, 0] > 1 > -1 > product[0, -1]


def test_a_pruned_network() -> None:
    """With the features that are left; x3 is not read."""
    model = nn.Sequential(known(), LMKANBlock(1, 1, 6, residual="linear")).eval()
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 5))).float()
    prune_(model, rows, 1e-6)
    names = [each.split("  ")[0] for each in texts(plot_network(model, rows)) if "%" in each]
    assert sorted(names) == ["x0", "x1", "x2", "x4"]


@pytest.mark.parametrize("dimension", [1, 3])
def test_functions_of_one_and_three_variables_are_refused(dimension: int) -> None:
    model, rows = nn.Sequential(LMKANLinear(4, 2, 4, dimension=dimension)), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="plot_network: model must have functions of two var"):
        plot_network(model, rows)
    with pytest.raises(ValueError, match=f"prune_: 0 must have .* got dimension={dimension}"):
        prune_(model, rows, 0.1)


def test_the_command(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "model").mkdir()
    quick_fit().model.save(tmp_path / "model")
    code, out, err = command("show", "model")
    assert (code, err) == (0, "")
    assert out.startswith("    3 features in 2 pairs -> 4\n    4 features in 2 pairs -> 4\n")
    assert "y from these features:" in out
    shares = [
        line.split() for line in out.splitlines() if line.lstrip()[0].isdigit() and "%" in line
    ]
    assert {name for _, name in shares} == {"a", "b", "c"}
    assert sum(float(share.rstrip("%")) for share, _ in shares) == pytest.approx(100, abs=0.3)
    assert {each.name for each in (tmp_path / "model").iterdir()} == {*MODEL, "network.png"}
    assert command("show", "model", "--out", "new/folder")[0] == 0
    with Image.open(tmp_path / "new" / "folder" / "network.png") as picture:
        assert min(picture.size) > 400


def test_refusals(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    check_refusal(command("show", "nothing"), "nothing: there is no model.json")
    (tmp_path / "model").mkdir()
    quick_fit().model.save(tmp_path / "model")
    (tmp_path / "file").touch()
    check_refusal(
        command("show", "model", "--out", "file"), "file: cannot be written (File exists)"
    )
