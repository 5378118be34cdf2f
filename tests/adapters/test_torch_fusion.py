"""`fuse`: the same function as the model in evaluation, whatever torch does with it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import first_short

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANLinear, fuse = adapter.LMKANBlock, adapter.LMKANLinear, adapter.fuse
nn = torch.nn

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def _block(in_features: int, out_features: int, num_grids: int = 8, **options: Any) -> Any:
    return LMKANBlock(in_features, out_features, num_grids, init_scale=2.0, **options)


def _layer(in_features: int, out_features: int, num_grids: int = 8, **options: Any) -> Any:
    return LMKANLinear(in_features, out_features, num_grids, init_scale=2.0, **options)


def _repeated() -> Any:
    """The same modules stand in it twice."""
    cut, layer = nn.Hardtanh(-1.5, 1.5), _layer(5, 5)
    return nn.Sequential(cut, layer, cut, layer)


#: Each takes five features. A list is called one after the other.
CHAINS: dict[str, Callable[[], Any]] = {
    "layer": lambda: _layer(5, 3),
    "linear": lambda: nn.Linear(5, 3),
    "block": lambda: _block(5, 3),
    "branches": lambda: [
        _block(5, 7, residual="linear"),
        _block(7, 9, 10, residual="relu"),
        _block(9, 1, 3, residual="linear"),
    ],
    "unbounded": lambda: [_block(5, 6, bound=None), _block(6, 2, 12, bound=None)],
    "linear-in-front": lambda: [nn.Linear(5, 8), _block(8, 2)],
    "linear-between": lambda: [_layer(5, 4), nn.Linear(4, 6, bias=False), _layer(6, 2)],
    "linear-behind": lambda: [_block(5, 4), nn.Linear(4, 2)],
    "norm-in-front": lambda: [nn.BatchNorm1d(5), _layer(5, 2)],
    "norms-in-front": lambda: [nn.BatchNorm1d(5), nn.BatchNorm1d(5), _block(5, 2)],
    "norm-without-affine": lambda: [nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)],
    "norms-between": lambda: [
        *(_layer(5, 7), nn.BatchNorm1d(7), nn.BatchNorm1d(7, affine=False), _layer(7, 2)),
        *(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1), nn.BatchNorm1d(1)),
    ],
    "cuts": lambda: [nn.Hardtanh(-2, 2), nn.Identity(), nn.Hardtanh(), _layer(5, 2)],
    "nothing": lambda: [nn.Dropout(), _block(5, 2), nn.Identity(), nn.Dropout(0.9)],
    "nested": lambda: [nn.Sequential(nn.Sequential(_block(5, 4)), _block(4, 3)), _layer(3, 2)],
    "repeated": _repeated,
}


def _model(name: str) -> Any:
    """A chain in evaluation; its normalisations have statistics and weights."""
    chain = CHAINS[name]()
    model = nn.Sequential(*chain) if isinstance(chain, list) else chain
    for each in model.modules():
        if isinstance(each, nn.BatchNorm1d):
            nn.init.normal_(each.running_mean)
            nn.init.uniform_(each.running_var, 0.5, 2.0)
            if each.affine:
                nn.init.uniform_(each.weight, -2.0, 2.0)
                nn.init.normal_(each.bias)
    return model.eval()


def _rows(*shape: int, dtype: Any = None) -> Any:
    return 2 * torch.randn(*shape, 5, dtype=dtype)


def _grad(model: Any, x: Any) -> Any:
    x = x.detach().requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y, x, torch.linspace(1, 2, y.numel()).to(y).view_as(y))
    return gradient


def _equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CHAINS)
class TestSameFunction:
    @pytest.mark.parametrize("shape", [(40,), (0,), (1,)], ids=str)
    def test_in_float64(self, name: str, shape: tuple[int, ...]) -> None:
        model, x = _model(name).double(), _rows(*shape, dtype=torch.float64)
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x).detach())
        torch.testing.assert_close(_grad(fused, x), _grad(model, x))

    def test_in_float32(self, name: str) -> None:
        """No more than twice as far from float64 as the model is."""
        model, x = _model(name), _rows(400)
        exact = copy.deepcopy(model).double()(x.double()).detach()
        rounding = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
        y = fuse(model)(x)
        assert y.dtype == torch.float32
        assert (y - exact).abs().max() <= 2 * (model(x) - exact).abs().max() + rounding

    @pytest.mark.parametrize("dtype", first_short([torch.bfloat16, torch.float16]), ids=str)
    def test_half_tables_are_rounded_once(self, name: str, dtype: Any) -> None:
        model, x = _model(name), _rows(40)
        fused, wide = fuse(model, dtype=dtype), fuse(model)
        for narrow, each in zip(fused.arrays, wide.arrays, strict=True):
            assert narrow.dtype == (dtype if narrow.ndim == 4 else torch.float32)
            _equal(narrow, each.to(narrow.dtype))
            each.copy_(narrow)
        _equal(fused(x), wide(x))
        _equal(_grad(fused, x), _grad(wide, x))

    @pytest.mark.parametrize("dtype", first_short([torch.bfloat16, torch.float16]), ids=str)
    def test_half_models(self, name: str, dtype: Any) -> None:
        """x and y are half; in between all but the tables is float32."""
        model, x = _model(name).to(dtype), _rows(40).to(dtype)
        fused, wide = fuse(model), fuse(copy.deepcopy(model).float(), dtype=dtype)
        y = fused(x)
        assert y.dtype == dtype
        _equal(y, wide(x.float()).to(dtype))
        _equal(_grad(fused, x), _grad(wide, x))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_another_dtype(self, name: str, dtype: Any) -> None:
        """The whole network gets it, also where no tables stand first."""
        model, x = _model(name), _rows(40, dtype=dtype)
        if dtype == torch.float32:
            model = model.double()
        assert fuse(model, dtype=dtype)(x).dtype == dtype

    def test_training_changes_nothing(self, name: str) -> None:
        model, x = _model(name), _rows(40)
        fused = fuse(model.train())
        assert model.training
        before = fused(x)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model(x).square().sum().backward()
        optimizer.step()
        _equal(fused(x), before)
        assert not torch.allclose(fuse(model)(x), before)


@pytest.fixture
def fused() -> Any:
    """A network with everything: shift and scale, weights, tables, bounds."""
    chain = [nn.BatchNorm1d(5), nn.Linear(5, 6), _block(6, 7), _block(7, 2, residual="linear")]
    return fuse(nn.Sequential(*chain))


def test_any_leading_axes(fused: Any) -> None:
    x = _rows(2, 3, 4)
    _equal(fused(x).reshape(-1, 2), fused(x.reshape(-1, 5)))
    _equal(fused(x[0, 0, 0]), fused(x)[0, 0, 0])
    _equal(fused(x.mT.contiguous().mT), fused(x))


def test_the_operator_is_the_core(fused: Any) -> None:
    x = _rows(40)
    weight, bias, *tables = (each.numpy() for each in fused.arrays)
    options = {"shift": fused.shift.numpy(), "scale": fused.scale.numpy(), "bound": fused.bounds}
    y, grad_x = lmkan_cupy.network_value_and_grad(x.numpy(), [(weight, bias), *tables], **options)
    _equal(fused(x), torch.from_numpy(y))
    x.requires_grad_()
    _equal(torch.autograd.grad(fused(x).sum(), x)[0], torch.from_numpy(grad_x))


class TestDerivatives:
    def test_gradcheck(self, fused: Any) -> None:
        x = _rows(9, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(fused.double(), x)

    # Torch itself still uses torch.jit.script here.
    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
    def test_only_the_first_in_reverse_mode(self, fused: Any) -> None:
        x = _rows(4).requires_grad_()
        (gradient,) = torch.autograd.grad(fused(x).sum(), x, create_graph=True)
        sentence = "fuse: a fused network has first derivatives in reverse mode only"
        with pytest.raises(NotImplementedError, match=sentence):
            torch.autograd.grad(gradient.square().sum(), x)
        with pytest.raises(NotImplementedError, match=sentence):
            torch.func.jvp(fused, (x,), (x,))
        with pytest.raises(NotImplementedError, match=sentence):
            torch.func.hessian(lambda x: fused(x).sum())(x)

    def test_vmap(self, fused: Any) -> None:
        x = _rows(4, 3)
        _equal(torch.func.vmap(fused, in_dims=1, out_dims=1)(x), fused(x))
        one_by_one = torch.func.vmap(torch.func.grad(lambda x: fused(x).sum()))(x.reshape(-1, 5))
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(fused(x).sum(), x)
        _equal(one_by_one.reshape(x.shape), gradient)
        jacobian = torch.func.vmap(torch.func.jacrev(fused))(x.detach().reshape(-1, 5))
        torch.testing.assert_close(jacobian.sum(1).reshape(x.shape), gradient)

    def test_vmap_over_arrays(self, fused: Any) -> None:
        def of_arrays(tables: Any) -> Any:
            return torch.func.functional_call(fused, {"arrays.2": tables}, (_rows(4),))

        with pytest.raises(NotImplementedError, match="fuse: vmap maps the inputs"):
            torch.func.vmap(of_arrays, randomness="same")(torch.stack([fused.arrays[2]] * 3))


class TestCompilers:
    @pytest.fixture(autouse=True)
    def nothing_compiled(self) -> Iterator[None]:
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile(self, fused: Any, dynamic: bool) -> None:
        compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for rows in (4, 9):
            x = _rows(rows)
            _equal(compiled(x), fused(x))
            _equal(_grad(compiled, x), _grad(fused, x))

    @pytest.mark.parametrize(
        "make", first_short([lambda: fuse(_model("norms-between")), lambda: fuse(_model("layer"))])
    )
    def test_export(self, make: Callable[[], Any]) -> None:
        """With any batch size, as one operator, and through a file."""
        fused = make()
        batch = torch.export.Dim("batch")
        exported = torch.export.export(fused, (_rows(4),), dynamic_shapes=({0: batch},))
        called = [each.target for each in exported.graph.nodes if each.op == "call_function"]
        assert called == [torch.ops.lmkan_cupy.network.default]
        file = io.BytesIO()
        torch.export.save(exported, file)
        file.seek(0)
        x = _rows(33)
        _equal(torch.export.load(file).module()(x), fused(x))

    @pytest.mark.long
    @pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch itself
    def test_onnx(self, fused: Any, tmp_path: Path) -> None:
        onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))
        pytest.importorskip("onnxscript")
        file = tmp_path / "model.onnx"
        batch = torch.export.Dim("batch")
        options = {"dynamo": True, "dynamic_shapes": ({0: batch},), "verbose": False}
        torch.onnx.export(fused, (_rows(4),), file, **options)
        assert {node.domain for node in onnx.load(file).graph.node} == {""}
        session = onnxruntime.InferenceSession(file)
        x = _rows(33)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, fused(x), rtol=1e-5, atol=1e-5)

    def test_fx_keeps_it_as_one_node(self, fused: Any) -> None:
        x = _rows(4)
        traced = torch.fx.symbolic_trace(nn.Sequential(fused, nn.ReLU()))
        assert [each.op for each in traced.graph.nodes].count("call_module") == 2
        _equal(traced(x), fused(x).relu())
        with pytest.raises(TypeError, match="a FusedNetwork is not traced itself"):
            torch.fx.symbolic_trace(fused)


def test_autocast_leaves_the_dtype(fused: Any) -> None:
    x = _rows(4)
    expected = fused(x), fused(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        _equal(fused(x), expected[0])
        _equal(fused(x.bfloat16()), expected[1])


def test_inference_mode(fused: Any) -> None:
    x = _rows(4)
    expected = fused(x)
    with torch.inference_mode():
        _equal(fused(x), expected)


def test_meta_tensors(fused: Any) -> None:
    y = copy.deepcopy(fused).to("meta")(_rows(2, 3).to("meta"))
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 2), torch.float32, "meta")


def test_copies_and_files(fused: Any) -> None:
    x = _rows(4)
    expected = fused(x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = [copy.deepcopy(fused), torch.load(file, weights_only=False)]
    other = copy.deepcopy(fused)
    for each in other.state_dict().values():
        each.zero_()
    other.load_state_dict(fused.state_dict())
    with torch.no_grad():
        for each in fused.state_dict().values():
            each.zero_()
    for each in (*copies, other):
        assert not each.training
        _equal(each(x), expected)


def test_nothing_is_trained(fused: Any) -> None:
    assert not any(each.requires_grad for each in fused.parameters())
    assert not fused(_rows(4)).requires_grad


def _hooked(register: str) -> Any:
    model = nn.Sequential(_block(5, 3))
    getattr(model[0].layer, register)(lambda *_: None)
    return model


def _with_own_forward() -> Any:
    model = nn.Sequential(_layer(5, 3))
    model.forward = lambda x: x
    return model


def _without_statistics() -> Any:
    return nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), _layer(5, 3))


def _with_a_weight_of_zero() -> Any:
    norm = nn.BatchNorm1d(5)
    nn.init.zeros_(norm.weight)
    return nn.Sequential(norm, _layer(5, 3))


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "relu": (
        lambda: nn.Sequential(nn.Sequential(_layer(5, 3), nn.ReLU())),
        TypeError,
        "0.1 is a ReLU; a chain is made of Sequential, LMKANBlock",
    ),
    "none": (lambda: None, TypeError, "the model is a NoneType"),
    "subclass": (
        lambda: type("Chain", (nn.Sequential,), {})(_layer(5, 3)),
        TypeError,
        "the model is a Chain",
    ),
    "in-a-block": (
        lambda: nn.Sequential(replaced(_block(5, 3), bound=nn.Tanh())),
        TypeError,
        "0.bound is a Tanh",
    ),
    "hook": (
        lambda: _hooked("register_forward_hook"),
        TypeError,
        "0.layer has hooks or a forward of its own",
    ),
    "hook-of-backward": (
        lambda: _hooked("register_full_backward_hook"),
        TypeError,
        "0.layer has hooks",
    ),
    "forward": (_with_own_forward, TypeError, "the model has hooks or a forward of its own"),
    "asymmetric": (
        lambda: nn.Sequential(nn.Hardtanh(-1, 2), _layer(5, 3)),
        ValueError,
        r"0 must cut at \+-bound, got -1 and 2",
    ),
    "cut-before-linear": (
        lambda: nn.Sequential(nn.Hardtanh(), nn.Linear(5, 3)),
        TypeError,
        "1 is a Linear behind a Hardtanh; only the inputs of an LMKANLinear can be cut",
    ),
    "cut-before-norm": (
        lambda: nn.Sequential(_layer(5, 5), nn.Hardtanh(), _block(5, 3)),
        TypeError,
        "2.norm is a BatchNorm1d behind a Hardtanh",
    ),
    "cut-at-the-end": (
        lambda: nn.Sequential(_layer(5, 3), nn.Hardtanh()),
        TypeError,
        "the model ends with a Hardtanh",
    ),
    "no-statistics": (_without_statistics, TypeError, "0 has no running statistics"),
    "zero-weight": (_with_a_weight_of_zero, ValueError, "0 must not have weights of 0 in front"),
    "no-layers": (
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Identity()),
        ValueError,
        "the model must hold at least one LMKANLinear or Linear",
    ),
    "pairs-that-fit": (
        lambda: nn.Sequential(_layer(5, 4), _layer(3, 2)),
        ValueError,
        "1 must take 4 features, as what is before it gives, got 3",
    ),
    "norm-that-does-not-fit": (
        lambda: nn.Sequential(nn.BatchNorm1d(1), _layer(5, 4)),
        ValueError,
        "1 must take 1 features, as what is before it gives, got 5",
    ),
}


def replaced(module: Any, **children: Any) -> Any:
    for name, child in children.items():
        setattr(module, name, child)
    return module


@pytest.mark.parametrize(("make", "error", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named(
    make: Callable[[], Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=f"^fuse: {sentence}"):
        fuse(make())


@pytest.mark.parametrize("dtype", [torch.int8, "float16", np.float16], ids=str)
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="fuse: dtype must be float16, bfloat16, float32 or float"):
        fuse(_layer(5, 3), dtype=dtype)


@pytest.mark.parametrize("features", [4, 6])
def test_features_that_do_not_fit(features: int) -> None:
    """Also where five and six features make as many pairs."""
    sentence = r"^FusedNetwork: x must have 5 features on its last axis, got x.shape=\("
    for shape in ((2, features), ()):
        with pytest.raises(ValueError, match=sentence):
            fuse(_layer(5, 3))(torch.zeros(shape))


def test_another_device(fused: Any) -> None:
    sentence = "FusedNetwork: x must be on meta as the network is, got a tensor on cpu"
    with pytest.raises(TypeError, match=sentence):
        fused.to("meta")(_rows(4))


def test_it_shows_what_it_is(fused: Any) -> None:
    assert "FusedNetwork(\n  in_features=5, bounds=[inf, 3.0, 3.0]" in repr(fused)
