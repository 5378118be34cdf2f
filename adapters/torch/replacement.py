"""From a network of linear layers to one of lmKAN layers that computes the same function."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .layers import LMKANLinear, Residual, is_altered

_log = logging.getLogger("lmkan_cupy")


def replace_linear(
    module: nn.Module,
    *,
    num_grids: int = 10,
    filter: Callable[[str, nn.Linear], bool] | None = None,
) -> nn.Module:
    """Replace ``nn.Linear`` layers, in place, by lmKAN layers that compute the same function.

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
        and layers with hooks.

    Returns
    -------
    Module
        ``module``, or the new layer if ``module`` itself is an ``nn.Linear``. A layer used in
        several places is replaced by one new layer in all of them.

    Raises
    ------
    ValueError
        If ``num_grids`` is out of range.
    TypeError
        If a layer is neither float32 nor float64, or on a device without an engine.
    """
    if isinstance(module, nn.Linear):
        if not _is_replaced("", module, filter):
            return module
        return _lmkan_of("", module, num_grids, "linear")
    new: list[tuple[nn.Module, str, nn.Module]] = []  # all made before any is put in its place
    for (name, linear), places in _places(module).items():
        if not _is_replaced(name, linear, filter):
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


def _is_replaced(
    name: str, linear: nn.Linear, filter: Callable[[str, nn.Linear], bool] | None
) -> bool:
    """Tell whether to replace a layer, and log why not."""
    if type(linear) is not nn.Linear:
        reason = f"it is a {type(linear).__name__}, which may be used in other ways"
    elif filter is not None and not filter(name, linear):
        _log.info("replace_linear: %s stays: the filter leaves it out", name or "module")
        return False
    elif is_altered(linear):
        reason = "it has hooks or a forward of its own"
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


def _places(module: nn.Module) -> dict[tuple[str, nn.Linear], list[tuple[nn.Module, str]]]:
    """Return the places (parent and key) of every linear layer, by its first name and itself."""
    names: dict[nn.Module, str] = {}
    places: dict[Any, Any] = {}
    for path, parent in module.named_modules():
        for key, child in parent._modules.items():
            if isinstance(child, nn.Linear):
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
def _lmkan_of(name: str, linear: nn.Linear, num_grids: int, residual: Residual) -> LMKANLinear:
    """Return an lmKAN layer for a linear layer, with the activation before it in ``residual``."""
    if linear.weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"replace_linear: {name or 'module'} must be float32 or float64, got "
            f"{linear.weight.dtype}: use module.float(), and autocast for half precision"
        )
    layer = LMKANLinear(
        linear.in_features,
        linear.out_features,
        num_grids,
        residual=residual,
        device="meta",  # draws no random numbers
        dtype=linear.weight.dtype,
    )
    layer.to_empty(device=linear.weight.device)
    nn.init.zeros_(layer.tables)
    branch = {"weight": linear.weight, "bias": linear.bias}
    for part, value in branch.items():
        parameter = layer.get_parameter(part)
        parameter.zero_() if value is None else parameter.copy_(value)
    layer.tables.requires_grad_(linear.weight.requires_grad)
    absorbed = ", with the ReLU before it" if residual == "relu" else ""
    _log.info("replace_linear: %s becomes an lmKAN layer%s", name or "module", absorbed)
    return layer.fold_().train(linear.training)
