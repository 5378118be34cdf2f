"""How autograd records an operator, and calls that go around torch's dispatcher.

A round trip through the dispatcher and back into Python takes longer than a small kernel. Most
calls need only autograd and the kernel, so they are made directly.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad


class Operator(NamedTuple):
    """What torch is told about an operator.

    ``like`` gives results of the right shapes and dtypes without values; ``saved``, ``vjp`` and
    ``jvp`` are its derivatives, see :func:`recorder`.
    """

    schema: str
    kernel: Callable[..., Any]
    like: Callable[..., Any]
    saved: Callable[..., Sequence[Tensor | None]]
    vjp: Callable[..., Any]
    jvp: Callable[..., Any]
    vmap: Callable[..., Any]


def recorder(
    name: str,
    *,
    saved: Callable[..., Sequence[Tensor | None]],
    vjp: Callable[..., Any],
    jvp: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a function that computes an operator and gives autograd its derivatives.

    Its arguments are a function that computes the operator, and then the operator's arguments.

    Parameters
    ----------
    name : str
        Name of the operator, for autograd's graph.
    saved : callable
        ``saved(ctx, arguments, output)`` returns the tensors that the derivatives need.
    vjp : callable
        ``vjp(ctx, kept, *cotangents)`` pulls cotangents of the results back to the arguments.
        ``kept`` are the saved tensors; here and below None stands for zeros. The first element of
        ``ctx.needs_input_grad`` belongs to the function that computes the operator.
    jvp : callable
        ``jvp(ctx, kept, *tangents)`` pushes tangents of the arguments forward to the results.
    """

    def forward(ctx: Any, compute: Callable[..., Any], *arguments: Any) -> Any:
        output = compute(*arguments)
        kept = saved(ctx, arguments, output)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)
        ctx.set_materialize_grads(False)
        return output

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        return None, *vjp(ctx, ctx.saved_tensors, *cotangents)

    def push(ctx: Any, compute: None, *tangents: Tensor | None) -> Any:
        # Torch has switched forward mode off, but an outer transform may be in forward mode, too.
        # What was saved still has the tangents of this one.
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(ctx, [*map(_primal, ctx.saved_tensors)], *tangents)

    return autograd_function(name, forward=forward, backward=backward, jvp=push)


def autograd_function(name: str, **methods: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls an ``autograd.Function`` with these static methods."""
    function: Any = type(
        f"lmkan_cupy_{name}",
        (torch.autograd.Function,),
        {method: staticmethod(each) for method, each in methods.items()},
    )
    # Not the `apply` of this class itself: it takes a microsecond to look for transforms of
    # torch.func, which are never there where this is called.
    recorded: Callable[..., Any] = super(torch.autograd.Function, function).apply
    return recorded


def _primal(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor without its tangent."""
    if tensor is None:
        return None
    primal: Tensor
    primal, _ = forward_ad.unpack_dual(tensor, level=0)  # type: ignore[no-untyped-call]
    return primal


def autograd_kernel(name: str, recorded: Callable[..., Any]) -> Callable[..., Any]:
    """Return what torch's dispatcher has to call for an operator to be differentiated.

    It serves one transform of torch.func at a time, as autograd does for torch's own operators.

    Parameters
    ----------
    name : str
        Name of the operator, which is registered in ``torch.ops.lmkan_cupy``.
    recorded : callable
        From :func:`recorder`.
    """
    overload = getattr(torch.ops.lmkan_cupy, name).default

    def kernel(keys: Any, *arguments: Any) -> Any:
        modes = torch.is_grad_enabled(), forward_ad._is_fwd_grad_enabled()

        def compute(*arguments: Any) -> Any:
            # An `autograd.Function` switches these modes off, but outer transforms need them.
            with (
                torch.set_grad_enabled(modes[0]),
                forward_ad._set_fwd_grad_enabled(modes[1]),
                torch._C._AutoDispatchBelowAutograd(),
            ):
                return overload.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

        with enable_single_level_autograd_function():
            return recorded(compute, *arguments)

    return kernel


def call(
    name: str, *, kernel: Callable[..., Any], recorded: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a function that calls an operator in the cheapest way that torch's state allows.

    Parameters
    ----------
    name : str
        Name of the operator, which is registered in ``torch.ops.lmkan_cupy``.
    kernel : callable
        Computes the operator on tensors with nothing to dispatch.
    recorded : callable
        From :func:`recorder`.
    """
    overload = getattr(torch.ops.lmkan_cupy, name).default

    def cheapest(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return overload(*arguments)
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if _nothing_to_dispatch(tensors):
            if _is_differentiated(tensors):
                return recorded(kernel, *arguments)
            return kernel(*arguments)
        if "torch.distributed.tensor" in sys.modules:  # else there is no DTensor
            _register_sharding_rules()
        return overload(*arguments)

    return cheapest


def is_eager(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all that torch may have to do with tensors is to record reverse mode.

    Then they are in one dtype, float32 or float64, and on one device; there are no transforms,
    modes or subclasses, no autocast and no forward mode, and nothing is compiled.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    kinds = {(each.dtype, each.device) for each in tensors}
    return (
        len(kinds) == 1
        and tensors[0].dtype in (torch.float32, torch.float64)
        and _nothing_to_dispatch(tensors)
    )


def _is_differentiated(tensors: Sequence[Tensor]) -> bool:
    """Tell whether autograd has anything to do, in reverse or in forward mode."""
    if forward_ad._current_level >= 0:  # any of the tensors may have a tangent
        return True
    return torch.is_grad_enabled() and any([each.requires_grad for each in tensors])


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
    usual, keys = _usual_keys(device), torch._C._dispatch_keys
    return all([keys(each).raw_repr() in usual for each in tensors])


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
