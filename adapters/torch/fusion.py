"""``fuse``: a chain of layers as one module for inference, evaluated in one call."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import operators, plain_torch
from .functional import HALF, to_onnx
from .layers import LMKANBlock, LMKANLinear

#: Modules that do nothing in evaluation.
_NOTHING = (nn.Identity, nn.Dropout)


class FusedNetwork(nn.Module):
    """A chain of layers for inference; made by :func:`fuse`.

    Its forward takes ``x [..., I]`` to ``[..., O]`` and can be differentiated once in x.

    Attributes
    ----------
    arrays : ParameterList
        Of each layer its tables [P, S, S, O], or its weight [O, I] and bias [O].
    bounds : list of float
        Where the inputs of each layer are cut; infinite where they are not.
    shift, scale : Tensor [I] or None
        The inputs enter the first layer as ``(x - shift) * scale``.
    """

    def __init__(
        self,
        arrays: list[Tensor],
        bounds: list[float],
        shift: Tensor | None,
        scale: Tensor | None,
    ) -> None:
        super().__init__()
        self.arrays = nn.ParameterList(nn.Parameter(each, requires_grad=False) for each in arrays)
        self.bounds = bounds
        if shift is None or scale is None:
            self.shift = self.scale = None  # not as buffers: torch.export takes none that are None
        else:
            self.register_buffer("shift", shift)
            self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``y [..., O]`` for ``x [..., I]``, in the dtype of x."""
        if x.dtype in HALF:
            return self.forward(x.float()).to(x.dtype)
        evaluate = _by_layers if to_onnx() else operators.network
        return evaluate(x, [*self.arrays], self.bounds, self.shift, self.scale)

    def extra_repr(self) -> str:
        """Describe the network in ``print(module)``."""
        return f"bounds={self.bounds}"


def _by_layers(
    x: Tensor,
    arrays: list[Tensor],
    bounds: list[float],
    shift: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """Return the network's output by torch's own operations."""
    h = x
    if shift is not None and scale is not None:
        h = (h - shift) * scale
    for layer, bound in zip(operators.split(arrays), bounds, strict=True):
        if isinstance(layer, tuple):
            h = nn.functional.linear(h, *layer)
        else:
            h = plain_torch.forward(h if math.isinf(bound) else h.clamp(-bound, bound), layer)
    return h


@torch.no_grad()
def fuse(model: nn.Module, *, dtype: torch.dtype | None = None) -> FusedNetwork:
    """Return a chain of layers as one module for inference.

    It computes what ``model.eval()`` does, up to rounding, and does not change with it later.
    Branches and normalisations are folded into the tables and weights before them.

    Parameters
    ----------
    model : Module
        An ``nn.Sequential``, nested or not, of :class:`LMKANBlock`, :class:`LMKANLinear`,
        ``nn.Linear``, ``nn.BatchNorm1d``, ``nn.Hardtanh`` in front of an :class:`LMKANLinear`,
        ``nn.Identity`` and ``nn.Dropout``; or one of them.
    dtype : dtype, optional
        Of the tables: float16, or bfloat16 on a GPU, takes half the memory. By default that of the
        model.

    Returns
    -------
    FusedNetwork

    Raises
    ------
    TypeError, ValueError
        If the model holds anything else; the message names it.
    """
    if dtype not in (None, *HALF, torch.float32, torch.float64):
        raise TypeError(f"fuse: dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    chain = _Chain(dtype)
    for name, part in _parts("", model):
        chain.append(name or "the model", part)
    return chain.network().eval()


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if _has_hooks(module):
        raise TypeError(f"fuse: {name or 'the model'} has hooks, which a fused network cannot call")
    if type(module) in (nn.Sequential, LMKANBlock):
        for child_name, child in module.named_children():
            yield from _parts(f"{name}.{child_name}" if name else child_name, child)
    else:
        yield name, module


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Chain:
    """The layers so far, and what the next one has to take in."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._layers: list[tuple[Tensor, ...]] = []
        self._bounds: list[float] = []
        self._bound = math.inf  # of a Hardtanh that waits for its layer
        self._affine: tuple[Tensor, Tensor] | None = None  # in front of the first layer, float64

    def append(self, name: str, part: nn.Module) -> None:
        kind = type(part)
        if kind in _NOTHING:
            return
        if kind is nn.Hardtanh:
            self._cut(name, part)
        elif kind is LMKANLinear:
            self._append_tables(part)
        elif kind in (nn.Linear, nn.BatchNorm1d):
            if self._bound != math.inf:
                raise TypeError(
                    f"fuse: {name} is a {kind.__name__} behind a Hardtanh; only the inputs of an "
                    "LMKANLinear can be cut"
                )
            if kind is nn.Linear:
                self._append_linear(part)
            else:
                self._fold(name, part)
        else:
            raise TypeError(
                f"fuse: {name} is a {kind.__name__}; a network is fused from LMKANBlock, "
                "LMKANLinear, Linear, BatchNorm1d, Hardtanh, Identity and Dropout"
            )

    def network(self) -> FusedNetwork:
        if not self._layers:
            raise ValueError("fuse: the model must hold at least one LMKANLinear or Linear")
        if self._bound != math.inf:
            raise TypeError("fuse: the model ends with a Hardtanh, which has no layer to cut for")
        dtype = self._layers[0][0].dtype
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        arrays = [
            each if each.ndim == 4 else each.to(compute) for layer in self._layers for each in layer
        ]
        shift = scale = None
        if self._affine is not None:
            factor, constant = self._affine
            shift, scale = (-constant / factor).to(compute), factor.to(compute)
        return FusedNetwork(arrays, self._bounds, shift, scale)

    def _cut(self, name: str, part: Any) -> None:
        if not part.max_val == -part.min_val > 0:
            raise ValueError(
                f"fuse: {name} must cut at +-bound, got {part.min_val} and {part.max_val}"
            )
        self._bound = min(self._bound, part.max_val)

    def _append_tables(self, part: Any) -> None:
        folded = copy.deepcopy(part).fold_()
        self._layers.append((folded.tables.detach().to(self._dtype or folded.tables.dtype),))
        self._bounds.append(self._bound)
        self._bound = math.inf

    def _append_linear(self, part: Any) -> None:
        weight = part.weight.detach()
        bias = weight.new_zeros(len(weight)) if part.bias is None else part.bias.detach()
        self._layers.append((weight.clone(), bias.clone()))
        self._bounds.append(math.inf)

    def _fold(self, name: str, norm: Any) -> None:
        """Take in a normalisation by its statistics, ``h -> factor h + constant``."""
        if norm.running_mean is None:
            raise TypeError(f"fuse: {name} has no running statistics, so it changes with its batch")
        factor = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            factor = factor * norm.weight.double()
        constant = -norm.running_mean.double() * factor
        if norm.bias is not None:
            constant = constant + norm.bias.double()
        if not self._layers:
            if (factor == 0).any():
                raise ValueError(f"fuse: {name} must not have weights of 0 in front of all layers")
            if self._affine is not None:
                factor, constant = factor * self._affine[0], factor * self._affine[1] + constant
            self._affine = factor, constant
            return
        *weights, last = self._layers[-1]
        # A constant is added to a bias, or to the tables, where each pair takes its part of it.
        share = constant if weights else constant / len(last)
        folded = [(each.double() * factor[:, None]).to(each.dtype) for each in weights]
        self._layers[-1] = (*folded, (last.double() * factor + share).to(last.dtype))
