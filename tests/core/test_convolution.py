"""Convolutions: to the bit the layer of an array of all windows, folded in the windows' order."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import tolerances
from oracle import Array
from problems import DTYPES, FLOAT32, Dtypes, first_short
from special_values import BAD_VALUES

import lmkan_cupy
from lmkan_cupy import convolution as core
from lmkan_cupy.cpu_engine import compiling, convolution, threads

NAMES = ["conv2d_forward", "conv2d_jvp", "conv2d_backward", "conv2d_backward_backward"]


class Case(NamedTuple):
    """A convolution of images [N, C, H, W] to O channels."""

    images: tuple[int, int, int, int]
    out_channels: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    num_grids: int = 5

    @property
    def window(self) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def windows(self, x: Array) -> Array:
        """The windows [N, H', W', C, kh, kw] of images."""
        x = np.pad(x, ((0, 0), (0, 0), *self.padding))
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        views = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
        rows, columns = self.stride
        views = views[:, :, ::rows, ::columns, :: self.dilation[0], :: self.dilation[1]]
        return views.transpose(0, 2, 3, 1, 4, 5)

    def samples(self, x: Array) -> list[Array]:
        """The windows of each group as rows of features."""
        windows = self.windows(x)
        count, rows, columns, channels, *_ = windows.shape
        some = channels // self.groups
        parts = [windows[:, :, :, k * some : (k + 1) * some] for k in range(self.groups)]
        features = some * self.kernel_size[0] * self.kernel_size[1]
        return [np.array(each).reshape(count, rows, columns, features) for each in parts]

    def fold(self, grads: list[Array]) -> Array:
        """Add the gradients of windows to their pixels, one window after the other.

        A pixel moves towards the first feature from one window to the next.
        """
        rows, columns = grads[0].shape[1:3]
        channels = self.images[1] // self.groups
        parts = [each.reshape(*each.shape[:3], channels, *self.kernel_size) for each in grads]
        grad = np.concatenate(parts, 3).transpose(0, 3, 1, 2, 4, 5)
        count, channels, height, width = self.images
        (above, below), (left, right) = self.padding
        total = np.zeros((count, channels, height + above + below, width + left + right))
        total = total.astype(grad.dtype)
        for i in reversed(range(self.kernel_size[0])):
            for j in reversed(range(self.kernel_size[1])):
                y, x = i * self.dilation[0], j * self.dilation[1]
                total[
                    :,
                    :,
                    y : y + rows * self.stride[0] : self.stride[0],
                    x : x + columns * self.stride[1] : self.stride[1],
                ] += grad[..., i, j]
        return total[:, :, above : above + height, left : left + width]


CASES = [
    Case((2, 4, 7, 5), 8),
    Case((3, 3, 9, 8), 5, (3, 2), (2, 3), ((1, 0), (2, 1)), (2, 1)),
    Case((2, 6, 6, 19), 9, (2, 2), groups=3, padding=((0, 0), (0, 0))),
    Case((0, 2, 6, 6), 3),
    Case((1, 1, 1, 1), 1, (1, 1), padding=((0, 0), (0, 0)), num_grids=3),
    Case((3, 5, 40, 37), 33, num_grids=40),
    Case((2, 16, 34, 34), 70, (1, 1), (2, 2), ((0, 0), (0, 0)), num_grids=8),
    Case((5, 4, 3, 2), 4, (3, 3), groups=4, num_grids=4),
    Case((2, 3, 5, 60), 6, (1, 7), (1, 5), ((0, 0), (6, 6)), (1, 2)),
]
"""Margins, strides and phases; groups; no image; one pixel; beyond a block of windows."""

OF_DTYPES = pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
OF_DIMENSION = pytest.mark.parametrize("dimension", first_short([2, 1, 3]))


class Problem(NamedTuple):
    x: Any
    tables: Any
    grad_y: Any
    ggx: Any
    ggt: Any


def make(
    rng: np.random.Generator, case: Case, dtypes: Dtypes = FLOAT32, dimension: int = 2
) -> Problem:
    count, channels, *_ = case.images
    features = channels // case.groups * case.kernel_size[0] * case.kernel_size[1]
    knots = (case.num_grids + 1,) * dimension
    shape = (-(-features // dimension), *knots, case.out_channels // case.groups)
    if case.groups > 1:
        shape = (case.groups, *shape)
    x = rng.normal(0, 2, case.images).astype(dtypes.x)
    rows, columns = case.windows(x).shape[1:3]
    return Problem(
        x=x,
        tables=rng.uniform(-1, 1, shape).astype(dtypes.tables),
        grad_y=rng.normal(size=(count, case.out_channels, rows, columns)).astype(dtypes.x),
        ggx=rng.normal(size=x.shape).astype(dtypes.x),
        ggt=rng.normal(size=shape).astype(dtypes.x),
    )


def results_of(case: Case, problem: Problem) -> list[Array]:
    """y; `jvp`; grad_x, grad_tables; the three of `backward_backward` for `ggx`, and for `ggt`."""
    x, tables, grad_y, ggx, ggt = problem
    both = [
        lmkan_cupy.conv2d_backward_backward(*each, grad_y, x, tables, **case.window)
        for each in ((ggx, None), (None, ggt))
    ]
    return [
        lmkan_cupy.conv2d_forward(x, tables, **case.window),
        lmkan_cupy.conv2d_jvp(ggx, ggt, x, tables, **case.window),
        *lmkan_cupy.conv2d_backward(grad_y, x, tables, **case.window),
        *both[0],
        *both[1],
    ]


def results_of_windows(case: Case, problem: Problem) -> list[Array]:
    """The same from arrays of all windows."""
    x, tables, grad_y, ggx, ggt = problem
    parts = zip(
        *(case.samples(x), case.samples(ggx), np.split(grad_y, case.groups, 1)),
        *((tables, ggt) if case.groups > 1 else ([tables], [ggt])),
        strict=True,
    )
    groups = []
    for samples, along, grad, some_tables, some_ggt in parts:
        grad = np.ascontiguousarray(grad.transpose(0, 2, 3, 1))
        groups.append(
            [
                lmkan_cupy.forward(samples, some_tables),
                lmkan_cupy.jvp(along, some_ggt, samples, some_tables),
                *lmkan_cupy.backward(grad, samples, some_tables),
                *lmkan_cupy.backward_backward(along, None, grad, samples, some_tables),
                *lmkan_cupy.backward_backward(None, some_ggt, grad, samples, some_tables),
            ]
        )

    def of_y(each: list[Array]) -> Array:
        return np.concatenate(each, -1).transpose(0, 3, 1, 2)

    def of_tables(each: list[Array]) -> Array:
        return np.stack(each) if case.groups > 1 else each[0]

    gathered = [of_y, of_y, case.fold, of_tables, *[of_y, case.fold, of_tables] * 2]
    return [
        gather([*each]) for gather, each in zip(gathered, zip(*groups, strict=True), strict=True)
    ]


@pytest.mark.parametrize("case", first_short(CASES, 3), ids=str)
@OF_DTYPES
@OF_DIMENSION
def test_equals_the_layer_of_all_windows(
    rng: np.random.Generator, case: Case, dtypes: Dtypes, dimension: int
) -> None:
    problem = make(rng, case, dtypes, dimension)
    for result, expected in zip(
        results_of(case, problem), results_of_windows(case, problem), strict=True
    ):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("case", first_short(CASES[:3]), ids=str)
@OF_DTYPES
@OF_DIMENSION
def test_gradients_against_the_oracle(
    rng: np.random.Generator, case: Case, dtypes: Dtypes, dimension: int
) -> None:
    """A pixel's bound is the sum of its windows', and a rounding of every addition."""
    x, tables, grad_y, *_ = make(rng, case._replace(groups=1), dtypes, dimension)
    case = case._replace(groups=1)
    (samples,) = case.samples(x)
    of_samples, of_tables = tolerances.backward(
        np.ascontiguousarray(grad_y.transpose(0, 2, 3, 1)).reshape(-1, case.out_channels),
        samples.reshape(-1, samples.shape[-1]),
        tables,
    )
    value, bound, size = (
        case.fold([each.reshape(samples.shape)])
        for each in (of_samples.value, of_samples.bound, np.abs(of_samples.value))
    )
    additions = case.kernel_size[0] * case.kernel_size[1]
    grad_x, grad_tables = lmkan_cupy.conv2d_backward(grad_y, x, tables, **case.window)
    assert grad_x is not None
    rounding = additions * tolerances.unit(dtypes.x) * (size + bound)
    assert (np.abs(grad_x - value) <= bound + rounding).all()
    of_tables.check(grad_tables)


def gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "is_gathered", lambda nbytes: True)


def group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "is_gathered", lambda nbytes: False)


def one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_PLANE_BYTES", 1)


def many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the images have channels, and calls for a few windows each."""
    monkeypatch.setattr(threads, "num_threads", lambda: 7)
    monkeypatch.setattr(convolution, "num_threads", lambda: 7)
    monkeypatch.setattr(threads, "_WORK_PER_THREAD", 1)


WAYS = [gather, group, one_image_at_a_time, many_threads]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", first_short(CASES[1:]), ids=str)
def test_no_way_changes_a_bit(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[pytest.MonkeyPatch], None],
    case: Case,
) -> None:
    problem = make(rng, case)
    expected = [each.tobytes() for each in results_of(case, problem)]
    way(monkeypatch)
    assert [each.tobytes() for each in results_of(case, problem)] == expected


def test_what_is_not_needed_changes_nothing(rng: np.random.Generator) -> None:
    case = CASES[0]
    x, tables, grad_y, *_ = make(rng, case)
    grads = lmkan_cupy.conv2d_backward(grad_y, x, tables, **case.window)
    for k, needs in enumerate(({"need_tables": False}, {"need_x": False})):
        some = lmkan_cupy.conv2d_backward(grad_y, x, tables, **case.window, **needs)
        assert some[1 - k] is None
        np.testing.assert_array_equal(some[k], grads[k])


VIEWS: dict[str, Callable[[Array], Array]] = {
    "channels-last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "stepped": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides(rng: np.random.Generator, view: Callable[[Array], Array]) -> None:
    """And read-only arrays, and any number of leading axes."""
    case = CASES[0]
    problem = make(rng, case)
    x, tables, grad_y, ggx, ggt = problem
    views = Problem(view(x), tables, view(grad_y), view(ggx), ggt)
    for each in views:
        each.flags.writeable = False
    expected = results_of(case, problem)
    for result, same in zip(results_of(case, views), expected, strict=True):
        np.testing.assert_array_equal(result, same)
    y = lmkan_cupy.conv2d_forward(view(x)[:, None], tables, **case.window)
    np.testing.assert_array_equal(y[:, 0], expected[0])
    y = lmkan_cupy.conv2d_forward(view(x)[0], tables, **case.window)
    np.testing.assert_array_equal(y, expected[0][0])


def test_results_into_given_arrays(rng: np.random.Generator) -> None:
    case = CASES[0]
    x, tables, grad_y, *_ = make(rng, case)
    out, out_x, out_tables = (np.full_like(each, np.nan) for each in (grad_y, x, tables))
    assert lmkan_cupy.conv2d_forward(x, tables, **case.window, out=out) is out
    np.testing.assert_array_equal(out, lmkan_cupy.conv2d_forward(x, tables, **case.window))
    grads = lmkan_cupy.conv2d_backward(
        grad_y, x, tables, **case.window, out_x=out_x, out_tables=out_tables
    )
    assert grads[0] is out_x
    assert grads[1] is out_tables
    expected = lmkan_cupy.conv2d_backward(grad_y, x, tables, **case.window)
    for grad, same in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(grad, same)


def test_numbers_for_both_axes(rng: np.random.Generator) -> None:
    case = CASES[0]._replace(stride=(2, 2), dilation=(2, 2))
    x, tables, *_ = make(rng, case)
    y = lmkan_cupy.conv2d_forward(x, tables, 3, stride=2, padding=1, dilation=2)
    np.testing.assert_array_equal(y, lmkan_cupy.conv2d_forward(x, tables, **case.window))
    same = lmkan_cupy.conv2d_forward(x, tables, 3, stride=2, padding=(1, 1), dilation=2)
    np.testing.assert_array_equal(same, y)


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_pixels_spoil_only_their_windows(rng: np.random.Generator, bad: float) -> None:
    case = CASES[0]
    problem = make(rng, case)
    problem.x[1, 2, 0, 3] = bad
    y, _, grad_x, grad_tables, *_ = results_of(case, problem)
    hit = np.zeros(y.shape, bool)
    hit[1, :, :2, 2:] = True
    np.testing.assert_array_equal(np.isfinite(y), ~hit)
    expected = results_of_windows(case, problem)
    np.testing.assert_array_equal(grad_x, expected[2])
    np.testing.assert_array_equal(grad_tables, expected[3])


def test_no_array_of_windows(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated for a convolution of 49 pixels is a small multiple of the images."""
    case = Case((2, 4, 40, 40), 2, (7, 7), padding=((3, 3), (3, 3)), num_grids=3)
    problem = make(rng, case)
    sizes: list[int] = []
    empty = np.empty

    def counted(shape: Any, *rest: Any, **options: Any) -> Array:
        array = empty(shape, *rest, **options)
        sizes.append(array.nbytes)
        return array

    monkeypatch.setattr(np, "empty", counted)
    results_of(case, problem)
    assert max(sizes) < 3 * problem.x.nbytes


def test_compiles_nothing_for_layers() -> None:
    """Only who convolves waits for its kernels."""
    assert not set(compiling.KERNELS) & set(compiling.CONVOLUTION_KERNELS)


def call(name: str, x: Any, tables: Any, *window: Any, **options: Any) -> Any:
    """Call a function of convolutions with the right number of arrays in front."""
    before = {"conv2d_jvp": (x, None), "conv2d_backward": (x,)}
    given = before.get(name, () if name == "conv2d_forward" else (x, None, x))
    return getattr(lmkan_cupy, name)(*given, x, tables, *window, **options)


@pytest.mark.parametrize("name", NAMES)
class TestErrors:
    @pytest.mark.parametrize(
        ("window", "text"),
        [
            ({"kernel_size": 0}, "kernel_size must be a whole number of at least 1, or two, got 0"),
            ({"kernel_size": True}, "kernel_size must be a whole number of .*, got True"),
            ({"stride": (1, 0)}, r"stride must be .* at least 1, or two, got \(1, 0\)"),
            ({"dilation": 1.5}, "dilation must be .*, got 1.5"),
            ({"padding": -1}, "padding must be a whole number of at least 0, or two, got -1"),
            ({"padding": ((1, 1),)}, r"padding must be \(\(above, below\), \(left, right\)\), got"),
            ({"padding": ((1, -1), 0)}, r"padding must be .* at least 0, or two, got \(1, -1\)"),
            ({"groups": 3}, r"tables of groups=3 must have shape \[3, pairs, knots"),
            ({"groups": 0}, "groups must be at least 1, got 0"),
            ({"kernel_size": 8}, "the kernel reaches over 8 pixels of axis -2, where x has 7 with"),
            ({"kernel_size": 2}, r"tables has 18 pairs, but x has 16 features \(8 pairs\)"),
        ],
    )
    def test_window(
        self, rng: np.random.Generator, name: str, window: dict[str, Any], text: str
    ) -> None:
        x, tables, *_ = make(rng, CASES[0])
        with pytest.raises(ValueError, match=f"{name}: {text}"):
            call(name, x, tables, **({"kernel_size": 3} | window))

    def test_groups_divide_the_channels(self, rng: np.random.Generator, name: str) -> None:
        x, tables, *_ = make(rng, CASES[0])
        tables = np.stack([tables] * 3)
        with pytest.raises(ValueError, match=f"{name}: groups must divide in_channels=4, got gr"):
            call(name, x, tables, 3, groups=3)

    def test_images(self, rng: np.random.Generator, name: str) -> None:
        x, tables, *_ = make(rng, CASES[0])
        with pytest.raises(ValueError, match=rf"{name}: x must have shape \[..., channels, heig"):
            call(name, x[0, 0], tables, 3)
        with pytest.raises(TypeError, match=f"{name}: x must be float32 where tables is float32"):
            call(name, x.astype("float64"), tables, 3)

    def test_cupy_arrays(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        x, tables, *_ = make(rng, CASES[0])
        monkeypatch.setattr(core, "array_library", lambda array: ModuleType("cupy"))
        with pytest.raises(NotImplementedError, match=f"{name}: the CUDA engine has no convolut"):
            call(name, x, tables, 3)


def test_companions(rng: np.random.Generator) -> None:
    x, tables, grad_y, *_ = make(rng, CASES[0])
    with pytest.raises(ValueError, match=r"grad_y must have shape \(2, 8, 7, 5\), got \(2, 8, 6"):
        lmkan_cupy.conv2d_backward(grad_y[:, :, 1:], x, tables, 3, padding=1)
    with pytest.raises(ValueError, match=r"tangent_x must have shape \(2, 4, 7, 5\), got \(1, 4"):
        lmkan_cupy.conv2d_jvp(x[:1], None, x, tables, 3, padding=1)
    with pytest.raises(ValueError, match="ggx and ggt are both None"):
        lmkan_cupy.conv2d_backward_backward(None, None, grad_y, x, tables, 3, padding=1)
    with pytest.raises(ValueError, match="out_x was given, but need_x is False"):
        lmkan_cupy.conv2d_backward(
            grad_y, x, tables, 3, padding=1, need_x=False, out_x=np.empty_like(x)
        )
