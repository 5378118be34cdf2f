"""Convolutions on arrays: the layer of every window of an image, without an array of windows.

A window is a sample whose features are its pixels in the order of channels, rows and columns, the
order of ``torch.nn.functional.unfold``. Interval and position depend on a pixel alone, so they are
found once and not for every window. Results are those of the functions of :mod:`.functional` for an
array of all windows, to the bit, with the gradients of a pixel added in the order of its windows.

Arguments of all functions: ``kernel_size``, ``stride``, ``padding`` and ``dilation`` are a whole
number or one for rows and one for columns. ``padding`` may also be ``((above, below), (left,
right))``; the pixels that it adds are zeros, coordinates as any others. With ``groups``, channels
of images and results are cut into so many equal parts with tables of their own, ``[groups, P, S,
..., S, O / groups]``.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from . import allocation, array_checks, windows
from .array_library import AnyArray, Array, array_library, contiguous
from .functional import engine_for, output
from .windows import Padding, Pair, Window


def conv2d_forward(
    x: AnyArray,
    tables: AnyArray,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    out: AnyArray | None = None,
) -> Array:
    """Evaluate a layer on every window of images.

    Parameters
    ----------
    x : array [..., C, H, W]
        Images, standardised; float32 or float64, any strides.
    tables : array [P, S, ..., S, O], with groups [groups, P, S, ..., S, O / groups]
        P = ceil(C / groups kh kw / d). In the dtype of ``x``, or float16 with float32 ``x``.
    kernel_size, stride, padding, dilation, groups
        As in ``torch.nn.Conv2d``; see :mod:`lmkan_cupy.convolution`.
    out : array [..., O, H', W'], optional
        Overwritten with the result; C-contiguous, dtype of ``x``.

    Returns
    -------
    array [..., O, H', W']
        C-contiguous, in the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        As :func:`lmkan_cupy.forward`; also if a window's argument is out of range, the kernel
        reaches over more pixels than there are, or ``groups`` does not divide the channels.
    NotImplementedError
        For CuPy arrays.
    """
    function = "conv2d_forward"
    call = _Call(function, x, tables, kernel_size, stride, padding, dilation, groups)
    out = output(
        function, "out", out, call.out_shape, call.x.dtype, {"x": call.x, "tables": call.tables}
    )
    for images, tables_of in call.parts():
        call.engine.conv2d_forward(images(call.x), tables_of(call.tables), call.window, images(out))
    return out


def conv2d_jvp(
    tangent_x: AnyArray | None,
    tangent_tables: AnyArray | None,
    x: AnyArray,
    tables: AnyArray,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """Differentiate :func:`conv2d_forward` along a direction; see :func:`lmkan_cupy.jvp`.

    Parameters
    ----------
    tangent_x : array [..., C, H, W] or None
        Direction in ``x``, in its dtype; None stands for zeros.
    tangent_tables : array of the shape of ``tables``, or None
        Direction in ``tables``, in the dtype of ``x``; None stands for zeros.
    x, tables, kernel_size, stride, padding, dilation, groups
        As in :func:`conv2d_forward`.

    Returns
    -------
    array [..., O, H', W']
        In the dtype of ``x``.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :func:`conv2d_forward`; ValueError where both tangents are None.
    """
    call = _Call("conv2d_jvp", x, tables, kernel_size, stride, padding, dilation, groups)
    of_x, of_tables = call.direction({"tangent_x": tangent_x, "tangent_tables": tangent_tables})
    tangent_y = allocation.empty(call.out_shape, call.x.dtype, call.x)
    for images, tables_of in call.parts():
        call.engine.conv2d_jvp(
            *(images(of_x), tables_of(of_tables), images(call.x), tables_of(call.tables)),
            *(call.window, images(tangent_y)),
        )
    return tangent_y


def conv2d_backward(
    grad_y: AnyArray,
    x: AnyArray,
    tables: AnyArray,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    need_x: bool = True,
    need_tables: bool = True,
    out_x: AnyArray | None = None,
    out_tables: AnyArray | None = None,
) -> tuple[Array | None, Array | None]:
    """Pull ``grad_y`` back to the inputs of :func:`conv2d_forward`; see :func:`.backward`.

    Parameters
    ----------
    grad_y : array [..., O, H', W']
        In the dtype of ``x``, any strides; not broadcast.
    x, tables, kernel_size, stride, padding, dilation, groups
        As in :func:`conv2d_forward`.
    need_x, need_tables : bool
        What is not needed is not computed.
    out_x : array [..., C, H, W], optional
        Overwritten with ``grad_x``; C-contiguous, dtype of ``x``.
    out_tables : array of the shape of ``tables``, optional
        Overwritten with ``grad_tables``; C-contiguous.

    Returns
    -------
    grad_x : array [..., C, H, W] or None
        In the dtype of ``x``. A pixel's is the sum over the windows that it is in, in their order;
        a window's part is that of :func:`lmkan_cupy.backward`, to the bit.
    grad_tables : array of the shape of ``tables``, or None
        In the dtype of ``tables``, float32 for half tables.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :func:`conv2d_forward`; also where an ``out_`` is given for what is not needed.
    """
    function = "conv2d_backward"
    call = _Call(function, x, tables, kernel_size, stride, padding, dilation, groups)
    grad_y = call.companion("grad_y", grad_y, call.out_shape)
    inputs = {"grad_y": grad_y, "x": call.x, "tables": call.tables}
    grads: list[Array | None] = []
    for name, need, out, like in (
        ("x", need_x, out_x, call.x),
        ("tables", need_tables, out_tables, call.tables),
    ):
        if need:
            grad = output(function, f"out_{name}", out, like.shape, call.x.dtype, inputs)
            inputs[f"out_{name}"] = grad
            grads.append(grad)
        elif out is not None:
            raise ValueError(f"{function}: out_{name} was given, but need_{name} is False")
        else:
            grads.append(None)
    for images, tables_of in call.parts():
        call.engine.conv2d_backward(
            *(images(grad_y), images(call.x), tables_of(call.tables), call.window),
            *(images(grads[0]), tables_of(grads[1])),
        )
    return grads[0], grads[1]


def conv2d_backward_backward(
    ggx: AnyArray | None,
    ggt: AnyArray | None,
    grad_y: AnyArray,
    x: AnyArray,
    tables: AnyArray,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Pull cotangents of both results of :func:`conv2d_backward` back to its inputs.

    See :func:`lmkan_cupy.backward_backward`.

    Parameters
    ----------
    ggx : array [..., C, H, W] or None
        Cotangent of ``grad_x``, in the dtype of ``x``; None stands for zeros.
    ggt : array of the shape of ``tables``, or None
        Cotangent of ``grad_tables``, in its dtype; None stands for zeros.
    grad_y : array [..., O, H', W']
    x, tables, kernel_size, stride, padding, dilation, groups
        As in :func:`conv2d_forward`.

    Returns
    -------
    grad_grad_y : array [..., O, H', W']
        In the dtype of ``x``.
    grad_x : array [..., C, H, W]
        In the dtype of ``x``. A pixel's part of ``ggx``, summed over its windows, comes before that
        of ``ggt``.
    grad_tables : array of the shape of ``tables``
        In the dtype of ``tables``, float32 for half tables.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :func:`conv2d_backward`; ValueError where both cotangents are None.
    """
    function = "conv2d_backward_backward"
    call = _Call(function, x, tables, kernel_size, stride, padding, dilation, groups)
    grad_y = call.companion("grad_y", grad_y, call.out_shape)
    ggx, ggt = call.direction({"ggx": ggx, "ggt": ggt})
    grad_grad_y, grad_x, grad_tables = (
        allocation.empty(shape, call.x.dtype, call.x)
        for shape in (call.out_shape, call.x.shape, call.tables.shape)
    )
    for images, tables_of in call.parts():
        call.engine.conv2d_backward_backward(
            *(images(ggx), tables_of(ggt), images(grad_y), images(call.x)),
            *(tables_of(call.tables), call.window),
            *(images(grad_grad_y), images(grad_x), tables_of(grad_tables)),
        )
    return grad_grad_y, grad_x, grad_tables


_Part: TypeAlias = Callable[[Array | None], Array | None]


class _Call:
    """The checked arguments of a convolution."""

    def __init__(
        self,
        function: str,
        x: AnyArray,
        tables: AnyArray,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
    ) -> None:
        self.function = function
        self.window: Window = windows.check_window(function, kernel_size, stride, padding, dilation)
        self.tables = contiguous(array_checks.check_array(function, "tables", tables))
        self.x = array_checks.check_same_place(function, "x", x, self.tables)
        if array_library(self.x) is not np:
            raise NotImplementedError(
                f"{function}: the CUDA engine has no convolutions: make an array of all windows "
                "and call the function of layers, as LMKANConv2d does"
            )
        self.engine = engine_for(np)
        self.groups: int = groups
        self.out_shape = windows.check_images_like(
            function,
            self.x.shape,
            str(self.x.dtype),
            self.tables.shape,
            str(self.tables.dtype),
            self.window,
            groups,
        )

    def companion(self, name: str, array: AnyArray, shape: tuple[int, ...]) -> Array:
        """Require an array of this shape that goes with ``x``."""
        return array_checks.check_companion(
            self.function, name, array, shape, self.x.dtype, self.tables
        )

    def direction(self, arrays: dict[str, AnyArray | None]) -> list[Array | None]:
        """Require a direction in ``x`` and one in ``tables``, at least one of them not None."""
        if all(each is None for each in arrays.values()):
            names = " and ".join(arrays)
            raise ValueError(f"{self.function}: {names} are both None, expected at least one array")
        shapes = (self.x.shape, self.tables.shape)
        return [
            None if each is None else contiguous(self.companion(name, each, shape))
            for (name, each), shape in zip(arrays.items(), shapes, strict=True)
        ]

    def parts(self) -> Iterator[tuple[_Part, _Part]]:
        """Give for each group what takes its part of images, as [N, C, H, W], and of tables."""
        for group in range(self.groups):
            yield partial(self._images, group), partial(self._tables, group)

    def _images(self, group: int, array: Array | None) -> Array | None:
        if array is None:
            return None
        images = array.reshape(-1, *array.shape[-3:])
        channels = images.shape[1] // self.groups
        return images[:, group * channels : (group + 1) * channels]

    def _tables(self, group: int, array: Array | None) -> Array | None:
        return array if array is None or self.groups == 1 else array[group]
