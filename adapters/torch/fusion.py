"""``fuse``: a chain of layers as one module for inference, evaluated in one call."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from . import operators, plain_torch
from .chains import NOTHING, Selection, chain_parts
from .functional import HALF, as_engine_takes, to_onnx
from .layers import LMKANLinear, as_leaf


class FusedNetwork(nn.Module):
    """A chain of layers for inference; made by :func:`fuse`.

    Its forward takes ``x [..., I]`` to ``[..., O]`` and can be differentiated once in x, in reverse
    mode.

    Attributes
    ----------
    in_features : int
        Size I.
    arrays : ParameterList
        Of each layer its tables [P, S, ..., S, O], or its weight [O, I] and bias [O].
    bounds : list of float
        Where the inputs of each layer are cut; infinite where they are not.
    shift, scale : Tensor [I] or None
        The inputs enter the first layer as ``(x - shift) * scale``.
    selection : Selection or None
        Which inputs these are, where a pruned model has I of more.
    """

    def __init__(
        self,
        in_features: int,
        arrays: list[Tensor],
        bounds: list[float],
        shift: Tensor | None,
        scale: Tensor | None,
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.selection = selection
        self.arrays = nn.ParameterList(nn.Parameter(each, requires_grad=False) for each in arrays)
        self.bounds = bounds
        if shift is None or scale is None:
            self.shift = self.scale = None  # not as buffers: torch.export takes none that are None
        else:
            self.register_buffer("shift", shift)
            self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``y [..., O]`` for ``x [..., I]``, in the dtype of x, under autocast too.

        x is float32, or float64 where the tables are; float16 and bfloat16 are widened to float32.
        """
        if isinstance(x, Proxy):
            return as_leaf(self, x)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"FusedNetwork: x must have {self.in_features} features on its last axis, "
                f"got x.shape={tuple(x.shape)}"
            )
        if x.device != self.arrays[0].device:
            raise TypeError(
                f"FusedNetwork: x must be on {self.arrays[0].device} as the network is, "
                f"got a tensor on {x.device}"
            )
        if x.dtype in HALF:
            return self.forward(x.float()).to(x.dtype)
        if self.selection is not None:
            x = self.selection(x)
        if to_onnx():
            return _by_layers(x, [*self.arrays], self.bounds, self.shift, self.scale)
        arrays = [*map(as_engine_takes, self.arrays)]
        return operators.network(x, arrays, self.bounds, self.shift, self.scale)

    def extra_repr(self) -> str:
        """Describe the network in ``print(module)``."""
        return f"in_features={self.in_features}, bounds={self.bounds}"


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
            cut = h if math.isinf(bound) else h.clamp(-bound, bound)
            h = plain_torch.forward_for_onnx(cut, layer)
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
        ``nn.Identity`` and ``nn.Dropout``, behind the selection that :func:`prune_` may have put in
        front; or one of them.
    dtype : dtype, optional
        Of the tables; by default that of the model. float16 takes half the memory, and so does
        bfloat16 on a GPU; on the CPU each call widens it to float32. float64 is for x in float64;
        with all others x and the rest of the network are float32.

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
    for path, part in chain_parts("fuse", model):
        chain.append(path or "the model", part)
    return chain.network().eval()


class _Chain:
    """The layers so far, and what the next one has to take in."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._features: list[int] = []  # before the first layer and behind each
        self._layers: list[tuple[Tensor, ...]] = []  # half ones widened, to be rounded once
        self._dtypes: list[torch.dtype] = []  # that the layers get in the end
        self._bounds: list[float] = []
        self._bound = math.inf  # of a Hardtanh that waits for its layer
        self._affine: tuple[Tensor, Tensor] | None = None  # in front of the first layer, float64
        self._selection: Selection | None = None  # in front of all

    def append(self, name: str, part: Any) -> None:
        kind = type(part)
        if kind in NOTHING:
            return
        if kind is Selection:
            self._select(name, part)
            return
        if kind is nn.Hardtanh:
            self._cut(name, part)
            return
        if kind is not LMKANLinear and self._bound != math.inf:
            raise TypeError(
                f"fuse: {name} is a {kind.__name__} behind a Hardtanh; only the inputs of an "
                "LMKANLinear can be cut"
            )
        if kind is nn.BatchNorm1d:
            self._check_features(name, part.num_features)
            self._fold(name, part)
        else:
            self._check_features(name, part.in_features)
            if getattr(part, "residual", None) == "relu_last":
                raise TypeError(
                    f"fuse: {name} has residual='relu_last', which tables cannot hold: train it "
                    "with residual='relu' or 'linear'"
                )
            self._append_layer(part)

    def network(self) -> FusedNetwork:
        if not self._layers:
            raise ValueError("fuse: the model must hold at least one LMKANLinear or Linear")
        if self._bound != math.inf:
            raise TypeError("fuse: the model ends with a Hardtanh, which has no layer to cut for")
        compute = torch.float64 if torch.float64 in self._dtypes else torch.float32
        arrays = [
            each.to(dtype if each.ndim > 2 else compute)
            for layer, dtype in zip(self._layers, self._dtypes, strict=True)
            for each in layer
        ]
        shift = scale = None
        if self._affine is not None:
            factor, constant = self._affine
            shift, scale = (-constant / factor).to(compute), factor.to(compute)
        first = self._selection
        in_features = self._features[0] if first is None else first.in_features
        return FusedNetwork(in_features, arrays, self._bounds, shift, scale, copy.deepcopy(first))

    def _check_features(self, name: str, number: int) -> None:
        if not self._features:
            self._features.append(number)
        if number != self._features[-1]:
            raise ValueError(
                f"fuse: {name} must take {self._features[-1]} features, as what is before it "
                f"gives, got {number}"
            )

    def _select(self, name: str, part: Selection) -> None:
        if self._features or self._bound != math.inf:
            raise TypeError(f"fuse: {name} is a Selection, which must be in front of everything")
        self._selection = part
        self._features.append(len(part.columns))

    def _cut(self, name: str, part: Any) -> None:
        if not part.max_val == -part.min_val > 0:
            raise ValueError(
                f"fuse: {name} must cut at +-bound, got {part.min_val} and {part.max_val}"
            )
        self._bound = min(self._bound, part.max_val)

    def _append_layer(self, part: Any) -> None:
        dtype = next(part.parameters()).dtype
        wide = copy.deepcopy(part).to(torch.promote_types(dtype, torch.float32))
        arrays: tuple[Tensor, ...]
        if type(part) is LMKANLinear:
            arrays = (wide.fold_().tables,)
        else:
            weight = wide.weight
            arrays = weight, weight.new_zeros(len(weight)) if wide.bias is None else wide.bias
        self._layers.append(tuple(each.detach() for each in arrays))
        self._dtypes.append(self._dtype or dtype)
        self._bounds.append(self._bound)
        self._bound = math.inf
        self._features.append(part.out_features)

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
