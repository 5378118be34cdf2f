"""An lmKAN layer for JAX: twice differentiable, batched, compiled, on CPUs and CUDA devices.

XLA calls back into the core, inside of ``jax.jit`` and outside of it. The core reads and writes
XLA's buffers where they are, on a CUDA device as CuPy arrays, on XLA's stream.

Let J be the derivative of the layer F in x and tables T. JAX's transformations turn these
operations into each other, up to second derivatives::

    forward   y = F(x, T)
    push      y = J (dx, dT)
    pull      (x, T) = J^t grad_y                      the transpose of push
    curve     (x, T) = d(J^t grad_y) in the direction (dx, dT), its own transpose

and, for the Hessian penalty R, a quadratic form of the tables::

    penalty   R(T), and its gradient where that is wanted
    bend      T = the gradient of R at dT, its own transpose

They are one JAX primitive with a rule for every transformation. ``jax.custom_vjp`` is not enough:
under ``jax.vmap`` it computes one gradient of shared tables per sample and then adds them up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp
from jax.core import ShapedArray
from jax.experimental.buffer_callback import Buffer, ExecutionContext, buffer_callback
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import lmkan_cupy
from lmkan_cupy import array_checks
from lmkan_cupy.array_library import is_in_cuda_memory
from lmkan_cupy.installation import cuda_obstacle
from lmkan_cupy.tables import init_bound, tables_shape

#: Operation -> its derivative in x and tables.
_DERIVATIVES = {"forward": "push", "pull": "curve"}

#: Groups of arguments. An operation is linear in all arguments of a group together.
_LINEAR = (("dx", "dtables"), ("grad_y",))

_TABLES = {"tables", "dtables"}


def lmkan(x: Any, tables: Any) -> Array:
    """Evaluate an lmKAN layer; differentiable in ``x`` and ``tables``.

    First derivatives work in forward and reverse mode, second derivatives with reverse mode inside:
    ``jax.hessian``, ``jax.grad`` of ``jax.grad``, Hessian-vector products. ``jax.vmap`` over x
    costs as much as a batch; over tables, or for one gradient of the tables per sample, it loops.

    Parameters
    ----------
    x : array [..., I]
        float32, or float64 where JAX allows it (``jax_enable_x64``).
    tables : array [P, S, ..., S, O]
        With one axis of knots for each variable of the inner functions, 1, 2 or 3. In the
        dtype of ``x``; float16 and bfloat16 are widened to float32.

    Returns
    -------
    Array [..., O]
        In the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit: see :func:`lmkan_cupy.forward`.
    RuntimeError
        If the arrays are on a CUDA device and CuPy cannot run.
    NotImplementedError
        On any platform but CPUs and CUDA devices; for forward mode inside forward mode; and for
        third derivatives.
    """
    x, tables = jnp.asarray(x), _widened(tables)
    array_checks.check_layer_like("lmkan", x.shape, str(x.dtype), tables.shape, str(tables.dtype))
    return _apply("forward", ("y",), {"x": x, "tables": tables})[0]


def hessian_penalty(tables: Any) -> Array:
    """Return the roughness R of all inner functions: see :func:`lmkan_cupy.hessian_penalty`.

    Differentiable any number of times, in both modes; value and gradient come from one pass.

    Parameters
    ----------
    tables : array [P, S, S, O]
        float32, or float64 where JAX allows it; float16 and bfloat16 are widened to float32.

    Returns
    -------
    Array []
        float32, float64 for float64 tables.

    Raises
    ------
    TypeError, ValueError
        If ``tables`` is not an array of tables.
    RuntimeError, NotImplementedError
        For a device without an engine: see :func:`lmkan`.
    """
    tables = _widened(tables)
    array_checks.check_tables_like("hessian_penalty", tables.shape, str(tables.dtype))
    return _apply("penalty", ("penalty",), {"tables": tables})[0]


def init_tables(
    key: Any,
    in_features: int,
    out_features: int,
    num_grids: int,
    *,
    init_scale: float = 0.1,
    dtype: Any = "float32",
) -> Array:
    """Draw new tables from U(-a, a), ``a = init_scale / sqrt(in_features)``.

    Parameters
    ----------
    key : Array
        One of ``jax.random``.
    in_features, out_features, num_grids : int
        Sizes I, O >= 1 and G >= 3.
    init_scale : float
        Size of the outputs at the start for standardised inputs, up to a factor near 1.
    dtype : dtype
        float32, float16, bfloat16 or, where JAX allows it, float64.

    Returns
    -------
    Array [P, S, S, O]

    Raises
    ------
    TypeError, ValueError
        If a size or ``dtype`` is out of range.
    """
    shape = tables_shape("init_tables", in_features, out_features, num_grids)
    dtype = array_checks.table_dtype("init_tables", dtype)
    bound = init_bound(in_features, init_scale)
    drawn_as = array_checks.compute_dtype_of(dtype)
    tables: Array = jax.random.uniform(key, shape, drawn_as, -bound, bound).astype(dtype)
    return tables


def _widened(tables: Any) -> Array:
    """Return tables as an array of JAX's, half tables in float32."""
    array: Array = jnp.asarray(tables)
    return array.astype(jnp.float32) if array.dtype in (jnp.float16, jnp.bfloat16) else array


_primitive: Any = Primitive("lmkan")
_primitive.multiple_results = True


def _apply(operation: str, outputs: Sequence[str], arguments: dict[str, Any]) -> list[Array]:
    """Run an operation on its arguments by name: x, tables, dx, dtables, grad_y.

    A missing dx or dtables stands for zeros. ``outputs`` names the results to return: "y", "x",
    "tables", each in the shape of what has this name, and "penalty", a number.
    """
    results: list[Array] = _primitive.bind(
        *arguments.values(),
        operation=operation,
        outputs=tuple(outputs),
        names=tuple(arguments),
    )
    return results


_program = jax.jit(_apply, static_argnums=(0, 1))


def _run(
    *arguments: Any, operation: str, outputs: tuple[str, ...], names: tuple[str, ...]
) -> list[Array]:
    """Run outside of ``jax.jit``, as a program of one operation."""
    with jax.disable_jit(False):  # else the program would come back to here
        results: list[Array] = _program(
            operation, outputs, dict(zip(names, arguments, strict=True))
        )
    return results


def _shapes(
    *arguments: ShapedArray, operation: str, outputs: tuple[str, ...], names: tuple[str, ...]
) -> list[ShapedArray]:
    """Return shapes and dtypes of an operation's results."""
    given = dict(zip(names, arguments, strict=True))
    tables = given["tables" if "tables" in given else "dtables"]
    shapes = {"tables": tables.shape, "penalty": ()}
    if "x" in given:
        shapes["x"] = given["x"].shape
        shapes["y"] = (*shapes["x"][:-1], tables.shape[-1])
    return [ShapedArray(shapes[name], tables.dtype) for name in outputs]


def _differentiate(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    operation: str,
    outputs: tuple[str, ...],
    names: tuple[str, ...],
) -> tuple[list[Array], list[Array]]:
    """Return an operation's results and their derivative in the direction of the tangents."""
    given = dict(zip(names, primals, strict=True))
    moved = {
        name: tangent
        for name, tangent in zip(names, tangents, strict=True)
        if not isinstance(tangent, ad.Zero)
    }
    if operation == "penalty":
        return _differentiate_penalty(outputs, given["tables"], moved["tables"])
    terms = []
    for group in _LINEAR:
        if parts := {name: moved[name] for name in group if name in moved}:
            rest = {name: each for name, each in given.items() if name not in group}
            terms.append(_apply(operation, outputs, {**parts, **rest}))
    if direction := {f"d{name}": moved[name] for name in ("x", "tables") if name in moved}:
        if operation not in _DERIVATIVES:
            raise NotImplementedError(
                "lmkan: second derivatives need reverse mode inside, such as "
                "jax.jacfwd(jax.grad(f)) or jax.grad of jax.grad; there are no third derivatives"
            )
        terms.append(_apply(_DERIVATIVES[operation], outputs, {**direction, **given}))
    sums = [sum(parts[1:], start=parts[0]) for parts in zip(*terms, strict=True)]
    return _apply(operation, outputs, given), sums


def _differentiate_penalty(
    outputs: tuple[str, ...], tables: Array, direction: Array
) -> tuple[list[Array], list[Array]]:
    penalty, gradient = _apply("penalty", ("penalty", "tables"), {"tables": tables})
    (bent,) = _apply("bend", ("tables",), {"dtables": direction})
    results = {
        "penalty": (penalty, (gradient * direction).sum()),
        "tables": (gradient, bent),
    }
    values, tangents = zip(*(results[name] for name in outputs), strict=True)
    return list(values), list(tangents)


def _transpose(
    cotangents: Sequence[Any],
    *arguments: Any,
    operation: str,
    outputs: tuple[str, ...],
    names: tuple[str, ...],
) -> list[Any]:
    """Pull cotangents back to the arguments in which an operation is linear (None for the rest)."""
    given = dict(zip(names, arguments, strict=True))
    wanted = [name for name, each in given.items() if isinstance(each, ad.UndefinedPrimal)]
    pulled = {
        name: cotangent
        for name, cotangent in zip(outputs, cotangents, strict=True)
        if not isinstance(cotangent, ad.Zero)
    }
    layer: dict[str, Any] = {name: given[name] for name in ("x", "tables") if name in given}
    results = [name.removeprefix("d") for name in wanted]
    if operation == "bend":
        gradients = _apply("bend", results, {"dtables": pulled["tables"]})
    elif operation == "push":
        gradients = _apply("pull", results, {"grad_y": pulled["y"], **layer})
    elif operation == "pull":
        directions = {f"d{name}": each for name, each in pulled.items()}
        gradients = _apply("push", ("y",), {**directions, **layer})
    elif "grad_y" not in wanted:
        directions = {f"d{name}": each for name, each in pulled.items()}
        gradients = _apply("curve", results, {**directions, "grad_y": given["grad_y"], **layer})
    else:
        raise NotImplementedError("lmkan: there are no third derivatives")
    found = dict(zip(wanted, gradients, strict=True))
    return [found.get(name) for name in names]


def _batch(
    arguments: Sequence[Any],
    axes: Sequence[int | None],
    *,
    operation: str,
    outputs: tuple[str, ...],
    names: tuple[str, ...],
) -> tuple[list[Array], list[int]]:
    """Apply an operation to arguments some of which have a further axis, that of ``jax.vmap``."""
    batched, shared = {}, {}
    for name, argument, axis in zip(names, arguments, axes, strict=True):
        if axis is None:
            shared[name] = argument
        else:
            batched[name] = jnp.moveaxis(argument, axis, 0)
    if _TABLES.isdisjoint({*batched, *outputs}):  # then the batch is one more axis of samples
        size = len(next(iter(batched.values())))
        for name in shared.keys() - _TABLES:
            batched[name] = jnp.broadcast_to(shared[name], (size, *shared[name].shape))
        results = _apply(operation, outputs, {**shared, **batched})
    else:
        results = jax.lax.map(lambda one: _apply(operation, outputs, {**shared, **one}), batched)
    return results, [0] * len(outputs)


class _Stream(NamedTuple):
    """A CUDA stream as CuPy takes that of another library."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address  # version 0 of the protocol


@contextmanager
def _library_of(buffer: Buffer, context: ExecutionContext) -> Iterator[Any]:
    """Provide the array library of a buffer; CuPy then uses its device and XLA's stream."""
    if not is_in_cuda_memory(buffer):
        yield np
        return
    cupy = import_module("cupy")
    _, device = buffer.__dlpack_device__()
    with (
        cupy.cuda.Device(device),  # first: CuPy takes a stream to be on the current device
        cupy.cuda.Stream.from_external(_Stream(context.stream)),
    ):
        yield cupy


def _call_back(
    context: ExecutionContext,
    results: Sequence[Buffer],
    *arguments: Buffer,
    operation: str,
    outputs: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    """Evaluate an operation and write its results into XLA's buffers."""
    with _library_of(arguments[0], context) as xp:
        given = {name: xp.asarray(each) for name, each in zip(names, arguments, strict=True)}
        out = {name: xp.asarray(each) for name, each in zip(outputs, results, strict=True)}
        _evaluate(operation, given, out)


def _evaluate(operation: str, given: dict[str, Any], out: dict[str, Any]) -> None:
    """Evaluate an operation on NumPy or CuPy arrays, into those of ``out``."""
    x: Any = given.get("x")
    tables: Any = given.get("tables")
    grad_y: Any = given.get("grad_y")
    direction = given.get("dx"), given.get("dtables")
    results: dict[str, Any] = {}
    if operation == "forward":
        results["y"] = lmkan_cupy.forward(x, tables, out=out["y"])
    elif operation == "push":
        results["y"] = lmkan_cupy.jvp(*direction, x, tables)
    elif operation == "pull":
        results["x"], results["tables"] = lmkan_cupy.backward(
            grad_y,
            x,
            tables,
            need_x="x" in out,
            need_tables="tables" in out,
            out_x=out.get("x"),
            out_tables=out.get("tables"),
        )
    elif operation == "curve":
        _, results["x"], results["tables"] = lmkan_cupy.backward_backward(
            *direction, grad_y, x, tables
        )
    elif operation == "bend":
        results["tables"] = lmkan_cupy.hessian_penalty_grad(given["dtables"])
    elif "tables" in out:
        results["penalty"], results["tables"] = lmkan_cupy.hessian_penalty_and_grad(tables)
    else:
        results["penalty"] = lmkan_cupy.hessian_penalty(tables)
    for name, array in out.items():
        if results[name] is not array:
            array[...] = results[name]


def _lower(context: Any, *arguments: Any, **params: Any) -> Any:
    call = buffer_callback(partial(_call_back, **params), context.avals_out)
    return mlir.lower_fun(call, multiple_results=True)(context, *arguments)


def _lower_for_cuda(context: Any, *arguments: Any, **params: Any) -> Any:
    if obstacle := cuda_obstacle():
        raise RuntimeError(f"lmkan: the arrays are on a CUDA device, but {obstacle}")
    return _lower(context, *arguments, **params)


def _refuse_to_lower(context: Any, *arguments: Any, **params: Any) -> Any:
    raise NotImplementedError(
        f"lmkan: there is no engine for {'/'.join(context.module_context.platforms)}, "
        "only for cpu and cuda"
    )


_primitive.def_impl(_run)
_primitive.def_abstract_eval(_shapes)
ad.primitive_jvps[_primitive] = _differentiate
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _refuse_to_lower)
mlir.register_lowering(_primitive, _lower, platform="cpu")
mlir.register_lowering(_primitive, _lower_for_cuda, platform="cuda")
