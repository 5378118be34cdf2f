"""`lmkan` of tensors, derivatives, the penalty, `LMKANLinear`, `LMKANBlock`, the schedule."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from oracle import Array
from problems import DTYPES, FLOAT64, SMALL, Dtypes, Problem, Sizes, first_short, make_problem

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

HessianSchedule, LMKANBlock = adapter.HessianSchedule, adapter.LMKANBlock
LMKANLinear, lmkan = adapter.LMKANLinear, adapter.lmkan

ENGINES = [None, "torch"]
TINY = Sizes(batch=4, in_features=3, out_features=2, num_grids=4)
"""Small enough for numerical derivatives with respect to every element."""


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def tensors(problem: Problem) -> Any:
    return Problem(*map(torch.from_numpy, problem))


def assert_same(tensor: Any, array: Array) -> None:
    """Equal to the bit, with the same dtype."""
    actual = tensor.detach().numpy()
    assert actual.dtype == array.dtype
    np.testing.assert_array_equal(actual, array)


class TestLmkan:
    @pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
    def test_values_are_the_core(self, rng: np.random.Generator, dtypes: Dtypes) -> None:
        problem = make_problem(rng, SMALL, dtypes)
        x, tables, grad_y, *_ = tensors(problem)
        y = lmkan(x.requires_grad_(), tables.requires_grad_())
        y.backward(grad_y)
        assert_same(y, lmkan_cupy.forward(problem.x, problem.tables))
        grad_x, grad_tables = lmkan_cupy.backward(problem.grad_y, problem.x, problem.tables)
        assert_same(x.grad, grad_x)
        assert_same(tables.grad, grad_tables.astype(problem.tables.dtype))

    @pytest.mark.parametrize("half", first_short(["bfloat16", "float16"]))
    def test_half_tables_are_summed_in_float32(self, rng: np.random.Generator, half: str) -> None:
        x, tables, grad_y, *_ = tensors(make_problem(rng))
        narrow = tables.to(getattr(torch, half)).requires_grad_()
        wide = narrow.detach().float().requires_grad_()
        y = lmkan(x, narrow)
        torch.testing.assert_close(y, lmkan(x, wide), rtol=0, atol=0)
        y.backward(grad_y)
        lmkan(x, wide).backward(grad_y)
        assert narrow.grad.dtype == narrow.dtype
        torch.testing.assert_close(narrow.grad, wide.grad.to(narrow.dtype), rtol=0, atol=0)

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.T.contiguous().T,
            lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
            lambda x: x[:1].expand_as(x),
            lambda x: x.reshape(3, 11, 5),
            lambda x: x[0],
        ],
        ids=["transposed", "stepped", "expanded", "3d", "1d"],
    )
    def test_views(self, rng: np.random.Generator, view: Callable[[Any], Any]) -> None:
        x, tables, *_ = tensors(make_problem(rng))
        expected = lmkan_cupy.forward(view(x).numpy(), tables.numpy())
        assert_same(lmkan(view(x), tables), expected)

    @pytest.mark.parametrize("wanted", ["x", "tables", "both"])
    def test_only_what_is_needed(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, wanted: str
    ) -> None:
        needs = []
        core = lmkan_cupy.backward

        def recorded(*arguments: Any, need_x: bool, need_tables: bool) -> Any:
            needs.append((need_x, need_tables))
            return core(*arguments, need_x=need_x, need_tables=need_tables)

        monkeypatch.setattr(lmkan_cupy, "backward", recorded)
        x, tables, grad_y, *_ = tensors(make_problem(rng))
        need_x, need_tables = wanted != "tables", wanted != "x"
        x.requires_grad_(need_x)
        tables.requires_grad_(need_tables)
        lmkan(x, tables).backward(grad_y)
        assert needs == [(need_x, need_tables)]
        assert (x.grad is not None) == need_x
        assert (tables.grad is not None) == need_tables

    def test_memory_is_shared_and_torch_allocates(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, allocated = [], []
        core, empty = lmkan_cupy.forward, torch.empty

        def recorded(*arrays: Array) -> Array:
            seen.extend(array.ctypes.data for array in arrays)
            return core(*arrays)

        def recorded_empty(*arguments: Any, **options: Any) -> Any:
            allocated.append(empty(*arguments, **options))
            return allocated[-1]

        monkeypatch.setattr(lmkan_cupy, "forward", recorded)
        monkeypatch.setattr(torch, "empty", recorded_empty)
        x, tables, *_ = tensors(make_problem(rng))
        y = lmkan(x, tables)
        assert seen == [x.data_ptr(), tables.data_ptr()]
        assert y.data_ptr() in [tensor.data_ptr() for tensor in allocated]

    @pytest.mark.parametrize("no_graph", [torch.no_grad, torch.inference_mode], ids=str)
    def test_without_a_graph(self, rng: np.random.Generator, no_graph: Any) -> None:
        x, tables, *_ = tensors(make_problem(rng))
        with no_graph():
            assert not lmkan(x, tables.requires_grad_()).requires_grad

    @pytest.mark.parametrize(
        ("convert", "text"),
        [
            (lambda x, t: (x.half(), t), "x must be float32 or float64, got float16"),
            (lambda x, t: (x, t.int()), "tables must be float32, float64, float16 .* got int32"),
            (lambda x, t: (x.half(), t.bfloat16()), "x must be float32 or float64, got float16"),
            (lambda x, t: (x.to("meta"), t), "x must be on cpu as tables is, got .* on meta"),
            (
                lambda x, t: (x.to_sparse(), t),
                r"x must be a dense tensor, got one of layout torch.sparse_coo: x.to_dense\(\)",
            ),
            (lambda x, t: (x, t.to_sparse()), "tables must be a dense tensor, got one of layout"),
            (
                lambda x, t: (x.double(), t),
                "x must be float32 where tables is float32, got float64",
            ),
        ],
        ids=[
            "half-x",
            "whole-tables",
            "two-halves",
            "other-device",
            "sparse-x",
            "sparse-tables",
            "not-promoted",
        ],
    )
    @pytest.mark.parametrize("engine", ENGINES)
    def test_errors(
        self, rng: np.random.Generator, convert: Any, text: str, engine: str | None
    ) -> None:
        x, tables, *_ = tensors(make_problem(rng))
        with pytest.raises(TypeError, match=text):
            lmkan(*convert(x, tables), engine=engine)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_sizes_that_do_not_fit(self, engine: str | None) -> None:
        with pytest.raises(ValueError, match=r"tables has 3 pairs, but x has 7 features"):
            lmkan(torch.zeros(2, 7), torch.zeros(3, 5, 5, 2), engine=engine)

    def test_unknown_engine(self) -> None:
        with pytest.raises(ValueError, match="engine must be None or 'torch', got 'numba'"):
            lmkan(torch.zeros(2, 4), torch.zeros(2, 5, 5, 2), engine="numba")


class TestDerivatives:
    """Numerical derivatives in float64; all inputs are a thousand steps away from the knots."""

    @pytest.fixture
    def x(self, rng: np.random.Generator) -> Any:
        return torch.from_numpy(make_problem(rng, TINY, FLOAT64).x)

    @pytest.fixture
    def tables(self, rng: np.random.Generator) -> Any:
        return torch.from_numpy(make_problem(rng, TINY, FLOAT64).tables)

    @pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
    @pytest.mark.parametrize("wanted", ["x", "tables", "both"])
    @pytest.mark.parametrize("engine", ENGINES)
    def test_of_lmkan(
        self, x: Any, tables: Any, wanted: str, check: str, engine: str | None
    ) -> None:
        x.requires_grad_(wanted != "tables")
        tables.requires_grad_(wanted != "x")
        assert getattr(torch.autograd, check)(partial(lmkan, engine=engine), (x, tables))

    @pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
    @pytest.mark.parametrize("engine", ENGINES)
    def test_of_the_penalty(self, check: str, engine: str | None) -> None:
        """The checks change the layer's own tables in place."""
        layer = LMKANLinear(*TINY[1:], dtype=torch.float64, engine=engine)
        assert getattr(torch.autograd, check)(lambda _: layer.hessian_penalty(), layer.tables)

    @pytest.mark.parametrize("residual", [None, "linear", "relu"])
    @pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
    @pytest.mark.parametrize("engine", ENGINES)
    def test_of_a_layer(self, x: Any, residual: str | None, check: str, engine: str | None) -> None:
        layer = LMKANLinear(*TINY[1:], residual=residual, dtype=torch.float64, engine=engine)
        assert getattr(torch.autograd, check)(layer, x.requires_grad_())

    def test_third_derivatives(self, x: Any, tables: Any) -> None:
        """Only the torch engine has them; they do not vanish if the loss is not linear."""
        x.requires_grad_()

        def third(engine: str | None) -> Any:
            y = lmkan(x, tables, engine=engine)
            for _ in range(3):
                (y,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            return y

        assert third("torch").abs().max() > 0
        with pytest.raises(NotImplementedError, match="engine='torch' has them"):
            third(None)

    def test_loss_of_forces(self, x: Any, tables: Any) -> None:
        """A loss of dy/dx reaches the tables: the core's `backward_backward`, to the bit."""
        x.requires_grad_()
        tables.requires_grad_()
        y = lmkan(x, tables)
        (forces,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (forces**2).sum().backward()
        ones = np.ones((TINY.batch, TINY.out_features))
        arrays = x.detach().numpy(), tables.detach().numpy()
        ggx = 2 * lmkan_cupy.backward(ones, *arrays)[0]
        _, grad_x, grad_tables = lmkan_cupy.backward_backward(ggx, None, ones, *arrays)
        assert_same(x.grad, grad_x)
        assert_same(tables.grad, grad_tables)


class TestHessianPenalty:
    def test_of_a_layer_is_the_core(self) -> None:
        layer = LMKANLinear(5, 7)
        penalty = layer.hessian_penalty()
        (3 * penalty).backward()
        tables = layer.tables.detach().numpy()
        assert_same(penalty, lmkan_cupy.hessian_penalty(tables))
        torch.testing.assert_close(
            layer.tables.grad, torch.from_numpy(lmkan_cupy.hessian_penalty_grad(tables, 3))
        )

    def test_of_a_model_is_the_sum_over_its_layers(self) -> None:
        inner, outer = LMKANBlock(5, 4), LMKANLinear(4, 3)
        model = torch.nn.ModuleDict({"stack": torch.nn.Sequential(inner, outer), "same": outer})
        model["other"] = torch.nn.Linear(3, 3)
        total = adapter.hessian_penalty(model)
        expected = inner.layer.hessian_penalty() + outer.hessian_penalty()
        torch.testing.assert_close(total, expected)
        total.backward()
        assert all(each.tables.grad is not None for each in (inner.layer, outer))

    def test_of_a_model_without_layers(self) -> None:
        assert adapter.hessian_penalty(torch.nn.Linear(3, 3)) == 0


class TestLMKANLinear:
    @pytest.mark.parametrize("leading", [(), (6,), (0,), (2, 3)], ids=str)
    def test_stands_where_a_linear_layer_stands(self, leading: tuple[int, ...]) -> None:
        x = torch.randn(*leading, 5)
        assert LMKANLinear(5, 7)(x).shape == torch.nn.Linear(5, 7)(x).shape

    def test_sizes(self) -> None:
        layer = LMKANLinear(5, 7, 8)
        assert {name: tuple(each.shape) for name, each in layer.named_parameters()} == {
            "tables": (3, 9, 9, 7)
        }
        assert layer.tables.numel() == lmkan_cupy.num_parameters(5, 7, 8)
        assert LMKANLinear(5, 7).tables.shape == (3, 11, 11, 7)

    def test_parameters_of_the_branch(self) -> None:
        layer = LMKANLinear(5, 7, 8, residual="relu")
        assert {name: tuple(each.shape) for name, each in layer.named_parameters()} == {
            "tables": (3, 9, 9, 7),
            "weight": (7, 5),
            "bias": (7,),
        }

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_initial_tables(self, dtype: Any) -> None:
        layer = LMKANLinear(5, 50, init_scale=3, dtype=dtype)
        assert layer.tables.dtype == dtype
        bound = 3 / math.sqrt(5)
        assert 0.99 * bound < layer.tables.abs().max() <= bound
        before = layer.tables.detach().clone()
        layer.reset_parameters()
        assert (layer.tables != before).any()
        assert 0.99 * bound < layer.tables.abs().max() <= bound

    @pytest.mark.parametrize(
        ("residual", "activation"),
        [("linear", torch.nn.Identity()), ("relu", torch.nn.ReLU())],
        ids=["linear", "relu"],
    )
    @pytest.mark.parametrize("in_features", [4, 5])
    def test_branch(self, residual: str, activation: Any, in_features: int) -> None:
        layer = LMKANLinear(in_features, 7, residual=residual, dtype=torch.float64)
        x = 3 * torch.randn(33, in_features, dtype=torch.float64)
        y = layer(x)
        branch = activation(x) @ layer.weight.T + layer.bias
        torch.testing.assert_close(y, lmkan(x, layer.tables) + branch)

        fold = {"linear": lmkan_cupy.fold_linear, "relu": lmkan_cupy.fold_relu}[residual]
        parameters = (layer.tables, layer.weight, layer.bias)
        folded = fold(*(each.detach().numpy() for each in parameters))
        tables = layer.tables
        layer.fold_()
        assert layer.tables is tables  # optimisers still hold it
        assert_same(layer.tables, folded)
        torch.testing.assert_close(layer(x), y)
        assert layer.residual is None
        assert [name for name, _ in layer.named_parameters()] == ["tables"]
        assert list(layer.state_dict()) == ["tables"]
        layer.fold_()  # nothing is left to fold
        assert_same(layer.tables, folded)

    def test_refine_changes_nothing(self) -> None:
        layer = LMKANLinear(5, 7, 4, residual="relu", dtype=torch.float64)
        x = 3 * torch.randn(33, 5, dtype=torch.float64)
        y = layer(x)
        refined = lmkan_cupy.refine(layer.tables.detach().numpy(), 12)
        layer.refine_(12)
        assert_same(layer.tables, refined)
        assert layer.tables.requires_grad
        assert layer.num_grids == 12
        torch.testing.assert_close(layer(x), y)

    @pytest.mark.parametrize("num_grids", [8, 7], ids=["multiple", "interpolated"])
    @pytest.mark.parametrize(
        "make_optimizer",
        [
            lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
            lambda p: torch.optim.SGD(p, lr=0.01),
        ],
        ids=["adam", "momentum", "sgd"],
    )
    def test_refine_takes_the_optimizer_along(
        self, num_grids: int, make_optimizer: Callable[[Any], Any]
    ) -> None:
        layer, other = LMKANLinear(5, 7, 4), LMKANLinear(7, 2, 4)
        optimizer = make_optimizer([*layer.parameters(), *other.parameters()])

        def step() -> None:
            optimizer.zero_grad()
            other(layer(torch.randn(33, 5))).square().sum().backward()
            optimizer.step()

        step()
        moments = {
            name: each.clone()
            for name, each in optimizer.state[layer.tables].items()
            if torch.is_tensor(each) and each.ndim == 4
        }
        untouched = {
            name: each.clone()
            for name, each in optimizer.state[other.tables].items()
            if torch.is_tensor(each)
        }
        layer.refine_(num_grids, optimizer)

        assert any(each is layer.tables for each in optimizer.param_groups[0]["params"])
        assert set(moments) <= set(optimizer.state[layer.tables])
        # Fused optimisers need the same memory order in parameter, gradient and moments.
        for each in (layer.tables, *(optimizer.state[layer.tables][name] for name in moments)):
            assert each.is_contiguous()
        inside = slice(1, -1)  # also inside the old grid, so nothing is extrapolated
        for name, moment in moments.items():
            refined = torch.from_numpy(lmkan_cupy.refine(moment.numpy(), num_grids))
            torch.testing.assert_close(
                optimizer.state[layer.tables][name][:, inside, inside], refined[:, inside, inside]
            )
        for name, each in untouched.items():
            torch.testing.assert_close(optimizer.state[other.tables][name], each)

        before = layer.tables.detach().clone()
        step()
        assert torch.isfinite(layer.tables).all()
        assert (layer.tables != before).any()

    def test_a_step_of_adam_after_refining_is_no_larger_than_those_before(self) -> None:
        """Moments extrapolated to where few samples fall would be 0 under the root."""
        torch.manual_seed(0)
        layer, rate = LMKANLinear(2, 1, 4), 0.01
        optimizer = torch.optim.Adam(layer.parameters(), rate)

        def largest_change() -> float:
            x = 0.6 * torch.randn(512, 2)
            optimizer.zero_grad()
            (layer(x) - x.prod(dim=1, keepdim=True)).square().mean().backward()
            before = layer.tables.detach().clone()
            optimizer.step()
            return float((layer.tables.detach() - before).abs().max())

        changes = [largest_change() for _ in range(50)]
        layer.refine_(8, optimizer)
        assert largest_change() <= max(changes)

    @pytest.mark.parametrize(
        ("make_optimizer", "kept"),
        [(torch.optim.LBFGS, "'.+'"), (torch.optim.Adafactor, "'row_var'")],
        ids=["lbfgs", "adafactor"],
    )
    def test_refine_refuses_an_optimizer_that_keeps_something_else(
        self, make_optimizer: Any, kept: str
    ) -> None:
        """LBFGS keeps all of it with the parameter that comes first, here another one."""
        layer = LMKANLinear(5, 7, 4, residual="linear")
        optimizer = make_optimizer([layer.bias, layer.weight, layer.tables])

        def loss() -> Any:
            optimizer.zero_grad()
            value = layer(torch.ones(3, 5)).square().sum()
            value.backward()
            return value

        layer.refine_(6, optimizer)  # nothing is kept before the first step
        optimizer.step(loss)
        tables = layer.tables.detach().clone()
        name = make_optimizer.__name__
        with pytest.raises(TypeError, match=f"refine_: {name} keeps {kept}, which cannot be moved"):
            layer.refine_(8, optimizer)
        assert torch.equal(layer.tables, tables)

    @pytest.mark.parametrize("half", first_short([torch.bfloat16, torch.float16]), ids=str)
    @pytest.mark.parametrize("residual", [None, "linear"])
    def test_half_tables(self, half: Any, residual: str | None) -> None:
        layer, x = LMKANLinear(5, 7, 8, residual=residual, dtype=half), torch.randn(33, 5)
        twin = LMKANLinear(5, 7, 8, residual=residual)
        twin.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=0)
        torch.testing.assert_close(layer.hessian_penalty(), twin.hessian_penalty())
        layer.refine_(16)
        assert layer.tables.dtype == half
        torch.testing.assert_close(layer.tables, twin.refine_(16).tables.to(half))

    @pytest.mark.parametrize("residual", [None, "linear", "relu", "relu_last"])
    def test_saving_copying_pickling(self, residual: str | None) -> None:
        layer, x = LMKANLinear(5, 7, residual=residual), torch.randn(33, 5)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        loaded = LMKANLinear(5, 7, residual=residual)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)

    def test_says_what_it_is(self) -> None:
        text = repr(LMKANLinear(5, 7, 8, residual="relu"))
        for part in (
            "in_features=5",
            "out_features=7",
            "num_grids=8",
            "residual='relu'",
            "engine='cpu'",
        ):
            assert part in text
        assert "engine='torch'" in repr(LMKANLinear(5, 7, engine="torch"))

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            (
                lambda: LMKANLinear(5, 7)(torch.zeros(3, 6)),
                r"LMKANLinear: x must have 5 features on its last axis, got x.shape=\(3, 6\)",
            ),
            (lambda: LMKANLinear(0, 7), "LMKANLinear: in_features must be at least 1, got 0"),
            (lambda: LMKANLinear(5, 7, 2), "LMKANLinear: num_grids must be at least 3, got 2"),
            (
                lambda: LMKANLinear(5, 7, residual="tanh"),
                "LMKANLinear: residual must be None, 'linear', 'relu' or 'relu_last', got 'tanh'",
            ),
            (
                lambda: LMKANLinear(5, 7, 9, residual="relu"),
                r"LMKANLinear: residual='relu' needs an even num_grids \(a knot at 0\), got 9",
            ),
            (
                lambda: LMKANLinear(5, 7, 8, residual="relu").refine_(9),
                r"refine_: residual='relu' needs an even num_grids \(a knot at 0\), got 9",
            ),
        ],
        ids=["six-for-five", "no-features", "two-grids", "branch", "odd-relu", "refined-to-odd"],
    )
    def test_errors(self, call: Callable[[], Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            call()


class TestLMKANBlock:
    @pytest.mark.parametrize("bound", [3.0, 0.5, None])
    @pytest.mark.parametrize("leading", [(64,), (4, 16)], ids=str)
    def test_is_norm_bound_layer(self, leading: tuple[int, ...], bound: float | None) -> None:
        block = LMKANBlock(5, 7, 8, bound=bound)
        x = 2 + 5 * torch.randn(*leading, 5)
        rows = x.reshape(-1, 5)
        normed = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
        if bound is not None:
            normed = normed.clamp(-bound, bound)
        y = block(x)
        assert y.shape == (*leading, 7)
        torch.testing.assert_close(y.reshape(-1, 7), lmkan(normed, block.layer.tables))

    def test_bounds_by_default(self) -> None:
        """An outlier far beyond three deviations gives what three deviations give."""
        block = LMKANBlock(2, 1).eval()
        far, bound = torch.tensor([[1e6, -1e6]]), torch.tensor([[3.0, -3.0]])
        torch.testing.assert_close(block(far), lmkan(bound, block.layer.tables))

    def test_parameters_are_the_layer_s(self) -> None:
        block = LMKANBlock(5, 7, 8, residual="linear", init_scale=2.0, dtype=torch.float64)
        names = [name.rpartition(".")[2] for name, _ in block.named_parameters()]
        assert sorted(names) == ["bias", "tables", "weight"]
        assert block.layer.tables.abs().max() > 0.5
        assert block(torch.randn(9, 5, dtype=torch.float64)).dtype == torch.float64


class TestHessianSchedule:
    def test_of_the_authors(self) -> None:
        """1 / 10^(epoch / 30) for 250 of 500 epochs, then 0 and a cosine."""
        schedule = HessianSchedule(500)
        for epoch in (0, 30, 100, 249):
            weight, rate = schedule(epoch)
            assert weight == pytest.approx(10 ** (-epoch / 30))
            assert rate == 1
        for epoch in (250, 300, 375, 500):
            weight, rate = schedule(epoch)
            assert weight == 0
            assert rate == pytest.approx((1 + math.cos(math.pi * (epoch - 250) / 250)) / 2)

    def test_with_a_floor(self) -> None:
        """From 2 to 0.02 in 80 steps: halfway at the geometric mean."""
        schedule = HessianSchedule(100, start=2.0, floor=0.02, decay_fraction=0.8)
        weights, rates = zip(*map(schedule, range(101)), strict=True)
        assert weights[0] == 2
        assert weights[40] == pytest.approx(0.2)
        assert weights[80:] == (0.02,) * 21
        assert rates[:81] == (1.0,) * 81
        assert rates[90] == pytest.approx(0.5)
        assert rates[100] == pytest.approx(0)
        assert list(weights) == sorted(weights, reverse=True)
        assert list(rates) == sorted(rates, reverse=True)

    @pytest.mark.parametrize("weight", [0.0, 0.1])
    def test_with_a_constant_weight(self, weight: float) -> None:
        schedule = HessianSchedule(10, start=weight, floor=weight)
        assert [schedule(step)[0] for step in range(10)] == pytest.approx([weight] * 10)

    @pytest.mark.parametrize("fraction", [0.0, 1.0])
    def test_with_one_part_only(self, fraction: float) -> None:
        schedule = HessianSchedule(10, floor=0.1, decay_fraction=fraction)
        weights, rates = zip(*map(schedule, range(10)), strict=True)
        assert (len(set(weights)) == 1) == (fraction == 0)
        assert (len(set(rates)) == 1) == (fraction == 1)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
            ({"total_steps": 9, "floor": 2.0}, "0 <= floor <= start, got floor=2.0, start=1.0"),
            ({"total_steps": 9, "start": -1.0}, "0 <= floor <= start, got floor=0.0, start=-1.0"),
            ({"total_steps": 9, "decay_fraction": 1.5}, r"must be in \[0, 1\], got 1.5"),
        ],
        ids=["no-steps", "floor-above-start", "start-negative", "fraction"],
    )
    def test_errors(self, arguments: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            HessianSchedule(**arguments)
