"""The operators `torch.ops.lmkan_cupy`: numbers, registration, the penalty's passes, autocast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerances
from problems import (
    DTYPES,
    FLOAT32,
    FLOAT64,
    HALF_TABLES,
    SMALL,
    Dtypes,
    Sizes,
    first_short,
    make_problem,
)
from tolerances import check_each

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
functional = pytest.importorskip("lmkan_cupy.adapters.torch.functional")
operators = pytest.importorskip("lmkan_cupy.adapters.torch.operators")
tree_map_only = pytest.importorskip("torch.utils._pytree").tree_map_only
FakeTensorMode = pytest.importorskip("torch._subclasses").FakeTensorMode

LMKANLinear, lmkan = adapter.LMKANLinear, adapter.lmkan

pytestmark = pytest.mark.usefixtures("deterministic_torch")

ENGINES = [None, "torch"]
SIZES = [Sizes(0, 4, 3, 5), Sizes(1, 1, 1, 3), SMALL, Sizes(7, 3, 300, 4)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    return name


def tensors_of(
    rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes, device: str = "cpu"
) -> list[Any]:
    """x, tables, grad_y, ggx and ggt; autograd has the last in the dtype of the tables."""
    problem = make_problem(rng, sizes, dtypes)
    *others, ggt = (torch.from_numpy(each).to(device) for each in problem)
    return [*others, ggt.to(others[1].dtype)]


def hosts(tensors: Iterable[Any]) -> list[Any]:
    return [each.detach().cpu().numpy() for each in tensors]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
class TestNumbers:
    """Both engines, through autograd, against the oracle."""

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_values_and_derivatives(
        self,
        rng: np.random.Generator,
        sizes: Sizes,
        dtypes: Dtypes,
        engine: str | None,
        device: str,
    ) -> None:
        x, tables, grad_y, ggx, ggt = tensors_of(rng, sizes, dtypes, device)
        arrays = hosts((x, tables, grad_y, ggx, ggt))
        leaves = [each.requires_grad_() for each in (grad_y, x, tables)]
        y = lmkan(x, tables, engine=engine)
        assert y.dtype == x.dtype
        tolerances.forward(*arrays[:2]).check(*hosts([y]))

        grads = torch.autograd.grad(y, (x, tables), grad_y, create_graph=True)
        assert [each.dtype for each in grads] == [x.dtype, tables.dtype]
        of_x, of_tables = tolerances.backward(arrays[2], *arrays[:2])
        check_each(hosts(grads), (of_x, of_tables.stored(arrays[1].dtype)))

        second = torch.autograd.grad(grads, leaves, (ggx, ggt))
        *of_samples, of_tables = tolerances.backward_backward(*arrays[3:], arrays[2], *arrays[:2])
        check_each(hosts(second), (*of_samples, of_tables.stored(arrays[1].dtype)))

    def test_penalty(
        self, rng: np.random.Generator, dtypes: Dtypes, engine: str | None, device: str
    ) -> None:
        _, tables, *_ = tensors_of(rng, SMALL, dtypes, device)
        layer = LMKANLinear(*SMALL[1:], engine=engine, dtype=tables.dtype, device=device)
        layer.tables.data = tables
        penalty = layer.hessian_penalty()
        penalty.backward()
        of_penalty, of_grad = tolerances.hessian_penalty(*hosts([tables]), dtypes.x)
        of_penalty.check(*hosts([penalty]))
        of_grad.stored(dtypes.tables).check(*hosts([layer.tables.grad]))

    def test_bad_coordinates(
        self, rng: np.random.Generator, dtypes: Dtypes, engine: str | None, device: str
    ) -> None:
        """They spoil only their own sample."""
        x, tables, *_ = tensors_of(rng, SMALL, dtypes, device)
        expected = lmkan(x, tables, engine=engine)
        for row, bad in enumerate((np.nan, np.inf, -np.inf)):
            x[row, row] = bad
        y = lmkan(x, tables, engine=engine)
        assert not torch.isfinite(y[:3]).any()
        assert torch.equal(y[3:], expected[3:])


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_tables_on_cuda(rng: np.random.Generator, engine: str | None) -> None:
    """They are not widened first, and the layer computes with their values."""
    x, tables, grad_y, *_ = tensors_of(rng, SMALL, FLOAT32, "cuda")
    x.requires_grad_()
    tables = tables.bfloat16().requires_grad_()
    arrays = hosts((grad_y, x, tables.float()))
    y = lmkan(x, tables, engine=engine)
    tolerances.forward(*arrays[1:]).check(*hosts([y]))
    grad_x, grad_tables = torch.autograd.grad(y, (x, tables), grad_y)
    of_x, of_tables = tolerances.backward(*arrays)
    of_x.check(*hosts([grad_x]))
    assert grad_tables.dtype == torch.bfloat16
    to_bfloat16 = torch.finfo(torch.bfloat16).eps / 2 * np.abs(of_tables.value)
    replace(of_tables, bound=2 * of_tables.bound + to_bfloat16).check(*hosts([grad_tables.float()]))


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.movedim(-1, 0).contiguous().movedim(0, -1),
    "stepped": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
}


def arguments_of(rng: np.random.Generator, dtypes: Dtypes, batch: int) -> dict[str, Any]:
    """Arguments of every operator by its name; gradients of half tables are float32."""
    sizes = Sizes(batch, 3, 2, 4)
    x, tables, grad_y, ggx, ggt = map(torch.from_numpy, make_problem(rng, sizes, dtypes))
    shift, scale = x.new_tensor([0.1, -0.2, 0.3]), x.new_tensor([1.0, 2.0, 3.0])
    arrays = [tables, grad_y.new_ones(2, 2), grad_y.new_ones(2)]
    network = x, arrays, [1.5, math.inf], shift, scale
    # A window of three pixels below each other, and the window that is moved by one.
    images, along = (each[:, None, :, None] for each in (x, ggx))
    image_grad = torch.stack([grad_y, -grad_y], -1)[..., None]
    window = [3, 1], [1, 1], [1, 0, 0, 0], [1, 1], 1
    return {
        "forward": (x, tables),
        "jvp": (ggx, ggt, x, tables),
        "backward": (grad_y, x, tables, True, True),
        "backward_backward": (ggx, ggt, grad_y, x, tables),
        "conv2d_forward": (images, tables, *window),
        "conv2d_jvp": (along, ggt, images, tables, *window),
        "conv2d_backward": (image_grad, images, tables, True, True, *window),
        "conv2d_backward_backward": (along, ggt, image_grad, images, tables, *window),
        "hessian_penalty": (tables, True),
        "network": network,
        "network_grad": (grad_y, *network),
    }


class TestRegistration:
    @pytest.mark.parametrize("name", list(operators._OPERATORS))
    @pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
    @pytest.mark.parametrize(
        ("layout", "batch"),
        first_short([("contiguous", 3), ("contiguous", 0), ("transposed", 3), ("stepped", 3)], 2),
    )
    def test_opcheck(
        self,
        rng: np.random.Generator,
        name: str,
        dtypes: Dtypes,
        layout: str,
        batch: int,
        device: str,
    ) -> None:
        """Once without and once with derivatives, which three operators do not have."""
        operator = getattr(torch.ops.lmkan_cupy, name).default
        arguments = tree_map_only(
            torch.Tensor,
            lambda each: LAYOUTS[layout](each.to(device)),
            [*arguments_of(rng, dtypes, batch)[name]],
        )
        torch.library.opcheck(operator, arguments)
        if not name.endswith(("backward_backward", "network_grad")):
            arguments = [
                each.requires_grad_() if torch.is_tensor(each) else each for each in arguments
            ]
            torch.library.opcheck(operator, arguments)

    @pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["x", "tables"])
    def test_opcheck_of_half_a_backward(
        self, rng: np.random.Generator, needs: tuple[bool, bool]
    ) -> None:
        *tensors, _, _ = arguments_of(rng, FLOAT32, 3)["backward"]
        tensors = [each.requires_grad_() for each in tensors]
        torch.library.opcheck(torch.ops.lmkan_cupy.backward.default, (*tensors, *needs))
        sizes = [each.numel() for each in operators.backward(*tensors, *needs)]
        assert [size > 0 for size in sizes] == list(needs)

    @pytest.mark.parametrize("missing", [0, 1], ids=["x", "tables"])
    @pytest.mark.parametrize("name", ["jvp", "backward_backward"])
    def test_opcheck_with_one_direction(
        self, rng: np.random.Generator, name: str, missing: int
    ) -> None:
        arguments = list(arguments_of(rng, FLOAT32, 3)[name])
        arguments[missing] = None
        torch.library.opcheck(getattr(torch.ops.lmkan_cupy, name).default, arguments)

    def test_opcheck_of_a_penalty_alone(self, rng: np.random.Generator) -> None:
        """It has a derivative, too: under vmap a tensor hides that it requires one."""
        _, tables, *_ = tensors_of(rng, SMALL, FLOAT32)
        arguments = tables.requires_grad_(), False
        torch.library.opcheck(torch.ops.lmkan_cupy.hessian_penalty.default, arguments)
        penalty, nothing = operators.hessian_penalty(*arguments)
        assert nothing.numel() == 0
        (grad,) = torch.autograd.grad(penalty, tables)
        assert torch.equal(grad, operators.hessian_penalty(tables.detach(), True)[1])

    @pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
    def test_derivatives_of_the_penalty_with_its_gradient(
        self, rng: np.random.Generator, check: str
    ) -> None:
        tables, _ = arguments_of(rng, FLOAT64, 0)["hessian_penalty"]

        def function(tables: Any) -> Any:
            return operators.hessian_penalty(tables, True)

        assert getattr(torch.autograd, check)(function, tables.requires_grad_())

    @pytest.mark.parametrize("name", first_short(operators._OPERATORS))
    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
    def test_fake_cuda_tensors(self, rng: np.random.Generator, name: str, half: Any) -> None:
        """Results are on the device, in the core's dtypes; bfloat16 is accepted as it is."""
        arguments = arguments_of(rng, HALF_TABLES, 3)[name]
        real = getattr(operators, name)(*arguments)
        with FakeTensorMode() as mode:

            def fake(each: Any) -> Any:
                dtype = half if each.dtype == torch.float16 else each.dtype
                return mode.from_tensor(each).to(device="cuda:1", dtype=dtype)

            fakes = tree_map_only(torch.Tensor, fake, arguments)
            results = getattr(operators, name)(*fakes)
        for result, expected in zip(
            *((each,) if torch.is_tensor(each) else each for each in (results, real)), strict=True
        ):
            assert result.device == torch.device("cuda:1")
            assert (result.shape, result.dtype) == (expected.shape, expected.dtype)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
    def test_half_tables_stay_half(self, monkeypatch: pytest.MonkeyPatch, half: Any) -> None:
        """But for bfloat16 on the CPU, which NumPy does not have."""
        seen: list[Any] = []
        monkeypatch.setattr(operators, "forward", lambda x, tables: seen.append(tables.dtype))
        for device in ("cuda", "cpu"):
            with FakeTensorMode():
                tables = torch.empty(3, 5, 5, 7, device=device, dtype=half)
                lmkan(torch.empty(4, 5, device=device), tables)
        assert seen == [half, torch.float32 if half == torch.bfloat16 else half]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_meta_tensors(self, engine: str | None) -> None:
        layer = LMKANLinear(5, 7, device="meta", engine=engine)
        for enabled in (False, True):
            with torch.autocast("cpu", enabled=enabled):
                assert layer(torch.empty(4, 5, device="meta")).shape == (4, 7)
        assert layer.hessian_penalty().shape == ()
        with pytest.raises(ValueError, match="tables has 3 pairs, but x has 7 features"):
            lmkan(torch.empty(4, 7, device="meta"), layer.tables, engine=engine)

    @pytest.mark.parametrize("device", ["mps", "xpu"])
    def test_device_without_an_engine(self, device: str) -> None:
        with FakeTensorMode():
            x, tables = torch.empty(4, 5, device=device), torch.empty(3, 5, 5, 7, device=device)
            text = f"is on {device}:0, which has no engine: use engine='torch', or "
            with pytest.raises(TypeError, match=f"x {text}"):
                lmkan(x, tables)
            with pytest.raises(TypeError, match=f"tables {text}"):
                functional.hessian_penalty_of(tables)


class TestPassesOfThePenalty:
    """On a GPU the time of the penalty is the time to read the tables."""

    @pytest.fixture
    def layers(self) -> Any:
        return torch.nn.Sequential(LMKANLinear(5, 7, 4), LMKANLinear(7, 3, 4))

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the core's functions that were called."""
        names: list[str] = []

        def counted(name: str) -> Any:
            function = getattr(lmkan_cupy, name)
            return lambda *arguments: (names.append(name), function(*arguments))[1]

        for name in ("hessian_penalty", "hessian_penalty_and_grad"):
            monkeypatch.setattr(lmkan_cupy, name, counted(name))
        return names

    def test_one_per_layer_in_a_training_step(self, layers: Any, calls: list[str]) -> None:
        (0.1 * adapter.hessian_penalty(layers)).backward()
        assert calls == ["hessian_penalty_and_grad"] * 2

    def test_no_gradient_where_none_is_needed(self, layers: Any, calls: list[str]) -> None:
        with torch.no_grad():
            adapter.hessian_penalty(layers)
        with torch.inference_mode():
            adapter.hessian_penalty(layers)
        layers.requires_grad_(False)
        assert not adapter.hessian_penalty(layers).requires_grad
        assert calls == ["hessian_penalty"] * 6

    def test_of_a_layer_that_is_frozen(self, layers: Any, calls: list[str]) -> None:
        layers[0].requires_grad_(False)
        adapter.hessian_penalty(layers).backward()
        assert calls == ["hessian_penalty", "hessian_penalty_and_grad"]
        assert layers[0].tables.grad is None

    def test_none_in_a_second_backward(self, layers: Any, calls: list[str]) -> None:
        """The first one leaves what was kept for it unchanged."""
        penalty = 0.1 * adapter.hessian_penalty(layers)
        first, second = (
            torch.autograd.grad(penalty, list(layers.parameters()), retain_graph=True)
            for _ in range(2)
        )
        assert all(map(torch.equal, first, second))
        assert len(calls) == 2


class TestAutocast:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_computes_in_float32_on_the_cpu(self, engine: str | None, input_dtype: Any) -> None:
        x, layer = torch.randn(33, 5).to(input_dtype), LMKANLinear(5, 7, engine=engine)
        x.requires_grad_()
        expected = layer(x.float())
        grads = torch.autograd.grad(expected.bfloat16().sum(), (x, layer.tables))
        with torch.autocast("cpu"):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, expected.bfloat16())
        for grad, same in zip(torch.autograd.grad(y.sum(), (x, layer.tables)), grads, strict=True):
            assert grad.dtype == same.dtype
            assert torch.equal(grad, same)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_nested(self, engine: str | None) -> None:
        x, layer = torch.randn(33, 5), LMKANLinear(5, 7, engine=engine)
        with torch.autocast("cpu", torch.float16):
            assert layer(x).dtype == torch.float16
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(layer(x), lmkan(x, layer.tables, engine=engine).float())
            assert layer(x).dtype == torch.float16

    @pytest.mark.parametrize("engine", ENGINES)
    def test_float64_is_left_alone(self, engine: str | None) -> None:
        x = torch.randn(33, 5, dtype=torch.float64)
        layer = LMKANLinear(5, 7, engine=engine, dtype=torch.float64)
        with torch.autocast("cpu"):
            y = layer(x)
        assert torch.equal(y, layer(x))

    def test_tables_go_to_cuda_kernels_in_the_autocast_dtype(self) -> None:
        seen = []

        def evaluate(x: Any, tables: Any) -> Any:
            seen.append((x.dtype, tables.dtype))
            return operators.forward(x, tables)

        torch.set_autocast_enabled("cuda", True)  # a context would disable itself without a GPU
        try:
            with FakeTensorMode():
                x = torch.empty(4, 5, device="cuda", dtype=torch.float16)
                tables = torch.empty(3, 5, 5, 7, device="cuda")
                assert operators.under_autocast(evaluate, x, tables).dtype == torch.float16
                assert operators.forward(x, tables).dtype == torch.float16
        finally:
            torch.set_autocast_enabled("cuda", False)
        assert seen == [(torch.float32, torch.float16)]

    def test_training_with_a_scaler(self) -> None:
        """The scale is divided out again, and a step with infinite gradients is skipped."""
        layer, x = LMKANLinear(5, 7), torch.randn(33, 5)
        twin = LMKANLinear(5, 7)
        twin.load_state_dict(layer.state_dict())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (layer, twin)]
        with torch.autocast("cpu", torch.bfloat16):
            losses = [each(x).float().square().sum() for each in (layer, twin)]
        scaler.scale(losses[0]).backward()
        losses[1].backward()
        scaler.step(optimizers[0])
        optimizers[1].step()
        assert torch.equal(layer.tables, twin.tables)  # a power of two scales without rounding
        before = layer.tables.detach().clone()
        layer.tables.grad.fill_(torch.inf)
        scaler.update()
        scaler.scale(layer(x).sum()).backward()
        scaler.step(optimizers[0])
        assert torch.equal(layer.tables, before)
