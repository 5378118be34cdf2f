"""Every kernel compiled for every architecture, without a GPU: no warning, no spill, within limits.

Prints registers and shared memory of each, where a single process runs these tests.
"""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from devices import DEVICES, MULTIPROCESSOR_KB, RESERVED_KB, largest_grid
from problems import first_short

from lmkan_cupy import cuda_engine
from lmkan_cupy.cuda_engine import kernel_source, network_pass
from lmkan_cupy.cuda_engine.backward_pass import WALK_BYTES
from lmkan_cupy.cuda_engine.forward_pass import through_ring
from lmkan_cupy.cuda_engine.plan import Device, Launch, LayerShape, NetworkShape, Source
from lmkan_cupy.cuda_engine.ring import MOST_STAGES, RINGS, RingShape, ring_shapes
from lmkan_cupy.installation import install_extra

STATIC_SHARED_BYTES = 48 * 1024
REGISTERS = 65536
"""Registers of a block at most, on every architecture."""

DTYPES = [
    ("float32", "float32"),
    ("float64", "float64"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
]
LAYERS = [
    *(LayerShape(512, 512, 40, *dtypes) for dtypes in DTYPES),
    *(LayerShape(512, 1, 3, *dtypes) for dtypes in DTYPES),
    *(LayerShape(512, 512, 200, *dtypes, dimension=1) for dtypes in DTYPES),
    *(LayerShape(512, 1, 3, *dtypes, dimension=1) for dtypes in DTYPES),
]
"""At both ends of the plan's choices: O decides the outputs per lane."""

on_every_device = pytest.mark.parametrize(
    "device",
    [
        pytest.param(device, marks=[] if name == "sm_90" else pytest.mark.long, id=name)
        for name, device in DEVICES.items()
    ],
)


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A line for each kernel; printed at the end, even if output is captured."""
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n")


@pytest.fixture(scope="module")
def core() -> Any:
    """NVIDIA's compiler; required in CI."""
    try:
        import cuda.bindings.nvrtc
        import cuda.core
    except ImportError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the CUDA kernels were not compiled: {error}", pytrace=False)
        pytest.skip(f"{error}; {install_extra('test')}")
    return cuda.core


class Compiled(NamedTuple):
    kernel: str
    stack: int
    spills: int
    registers: int
    shared_bytes: int


@cache  # layers that differ in the dtype of the tables have sources in common
def compile_source(core: Any, source: Source, architecture: int) -> tuple[list[Compiled], str]:
    """What ptxas says of each kernel of a source, and the compilers' warnings."""
    from cuda.pathfinder import find_nvidia_header_directory

    options = core.ProgramOptions(
        std="c++17",
        arch=f"sm_{architecture}",
        ftz=True,  # as CuPy
        include_path=[find_nvidia_header_directory("cudart")],
        ptxas_options=["-v"],
    )
    text = kernel_source.text(source)
    log = io.StringIO()
    core.Program(text, "c++", options).compile("cubin", logs=log)
    kernels = re.findall(
        r"Function properties for (\w+)\n\D*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        log.getvalue(),
    )
    warnings = [line for line in log.getvalue().splitlines() if "warning" in line.lower()]
    return [
        Compiled(name, int(stack), int(stores) + int(loads), int(registers), int(shared or 0))
        for name, stack, stores, loads, registers, shared in kernels
    ], "\n".join(warnings)


@on_every_device
@pytest.mark.parametrize(
    "layer",
    first_short(LAYERS),
    ids=lambda layer: f"O{layer.out_features}-G{layer.num_grids}-d{layer.dimension}-{layer.table}",
)
def test_kernels_fit(core: Any, table: list[str], layer: LayerShape, device: Device) -> None:
    """All kernels but the ring, which has a test of its own."""
    launches = {
        each.source: each
        for each in cuda_engine.launches(layer, device)
        if each.source.file != "forward_ring.cu"
    }
    kernels = [
        kernel
        for launch in sorted(launches.values(), key=str)
        for kernel in check_source(core, table, launch, device)
    ]
    of_walks = [each.shared_bytes for each in kernels if each.kernel == "backward"]
    assert max(of_walks) == WALK_BYTES[layer.dimension, layer.real]


@pytest.mark.long
@on_every_device
@pytest.mark.parametrize("chunks", first_short(shape.chunks for shape in RINGS))
@pytest.mark.parametrize("stages", first_short(range(2, MOST_STAGES + 1)))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rings_fit(
    core: Any, table: list[str], chunks: int, stages: int, dtype: str, device: Device
) -> None:
    """With the largest grid; along a direction half tables are widened to float."""
    shape = ring_shape(dtype, device, chunks)
    layer = LayerShape(512, 512, largest_grid(dtype, shape, device, stages), "float32", dtype)
    directions = (False, True) if dtype == "float32" else (False,)
    for packed, direction in itertools.product((True, False), directions):
        plan = through_ring(layer, 2**17, device, direction, packed, shape, stages, layer.pairs)
        check_source(core, table, plan.kernel, device)


@pytest.mark.long
@on_every_device
@pytest.mark.parametrize(("real", "tables"), DTYPES)
def test_networks_fit(core: Any, table: list[str], real: str, tables: str, device: Device) -> None:
    """Blocks of all sizes; what a block knows of the layers is in static shared memory."""
    shape = NetworkShape((10, 16, 16, 1), 8, real, tables)
    for gradient in (False, True):
        for plan in network_pass.candidates(shape, 2**20, device, gradient=gradient):
            (kernel,) = check_source(core, table, plan.kernel, device)
            assert kernel.shared_bytes <= network_pass.CHAIN_BYTES


def ring_shape(dtype: str, device: Device, chunks: int) -> RingShape:
    return next(each for each in ring_shapes(dtype, device) if each.chunks == chunks)


def check_source(core: Any, table: list[str], launch: Launch, device: Device) -> list[Compiled]:
    source = launch.source
    resident = dict(source.constants).get("BLOCKS", 1)
    capability = device.capability
    kernels, warnings = compile_source(core, source, capability)
    assert not warnings
    assert kernels
    for kernel in kernels:
        constants = " ".join(f"{name}={number}" for name, number in source.constants)
        table.append(f"sm_{capability} {source.table} G={source.num_grids} {constants}: {kernel}")
        assert kernel.spills == 0, kernel
        assert kernel.stack == 0, kernel
        assert kernel.registers * launch.threads <= REGISTERS, kernel
        assert kernel.shared_bytes <= STATIC_SHARED_BYTES, kernel
        of_block = launch.shared_bytes + kernel.shared_bytes + 1024 * RESERVED_KB[capability]
        assert resident * of_block <= 1024 * MULTIPROCESSOR_KB[capability], kernel
    return kernels
