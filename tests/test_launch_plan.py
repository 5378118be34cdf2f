"""The plan of the CUDA engine for every architecture: all is covered, no limit exceeded."""

from __future__ import annotations

import numpy as np
import pytest

from lmkan_cupy.cuda_engine import launch_plan
from lmkan_cupy.cuda_engine.launch_plan import Device, Launch, Layer

DEVICES = {
    "sm_75": Device(75, 40, 64 * 1024),
    "sm_80": Device(80, 108, 163 * 1024),
    "sm_86": Device(86, 82, 99 * 1024),
    "sm_89": Device(89, 128, 99 * 1024),
    "sm_90": Device(90, 132, 227 * 1024),
    "sm_100": Device(100, 148, 227 * 1024),
    "sm_120": Device(120, 170, 99 * 1024),
}
MOST_THREADS = 1024

LAYERS = [
    Layer(in_features, out_features, num_grids, real, table)
    for in_features in (1, 2, 7, 512, 100_000)
    for out_features in (1, 32, 33, 64, 65, 128, 129, 512, 4096)
    for num_grids, real, table in (
        (3, "float32", "float32"),
        (40, "float64", "float64"),
        (1000, "float32", "float16"),
        (26, "float32", "bfloat16"),
    )
]
BATCHES = (0, 1, 33, 1000, 16384, 16385, 2**20, 2**33)


@pytest.fixture(params=DEVICES.values(), ids=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    given: Device = request.param
    return given


def check_limits(launch: Launch, device: Device) -> None:
    assert 0 <= launch.blocks < 2**31
    assert 0 < launch.threads <= MOST_THREADS
    assert launch.threads % launch_plan.LANES == 0
    assert launch.threads == launch_plan.LANES * dict(launch.source.constants)["WARPS"]
    assert launch.shared_bytes <= device.shared_bytes


def test_limits(device: Device) -> None:
    for layer in LAYERS:
        for batch in BATCHES:
            plan = launch_plan.backward(
                layer, batch, device, direction=False, need_x=True, need_tables=True
            )
            of_penalty = launch_plan.penalty(layer)
            for launch in (
                launch_plan.forward(layer, batch, device, direction=True, aligned=True),
                plan.sort,
                plan.walk,
                plan.boundaries,
                of_penalty.penalty,
                of_penalty.total,
            ):
                check_limits(launch, device)


def test_nothing_is_started_for_an_empty_batch(device: Device) -> None:
    for layer in LAYERS:
        launch = launch_plan.forward(layer, 0, device, direction=False, aligned=True)
        assert launch.blocks == 0


def owners(out_features: int, lane_outputs: int) -> np.ndarray:
    """How many lanes of how many tiles have each output: `for_own_outputs` of warp.cuh."""
    tile = launch_plan.LANES * lane_outputs
    lane, k, first = np.meshgrid(
        np.arange(launch_plan.LANES), np.arange(lane_outputs), np.arange(0, out_features, tile)
    )
    outputs = first + k * launch_plan.LANES + lane
    return np.bincount(outputs[outputs < out_features], minlength=out_features)


def test_every_output_has_one_owner() -> None:
    for layer in LAYERS:
        lane_outputs = dict(launch_plan.penalty(layer).penalty.source.constants)["LANE_OUTPUTS"]
        assert (owners(layer.out_features, lane_outputs) == 1).all()
        tile = launch_plan.LANES * lane_outputs
        assert (layer.tiles - 1) * tile < layer.out_features <= layer.tiles * tile


def test_every_sample_and_tile_is_taken(device: Device) -> None:
    """By a warp, or by a thread of a block; at a grid's limit they take several in turn."""
    for layer in LAYERS:
        for batch in BATCHES:
            launch = launch_plan.forward(layer, batch, device, direction=False, aligned=True)
            if launch.kernel == "forward":
                covered = launch.blocks * launch.threads // launch_plan.LANES
                needed = batch * layer.tiles
            else:
                tiles, rest = divmod(layer.out_features, launch_plan.SHARED_TILE)
                assert rest == 0
                covered = launch.blocks // tiles * launch.threads
                needed = batch
            assert covered >= needed or launch.blocks == launch_plan.MOST_BLOCKS


@pytest.mark.parametrize(
    ("name", "largest"),
    [("sm_75", 15), ("sm_80", 24), ("sm_86", 18), ("sm_90", 29), ("sm_100", 29)],
)
def test_tables_go_through_shared_memory_while_they_fit(name: str, largest: int) -> None:
    for num_grids in (3, largest, largest + 1):
        layer = Layer(64, 128, num_grids, "float32", "float32")
        launch = launch_plan.forward(layer, 2**20, DEVICES[name], direction=False, aligned=True)
        assert (launch.kernel == "forward_shared") == (num_grids <= largest)


@pytest.mark.parametrize(
    ("layer", "batch", "aligned"),
    [
        (Layer(64, 128, 8, "float32", "float32"), 2**20, False),
        (Layer(64, 128, 8, "float32", "float32"), 64, True),
        (Layer(64, 100, 8, "float32", "float32"), 2**20, True),
        (Layer(64, 128, 8, "float64", "float64"), 2**20, True),
        (Layer(64, 128, 8, "float32", "float16"), 2**20, True),
    ],
    ids=["not-aligned", "few-samples", "outputs", "double", "half"],
)
def test_else_they_are_read_from_global_memory(layer: Layer, batch: int, aligned: bool) -> None:
    launch = launch_plan.forward(layer, batch, DEVICES["sm_90"], direction=False, aligned=aligned)
    assert launch.kernel == "forward"


def test_every_sample_is_in_one_stretch(device: Device) -> None:
    """In both halves, wherever one ends and the other begins: `stretch_of` of backward.cu."""
    plans = [
        launch_plan.backward(layer, batch, device, direction=False, need_x=True, need_tables=True)
        for layer in LAYERS
        for batch in BATCHES[1:]
    ]
    for chunk, stretch, stretches in {(each.chunk, each.stretch, each.stretches) for each in plans}:
        for evens in {0, 1, chunk // 2, chunk - 1, chunk}:
            covered = np.zeros(chunk, int)
            for half_begin, half_end in ((0, evens), (evens, chunk)):
                for index in range(stretches):
                    begin = min(half_begin + index * stretch, half_end)
                    covered[begin : min(begin + stretch, half_end)] += 1
            assert (covered == 1).all()


def test_stretches_are_as_long_as_the_device_stays_busy(device: Device) -> None:
    enough = launch_plan.WARPS_PER_MULTIPROCESSOR * device.multiprocessors
    for layer in LAYERS:
        plan = launch_plan.backward(
            layer, 2**20, device, direction=False, need_x=True, need_tables=True
        )
        shortest = plan.stretch == min(launch_plan.STRETCHES)
        assert shortest or layer.pairs * plan.stretches >= enough


def test_sources_do_not_depend_on_the_batch(device: Device) -> None:
    """So that warmup compiles what later calls need."""
    for layer in LAYERS[::7]:
        warm = {(each.source, each.kernel) for each in launch_plan.launches(layer, device)}
        for batch in BATCHES[1:]:
            plan = launch_plan.backward(
                layer, batch, device, direction=True, need_x=True, need_tables=True
            )
            forward = launch_plan.forward(layer, batch, device, direction=False, aligned=True)
            for launch in (forward, plan.sort, plan.walk, plan.boundaries):
                assert (launch.source, launch.kernel) in warm
