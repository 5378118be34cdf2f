"""`replace_linear`: which layers it replaces, the function that stays, and what it tells."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANLinear, replace_linear = adapter.LMKANLinear, adapter.replace_linear
nn = torch.nn


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("num_grids", [4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_computes_the_same(num_grids: int, dtype: Any) -> None:
    model = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7, bias=False), nn.Tanh(), nn.Linear(7, 3)
    ).to(dtype)
    x = 3 * torch.randn(33, 5, dtype=dtype)
    y = model(x)
    assert replace_linear(model, num_grids=num_grids) is model
    torch.testing.assert_close(model(x), y)
    kinds = [type(each).__name__ for each in model]
    middle = "Identity" if num_grids % 2 == 0 else "ReLU"
    assert kinds == ["LMKANLinear", middle, "LMKANLinear", "Tanh", "LMKANLinear"]
    assert [name.rpartition(".")[2] for name, _ in model.named_parameters()] == ["tables"] * 3
    assert all(each.dtype == dtype for each in model.parameters())
    model(x).square().sum().backward()
    assert all(each.grad is not None for each in model.parameters())


def test_of_a_nested_model_by_name() -> None:
    class Model(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 5)
            self.body = nn.ModuleDict(
                {"deep": nn.Sequential(nn.ReLU(), nn.Linear(5, 5)), "wide": nn.Linear(5, 2)}
            )

        def forward(self, x: Any) -> Any:
            return self.body["wide"](self.body["deep"](self.head(x)))

    model, seen = Model().eval(), []

    def chosen(name: str, layer: Any) -> bool:
        assert isinstance(layer, nn.Linear)
        seen.append(name)
        return name.startswith("body")

    x = torch.randn(33, 5)
    y = model(x)
    replace_linear(model, filter=chosen)
    torch.testing.assert_close(model(x), y)
    assert sorted(seen) == ["body.deep.1", "body.wide", "head"]
    assert isinstance(model.head, nn.Linear)
    assert isinstance(model.body["deep"][0], nn.Identity)
    assert isinstance(model.body["wide"], LMKANLinear)
    assert not model.body["wide"].training


def test_a_layer_in_several_places_is_one_again() -> None:
    """A ReLU is absorbed only if there is one before the layer in all its places."""
    shared = nn.Linear(5, 5)
    for second in (nn.Tanh(), nn.ReLU()):
        model = nn.Sequential(nn.ReLU(), shared, second, shared)
        x = torch.randn(33, 5)
        y = model(x)
        replace_linear(model)
        torch.testing.assert_close(model(x), y)
        assert model[1] is model[3]
        assert isinstance(model[0], nn.ReLU if isinstance(second, nn.Tanh) else nn.Identity)


def test_only_a_sequence_says_what_is_before() -> None:
    model = nn.ModuleDict({"relu": nn.ReLU(), "linear": nn.Linear(5, 3)})
    x = torch.randn(33, 5)
    y = model["linear"](x)
    replace_linear(model)
    assert isinstance(model["relu"], nn.ReLU)
    torch.testing.assert_close(model["linear"](x), y)


def test_of_a_single_layer() -> None:
    linear, x = nn.Linear(5, 3), torch.randn(33, 5)
    torch.testing.assert_close(replace_linear(linear)(x), linear(x))
    assert replace_linear(linear, filter=lambda name, layer: name != "") is linear


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(5, 3).requires_grad_(False))
    assert not replace_linear(model)[0].tables.requires_grad


class RunsInItsOwnOrder(nn.Sequential):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        h = self[1](self[0](x))
        return h + self[2](h)


def by_an_attribute(layers: Any) -> Any:
    """The same order, by a function of the object."""
    model = nn.Sequential(*layers)
    model.forward = lambda x: RunsInItsOwnOrder.forward(model, x)
    return model


@pytest.mark.parametrize("container", [lambda layers: RunsInItsOwnOrder(*layers), by_an_attribute])
def test_a_container_with_its_own_order_keeps_its_activations(container: Any) -> None:
    model, x = container([nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)]), torch.randn(33, 5)
    y = model(x)
    replace_linear(model)
    assert [type(each) for each in model] == [LMKANLinear, nn.ReLU, LMKANLinear]
    torch.testing.assert_close(model(x), y)


def test_a_subclass_in_the_order_of_its_class_is_a_sequence() -> None:
    model = type("Named", (nn.Sequential,), {})(nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(33, 5)
    y = model(x)
    replace_linear(model)
    assert isinstance(model[0], nn.Identity)
    torch.testing.assert_close(model(x), y)


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_go_on_seeing_what_they_saw(kind: str) -> None:
    def calls(model: Any) -> list[int]:
        seen: list[int] = []
        handles = [
            getattr(model[place], f"register_{kind}")(lambda *_, place=place: seen.append(place))
            for place in (2, 3)
        ]
        replace_linear(model)
        model(torch.randn(33, 5)).sum().backward()
        for handle in handles:
            handle.remove()
        return sorted(seen)

    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    assert calls(model) == [2, 3]
    kinds = [LMKANLinear, nn.ReLU, nn.Linear, nn.ReLU, LMKANLinear]
    assert [type(each) for each in model] == kinds
    replace_linear(model)  # without hooks
    assert isinstance(model[2], LMKANLinear)


@pytest.mark.parametrize("kind", ["hook", "post_accumulate_grad_hook"])
def test_hooks_of_parameters_go_on_seeing_what_they_saw(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    linear, seen = nn.Linear(5, 3), []
    getattr(linear.weight, f"register_{kind}")(lambda *_: seen.append(kind))
    assert replace_linear(linear) is linear
    assert caplog.messages == ["replace_linear: module stays: a parameter of it has hooks"]
    linear(torch.randn(33, 5)).sum().backward()
    assert seen == [kind]


def test_parametrisations_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), nn.Linear(3, 2))
    x = torch.randn(33, 5)
    y = model(x)
    replace_linear(model)
    torch.testing.assert_close(model(x), y)
    assert nn.utils.parametrize.is_parametrized(model[0], "weight")
    assert isinstance(model[1], LMKANLinear)
    assert caplog.messages == [
        "replace_linear: 0 stays: it has parametrisations: "
        "torch.nn.utils.parametrize.remove_parametrizations first"
    ]


def test_tied_weights_stay_tied(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(7, 5), "body": nn.Linear(5, 5), "head": nn.Linear(5, 7)}
    )
    model["head"].weight = model["embedding"].weight
    replace_linear(model)
    assert isinstance(model["body"], LMKANLinear)
    assert model["head"].weight is model["embedding"].weight
    assert caplog.messages == [
        "replace_linear: head stays: it shares a parameter with another module"
    ]


class TestHuggingFace:
    def test_a_transposed_weight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Conv1D(nn.Module):  # type: ignore[misc]
            """As in `transformers.pytorch_utils`."""

            def __init__(self, nf: int, nx: int) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(nx, nf))
                self.bias = nn.Parameter(torch.randn(nf))

            def forward(self, x: Any) -> Any:
                return x @ self.weight + self.bias

        model = nn.Sequential(Conv1D(8, 5), nn.ReLU(), Conv1D(3, 8))
        x = torch.randn(33, 5)
        y = model(x)
        assert isinstance(replace_linear(model)[0], Conv1D)  # no such class is loaded
        loaded = SimpleNamespace(Conv1D=Conv1D)
        monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", loaded)
        replace_linear(model)
        assert [type(each) for each in model] == [LMKANLinear, nn.Identity, LMKANLinear]
        torch.testing.assert_close(model(x), y)

    @pytest.mark.long
    def test_a_model_is_replaced_saved_and_made_again(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 11}
        config = transformers.GPT2Config(**sizes)
        model = transformers.GPT2LMHeadModel(config).eval()
        tokens = torch.randint(0, 11, (3, 7))
        logits = model(tokens).logits
        replace_linear(model)
        replaced = [name for name, each in model.named_modules() if isinstance(each, LMKANLinear)]
        assert len(replaced) == 4 * sizes["n_layer"]
        torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)
        model(tokens, labels=tokens).loss.backward()
        torch.save(model.state_dict(), tmp_path / "model.pt")
        again = replace_linear(transformers.GPT2LMHeadModel(config)).eval()
        again.load_state_dict(torch.load(tmp_path / "model.pt"))
        again.tie_weights()
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=0, atol=0)


def test_a_layer_with_a_forward_of_its_own_stays() -> None:
    linear = nn.Linear(5, 3)
    linear.forward = lambda x: 7 * nn.Linear.forward(linear, x)
    assert replace_linear(linear) is linear


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad], ids=["grad", "no-grad"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformers_in_evaluation(activation: str, grad: Any) -> None:
    """There torch reads the weights of linear layers, and packs sequences that are padded."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation=activation)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 3, 4)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    with grad():
        y, padded = model(x), model(x, src_key_padding_mask=padding)
        replace_linear(model)
        for each in model.layers:
            assert isinstance(each.linear1, LMKANLinear)
            assert isinstance(each.linear2, LMKANLinear)
            assert isinstance(each.self_attn.out_proj, nn.Linear)  # attention reads its weight
        torch.testing.assert_close(model(x), y)
        torch.testing.assert_close(
            model(x, src_key_padding_mask=padding)[~padding], padded[~padding]
        )


def test_transformers_keep_their_fast_path_where_nothing_was_replaced() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
    replace_linear(model, filter=lambda name, layer: False)
    assert model.use_nested_tensor
    assert model.layers[0].activation_relu_or_gelu


def test_it_logs_what_it_replaced_and_what_not(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.ReLU(), nn.Linear(5, 5)),
            "head": nn.Linear(5, 3),
            "seen": nn.Linear(5, 3),
            "kind": type("Special", (nn.Linear,), {})(5, 3),
        }
    )
    model["seen"].register_forward_hook(lambda *_: None)
    caplog.set_level("INFO", "lmkan_cupy")
    replace_linear(model, filter=lambda name, layer: name != "head")
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("INFO", "replace_linear: head stays: the filter leaves it out"),
        ("WARNING", "replace_linear: seen stays: it has hooks or a forward of its own"),
        (
            "WARNING",
            "replace_linear: kind stays: it is a Special, which may be used in other ways",
        ),
        ("INFO", "replace_linear: body.1 becomes an lmKAN layer, with the ReLU before it"),
    ]


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3).bfloat16())
    before = [*model]
    with pytest.raises(TypeError, match="replace_linear: 2 must be float32 or float64"):
        replace_linear(model)
    assert [*model] == before


def test_random_numbers_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    torch.manual_seed(1)
    replace_linear(model)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: replace_linear(nn.Sequential(nn.Linear(5, 3)).bfloat16()),
            TypeError,
            r"replace_linear: 0 must be float32 or float64, got torch\.bfloat16",
        ),
        (
            lambda: replace_linear(nn.Linear(5, 3), num_grids=2),
            ValueError,
            "num_grids must be at least 3, got 2",
        ),
    ],
    ids=["half", "grids"],
)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
