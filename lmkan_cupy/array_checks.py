"""Checks of arguments before anything runs: every error text of the core stands here.

A message names the function, the argument, what it was and what it should have been.
"""

import operator
import re
from typing import Any

import numpy as np

from .array_library import Array, array_library, is_array

#: dtype of tables -> dtype of everything else that meets them (x, knots, gradients, sums).
_COMPUTE_DTYPE: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_TABLE_DTYPES = "float32, float64, float16 or, for CuPy arrays, bfloat16"


def check_size(function: str, name: str, value: Any, *, at_least: int = 1) -> int:
    """Return ``value`` as an int of at least ``at_least``."""
    try:
        size: int = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be a whole number, got {value!r} ({type(value).__name__})"
        ) from None
    if size < at_least:
        raise ValueError(f"{function}: {name} must be at least {at_least}, got {size}")
    return size


def check_num_grids(function: str, num_grids: Any) -> int:
    """Return ``num_grids`` as an int; the knots of a grid need three intervals."""
    return check_size(function, "num_grids", num_grids, at_least=3)


def compute_dtype(function: str, dtype: Any) -> np.dtype[Any]:
    """Return ``dtype``, float32 or float64, as a NumPy dtype."""
    return _checked_dtype(function, dtype, ("float32", "float64"), "float32 or float64")


def table_dtype(function: str, dtype: Any) -> np.dtype[Any]:
    """Return ``dtype``, one that tables may have, as a NumPy dtype."""
    return _checked_dtype(function, dtype, tuple(_COMPUTE_DTYPE), _TABLE_DTYPES)


def check_device(function: str, device: Any) -> int | None:
    """Return None for the CPU, else the index of a CUDA device, 0 where none is named."""
    if device is None or device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(
            f"{function}: device must be None, 'cpu', 'cuda' or 'cuda:' and a number, "
            f"got {device!r}"
        )
    return int(match[1] or 0)


def _checked_dtype(
    function: str, dtype: Any, allowed: tuple[str, ...], expected: str
) -> np.dtype[Any]:
    try:
        checked: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{function}: dtype must be {expected}, got {dtype!r}") from None
    if checked.name not in allowed or not checked.isnative:
        raise TypeError(f"{function}: dtype must be {expected}, got {checked}")
    return checked


def compute_dtype_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which tables of ``dtype`` are evaluated: that of x and the sums."""
    return _COMPUTE_DTYPE[dtype.name]


def check_array(function: str, name: str, value: Any) -> None:
    """Require a NumPy or a CuPy array."""
    if is_array(value):
        return
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    hint = " (lmkan_cupy.adapters.torch takes tensors)" if kind.startswith("torch") else ""
    raise TypeError(f"{function}: {name} must be a NumPy or CuPy array, got {kind}{hint}")


def check_same_place(function: str, name: str, array: Array, reference: Array) -> None:
    """Require ``array`` to be of the library, and on the device, of ``reference``."""
    check_array(function, name, array)
    if type(array) is type(reference) and array.device == reference.device:
        return
    expected, got = (
        f"{array_library(each).__name__} array on {each.device}" for each in (reference, array)
    )
    if got != expected:
        raise TypeError(f"{function}: {name} must be a {expected} as tables is, got a {got}")


def check_samples(function: str, x: Any) -> None:
    """Require ``x [..., I]`` in float32 or float64."""
    check_array(function, "x", x)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"{function}: x must be float32 or float64, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"{function}: x must have shape [..., in_features] with at least one feature, "
            f"got x.shape={x.shape}"
        )


def check_tables(function: str, tables: Any, name: str = "tables") -> None:
    """Require ``tables [P, S, S, O]`` in one of their dtypes."""
    check_array(function, name, tables)
    dtype = tables.dtype
    on_cpu = array_library(tables) is np
    if (
        dtype.name not in _COMPUTE_DTYPE
        or not dtype.isnative
        or (on_cpu and dtype.name == "bfloat16")
    ):
        raise TypeError(f"{function}: {name} must be {_TABLE_DTYPES}, got {dtype}")
    shape = tables.shape
    if len(shape) != 4 or shape[1] != shape[2] or shape[1] < 4 or 0 in shape:
        raise ValueError(
            f"{function}: {name} must have shape [pairs, knots, knots, out_features] with at "
            f"least 4 knots (num_grids + 1), got {name}.shape={shape}"
        )


def check_layer(function: str, x: Any, tables: Any) -> None:
    """Require samples and tables that belong together."""
    check_tables(function, tables)
    check_samples(function, x)
    check_same_place(function, "x", x, tables)
    if x.dtype != compute_dtype_of(tables.dtype):
        raise TypeError(
            f"{function}: x must be {compute_dtype_of(tables.dtype)} where tables is "
            f"{tables.dtype}, got {x.dtype}"
        )
    pairs, in_features = tables.shape[0], x.shape[-1]
    if pairs != (in_features + 1) // 2:
        raise ValueError(
            f"{function}: tables has {pairs} pairs, but x has {in_features} features "
            f"({(in_features + 1) // 2} pairs): tables.shape={tables.shape}, x.shape={x.shape}"
        )


def check_companion(
    function: str,
    name: str,
    array: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    reference: Array,
) -> None:
    """Require an array of exactly this shape and dtype beside ``reference``."""
    check_same_place(function, name, array, reference)
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name} must be {dtype}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {array.shape}")


def check_out(
    function: str,
    name: str,
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    inputs: dict[str, Array],
) -> None:
    """Require a writable, C-contiguous array to fill that shares no memory with ``inputs``."""
    check_companion(function, name, out, shape, dtype, next(iter(inputs.values())))
    if not out.flags.c_contiguous:
        raise ValueError(f"{function}: {name} must be C-contiguous, got strides {out.strides}")
    xp = array_library(out)
    if xp is np and not out.flags.writeable:
        raise ValueError(f"{function}: {name} must be writable, got a read-only array")
    for other, array in inputs.items():
        if xp.may_share_memory(out, array):
            raise ValueError(f"{function}: {name} must not share memory with {other}")


def check_pair_and_output(function: str, tables: Array, pair: Any, output: Any) -> None:
    """Require the indices of one inner function of checked ``tables``."""
    for name, index, axis in (("pair", pair, 0), ("output", output, 3)):
        if check_size(function, name, index, at_least=0) >= tables.shape[axis]:
            raise ValueError(
                f"{function}: {name} must be at most {tables.shape[axis] - 1}, got {index}"
            )


def check_weight_and_bias(function: str, tables: Array, weight: Any, bias: Any) -> None:
    """Require ``weight [O, I]`` and ``bias [O]`` or None beside checked ``tables``."""
    pairs, *_, out_features = tables.shape
    dtype = compute_dtype_of(tables.dtype)
    check_same_place(function, "weight", weight, tables)
    if weight.dtype != dtype:
        raise TypeError(f"{function}: weight must be {dtype}, got {weight.dtype}")
    if weight.ndim != 2 or weight.shape not in (
        (out_features, 2 * pairs),
        (out_features, 2 * pairs - 1),
    ):
        raise ValueError(
            f"{function}: weight must have shape [{out_features}, {2 * pairs}] or, for an odd "
            f"number of features, [{out_features}, {2 * pairs - 1}], got {weight.shape}"
        )
    if bias is not None:
        check_companion(function, "bias", bias, (out_features,), dtype, tables)
