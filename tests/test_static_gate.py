"""Every kernel compiled for every architecture, without a GPU: no warning, within limits, no spill
but for those of `ALLOWED_SPILLS`. Prints registers and shared memory of each.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from lmkan_cupy import sigma_grid
from lmkan_cupy.cuda_engine import kernel_source, launch_plan
from lmkan_cupy.cuda_engine.launch_plan import Launch, Layer, RingShape, Source

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
STATIC_SHARED_BYTES = 48 * 1024
REGISTERS = 65536
"""Of a block at most, on every architecture."""

DTYPES = [
    ("float32", "float32"),
    ("float64", "float64"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
]
LAYERS = [
    *(Layer(512, 1, 3, *dtypes) for dtypes in DTYPES),
    *(Layer(512, 512, 40, *dtypes) for dtypes in DTYPES),
]
"""At both ends of the plan's choices: outputs per lane by O."""

RINGS = [
    (shape, num_grids, stages)
    for shape, grids in zip(launch_plan.RINGS, ((16, 28), (26, 41), (30, 57)), strict=True)
    for num_grids, stages in zip(grids, (4, 2), strict=True)
]
"""Tables in shared memory: with most stages, and the largest grids of each shape."""

ALLOWED_SPILLS = {64: 96, 128: 8}
"""Registers per thread of a ring -> bytes stored and loaded. 64-byte rows have 1024 threads: there
a value or two wait in memory from pair to pair, on sm_120 eight (beside 270 instructions)."""

DEVICE = launch_plan.Device(capability=90, multiprocessors=132, shared_bytes=227 * 1024)


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A line for each kernel; shown in the end, also where output is captured."""
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
        pytest.skip(f"{error}; pip install 'lmkan-cupy[test]'")
    return cuda.core


class Compiled(NamedTuple):
    kernel: str
    stack: int
    spills: int
    registers: int
    shared_bytes: int


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
    text = kernel_source.text(source, sigma_grid(source.num_grids, dtype=source.real))
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "layer", LAYERS, ids=lambda layer: f"O{layer.out_features}-G{layer.num_grids}-{layer.table}"
)
def test_kernels_fit(core: Any, table: list[str], layer: Layer, architecture: int) -> None:
    """Rings have a test of their own."""
    device = replace(DEVICE, capability=architecture)
    launches = {
        each.source: each
        for each in launch_plan.launches(layer, device)
        if each.source.file != "forward_ring.cu"
    }
    for launch in sorted(launches.values(), key=str):
        check_source(core, table, launch, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("shape", "num_grids", "stages"), RINGS, ids=lambda each: str(getattr(each, "chunks", each))
)
def test_rings_fit(
    core: Any, table: list[str], shape: RingShape, num_grids: int, stages: int, architecture: int
) -> None:
    """What reads most of a device's memory is compiled along a direction, too."""
    layer = Layer(512, 512, num_grids, *DTYPES[0])
    for packed, direction in ((True, False), (False, False), (architecture >= 90, True)):
        plan = launch_plan.through_ring(
            layer, 2**17, DEVICE, direction, packed, shape, stages, layer.pairs
        )
        allowed = ALLOWED_SPILLS[REGISTERS // plan.kernel.threads]
        check_source(core, table, plan.kernel, architecture, allowed)


def check_source(
    core: Any, table: list[str], launch: Launch, architecture: int, allowed_spills: int = 0
) -> None:
    source = launch.source
    kernels, warnings = compile_source(core, source, architecture)
    assert not warnings
    assert kernels
    for kernel in kernels:
        constants = " ".join(f"{name}={number}" for name, number in source.constants)
        table.append(f"sm_{architecture} {source.table} G={source.num_grids} {constants}: {kernel}")
        assert kernel.spills <= allowed_spills, kernel
        assert kernel.stack <= allowed_spills, kernel
        assert kernel.registers * launch.threads <= REGISTERS, kernel
        assert kernel.shared_bytes <= STATIC_SHARED_BYTES, kernel
