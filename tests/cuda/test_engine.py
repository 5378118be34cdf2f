"""The CUDA engine around its kernels: their text, the cache, errors that name the remedy."""

from __future__ import annotations

import logging
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import lmkan_cupy
from lmkan_cupy import installation, sigma_grid
from lmkan_cupy.cuda_engine import kernel_cache, kernel_source
from lmkan_cupy.cuda_engine.forward_pass import plan_forward
from lmkan_cupy.cuda_engine.plan import Device, Launch, LayerShape

LAYER = LayerShape(2, 5, 8, "float32", "float32")
DEVICE = Device(90, 132, 227 * 1024)


def forward_launch(layer: LayerShape) -> Launch:
    return plan_forward(layer, 1, DEVICE, direction=False, aligned=True).kernel


FORWARD = forward_launch(LAYER)
STATIC_BYTES = 36


class CompileError(Exception):
    """Stands in for CuPy's exception."""


class FakeCuda:
    """The part of CuPy that the engine uses, with a compiler that records what it compiled."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.failures: list[Exception] = []
        self.capturing = False
        self.driver, self.local = 13000, 13000
        stream = SimpleNamespace(is_capturing=lambda: self.capturing)
        self.cuda = SimpleNamespace(
            compiler=SimpleNamespace(CompileException=CompileError),
            get_current_stream=lambda: stream,
            get_local_runtime_version=lambda: self.local,
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            runtime=SimpleNamespace(
                CUDARuntimeError=RuntimeError,
                driverGetVersion=lambda: self.driver,
                getDevice=lambda: 0,
                getDeviceCount=lambda: 1,
            ),
        )

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:
        if self.failures:
            raise self.failures.pop()
        self.compiled.append(code)

        def get_function(name: str) -> Any:
            kernel = SimpleNamespace(name=name, shared_size_bytes=STATIC_BYTES)
            kernel.kernel = kernel  # of the device
            return kernel

        return SimpleNamespace(get_function=get_function)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(kernel_cache, "_kernels", {})
    monkeypatch.setattr(kernel_cache, "device", lambda: DEVICE)
    monkeypatch.setattr(installation, "cupy_distributions", lambda: ["cupy-cuda13x 14.2.0"])
    return fake


class TestText:
    def test_headers_are_pasted_once_under_their_own_lines(self) -> None:
        text = kernel_source.text(FORWARD.source)
        assert text.count("struct Stencil {") == 1
        assert '#include "' not in text
        after = text.split('#line 1 "stencil.cuh"')[1]
        lines = kernel_source.read("forward.cu").splitlines()
        following = lines.index('#include "stencil.cuh"') + 2
        assert f'\n#line {following} "forward.cu"\n' in after

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_grid_is_exact(self, dtype: str) -> None:
        layer = LayerShape(2, 5, 40, dtype, dtype)
        knots = sigma_grid(40, dtype=dtype)
        text = kernel_source.text(forward_launch(layer).source)
        rows = re.search(r"GRID\[.*\] = \{(.*)\};", text)
        assert rows
        written = [row.split(", ")[0].rstrip("f") for row in rows[1][1:-1].split("}, {")]
        assert [knots.dtype.type(number) for number in written] == list(knots)

    def test_only_half_tables_need_a_header(self) -> None:
        for table, header in (("float32", None), ("float16", "fp16"), ("bfloat16", "bf16")):
            layer = LayerShape(2, 5, 8, "float32", table)
            source = forward_launch(layer).source
            found = re.findall("#include.*", kernel_source.text(source))
            assert found == ([f"#include <cuda_{header}.h>"] if header else [])


class TestCache:
    def test_a_kernel_is_compiled_once(self, cupy: FakeCuda) -> None:
        first = kernel_cache.kernel(FORWARD)
        assert kernel_cache.kernel(FORWARD) is first
        assert len(cupy.compiled) == 1

    def test_not_during_graph_capture(self, cupy: FakeCuda) -> None:
        cupy.capturing = True
        with pytest.raises(RuntimeError, match=r"forward of forward\.cu.*lmkan_cupy\.warmup"):
            kernel_cache.kernel(FORWARD)
        assert not cupy.compiled
        cupy.capturing = False
        kernel_cache.kernel(FORWARD)
        cupy.capturing = True
        kernel_cache.kernel(FORWARD)

    def test_compiler_messages_are_shown(self, cupy: FakeCuda) -> None:
        cupy.failures = [CompileError("forward.cu(30): error: no such thing")]
        with pytest.raises(RuntimeError, match=r"NVRTC 13\.0 could not(?s:.*)no such thing"):
            kernel_cache.kernel(FORWARD)

    def test_missing_headers(self, cupy: FakeCuda) -> None:
        cupy.failures = [CompileError('could not open source file "cuda_fp16.h"')]
        with pytest.raises(RuntimeError, match=r"pip install 'cupy-cuda13x\[ctk\]'"):
            kernel_cache.kernel(FORWARD)

    def test_folder_that_cannot_be_written(
        self, cupy: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "0")
        monkeypatch.setenv("CUPY_CACHE_DIR", "/read-only")
        cupy.failures = [PermissionError("not permitted")]
        with caplog.at_level(logging.WARNING, "lmkan_cupy"):
            assert kernel_cache.kernel(FORWARD).name == "forward"
        assert "/read-only cannot be written" in caplog.text
        assert "CUPY_CACHE_DIR" in caplog.text

    def test_all_shared_memory_is_allowed(self, cupy: FakeCuda) -> None:
        """A later launch of the kernel may ask for more than the one that compiles it."""
        small = Launch(FORWARD.source, "forward", 1, 128, shared_bytes=100)
        allowed = kernel_cache.kernel(small).max_dynamic_shared_size_bytes
        assert allowed + STATIC_BYTES == DEVICE.shared_bytes


@pytest.mark.parametrize("silent", ["ClockRate", "MemoryClockRate"])
def test_a_device_that_does_not_tell_its_clock_gets_the_default(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    attributes = {
        "MultiProcessorCount": 40,
        "MaxSharedMemoryPerBlockOptin": 65536,
        "ClockRate": 1590000,
        "MemoryClockRate": 5001000,
        "GlobalMemoryBusWidth": 256,
        "L2CacheSize": 4194304,
        silent: 0,
    }
    handle = SimpleNamespace(compute_capability="75", attributes=attributes)
    fake = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: handle))
    monkeypatch.setattr(kernel_cache, "_cupy", lambda: fake)
    device = kernel_cache._limits.__wrapped__(0)
    rates = {"ClockRate": device.clock_hz, "MemoryClockRate": device.memory_rate}
    told = {"ClockRate": 1.59e9, "MemoryClockRate": 320.064e9}  # of a T4
    default = {"ClockRate": DEVICE.clock_hz, "MemoryClockRate": DEVICE.memory_rate}
    assert rates == {**told, silent: default[silent]}
    assert plan_forward(LAYER, 1, device, direction=False, aligned=True).prediction.seconds


class TestObstacle:
    def test_none(self, cupy: FakeCuda) -> None:
        assert installation.cuda_obstacle() is None

    def test_no_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        monkeypatch.setattr(installation, "cupy_distributions", list)
        obstacle = installation.cuda_obstacle()
        assert obstacle
        assert installation.install_extra("cuda13") in obstacle
        with pytest.raises(RuntimeError, match="warmup: CuPy cannot be imported"):
            lmkan_cupy.warmup(4, 4, 8, device="cuda")

    def test_several_distributions(self, cupy: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ["cupy-cuda12x 14.2.0", "cupy-cuda13x 14.2.0"]
        monkeypatch.setattr(installation, "cupy_distributions", lambda: names)
        obstacle = installation.cuda_obstacle()
        assert obstacle
        assert "pip uninstall cupy-cuda12x cupy-cuda13x" in obstacle

    def test_no_driver(self, cupy: FakeCuda) -> None:
        cupy.driver = 0
        obstacle = installation.cuda_obstacle()
        assert obstacle
        assert "no NVIDIA driver" in obstacle

    def test_old_driver(self, cupy: FakeCuda) -> None:
        cupy.driver = 12040
        obstacle = installation.cuda_obstacle()
        assert obstacle
        assert "driver is for CUDA 12.4, CuPy for 13.0" in obstacle
        assert f"then {installation.install_extra('cuda12')}" in obstacle

    def test_no_device(self, cupy: FakeCuda) -> None:
        def fail() -> int:
            raise RuntimeError("cudaErrorNoDevice")

        cupy.cuda.runtime.getDeviceCount = fail
        obstacle = installation.cuda_obstacle()
        assert obstacle
        assert "nvidia-smi" in obstacle
