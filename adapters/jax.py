"""An lmKAN layer for JAX: twice differentiable, batched, and under ``jax.jit`` on the CPU.

Outside of ``jax.jit`` JAX and the core share memory by DLPack, on the CPU and on CUDA devices.
Under ``jax.jit`` XLA calls back into the CPU engine.

Let J be the derivative of the layer F in x and tables T. JAX's transformations turn these
operations into each other, up to second derivatives::

    forward   y = F(x, T)
    push      y = J (dx, dT)
    pull      (x, T) = J^t grad_y                      the transpose of push
    curve     (x, T) = d(J^t grad_y) in the direction (dx, dT), its own transpose

They are one JAX primitive with a rule for every transformation. ``jax.custom_vjp`` is not enough:
under ``jax.vmap`` it computes one gradient of shared tables per sample and then adds them up.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import Array
from jax import numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import lmkan_cupy
from lmkan_cupy import array_checks

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
        Under ``jax.jit``, ``jax.lax.scan`` and the like on any platform but the CPU; for forward
        mode inside forward mode; and for third derivatives.
    """
    x, tables = jnp.asarray(x), jnp.asarray(tables)
    if tables.dtype in (jnp.float16, jnp.bfloat16):
        tables = tables.astype(jnp.float32)
    array_checks.check_layer_like("lmkan", x.shape, str(x.dtype), tables.shape, str(tables.dtype))
    return _apply("forward", ("y",), {"x": x, "tables": tables})[0]


_primitive: Any = Primitive("lmkan")
_primitive.multiple_results = True


def _apply(operation: str, outputs: Sequence[str], arguments: dict[str, Any]) -> list[Array]:
    """Run an operation on its arguments by name: x, tables, and any of dx, dtables, grad_y.

    A missing dx or dtables stands for zeros. ``outputs`` names the results to return: "y", "x",
    "tables", each in the shape of what has this name.
    """
    results: list[Array] = _primitive.bind(
        *arguments.values(),
        operation=operation,
        outputs=tuple(outputs),
        names=tuple(arguments),
    )
    return results


def _evaluate(
    *arrays: Any, operation: str, outputs: tuple[str, ...], names: tuple[str, ...]
) -> tuple[Any, ...]:
    """Evaluate an operation on arrays that the core can read; return NumPy or CuPy arrays."""
    given = {
        name: array_checks.check_array("lmkan", name, array)
        for name, array in zip(names, arrays, strict=True)
    }
    x, tables, grad_y = given["x"], given["tables"], given.get("grad_y")
    direction = given.get("dx"), given.get("dtables")
    results: dict[str, Any] = {}
    if operation == "forward":
        results["y"] = lmkan_cupy.forward(x, tables)
    elif operation == "pull":
        assert grad_y is not None
        results["x"], results["tables"] = lmkan_cupy.backward(
            grad_y, x, tables, need_x="x" in outputs, need_tables="tables" in outputs
        )
    elif operation == "push":
        results["y"] = lmkan_cupy.jvp(*direction, x, tables)
    else:
        assert grad_y is not None
        _, results["x"], results["tables"] = lmkan_cupy.backward_backward(
            *direction, grad_y, x, tables
        )
    return tuple(results[name] for name in outputs)


def _run(*arrays: Any, **params: Any) -> list[Array]:
    """Run outside of ``jax.jit``, on the device of the arrays."""
    placed = [jnp.asarray(each) for each in arrays]  # constants are on the host
    devices = {device for each in placed for device in each.devices()}
    if len(devices) > 1:
        raise ValueError(
            "lmkan: outside of jax.jit, x and tables must be on one device, got "
            + ", ".join(sorted(map(str, devices)))
        )
    return [jnp.from_dlpack(each) for each in _evaluate(*placed, **params)]


def _shapes(
    *arguments: ShapedArray, operation: str, outputs: tuple[str, ...], names: tuple[str, ...]
) -> list[ShapedArray]:
    """Return shapes and dtypes of an operation's results."""
    x, tables = (arguments[names.index(name)] for name in ("x", "tables"))
    shapes = {
        "y": (*x.shape[:-1], tables.shape[-1]),
        "x": x.shape,
        "tables": tables.shape,
    }
    return [ShapedArray(shapes[name], x.dtype) for name in outputs]


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
    layer = {name: given[name] for name in ("x", "tables")}
    results = [name.removeprefix("d") for name in wanted]
    if operation == "push":
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


def _lower_for_cpu(context: Any, *arguments: Any, **params: Any) -> Any:
    """Let XLA call the core on NumPy views of its buffers.

    ``jax.pure_callback`` would turn them into JAX arrays first, and programs can hang where a
    callback waits for such arrays (jax-ml/jax, issues 24255 and 25861).
    """
    results, *_ = mlir.emit_python_callback(
        context,
        lambda *arrays: _evaluate(*arrays, **params),
        None,
        arguments,
        context.avals_in,
        context.avals_out,
        has_side_effect=False,
    )
    return results


def _refuse_to_lower(context: Any, *arguments: Any, **params: Any) -> Any:
    raise NotImplementedError(
        f"lmkan: on {'/'.join(context.module_context.platforms)} there is no engine under jax.jit "
        "and within jax.lax loops; call lmkan outside of them, or run them on the CPU"
    )


_primitive.def_impl(_run)
_primitive.def_abstract_eval(_shapes)
ad.primitive_jvps[_primitive] = _differentiate
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _refuse_to_lower)
mlir.register_lowering(_primitive, _lower_for_cpu, platform="cpu")
