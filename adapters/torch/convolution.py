"""``LMKANConv2d``, in place of ``nn.Conv2d``."""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from . import functional
from .functional import Engine
from .layers import Layer, Residual, as_leaf


class LMKANConv2d(Layer):
    """An lmKAN layer applied to every window of an image, ``[N, C, H, W] -> [N, O, H', W']``.

    It equals :class:`LMKANLinear` on the columns of ``nn.functional.unfold``. Windows are copied
    into one array of ``N H' W'`` samples with ``C kh kw`` features, unless a window is one pixel.

    Parameters
    ----------
    in_channels, out_channels : int
        Sizes C and O.
    kernel_size, stride, padding, dilation : int or (int, int)
        As in ``nn.Conv2d``; ``padding`` is with zeros, and may be "same" or "valid".
    groups : int
        Splits the channels of input and output into so many groups with tables of their own.
    bias : bool
        Whether the residual branch has a bias; the tables hold constants in any case.
    num_grids, dimension, residual, tables_weight, init_scale, engine, device, dtype
        As in :class:`LMKANLinear`; the residual branch is a convolution.

    Attributes
    ----------
    tables : Parameter [P, S, ..., S, O], with groups [groups, P, S, ..., S, O / groups]
        P = ceil(C / groups kh kw / d), features in the order of ``unfold``: channel, row, column.
    weight, bias : Parameter [O, C / groups, kh, kw] and [O], or None
        The residual branch.

    Raises
    ------
    TypeError, ValueError
        If a size, ``padding``, ``residual`` or ``engine`` is out of range, or ``groups`` does not
        divide C and O.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        num_grids: int = 10,
        dimension: int = 2,
        residual: Residual = None,
        tables_weight: float | None = None,
        init_scale: float = 0.1,
        engine: Engine = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._check_groups(in_channels, out_channels, groups)
        window = _pair("kernel_size", kernel_size, at_least=1)
        super().__init__(
            in_channels // groups * math.prod(window),
            out_channels // groups,
            num_grids,
            groups=() if groups == 1 else (groups,),
            kernel_size=window,
            dimension=dimension,
            residual=residual,
            bias=bias,
            tables_weight=tables_weight,
            init_scale=init_scale,
            engine=engine,
            device=device,
            dtype=dtype,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = window
        self.stride = _pair("stride", stride, at_least=1)
        self.dilation = _pair("dilation", dilation, at_least=1)
        self.groups = groups
        self.padding = padding
        self._margins = self._margins_of(padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H', W']`` for ``x [N, C, H, W]``; both may lack the axis N."""
        if isinstance(x, Proxy):
            return as_leaf(self, x)
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"LMKANConv2d: x must have shape [N, {self.in_channels}, H, W] or "
                f"[{self.in_channels}, H, W], got x.shape={tuple(x.shape)}"
            )
        if any(self._margins):
            x = nn.functional.pad(x, self._margins)
        images = x if x.ndim == 4 else x[None]
        samples = self._windows(images)
        if self.groups == 1:
            y = functional.lmkan(samples, self.tables, engine=self.engine)
        else:
            parts = zip(samples.chunk(self.groups, -1), self.tables, strict=True)
            y = torch.cat([functional.lmkan(*part, engine=self.engine) for part in parts], -1)
        convolve = partial(
            nn.functional.conv2d, stride=self.stride, dilation=self.dilation, groups=self.groups
        )
        y = self._with_branch(y.movedim(-1, 1), images, convolve)
        return y if x.ndim == 4 else y[0]

    def _windows(self, images: Tensor) -> Tensor:
        """Return the windows [N, H', W', C kh kw], a view if a window is one pixel."""
        for axis, size, step, gap in zip(
            (2, 3), self.kernel_size, self.stride, self.dilation, strict=True
        ):
            reach = gap * (size - 1) + 1
            if images.shape[axis] < reach:
                raise ValueError(
                    f"LMKANConv2d: the kernel reaches over {reach} pixels of axis {axis - 4}, "
                    f"where x has {images.shape[axis]} with its padding"
                )
            images = images.unfold(axis, reach, step)[..., ::gap]
        return images.permute(0, 2, 3, 1, 4, 5).flatten(3)

    def _margins_of(self, padding: Any) -> tuple[int, int, int, int]:
        """Return the numbers of pixels added left, right, above and below."""
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            above, left = _pair("padding", padding, at_least=0)
            return (left, left, above, above)
        if self.stride != (1, 1):
            raise ValueError(
                f"LMKANConv2d: padding='same' needs stride=1, got stride={self.stride}"
            )
        rows, columns = (
            gap * (size - 1) for size, gap in zip(self.kernel_size, self.dilation, strict=True)
        )
        return (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)

    @staticmethod
    def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels % groups:
                raise ValueError(
                    f"LMKANConv2d: groups must divide {name}={channels}, got groups={groups}"
                )

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, {super().extra_repr()}"
        )


def _pair(name: str, value: Any, *, at_least: int) -> tuple[int, int]:
    """Return two numbers, one per axis, from one for both or a pair."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(each, int) and each >= at_least for each in pair):
        raise ValueError(
            f"LMKANConv2d: {name} must be a whole number of at least {at_least}, or two, "
            f"got {value!r}"
        )
    return pair[0], pair[1]
