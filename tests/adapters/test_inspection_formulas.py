"""`formula` finds the functions that tables were made of, and those that data were made of."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy
import torch
from lmkan_cupy.adapters.fitting import Dataset, fit
from lmkan_cupy.adapters.inspection import Formula, formula
from lmkan_cupy.adapters.sklearn import LMKANRegressor
from lmkan_cupy.adapters.torch import LMKANLinear
from problems import first_short
from scipy.stats import norm  # type: ignore[import-untyped]

import lmkan_cupy

#: Normally distributed inputs, and which values at the knots make the nearest function of them.
POINTS = norm.ppf((np.arange(200) + 0.5) / 200)
KNOTS = lmkan_cupy.sigma_grid(32, dtype="float64")
TO_KNOTS = np.linalg.pinv(np.stack([np.interp(POINTS, KNOTS, each) for each in np.eye(33)], 1))
U, V = np.meshgrid(POINTS, POINTS, indexing="ij")


def layer(function: Any) -> Any:
    """Of two inputs and one output, with tables of a function."""
    made = LMKANLinear(2, 1, 32)
    tables = TO_KNOTS @ function @ TO_KNOTS.T
    made.tables.data = torch.from_numpy(tables)[None, :, :, None].float()
    return made


def same(found: Any, expected: str) -> bool:
    return sympy.simplify(found - sympy.sympify(expected)) == 0


@cache
def fitted() -> tuple[LMKANRegressor, Any, Any]:
    x = np.random.default_rng(0).standard_normal((5000, 5))
    y = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + x[:, 4] ** 2 / 2
    options: dict[str, Any] = {"learning_rate": 0.03, "penalty": 1e-4, "random_state": 0}
    return LMKANRegressor(layers=1, num_grids=16, epochs=30, **options).fit(x, y), x, y


@pytest.mark.long
def test_what_data_were_made_of() -> None:
    found = formula(*fitted())
    assert same(found.rounded(2)["y0"], "x0*x1 + sin(3*x2) + 0.5*x4**2")
    assert found.r2["y0"] > 0.9999
    assert [(each.pair, each.output) for each in found.parts] == [(0, 0), (1, 0), (2, 0)]
    assert all(0.9 < each.r2 <= 1 for each in found.parts)


def test_without_data() -> None:
    found = formula(fitted()[0])
    terms = found.expressions["y0"].as_coefficients_dict()
    assert {"x0*x1", "x4**2"} < {*map(str, terms)}
    assert len(found.expressions["y0"].atoms(sympy.sin)) == 1
    assert found.r2["y0"] > 0.95


#: What a table holds, as an expression in its two inputs.
NAMED = [
    "2*x0 - 1.5",
    "1 + x0**2 - 2*x1",
    "x0*x1 + x0",
    "sin(2*x0 + 1)",
    "cos(2*x0) + x1",
    "3*exp(-0.5*x0)",
    "log(x0 + 3)",
    "sqrt(x0 + 3)",
    "1/(x0 + 3)",
    "Abs(x0)",
    "tanh(2*x0)",
    "exp(-x0**2)",
    "x0**3",
    "sin(x0 + 2*x1)",
    "exp(0.5*x0 - 0.5*x1)",
    "sqrt(x0**2 + x1**2)",
]


def at(expression: Any, u: Any, v: Any) -> Any:
    function = sympy.lambdify(sympy.symbols("x0 x1"), expression, "numpy")
    return np.broadcast_to(function(u, v), np.shape(u))


def functions_in(expression: Any) -> set[Any]:
    return {each.func for each in expression.atoms(sympy.Function)}


@pytest.mark.parametrize("text", first_short(NAMED, 3))
def test_named_functions(text: str) -> None:
    expected = sympy.sympify(text)
    found = formula(layer(at(expected, U, V)))
    expression = found.expressions["y0"]
    rows = np.random.default_rng(1).uniform(POINTS[10], POINTS[-10], (2, 200))
    wanted = at(expected, *rows)
    assert np.mean((at(expression, *rows) - wanted) ** 2) < 1e-4 * wanted.var()
    assert found.parts[0].r2 > 0.9995
    assert functions_in(expression) == functions_in(expected)


def test_two_layers() -> None:
    """sin(x0 * x1): a product in the first layer, a sine in the second."""
    second = LMKANLinear(1, 1, 32)
    second.tables.data = torch.sin(torch.from_numpy(KNOTS))[None, :, None, None].float()
    second.tables.data = second.tables.data.repeat(1, 1, 33, 1)
    found = formula(torch.nn.Sequential(layer(U * V), second))
    assert same(found.rounded(1)["y0"], "sin(x0*x1)")
    assert [(each.layer, str(_rounded(each.expression))) for each in found.parts] == [
        (0, "x0*x1"),
        (1, "sin(h0)"),
    ]


def _rounded(expression: Any) -> Any:
    return Formula({"y": expression}, {}, []).rounded(1)["y"]


def test_in_the_units_and_names_of_a_table() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"height": 170 + 10 * rng.normal(size=1500), "on": rng.random(1500) < 0.4})
    frame["weight"] = 0.9 * frame["height"] - 80 + 5 * frame["on"]
    data = Dataset(frame[["height", "on"]], frame[["weight"]])
    model = fit(data, baseline=False, layers=1, epochs=40).model
    found = formula(model, frame, frame["weight"])
    assert same(found.rounded(2)["weight"], "0.9*height + 5*on - 80")
    text = str(found)
    assert text.startswith(
        "weight = 0.9*height + 5*on - 80  (R2 1.0000)\n  layer 0, pair 0, output 0"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.nn.Sequential(*(LMKANLinear(2, 2) for _ in range(3))),), "one layer or two, .* 3"),
        ((torch.nn.Linear(2, 2),), "each an LMKANLinear"),
        ((LMKANLinear(2, 1), np.zeros((5, 2)), np.zeros(4)), r"shape \(5, 1\), got \(4,\)"),
        ((LMKANLinear(2, 1), None, np.zeros(4)), "targets must be numbers that stand beside data"),
    ],
    ids=["layers", "linear", "shape", "data"],
)
def test_errors(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"formula: .*{text}"):
        formula(*arguments)
