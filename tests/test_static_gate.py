"""Every kernel compiled for every architecture, without a GPU: no warning, no spill, within limits.

Prints registers and shared memory of each (`pytest -s`).
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from lmkan_cupy import sigma_grid
from lmkan_cupy.cuda_engine import kernel_source, launch_plan
from lmkan_cupy.cuda_engine.launch_plan import Layer, Source

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
    Layer(512, 32, 3, *DTYPES[0]),
    Layer(512, 32, 28, *DTYPES[0]),
]
"""At both ends of the plan's choices: outputs per lane by O, then tables in shared memory by G."""

DEVICE = launch_plan.Device(capability=90, multiprocessors=132, shared_bytes=227 * 1024)


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
def test_kernels_fit(core: Any, layer: Layer, architecture: int) -> None:
    device = replace(DEVICE, capability=architecture)
    sources = {each.source for each in launch_plan.launches(layer, device)}
    for source in sorted(sources, key=str):
        kernels, warnings = compile_source(core, source, architecture)
        assert not warnings
        assert kernels
        for kernel in kernels:
            constants = " ".join(f"{name}={number}" for name, number in source.constants)
            print(f"sm_{architecture} {layer.table} G={layer.num_grids} {constants}: {kernel}")
            threads = launch_plan.LANES * dict(source.constants)["WARPS"]
            assert kernel.spills == 0, kernel
            assert kernel.stack == 0, kernel
            assert kernel.registers * threads <= REGISTERS, kernel
            assert kernel.shared_bytes <= STATIC_SHARED_BYTES, kernel
