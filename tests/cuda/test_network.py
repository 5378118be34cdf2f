"""A network in one kernel: its plans, and its results beside those of the steps one by one.

`test_crossing` compares all rows of the plan with the oracle.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crossing
import numpy as np
import pytest
import tolerances
from crossing import NETWORK_ROWS, NetworkRow, network_problem
from devices import DEVICES
from emulated import BFLOAT16_TABLES
from problems import FLOAT32, FLOAT64, HALF_TABLES, Dtypes, first_short
from tolerances import Expected

import lmkan_cupy
from lmkan_cupy import array_checks, cuda_engine, network
from lmkan_cupy.array_checks import Network
from lmkan_cupy.cuda_engine import forward_pass, network_pass
from lmkan_cupy.cuda_engine.network_pass import plan_network
from lmkan_cupy.cuda_engine.plan import H100, Device, NetworkShape
from lmkan_cupy.fitted import FittedNetwork

pytest_plugins = ["emulator.fixtures"]

emulates = pytest.mark.usefixtures("emulator_tools", "engine")


@pytest.fixture
def engine_of_networks(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public functions use the CUDA engine, whose forward adds pairs up one after the other."""
    no_numpy = SimpleNamespace(**vars(np))
    monkeypatch.setattr(network, "array_library", lambda array: no_numpy)
    monkeypatch.setattr(network, "engine_for", lambda xp: cuda_engine)
    monkeypatch.setattr(forward_pass, "PAIR_SPLIT", 1)
    monkeypatch.setattr(forward_pass, "ring_shapes", lambda *_: ())


def in_one_kernel(given: Network, x: Any) -> Any:
    y = np.full((len(x), given.out_features), np.nan, x.dtype)
    assert cuda_engine.network_forward(given, x, y)
    return y


def gradient_in_one_kernel(given: Network, x: Any, grad_y: Any) -> tuple[Any, Any]:
    y, grad_x = np.full_like(grad_y, np.nan), np.full_like(x, np.nan)
    assert cuda_engine.network_value_and_grad(given, x, grad_y, y, grad_x)
    return y, grad_x


def options(given: Network) -> dict[str, Any]:
    return {"shift": given.shift, "scale": given.scale, "bound": list(given.bounds)}


ROWS = {
    name: row
    for name, row in NETWORK_ROWS.items()
    if row.dtypes != BFLOAT16_TABLES and not row.linear
}
"""The public functions take no bfloat16 from NumPy; a product of matrices has an order of its own.
"""


@pytest.mark.long
@emulates
@pytest.mark.parametrize("name", ROWS)
def test_same_bits_as_the_steps_one_by_one(engine_of_networks: None, name: str) -> None:
    given, x = network_problem(ROWS[name], 33)
    expected = network.features_of_layers(given, x)[-1]
    np.testing.assert_array_equal(in_one_kernel(given, x), expected)
    y = lmkan_cupy.network_forward(x, given.layers, **options(given))
    np.testing.assert_array_equal(y, expected)


@emulates
@pytest.mark.parametrize("dtypes", first_short([FLOAT32, FLOAT64, HALF_TABLES]), ids=str)
def test_value_and_gradient(engine_of_networks: None, dtypes: Dtypes) -> None:
    """The value is that of the forward, to the bit; the gradient as exact as layer by layer."""
    given, x = network_problem(NetworkRow((5, 9, 3), 4, dtypes), 33)
    y, grad_x = lmkan_cupy.network_value_and_grad(x, given.layers, **options(given))
    np.testing.assert_array_equal(y, in_one_kernel(given, x))
    np.testing.assert_array_equal(grad_x, gradient_in_one_kernel(given, x, np.ones_like(y))[1])
    expected, defined = tolerances.network_backward(np.ones_like(y), x, given)
    features = network.features_of_layers(given, x)
    by_layers = network.pull_back_by_layers(given, features, np.ones_like(y))
    some = Expected(expected.value[defined], expected.bound[defined])
    some.check(grad_x[defined])
    some.check(by_layers[defined])


@emulates
def test_linear_layers(engine_of_networks: None) -> None:
    """By the public functions."""
    given, x = network_problem(NETWORK_ROWS["linear-in-front"], 33)
    y, grad_x = lmkan_cupy.network_value_and_grad(x, given.layers, **options(given))
    np.testing.assert_array_equal(y, in_one_kernel(given, x))
    tolerances.network(x, given).check(y)
    np.testing.assert_array_equal(grad_x, gradient_in_one_kernel(given, x, np.ones_like(y))[1])


@pytest.mark.long
@emulates
def test_samples_do_not_depend_on_each_other(engine_of_networks: None) -> None:
    """Nor on their numbers, of which lanes and blocks follow."""
    given, x = network_problem(NETWORK_ROWS["resident"], 300)
    grad_y = x[:, :1].copy()
    y, grad_x = gradient_in_one_kernel(given, x, grad_y)
    for part in (slice(0, 0), slice(0, 1), slice(7, 150), slice(150, 300)):
        np.testing.assert_array_equal(in_one_kernel(given, x[part]), y[part])
        of_part = gradient_in_one_kernel(given, x[part], grad_y[part])
        np.testing.assert_array_equal(of_part[0], y[part])
        np.testing.assert_array_equal(of_part[1], grad_x[part])


@emulates
@pytest.mark.long
def test_the_way_does_not_change_a_bit(engine_of_networks: None) -> None:
    """Blocks of every size, tables resident or in stages."""
    row = NetworkRow((5, 20, 9, 3), 4)
    given, x = network_problem(row, 200)
    grad_y = np.ones((200, 3), np.float32)
    results = [
        crossing.in_one_kernel(row._replace(warps=warps, shared_kb=kb), given, x, grad_y)
        for warps, kb in ((1, 227), (4, 227), (4, 32))
    ]
    for y, grad_x in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(grad_x, results[0][1])


@emulates
def test_layers_of_any_memory_layout(engine_of_networks: None) -> None:
    given, x = network_problem(NETWORK_ROWS["resident"], 33)
    laid_out = [np.asfortranarray(each) for each in given.layers]
    grad_y = np.ones((33, 2), np.float32)[:, :1]
    y, grad_x = lmkan_cupy.network_value_and_grad(
        np.asfortranarray(x), laid_out, grad_y=grad_y, **options(given)
    )
    expected = gradient_in_one_kernel(given, x, np.ascontiguousarray(grad_y))
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(grad_x, expected[1])


def tables(features: tuple[int, ...], num_grids: int = 4, dtype: str = "float32") -> list[Any]:
    return [
        np.ones(((inputs + 1) // 2, num_grids + 1, num_grids + 1, outputs), dtype)
        for inputs, outputs in pairwise(features)
    ]


NOT_SERVED: dict[str, list[Any]] = {
    "linear-alone": [(np.ones((2, 4), np.float32), None)],
    "two-grids": [*tables((4, 3)), *tables((3, 2), 5)],
    "two-dtypes": [*tables((4, 3)), *tables((3, 2), dtype="float16")],
    "seven-layers": tables((4, 2, 2, 2, 2, 2, 2, 2)),
    "large-grid": tables((4, 3), 240),
}


@pytest.mark.long
@emulates
@pytest.mark.parametrize("kind", NOT_SERVED)
def test_other_networks_go_layer_by_layer(engine_of_networks: None, kind: str) -> None:
    layers, x = NOT_SERVED[kind], np.zeros((5, 4), np.float32)
    y = lmkan_cupy.network_forward(x, layers)
    assert np.isfinite(y).all()
    value, _ = lmkan_cupy.network_value_and_grad(x, layers)
    np.testing.assert_array_equal(value, y)


# ---- plans ---------------------------------------------------------------------------------------

SHAPES = [
    NetworkShape(features, num_grids, real, table)
    for features in ((1, 1), (10, 16, 16, 1), (5, 33, 64, 2), (32, 32, 32, 32, 32), (512, 512))
    for num_grids in (3, 8, 26)
    for real, table in (("float32", "float32"), ("float64", "float64"), ("float32", "float16"))
]
SHAPES += [replace(shape, linear=frozenset({0})) for shape in SHAPES if len(shape.features) > 2]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_limits(device: Device) -> None:
    for shape, gradient in product(SHAPES, (False, True)):
        for batch in (0, 1, 33, 2**20, 2**40):
            for plan in network_pass.candidates(shape, batch, device, gradient=gradient):
                constants, launch = dict(plan.kernel.source.constants), plan.kernel
                assert launch.threads == 32 * constants["WARPS"] <= 1024
                assert constants["GRADIENT"] == gradient
                assert launch.blocks <= device.multiprocessors
                assert bool(launch.blocks) == bool(batch)
                assert launch.shared_bytes + network_pass.CHAIN_BYTES <= device.shared_bytes


def test_every_output_is_in_one_tile() -> None:
    for shape in SHAPES:
        for layer, _, _, tiles in network_pass.steps_of(shape):
            outputs = sum(tiles) * 16 // {"float16": 2, "float32": 4, "float64": 8}[layer.table]
            assert layer.out_features <= outputs < layer.out_features + 8
            assert tiles == sorted(tiles, reverse=True)


@pytest.mark.parametrize(
    ("features", "num_grids", "table", "is_resident"),
    [
        ((12, 16, 16, 1), 8, "float32", True),
        ((32, 32), 8, "float16", True),
        ((32, 32, 32, 1), 8, "float32", False),
    ],
)
def test_tables_stay_where_they_fit(
    features: tuple[int, ...], num_grids: int, table: str, is_resident: bool
) -> None:
    shape = NetworkShape(features, num_grids, "float32", table)
    for gradient in (False, True):
        plan = plan_network(shape, 2**20, H100, gradient=gradient)
        assert plan
        assert plan.resident == is_resident


def test_small_batches_are_spread_over_the_device() -> None:
    shape = NetworkShape((10, 16, 16, 1), 8, "float32", "float32")
    for batch, threads in ((1, 128), (10_000, 128), (2**20, 512)):
        plan = plan_network(shape, batch, H100, gradient=False)
        assert plan
        assert plan.kernel.threads == threads


def test_wide_layers_go_layer_by_layer() -> None:
    for features in ((512, 512), (128, 128, 128)):
        shape = NetworkShape(features, 8, "float32", "float32")
        for gradient in (False, True):
            assert plan_network(shape, 2**20, H100, gradient=gradient) is None


def test_forces_take_at_most_two_and_a_half_forwards() -> None:
    """By the model, for a large batch."""
    shape = NetworkShape((10, 16, 16, 1), 8, "float32", "float32")
    forward, gradient = (
        plan_network(shape, 2**22, H100, gradient=gradient) for gradient in (False, True)
    )
    assert forward
    assert gradient
    assert gradient.prediction.seconds < 2.5 * forward.prediction.seconds


def test_warmup_has_the_kernels_of_all_networks() -> None:
    shape = NetworkShape((10, 16, 16, 1), 8, "float32", "float32")
    for layer in shape.layers:
        warm = {launch.source for launch in cuda_engine.launches(layer, H100)}
        for batch, gradient in product((1, 10_000, 2**20), (False, True)):
            plan = plan_network(shape, batch, H100, gradient=gradient)
            assert plan
            assert plan.kernel.source in warm


# ---- fronts --------------------------------------------------------------------------------------


@emulates
def test_a_fused_model(engine_of_networks: None) -> None:
    """Outputs and forces; the engine gets its arrays as the CPU engine does."""
    torch = pytest.importorskip("torch")
    adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 9), adapter.LMKANBlock(9, 8, 4), adapter.LMKANBlock(8, 1, 4)
    )
    model(torch.randn(200, 5))  # statistics of the normalisations
    fused, x = adapter.fuse(model.eval()), torch.randn(33, 5, requires_grad=True)
    energy = fused(x)
    (forces,) = torch.autograd.grad(energy.sum(), x)
    layers = [tuple(each.numpy() for each in fused.arrays[:2])]
    layers += [each.numpy() for each in fused.arrays[2:]]
    y, grad_x = lmkan_cupy.network_value_and_grad(x.detach().numpy(), layers, bound=fused.bounds)
    np.testing.assert_array_equal(energy.detach(), y)
    np.testing.assert_array_equal(forces, grad_x)
    given = array_checks.check_network("", x.detach().numpy(), layers, None, None, fused.bounds)
    np.testing.assert_array_equal(y, in_one_kernel(given, x.detach().numpy()))


@emulates
def test_a_network_from_a_folder(
    engine_of_networks: None, rng: np.random.Generator, tmp_path: Path
) -> None:
    given, rows = network_problem(NetworkRow((5, 9, 3), 4), 33)
    mean, scale = rng.normal(size=(2, 5)), rng.uniform(0.5, 2, (2, 5))
    fitted = FittedNetwork(
        [*"abcde"], [*"xyz"], 2.0, given.layers, mean[0], scale[0], mean[1, :3], scale[1, :3]
    )
    for name, content in fitted.files().items():
        (tmp_path / name).write_bytes(content)
    loaded = lmkan_cupy.load_network(tmp_path)
    given = replace(given, bounds=(2.0, 2.0), shift=None, scale=None)
    x = ((rows.astype(float) - mean[0]) / scale[0]).astype(np.float32)
    expected = mean[1, :3] + scale[1, :3] * in_one_kernel(given, x)
    np.testing.assert_array_equal(loaded.predict(rows), expected)
