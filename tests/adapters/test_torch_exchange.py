"""How tensors become arrays; stand-ins for CuPy and CUDA tensors need no GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lmkan_cupy
from lmkan_cupy import allocation

torch = pytest.importorskip("torch")
exchange = pytest.importorskip("lmkan_cupy.adapters.torch.exchange")


class TestNumpyArray:
    @pytest.mark.parametrize("shape", [(3, 4), (0, 4), (), (2, 3, 4, 5)], ids=str)
    @pytest.mark.parametrize("name", ["float32", "float64", "float16", "int32"])
    def test_is_the_same_memory(self, shape: tuple[int, ...], name: str) -> None:
        tensor = torch.zeros(shape, dtype=getattr(torch, name))
        array = exchange._Memory(tensor.device).array(tensor)
        assert (array.shape, array.dtype.name) == (shape, name)
        array[...] = 2
        assert (tensor == 2).all()

    def test_keeps_the_memory_alive(self) -> None:
        tensor = torch.zeros(3)
        storage = weakref.ref(tensor.untyped_storage())
        array = exchange._Memory(tensor.device).array(tensor)[1:]
        del tensor
        assert storage() is not None
        del array
        assert storage() is None

    def test_storage_can_still_be_resized(self) -> None:
        tensor = torch.zeros(3)
        exchange._Memory(tensor.device).array(tensor)
        tensor.untyped_storage().resize_(0)
        assert tensor.untyped_storage().size() == 0

    def test_of_a_tensor_still_to_be_negated(self) -> None:
        """Its memory holds the opposite numbers."""
        tensor = torch._neg_view(torch.arange(3.0))
        assert tensor.is_contiguous()
        array = exchange._Memory(tensor.device).array(tensor)
        np.testing.assert_array_equal(array, [0, -1, -2])


class TestCupyArray:
    """A CuPy array over host memory, which works as long as nobody reads it."""

    @pytest.fixture(autouse=True)
    def cupy(self) -> Any:
        return pytest.importorskip("cupy")

    @pytest.mark.parametrize("shape", [(3, 4), (0, 4), (), (2, 3, 4, 5)], ids=str)
    @pytest.mark.parametrize(
        "name", ["float32", "float64", "float16", "bfloat16", "int32", "uint8"]
    )
    def test_is_the_same_memory(self, shape: tuple[int, ...], name: str) -> None:
        tensor = torch.zeros(shape, dtype=getattr(torch, name))
        array = exchange.cupy_array(tensor, 1)
        assert array.data.ptr == tensor.data_ptr()
        assert array.data.device_id == 1
        assert (array.shape, array.dtype.name) == (shape, name)
        assert array.nbytes == tensor.nbytes
        assert array.flags.c_contiguous

    def test_keeps_the_memory_alive(self) -> None:
        tensor = torch.zeros(3)
        alive = weakref.ref(tensor)
        array = exchange.cupy_array(tensor, 0)[1:]
        del tensor
        assert alive() is not None
        del array
        assert alive() is None


class TestCupyJoinsTorch:
    """Device 1, on which torch's stream is 7."""

    @pytest.fixture
    def events(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        events: list[str] = []

        @contextmanager
        def context(name: str) -> Iterator[None]:
            events.append(f"enter {name}")
            yield
            events.append(f"leave {name}")

        def stream(of: Any) -> str:
            return f"stream of {of} after {events[-1]}"

        def using_allocator(allocate: Any) -> Any:
            pointer = allocate(24)
            assert pointer.of.nbytes == 24
            return context("torch's memory")

        self.device, self.stream = 0, 0
        cuda = SimpleNamespace(
            Stream=SimpleNamespace(from_external=context),
            get_current_stream=lambda: SimpleNamespace(ptr=self.stream),
            runtime=SimpleNamespace(getDevice=lambda: self.device),
            using_allocator=using_allocator,
            UnownedMemory=lambda address, size, owner, device: SimpleNamespace(of=owner),
            MemoryPointer=lambda memory, offset: memory,
        )
        empty = torch.empty
        monkeypatch.setattr(exchange, "_cupy", lambda: SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(exchange, "require_cuda_engine", lambda: events.append("checked"))
        monkeypatch.setattr(torch.cuda, "device", lambda index: context(f"device {index}"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda of: stream(of.index))
        monkeypatch.setattr(
            torch._C, "_cuda_getCurrentRawStream", {0: 0, 1: 7}.__getitem__, raising=False
        )
        monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))
        return events

    def test_device_then_stream_then_allocator(self, events: list[str]) -> None:
        """The stream is the device's current one; at the end everything is as before."""
        with exchange._cupy_joins_torch(SimpleNamespace(index=1)):
            events.append("work")
        stream_name = "stream of 1 after enter device 1"
        assert events == [
            "checked",
            "enter device 1",
            f"enter {stream_name}",
            "enter torch's memory",
            "work",
            "leave torch's memory",
            f"leave {stream_name}",
            "leave device 1",
        ]

    @pytest.mark.parametrize(("device", "stream"), [(1, 7), (1, 0), (0, 7), (0, 0)])
    def test_what_is_so_already_is_left(self, events: list[str], device: int, stream: int) -> None:
        self.device, self.stream = device, stream
        with exchange._cupy_joins_torch(SimpleNamespace(index=1)):
            entered = [event.split()[1] for event in events if event.startswith("enter")]
        joined = (device, stream) == (1, 7)
        assert entered == ([] if joined else ["device", "stream"]) + ["torch's"]


class TestCudaEngine:
    @pytest.fixture(autouse=True)
    def ask_again(self) -> Iterator[None]:
        exchange.require_cuda_engine.cache_clear()
        yield
        exchange.require_cuda_engine.cache_clear()

    def test_obstacle_comes_with_its_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The obstacle is looked for every time, since it may be gone by then."""
        obstacles = iter(["there is no NVIDIA driver: install one", "it is asleep: wake it", None])
        monkeypatch.setattr(exchange, "cuda_obstacle", lambda: next(obstacles))
        for text in ("there is no NVIDIA driver: install one", "it is asleep: wake it"):
            with pytest.raises(RuntimeError, match=f"{text}; engine='torch' needs torch alone"):
                exchange.require_cuda_engine()
        exchange.require_cuda_engine()
        exchange.require_cuda_engine()  # not looked up again, which would be slow


class TestRun:
    def test_results_are_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Results that the core allocated, others, None, and 0-d ones."""
        seen: list[Any] = []

        def function(x: Any, none: None, *, scale: float) -> Any:
            given = allocation.empty((2, 3), np.dtype("float32"), x)
            given[...] = scale * x.sum()
            point = allocation.empty((), np.dtype("float64"), x)
            point[...] = scale
            seen.extend((x, given))
            return given, None, point, x + 1

        def recorded_empty(*arguments: Any, **options: Any) -> Any:
            allocated.append(empty(*arguments, **options))
            return allocated[-1]

        x, allocated, empty = torch.arange(6.0).reshape(2, 3), [], torch.empty
        monkeypatch.setattr(torch, "empty", recorded_empty)
        given, none, point, own = exchange.run(function, x, None, scale=2.0)
        assert none is None
        assert all(each is same for each, same in zip((given, point), allocated, strict=True))
        assert torch.equal(given, torch.full((2, 3), 30.0))
        assert point.shape == ()
        assert point == 2
        assert torch.equal(own, x + 1)
        assert [each.ctypes.data for each in seen] == [x.data_ptr(), given.data_ptr()]

    def test_dtypes_that_numpy_does_not_have(self) -> None:
        """Whether or not a library like JAX has given NumPy their names."""
        tables = torch.zeros(1, 5, 5, 2, dtype=torch.float8_e4m3fn)
        text = "tensors must be float32, float64, float16 or bfloat16, got float8_e4m3fn"
        with pytest.raises(TypeError, match=text):
            exchange.run(lmkan_cupy.refine, tables, 8)

    def test_needs_arrays(self) -> None:
        tables = torch.empty(1, 5, 5, 2, device="meta")
        with pytest.raises(TypeError, match=r"refine: tensors on meta .* move them to the CPU"):
            exchange.run(lmkan_cupy.refine, tables, 8)
