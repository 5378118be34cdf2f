"""``LMKANConv2d``, in place of ``nn.Conv2d``."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lmkan_cupy.array_checks import check_size
from lmkan_cupy.windows import Window, check_groups, check_pair, check_reach

from . import functional
from .functional import Engine, to_onnx
from .layers import Layer, Residual, as_leaf


class LMKANConv2d(Layer):
    """An lmKAN layer applied to every window of an image, ``[N, C, H, W] -> [N, O, H', W']``.

    It equals :class:`LMKANLinear` on the columns of ``nn.functional.unfold``. On the CPU engine it
    reads the windows from the images. Elsewhere they are copied into one array of ``N H' W'``
    samples with ``C kh kw`` features, unless a window is one pixel.

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
        groups = check_size("LMKANConv2d", "groups", groups)
        check_groups("LMKANConv2d", groups, in_channels, out_channels)
        window = check_pair("LMKANConv2d", "kernel_size", kernel_size, at_least=1)
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
        self.stride = check_pair("LMKANConv2d", "stride", stride, at_least=1)
        self.dilation = check_pair("LMKANConv2d", "dilation", dilation, at_least=1)
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
        images = x if x.ndim == 4 else x[None]
        window = Window(self.kernel_size, self.stride, self._margins, self.dilation)
        check_reach("LMKANConv2d", window, *images.shape[2:])
        if images.device.type in ("cpu", "meta") and self.engine is None and not to_onnx():
            y = functional.convolve(images, self.tables, window, self.groups)
        else:
            y = self._evaluate_windows(images)
        y = self._with_branch(y, images, self._convolve)
        return y if x.ndim == 4 else y[0]

    def _evaluate_windows(self, images: Tensor) -> Tensor:
        """Return the layer of an array of all windows."""
        samples = self._windows(self._padded(images))
        if self.groups == 1:
            y = functional.lmkan(samples, self.tables, engine=self.engine)
        else:
            parts = zip(samples.chunk(self.groups, -1), self.tables, strict=True)
            y = torch.cat([functional.lmkan(*part, engine=self.engine) for part in parts], -1)
        return y.movedim(-1, 1)

    def _padded(self, images: Tensor) -> Tensor:
        rows, columns = self._margins
        return nn.functional.pad(images, (*columns, *rows)) if any(rows + columns) else images

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the ordinary convolution of the residual branch."""
        return nn.functional.conv2d(
            self._padded(images),
            weight,
            bias,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )

    def _windows(self, images: Tensor) -> Tensor:
        """Return the windows [N, H', W', C kh kw], a view if a window is one pixel."""
        for axis, size, step, gap in zip(
            (2, 3), self.kernel_size, self.stride, self.dilation, strict=True
        ):
            images = images.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        return images.permute(0, 2, 3, 1, 4, 5).flatten(3)

    def _margins_of(self, padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the numbers of pixels added (above, below) and (left, right)."""
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            above, left = check_pair("LMKANConv2d", "padding", padding, at_least=0)
            return (above, above), (left, left)
        if self.stride != (1, 1):
            raise ValueError(
                f"LMKANConv2d: padding='same' needs stride=1, got stride={self.stride}"
            )
        rows, columns = (
            gap * (size - 1) for size, gap in zip(self.kernel_size, self.dilation, strict=True)
        )
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, {super().extra_repr()}"
        )
