"""Calls of an operator that go around torch's dispatcher where it has nothing to do.

A round trip through the dispatcher and back into Python takes longer than a small kernel. Most
calls need only autograd and the kernel, so they are made directly.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def call(
    name: str,
    *,
    kernel: Callable[..., Any],
    vjp: Callable[..., Any],
    saved: Callable[..., None],
    vmap: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a function that calls an operator in the cheapest way that torch's state allows.

    Parameters
    ----------
    name : str
        Name of the operator, which is registered in ``torch.ops.lmkan_cupy``.
    kernel, vjp, saved, vmap : callable
        What was registered for it: the functions that compute its value and its derivative, save
        tensors for the latter, and evaluate it under vmap.
    """
    overload = getattr(torch.ops.lmkan_cupy, name).default

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = kernel(*arguments)
        saved(ctx, arguments, output)
        return output

    # With `setup_context`, which torch.func needs, each call would look at the signature.
    recorded = _function(name, forward=forward, backward=vjp)
    transformed = _function(name, forward=overload, setup_context=saved, backward=vjp, vmap=vmap)

    def cheapest(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return overload(*arguments)
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if _nothing_to_dispatch(tensors):
            if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
                return recorded.apply(*arguments)
            return kernel(*arguments)
        if "torch.distributed.tensor" in sys.modules:  # else there is no DTensor
            _register_sharding_rules()
        if torch._C._are_functorch_transforms_active():
            # torch.func differentiates an `autograd.Function`, but no operator registered from
            # Python. Inside `torch.compile` neither works: there it needs `engine="torch"`.
            return transformed.apply(*arguments)
        return overload(*arguments)

    return cheapest


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    """Return an ``autograd.Function`` with these methods."""
    static = {method: staticmethod(each) for method, each in methods.items()}
    return type(f"lmkan_cupy_{name}", (torch.autograd.Function,), static)


@cache
def _register_sharding_rules() -> None:
    import_module(f"{__package__}.sharding_rules")


def _nothing_to_dispatch(tensors: Sequence[Tensor]) -> bool:
    """Tell whether the dispatcher would only go to autograd and from there to the engine."""
    device = tensors[0].device
    if (
        device.type not in ("cpu", "cuda")
        or _state() not in _USUAL_STATES
        or torch.overrides.has_torch_function(tensors)  # of a subclass, or of a mode
    ):
        return False
    usual = _usual_keys(device)
    return all(torch._C._dispatch_keys(each).raw_repr() in usual for each in tensors)


def _state() -> tuple[int, int]:
    """Return the thread's dispatch state, which modes, transforms, autocast and tracing change."""
    included = torch._C._dispatch_tls_local_include_set()
    return included.raw_repr(), torch._C._dispatch_tls_local_exclude_set().raw_repr()


def _in_new_thread(function: Callable[[], Any]) -> tuple[Any, Any]:
    """Return a function's results in a thread with nothing changed, and in inference mode."""
    with ThreadPoolExecutor(1) as thread:
        usual, inference = (
            thread.submit(each).result() for each in (function, torch.inference_mode()(function))
        )
    return usual, inference


_USUAL_STATES = _in_new_thread(_state)


@cache
def _usual_keys(device: torch.device) -> tuple[int, int]:
    """Return the dispatch keys of plain tensors on a device.

    Tensors with a mapped axis, tensors still to be negated, sparse ones, ... have other keys.
    """
    return _in_new_thread(lambda: torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr())
