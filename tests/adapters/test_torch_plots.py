"""Pictures of learned functions, judged by the data in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lmkan_cupy

torch = pytest.importorskip("torch")
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANConv2d, LMKANLinear = adapter.LMKANConv2d, adapter.LMKANLinear
plot_function, plot_layer = adapter.plot_function, adapter.plot_layer


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    pyplot.close("all")


def drawn(ax: Any) -> tuple[Any, Any, Any]:
    """The map's points on both axes, and its values [x1, x2]."""
    (mesh,) = (each for each in ax.collections if hasattr(each, "get_coordinates"))
    points = mesh.get_coordinates()
    values = np.asarray(mesh.get_array()).reshape(points.shape[:2])
    return points[0, :, 0], points[:, 0, 1], values.T


def lines(ax: Any) -> list[Any]:
    """The density lines, as pairs of a level and its closed paths."""
    (contours,) = (each for each in ax.collections if hasattr(each, "levels"))
    return list(zip(contours.levels, contours.get_paths(), strict=True))


class TestPlotFunction:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_map_is_the_function(self, dtype: Any) -> None:
        layer = LMKANLinear(6, 4, 8, dtype=dtype)
        ax = plot_function(layer, 2, 1)
        first, second, values = drawn(ax)
        x = torch.zeros(len(first), len(second), 6)
        x[..., 4] = torch.from_numpy(first)[:, None]
        x[..., 5] = torch.from_numpy(second)
        tables = layer.tables.detach().float()
        only = torch.zeros_like(tables)
        only[2] = tables[2]
        np.testing.assert_allclose(values, adapter.lmkan(x, only)[..., 1], atol=1e-5)
        knots = lmkan_cupy.sigma_grid(8)
        np.testing.assert_allclose([first[0], first[-1]], knots[[0, -1]], rtol=1e-6)
        for axis in (ax.xaxis, ax.yaxis):
            np.testing.assert_allclose(axis.get_minor_locator().locs, knots, rtol=1e-6)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("input 4", "input 5")
        assert ax.get_title() == "pair 2, output 1"

    @pytest.mark.parametrize("kind", ["tensor", "array"])
    def test_lines_enclose_half_of_the_data_and_most_of_it(self, kind: str) -> None:
        centre = torch.tensor([0.0, 0.0, 1.0, -0.5])
        data = 0.7 * torch.randn(4, 1000, 4) + centre
        given = data.requires_grad_() if kind == "tensor" else data.numpy()
        (_, outer), (_, inner) = lines(plot_function(LMKANLinear(4, 3), 1, 0, data=given))
        samples = data.detach().reshape(-1, 4)[:, 2:].numpy()
        assert 0.45 < inner.contains_points(samples).mean() < 0.6
        assert 0.9 < outer.contains_points(samples).mean() <= 1

    @pytest.mark.parametrize(
        "convert", [torch.Tensor.bfloat16, lambda x: torch._neg_view(-x)], ids=["half", "negated"]
    )
    def test_data_as_a_layer_takes_them(self, convert: Any) -> None:
        data = convert(torch.tensor([[0.0, 0.0], [1.0, -7.0]]))
        first, _, _ = drawn(plot_function(LMKANLinear(2, 1), 0, 0, data=data))
        assert first[-1] == 7

    def test_reaches_as_far_as_the_data(self) -> None:
        data = np.array([[0.0, 0.0], [1.0, -7.0], [np.nan, 99.0]])
        first, second, _ = drawn(plot_function(LMKANLinear(2, 1), 0, 0, data=data))
        assert first[-1] == second[-1] == -first[0] == 7

    def test_draws_where_it_is_told(self) -> None:
        ax = pyplot.figure().add_subplot()
        assert plot_function(LMKANLinear(3, 1), 1, 0, data=torch.randn(500, 3), ax=ax) is ax
        assert len(lines(ax)) == 2

    def test_groups_count_through(self) -> None:
        layer = LMKANConv2d(4, 6, 1, groups=2, num_grids=4)
        _, _, values = drawn(plot_function(layer, 1, 2))
        corner = layer.tables[1, 0, 0, 0, 2].item()
        assert values[0, 0] == pytest.approx(corner, rel=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"pair": 2, "output": 0}, "pair must be at most 1, got 2"),
            ({"pair": 0, "output": 3}, "output must be at most 2, got 3"),
            (
                {"pair": 1, "output": 0, "data": np.zeros((5, 2))},
                r"data must have at least 3 features .* got data.shape=\(5, 2\)",
            ),
            (
                {"pair": 1, "output": 0, "data": np.ma.masked_less(np.zeros((5, 4)), 1)},
                "data must not have masked elements, got 20",
            ),
        ],
        ids=["pair", "output", "data", "masked"],
    )
    def test_errors(self, arguments: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=f"plot_function: {text}"):
            plot_function(LMKANLinear(4, 3), **arguments)


class TestPlotLayer:
    def test_shows_what_bends_most(self) -> None:
        layer = LMKANLinear(4, 3, 4)
        with torch.no_grad():
            for (pair, output), scale in {(1, 2): 9.0, (0, 1): 5.0}.items():
                layer.tables[pair, :, :, output] *= scale
        figure = plot_layer(layer, data=torch.randn(500, 4), most=2)
        panels = [each for each in figure.axes if each.get_title()]
        assert [each.get_title() for each in panels] == ["pair 1, output 2", "pair 0, output 1"]
        assert all(len(lines(each)) == 2 for each in panels)

    @pytest.mark.parametrize(("most", "panels"), [(1, 1), (5, 5), (99, 6)])
    def test_as_many_as_there_are(self, most: int, panels: int) -> None:
        figure = plot_layer(LMKANLinear(4, 3, 4), most=most)
        assert len([each for each in figure.axes if each.get_title()]) == panels
        assert len(figure.axes) == 2 * panels  # each with a colour bar

    def test_wants_one_at_least(self) -> None:
        with pytest.raises(ValueError, match="plot_layer: most must be at least 1, got 0"):
            plot_layer(LMKANLinear(4, 3, 4), most=0)
