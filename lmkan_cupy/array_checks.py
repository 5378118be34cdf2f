"""Checks of arguments, before anything runs. Nearly all error messages of the core are here.

A message names the function, the argument, what it was and what it should have been. A wrong kind
of array, dtype, library or device is a TypeError, a wrong size, shape or memory layout a
ValueError. Functions that check an array return it as a NumPy or CuPy array that shares its memory.
"""

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from . import installation
from .array_library import AnyArray, Array, array_library, is_array, is_in_cuda_memory

#: dtype of tables -> dtype of everything that is combined with them (x, knots, gradients, sums).
COMPUTE_DTYPE = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}
#: Library -> its adapter, which also takes arrays that the library does not export by DLPack.
_ADAPTERS = {
    "torch": "lmkan_cupy.adapters.torch.lmkan",
    "jax": "lmkan_cupy.adapters.jax.lmkan",
    "jaxlib": "lmkan_cupy.adapters.jax.lmkan",
}
_TABLE_DTYPES = "float32, float64, float16 or, for CuPy arrays, bfloat16"


def check_size(function: str, name: str, value: Any, *, at_least: int = 1) -> int:
    """Return ``value`` as an int of at least ``at_least``."""
    try:
        if isinstance(value, bool):  # to Python an int, but never meant as a size
            raise TypeError
        size: int = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be a whole number, got {value!r} ({type(value).__name__})"
        ) from None
    if size < at_least:
        raise ValueError(f"{function}: {name} must be at least {at_least}, got {size}")
    return size


#: What the inputs of an inner function of each dimension are called.
GROUPS = {1: "single inputs", 2: "pairs", 3: "triples"}


def check_dimension(function: str, dimension: Any) -> int:
    """Return ``dimension`` as an int, the number of variables of an inner function."""
    size = check_size(function, "dimension", dimension)
    if size not in GROUPS:
        raise ValueError(f"{function}: dimension must be 1, 2 or 3, got {size}")
    return size


def num_pairs(in_features: int, dimension: int) -> int:
    """Return P, the number of groups of ``dimension`` inputs; what the last one lacks is 0."""
    return -(-in_features // dimension)


def check_num_grids(function: str, num_grids: Any) -> int:
    """Return ``num_grids`` as an int; the knots of a grid need three intervals."""
    return check_size(function, "num_grids", num_grids, at_least=3)


def compute_dtype(function: str, dtype: Any) -> np.dtype[Any]:
    """Return ``dtype``, float32 or float64, as a NumPy dtype."""
    return _checked_dtype(function, dtype, ("float32", "float64"), "float32 or float64")


def table_dtype(function: str, dtype: Any) -> np.dtype[Any]:
    """Return ``dtype``, one that tables may have, as a NumPy dtype."""
    return _checked_dtype(function, dtype, tuple(COMPUTE_DTYPE), _TABLE_DTYPES)


def check_device(function: str, device: Any) -> int | None:
    """Return None for the CPU, else the index of the CUDA device, 0 for "cuda"."""
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
        raise TypeError(f"{function}: dtype must be {expected}, got {_name(checked)}")
    return checked


@lru_cache
def compute_dtype_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which tables of ``dtype`` are evaluated: that of x and the sums."""
    return np.dtype(COMPUTE_DTYPE[_name(dtype)])


@lru_cache
def _name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, cached because NumPy takes a microsecond to make it."""
    name = str(dtype)
    if name.startswith("|V"):
        name += " (bytes without a dtype, as np.load gives where bfloat16 or float8 was saved)"
    return name


def check_array(function: str, name: str, value: Any) -> Array:
    """Require a NumPy or a CuPy array, or one of another library that shares its memory by DLPack.

    Raises a RuntimeError if the array is in CUDA memory and CuPy cannot run.
    """
    array: Array
    if type(value) is np.ndarray:  # first, as it is what nearly all values are
        array = value
        return array
    if is_array(value):
        check_unmasked(function, name, value)
        array = value
        return array
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if not hasattr(value, "__dlpack__"):
        raise TypeError(
            f"{function}: {name} must be a NumPy or CuPy array or have __dlpack__, got {kind}"
        )
    on_cuda = False
    try:
        if getattr(value, "is_neg", bool)():  # torch would export it without its sign
            raise BufferError("its negative bit is set")
        on_cuda = is_in_cuda_memory(value)
        array = (import_module("cupy") if on_cuda else np).from_dlpack(value)
    except (ImportError, AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        if on_cuda and (obstacle := installation.cuda_obstacle()):
            raise RuntimeError(f"{function}: {name} is in CUDA memory, but {obstacle}") from error
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        adapter = _ADAPTERS.get(kind.partition(".")[0])
        if adapter and dtype in COMPUTE_DTYPE:
            hint = f" ({adapter} takes it as it is)"
        else:
            hint = f" (its dtype is {dtype})" if dtype else ""
        raise TypeError(
            f"{function}: {name}, a {kind}, cannot be read by DLPack: {error}{hint}"
        ) from error
    return array


def check_unmasked(function: str, name: str, value: object) -> None:
    """Refuse an array that masks elements, which must not be taken for values."""
    if not isinstance(value, np.ndarray) or type(value) is np.ndarray:
        return  # only subclasses can; others must not wait for numpy.ma, which takes long to import
    if masked := np.ma.getmaskarray(value).sum():
        raise ValueError(
            f"{function}: {name} must not have masked elements, got {masked}: "
            "leave them out or fill them"
        )


def check_dense(function: str, name: str, value: object) -> None:
    """Refuse a sparse array, which NumPy takes for a single object."""
    if hasattr(value, "toarray"):
        raise TypeError(
            f"{function}: {name} must be dense, got a sparse {type(value).__name__}: "
            f"{name}.toarray()"
        )


def check_same_place(
    function: str,
    name: str,
    array: AnyArray,
    reference: Array,
    reference_name: str = "tables",
) -> Array:
    """Require ``array`` to be of the library, and on the device, of ``reference``."""
    array = check_array(function, name, array)
    if type(array) is type(reference) and (
        type(array) is np.ndarray or array.device == reference.device
    ):
        return array
    expected, got = (
        f"{array_library(each).__name__} array on {each.device}" for each in (reference, array)
    )
    if got != expected:
        raise TypeError(
            f"{function}: {name} must be a {expected} as {reference_name} is, got a {got}"
        )
    return array


def check_samples(function: str, x: AnyArray) -> Array:
    """Require ``x [..., I]`` in float32 or float64."""
    x = check_array(function, "x", x)
    _check_samples_like(function, x.shape, _name(x.dtype))
    return x


def _check_samples_like(function: str, shape: tuple[int, ...], dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        raise TypeError(f"{function}: x must be float32 or float64, got {dtype}")
    if len(shape) == 0 or shape[-1] == 0:
        raise ValueError(
            f"{function}: x must have shape [..., in_features] with at least one feature, "
            f"got x.shape={tuple(shape)}"
        )


def check_tables(function: str, tables: AnyArray, name: str = "tables") -> Array:
    """Require ``tables [P, S, ..., S, O]`` in one of their dtypes."""
    tables = check_array(function, name, tables)
    _check_library(function, name, tables.dtype, array_library(tables).__name__)
    check_tables_like(function, tables.shape, _name(tables.dtype), name)
    return tables


def _check_library(function: str, name: str, dtype: np.dtype[Any], library: str) -> None:
    """Require a dtype of tables that the library can compute with."""
    if library == "numpy" and _name(dtype) == "bfloat16":
        raise TypeError(f"{function}: {name} must be {_TABLE_DTYPES}, got {dtype}")


def check_tables_like(
    function: str, shape: tuple[int, ...], dtype: str, name: str = "tables"
) -> None:
    """Require shape and dtype of tables; a dtype of foreign byte order has another name."""
    if dtype not in COMPUTE_DTYPE:
        raise TypeError(f"{function}: {name} must be {_TABLE_DTYPES}, got {dtype}")
    knots = shape[1:-1]
    if len(knots) not in GROUPS or 0 in shape or any(n != knots[0] or n < 4 for n in knots):
        raise ValueError(
            f"{function}: {name} must have shape [pairs, knots, knots, out_features], or one or "
            "three axes of knots, with at least 4 knots (num_grids + 1), "
            f"got {name}.shape={tuple(shape)}"
        )


def check_layer(function: str, x: AnyArray, tables: AnyArray) -> tuple[Array, Array]:
    """Require samples and tables that belong together."""
    tables = check_array(function, "tables", tables)
    x = check_same_place(function, "x", x, tables)
    library = array_library(tables).__name__
    _check_layer(function, x.shape, x.dtype, tables.shape, tables.dtype, library)
    return x, tables


@lru_cache(1024)
def _check_layer(
    function: str,
    x_shape: tuple[int, ...],
    x_dtype: np.dtype[Any],
    tables_shape: tuple[int, ...],
    tables_dtype: np.dtype[Any],
    library: str,
) -> None:
    """Check shapes and dtypes, cached because most calls repeat those of an earlier one."""
    _check_library(function, "tables", tables_dtype, library)
    check_layer_like(function, x_shape, _name(x_dtype), tables_shape, _name(tables_dtype))


def check_layer_like(
    function: str,
    x_shape: tuple[int, ...],
    x_dtype: str,
    tables_shape: tuple[int, ...],
    tables_dtype: str,
) -> None:
    """Require shapes and dtypes, by name, of samples and tables that belong together."""
    check_tables_like(function, tables_shape, tables_dtype)
    _check_samples_like(function, x_shape, x_dtype)
    _check_fit(function, x_shape, x_dtype, tables_shape, tables_dtype)


def _check_fit(
    function: str,
    x_shape: tuple[int, ...],
    x_dtype: str,
    tables_shape: tuple[int, ...],
    tables_dtype: str,
) -> None:
    expected = COMPUTE_DTYPE[tables_dtype]
    if x_dtype != expected:
        raise TypeError(
            f"{function}: x must be {expected} where tables is {tables_dtype}, got {x_dtype}"
        )
    dimension, in_features = len(tables_shape) - 2, x_shape[-1]
    pairs, groups = num_pairs(in_features, dimension), GROUPS[dimension]
    if tables_shape[0] != pairs:
        raise ValueError(
            f"{function}: tables has {tables_shape[0]} {groups}, but x has {in_features} features "
            f"({pairs} {groups}): tables.shape={tuple(tables_shape)}, x.shape={tuple(x_shape)}"
        )


def check_companion(
    function: str,
    name: str,
    array: AnyArray,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    reference: Array,
    reference_name: str = "tables",
) -> Array:
    """Require an array of this shape and dtype, of the library and device of ``reference``."""
    array = check_same_place(function, name, array, reference, reference_name)
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name} must be {dtype}, got {_name(array.dtype)}")
    if array.shape != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {array.shape}")
    return array


def check_out(
    function: str,
    name: str,
    out: AnyArray,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    inputs: dict[str, Array],
) -> Array:
    """Require a writable, C-contiguous array to fill that shares no memory with ``inputs``."""
    out = check_companion(function, name, out, shape, dtype, next(iter(inputs.values())))
    if not out.flags.c_contiguous:
        raise ValueError(f"{function}: {name} must be C-contiguous, got strides {out.strides}")
    xp = array_library(out)
    if xp is np and not out.flags.writeable:
        raise ValueError(f"{function}: {name} must be writable, got a read-only array")
    for other, array in inputs.items():
        if xp.may_share_memory(out, array):
            raise ValueError(f"{function}: {name} must not share memory with {other}")
    return out


def check_pair_and_output(function: str, tables: Any, pair: Any, output: Any) -> None:
    """Require ``pair`` and ``output`` to be indices of an inner function of checked ``tables``."""
    for name, index, axis in (("pair", pair, 0), ("output", output, -1)):
        if check_size(function, name, index, at_least=0) >= tables.shape[axis]:
            raise ValueError(
                f"{function}: {name} must be at most {tables.shape[axis] - 1}, got {index}"
            )


def check_weight_and_bias(
    function: str, tables: Array, weight: AnyArray, bias: AnyArray | None
) -> tuple[Array, Array | None]:
    """Require ``weight [O, I]`` and ``bias [O]`` or None that fit checked ``tables``."""
    pairs, *knots, out_features = tables.shape
    most, fewest = len(knots) * pairs, len(knots) * (pairs - 1) + 1
    dtype = compute_dtype_of(tables.dtype)
    weight = check_same_place(function, "weight", weight, tables)
    if weight.dtype != dtype:
        raise TypeError(f"{function}: weight must be {dtype}, got {_name(weight.dtype)}")
    if weight.ndim != 2 or len(weight) != out_features or not fewest <= weight.shape[1] <= most:
        widths = " or ".join(f"[{out_features}, {n}]" for n in range(most, fewest - 1, -1))
        raise ValueError(f"{function}: weight must have shape {widths}, got {weight.shape}")
    if bias is not None:
        bias = check_companion(function, "bias", bias, (out_features,), dtype, tables)
    return weight, bias


class LinearLayer(NamedTuple):
    """A linear layer of a network: ``weight`` [O, I] and ``bias`` [O] or None."""

    weight: Array
    bias: Array | None


class LayerKind(NamedTuple):
    """What a layer of a network is like: shape and dtype of its tables, or its weight and bias."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_linear: bool
    bias_shape: tuple[int, ...] | None = None
    bias_dtype: np.dtype[Any] | None = None

    @property
    def out_features(self) -> int:
        """Features that the layer gives."""
        return self.shape[0 if self.is_linear else -1]


@dataclass(eq=False)
class Network:
    """Checked layers of a network, for x of one width and dtype; an infinite bound cuts nothing."""

    in_features: int
    dtype: np.dtype[Any]
    layers: list[Array | LinearLayer]
    kinds: tuple[LayerKind, ...]
    bounds: tuple[float, ...]
    shift: Array | None
    scale: Array | None
    #: What the CPU engine makes of the arrays, kept for those who keep the network.
    arguments: Any = None

    @property
    def out_features(self) -> int:
        """Features that the last layer gives."""
        return self.kinds[-1].out_features

    def arrays(self) -> dict[str, Array]:
        """Return all arrays by the names of their arguments."""
        arrays = {}
        for name in ("shift", "scale"):
            if (array := getattr(self, name)) is not None:
                arrays[name] = array
        for k, layer in enumerate(self.layers):
            if isinstance(layer, LinearLayer):
                parts = {f"{_layer_name(k)}[{n}]": part for n, part in enumerate(layer)}
                arrays |= {name: part for name, part in parts.items() if part is not None}
            else:
                arrays[_layer_name(k)] = layer
        return arrays


def check_network(
    function: str, x: Array, layers: Any, shift: Any, scale: Any, bound: Any
) -> Network:
    """Require layers of which each takes what the one before it gives, the first x, and bounds."""
    if isinstance(layers, dict) or not isinstance(layers, Sequence):
        kind = type(layers).__name__
        raise TypeError(f"{function}: layers must be a list or tuple of layers, got {kind}")
    if not layers:
        raise ValueError(f"{function}: layers must hold at least one layer, got none")
    checked = [_as_layer(function, _layer_name(k), layer, x) for k, layer in enumerate(layers)]
    kinds = tuple(map(_kind_of, checked))
    _check_chain(function, x.shape[-1], x.dtype, kinds, array_library(x).__name__)
    bounds = _check_bounds(
        function, tuple(bound) if isinstance(bound, list) else bound, len(layers)
    )
    of_features = [
        None
        if each is None
        else check_companion(function, name, each, x.shape[-1:], x.dtype, x, "x")
        for name, each in (("shift", shift), ("scale", scale))
    ]
    return Network(x.shape[-1], x.dtype, checked, kinds, bounds, *of_features)


def _layer_name(k: int) -> str:
    return f"layers[{k}]"


def _as_layer(function: str, name: str, layer: Any, x: Array) -> Array | LinearLayer:
    """Return tables, or weight and bias, that are where ``x`` is."""
    if not isinstance(layer, tuple | list):
        return check_same_place(function, name, layer, x, "x")
    if len(layer) != 2:
        raise ValueError(
            f"{function}: {name} must be tables or (weight, bias), got {len(layer)} items"
        )
    weight, bias = layer
    weight = check_same_place(function, f"{name}[0]", weight, x, "x")
    if bias is not None:
        bias = check_same_place(function, f"{name}[1]", bias, x, "x")
    return LinearLayer(weight, bias)


def _kind_of(layer: Array | LinearLayer) -> LayerKind:
    if not isinstance(layer, LinearLayer):
        return LayerKind(layer.shape, layer.dtype, False)
    weight, bias = layer
    if bias is None:
        return LayerKind(weight.shape, weight.dtype, True)
    return LayerKind(weight.shape, weight.dtype, True, bias.shape, bias.dtype)


@lru_cache(1024)
def _check_chain(
    function: str,
    features: int,
    dtype: np.dtype[Any],
    kinds: tuple[LayerKind, ...],
    library: str,
) -> None:
    """Check shapes and dtypes, cached because most calls repeat those of an earlier one."""
    for k, kind in enumerate(kinds):
        if kind.is_linear:
            _check_linear_like(function, _layer_name(k), kind, features, dtype)
        else:
            _check_library(function, _layer_name(k), kind.dtype, library)
            _check_tables_of(function, _layer_name(k), kind, features, dtype)
        features = kind.out_features


def _check_tables_of(
    function: str, name: str, kind: LayerKind, in_features: int, x_dtype: np.dtype[Any]
) -> None:
    check_tables_like(function, kind.shape, _name(kind.dtype), name)
    expected = compute_dtype_of(kind.dtype)
    if x_dtype != expected:
        raise TypeError(
            f"{function}: x must be {expected} where {name} is {kind.dtype}, got {x_dtype}"
        )
    dimension = len(kind.shape) - 2
    pairs, groups = num_pairs(in_features, dimension), GROUPS[dimension]
    if kind.shape[0] != pairs:
        raise ValueError(
            f"{function}: {name} has {kind.shape[0]} {groups}, but gets {in_features} features "
            f"({pairs} {groups})"
        )


def _check_linear_like(
    function: str, name: str, kind: LayerKind, in_features: int, x_dtype: np.dtype[Any]
) -> None:
    for part, dtype in ((0, kind.dtype), (1, kind.bias_dtype or x_dtype)):
        if dtype != x_dtype:
            raise TypeError(
                f"{function}: {name}[{part}] must be {x_dtype} as x is, got {_name(dtype)}"
            )
    if len(kind.shape) != 2 or kind.shape[1] != in_features or not kind.shape[0]:
        raise ValueError(
            f"{function}: {name}[0] must have shape [out_features, {in_features}], got {kind.shape}"
        )
    if kind.bias_shape not in (None, kind.shape[:1]):
        raise ValueError(
            f"{function}: {name}[1] must have shape {kind.shape[:1]}, got {kind.bias_shape}"
        )


@lru_cache(1024)
def _check_bounds(function: str, bound: Any, count: int) -> tuple[float, ...]:
    bounds = bound if isinstance(bound, tuple) else (bound,) * count
    if len(bounds) != count:
        raise ValueError(
            f"{function}: bound must be None, a number or one for each of {count} layers, "
            f"got {len(bounds)}"
        )
    for each in bounds:
        try:
            is_positive = each is None or each > 0
        except TypeError:
            raise TypeError(f"{function}: bound must be None or a number, got {each!r}") from None
        if not is_positive:
            raise ValueError(f"{function}: bound must be None or positive, got {each}")
    return tuple(math.inf if each is None else float(each) for each in bounds)
