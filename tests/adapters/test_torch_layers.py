"""`LMKANConv2d`, `LMKAN2DLayer`, and what holds for every layer."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from problems import first_short

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
FakeTensorMode = pytest.importorskip("torch._subclasses").FakeTensorMode

LMKAN2DLayer, LMKANConv2d = adapter.LMKAN2DLayer, adapter.LMKANConv2d
LMKANLinear, lmkan = adapter.LMKANLinear, adapter.lmkan
nn = torch.nn

ENGINES = [None, "torch"]
WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": (2, 3), "stride": (2, 1)},
    {"kernel_size": 2, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def unfolded(layer: Any, x: Any) -> Any:
    """Windows [N, L, C kh kw] by torch's own `unfold`, of an image padded as torch pads it."""
    if layer.padding == "same":
        (above, below), (left, right) = (
            (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
            for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
        )
        x, padding = nn.functional.pad(x, (left, right, above, below)), 0
    else:
        padding = 0 if layer.padding == "valid" else layer.padding
    columns = nn.functional.unfold(
        x, layer.kernel_size, layer.dilation, padding=padding, stride=layer.stride
    )
    return columns.mT


# Arguments of nn.Conv2d, with which the layer is compared.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
class TestLMKANConv2d:
    @pytest.mark.parametrize("window", WINDOWS, ids=str)
    @pytest.mark.parametrize("groups", [1, 3])
    @pytest.mark.parametrize("engine", ENGINES)
    def test_is_a_linear_layer_on_unfolded_images(
        self, window: dict[str, Any], groups: int, engine: str | None
    ) -> None:
        layer = LMKANConv2d(6, 9, groups=groups, num_grids=4, engine=engine, **window)
        x = torch.randn(2, 6, 7, 5, requires_grad=True)
        y = layer(x)
        assert y.shape == nn.Conv2d(6, 9, groups=groups, **window)(x).shape

        tables = layer.tables if groups > 1 else [layer.tables]
        columns = unfolded(layer, x).chunk(groups, -1)
        parts = [lmkan(*each, engine=engine) for each in zip(columns, tables, strict=True)]
        expected = torch.cat(parts, -1).mT.reshape(y.shape)
        exact = (
            {"rtol": 0, "atol": 0} if engine is None else {}
        )  # torch sums in an order by strides
        torch.testing.assert_close(y, expected, **exact)
        leaves = (x, layer.tables)
        for grad, same in zip(
            torch.autograd.grad(y.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(grad, same)

    def test_makes_no_array_of_windows_on_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """But on CUDA, whose engine has no convolutions."""
        seen: list[torch.Size] = []

        def windows(images: Any) -> Any:
            seen.append(images.shape)
            return images.new_empty(2, 6, 3, 3)

        layer = LMKANConv2d(4, 6, 3, groups=2)
        monkeypatch.setattr(layer, "_evaluate_windows", windows)
        layer(torch.randn(2, 4, 5, 5, requires_grad=True)).sum().backward()
        assert not seen
        with FakeTensorMode(allow_non_fake_inputs=True):
            layer(torch.empty(2, 4, 5, 5, device="cuda"))
        assert seen == [(2, 4, 5, 5)]

    def test_channels_last_is_read_as_it_lies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x = LMKANConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
        expected, seen = layer(x), []
        core = lmkan_cupy.conv2d_forward

        def recorded(x: Any, tables: Any, **window: Any) -> Any:
            seen.append(x.__array_interface__["data"][0])
            return core(x, tables, **window)

        monkeypatch.setattr(lmkan_cupy, "conv2d_forward", recorded)
        x = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
        assert seen == [x.data_ptr()]

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
    @pytest.mark.parametrize("groups", first_short([2, 1]))
    def test_derivatives(self, groups: int) -> None:
        layer = LMKANConv2d(
            2, 2, (2, 1), padding=(1, 0), groups=groups, num_grids=3, dtype=torch.float64
        )

        def evaluate(x: Any, tables: Any) -> Any:
            return torch.func.functional_call(layer, {"tables": tables}, x)

        x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 2, 2, 2).requires_grad_()
        leaves = x, layer.tables.detach().requires_grad_()
        torch.autograd.gradcheck(evaluate, leaves, check_forward_ad=True)
        torch.autograd.gradgradcheck(evaluate, leaves, check_fwd_over_rev=True)

    def test_vmap(self) -> None:
        """Over images, and over images and tables, with gradients of both."""
        layer, x = LMKANConv2d(4, 6, 3, groups=2), torch.randn(3, 2, 4, 5, 5)
        expected = torch.stack([layer(each) for each in x])
        torch.testing.assert_close(torch.func.vmap(layer)(x), expected, rtol=0, atol=0)

        def loss(x: Any, tables: Any) -> Any:
            return torch.func.functional_call(layer, {"tables": tables}, x).square().sum()

        grads = torch.func.grad(loss, argnums=(0, 1))
        tables = torch.stack([k * layer.tables.detach() for k in range(3)])
        for axes, of_member in (((0, 0), lambda k: tables[k]), ((0, None), lambda k: tables[1])):
            mapped = torch.func.vmap(grads, axes)(x, tables if axes[1] == 0 else tables[1])
            for k in range(3):
                for grad, each in zip(mapped, grads(x[k], of_member(k)), strict=True):
                    torch.testing.assert_close(grad[k], each, rtol=0, atol=0)

    def test_one_pixel_windows_are_a_view(self) -> None:
        x = torch.randn(2, 6, 7, 5)
        for stride in (1, 2):
            windows = LMKANConv2d(6, 4, 1, stride)._windows(x)
            assert windows.data_ptr() == x.data_ptr()

    def test_one_image(self) -> None:
        layer, x = LMKANConv2d(4, 3, 3, residual="linear"), torch.randn(4, 7, 5)
        torch.testing.assert_close(layer(x), layer(x[None])[0], rtol=0, atol=0)

    @pytest.mark.parametrize("sizes", [(3, 3, 1), (4, 6, 2)], ids=["odd", "grouped"])
    @pytest.mark.parametrize("window", WINDOWS[2:6], ids=str)
    @pytest.mark.parametrize(
        ("residual", "activation"),
        [("linear", nn.Identity()), ("relu", nn.ReLU())],
        ids=["linear", "relu"],
    )
    def test_branch(
        self, sizes: tuple[int, int, int], window: dict[str, Any], residual: str, activation: Any
    ) -> None:
        in_channels, out_channels, groups = sizes
        layer = LMKANConv2d(
            in_channels,
            out_channels,
            groups=groups,
            residual=residual,
            num_grids=4,
            dtype=torch.float64,
            **window,
        )
        x = torch.randn(2, in_channels, 7, 5, dtype=torch.float64)
        y = layer(x)
        twin = nn.Conv2d(in_channels, out_channels, groups=groups, dtype=torch.float64, **window)
        twin.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        plain = copy.deepcopy(layer)
        plain.weight = plain.bias = None
        torch.testing.assert_close(y, plain(x) + twin(activation(x)))

        tables, penalty = layer.tables, layer.hessian_penalty()
        layer.fold_()
        assert layer.tables is tables
        assert [name for name, _ in layer.named_parameters()] == ["tables"]
        assert layer.residual is None
        torch.testing.assert_close(layer(x), y)
        if residual == "linear":  # affine functions have no penalty
            torch.testing.assert_close(layer.hessian_penalty(), penalty)
        layer.refine_(8)
        assert layer.num_grids == 8
        torch.testing.assert_close(layer(x), y)

    def test_parameters(self) -> None:
        shapes = {
            name: tuple(each.shape)
            for name, each in LMKANConv2d(
                6, 8, (3, 2), groups=2, num_grids=4, residual="relu"
            ).named_parameters()
        }
        assert shapes == {"tables": (2, 9, 5, 5, 4), "weight": (8, 3, 3, 2), "bias": (8,)}
        layer = LMKANConv2d(6, 80, 3, init_scale=2.0, residual="linear")
        assert layer.tables.shape == (27, 11, 11, 80)
        bound = 1 / math.sqrt(6 * 9)
        assert 0.99 * 2 * bound < layer.tables.abs().max() <= 2 * bound
        for each in (layer.weight, layer.bias):
            assert 0.9 * bound < each.abs().max() <= bound

    def test_penalty_of_groups_is_their_sum(self) -> None:
        layer = LMKANConv2d(4, 6, 2, groups=2)
        model = nn.Sequential(layer, nn.ReLU())
        total = sum(
            float(lmkan_cupy.hessian_penalty(each.detach().numpy())) for each in layer.tables
        )
        assert adapter.hessian_penalty(model).item() == pytest.approx(total, rel=1e-6)

    def test_refine_takes_the_optimizer_along(self) -> None:
        layer, x = LMKANConv2d(4, 6, 2, groups=2, num_grids=4), torch.randn(2, 4, 5, 5)
        optimizer = torch.optim.Adam(layer.parameters())
        for num_grids in (8, 16):
            layer(x).square().sum().backward()
            optimizer.step()
            layer.refine_(num_grids, optimizer)
            assert optimizer.state[layer.tables]["exp_avg"].shape == layer.tables.shape

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            (
                lambda: LMKANConv2d(4, 6, 3, groups=3),
                "groups must divide in_channels=4, got groups=3",
            ),
            (lambda: LMKANConv2d(4, 6, 3, groups=4), "groups must divide out_channels=6, got"),
            (lambda: LMKANConv2d(4, 6, 0), "kernel_size must be a whole number of at least 1, or"),
            (lambda: LMKANConv2d(4, 6, 3, padding=(1, -1)), "padding must be .* of at least 0"),
            (
                lambda: LMKANConv2d(4, 6, 3, 2, "same"),
                r"padding='same' needs stride=1, got .*\(2, 2\)",
            ),
            (
                lambda: LMKANConv2d(4, 6, 3)(torch.zeros(2, 5, 9, 9)),
                r"x must have shape \[N, 4, H, W\]",
            ),
            (
                lambda: LMKANConv2d(4, 6, 3)(torch.zeros(2, 4, 9, 2)),
                "3 pixels of axis -1, where x has 2",
            ),
            (lambda: LMKANConv2d(4, 6, 3, residual="relu", num_grids=5), "needs an even num_grids"),
        ],
        ids=["in", "out", "kernel", "negative", "same", "channels", "small", "odd"],
    )
    def test_errors(self, call: Callable[[], Any], text: str) -> None:
        with pytest.raises(ValueError, match=f"LMKANConv2d: .*{text}"):
            call()


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    """A `state_dict` of the authors' class with 4 intervals, 4 inputs and 3 outputs."""
    functions = np.random.default_rng(0).normal(size=(5, 5, 3, 2)).astype(np.float32)
    log2 = 0.6931471805599453
    borders = torch.tensor([-2 * log2, -log2, 0.0, log2, 2 * log2])
    return {"func_parameter": torch.from_numpy(functions), "borders": borders}


class TestLMKAN2DLayer:
    def test_reads_and_writes_their_checkpoints(self, checkpoint: dict[str, Any]) -> None:
        layer = LMKAN2DLayer(num_grids=4, input_dim=4, output_dim=3)
        assert {name: each.shape for name, each in layer.state_dict().items()} == {
            name: each.shape for name, each in checkpoint.items()
        }
        layer.load_state_dict(checkpoint)
        for name, each in layer.state_dict().items():
            torch.testing.assert_close(each, checkpoint[name], rtol=0, atol=0)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_computes_their_functions(self, checkpoint: dict[str, Any], engine: str | None) -> None:
        layer = LMKAN2DLayer(4, 4, 3, engine=engine)
        layer.load_state_dict(checkpoint)
        x = torch.randn(4, 33)
        tables = checkpoint["func_parameter"].permute(3, 0, 1, 2).double().numpy()
        basis = oracle.basis(x.T.numpy(), checkpoint["borders"].numpy())
        expected = torch.from_numpy(oracle.forward(basis, tables).T)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)

        own = LMKANLinear(4, 3, 4)  # as the README says
        own.load_state_dict({"tables": checkpoint["func_parameter"].permute(3, 0, 1, 2)})
        torch.testing.assert_close(own(x.T), layer(x).T)
        for penalty in (layer.get_hessian_regularization(), adapter.hessian_penalty(layer)):
            torch.testing.assert_close(penalty, own.hessian_penalty())

    def test_trains(self, checkpoint: dict[str, Any]) -> None:
        layer = LMKAN2DLayer(
            4, 4, 3, tile_size_forward=16, block_size_backward=512, backward_fast_mode=True
        )
        layer.load_state_dict(checkpoint)
        x = torch.randn(4, 33, requires_grad=True)
        (layer(x).square().sum() + layer.hessian_penalty()).backward()
        assert layer.func_parameter.grad.shape == (5, 5, 3, 2)
        assert x.grad.shape == x.shape

    def test_other_knots_are_refused(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["borders"] = checkpoint["borders"] * (1 + 1e-6)
        model = nn.Sequential(LMKAN2DLayer(4, 4, 3))
        state = {f"0.{name}": each for name, each in checkpoint.items()}
        with pytest.raises(ValueError, match="borders are not the knots of num_grids=4: tensor"):
            model.load_state_dict(state)

    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda: LMKAN2DLayer(4, 5, 3), ValueError, "input_dim must be even, got 5"),
            (lambda: LMKAN2DLayer(4, 4, 3, tile=8), TypeError, "unknown arguments tile"),
            (lambda: LMKAN2DLayer(2, 4, 3), ValueError, "num_grids must be at least 3, got 2"),
            (
                lambda: LMKAN2DLayer(4, 4, 3)(torch.zeros(33, 4)),
                ValueError,
                r"x must have shape \[4, batch\], got x.shape=\(33, 4\)",
            ),
        ],
        ids=["odd", "unknown", "grids", "batch-first"],
    )
    def test_errors(self, call: Callable[[], Any], error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=f"LMKAN2DLayer: {text}"):
            call()


LAYERS: dict[str, Callable[..., Any]] = {
    "linear": lambda **options: LMKANLinear(4, 6, 4, residual="relu", **options),
    "convolution": lambda **options: LMKANConv2d(4, 6, 2, groups=2, residual="linear", **options),
    "authors": lambda **options: LMKAN2DLayer(4, 4, 6, **options),
}
INPUTS = {"linear": (33, 4), "convolution": (2, 4, 5, 5), "authors": (4, 33)}


@pytest.mark.parametrize("name", list(LAYERS))
class TestEveryLayer:
    def test_saving_copying_pickling(self, name: str) -> None:
        layer, x = LAYERS[name](), torch.randn(INPUTS[name])
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        loaded = LAYERS[name]()
        loaded.load_state_dict(torch.load(file, weights_only=True))
        for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
        twin.load_state_dict(layer.state_dict())

    def test_on_the_meta_device(self, name: str) -> None:
        """Made without memory, then filled: the same random numbers as if made on the device."""
        with torch.device("meta"):
            layer = LAYERS[name]()
        assert all(each.is_meta for each in layer.state_dict().values())
        assert layer(torch.empty(INPUTS[name], device="meta")).is_meta
        layer.to_empty(device="cpu")
        torch.manual_seed(1)
        layer.reset_parameters()
        torch.manual_seed(1)
        expected = LAYERS[name]().state_dict()
        assert list(expected) == list(layer.state_dict())
        for key, each in layer.state_dict().items():
            torch.testing.assert_close(each, expected[key], rtol=0, atol=0)

    @pytest.mark.long
    def test_compiles_without_a_break(self, name: str) -> None:
        """With its penalty, and with symbolic sizes."""
        layer, x = LAYERS[name](), torch.randn(INPUTS[name])

        def loss(x: Any) -> Any:
            return layer(x).square().sum() + layer.hessian_penalty()

        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
        parameters = list(layer.parameters())
        for grad, same in zip(
            torch.autograd.grad(compiled(x), parameters),
            torch.autograd.grad(loss(x), parameters),
            strict=True,
        ):
            torch.testing.assert_close(grad, same)

    @pytest.mark.parametrize("half", first_short([torch.bfloat16, torch.float16]), ids=str)
    @pytest.mark.parametrize("engine", ENGINES)
    def test_in_half_precision(self, name: str, half: Any, engine: str | None) -> None:
        """Computed in float32. Rounded are the tables' part, the branch and their sum."""
        layer = LAYERS[name](engine=engine).to(half)
        x = torch.randn(INPUTS[name]).to(half).requires_grad_()
        y = layer(x)
        assert y.dtype == half
        wide = copy.deepcopy(layer).float()(x.float())
        roundings = 3 * torch.finfo(half).eps * wide.abs().max().item()
        torch.testing.assert_close(y.float(), wide, rtol=0, atol=roundings)
        (y.float().square().sum() + layer.hessian_penalty()).backward()
        assert all(each.grad.dtype == half for each in (x, *layer.parameters()))
        layer.load_state_dict(layer.state_dict())
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16

    def test_is_a_leaf_of_traced_graphs(self, name: str) -> None:
        model, x = nn.Sequential(nn.Identity(), LAYERS[name]()), torch.randn(INPUTS[name])
        traced = torch.fx.symbolic_trace(model)
        operations = [(node.op, node.target) for node in traced.graph.nodes]
        assert ("call_module", "1") in operations
        assert torch.equal(traced(x), model(x))
        assert torch.equal(adapter.hessian_penalty(traced), adapter.hessian_penalty(model))
        with pytest.raises(TypeError, match=f"symbolic_trace: a {type(model[1]).__name__} is not"):
            torch.fx.symbolic_trace(model[1])

    def test_names_its_engine(self, name: str) -> None:
        assert "engine='cpu'" in repr(LAYERS[name]())
        assert "engine='torch'" in repr(LAYERS[name](engine="torch"))
        with pytest.raises(ValueError, match="engine must be None or 'torch', got 'cuda'"):
            LAYERS[name](engine="cuda")
