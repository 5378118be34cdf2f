"""From a network of linear layers to one of lmKAN layers that computes the same function."""

import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .layers import LMKANLinear, Residual, is_altered

_log = logging.getLogger("lmkan_cupy")


def replace_linear(
    module: nn.Module,
    *,
    num_grids: int = 10,
    filter: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """Replace ``nn.Linear`` layers, in place, by lmKAN layers that compute the same function.

    Also replaced is ``Conv1D`` of Hugging Face's ``transformers``, a linear layer with transposed
    weight.

    Tables on any grid can hold a linear function, so the network's output changes only by rounding
    until it is trained further. In an ``nn.Sequential`` the tables also absorb a ReLU directly
    before a replaced layer, if ``num_grids`` is even, and an ``nn.Identity`` takes its place. The
    sequence has to be called as a whole: if its children are called one by one, leave the layer
    out. A subclass with a ``forward`` of its own keeps its ReLUs.

    The logger ``lmkan_cupy`` tells what was replaced (info), and what was not, and why (warning).

    Parameters
    ----------
    module : Module
    num_grids : int
        Grid intervals per axis, G >= 3.
    filter : callable, optional
        ``filter(name, layer)`` tells whether to replace a layer; None replaces all. Never replaced
        are subclasses of ``nn.Linear``, since other modules may use more than their ``forward``,
        layers with hooks or parametrisations, and layers that share a parameter with another
        module of ``module``.

    Returns
    -------
    Module
        ``module``, or the new layer if ``module`` itself is a linear layer. A layer used in
        several places is replaced by one new layer in all of them.

    Raises
    ------
    ValueError
        If ``num_grids`` is out of range.
    TypeError
        If a layer is neither float32 nor float64, or on a device without an engine.
    """
    if _is_linear(module):
        if not _is_replaced("", module, filter, set()):
            return module
        return _lmkan_of("", module, num_grids, "linear")
    shared = _shared_parameters(module)
    new: list[tuple[nn.Module, str, nn.Module]] = []  # all made before any is put in its place
    for (name, linear), places in _places(module).items():
        if not _is_replaced(name, linear, filter, shared):
            continue
        activations = [_relu_before(*place) for place in places]
        absorbs = num_grids % 2 == 0 and all(activations)
        layer = _lmkan_of(name, linear, num_grids, "relu" if absorbs else "linear")
        new += [(parent, key, layer) for parent, key in places]
        if absorbs:
            parents = (parent for parent, _ in places)
            new += [(*place, nn.Identity()) for place in zip(parents, activations, strict=True)]
    for parent, key, each in new:
        setattr(parent, key, each)
    _leave_fast_paths(module)
    return module


def _conv1d() -> type[nn.Module] | None:
    """Return Hugging Face's linear layer, whose weight is [I, O], if it is loaded."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _conv1d() or nn.Linear))


def _shared_parameters(module: nn.Module) -> set[Tensor]:
    """Return the parameters that several modules have, as tied embeddings."""
    counts = Counter(each for part in module.modules() for each in part._parameters.values())
    return {each for each, count in counts.items() if each is not None and count > 1}


def _is_replaced(
    name: str,
    linear: nn.Module,
    filter: Callable[[str, nn.Module], bool] | None,
    shared: set[Tensor],
) -> bool:
    """Tell whether to replace a layer, and log why not."""
    parameters = [*linear.parameters()]
    if parametrize.is_parametrized(linear):
        reason = "it has parametrisations: torch.nn.utils.parametrize.remove_parametrizations first"
    elif type(linear) not in (nn.Linear, _conv1d()):
        reason = f"it is a {type(linear).__name__}, which may be used in other ways"
    elif filter is not None and not filter(name, linear):
        _log.info("replace_linear: %s stays: the filter leaves it out", name or "module")
        return False
    elif is_altered(linear):
        reason = "it has hooks or a forward of its own"
    elif any(each._backward_hooks or each._post_accumulate_grad_hooks for each in parameters):
        reason = "a parameter of it has hooks"
    elif not shared.isdisjoint(parameters):
        reason = "it shares a parameter with another module"
    else:
        return True
    _log.warning("replace_linear: %s stays: %s", name or "module", reason)
    return False


def _leave_fast_paths(module: nn.Module) -> None:
    """Have torch's transformers call all their layers, also in evaluation.

    Their fast paths read the weights of linear layers instead.
    """
    for each in module.modules():
        if not any(isinstance(layer, LMKANLinear) for layer in each.modules()):
            continue
        if isinstance(each, nn.TransformerEncoderLayer):
            each.activation_relu_or_gelu = 0  # torch then takes it for neither, and goes slowly
        elif isinstance(each, nn.TransformerEncoder):
            each.use_nested_tensor = False


def _places(module: nn.Module) -> dict[tuple[str, nn.Module], list[tuple[nn.Module, str]]]:
    """Return the places (parent and key) of every linear layer, by its first name and itself."""
    names: dict[nn.Module, str] = {}
    places: dict[Any, Any] = {}
    for path, parent in module.named_modules():
        for key, child in parent._modules.items():
            if child is not None and _is_linear(child):
                name = names.setdefault(child, f"{path}.{key}" if path else key)
                places.setdefault((name, child), []).append((parent, key))
    return places


def _relu_before(parent: nn.Module, key: str) -> str:
    """Return the key of the ReLU that runs directly before a place, "" where none is known to."""
    keys = list(parent._modules)
    position = keys.index(key)
    runs_in_order = type(parent).forward is nn.Sequential.forward and "forward" not in vars(parent)
    if not runs_in_order or position == 0:
        return ""
    before = keys[position - 1]
    activation = parent._modules[before]
    return before if type(activation) is nn.ReLU and not is_altered(activation) else ""


@torch.no_grad()
def _lmkan_of(name: str, linear: nn.Module, num_grids: int, residual: Residual) -> LMKANLinear:
    """Return an lmKAN layer for a linear layer, with the activation before it in ``residual``."""
    given, bias = linear.get_parameter("weight"), linear._parameters["bias"]
    weight = given if isinstance(linear, nn.Linear) else given.T
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"replace_linear: {name or 'module'} must be float32 or float64, got "
            f"{weight.dtype}: use module.float(), and autocast for half precision"
        )
    out_features, in_features = weight.shape
    layer = LMKANLinear(
        in_features,
        out_features,
        num_grids,
        residual=residual,
        bias=bias is not None,
        device="meta",  # draws no random numbers
        dtype=weight.dtype,
    )
    layer.to_empty(device=weight.device)
    nn.init.zeros_(layer.tables)
    layer.get_parameter("weight").copy_(weight)
    if bias is not None:
        layer.get_parameter("bias").copy_(bias)
    layer.tables.requires_grad_(given.requires_grad)
    absorbed = ", with the ReLU before it" if residual == "relu" else ""
    _log.info("replace_linear: %s becomes an lmKAN layer%s", name or "module", absorbed)
    return layer.fold_().train(linear.training)
