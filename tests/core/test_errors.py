"""Every error has its type; its text names function, argument, what was given, what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import lmkan_cupy

X = np.zeros((8, 5), np.float32)
TABLES = np.zeros((3, 7, 7, 4), np.float32)
GRAD_Y = np.zeros((8, 4), np.float32)
WEIGHT = np.zeros((4, 5), np.float32)

forward, backward = lmkan_cupy.forward, lmkan_cupy.backward
backward_backward, jvp = lmkan_cupy.backward_backward, lmkan_cupy.jvp


class Case(NamedTuple):
    call: Callable[[], Any]
    error: type[Exception]
    text: str


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def overlapping() -> tuple[Any, Any]:
    """x [8, 5] and out [8, 4] in one piece of memory."""
    memory = np.zeros(40, np.float32)
    return memory.reshape(8, 5), memory[:32].reshape(8, 4)


def forward_into_its_input() -> None:
    x, out = overlapping()
    forward(x, TABLES, out=out)


CASES = {
    # shapes
    "pairs": Case(
        lambda: forward(np.zeros((256, 10), np.float32), np.zeros((4, 11, 11, 32), np.float32)),
        ValueError,
        "forward: tables has 4 pairs, but x has 10 features (5 pairs): "
        "tables.shape=(4, 11, 11, 32), x.shape=(256, 10)",
    ),
    "tables-axes": Case(
        lambda: lmkan_cupy.hessian_penalty(TABLES[0, 0]),
        ValueError,
        "hessian_penalty: tables must have shape [pairs, knots, knots, out_features], or one or "
        "three axes of knots, with at least 4 knots (num_grids + 1), got tables.shape=(7, 4)",
    ),
    "tables-not-square": Case(
        lambda: forward(X, TABLES[:, :6]),
        ValueError,
        "forward: tables must have shape [pairs, knots, knots, out_features], or one or "
        "three axes of knots, with at least 4 knots (num_grids + 1), got tables.shape=(3, 6, 7, 4)",
    ),
    "tables-too-few-knots": Case(
        lambda: forward(X, TABLES[:, :3, :3]),
        ValueError,
        "forward: tables must have shape [pairs, knots, knots, out_features], or one or "
        "three axes of knots, with at least 4 knots (num_grids + 1), got tables.shape=(3, 3, 3, 4)",
    ),
    "tables-empty": Case(
        lambda: forward(X, TABLES[..., :0]),
        ValueError,
        "forward: tables must have shape [pairs, knots, knots, out_features], or one or "
        "three axes of knots, with at least 4 knots (num_grids + 1), got tables.shape=(3, 7, 7, 0)",
    ),
    "x-without-features": Case(
        lambda: forward(X[:, :0], TABLES),
        ValueError,
        "forward: x must have shape [..., in_features] with at least one feature, "
        "got x.shape=(8, 0)",
    ),
    "x-without-axes": Case(
        lambda: lmkan_cupy.occupancy(np.array(0.0), 8),
        ValueError,
        "occupancy: x must have shape [..., in_features] with at least one feature, got x.shape=()",
    ),
    "grad_y-is-not-broadcast": Case(
        lambda: backward(GRAD_Y[:1], X, TABLES),
        ValueError,
        "backward: grad_y must have shape (8, 4), got (1, 4)",
    ),
    "tangent_x-shape": Case(
        lambda: jvp(X[:, :4], None, X, TABLES),
        ValueError,
        "jvp: tangent_x must have shape (8, 5), got (8, 4)",
    ),
    "tangent_tables-shape": Case(
        lambda: jvp(X, TABLES[:2], X, TABLES),
        ValueError,
        "jvp: tangent_tables must have shape (3, 7, 7, 4), got (2, 7, 7, 4)",
    ),
    "both-tangents-missing": Case(
        lambda: jvp(None, None, X, TABLES),
        ValueError,
        "jvp: tangent_x and tangent_tables are both None, expected at least one array",
    ),
    "ggx-shape": Case(
        lambda: backward_backward(X[:, :4], None, GRAD_Y, X, TABLES),
        ValueError,
        "backward_backward: ggx must have shape (8, 5), got (8, 4)",
    ),
    "ggt-shape": Case(
        lambda: backward_backward(None, TABLES[:2], GRAD_Y, X, TABLES),
        ValueError,
        "backward_backward: ggt must have shape (3, 7, 7, 4), got (2, 7, 7, 4)",
    ),
    "both-cotangents-missing": Case(
        lambda: backward_backward(None, None, GRAD_Y, X, TABLES),
        ValueError,
        "backward_backward: ggx and ggt are both None, expected at least one array",
    ),
    "weight-shape": Case(
        lambda: lmkan_cupy.fold_linear(TABLES, WEIGHT.T),
        ValueError,
        "fold_linear: weight must have shape [4, 6] or [4, 5], got (5, 4)",
    ),
    "bias-shape": Case(
        lambda: lmkan_cupy.fold_linear(TABLES, WEIGHT, np.zeros(5, np.float32)),
        ValueError,
        "fold_linear: bias must have shape (4,), got (5,)",
    ),
    "relu-without-a-knot-at-zero": Case(
        lambda: lmkan_cupy.fold_relu(TABLES[:, :6, :6], WEIGHT),
        ValueError,
        "fold_relu: tables must have an even num_grids (a knot at 0), got 5; "
        "refine them to 10 first",
    ),
    # dtypes
    "x-half": Case(
        lambda: forward(X.astype("float16"), TABLES),
        TypeError,
        "forward: x must be float32 or float64, got float16",
    ),
    "x-whole-numbers": Case(
        lambda: lmkan_cupy.occupancy(X.astype("int64"), 8),
        TypeError,
        "occupancy: x must be float32 or float64, got int64",
    ),
    "x-not-promoted": Case(
        lambda: forward(X, TABLES.astype("float64")),
        TypeError,
        "forward: x must be float64 where tables is float64, got float32",
    ),
    "x-wider-than-tables": Case(
        lambda: forward(X.astype("float64"), TABLES),
        TypeError,
        "forward: x must be float32 where tables is float32, got float64",
    ),
    "x-double-with-half-tables": Case(
        lambda: forward(X.astype("float64"), TABLES.astype("float16")),
        TypeError,
        "forward: x must be float32 where tables is float16, got float64",
    ),
    "tables-whole-numbers": Case(
        lambda: lmkan_cupy.hessian_penalty_grad(TABLES.astype("int32")),
        TypeError,
        "hessian_penalty_grad: tables must be float32, float64, float16 or, for CuPy arrays, "
        "bfloat16, got int32",
    ),
    "tables-foreign-byte-order": Case(
        lambda: forward(X, TABLES.astype(">f4")),
        TypeError,
        "forward: tables must be float32, float64, float16 or, for CuPy arrays, bfloat16, got >f4",
    ),
    "tables-of-bytes": Case(
        lambda: forward(X, TABLES.astype("float16").view("V2")),
        TypeError,
        "forward: tables must be float32, float64, float16 or, for CuPy arrays, bfloat16, got |V2 "
        "(bytes without a dtype, as np.load gives where bfloat16 or float8 was saved)",
    ),
    "x-float8": Case(
        lambda: forward(X.astype(ml_dtypes.float8_e4m3fn), TABLES),
        TypeError,
        "forward: x must be float32 or float64, got float8_e4m3fn",
    ),
    "grad_y-of-bytes": Case(
        lambda: backward(np.zeros(GRAD_Y.shape, "V1"), X, TABLES),
        TypeError,
        "backward: grad_y must be float32, got |V1 (bytes without a dtype",
    ),
    "grad_y-dtype": Case(
        lambda: backward(GRAD_Y.astype("float64"), X, TABLES),
        TypeError,
        "backward: grad_y must be float32, got float64",
    ),
    "tangent_x-dtype": Case(
        lambda: jvp(X.astype("float64"), None, X, TABLES),
        TypeError,
        "jvp: tangent_x must be float32, got float64",
    ),
    "tangent_tables-half-as-its-tables": Case(
        lambda: jvp(None, TABLES.astype("float16"), X, TABLES.astype("float16")),
        TypeError,
        "jvp: tangent_tables must be float32, got float16",
    ),
    "ggt-half-as-its-tables": Case(
        lambda: backward_backward(
            None, TABLES.astype("float16"), GRAD_Y, X, TABLES.astype("float16")
        ),
        TypeError,
        "backward_backward: ggt must be float32, got float16",
    ),
    "weight-dtype": Case(
        lambda: lmkan_cupy.fold_linear(TABLES, WEIGHT.astype("float64")),
        TypeError,
        "fold_linear: weight must be float32, got float64",
    ),
    "grid-dtype": Case(
        lambda: lmkan_cupy.sigma_grid(8, dtype="float16"),
        TypeError,
        "sigma_grid: dtype must be float32 or float64, got float16",
    ),
    "tables-dtype": Case(
        lambda: lmkan_cupy.init_tables(4, 4, 8, dtype="int8"),
        TypeError,
        "init_tables: dtype must be float32, float64, float16 or, for CuPy arrays, bfloat16, "
        "got int8",
    ),
    "no-dtype": Case(
        lambda: lmkan_cupy.sigma_grid(8, dtype="single precision"),
        TypeError,
        "sigma_grid: dtype must be float32 or float64, got 'single precision'",
    ),
    # kinds
    "x-list": Case(
        lambda: forward([[0.0, 1.0]], TABLES),
        TypeError,
        "forward: x must be a NumPy or CuPy array or have __dlpack__, got builtins.list",
    ),
    "tables-missing": Case(
        lambda: forward(X, None),
        TypeError,
        "forward: tables must be a NumPy or CuPy array or have __dlpack__, got builtins.NoneType",
    ),
    "x-scalar": Case(
        lambda: forward(np.float32(1), TABLES),
        TypeError,
        "forward: x must be a NumPy or CuPy array or have __dlpack__, got numpy.float32",
    ),
    "grad_y-number": Case(
        lambda: backward(1.0, X, TABLES),
        TypeError,
        "backward: grad_y must be a NumPy or CuPy array or have __dlpack__, got builtins.float",
    ),
    "out-list": Case(
        lambda: forward(X, TABLES, out=[]),
        TypeError,
        "forward: out must be a NumPy or CuPy array or have __dlpack__, got builtins.list",
    ),
    # out
    "out-shape": Case(
        lambda: forward(X, TABLES, out=np.zeros((8, 5), np.float32)),
        ValueError,
        "forward: out must have shape (8, 4), got (8, 5)",
    ),
    "out-dtype": Case(
        lambda: forward(X, TABLES, out=np.zeros((8, 4))),
        TypeError,
        "forward: out must be float32, got float64",
    ),
    "out-strides": Case(
        lambda: forward(X, TABLES, out=np.zeros((4, 8), np.float32).T),
        ValueError,
        "forward: out must be C-contiguous, got strides (4, 32)",
    ),
    "out-read-only": Case(
        lambda: forward(X, TABLES, out=read_only(GRAD_Y)),
        ValueError,
        "forward: out must be writable, got a read-only array",
    ),
    "out-overlaps": Case(
        forward_into_its_input, ValueError, "forward: out must not share memory with x"
    ),
    "out_x-is-x": Case(
        lambda: backward(GRAD_Y, X, TABLES, out_x=X),
        ValueError,
        "backward: out_x must not share memory with x",
    ),
    "out_tables-half": Case(
        lambda: backward(GRAD_Y, X, TABLES.astype("float16"), out_tables=TABLES.astype("float16")),
        TypeError,
        "backward: out_tables must be float32, got float16",
    ),
    "out_x-not-needed": Case(
        lambda: backward(GRAD_Y, X, TABLES, need_x=False, out_x=np.zeros_like(X)),
        ValueError,
        "backward: out_x was given, but need_x is False",
    ),
    "out_tables-not-needed": Case(
        lambda: backward(GRAD_Y, X, TABLES, need_tables=False, out_tables=np.zeros_like(TABLES)),
        ValueError,
        "backward: out_tables was given, but need_tables is False",
    ),
    "add_to-shape": Case(
        lambda: lmkan_cupy.hessian_penalty_and_grad(TABLES, add_to=np.zeros_like(TABLES[:1])),
        ValueError,
        "hessian_penalty_and_grad: add_to must have shape",
    ),
    "add_to-is-tables": Case(
        lambda: lmkan_cupy.hessian_penalty_and_grad(TABLES, add_to=TABLES),
        ValueError,
        "hessian_penalty_and_grad: add_to must not share memory with tables",
    ),
    # numbers
    "num_grids-too-small": Case(
        lambda: lmkan_cupy.sigma_grid(2),
        ValueError,
        "sigma_grid: num_grids must be at least 3, got 2",
    ),
    "num_grids-fraction": Case(
        lambda: lmkan_cupy.refine(TABLES, 8.0),
        TypeError,
        "refine: num_grids must be a whole number, got 8.0 (float)",
    ),
    "num_grids-truth-value": Case(
        lambda: lmkan_cupy.sigma_grid(True),
        TypeError,
        "sigma_grid: num_grids must be a whole number, got True (bool)",
    ),
    "no-features": Case(
        lambda: lmkan_cupy.init_tables(0, 4, 8),
        ValueError,
        "init_tables: in_features must be at least 1, got 0",
    ),
    "no-outputs": Case(
        lambda: lmkan_cupy.flops(4, -1),
        ValueError,
        "flops: out_features must be at least 1, got -1",
    ),
    "count-of-a-name": Case(
        lambda: lmkan_cupy.num_parameters("4", 4, 8),
        TypeError,
        "num_parameters: in_features must be a whole number, got '4' (str)",
    ),
    "pair-out-of-range": Case(
        lambda: lmkan_cupy.evaluate(TABLES, 3, 0, 0.0, 0.0),
        ValueError,
        "evaluate: pair must be at most 2, got 3",
    ),
    "output-negative": Case(
        lambda: lmkan_cupy.evaluate(TABLES, 0, -1, 0.0, 0.0),
        ValueError,
        "evaluate: output must be at least 0, got -1",
    ),
    "optimizer-unknown": Case(
        lambda: lmkan_cupy.memory(4, 4, 8, 32, optimizer="adamw"),
        ValueError,
        "memory: optimizer must be one of sgd, momentum, adam, got 'adamw'",
    ),
    "batch-negative": Case(
        lambda: lmkan_cupy.memory(4, 4, 8, -1),
        ValueError,
        "memory: batch must be at least 0, got -1",
    ),
    "x-masked": Case(
        lambda: forward(np.ma.masked_array(X, X == X), TABLES),
        ValueError,
        "forward: x must not have masked elements, got 40: leave them out or fill them",
    ),
    "point-masked": Case(
        lambda: lmkan_cupy.evaluate(
            TABLES, 0, 0, 0.0, np.ma.masked_array([0.0, 1.0], [False, True])
        ),
        ValueError,
        "evaluate: x2 must not have masked elements, got 1: leave them out or fill them",
    ),
    "device-unknown": Case(
        lambda: lmkan_cupy.warmup(4, 4, 8, device="tpu"),
        ValueError,
        "warmup: device must be None, 'cpu', 'cuda' or 'cuda:' and a number, got 'tpu'",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error(case: Case) -> None:
    with pytest.raises(case.error, match=re.escape(case.text)) as caught:
        case.call()
    assert type(caught.value) is case.error


def test_an_array_that_masks_nothing_is_an_array() -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5)
    tables = lmkan_cupy.init_tables(5, 4, 6, rng=0)
    y = forward(np.ma.masked_array(x), tables)
    np.testing.assert_array_equal(y, forward(x, tables))


def test_an_error_comes_before_anything_is_written() -> None:
    out_x = np.full_like(X, np.nan)
    with pytest.raises(ValueError, match="out_tables must have shape"):
        backward(GRAD_Y, X, TABLES, out_x=out_x, out_tables=np.zeros((1, 7, 7, 4), np.float32))
    assert np.isnan(out_x).all()


def test_outputs_may_not_overlap_each_other() -> None:
    memory = np.zeros(TABLES.size, np.float32)
    with pytest.raises(ValueError, match="out_tables must not share memory with out_x"):
        backward(
            GRAD_Y,
            X,
            TABLES,
            out_x=memory[:40].reshape(X.shape),
            out_tables=memory.reshape(TABLES.shape),
        )
