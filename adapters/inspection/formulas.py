"""``formula``: the functions of a small network as expressions of named functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize  # type: ignore[import-untyped]

import lmkan_cupy

from .forms import OF_BOTH, OF_ONE, OF_TWO, SHIFTED_SINE, WAVE, Form, Parameters
from .hats import hats
from .view import view

#: Points per variable at which functions are compared; rows of normal numbers where there are none.
_POINTS, _ROWS = 64, 4000

#: A simpler form is taken if what it leaves unexplained is no more than this share, or this
#: multiple of what the best one leaves.
_GOOD, _AS_GOOD = 2e-4, 3.0

#: Two functions of one variable and a product are taken for good from this share on.
_ENOUGH = 0.99

#: Options of the search for parameters.
_PRECISE = {"xatol": 1e-7, "fatol": 1e-12}


@dataclass(frozen=True)
class Part:
    """A function of a network, and the expression that stands for it.

    Attributes
    ----------
    layer, pair, output : int
        Which function, counted from 0.
    expression : sympy.Expr
        In the inputs of its layer: features in their units, or ``h0``, ``h1``, ...
    r2 : float
        Which share of its variance the expression explains.
    share : float
        Its share of the sum of the variances of all functions of the output.
    """

    layer: int
    pair: int
    output: int
    expression: sympy.Expr
    r2: float
    share: float


@dataclass(frozen=True)
class Formula:
    """What :func:`formula` returns.

    Attributes
    ----------
    expressions : dict of sympy.Expr
        Of every target in its units, or of every class the logit; in the features.
    r2 : dict of float
        Which share of the variance of the model's output each explains, or of that of the targets
        if they were given; over the rows where it is defined.
    parts : list of Part
        All functions that contribute, layer by layer.
    """

    expressions: dict[str, sympy.Expr]
    r2: dict[str, float]
    parts: list[Part]

    def rounded(self, digits: int = 2) -> dict[str, sympy.Expr]:
        """Return the expressions with all numbers rounded to so many decimals."""
        return {name: _rounded(each, digits) for name, each in self.expressions.items()}

    def __str__(self) -> str:
        """Return the expressions and the parts, their numbers rounded to two decimals."""
        lines = [
            f"{name} = {each}  (R2 {self.r2[name]:.4f})" for name, each in self.rounded().items()
        ]
        for part in self.parts:
            lines.append(
                f"  layer {part.layer}, pair {part.pair}, output {part.output}: "
                f"{_rounded(part.expression, 2)}  (R2 {part.r2:.4f}, share {part.share:.3f})"
            )
        return "\n".join(lines)


def formula(
    model: Any, data: Any = None, targets: Any = None, *, least_share: float = 2e-3
) -> Formula:
    """Return expressions for what a network of one layer or two has learned.

    Each function of the network is compared with sums of a few named functions of its inputs: with
    polynomials, sine, cosine, exponential function, logarithm, square root, reciprocal, absolute
    value, hyperbolic tangent and bell curve of one variable; and with products, sine, cosine and
    exponential function of a sum, the distance from the origin and ratios of two. They are compared
    as tables: with what the grid can hold of a named function, so that coefficients do not suffer
    from a coarse grid. The simplest form is taken that explains about as much as the best one.

    Parameters
    ----------
    model : FittedModel, estimator, TableNetwork or chain of layers
        Of one layer or two. The fewer functions it has, the more there is to be read in the result:
        see :func:`prune_`.
    data : frame, mapping or array [N, columns], optional
        Where the functions are compared: at the quantiles of their inputs over these rows. By
        default features are taken as normally distributed, as they are standardised.
    targets : array [N] or [N, K], optional
        Of the rows of ``data``. All numbers in the expressions are then fitted to them in the end:
        what the Hessian penalty and a short training do to the functions no longer counts. The
        parts stay those of the network.
    least_share : float
        Terms that contribute less than this share to the variance of an output are left out.

    Returns
    -------
    Formula
        Where inputs of a layer are cut at a bound, the expressions go on.

    Raises
    ------
    TypeError, ValueError
        If the model, ``data`` or ``targets`` cannot be taken, or the model has more than two layers
        or one that is no LMKANLinear.
    """
    viewed = view("formula", model)
    network = viewed.network
    layers = [each.detach().float().cpu().numpy() for each in network.arrays]
    if len(layers) > 2 or any(each.ndim != 4 for each in layers):
        raise ValueError(
            "formula: model must have one layer or two, each an LMKANLinear; got "
            f"{len(network.bounds)} layers"
        )
    selected = slice(None) if network.selection is None else network.selection.columns.cpu().numpy()
    mean, scale = viewed.feature_mean[selected], viewed.feature_scale[selected]
    if network.shift is not None and network.scale is not None:
        mean = mean + scale * network.shift.double().cpu().numpy()
        scale = scale / network.scale.double().cpu().numpy()
    if data is None:
        features = mean + scale * np.random.default_rng(0).standard_normal((_ROWS, len(mean)))
    else:
        features = viewed.encoder(viewed.frame(data))[:, selected]
    if targets is not None:
        if data is None or viewed.is_classifier:
            raise ValueError("formula: targets must be numbers that stand beside data")
        targets = _checked(targets, (len(features), len(viewed.outputs)))
    names = viewed.taken

    symbols = [*map(sympy.Symbol, names)]
    values, expressions, parts = features, symbols, list[Part]()
    for number, (tables, bound) in enumerate(zip(layers, network.bounds, strict=True)):
        inputs = symbols if number == 0 else [sympy.Symbol(f"h{i}") for i in range(len(mean))]
        axes = [
            _Axis(
                symbol,
                column,
                tables.shape[1],
                (mean[i], scale[i], bound),
            )
            for i, (symbol, column) in enumerate(zip(inputs, values.T, strict=True))
        ]
        found = _of_layer(number, tables, axes, least_share)
        known = dict(zip(inputs, expressions, strict=True))
        expressions = [
            sympy.Add(*(each.expression for each in found if each.output == output)).subs(known)
            for output in range(tables.shape[3])
        ]
        parts += found
        h = ((values - mean) / scale).clip(-bound, bound)
        values = lmkan_cupy.forward(h.astype(tables.dtype), tables).astype(np.float64)
        mean, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])

    outputs = viewed.target_mean + viewed.target_scale * values if targets is None else targets
    formulas, r2 = {}, {}
    for k, name in enumerate(viewed.outputs):
        terms = sympy.Add.make_args(expressions[k])
        formulas[name] = float(viewed.target_mean[k]) + sympy.Add(
            *(float(viewed.target_scale[k]) * each for each in terms)
        )
        if targets is not None:
            formulas[name] = _refitted(formulas[name], symbols, features, outputs[:, k])
        with np.errstate(all="ignore"):
            explained = sympy.lambdify(symbols, formulas[name], "numpy")(*features.T)
        squares = np.square(outputs[:, k] - explained)
        r2[name] = float(1 - squares[np.isfinite(squares)].mean() / outputs[:, k].var())
    return Formula(formulas, r2, [each for each in parts if each.share >= least_share])


class _Axis:
    """An input of a layer: the values at which functions of it are compared.

    Parameters
    ----------
    symbol : sympy.Symbol
    values : float64 array [N]
        Of the input.
    num_knots : int
        Size S.
    located : tuple of float
        Mean, scale and bound, by which values become coordinates of the grid.

    Attributes
    ----------
    x : float64 array [M]
        Quantiles of the values.
    hats : float64 array [M, S]
        By which the values at the knots are interpolated there.
    projector : float64 array [M, M]
        Takes values at ``x`` to those of the nearest function that a table can hold.
    """

    def __init__(
        self,
        symbol: sympy.Symbol,
        values: NDArray[np.float64],
        num_knots: int,
        located: tuple[float, float, float],
    ) -> None:
        self.symbol = symbol
        self.x = np.quantile(values, (np.arange(_POINTS) + 0.5) / _POINTS)
        mean, scale, bound = located
        self.hats = hats(((self.x - mean) / scale).clip(-bound, bound), num_knots)
        basis = np.linalg.svd(self.hats, full_matrices=False)
        held = basis.U[:, basis.S / basis.S[0] > 1e-6]
        self.projector = held @ held.T


def _of_layer(
    number: int, tables: NDArray[Any], axes: Sequence[_Axis], least_share: float
) -> list[Part]:
    """Return the parts of a layer, a function after the other."""
    values = []
    for pair, table in enumerate(tables.astype(np.float64)):
        of_axes = [each.hats for each in axes[2 * pair : 2 * pair + 2]]
        of_axes += [hats(np.zeros(1), len(table))] * (
            2 - len(of_axes)
        )  # an odd last input has 0 beside
        values.append(np.einsum("mi,ijo,nj->omn", of_axes[0], table, of_axes[1]))
    parts = []
    for output in range(tables.shape[3]):
        total = sum(each[output].var() for each in values)
        for pair, of_pair in enumerate(values):
            some = axes[2 * pair : 2 * pair + 2]
            function = of_pair[output].reshape([_POINTS] * len(some))
            expression, r2 = _of_function(function, some, least_share * total)
            share = float(function.var() / total) if total else 0.0
            parts.append(Part(number, pair, output, expression, r2, share))
    return parts


@dataclass(frozen=True)
class _Named:
    """A form with its parameters, of some of the inputs of a pair."""

    form: Form
    parameters: Parameters
    inputs: tuple[int, ...]

    def columns(self, axes: Sequence[_Axis]) -> NDArray[np.float64]:
        """Return its terms as tables can hold them [points, terms]."""
        x = np.meshgrid(*(each.x for each in axes), indexing="ij", sparse=True)
        columns = []
        with np.errstate(all="ignore"):
            terms = self.form.terms(np, [x[i] for i in self.inputs], self.parameters)
        for term in terms:
            values = np.broadcast_to(term, [len(each.x) for each in axes])
            for number, each in enumerate(axes):
                values = np.moveaxis(np.tensordot(each.projector, values, (1, number)), 0, number)
            columns.append(values.ravel())
        return np.stack(columns, axis=1)

    def expressions(self, axes: Sequence[_Axis]) -> list[sympy.Expr]:
        """Return its terms."""
        symbols = [axes[i].symbol for i in self.inputs]
        return self.form.terms(sympy, symbols, tuple(map(float, self.parameters)))


def _of_function(
    values: NDArray[np.float64], axes: Sequence[_Axis], least: float
) -> tuple[sympy.Expr, float]:
    """Return the expression of a function and its R2, given its values, an array axis for each.

    Terms whose part of the variance is below ``least`` are left out.
    """
    named = []
    rest = centred = values - values.mean()
    for number, axis in enumerate(axes):
        line = centred.mean(axis=tuple({*range(len(axes))} - {number}))
        rest = rest - np.expand_dims(line, tuple({*range(len(axes))} - {number}))
        if line.var() > least:
            best = _best(OF_ONE, line, [axis])
            named.append(_Named(best.form, best.parameters, (number,)))
    if len(axes) == 2 and rest.var() > least:
        named.append(_best(OF_BOTH, rest, axes))
        sums = _unexplained(np.hstack([each.columns(axes) for each in named]), values)
        if sums > 1 - _ENOUGH:
            whole = _best(OF_TWO, values, axes)
            if _unexplained(whole.columns(axes), values) < sums:
                named = [whole]
    columns = np.hstack([np.empty((values.size, 0)), *(each.columns(axes) for each in named)])
    terms = [each for form in named for each in form.expressions(axes)]
    kept = [*range(len(terms))]
    while kept:
        now = _unexplained(columns[:, kept], values)
        without = {k: _unexplained(columns[:, [i for i in kept if i != k]], values) for k in kept}
        weakest = min(kept, key=without.__getitem__)
        if (without[weakest] - now) * values.var() > least:
            break
        kept.remove(weakest)
    constant, *coefficients = _coefficients(columns[:, kept], values).tolist()
    expression = sympy.Add(
        constant, *(c * terms[k] for c, k in zip(coefficients, kept, strict=True))
    )
    return expression, 1 - _unexplained(columns[:, kept], values)


def _best(forms: Sequence[Form], values: NDArray[np.float64], axes: Sequence[_Axis]) -> _Named:
    """Return the form for a function: the first that explains about as much as the best one."""
    if any(len(np.unique(each.x)) < 4 for each in axes):
        forms = forms[:1]  # too few values to tell forms apart
    inputs = tuple(range(len(axes)))

    def unexplained(parameters: Any, form: Form) -> float:
        return _unexplained(_Named(form, tuple(parameters), inputs).columns(axes), values)

    found = []
    for form in forms:
        with np.errstate(all="ignore"):
            starts = form.starts([each.x for each in axes])
        parameters = min(starts, key=lambda start: unexplained(start, form))
        if parameters:
            parameters = tuple(
                minimize(unexplained, parameters, (form,), "Nelder-Mead", options=_PRECISE).x
            )
        found.append((unexplained(parameters, form), form, parameters))
    least = min(loss for loss, *_ in found)
    form, parameters = next(
        (form, parameters)
        for loss, form, parameters in found
        if loss <= max(_GOOD, _AS_GOOD * least)
    )
    if form is WAVE:
        columns = _Named(form, parameters, inputs).columns(axes)
        _, sine, cosine = _coefficients(columns, values)
        form, parameters = SHIFTED_SINE, (*parameters, math.atan2(cosine, sine))
    return _Named(form, parameters, inputs)


def _coefficients(columns: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the constant and the coefficients of the columns by least squares."""
    found = np.linalg.lstsq(_with_ones(columns), values.ravel())[0]
    return found.astype(np.float64)


def _unexplained(columns: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the share of the variance that columns do not explain; infinite if they are not."""
    if not np.isfinite(columns).all():
        return math.inf
    residual = values.ravel() - _with_ones(columns) @ _coefficients(columns, values)
    return float(residual @ residual / max(values.var() * values.size, np.finfo(np.float64).tiny))


def _with_ones(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([np.ones(len(columns)), columns])


def _checked(targets: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return targets [N, K]; of one target they may be [N]."""
    values = np.asarray(targets, np.float64)
    if values.shape != shape and not (shape[1] == 1 and values.shape == shape[:1]):
        raise ValueError(f"formula: targets must have shape {shape}, got {values.shape}")
    return values.reshape(shape)


def _refitted(
    expression: sympy.Expr,
    symbols: list[sympy.Symbol],
    features: NDArray[np.float64],
    target: NDArray[np.float64],
) -> sympy.Expr:
    """Return an expression whose numbers fit a target [N] best."""
    numbers = [*expression.atoms(sympy.Float)]
    free = [sympy.Dummy() for _ in numbers]
    general = expression.xreplace(dict(zip(numbers, free, strict=True)))
    function = sympy.lambdify([free, symbols], general, "numpy")

    def residual(values: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            difference = function(values, features.T) - target
        finite: NDArray[np.float64] = np.where(
            np.isfinite(difference), difference, 10 * target.std()
        )
        return finite

    solution = least_squares(residual, [*map(float, numbers)]).x
    return general.xreplace(dict(zip(free, map(sympy.Float, solution), strict=True)))


def _rounded(expression: sympy.Expr, digits: int) -> sympy.Expr:
    numbers = {each: round(float(each), digits) for each in expression.atoms(sympy.Float)}
    return expression.xreplace(
        {
            each: sympy.Integer(int(n)) if n.is_integer() else sympy.Float(str(n))
            for each, n in numbers.items()
        }
    )
