"""What results are checked against: float64 references, and how far float32 results may be off.

The rule for the bounds is that of :mod:`.rounding`, as in ``tests/tolerances.py``, but for the
corners of a cell instead of all knots, and on any device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lmkan_cupy

from .interpolation import (
    UNIT,
    Interpolation,
    by_pair,
    corner_products,
    interpolation,
    scaled_sigma,
    weighted_sum,
)
from .peers import TimedLayer
from .rounding import STENCIL_ROUNDINGS, error_bound, size_and_error
from .workload import Workload

#: Number of samples, spread over the batch, whose results are compared.
COMPARED = 2**12

#: Pairs whose table gradients are compared: all samples add to these, so only the first and the
#: last pair.
ENDS = [0, -1]

#: Samples that are added up at a time for the gradients of these pairs.
CHUNK = 2**15

#: Slopes jump at knots, so inputs this close to one, in intervals, are left out where slopes count.
#: The rounding of G sigma(x) is 8 G r at most.
NEAR_KNOT = 1e-4


@dataclass(frozen=True)
class Bounded:
    """A result, and how far each element of a correct one may be from it."""

    value: Tensor
    bound: Tensor

    def check(self, name: str, result: Any) -> None:
        """Raise an AssertionError, naming the worst element, where a result is out of bounds."""
        result = as_tensor(result).double()
        error = (result - self.value).abs()
        wrong = ~(error <= self.bound)  # so that a NaN is wrong
        if wrong.any():
            worst = (error - self.bound).nan_to_num(torch.inf).argmax()
            got, expected, bound = (
                each.expand(error.shape).flatten()[worst].item()
                for each in (result, self.value, self.bound)
            )
            raise AssertionError(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements out of bounds, the worst: "
                f"got {got}, expected {expected} within {bound:.3g}"
            )


def away_from_knots(x: Tensor, num_grids: int) -> Tensor:
    """Return where the slope at x is defined in float32."""
    scaled = scaled_sigma(x.double(), num_grids)
    return (scaled - scaled.round()).abs() > NEAR_KNOT


def dots(tables: Tensor, rows: Tensor, grad_y: Tensor) -> Tensor:
    """Return ``sum_o grad_y[b, o] tables[rows[b, n], o]`` [B, N], the gradient of the weights."""
    weights = torch.ones(rows.shape, dtype=tables.dtype, device=rows.device, requires_grad=True)
    (grad,) = torch.autograd.grad(weighted_sum(tables, rows, weights), weights, grad_y)
    return grad


@dataclass(frozen=True)
class LayerReference:
    """The expected results of forward and backward for a workload."""

    samples: slice
    y: Bounded
    grad_x: Bounded
    has_slope: Tensor  # True where grad_x is defined
    grad_tables: Bounded

    def check_layer(self, name: str, layer: TimedLayer, has_grad_x: bool = True) -> None:
        """Check the results of a layer with tables."""
        y = layer.forward()
        first, grad_tables = layer.backward(y)
        self.check(name, y, first if has_grad_x else None, grad_tables)

    def check(self, name: str, y: Any, grad_x: Any, grad_tables: Any) -> None:
        """Check results; one that is None is left out."""
        if y is not None:
            self.y.check(f"{name}, y", as_tensor(y)[self.samples])
        if grad_x is not None:
            result = torch.where(self.has_slope, as_tensor(grad_x)[self.samples], self.grad_x.value)
            self.grad_x.check(f"{name}, grad_x", result)
        if grad_tables is not None:
            self.grad_tables.check(f"{name}, grad_tables", as_tensor(grad_tables)[ENDS])


def of_layer(workload: Workload) -> LayerReference:
    x, tables, grad_y = _tensors(workload)
    num_grids, samples = workload.num_grids, slice(None, None, -(-len(x) // COMPARED))
    some_x, some_grad_y = x[samples].double(), grad_y[samples].double()
    at = interpolation(some_x, num_grids, workload.dimension)
    terms, sizes = at.rows.shape[1], tables.abs()
    bound = weighted_sum(sizes, at.rows, error_bound(at.magnitudes, terms, UNIT))
    if workload.tables.dtype == "float16" and tables.is_cuda:
        bound += _interpolation_in_half(sizes, at)
    return LayerReference(
        samples,
        Bounded(weighted_sum(tables, at.rows, at.weights), bound),
        _grad_x(at, tables, some_grad_y, x.shape[1]),
        away_from_knots(some_x, num_grids),
        _grad_tables(x, None, grad_y, tables[ENDS].shape),
    )


def of_double_backward(
    workload: Workload, ggx: Any, ggt: Any, samples: Tensor
) -> tuple[Bounded, Bounded, Bounded]:
    """Return what `lmkan_cupy.backward_backward` should give where only some rows of ``grad_y``
    are not 0.

    Parameters
    ----------
    workload : Workload
    ggx, ggt : array [B, I], [P, S, S, O]
    samples : Tensor [M]
        int64, the rows of ``grad_y`` that are not 0; none of them may have an input near a knot.

    Returns
    -------
    grad_grad_y [M, O], grad_x [M, I], grad_tables [2, S, S, O]
        ``grad_tables`` of the first and the last pair.
    """
    x, tables, grad_y = _tensors(workload)
    some_x, g = x[samples].double(), grad_y[samples].double()
    along = torch.from_dlpack(ggx)[samples].double()
    z = torch.from_dlpack(ggt).double()
    at = interpolation(some_x, workload.num_grids)
    weights, magnitudes = _along(at, along)
    terms_of_y, terms_of_x = 12 * tables.shape[0], 8 * tables.shape[3]
    y = Bounded(
        weighted_sum(tables, at.rows, weights) + weighted_sum(z, at.rows, at.weights),
        weighted_sum(tables.abs(), at.rows, error_bound(magnitudes, terms_of_y, UNIT))
        + weighted_sum(z.abs(), at.rows, error_bound(at.magnitudes, terms_of_y, UNIT)),
    )
    mixed_weights = corner_products(*at.slopes)
    mixed_weight_bound = error_bound(corner_products(*at.slope_magnitudes), terms_of_x, UNIT)
    mixed = _sum_over_corners(mixed_weights * dots(tables, at.rows, g))
    mixed_bound = _sum_over_corners(mixed_weight_bound * dots(tables.abs(), at.rows, g.abs()))
    other = by_pair(along, 2).flip(-1)  # the derivative by one coordinate, along the other
    of_z = _grad_x(at, z, g, 2 * mixed.shape[1], terms_of_x)
    grad_x = Bounded(
        (other * mixed[..., None]).flatten(1) + of_z.value,
        (other.abs() * mixed_bound[..., None]).flatten(1) + of_z.bound,
    )
    features = x.shape[1]
    return (
        y,
        Bounded(grad_x.value[:, :features], grad_x.bound[:, :features]),
        _grad_tables(some_x, along, g, tables[ENDS].shape),
    )


def check_penalty(tables: Any, penalty: Any, grad: Any) -> None:
    """Check roughness and gradient of tables [P, S, S, O] against float64, a few pairs at a time.

    A curvature has at most four coefficients, a table value is in ten curvatures; the roughness is
    summed in float64. Both depend on two coefficients in each product.
    """
    given, grad = torch.from_dlpack(tables), as_tensor(grad)
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(given.shape[1] - 1)).to(given).double()
    width = knots.diff()
    span = (width[1:] + width[:-1])[:, None]
    unit = torch.eye(len(knots), dtype=torch.float64, device=given.device)
    second = 2 * (unit.diff(dim=0) / width[:, None]).diff(dim=0) / span
    first = (unit[2:] - unit[:-2]) / span
    roughness = bound = torch.zeros((), dtype=torch.float64, device=given.device)
    for pairs in range(0, len(given), 8):
        values = given[pairs : pairs + 8].double()
        exact, slope = _roughness_and_grad(values, second, first)
        size, slope_size = _roughness_and_grad(values.abs(), second.abs(), first.abs())
        grad_bound, roughness_bound = (
            error_bound(size_and_error(magnitude, 2 * STENCIL_ROUNDINGS, UNIT), terms, UNIT)
            for magnitude, terms in ((slope_size, 10 + 4), (size, 2 * 4))
        )
        Bounded(slope, grad_bound).check("gradient of the penalty", grad[pairs : pairs + 8])
        roughness = roughness + exact
        bound = bound + roughness_bound
    Bounded(roughness, bound).check("penalty", torch.full_like(roughness, float(penalty)))


def _roughness_and_grad(tables: Tensor, second: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    tables = tables.clone().requires_grad_()
    f_xx = torch.einsum("ai,pijo->pajo", second, tables[:, :, 1:-1])
    f_yy = torch.einsum("bj,pijo->pibo", second, tables[:, 1:-1])
    f_xy = torch.einsum("bj,pajo->pabo", first, torch.einsum("ai,pijo->pajo", first, tables))
    total = (f_xx.square() + 2 * f_xy.square() + f_yy.square()).sum() / len(second) ** 2
    (grad,) = torch.autograd.grad(total, tables)
    return total.detach(), grad


def as_tensor(result: Any) -> Tensor:
    """Return a tensor that shares the memory of an array, or a tensor detached from its graph."""
    return result.detach() if isinstance(result, Tensor) else torch.from_dlpack(result)


def _tensors(workload: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x``, the tables in float64, and ``grad_y``."""
    widened = workload.tables.astype("float32", copy=False)
    x, tables, grad_y = map(torch.from_dlpack, (workload.x, widened, workload.grad_y))
    return x, tables.double(), grad_y


def _sum_over_corners(by_corner: Tensor, dimension: int = 2) -> Tensor:
    """Return the sums [B, P] over the corners of each pair [B, 2^d P]."""
    return by_corner.unflatten(1, (-1, 2**dimension)).sum(-1)


def _along(at: Interpolation, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of the weights along a direction [B, I], and their magnitudes."""
    first, second = (each[..., None] for each in by_pair(direction, 2).unbind(-1))
    weights = corner_products(first * at.slopes[0], at.hats[1])
    weights += corner_products(at.hats[0], second * at.slopes[1])
    magnitudes = corner_products(first.abs() * at.slope_magnitudes[0], at.hat_magnitudes[1])
    magnitudes += corner_products(at.hat_magnitudes[0], second.abs() * at.slope_magnitudes[1])
    return weights, magnitudes


def _grad_x(
    at: Interpolation, tables: Tensor, grad_y: Tensor, features: int, terms: int | None = None
) -> Bounded:
    dimension = len(at.hats)
    terms = 2**dimension * grad_y.shape[1] if terms is None else terms
    dot, size = dots(tables, at.rows, grad_y), dots(tables.abs(), at.rows, grad_y.abs())

    def by_coordinate(hats: tuple[Tensor, ...], slopes: tuple[Tensor, ...]) -> list[Tensor]:
        return [
            corner_products(*hats[:axis], slopes[axis], *hats[axis + 1 :])
            for axis in range(dimension)
        ]

    value = [_sum_over_corners(each * dot, dimension) for each in by_coordinate(at.hats, at.slopes)]
    bound = [
        _sum_over_corners(error_bound(each, terms, UNIT) * size, dimension)
        for each in by_coordinate(at.hat_magnitudes, at.slope_magnitudes)
    ]
    return Bounded(
        torch.stack(value, -1).flatten(1)[:, :features],
        torch.stack(bound, -1).flatten(1)[:, :features],
    )


def _grad_tables(
    x: Tensor, direction: Tensor | None, grad_y: Tensor, shape: Sequence[int]
) -> Bounded:
    """Return the gradient of the tables of the first and the last pair.

    It is that of the layer, or with a direction [B, I] that of its derivative along it.
    """
    num_grids, dimension = shape[1] - 1, len(shape) - 2
    zeros = torch.zeros(shape, dtype=torch.float64, device=x.device, requires_grad=True)
    value, size, error = (torch.zeros_like(zeros) for _ in range(3))
    terms = torch.zeros(shape[:-1], dtype=torch.float64, device=x.device)

    def pull_back(rows: Tensor, weights: Tensor, grad_y: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(weighted_sum(zeros, rows, weights), zeros, grad_y)
        return grad

    def of_ends(each: Tensor) -> Tensor:
        return by_pair(each, dimension)[:, ENDS].flatten(1).double()

    for first in range(0, len(x), CHUNK):
        part = slice(first, first + CHUNK)
        at, g = interpolation(of_ends(x[part]), num_grids, dimension), grad_y[part].double()
        weights, magnitudes = at.weights, at.magnitudes
        if direction is not None:
            weights, magnitudes = _along(at, of_ends(direction[part]))
        value += pull_back(at.rows, weights, g)
        size += pull_back(at.rows, magnitudes.real.contiguous(), g.abs())
        error += pull_back(at.rows, magnitudes.imag.contiguous(), g.abs())
        terms += torch.bincount(at.rows.flatten(), minlength=terms.numel()).view(shape[:-1])
    terms = terms if direction is None else 2 * terms
    return Bounded(value, error_bound(torch.complex(size, error), terms[..., None], UNIT))


def _interpolation_in_half(sizes: Tensor, at: Interpolation) -> Tensor:
    """Return the error that `lmkan_cupy.forward` states for float16 tables on a GPU."""
    weights = at.magnitudes.real
    by_pair = _sum_over_corners(weights)
    extra = 0.0025 * weights + 1.2e-7 * by_pair.repeat_interleave(4, 1)
    return weighted_sum(sizes, at.rows, extra) + 4 * 1.2e-7 * by_pair.sum(1, keepdim=True)
