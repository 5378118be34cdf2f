"""A block, and the penalties of a model, as one node of autograd each.

What they compute must be, to the bit, what their modules and operators compute one by one. A hook
that does nothing makes a block call its modules, and `engine="torch"` shares no code at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
forward_ad = pytest.importorskip("torch.autograd.forward_ad")

LMKANBlock, LMKANLinear = adapter.LMKANBlock, adapter.LMKANLinear
nn = torch.nn

pytestmark = pytest.mark.usefixtures("deterministic_torch")

BLOCKS: dict[str, dict[str, Any]] = {
    "branch": {"residual": "linear"},
    "branch-without-bias": {"residual": "linear", "bias": False},
    "tables-alone": {},
    "unbounded": {"residual": "linear", "bound": None},
    "float64": {"residual": "linear", "dtype": torch.float64},
}


def hooked(block: Any) -> Any:
    """A copy of a block that calls its modules."""
    twin = copy.deepcopy(block)
    twin.layer.register_forward_hook(lambda *arguments: None)
    return twin


def has_one_node(y: Any) -> bool:
    return "lmkan_cupy_block" in y.grad_fn.next_functions[0][0].name()


def block_and_input(name: str, *, shape: tuple[int, ...] = (33, 5)) -> tuple[Any, Any]:
    torch.manual_seed(0)
    block = LMKANBlock(5, 7, 6, init_scale=3.0, **{"bound": 1.0, **BLOCKS[name]})
    block(2 + torch.randn(9, 5, dtype=block.layer.tables.dtype))  # statistics of its own
    return block, torch.randn(shape, dtype=block.layer.tables.dtype, requires_grad=True)


def results(block: Any, x: Any) -> list[Any]:
    """The output, first and second derivatives, and the buffers."""
    leaves = [x, *block.parameters()]
    y = block(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    first = torch.autograd.grad(y, leaves, weights, retain_graph=True)
    again = torch.autograd.grad(y, leaves, weights, create_graph=True)
    curved = sum(each.square().sum() for each in again)
    second = torch.autograd.grad(curved, leaves, allow_unused=True)
    return [y, *first, *again, *second, *block.buffers()]


def assert_same_bits(these: list[Any], those: list[Any]) -> None:
    for one, other in zip(these, those, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
class TestBlock:
    @pytest.mark.parametrize("name", BLOCKS)
    @pytest.mark.parametrize("shape", [(33, 5), (3, 11, 5), (1, 2, 5)], ids=str)
    def test_same_bits_as_its_modules(self, name: str, mode: str, shape: tuple[int, ...]) -> None:
        block, x = block_and_input(name, shape=shape)
        block.train(mode == "training")
        twin = hooked(block)
        assert has_one_node(block(x))
        assert not has_one_node(twin(x))
        assert_same_bits(results(block, x), results(twin, x))

    def test_without_normalisation(self, mode: str) -> None:
        """As `fold_chain_` leaves it."""
        block, x = block_and_input("branch")
        block.train(mode == "training").norm = nn.Identity()
        assert has_one_node(block(x))
        assert_same_bits(results(block, x), results(hooked(block), x))

    @pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,)], ids=str)
    def test_few_rows(self, mode: str, shape: tuple[int, ...]) -> None:
        block, x = block_and_input("branch", shape=shape)
        block.train(mode == "training").norm = nn.Identity()
        assert_same_bits([block(x)], [hooked(block)(x)])

    @pytest.mark.parametrize("name", ["branch", "tables-alone"])
    def test_derivatives(self, name: str, mode: str) -> None:
        """Against finite differences; normalisation and cut have derivatives of their own."""
        torch.manual_seed(0)
        block = LMKANBlock(3, 2, 4, dtype=torch.float64, init_scale=3.0, **BLOCKS[name])
        block.train(mode == "training")
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        names = [name for name, _ in block.named_parameters()]

        def function(x: Any, *parameters: Any) -> Any:
            arguments = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(block, arguments, x)

        leaves = (x, *(each.detach().requires_grad_() for each in block.parameters()))
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)

    def test_only_what_is_needed(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        block, x = block_and_input("branch")
        block.train(mode == "training")
        needs: list[dict[str, bool]] = []
        run = adapter.exchange.run

        def recorded(*arguments: Any, **options: Any) -> Any:
            needs.append(options)
            return run(*arguments, **options)

        monkeypatch.setattr(adapter.exchange, "run", recorded)
        block(x.detach()).sum().backward()
        block.requires_grad_(False)
        block(x).sum().backward()
        with torch.no_grad():
            assert block(x).grad_fn is None
        assert [each for each in needs if each] == [
            {"need_x": False, "need_tables": True},
            {"need_x": True, "need_tables": False},
        ]

    def test_an_input_that_depends_on_a_parameter(self, mode: str) -> None:
        """Each gradient is that of one argument alone, in a second backward as well."""
        block, x = block_and_input("branch")
        block.train(mode == "training")

        def function(block: Any) -> list[Any]:
            scaled = x * block.layer.bias.sum() * block.layer.tables.sum()
            (first,) = torch.autograd.grad(block(scaled).sum(), block.layer.bias, create_graph=True)
            return [first, *torch.autograd.grad(first.sum(), [block.layer.tables])]

        assert_same_bits(function(block), function(hooked(block)))

    def test_batched_gradients(self, mode: str) -> None:
        block, x = block_and_input("branch")
        block.train(mode == "training")
        jacobians = [
            torch.autograd.functional.jacobian(each, x, vectorize=True)
            for each in (block, hooked(block))
        ]
        torch.testing.assert_close(*jacobians)

    def test_a_backward_under_autocast(self, mode: str) -> None:
        """It is in the dtype of the forward, which was recorded outside of it."""
        block, x = block_and_input("branch")
        y = block.train(mode == "training")(x).sum()
        (expected,) = torch.autograd.grad(y, x, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            (grad,) = torch.autograd.grad(y, x)
        torch.testing.assert_close(grad, expected)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
    def test_a_backward_in_forward_mode(self, mode: str) -> None:
        block, x = block_and_input("branch")
        y = block.train(mode == "training")(x)
        grad_y, tangent = torch.randn_like(y), torch.randn_like(y)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(grad_y, tangent)
            (grad_x,) = torch.autograd.grad(y, x, dual, retain_graph=True)
            pushed = forward_ad.unpack_dual(grad_x).tangent
        torch.testing.assert_close(pushed, torch.autograd.grad(y, x, tangent)[0])

    def test_statistics_of_a_backward_are_those_of_its_forward(self, mode: str) -> None:
        block, x = block_and_input("branch")
        twin = hooked(block.train(mode == "training"))
        for each in (block, twin):
            first, second = each(x), each(3 * x)
            torch.autograd.grad(first.sum(), x, create_graph=True)
            (first + second).square().sum().backward()
        assert_same_bits([*block.buffers()], [*twin.buffers()])
        assert_same_bits(
            [each.grad for each in block.parameters()], [each.grad for each in twin.parameters()]
        )


def _with(change: Callable[[Any], Any]) -> Callable[[], Any]:
    def block() -> Any:
        block = LMKANBlock(4, 3, 6, residual="linear")
        change(block)
        return block

    return block


class Doubled(nn.BatchNorm1d):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def affine_norm() -> Any:
    norm = nn.BatchNorm1d(4)
    nn.init.constant_(norm.weight, 0.5)
    return norm


UNUSUAL: dict[str, Callable[[], Any]] = {
    "a hook": _with(lambda block: block.norm.register_forward_hook(lambda *_: torch.ones(5, 4))),
    "a hook before": _with(
        lambda block: block.layer.register_forward_pre_hook(lambda *_: torch.ones(5, 4))
    ),
    "a subclass": _with(lambda block: setattr(block, "norm", Doubled(4, affine=False))),
    "another module": _with(lambda block: setattr(block, "norm", nn.LayerNorm(4))),
    "another forward": _with(lambda block: setattr(block.bound, "forward", torch.sin)),
    "affine": _with(lambda block: setattr(block, "norm", affine_norm())),
    "cumulative": _with(lambda block: setattr(block.norm, "momentum", None)),
    "no-statistics": _with(
        lambda block: setattr(
            block, "norm", nn.BatchNorm1d(4, affine=False, track_running_stats=False)
        )
    ),
    "relu": lambda: LMKANBlock(4, 3, 6, residual="relu"),
    "engine": lambda: LMKANBlock(4, 3, 6, engine="torch"),
    "half-tables": _with(lambda block: block.layer.fold_().half()),
    "bfloat16": lambda: LMKANBlock(4, 3, 6, dtype=torch.bfloat16),
    "no bias": _with(lambda block: setattr(block.layer, "bias", None)),
}


@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_blocks_call_their_modules(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    block = make()
    x = torch.randn(5, 4, requires_grad=True)
    if isinstance(block.norm, nn.BatchNorm1d) and block.norm.running_mean is not None:
        x = x.to(block.norm.running_mean)
    twin = copy.deepcopy(block)
    y = block(x)
    assert torch.equal(y, twin.layer(twin.bound(twin.norm(x))))
    assert_same_bits([*block.buffers()], [*twin.buffers()])


def test_global_hooks_see_the_modules() -> None:
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    try:
        LMKANBlock(4, 3, 6)(torch.randn(5, 4))
    finally:
        handle.remove()
    assert seen == ["BatchNorm1d", "Hardtanh", "LMKANLinear", "LMKANBlock"]


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros(1, 4), "Expected more than 1 value per channel when training"),
        (torch.zeros(5, 3), "running_mean should contain 3 elements not 4"),
    ],
    ids=["one-row", "features"],
)
def test_errors_of_the_modules(x: Any, text: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=text):
        LMKANBlock(4, 3, 6)(x)


def test_statistics_of_another_size_are_refused() -> None:
    """Normalisation would read beyond them."""
    block = LMKANBlock(4, 3, 6)
    block.norm.running_mean = torch.zeros(2)
    with pytest.raises(RuntimeError, match="running_mean should contain 4 elements not 2"):
        block(torch.randn(5, 4))


class TestPenalty:
    @pytest.fixture
    def model(self) -> Any:
        return nn.Sequential(
            LMKANBlock(4, 3, 6),
            adapter.LMKANConv2d(4, 6, 2, groups=2, num_grids=4),
            LMKANLinear(3, 2, 5),
        )

    def test_same_bits_as_layer_by_layer(self, model: Any) -> None:
        def results(penalty: Any) -> list[Any]:
            tables = [*model.parameters()]
            first = torch.autograd.grad(0.3 * penalty, tables, create_graph=True)
            squares = sum(each.square().sum() for each in first)
            return [penalty, *first, *torch.autograd.grad(squares, tables)]

        layers = [model[0].layer, model[1], model[2]]
        by_layer = [
            adapter.functional.hessian_penalty_of(each.tables.flatten(0, -4)) for each in layers
        ]
        penalty = adapter.hessian_penalty(model)
        assert "lmkan_cupy_penalty" in penalty.grad_fn.name()
        assert_same_bits(results(penalty), results(by_layer[0] + by_layer[1] + by_layer[2]))

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model[0].layer.double(),
            pytest.param(lambda model: model[0].layer.half(), marks=pytest.mark.long),
            lambda model: model.bfloat16(),
            lambda model: setattr(model[2], "engine", "torch"),
        ],
        ids=["float64", "float16", "bfloat16", "engine"],
    )
    def test_of_layers_that_differ(self, model: Any, change: Callable[[Any], Any]) -> None:
        """In dtypes or engines."""
        change(model)
        penalty = adapter.hessian_penalty(model)
        assert "lmkan_cupy_penalty" not in penalty.grad_fn.name()
        each_alone = [model[0].layer, model[1], model[2]]
        assert torch.equal(penalty, sum(each.hessian_penalty() for each in each_alone))
        penalty.backward()
        for each in model.parameters():
            assert each.grad.dtype == each.dtype
