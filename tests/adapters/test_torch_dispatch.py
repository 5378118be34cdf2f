"""Calls go around torch's dispatcher only where it has nothing to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import FLOAT32, SMALL, make_problem

import lmkan_cupy

torch = pytest.importorskip("torch")
forward_ad = pytest.importorskip("torch.autograd.forward_ad")
lmkan = pytest.importorskip("lmkan_cupy.adapters.torch").lmkan
TorchDispatchMode = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode
TorchFunctionMode = pytest.importorskip("torch.overrides").TorchFunctionMode
make_fx = pytest.importorskip("torch.fx.experimental.proxy_tensor").make_fx

pytestmark = pytest.mark.usefixtures("deterministic_torch")


@pytest.fixture
def x(rng: np.random.Generator) -> Any:
    return torch.from_numpy(make_problem(rng, SMALL, FLOAT32).x)


@pytest.fixture
def tables(rng: np.random.Generator) -> Any:
    return torch.from_numpy(make_problem(rng, SMALL, FLOAT32).tables)


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every call of `lmkan_cupy.forward` whether it comes from torch's dispatcher.

    The dispatcher has autograd's key behind it by then.
    """
    calls = []
    forward = lmkan_cupy.forward

    def recorded(*arguments: Any) -> Any:
        calls.append(torch._C._dispatch_tls_is_dispatch_key_excluded("AutogradFunctionality"))
        return forward(*arguments)

    monkeypatch.setattr(lmkan_cupy, "forward", recorded)
    return calls


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_is_passed_by(x: Any, tables: Any, dispatched: list[bool]) -> None:
    lmkan(x, tables)
    lmkan(x, tables.requires_grad_())
    with forward_ad.dual_level():
        lmkan(forward_ad.make_dual(x, x), tables)
    assert dispatched == [False] * 3
    torch.ops.lmkan_cupy.forward(x, tables)
    assert dispatched.pop()


def test_modes_see_the_operator(x: Any, tables: Any) -> None:
    seen = []

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    expected = lmkan(x, tables)
    with Mode():
        y = lmkan(x, tables)
    assert "lmkan_cupy.forward.default" in seen
    assert torch.equal(y, expected)


def test_function_modes_see_the_operator(x: Any, tables: Any) -> None:
    seen = []

    class Mode(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode():
        lmkan(x, tables)
    assert "lmkan_cupy.forward.default" in seen


def test_subclasses_and_traces_see_the_operator(x: Any, tables: Any) -> None:
    traced = make_fx(lambda *tensors: lmkan(*tensors))(x, tables)
    assert "lmkan_cupy.forward.default" in traced.code
    assert torch.equal(traced(x, tables), lmkan(x, tables))


class Labelled(torch.Tensor):  # type: ignore[misc]
    """A subclass that changes nothing; torch's own functions return it."""


@pytest.mark.parametrize("engine", [None, "torch"])
@pytest.mark.parametrize("which", ["x", "tables"])
def test_subclasses_come_back_as_such(x: Any, tables: Any, which: str, engine: str | None) -> None:
    expected = lmkan(x.requires_grad_(), tables, engine=engine)
    kinds = {"x": x, "tables": tables}
    kinds[which] = kinds[which].as_subclass(Labelled)
    y = lmkan(**kinds, engine=engine)
    assert type(y) is Labelled
    assert torch.equal(y.as_subclass(torch.Tensor), expected)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), x)[0])


def test_tensors_still_to_be_negated(x: Any, tables: Any) -> None:
    """Their memory holds the values with the opposite sign."""
    negated = torch._neg_view(-x)
    assert negated.is_neg()
    assert negated.is_contiguous()
    assert torch.equal(lmkan(negated, tables), lmkan(x, tables))


def test_inference_mode(x: Any, tables: Any) -> None:
    expected = lmkan(x, tables)
    with torch.inference_mode():
        for each in (x, x + 0):
            y = lmkan(each, tables.requires_grad_())
            assert y.is_inference()
            assert torch.equal(y, expected)
