"""What results are checked with: float64 evaluations, and how far those in float32 may be off.

A sum of n products of f factors is off by at most ``(n + f) r`` of the sum of their sizes,
r = 2^-24, and by what the errors of the factors bring into it. The rule and the errors of hats,
slopes and stencils are those of ``tests/tolerances.py``, here on any device and for the corners of
a cell instead of all knots. Magnitudes are those of :mod:`.corners`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

import lmkan_cupy

from .interpolation import UNIT, Corners, corners, products, scaled_sigma, weighted_sum
from .peers import Layer
from .workload import Workload

#: Most factors in one product.
FACTORS = 5

#: Samples whose results are compared, spread over the batch; of gradients of the tables, which all
#: samples share, the first and the last pair are, and so many samples are added up at a time.
COMPARED = 2**12
AT_A_TIME = 2**15
ENDS = [0, -1]

#: Inputs this close to a knot, in intervals, are left out where slopes count, for these jump there.
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
    scaled = scaled_sigma(x.double(), num_grids)
    return (scaled - scaled.round()).abs() > NEAR_KNOT


def dots(tables: Tensor, rows: Tensor, grad_y: Tensor) -> Tensor:
    """``sum_o grad_y[b, o] tables[rows[b, n], o]`` [B, N]: what a weight is worth."""
    weights = torch.ones(rows.shape, dtype=tables.dtype, device=rows.device, requires_grad=True)
    (grad,) = torch.autograd.grad(weighted_sum(tables, rows, weights), weights, grad_y)
    return grad


@dataclass(frozen=True)
class LayerTruth:
    """What forward and backward of a workload should give."""

    samples: slice
    y: Bounded
    grad_x: Bounded
    has_slope: Tensor  # where grad_x is defined
    grad_tables: Bounded

    def check_layer(self, name: str, layer: Layer, has_grad_x: bool = True) -> None:
        """Compare the results of a layer with tables."""
        y = layer.forward()
        first, grad_tables = layer.backward(y)
        self.check(name, y, first if has_grad_x else None, grad_tables)

    def check(self, name: str, y: Any, grad_x: Any, grad_tables: Any) -> None:
        """Compare results; one that is None is left out."""
        if y is not None:
            self.y.check(f"{name}, y", as_tensor(y)[self.samples])
        if grad_x is not None:
            result = torch.where(self.has_slope, as_tensor(grad_x)[self.samples], self.grad_x.value)
            self.grad_x.check(f"{name}, grad_x", result)
        if grad_tables is not None:
            self.grad_tables.check(f"{name}, grad_tables", as_tensor(grad_tables)[ENDS])


def of_layer(workload: Workload) -> LayerTruth:
    x, tables, grad_y = _tensors(workload)
    num_grids, samples = workload.num_grids, slice(None, None, -(-len(x) // COMPARED))
    some_x, some_grad_y = x[samples].double(), grad_y[samples].double()
    at = corners(some_x, num_grids)
    sums, sizes = 4 * tables.shape[0], tables.abs()
    bound = weighted_sum(sizes, at.rows, _allowed(at.sizes, sums))
    if workload.tables.dtype == "float16" and tables.is_cuda:
        bound += _interpolation_in_half(sizes, at)
    return LayerTruth(
        samples,
        Bounded(weighted_sum(tables, at.rows, at.weights), bound),
        _grad_x(at, tables, some_grad_y, x.shape[1]),
        away_from_knots(some_x, num_grids),
        _grad_tables(x, None, grad_y, tables[ENDS].shape),
    )


def of_double_backward(
    workload: Workload, ggx: Any, ggt: Any, samples: Tensor
) -> tuple[Bounded, Bounded, Bounded]:
    """What `lmkan_cupy.backward_backward` should give, where ``grad_y`` is 0 but for some samples.

    Parameters
    ----------
    workload : Workload
    ggx, ggt : array [B, I], [P, S, S, O]
    samples : Tensor [M]
        int64; none of them may have an input near a knot.

    Returns
    -------
    grad_grad_y [M, O], grad_x [M, I], grad_tables [2, S, S, O]
        The last of the first and the last pair.
    """
    x, tables, grad_y = _tensors(workload)
    some_x, g = x[samples].double(), grad_y[samples].double()
    along = torch.from_dlpack(ggx)[samples].double()
    z = torch.from_dlpack(ggt).double()
    at = corners(some_x, workload.num_grids)
    weights, sizes = _along(at, along)
    sums, outputs = 12 * tables.shape[0], 8 * tables.shape[3]
    y = Bounded(
        weighted_sum(tables, at.rows, weights) + weighted_sum(z, at.rows, at.weights),
        weighted_sum(tables.abs(), at.rows, _allowed(sizes, sums))
        + weighted_sum(z.abs(), at.rows, _allowed(at.sizes, sums)),
    )
    twist, twist_sizes = products(*at.slopes), products(*at.slope_sizes)
    dot, size = dots(tables, at.rows, g), dots(tables.abs(), at.rows, g.abs())
    mixed, mixed_bound = (
        _of_corners(each) for each in (twist * dot, _allowed(twist_sizes, outputs) * size)
    )
    other = _by_pair(along).flip(-1)  # the derivative by one coordinate, along the other
    of_z = _grad_x(at, z, g, 2 * mixed.shape[1], outputs)
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
    """Compare roughness and gradient of tables [P, S, S, O] with float64, a few pairs at a time.

    A coefficient of a stencil takes six roundings; a curvature has four of them at most, a table
    value ten curvatures; the roughness is summed in float64.
    """
    given, grad = torch.from_dlpack(tables), as_tensor(grad)
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(given.shape[1] - 1)).to(given).double()
    width = knots.diff()
    span = (width[1:] + width[:-1])[:, None]
    unit = torch.eye(len(knots), dtype=torch.float64, device=given.device)
    second = 2 * (unit.diff(dim=0) / width[:, None]).diff(dim=0) / span
    first = (unit[2:] - unit[:-2]) / span
    roughness = allowed = torch.zeros((), dtype=torch.float64, device=given.device)
    for pairs in range(0, len(given), 8):
        values = given[pairs : pairs + 8].double()
        exact, slope = _roughness_and_grad(values, second, first)
        size, slope_size = _roughness_and_grad(values.abs(), second.abs(), first.abs())
        bound = UNIT * (10 + 4 + FACTORS + 2 * 6) * slope_size
        Bounded(slope, bound).check("gradient of the penalty", grad[pairs : pairs + 8])
        roughness = roughness + exact
        allowed = allowed + UNIT * (2 * 4 + FACTORS + 2 * 6) * size
    Bounded(roughness, allowed).check("penalty", torch.full_like(roughness, float(penalty)))


def _roughness_and_grad(tables: Tensor, second: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    tables = tables.clone().requires_grad_()
    f_xx = torch.einsum("ai,pijo->pajo", second, tables[:, :, 1:-1])
    f_yy = torch.einsum("bj,pijo->pibo", second, tables[:, 1:-1])
    f_xy = torch.einsum("bj,pajo->pabo", first, torch.einsum("ai,pijo->pajo", first, tables))
    total = (f_xx.square() + 2 * f_xy.square() + f_yy.square()).sum() / len(second) ** 2
    (grad,) = torch.autograd.grad(total, tables)
    return total.detach(), grad


def as_tensor(result: Any) -> Tensor:
    """Return a tensor over the memory of an array, or a tensor without its history."""
    return result.detach() if isinstance(result, Tensor) else torch.from_dlpack(result)


def _tensors(workload: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` and ``grad_y`` as they are, and the tables in float64."""
    widened = workload.tables.astype("float32", copy=False)
    x, tables, grad_y = map(torch.from_dlpack, (workload.x, widened, workload.grad_y))
    return x, tables.double(), grad_y


def _of_corners(by_corner: Tensor) -> Tensor:
    """The sum [B, P] over the corners of a pair [B, 4 P]."""
    return by_corner.unflatten(1, (-1, 4)).sum(-1)


def _by_pair(x: Tensor) -> Tensor:
    return pad(x, (0, x.shape[1] % 2)).unflatten(1, (-1, 2))


def _allowed(magnitude: Tensor, terms: int | Tensor) -> Tensor:
    """What a product adds to the error of a sum of so many."""
    return UNIT * (terms + FACTORS) * magnitude.real + magnitude.imag.abs()


def _along(at: Corners, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of the weights along a direction [B, I], and their magnitudes."""
    first, second = (each[..., None] for each in _by_pair(direction).unbind(-1))
    weights = products(first * at.slopes[0], at.hats[1])
    weights += products(at.hats[0], second * at.slopes[1])
    sizes = products(first.abs() * at.slope_sizes[0], at.hat_sizes[1])
    return weights, sizes + products(at.hat_sizes[0], second.abs() * at.slope_sizes[1])


def _grad_x(
    at: Corners, tables: Tensor, grad_y: Tensor, features: int, terms: int | None = None
) -> Bounded:
    dot, size = dots(tables, at.rows, grad_y), dots(tables.abs(), at.rows, grad_y.abs())
    terms = 4 * grad_y.shape[1] if terms is None else terms
    value = [
        _of_corners(weights * dot)
        for weights in (products(at.slopes[0], at.hats[1]), products(at.hats[0], at.slopes[1]))
    ]
    bound = [
        _of_corners(_allowed(sizes, terms) * size)
        for sizes in (
            products(at.slope_sizes[0], at.hat_sizes[1]),
            products(at.hat_sizes[0], at.slope_sizes[1]),
        )
    ]
    return Bounded(
        torch.stack(value, -1).flatten(1)[:, :features],
        torch.stack(bound, -1).flatten(1)[:, :features],
    )


def _grad_tables(
    x: Tensor, direction: Tensor | None, grad_y: Tensor, shape: Sequence[int]
) -> Bounded:
    """The gradient of the tables of the first and the last pair, of a layer or its derivative."""
    num_grids = shape[1] - 1
    zeros = torch.zeros(shape, dtype=torch.float64, device=x.device, requires_grad=True)
    value, size, error = (torch.zeros_like(zeros) for _ in range(3))
    terms = torch.zeros(shape[:3], dtype=torch.float64, device=x.device)

    def pulled(rows: Tensor, weights: Tensor, grad_y: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(weighted_sum(zeros, rows, weights), zeros, grad_y)
        return grad

    def of_ends(each: Tensor) -> Tensor:
        return _by_pair(each)[:, ENDS].flatten(1).double()

    for first in range(0, len(x), AT_A_TIME):
        part = slice(first, first + AT_A_TIME)
        at, g = corners(of_ends(x[part]), num_grids), grad_y[part].double()
        weights, sizes = at.weights, at.sizes
        if direction is not None:
            weights, sizes = _along(at, of_ends(direction[part]))
        value += pulled(at.rows, weights, g)
        size += pulled(at.rows, sizes.real.contiguous(), g.abs())
        error += pulled(at.rows, sizes.imag.contiguous(), g.abs())
        terms += torch.bincount(at.rows.flatten(), minlength=terms.numel()).view(shape[:3])
    terms = terms if direction is None else 2 * terms
    return Bounded(value, UNIT * (terms[..., None] + FACTORS) * size + error.abs())


def _interpolation_in_half(sizes: Tensor, at: Corners) -> Tensor:
    """What `lmkan_cupy.forward` allows itself for float16 tables on a GPU, see there."""
    weights = at.sizes.real
    of_pair = _of_corners(weights)
    extra = 0.0025 * weights + 1.2e-7 * of_pair.repeat_interleave(4, 1)
    return weighted_sum(sizes, at.rows, extra) + 4 * 1.2e-7 * of_pair.sum(1, keepdim=True)
