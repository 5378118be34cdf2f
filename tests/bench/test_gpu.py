"""`bench.gpu` and `bench.plans` without a GPU: on NumPy arrays, with the host's clock."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lmkan_cupy.adapters.torch import LMKAN2DLayer
from problems import first_short

import lmkan_cupy
from bench import host_cost, plans
from bench.gpu import correctness, host, layers, passes, penalty, training_step
from bench.gpu.layers import Point
from bench.harness import authors, cuda_device, peers, reference, results_file, timing
from bench.harness.results_file import OURS
from bench.harness.workload import Workload, make_workload
from lmkan_cupy.cuda_engine import kernel_cache
from lmkan_cupy.cuda_engine.plan import H100

CIRCUMSTANCES = {
    "commit": "abc",
    "versions": {"torch": "1"},
    "gpu": {"name": "NVIDIA Test 9"},
    "peer": None,
}
CLOCKS = {"SM": {"median": 1700, "least": 1650, "most": 1980}}


class Theirs(LMKAN2DLayer):
    """Stands in for the authors' class; ``fault`` spoils the output for some tile sizes."""

    fault: Callable[..., Any]

    def __init__(self, *sizes: int, **tiles: Any) -> None:
        super().__init__(*sizes, **tiles)
        self.tiles = tiles

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).fault(super().forward(x), **self.tiles)


class Stream(nullcontext):  # type: ignore[type-arg]
    def begin_capture(self) -> None:
        pass

    def end_capture(self) -> Any:
        return SimpleNamespace(launch=lambda stream: None)


class Graphs(ModuleType):
    """NumPy with the parts of CuPy that NumPy lacks; what is captured runs at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(synchronize=lambda: None),
        MemoryPool=lambda: SimpleNamespace(malloc=None),
        Event=lambda: SimpleNamespace(record=lambda stream: None, synchronize=lambda: None),
        Stream=lambda **_: Stream(),
        get_elapsed_time=lambda begin, end: 0.1,
        using_allocator=lambda allocator: nullcontext(),
    )


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NumPy for CuPy, the CPU for CUDA, the smallest sizes; torch compiles nothing."""
    default_stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
        Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        current_stream=lambda: default_stream,
        graph=lambda graph: nullcontext(),
        max_memory_allocated=lambda: 3 * 2**20,
        memory_allocated=lambda: 2**20,
        reset_peak_memory_stats=lambda: None,
        stream=lambda stream: nullcontext(),
        synchronize=lambda: None,
    )
    for module in (layers, passes, penalty, training_step):
        monkeypatch.setattr(module, "cupy", np)
        monkeypatch.setattr(module, "device_stopwatch", timing.stopwatch)
        monkeypatch.setattr(module, "free_memory", lambda: None)
    monkeypatch.setattr(training_step, "cuda", cuda)
    monkeypatch.setattr(layers, "watched_clocks", lambda: nullcontext(CLOCKS))
    monkeypatch.setattr(kernel_cache, "device", lambda: H100)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    theirs = ModuleType("lmKAN")
    monkeypatch.setattr(Theirs, "fault", lambda y, **_: y, raising=False)
    theirs.LMKAN2DLayer = Theirs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmKAN", theirs)
    monkeypatch.setattr(layers, "TABLES", {OURS: "float32", "float16 tables": "float16"})
    monkeypatch.setattr(layers, "SECONDS", 0.0)
    monkeypatch.setattr(layers, "GRIDS_OF_TORCH", 8)
    monkeypatch.setattr(penalty, "FEATURES", 6)
    monkeypatch.setattr(passes, "SIZES", dict(zip(Point._fields, (9, 6, 8, 300), strict=True)))
    monkeypatch.setattr(training_step, "FEATURES", (8,))
    monkeypatch.setattr(training_step, "BATCH", 64)
    monkeypatch.setattr(training_step, "REPEATS", 1)
    monkeypatch.setattr(training_step, "STEPS", 1)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)


# The checks before anything is timed


@pytest.fixture(scope="module")
def workload() -> Workload:
    return make_workload(9, 6, 8, 300)


@pytest.mark.parametrize("dtype", first_short(["float32", "float16"]))
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros_like,
        lambda a: a * np.float32(1 + 1e-3),
        lambda a: np.full_like(a, np.nan),
        lambda a: np.concatenate([a[:-1], 0 * a[-1:]]),
    ],
    ids=["zeros", "off", "nan", "the last is missing"],
)
def test_wrong_results_of_a_layer_are_seen(
    workload: Workload, dtype: str, which: int, wrong: Callable[[Any], Any]
) -> None:
    rounded = workload.with_tables(dtype)
    arguments = rounded.x, rounded.tables
    results = [
        lmkan_cupy.forward(*arguments),
        *lmkan_cupy.backward(rounded.grad_y, *arguments),
    ]
    expected = reference.of_layer(rounded)
    expected.check("ours", *results)
    results[which] = wrong(results[which])
    with pytest.raises(AssertionError, match=f"ours, {['y', 'grad_x', 'grad_tables'][which]}: "):
        expected.check("ours", *results)


def test_tables_that_were_not_rounded_are_seen(workload: Workload) -> None:
    expected = reference.of_layer(workload.with_tables("float16"))
    with pytest.raises(AssertionError, match="y: "):
        expected.check_layer("ours", peers.lmkan(workload))


@pytest.mark.parametrize("which", [0, 1])
def test_wrong_penalties_are_seen(workload: Workload, which: int) -> None:
    results = [*lmkan_cupy.hessian_penalty_and_grad(workload.tables)]
    reference.check_penalty(workload.tables, *results)
    results[which] = results[which] * np.float32(1 + 1e-4)
    with pytest.raises(AssertionError, match="penalty"):
        reference.check_penalty(workload.tables, *results)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_wrong_double_backwards_are_seen(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None, which: int
) -> None:
    original = lmkan_cupy.backward_backward

    def wrong(*arguments: Any) -> tuple[Any, ...]:
        results = [*original(*arguments)]
        results[which] = results[which] * np.float32(1 + 1e-3)
        return tuple(results)

    assert passes.measure()["double backward"] > 0
    monkeypatch.setattr(lmkan_cupy, "backward_backward", wrong)
    with pytest.raises(
        AssertionError, match=f"double backward, {['grad_y', 'x', 'tables'][which]}"
    ):
        passes.measure()


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        ("lmkan", OURS),
        ("embedding_bag", "embedding_bag"),
        ("plain_torch", 'engine="torch"'),
    ],
)
def test_no_layer_with_tables_is_timed_unchecked(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None, factory: str, name: str
) -> None:
    make = getattr(peers, factory)

    def wrong(workload: Workload) -> peers.TimedLayer:
        layer = make(workload)
        return replace(layer, forward=lambda: layer.forward() * 1.001)

    monkeypatch.setattr(peers, factory, wrong)
    monkeypatch.setattr(layers, "time_layers", lambda *_: pytest.fail("timed"))
    with pytest.raises(AssertionError, match=f"{name}, y: "):
        layers.measure(Point(9, 6, 8, 100), with_authors=False)


@pytest.mark.parametrize(
    ("module", "function", "match"),
    [
        (penalty, "hessian_penalty_and_grad", "penalty"),
        (passes, "backward", "backward, need_x alone, grad_x"),
        (passes, "forward", "normal inputs, y"),
    ],
)
def test_no_other_pass_is_timed_unchecked(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None, module: Any, function: str, match: str
) -> None:
    original = getattr(lmkan_cupy, function)

    def wrong(*arguments: Any, **options: Any) -> Any:
        results = original(*arguments, **options)
        if isinstance(results, tuple):
            return tuple(None if each is None else each * np.float32(1.001) for each in results)
        return results * np.float32(1.001)

    monkeypatch.setattr(lmkan_cupy, function, wrong)
    with pytest.raises(AssertionError, match=match):
        module.measure()


def test_a_step_with_another_loss_is_seen(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    steps = training_step.measure(with_authors=True)["8 x 8"]
    assert {*steps} == {
        OURS,
        f"{OURS} in a graph",
        "nn.Linear",
        'engine="torch", compiled',
        "authors",
    }
    assert all(step["peak MB"] == 2 for step in steps.values())
    captured = training_step._captured

    def off(step: Any) -> Any:
        return captured(lambda: step() * 1.01)

    monkeypatch.setattr(training_step, "_captured", off)
    with pytest.raises(AssertionError, match="in a graph: the loss is"):
        training_step.measure(with_authors=False)


@pytest.mark.parametrize("captured", [False, True])
def test_only_a_captured_step_leaves_the_default_stream(
    captured: bool, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors' kernels run on the default stream, whatever torch's current stream is."""
    entered = []
    monkeypatch.setattr(
        training_step.cuda, "stream", lambda each: nullcontext(entered.append(each))
    )
    training_step._measure_step(
        training_step.StepFactory(lambda: lambda: torch.zeros(()), captured=captured)
    )
    (stream,) = entered
    assert (stream is training_step.cuda.current_stream()) != captured


def test_the_memory_of_a_graph_stays_alive(on_cpu: None) -> None:
    class Written:
        pass

    written = Written()
    alive = weakref.ref(written)
    replay = training_step._captured(lambda written=written: torch.zeros(()))
    del written
    gc.collect()
    assert alive() is not None
    assert replay() == 0


# The authors' layer


def zeros_of_large_tiles(y: Any, tile_size_forward: int, **_: Any) -> Any:
    return y * 0 if tile_size_forward == 16 else y


def no_gradients_of_large_tiles(y: Any, tile_size_backward: int = 16, **_: Any) -> Any:
    return y.detach() + 0 * y if tile_size_backward == 16 else y


def refused(y: Any, **_: Any) -> Any:
    raise ValueError("N_in must be divisible by tile_size")


def test_kernels_that_return_zeros_are_not_their_fastest(
    monkeypatch: pytest.MonkeyPatch, on_cpu: None
) -> None:
    """All sizes take a second here, so the first would be chosen, a tile of 16."""
    even = make_workload(8, 6, 8, 100)

    def clock(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
        return 1.0, call(*arguments)

    sizes = authors.fastest_sizes(even, clock)
    assert (sizes["tile_size_forward"], sizes["tile_size_backward"]) == (16, 16)
    monkeypatch.setattr(Theirs, "fault", zeros_of_large_tiles)
    assert authors.fastest_sizes(even, clock)["tile_size_forward"] == 8
    monkeypatch.setattr(Theirs, "fault", no_gradients_of_large_tiles)
    assert authors.fastest_sizes(even, clock)["tile_size_backward"] == 8


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "features", "reason"),
    [
        (refused, 8, "ValueError: N_in must be divisible by tile_size"),
        (lambda y, **_: y * 0, 8, "AssertionError: y is not ours: off by 1 of its norm"),
        (lambda y, **_: y.detach() + 0 * y, 8, "AssertionError: grad_x is not ours"),
        (lambda y, **_: y, 9, "ValueError: LMKAN2DLayer: input_dim must be even"),
    ],
    ids=["refused", "zeros", "no gradients", "odd"],
)
def test_the_reason_why_theirs_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
    on_cpu: None,
    fault: Callable[..., Any],
    features: int,
    reason: str,
) -> None:
    monkeypatch.setattr(Theirs, "fault", fault)
    measured = layers.measure(Point(features, 6, 8, 100), with_authors=True).json()
    assert measured["does not run"]["authors"].startswith(reason)
    assert "authors" not in measured["layers"]


def test_theirs_is_compared_at_full_size(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    monkeypatch.setattr(authors, "TRIED_SAMPLES", 50)
    monkeypatch.setattr(Theirs, "fault", lambda y, **_: y if y.shape[1] == 50 else y * 0)
    with pytest.raises(authors.DoesNotRun, match="y is not ours"):
        authors.fastest_sizes(make_workload(8, 6, 8, 100), timing.stopwatch)


# The whole command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> Callable[..., dict[str, Any]]:
    """Run the command without tests, start of a process and tables; return what it wrote."""
    show = ModuleType("bench.harness.console_tables")
    silent = SimpleNamespace(print=print, status=lambda text: nullcontext())
    show.__dict__.update(LEGEND="", console=lambda: silent)
    for name in "show_table", "show_timings", "show_numbers":
        setattr(show, name, lambda *_: None)
    monkeypatch.setitem(sys.modules, "bench.harness.console_tables", show)
    monkeypatch.delitem(sys.modules, "bench.gpu.__main__", raising=False)
    command = import_module("bench.gpu.__main__")
    monkeypatch.setattr(command, "free_memory", lambda: None)
    monkeypatch.setattr(correctness, "measure", dict)
    monkeypatch.setattr(host, "cupy", Graphs("cupy"))
    monkeypatch.setattr(host, "_seconds_of_start", lambda cache: 1.0)
    measure = host_cost.measure
    small = (2, 1, 4, 2)
    monkeypatch.setattr(host_cost, "measure", lambda *_, seconds: measure("cpu", small, 0.0))
    monkeypatch.setattr(layers, "points", lambda full: [Point(8, 6, 8, 100), Point(9, 6, 8, 100)])

    def run(**circumstances: Any) -> dict[str, Any]:
        path, results = results_file.resumed("gpu", CIRCUMSTANCES | circumstances)
        command.run(path, results, full=False, with_authors=True)
        return results_file.read(path)

    return run


@pytest.mark.long
def test_everything_is_written_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    results = run()
    even, odd = results["cases"]
    assert {*even["layers"]} - {*odd["layers"]} == {"authors"}
    assert {*even["layers"]} > {OURS, "float16 tables", "embedding_bag", 'engine="torch"'}
    assert even["clocks"] == CLOCKS
    assert even["limits"][OURS]["kernel"] == "forward"
    assert "share of the shared-memory limit" not in even["limits"][OURS]
    assert {*results["passes"]} >= {"double backward", "backward, need_x alone"}
    assert results["host"]["forward in a graph, us"] == 5.0
    assert results["host"]["forward of arrays, host us"] > 0
    assert {*results["penalty"]} == {"8", "16", "26", "40"}
    assert len(results["targets"]) == 23  # one of them for the training step

    def fail(*_: Any) -> None:
        raise AssertionError("measured again")

    for module in (correctness, host, penalty, passes, layers):
        monkeypatch.setattr(module, "measure", fail)
    assert run() == results
    assert len([*tmp_path.iterdir()]) == 1
    with pytest.raises(AssertionError, match="measured again"):
        run(peer="826d28c")


def test_a_point_without_memory_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., dict[str, Any]]
) -> None:
    measure = layers.measure

    def with_little_memory(point: Point, with_authors: bool) -> Any:
        if point.in_features == 8:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return measure(point, with_authors)

    monkeypatch.setattr(layers, "measure", with_little_memory)
    results = run()
    assert [case["in_features"] for case in results["cases"]] == [9]
    (missing,) = results["not measured"]
    assert missing == {
        **Point(8, 6, 8, 100)._asdict(),
        "why": "OutOfMemoryError: CUDA out of memory.",
    }
    assert run() == results


def test_share_of_the_shared_memory_limit(on_cpu: None) -> None:
    """512 x 512, B = 2^20: 65.7 ms at 16 bytes per function and sample."""
    point = Point(512, 512, 16, 2**20)
    for dtype, milliseconds in (("float32", 65.74), ("float16", 32.87)):
        assert layers.limits(point, dtype, milliseconds)[
            "share of the shared-memory limit"
        ] == pytest.approx(1, abs=1e-3)


# The results file


def test_which_results_a_run_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    path, results = results_file.resumed("gpu", CIRCUMSTANCES | {"date": "yesterday"})
    assert path.name.startswith("gpu-test-9-")
    results_file.write(path, results | {"host": 1})
    assert results_file.resumed("gpu", CIRCUMSTANCES)[0] == path
    assert results_file.resumed("gpu", CIRCUMSTANCES)[1]["circumstances"]["date"] == "yesterday"
    for other in (
        {"commit": "def"},
        {"versions": {"torch": "2"}},
        {"gpu": {"name": "NVIDIA Test 9", "driver_version": "2"}},
        {"peer": "826d28c"},
    ):
        assert "host" not in results_file.resumed("gpu", CIRCUMSTANCES | other)[1]
        with pytest.raises(ValueError, match=f"has another {next(iter(other))}"):
            results_file.resumed("gpu", CIRCUMSTANCES | other, path)
    assert "host" not in results_file.resumed("plans", CIRCUMSTANCES)[1]


def test_clocks_are_read_from_whole_lines() -> None:
    assert cuda_device._clocks("1980, 2619\n1650, 2619\n[N/A], 2619\n1700, 2619\n19") == {
        "SM": {"median": 1700, "least": 1650, "most": 1980},
        "memory": {"median": 2619, "least": 2619, "most": 2619},
    }
    assert cuda_device._clocks("") == {}


# The other commands


def test_plans_resume_where_they_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed: list[Any] = []

    def measure(point: Any) -> list[dict[str, Any]]:
        timed.append(point)
        if len(timed) == 2:
            raise torch.OutOfMemoryError("too little")
        if len(timed) == 4:
            raise KeyboardInterrupt
        return [{"chosen": True, "ms": 1.0}]

    monkeypatch.setattr(sys, "argv", ["plans"])
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(plans, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(plans, "describe", lambda: CIRCUMSTANCES["gpu"])
    monkeypatch.setattr(plans, "free_memory", lambda: None)
    monkeypatch.setattr(plans, "measure", measure)
    monkeypatch.setattr(plans, "POINTS", plans.POINTS[:5])
    with pytest.raises(KeyboardInterrupt):
        plans.main()
    plans.main()
    assert timed == [*plans.POINTS[:4], *plans.POINTS[3:]]
    results = results_file.read(*tmp_path.iterdir())
    assert [len(results[name]) for name in ("cases", "not measured")] == [4, 1]
    assert "cupy" in results["circumstances"]["versions"]


def test_host_cost() -> None:
    measured = host_cost.measure("cpu", (2, 1, 4, 2), seconds=0)
    assert {"forward of arrays", "LMKANLinear, inference mode", "nn.Linear"} <= {*measured}
    assert all(taken > 0 for taken in measured.values())
