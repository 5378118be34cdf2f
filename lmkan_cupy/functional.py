"""The functions of an lmKAN layer on arrays: check, choose the engine, run.

NumPy arrays run on the CPU engine (Numba), CuPy arrays on the CUDA engine, on their own device and
CuPy's current stream. Neither engine ever stands in for the other. Arrays of other libraries
(PyTorch, JAX, ...) are read where they are, by DLPack: results are NumPy arrays if that is CPU
memory, CuPy arrays if it is CUDA memory.

Every function gives the same bits for the same arguments on the same device. A NaN or infinite
coordinate makes every output of its sample non-finite and no other sample's; in ``backward`` it
also makes the gradients of the table cell that it falls into non-finite.

Formulas: ``lmkan_cupy/README.md``, after arXiv 2509.07103v2, section 3. Symbols: B samples (all
leading axes flattened), I input and O output features, G grid intervals per axis, S = G + 1 knots.
Inner functions have d = 1, 2 or 3 variables: tables ``[P, S, ..., S, O]`` have d axes of knots, and
P = ceil(I / d) groups of inputs, for d = 2 pairs. What the last group lacks is a constant 0.
Formulas in docstrings are those for d = 2.
"""

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from . import allocation, array_checks, installation
from .array_library import AnyArray, Array, array_library, contiguous, on_device_of


@cache
def engine_for(xp: Any) -> ModuleType:
    """Return the engine for arrays of the library ``xp``, imported only now because it is slow."""
    if xp is np:
        from . import cpu_engine

        return cpu_engine
    from . import cuda_engine

    return cuda_engine


def samples(array: Array) -> Array:
    """Return [..., N] as a C-contiguous [B, N], copied only where needed."""
    return contiguous(array if array.ndim == 2 else array.reshape(-1, array.shape[-1]))


def output(
    function: str,
    name: str,
    out: AnyArray | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    inputs: dict[str, Array],
) -> Array:
    """Return ``out``, checked, or a new array on the device of the inputs where it is None."""
    if out is None:
        return allocation.empty(shape, dtype, next(iter(inputs.values())))
    return array_checks.check_out(function, name, out, shape, dtype, inputs)


def forward(x: AnyArray, tables: AnyArray, *, out: AnyArray | None = None) -> Array:
    """Evaluate a layer, ``y[b, o] = sum_p f[p, o](x[b, 2p], x[b, 2p+1])``.

    With cell and position ``(i, u)`` of the first coordinate and ``(j, v)`` of the second,
    ``f = (1-u)(1-v) T[i,j] + (1-u)v T[i,j+1] + u(1-v) T[i+1,j] + uv T[i+1,j+1]``; outside the
    grid, functions continue as in the outermost cells.

    Parameters
    ----------
    x : array [..., I]
        Inputs, standardised; float32 or float64, any strides.
    tables : array [P, S, ..., S, O]
        Values of the inner functions at the knots: the dtype of ``x``, or with float32 x float16
        and, for CuPy arrays, bfloat16.
    out : array [..., O], optional
        Overwritten with the result; C-contiguous, dtype of ``x``.

    Returns
    -------
    array [..., O]
        In the dtype of ``x``. The values of other samples never change a sample's outputs.

    Raises
    ------
    TypeError
        If an argument is not an array, or dtypes, libraries or devices do not fit.
    ValueError
        If shapes do not fit, or ``out`` is not contiguous or overlaps an input.
    NotImplementedError
        For CuPy arrays, if ``tables`` have three axes of knots.

    Notes
    -----
    Half tables are exact: all arithmetic on them is in float32, with one exception. For large
    batches on a GPU, float16 tables are interpolated in half precision, and added over the pairs in
    float32. With weights w and table values T at the corners of each cell, that adds at most

        0.0025 sum |w T| + 1.2e-7 sum_p (sum |w|) (4 + sum |T|)

    to the error of an output, typically 5e-4 of the size of a sum's terms; nothing overflows that
    float32 could hold. Which batches are large depends on shapes and device. ``x.shape[0]`` may
    change a sample's outputs within this bound, other samples' values never do. Derivatives are in
    float32 throughout.
    """
    x, tables = array_checks.check_layer("forward", x, tables)
    engine = engine_for(array_library(x))
    shape = (*x.shape[:-1], tables.shape[-1])
    with on_device_of(tables):
        out = output("forward", "out", out, shape, x.dtype, {"x": x, "tables": tables})
        engine.forward(samples(x), contiguous(tables), samples(out))
    return out


def jvp(
    tangent_x: AnyArray | None,
    tangent_tables: AnyArray | None,
    x: AnyArray,
    tables: AnyArray,
) -> Array:
    """Differentiate :func:`forward` along a direction (Jacobian-vector product, forward mode).

    With f_1, f_2 the derivatives of an inner function and F_Z the layer with tables
    ``tangent_tables``::

        dy[b, o] = sum_p (tangent_x[b, 2p] f_1 + tangent_x[b, 2p+1] f_2) + F_Z(x)[b, o]

    Parameters
    ----------
    tangent_x : array [..., I] or None
        Direction in ``x``, dtype and shape of ``x``; None stands for zeros.
    tangent_tables : array [P, S, ..., S, O] or None
        Direction in ``tables``, in the dtype of ``x``; None stands for zeros.
    x : array [..., I]
    tables : array [P, S, ..., S, O]

    Returns
    -------
    array [..., O]
        In the dtype of ``x``. At a knot the derivative is one of the two one-sided ones.

    Raises
    ------
    TypeError, ValueError
        As :func:`forward`; ValueError where both tangents are None.
    """
    x, tables = array_checks.check_layer("jvp", x, tables)
    engine = engine_for(array_library(x))
    with on_device_of(tables):
        direction = _check_direction(
            "jvp", {"tangent_x": tangent_x, "tangent_tables": tangent_tables}, x, tables
        )
        tangent_y = allocation.empty((*x.shape[:-1], tables.shape[-1]), x.dtype, x)
        engine.jvp(*direction, samples(x), contiguous(tables), samples(tangent_y))
    return tangent_y


def backward(
    grad_y: AnyArray,
    x: AnyArray,
    tables: AnyArray,
    *,
    need_x: bool = True,
    need_tables: bool = True,
    out_x: AnyArray | None = None,
    out_tables: AnyArray | None = None,
) -> tuple[Array | None, Array | None]:
    """Pull ``grad_y = dL/dy`` back to the inputs of :func:`forward` (vector-Jacobian product).

    ``dL/dx[b, 2p] = sum_o grad_y[b, o] df[p, o]/dx1`` and, for the four corners n of the cell of
    (b, p) with their weights w, ``dL/dT[p, n, o] = sum_b w_n(b, p) grad_y[b, o]``.

    Parameters
    ----------
    grad_y : array [..., O]
        In the dtype of ``x``; not broadcast.
    x : array [..., I]
    tables : array [P, S, ..., S, O]
    need_x, need_tables : bool
        What is not needed is not computed.
    out_x : array [..., I], optional
        Overwritten with ``grad_x``; C-contiguous, dtype of ``x``.
    out_tables : array [P, S, ..., S, O], optional
        Overwritten with ``grad_tables``; C-contiguous.

    Returns
    -------
    grad_x : array [..., I] or None
        In the dtype of ``x``; None where not needed. At a knot the derivative is one of the two
        one-sided ones.
    grad_tables : array [P, S, ..., S, O] or None
        In the dtype of ``tables``, float32 for half tables; None where not needed.

    Raises
    ------
    TypeError, ValueError
        As :func:`forward`; also where an ``out_`` is given for what is not needed.
    """
    x, tables = array_checks.check_layer("backward", x, tables)
    engine = engine_for(array_library(x))
    grad_y = _check_grad_y("backward", grad_y, x, tables)
    inputs = {"grad_y": grad_y, "x": x, "tables": tables}
    with on_device_of(tables):
        grad_x = grad_tables = None
        if need_x:
            grad_x = output("backward", "out_x", out_x, x.shape, x.dtype, inputs)
            inputs["out_x"] = grad_x
        elif out_x is not None:
            raise ValueError("backward: out_x was given, but need_x is False")
        if need_tables:
            grad_tables = output(
                "backward", "out_tables", out_tables, tables.shape, x.dtype, inputs
            )
        elif out_tables is not None:
            raise ValueError("backward: out_tables was given, but need_tables is False")
        engine.backward(
            samples(grad_y),
            samples(x),
            contiguous(tables),
            None if grad_x is None else samples(grad_x),
            grad_tables,
        )
    return grad_x, grad_tables


def backward_backward(
    ggx: AnyArray | None,
    ggt: AnyArray | None,
    grad_y: AnyArray,
    x: AnyArray,
    tables: AnyArray,
) -> tuple[Array, Array, Array]:
    """Pull cotangents of both results of :func:`backward` back to its inputs.

    With f_1, f_2, f_12 the derivatives of an inner function and F_Z the layer with tables ``ggt``::

        d/dgrad_y[b, o] = sum_p (ggx[b, 2p] f_1 + ggx[b, 2p+1] f_2) + F_Z(x)[b, o]
        d/dT[p, n, o]   = sum_b grad_y[b, o] (ggx[b, 2p] dw_n/dx1 + ggx[b, 2p+1] dw_n/dx2)
        d/dx[b, 2p]     = sum_o grad_y[b, o] (ggx[b, 2p+1] f_12 + dF_Z/dx1)   (likewise 2p + 1)

    The pure second derivatives of a bilinear function are zero.

    Parameters
    ----------
    ggx : array [..., I] or None
        Cotangent of ``grad_x``, dtype and shape of ``x``; None stands for zeros.
    ggt : array [P, S, ..., S, O] or None
        Cotangent of ``grad_tables``, in its dtype; None stands for zeros.
    grad_y : array [..., O]
    x : array [..., I]
    tables : array [P, S, ..., S, O]

    Returns
    -------
    grad_grad_y : array [..., O]
        In the dtype of ``x``.
    grad_x : array [..., I]
        In the dtype of ``x``.
    grad_tables : array [P, S, ..., S, O]
        In the dtype of ``tables``, float32 for half tables.

    Raises
    ------
    TypeError, ValueError
        As :func:`backward`; ValueError where both cotangents are None.
    """
    function = "backward_backward"
    x, tables = array_checks.check_layer(function, x, tables)
    engine = engine_for(array_library(x))
    grad_y = _check_grad_y(function, grad_y, x, tables)
    with on_device_of(tables):
        direction = _check_direction(function, {"ggx": ggx, "ggt": ggt}, x, tables)
        grad_grad_y = allocation.empty(grad_y.shape, x.dtype, x)
        grad_x = allocation.empty(x.shape, x.dtype, x)
        grad_tables = allocation.empty(tables.shape, x.dtype, x)
        engine.backward_backward(
            *direction,
            samples(grad_y),
            samples(x),
            contiguous(tables),
            samples(grad_grad_y),
            samples(grad_x),
            grad_tables,
        )
    return grad_grad_y, grad_x, grad_tables


def hessian_penalty(tables: AnyArray) -> Array:
    """Return the roughness R of all inner functions, by finite differences at the inner knots.

    ``R = sum over p, o of the mean over 1 <= i, j <= G - 1 of f_xx^2 + 2 f_xy^2 + f_yy^2`` on the
    non-uniform grid (the paper's Hessian regularisation, section 3.5): for any d the squares of all
    second derivatives. It is zero exactly for functions that are affine in the knots.

    Parameters
    ----------
    tables : array [P, S, ..., S, O]

    Returns
    -------
    0-d array
        float32, float64 for float64 tables; summed in float64 in a fixed order.

    Raises
    ------
    TypeError, ValueError
        If ``tables`` is not an array of tables.
    """
    return _hessian(array_checks.check_tables("hessian_penalty", tables), 0.0, None)


def hessian_penalty_grad(tables: AnyArray, scale: float = 1.0) -> Array:
    """Return ``scale * dR/dT`` [P, S, ..., S, O] for R of :func:`hessian_penalty`.

    In the dtype of ``tables``, float32 for half tables. Raises as :func:`hessian_penalty`.
    """
    _, grad = _hessian_and_grad("hessian_penalty_grad", tables, scale)
    return grad


def hessian_penalty_and_grad(
    tables: AnyArray, scale: float = 1.0, *, add_to: AnyArray | None = None
) -> tuple[Array, Array]:
    """Return R of :func:`hessian_penalty`, unscaled, and ``scale * dR/dT`` from one pass.

    Parameters
    ----------
    tables : array [P, S, ..., S, O]
    scale : float
        Factor of the gradient.
    add_to : array [P, S, ..., S, O], optional
        C-contiguous, in the dtype of ``tables``, float32 for half tables: a gradient to which this
        one is added in place. It is returned, and no other array of that size is allocated.

    Raises
    ------
    TypeError, ValueError
        As :func:`hessian_penalty`, and if ``add_to`` does not fit.
    """
    return _hessian_and_grad("hessian_penalty_and_grad", tables, scale, add_to)


def _hessian_and_grad(
    function: str, tables: AnyArray, scale: float, add_to: AnyArray | None = None
) -> tuple[Array, Array]:
    tables = array_checks.check_tables(function, tables)
    with on_device_of(tables):
        dtype = array_checks.compute_dtype_of(tables.dtype)
        grad = output(function, "add_to", add_to, tables.shape, dtype, {"tables": tables})
        return _hessian(tables, scale, grad, accumulate=add_to is not None), grad


def _hessian(tables: Array, scale: float, grad: Array | None, *, accumulate: bool = False) -> Array:
    engine = engine_for(array_library(tables))
    with on_device_of(tables):
        penalty = allocation.empty((), array_checks.compute_dtype_of(tables.dtype), tables)
        tables = contiguous(tables)
        engine.hessian_penalty(tables, float(scale), grad, penalty, accumulate=accumulate)
    return penalty


def _check_grad_y(function: str, grad_y: AnyArray, x: Array, tables: Array) -> Array:
    shape = (*x.shape[:-1], tables.shape[-1])
    return array_checks.check_companion(function, "grad_y", grad_y, shape, x.dtype, tables)


def _check_direction(
    function: str, direction: dict[str, AnyArray | None], x: Array, tables: Array
) -> tuple[Array | None, Array | None]:
    """Return a direction in x and one in tables as an engine takes them, at least one not None."""
    (name_x, of_x), (name_tables, of_tables) = direction.items()
    if of_x is None and of_tables is None:
        raise ValueError(
            f"{function}: {name_x} and {name_tables} are both None, expected at least one array"
        )
    if of_x is not None:
        of_x = samples(
            array_checks.check_companion(function, name_x, of_x, x.shape, x.dtype, tables)
        )
    if of_tables is not None:
        of_tables = contiguous(
            array_checks.check_companion(
                function, name_tables, of_tables, tables.shape, x.dtype, tables
            )
        )
    return of_x, of_tables


def warmup(
    in_features: int,
    out_features: int,
    num_grids: int,
    *,
    dimension: int = 2,
    dtype: Any = "float32",
    device: str | None = None,
) -> None:
    """Compile, or load from the disk cache, what later calls with such tables will need.

    This serves calls with every batch size, but not convolutions. On a GPU that is more than one
    batch size needs, because the fastest kernel of a forward depends on it.

    Parameters
    ----------
    in_features, out_features, num_grids : int
        Sizes of the layer. The kernels of the CPU engine serve every size.
    dimension : {1, 2, 3}
        Inputs of an inner function.
    dtype : dtype
        The dtype of the tables.
    device : {None, "cpu", "cuda", "cuda:0", "cuda:1", ...}
        Where the arrays will be: None is the CPU, "cuda" the first CUDA device.

    Raises
    ------
    TypeError, ValueError
        If a size, ``dtype`` or ``device`` is out of range.
    RuntimeError
        If there is no such device or its kernels cannot be compiled; the text says what to do.
    NotImplementedError
        For CUDA, if ``dimension`` is 3.
    """
    in_features = array_checks.check_size("warmup", "in_features", in_features)
    out_features = array_checks.check_size("warmup", "out_features", out_features)
    num_grids = array_checks.check_num_grids("warmup", num_grids)
    dimension = array_checks.check_dimension("warmup", dimension)
    dtype = array_checks.table_dtype("warmup", dtype)
    cuda_device = array_checks.check_device("warmup", device)
    if cuda_device is None:
        if dtype.name == "bfloat16":
            raise TypeError("warmup: bfloat16 tables need device='cuda'")
        engine_for(np).warmup(array_checks.compute_dtype_of(dtype), dtype, dimension)
        return
    if obstacle := installation.cuda_obstacle():
        raise RuntimeError(f"warmup: {obstacle}")
    from . import cuda_engine

    cuda_engine.warmup(in_features, out_features, num_grids, dimension, dtype, cuda_device)
