"""From a network of linear layers to one of lmKAN layers that computes the same function."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .layers import LMKANLinear, Residual


def replace_linear(
    module: nn.Module,
    *,
    num_grids: int = 10,
    filter: Callable[[str, nn.Linear], bool] | None = None,
) -> nn.Module:
    """Replace ``nn.Linear`` layers, in place, by lmKAN layers that compute the same function.

    Tables on any grid can hold a linear function, so the network's output changes only by rounding
    until it is trained further. In an ``nn.Sequential`` the tables also absorb a ReLU directly
    before a replaced layer, if ``num_grids`` is even, and an ``nn.Identity`` takes its place.

    Parameters
    ----------
    module : Module
    num_grids : int
        Grid intervals per axis, G >= 3.
    filter : callable, optional
        ``filter(name, layer)`` tells whether to replace a layer; None replaces all. Subclasses of
        ``nn.Linear`` are never replaced, since other modules may use more than their ``forward``.

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
    if type(module) is nn.Linear:
        chosen = filter is None or filter("", module)
        return _lmkan_of("", module, num_grids, "linear") if chosen else module
    for (name, linear), places in _places(module).items():
        if filter is not None and not filter(name, linear):
            continue
        activations = [_relu_before(*place) for place in places]
        absorbs = num_grids % 2 == 0 and all(activations)
        layer = _lmkan_of(name, linear, num_grids, "relu" if absorbs else "linear")
        for (parent, key), activation in zip(places, activations, strict=True):
            setattr(parent, key, layer)
            if absorbs:
                setattr(parent, activation, nn.Identity())
    return module


def _places(module: nn.Module) -> dict[tuple[str, nn.Linear], list[tuple[nn.Module, str]]]:
    """Return the places (parent and key) of every linear layer, by its first name and itself."""
    names: dict[nn.Module, str] = {}
    places: dict[Any, Any] = {}
    for path, parent in module.named_modules():
        for key, child in parent._modules.items():
            if type(child) is nn.Linear:
                name = names.setdefault(child, f"{path}.{key}" if path else key)
                places.setdefault((name, child), []).append((parent, key))
    return places


def _relu_before(parent: nn.Module, key: str) -> str:
    """Return the key of the ReLU directly before a place in an ``nn.Sequential``, else ""."""
    keys = list(parent._modules)
    position = keys.index(key)
    if not isinstance(parent, nn.Sequential) or position == 0:
        return ""
    before = keys[position - 1]
    return before if type(parent._modules[before]) is nn.ReLU else ""


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
    return layer.fold_().train(linear.training)
