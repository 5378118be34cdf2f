"""CUDA tensors: torch's streams, memory, devices, graphs and compiler.

The tests of the operators themselves run with CUDA tensors too: see test_torch_operators.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest
from problems import FLOAT32, Sizes, make_problem

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANLinear, lmkan = adapter.LMKANBlock, adapter.LMKANLinear, adapter.lmkan

pytestmark = pytest.mark.gpu

LAYER = Sizes(batch=3000, in_features=33, out_features=64, num_grids=8)
DELAY_CYCLES = 10**9
"""Half a second."""


@pytest.fixture(autouse=True)
def torch_has_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    torch.manual_seed(0)


def problem_on(rng: np.random.Generator, device: str = "cuda") -> list[Any]:
    """x, tables, grad_y, ggx, ggt."""
    return [torch.from_numpy(each).to(device) for each in make_problem(rng, LAYER, FLOAT32)]


def all_results(x: Any, tables: Any, grad_y: Any, ggx: Any, ggt: Any) -> list[Any]:
    """All results of the operators, computed on the current stream."""
    inputs = [each.detach().requires_grad_() for each in (grad_y, x, tables)]
    grad_y, x, tables = inputs
    y = lmkan(x, tables)
    grads = torch.autograd.grad(y, (x, tables), grad_y, create_graph=True)
    second = torch.autograd.grad(grads, inputs, (ggx, ggt))
    penalty = adapter.functional.hessian_penalty_of(tables)
    results = [y, *grads, *second, penalty, *torch.autograd.grad(penalty, tables)]
    return [each.detach() for each in results]


def assert_same(results: list[Any], expected: list[Any]) -> None:
    for result, same in zip(results, expected, strict=True):
        assert torch.equal(result, same)


def test_cupy_allocates_nothing(tmp_path: Path) -> None:
    """In a process of its own, where nothing else uses CuPy."""
    code = """
        import cupy, torch
        from lmkan_cupy.adapters.torch import LMKANLinear
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            layer = LMKANLinear(33, 64, 8, residual="relu", device="cuda", dtype=dtype)
            real = torch.float64 if dtype == torch.float64 else torch.float32
            x = torch.randn(33, 3000, device="cuda", dtype=real).T.requires_grad_()
            (grad_x,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
            (grad_x.square().sum() + layer.hessian_penalty()).backward()
            layer.fold_().refine_(16)
        torch.cuda.synchronize()
        pool = cupy.get_default_memory_pool()
        print(pool.used_bytes(), pool.total_bytes())
    """
    assert fresh_process.run(code, tmp_path).split() == ["0", "0"]


def test_waits_for_a_slow_producer_on_torch_s_stream(rng: np.random.Generator) -> None:
    """Work on any other stream would read the NaN that the arguments hold at first."""
    problem = problem_on(rng)
    late = [torch.full_like(each, torch.nan) for each in problem]
    expected = all_results(*problem)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY_CYCLES)
        for tensor, value in zip(late, problem, strict=True):
            tensor.copy_(value)
        results = all_results(*late)
        assert not stream.query(), "the host waited for the device"
    stream.synchronize()
    assert_same(results, expected)


def test_workspace_is_not_reused_too_early(rng: np.random.Generator) -> None:
    """Memory that torch reuses while kernels wait is written after them, on the same stream."""
    problem = problem_on(rng)
    expected = all_results(*problem)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY_CYCLES)
        results = all_results(*problem)
        for _ in range(50):
            torch.full((2**20,), torch.nan, device="cuda")
    stream.synchronize()
    assert_same(results, expected)


def test_capture_of_a_training_step() -> None:
    """Replays on new data in the same memory do what eager steps do."""

    def model_and_optimizer() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(LMKANBlock(33, 64, 8), LMKANLinear(64, 3, 8)).cuda()
        parameters = model.parameters()
        return model, torch.optim.Adam(parameters, lr=1e-2, fused=True, capturable=True)

    def step(model: Any, optimizer: Any, x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).square().mean() + 1e-3 * adapter.hessian_penalty(model)
        loss.backward()
        optimizer.step()
        return loss.detach()

    data = [torch.randn(500, 33, device="cuda") for _ in range(6)]
    eager, captured = model_and_optimizer(), model_and_optimizer()
    eager_losses = [step(*eager, x).item() for x in data]

    x = data[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up: compile kernels, allocate gradients and moments
        losses = [step(*captured, each).item() for each in data[:3]]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(*captured, x)
    for each in data[3:]:
        x.copy_(each)
        graph.replay()
        losses.append(loss.item())
    assert losses == eager_losses
    assert_same(list(captured[0].parameters()), list(eager[0].parameters()))


def test_training_in_graphs_is_eager_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts, the second on a refined grid, with chunks of steps that are cut short."""
    training = import_module("lmkan_cupy.adapters.torch.training")
    features, target = torch.randn(4096, 5, device="cuda"), torch.randn(4096, 1, device="cuda")
    trainer = training.Trainer(
        batches=training.Rows(features, target, seed=1, batch=128),
        steps=111,
        validation=(features[:500], target[:500]),
        loss=torch.nn.functional.mse_loss,
        penalty=1e-3,
        refined_num_grids=16,
    )
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(training.trainer, "_VALIDATIONS", 4)
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph))
    )

    def trained() -> tuple[float, list[Any]]:
        torch.manual_seed(0)
        network = training.block_chain((5, 16, 1), 8, training.BOUND, residual="linear").cuda()
        result = trainer.train("", network, training.parameter_groups(network))
        assert result.steps == 111
        return result.validation_loss, [*network.state_dict().values()]

    loss, state = trained()
    assert len(set(replays)) >= 2  # of the steps in each part, besides those of validations
    assert len(replays) > 6
    replays.clear()
    monkeypatch.setattr(training.trainer, "GraphedFunction", lambda function: function)
    eager_loss, eager_state = trained()
    assert not replays
    assert loss == eager_loss
    assert_same(state, eager_state)


class TestFused:
    @pytest.fixture
    def model(self) -> Any:
        blocks = LMKANBlock(33, 16, 8, residual="linear"), LMKANBlock(16, 1, 8)
        model = torch.nn.Sequential(torch.nn.Linear(5, 33), *blocks)
        model(torch.randn(500, 5))  # statistics of the normalisations
        return model.eval()

    def energies_and_forces(self, network: Any, x: Any) -> list[Any]:
        x = x.detach().requires_grad_()
        energies = network(x)
        return [energies.detach(), *torch.autograd.grad(energies.sum(), x)]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_as_the_arrays(self, model: Any, dtype: Any) -> None:
        """To the bit; these are compared with the oracle in `cuda/test_gpu.py`."""
        cupy = import_module("cupy")
        fused, x = adapter.fuse(model, dtype=dtype).cuda(), torch.randn(3000, 5, device="cuda")
        weight, bias, *tables = map(cupy.from_dlpack, fused.arrays)
        expected = lmkan_cupy.network_value_and_grad(
            cupy.from_dlpack(x), [(weight, bias), *tables], bound=fused.bounds
        )
        assert_same(self.energies_and_forces(fused, x), list(map(torch.from_dlpack, expected)))

    def test_in_a_graph(self, model: Any) -> None:
        fused, x = adapter.fuse(model).cuda(), torch.randn(3000, 5, device="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.energies_and_forces(fused, x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.energies_and_forces(fused, x)
        for _ in range(2):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert_same(results, self.energies_and_forces(fused, x))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
    def test_compiled_is_eager_to_the_bit(self, model: Any) -> None:
        fused, x = adapter.fuse(model).cuda(), torch.randn(500, 5, device="cuda")
        torch.compiler.reset()
        compiled = torch.compile(fused, fullgraph=True, mode="reduce-overhead")
        for _ in range(4):
            results = self.energies_and_forces(compiled, x)
            assert_same([each.clone() for each in results], self.energies_and_forces(fused, x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_is_eager_to_the_bit(mode: str) -> None:
    """With CUDA graphs, which the third call is the first to replay."""
    layer = LMKANLinear(33, 64, 8, device="cuda")
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(4):
        x = torch.randn(500, 33, device="cuda")
        results = []
        for each in (compiled, layer):
            leaf = x.clone().requires_grad_()
            y = each(leaf)
            results.append([y.detach().clone()])
            results[-1] += torch.autograd.grad(y.square().sum(), (leaf, layer.tables))
        assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_on_half_tables(dtype: Any) -> None:
    layer, x = LMKANLinear(33, 64, 8, device="cuda"), torch.randn(500, 33, device="cuda")
    with torch.autocast("cuda", dtype):
        y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, lmkan(x.to(dtype).float(), layer.tables.to(dtype)).to(dtype))
    y.sum().backward()
    assert layer.tables.grad.dtype == torch.float32


class TestSecondDevice:
    @pytest.fixture(autouse=True)
    def two_devices(self, torch_has_cuda: None) -> None:
        if torch.cuda.device_count() < 2:
            pytest.skip("there is only one CUDA device")

    def test_results_are_where_the_arguments_are(self, rng: np.random.Generator) -> None:
        problem = problem_on(rng)
        results = all_results(*(each.to("cuda:1") for each in problem))
        assert {str(each.device) for each in results} == {"cuda:1"}
        assert torch.cuda.current_device() == import_module("cupy").cuda.Device().id == 0
        for result, expected in zip(results, all_results(*problem), strict=True):
            torch.testing.assert_close(result.to("cuda:0"), expected)

    def test_its_own_stream(self, rng: np.random.Generator) -> None:
        problem = problem_on(rng, "cuda:1")
        expected = all_results(*problem)
        late = [torch.full_like(each, torch.nan) for each in problem]
        torch.cuda.synchronize(1)
        with torch.cuda.stream(torch.cuda.Stream(1)), torch.cuda.device(1):
            torch.cuda._sleep(DELAY_CYCLES)
            for tensor, value in zip(late, problem, strict=True):
                tensor.copy_(value)
            with torch.cuda.device(0):
                results = all_results(*late)
            torch.cuda.current_stream().synchronize()
        assert_same(results, expected)


def test_two_devices_are_too_many(rng: np.random.Generator) -> None:
    x, tables, *_ = problem_on(rng)
    with pytest.raises(TypeError, match="x must be on cuda:0 as tables is, got a tensor on cpu"):
        lmkan(x.cpu(), tables)
