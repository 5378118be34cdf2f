"""The emulator of the CUDA kernels: what it compiles, launches and refuses; good kernels pass."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import emulator
import numpy as np
import pytest
from emulator import inline_ptx
from good_kernels import CHECKS, GOOD_SOURCES, bind, good_module, paste
from problems import first_short

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools")

ARCHITECTURES = [900, 800, 750]
"""With asynchronous copies also in bulk; with small ones only; with plain copies instead."""


@pytest.mark.parametrize("check", first_short([True, False]), ids=["checked", "unchecked"])
@pytest.mark.parametrize("arch", first_short(ARCHITECTURES))
@pytest.mark.parametrize("kernel", CHECKS)
def test_good_kernel(kernel: str, arch: int, check: bool) -> None:
    module = good_module(arch, check)
    for order in emulator.ORDERS:
        CHECKS[kernel](bind(module, arch, order, seed=8))


def test_every_good_kernel_has_a_check() -> None:
    text = paste(GOOD_SOURCES)
    found = re.findall(r"__global__ void\s(?:__launch_bounds__\(\d+\))?\s*(\w+)\(", text)
    assert found == list(CHECKS)


# ---- compiling -----------------------------------------------------------------------------------


def test_a_second_compilation_reads_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    good_module(900)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "run", fail)
    CHECKS["row_sums"](bind(good_module(900), 900))


def kernel_text(statement: str, parameters: str = "float* y, int n") -> str:
    return f'extern "C" __global__ void kernel({parameters}) {{\n{statement}\n}}\n'


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("y[0] = unknown;", r"mine\.cu:2.*undeclared identifier 'unknown'"),
        ("atomicAdd(y, 1.0f);", "no floating-point atomics"),
        ("__shared__ int count = 3; y[0] = count++;", "cannot have an initial value"),
        ('asm volatile("bar.sync 0;");', "no translation of PTX bar.sync 0"),
        ('asm("cp.async.ca.shared.global [%0], [%1], 5;"::"r"(n), "l"(y));', "size of cp.async"),
    ],
)
def test_text_that_does_not_compile(statement: str, message: str) -> None:
    with pytest.raises(emulator.BuildError, match=f"(?s){message}"):
        emulator.compile(kernel_text(statement), ["kernel"], file="mine.cu")


@pytest.mark.parametrize("call", ["__reduce_add_sync(~0u, n)", 'asm("cp.async.wait_all;")'])
def test_what_older_architectures_lack_does_not_compile(call: str) -> None:
    text = kernel_text(f"{call};")
    emulator.compile(text, ["kernel"], arch=800)
    with pytest.raises(emulator.BuildError, match=r"undeclared|no member"):
        emulator.compile(text, ["kernel"], arch=750)


def test_ptx_in_a_branch_not_taken_is_no_error() -> None:
    statement = '#if __CUDA_ARCH__ >= 900\nasm("wgmma.fence;");\n#endif\ny[0] = n;'
    emulator.compile(kernel_text(statement), ["kernel"], arch=800)
    with pytest.raises(emulator.BuildError, match="wgmma"):
        emulator.compile(kernel_text(statement), ["kernel"], arch=900)


def test_inline_ptx_keeps_line_numbers_and_operands() -> None:
    text = 'a;\nasm volatile(\n"cp.async.cg.shared.global [%0], "\n"[%1], 16;" :: "r"(f(x, ":")),\n'
    translated = inline_ptx.translate(text + '"l"(p::q) : "memory");\nb;')
    first, call, *rest = translated.split("\n")
    assert (first, rest) == ("a;", ["", "", ";", "b;"])
    assert 'emulator::ptx_cp_async((f(x, ":")), (const void*)((p::q)), 16, 16);' in call


def test_dynamic_shared_memory_may_come_out_of_a_macro_or_a_template() -> None:
    text = """
        #define DYNAMIC(T, name) extern __shared__ __align__(16) T name[]
        template <class T, int N> __device__ T* scratch() { __shared__ T values[N]; return values; }
        extern "C" __global__ void first(float* y) {
            DYNAMIC(float, floats);
            floats[threadIdx.x] = 1.0f;
            scratch<float, 8>()[threadIdx.x] = 2.0f;
            y[threadIdx.x] = floats[threadIdx.x] + scratch<float, 8>()[threadIdx.x];
        }
        extern "C" __global__ void second(float* y) {
            DYNAMIC(double, doubles);
            doubles[threadIdx.x] = scratch<double, 8>()[threadIdx.x] = 2.0;
            y[threadIdx.x] = doubles[threadIdx.x];
        }
    """
    module = emulator.compile(text, ["first", "second"])
    assert module.static_shared_bytes == 8 * 4 + 8 * 8
    y = np.zeros(8, np.float32)
    module.launch("first", (1, 1, 1), (8, 1, 1), [y], 8 * 4)
    np.testing.assert_array_equal(y, 3)
    module.launch("second", (1, 1, 1), (8, 1, 1), [y], 8 * 8)
    np.testing.assert_array_equal(y, 2)
    with pytest.raises(emulator.KernelFault, match="dynamic shared memory, which has 60 bytes"):
        module.launch("second", (1, 1, 1), (8, 1, 1), [y], 60)


# ---- launching -----------------------------------------------------------------------------------

ONE = (1, 1, 1)


def simple_module(statement: str = "", parameters: str = "float* y, int n") -> emulator.Module:
    return emulator.compile(kernel_text(statement, parameters), ["kernel"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([np.zeros(1, np.float32), 1], "argument 1 of kernel must be a NumPy scalar of int32"),
        ([np.zeros(1, np.float32), 1.0], "not float"),
        ([np.zeros(1, np.float32), np.int64(1)], "not int64 scalar"),
        ([np.zeros(1, np.float32), np.uint32(1)], "not uint32 scalar"),
        ([np.zeros(1, np.float32), np.zeros(1, np.int32)], "not ndarray"),
        ([np.zeros(1, np.float64), np.int32(1)], "array of float32, not of float64"),
        ([np.float32(0), np.int32(1)], "must be an array, not float32 scalar"),
        ([np.uint64(1), np.int32(1)], "must be an array, not uint64 scalar"),
        ([None, np.int32(1)], "must be an array, not NoneType"),
        ([np.zeros(1, np.float32)], "takes 2 arguments, got 1"),
    ],
)
def test_arguments_that_cupy_would_misunderstand_are_refused(
    arguments: list[Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        simple_module().launch("kernel", ONE, ONE, arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": (0, 1, 1)},
        {"grid": (1, 65536, 1)},
        {"block": (1025, 1, 1)},
        {"block": (1, 1, 65)},
        {"block": (32, 0, 1)},
        {"shared_bytes": -1},
        {"shared_bytes": 227 * 1024 + 1},
        {"order": "sorted"},
    ],
    ids=str,
)
def test_a_launch_that_cuda_would_refuse_is_refused(wrong: dict[str, Any]) -> None:
    launch = {"grid": ONE, "block": ONE, "args": [np.zeros(1, np.float32), np.int32(1)], **wrong}
    with pytest.raises(ValueError, match="|".join(wrong)):
        simple_module().launch("kernel", **launch)


def test_every_scalar_type_arrives() -> None:
    types = {
        "bool": np.bool_(True),
        "int": np.int32(-2),
        "unsigned": np.uint32(2**32 - 3),
        "long long": np.int64(-(2**40)),
        "unsigned long long": np.uint64(2**63),
        "float": np.float32(0.1),
        "double": np.float64(0.1),
    }
    named = {f"v{i}": kind for i, kind in enumerate(types)}
    parameters = ", ".join(["double* y", *(f"{kind} {name}" for name, kind in named.items())])
    module = simple_module(" ".join(f"y[{name[1:]}] = {name};" for name in named), parameters)
    y = np.zeros(len(types))
    module.launch("kernel", ONE, ONE, [y, *types.values()])
    np.testing.assert_array_equal(y, [float(value) for value in types.values()])


def test_positions_in_three_dimensions() -> None:
    statement = """
        const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        y[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
    """
    y = np.zeros(2 * 3 * 4 * 5 * 6 * 7, np.int32)
    module = simple_module(statement, "int* y")
    module.launch("kernel", (2, 3, 4), (5, 6, 7), [y], order="random")
    np.testing.assert_array_equal(
        y.reshape(24, 210), np.arange(24)[:, None] * 1000 + np.arange(210)
    )


@pytest.mark.parametrize("kind", ["transposed", "reversed", "stepped", "broadcast"])
def test_an_array_is_an_address_and_strides_are_arguments(kind: str) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = {
        "transposed": base.T,
        "reversed": base[::-1, ::-1],
        "stepped": base[1::2, ::3],
        "broadcast": np.broadcast_to(base[:1], (3, 6)),
    }[kind]
    module = simple_module(
        "const int i = threadIdx.y, j = threadIdx.x;"
        "y[i * (int)blockDim.x + j] = x[i * rows + j * columns];",
        "const float* x, float* y, long long rows, long long columns",
    )
    y = np.full(x.shape, np.nan, np.float32)
    rows, columns = (np.int64(stride // 4) for stride in x.strides)
    module.launch("kernel", ONE, (x.shape[1], x.shape[0], 1), [x, y, rows, columns])
    np.testing.assert_array_equal(y, x)


def test_arguments_may_share_memory_as_on_a_gpu() -> None:
    module = simple_module("y[threadIdx.x] = 2 * x[threadIdx.x];", "const float* x, float* y")
    memory = np.arange(10, dtype=np.float32)
    module.launch("kernel", ONE, (10, 1, 1), [memory, memory])
    np.testing.assert_array_equal(memory, 2 * np.arange(10))
    with pytest.raises(emulator.KernelFault, match="argument 0 and argument 1"):
        module.launch("kernel", ONE, (9, 1, 1), [memory[:-1], memory[1:]])


def test_raw_memory_fits_every_pointer() -> None:
    module = simple_module("y[threadIdx.x] = make_float4(1, 2, 3, 4);", "float4* y")
    memory = np.zeros(32, np.uint8)
    module.launch("kernel", ONE, (2, 1, 1), [memory])
    np.testing.assert_array_equal(memory.view(np.float32), [1, 2, 3, 4] * 2)


def test_an_array_that_is_read_only_must_not_be_written() -> None:
    module = simple_module("y[0] = n;")
    y = np.zeros(1, np.float32)
    module.launch("kernel", ONE, ONE, [y, np.int32(7)])
    assert y[0] == 7
    y.flags.writeable = False
    with pytest.raises(emulator.KernelFault, match="argument 0, which is read-only"):
        module.launch("kernel", ONE, ONE, [y, np.int32(8)])


def test_an_empty_array_and_null_hold_nothing() -> None:
    module = simple_module("if (n) y[0] = x == nullptr;", "const void* x, float* y, int n")
    empty = np.zeros((0, 3), np.float32)
    module.launch("kernel", ONE, ONE, [np.uint64(0), empty, np.int32(0)])
    with pytest.raises(emulator.KernelFault, match="out-of-bounds"):
        module.launch("kernel", ONE, ONE, [np.uint64(0), empty, np.int32(1)])


def test_offsets_beyond_32_bits_are_not_wrapped() -> None:
    module = simple_module("y[(long long)n << 31] = 1.0f;")
    with pytest.raises(emulator.KernelFault, match=rf"at byte \+{2**33} of argument 0"):
        module.launch("kernel", ONE, ONE, [np.zeros(1, np.float32), np.int32(1)])


def test_syncwarp_orders_memory_through_a_third_lane() -> None:
    """Lanes 0 and 2 never meet, but what 0 wrote before meeting 1 is there when 2 has met 1."""
    statement = """
        __shared__ float value;
        const int lane = threadIdx.x;
        if (lane == 0) value = 5.0f;
        if (lane < 2) __syncwarp(3);
        if (lane > 0) __syncwarp(6);
        if (lane == 2) y[0] = value;
    """
    module = simple_module(statement, "float* y")
    for order in emulator.ORDERS:
        y = np.zeros(1, np.float32)
        module.launch("kernel", ONE, (3, 1, 1), [y], order=order)
        assert y[0] == 5


def test_a_lane_may_change_what_others_read_before_syncwarp() -> None:
    """Even if it then reads the word itself, as `word += n` does first."""
    statement = """
        __shared__ int word;
        if (threadIdx.x == 0) word = 1;
        __syncwarp();
        const int before = word;
        __syncwarp();
        if (threadIdx.x == 5) word += 2;
        __syncwarp();
        y[threadIdx.x] = 10 * before + word;
    """
    module = simple_module(statement, "int* y")
    for order in emulator.ORDERS:
        y = np.zeros(32, np.int32)
        module.launch("kernel", ONE, (32, 1, 1), [y], order=order)
        np.testing.assert_array_equal(y, 13)


def test_orders() -> None:
    module = good_module(900)

    def tickets(order: str, seed: int = 0) -> list[int]:
        drawn, following = np.zeros(96, np.int32), np.zeros(1, np.int32)
        module.launch("tickets", (3, 1, 1), (32, 1, 1), [drawn, following], order=order, seed=seed)
        return list(drawn)

    assert tickets("ascending") == list(range(96))
    assert tickets("descending") == list(range(96))[::-1]
    assert tickets("random", 1) == tickets("random", 1)
    assert tickets("random", 1) != tickets("random", 2)


# ---- tools ---------------------------------------------------------------------------------------


def test_missing_tools_skip_here_and_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulator import fixtures  # not earlier: pytest has to import a plugin itself

    fixtures.require_tools()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not found: ziglang"):
        fixtures.require_tools()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="were not run"):
        fixtures.require_tools()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(pytest.fail.Exception, match="not for Linux on aarch64"):
        fixtures.require_tools()
