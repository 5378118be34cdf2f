"""Where the windows of a convolution lie in images, and the checks of its arguments."""

from typing import Any, NamedTuple

from . import array_checks

#: One number for both axes of an image, or one for rows and one for columns.
Pair = int | tuple[int, int]

#: Pixels of zeros around an image: a :data:`Pair`, or ((above, below), (left, right)).
Padding = Pair | tuple[tuple[int, int], tuple[int, int]]


class Window(NamedTuple):
    """Windows of an image; all pairs are (of rows, of columns)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    margins: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @property
    def num_pixels(self) -> int:
        """Pixels of a window in each channel."""
        rows, columns = self.kernel_size
        return rows * columns

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image with its margins."""
        (above, below), (left, right) = self.margins
        return height + above + below, width + left + right

    def reach(self) -> tuple[int, int]:
        """Return over how many rows and columns a window reaches."""
        (rows, columns), (down, across) = self.kernel_size, self.dilation
        return (rows - 1) * down + 1, (columns - 1) * across + 1

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers H', W' of windows below and beside each other."""
        (rows, columns), (down, across) = self.padded(height, width), self.reach()
        return (rows - down) // self.stride[0] + 1, (columns - across) // self.stride[1] + 1


def check_window(
    function: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> Window:
    """Return the windows that these arguments of a convolution describe."""
    sizes = check_pair(function, "kernel_size", kernel_size, at_least=1)
    steps = check_pair(function, "stride", stride, at_least=1)
    gaps = check_pair(function, "dilation", dilation, at_least=1)
    return Window(sizes, steps, _margins(function, padding), gaps)


def check_pair(function: str, name: str, value: Any, *, at_least: int) -> tuple[int, int]:
    """Return two numbers, one per axis, from one for both or a pair."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(type(each) is int and each >= at_least for each in pair):
        raise ValueError(
            f"{function}: {name} must be a whole number of at least {at_least}, or two, "
            f"got {value!r}"
        )
    return pair[0], pair[1]


def _margins(function: str, padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, tuple | list) and any(
        isinstance(each, tuple | list) for each in padding
    ):
        if len(padding) != 2:
            raise ValueError(
                f"{function}: padding must be ((above, below), (left, right)), got {padding!r}"
            )
        rows, columns = (check_pair(function, "padding", each, at_least=0) for each in padding)
        return rows, columns
    above, left = check_pair(function, "padding", padding, at_least=0)
    return (above, above), (left, left)


def check_groups(function: str, groups: int, in_channels: int, out_channels: int) -> None:
    """Require that ``groups``, 1 or more, divides both numbers of channels."""
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(
                f"{function}: groups must divide {name}={channels}, got groups={groups}"
            )


def check_reach(function: str, window: Window, height: int, width: int) -> None:
    """Require images that are large enough, with their margins, for one window."""
    for axis, size, reach in zip(
        (-2, -1), window.padded(height, width), window.reach(), strict=True
    ):
        if size < reach:
            raise ValueError(
                f"{function}: the kernel reaches over {reach} pixels of axis {axis}, "
                f"where x has {size} with its padding"
            )


def check_images_like(
    function: str,
    x_shape: tuple[int, ...],
    x_dtype: str,
    tables_shape: tuple[int, ...],
    tables_dtype: str,
    window: Window,
    groups: int,
) -> tuple[int, ...]:
    """Require images and tables that belong together; return the shape [..., O, H', W']."""
    groups = array_checks.check_size(function, "groups", groups)
    if len(x_shape) < 3:
        raise ValueError(
            f"{function}: x must have shape [..., channels, height, width], "
            f"got x.shape={tuple(x_shape)}"
        )
    *leading, channels, height, width = x_shape
    if groups > 1:
        if len(tables_shape) < 4 or tables_shape[0] != groups:
            raise ValueError(
                f"{function}: tables of groups={groups} must have shape [{groups}, pairs, knots, "
                f"knots, out_channels / {groups}], got tables.shape={tuple(tables_shape)}"
            )
        tables_shape = tables_shape[1:]
    array_checks.check_tables_like(function, tables_shape, tables_dtype)
    out_channels = groups * tables_shape[-1]
    check_groups(function, groups, channels, out_channels)
    check_reach(function, window, height, width)
    in_features = channels // groups * window.num_pixels
    array_checks.check_layer_like(
        function, (*leading, in_features), x_dtype, tables_shape, tables_dtype
    )
    return (*leading, out_channels, *window.out_size(height, width))
