"""Arrays of other libraries are read by DLPack without a copy, or there is a clear error."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from problems import (
    FLOAT32,
    FLOAT64,
    HALF_TABLES,
    SMALL,
    Dtypes,
    Problem,
    all_results,
    first_short,
    make_problem,
)

import lmkan_cupy
from lmkan_cupy import array_checks, installation


class Foreign:
    """An array that has the DLPack protocol and nothing else; unreadable on a false device."""

    def __init__(self, array: Any, device: tuple[int, int] | None = None) -> None:
        self.array = array
        self.device = array.__dlpack_device__() if device is None else device

    def __dlpack__(self, **options: Any) -> Any:
        if self.device != self.array.__dlpack_device__():
            raise BufferError(f"no reader for device {self.device}")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def to_torch(array: Any) -> Any:
    return pytest.importorskip("torch").from_numpy(array)


def to_jax(array: Any) -> Any:
    """In the dtype of the array: by default JAX would make float32 out of float64."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        return jax.numpy.asarray(array)


LIBRARIES: dict[str, Callable[[Any], Any]] = {"torch": to_torch, "jax": to_jax, "bare": Foreign}


@pytest.fixture(params=LIBRARIES)
def foreign(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return LIBRARIES[request.param]


@pytest.mark.parametrize("dtypes", first_short([FLOAT32, FLOAT64, HALF_TABLES], 2), ids=str)
def test_all_functions_give_the_same_numpy_arrays(
    rng: np.random.Generator, foreign: Callable[[Any], Any], dtypes: Dtypes
) -> None:
    problem = make_problem(rng, SMALL, dtypes)
    given = Problem(*(foreign(each) for each in problem))
    weight, bias = np.ones((2, 7, 5), dtypes.x)[0], np.ones(7, dtypes.x)

    def others(x: Any, tables: Any, to: Callable[[Any], Any]) -> list[Any]:
        return [
            lmkan_cupy.fold_linear(tables, to(weight), to(bias)),
            lmkan_cupy.fold_relu(tables, to(weight)),
            lmkan_cupy.refine(tables, 12),
            lmkan_cupy.evaluate(tables, 1, 2, 0.3, 0.4),
            lmkan_cupy.hessian_penalty(tables),
            *lmkan_cupy.occupancy(x, 8),
        ]

    expected = [*all_results(problem), *others(problem.x, problem.tables, np.asarray)]
    results = [*all_results(given), *others(given.x, given.tables, foreign)]
    for one, other in zip(results, expected, strict=True):
        assert isinstance(one, np.ndarray | np.generic)
        np.testing.assert_array_equal(one, other, strict=True)


def test_memory_is_shared(foreign: Callable[[Any], Any]) -> None:
    given = foreign(np.arange(6, dtype=np.float32))
    one, other = (array_checks.check_array("f", "x", given) for _ in range(2))
    assert np.shares_memory(one, other)


def test_libraries_mix(rng: np.random.Generator) -> None:
    problem = make_problem(rng)
    y = lmkan_cupy.forward(Foreign(problem.x), problem.tables)
    np.testing.assert_array_equal(y, lmkan_cupy.forward(problem.x, Foreign(problem.tables)))


@pytest.mark.parametrize("library", ["torch", "bare"])
def test_outputs_are_written_in_place(rng: np.random.Generator, library: str) -> None:
    x, tables, grad_y, *_ = make_problem(rng)
    memory = np.full_like(grad_y, np.nan), np.full_like(x, np.nan), np.full_like(tables, np.nan)
    out, out_x, out_tables = (LIBRARIES[library](each) for each in memory)
    lmkan_cupy.forward(x, tables, out=out)
    lmkan_cupy.backward(grad_y, x, tables, out_x=out_x, out_tables=out_tables)
    expected = lmkan_cupy.forward(x, tables), *lmkan_cupy.backward(grad_y, x, tables)
    for one, other in zip(memory, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_strides_are_kept(rng: np.random.Generator) -> None:
    x, tables, *_ = make_problem(rng)
    transposed = to_torch(np.ascontiguousarray(x.T)).T
    y = lmkan_cupy.forward(transposed, tables)
    np.testing.assert_array_equal(y, lmkan_cupy.forward(x, tables))


# CUDA memory, on a machine that may have none


def test_cuda_memory_is_read_by_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Array:
        """Stands for a CuPy array."""

    cupy = SimpleNamespace(ndarray=Array, from_dlpack=lambda given: Array())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for device_type in (2, 13):
        given = Foreign(np.zeros(3), (device_type, 0))
        assert isinstance(array_checks.check_array("f", "x", given), Array)
    assert isinstance(array_checks.check_array("f", "x", Foreign(np.zeros(3))), np.ndarray)


def test_cuda_memory_without_a_working_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "cuda_obstacle", lambda: "CuPy is missing: install it")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"^forward: x is in CUDA memory, but CuPy is missing"):
        lmkan_cupy.forward(Foreign(np.zeros((2, 4), "float32"), (2, 0)), np.zeros((2, 4, 4, 1)))


# What DLPack cannot export


@pytest.fixture
def tables() -> Any:
    return np.zeros((2, 9, 9, 3), np.float32)


def refused(text: str) -> Any:
    return pytest.raises(TypeError, match=re.escape(text))


def test_tensors_with_gradients_are_told_where_to_go(tables: Any) -> None:
    torch = pytest.importorskip("torch")
    with refused(
        "forward: x, a torch.Tensor, cannot be read by DLPack: Can't export tensors that require "
        "gradient, use tensor.detach() (lmkan_cupy.adapters.torch.lmkan takes it as it is)"
    ):
        lmkan_cupy.forward(torch.zeros((2, 4), requires_grad=True), tables)


def test_tensors_still_to_be_negated(tables: Any) -> None:
    """By DLPack they would come with the opposite sign, and results would go to another place."""
    torch = pytest.importorskip("torch")
    negated = torch.zeros(2, 4, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    with refused(
        "forward: x, a torch.Tensor, cannot be read by DLPack: its negative bit is set "
        "(lmkan_cupy.adapters.torch.lmkan takes it as it is)"
    ):
        lmkan_cupy.forward(negated, tables)


def test_bfloat16_in_cpu_memory(tables: Any) -> None:
    torch = pytest.importorskip("torch")
    with refused(
        "hessian_penalty: tables, a torch.Tensor, cannot be read by DLPack: Unsupported dtype in "
        "DLTensor. (lmkan_cupy.adapters.torch.lmkan takes it as it is)"
    ):
        lmkan_cupy.hessian_penalty(torch.zeros(tables.shape, dtype=torch.bfloat16))


def test_float8_has_no_adapter(tables: Any) -> None:
    torch = pytest.importorskip("torch")
    with refused(
        "forward: tables, a torch.Tensor, cannot be read by DLPack: Unsupported dtype in "
        "DLTensor. (its dtype is float8_e4m3fn)"
    ):
        lmkan_cupy.forward(
            np.zeros((2, 4), np.float32), torch.zeros(tables.shape, dtype=torch.float8_e4m3fn)
        )


def test_traced_arrays_are_told_where_to_go(tables: Any) -> None:
    jax = pytest.importorskip("jax")
    with refused("(lmkan_cupy.adapters.jax.lmkan takes it as it is)"):
        jax.jit(lambda x: lmkan_cupy.forward(x, tables))(np.zeros((2, 4), np.float32))


def test_memory_of_another_kind(tables: Any) -> None:
    metal = 8
    with refused("cannot be read by DLPack: no reader for device (8, 0)"):
        lmkan_cupy.forward(Foreign(np.zeros((2, 4), "float32"), (metal, 0)), tables)


def test_results_cannot_go_into_immutable_arrays(tables: Any) -> None:
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="forward: out must be writable, got a read-only array"):
        lmkan_cupy.forward(x, tables, out=to_jax(np.zeros((2, 3), np.float32)))
