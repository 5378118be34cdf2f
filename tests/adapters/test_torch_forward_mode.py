"""Forward mode: dual tensors and `torch.func`, against the oracle and reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import tolerances
from problems import (
    DTYPES,
    FLOAT64,
    HALF_TABLES,
    SMALL,
    Dtypes,
    Problem,
    Sizes,
    first_short,
    make_problem,
)

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
operators = pytest.importorskip("lmkan_cupy.adapters.torch.operators")
forward_ad = pytest.importorskip("torch.autograd.forward_ad")

lmkan = adapter.lmkan

# Torch itself still uses torch.jit.script here.
pytestmark = [
    pytest.mark.usefixtures("deterministic_torch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]

ENGINES = [None, "torch"]
SIZES = [Sizes(0, 4, 3, 5), Sizes(1, 1, 1, 3), SMALL]

#: Whether parameters require a gradient, and whether gradients are recorded at all.
STATES = {
    "trained": (True, nullcontext),
    "frozen": (False, nullcontext),
    "frozen, no_grad": (False, torch.no_grad),
}


def along(function: Callable[..., Any], arguments: Any, tangents: Any) -> Any:
    """The derivative along tangents, by dual tensors; a missing tangent is None."""
    with forward_ad.dual_level():
        duals = [
            each if tangent is None else forward_ad.make_dual(each, tangent)
            for each, tangent in zip(arguments, tangents, strict=True)
        ]
        return forward_ad.unpack_dual(function(*duals)).tangent


def tensors_of(problem: Problem) -> list[Any]:
    """x and tables, and tangents of both in their dtypes."""
    x, tables, _, tangent_x, tangent_tables = map(torch.from_numpy, problem)
    return [x, tables, tangent_x, tangent_tables.to(tables.dtype)]


@pytest.fixture
def tiny(rng: np.random.Generator) -> list[Any]:
    """In float64, small enough for Jacobians and Hessians."""
    return tensors_of(make_problem(rng, Sizes(3, 3, 2, 4), FLOAT64))


def cubes(x: Any, tables: Any) -> Any:
    """A scalar whose second derivatives depend on those of the layer."""
    return (lmkan(x, tables) ** 3).sum()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_the_oracle(
    rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes, state: str, engine: str | None
) -> None:
    """Along both arguments and along each alone, by dual tensors and `torch.func.jvp`."""
    x, tables, *tangents = tensors_of(make_problem(rng, sizes, dtypes))
    requires_grad, context = STATES[state]
    tables.requires_grad_(requires_grad)
    layer = partial(lmkan, engine=engine)
    for given in (tangents, [tangents[0], None], [None, tangents[1]]):
        whole = [
            torch.zeros_like(each) if tangent is None else tangent
            for each, tangent in zip((x, tables), given, strict=True)
        ]
        with context():
            dy = along(layer, (x, tables), given)
            _, same = torch.func.jvp(layer, (x, tables), tuple(whole))
        assert dy.dtype == x.dtype
        expected = tolerances.jvp(*(each.detach().numpy() for each in (*whole, x, tables)))
        expected.check(dy.detach().numpy())
        expected.check(same.detach().numpy())


@pytest.mark.long
def test_half_tables_in_operators(rng: np.random.Generator) -> None:
    """Where operators get them as they are, tangents have their dtype, too."""
    problem = make_problem(rng, SMALL, HALF_TABLES)
    x, tables, *tangents = tensors_of(problem)
    grad_y = torch.from_numpy(problem.grad_y)
    wide = [x, tables.float(), tangents[0], tangents[1].float()]
    for operator in (
        operators.forward,
        lambda *layer: operators.backward(grad_y, *layer, True, True)[0],
        lambda *layer: operators.backward(grad_y, *layer, True, True)[1],
    ):
        dy = along(operator, (x, tables), tangents)
        assert torch.equal(dy, along(operator, wide[:2], wide[2:]))


@pytest.mark.parametrize("state", STATES)
class TestJacobiansAndHessians:
    """Those of forward mode are those of reverse mode."""

    @pytest.fixture(autouse=True)
    def in_state(self, state: str, tiny: list[Any]) -> Iterator[None]:
        requires_grad, context = STATES[state]
        tiny[1].requires_grad_(requires_grad)
        with context():
            yield

    def test_jacobian(self, tiny: list[Any]) -> None:
        layer, arguments = partial(lmkan), tuple(tiny[:2])
        expected = torch.func.jacrev(layer, (0, 1))(*arguments)
        torch.testing.assert_close(torch.func.jacfwd(layer, (0, 1))(*arguments), expected)
        by_duals = torch.autograd.functional.jacobian(
            layer, arguments, strategy="forward-mode", vectorize=True
        )
        torch.testing.assert_close(by_duals, expected)

    # Torch's, when it finds constants in what it has traced.
    @pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
    def test_linearization(self, tiny: list[Any]) -> None:
        x, tables, *tangents = tiny
        _, push = torch.func.linearize(lmkan, x, tables)
        expected = along(lmkan, (x, tables), tangents)
        torch.testing.assert_close(push(*tangents), expected)

    @pytest.mark.parametrize("argument", first_short([0, 1]), ids=["x", "tables"])
    def test_hessian(self, tiny: list[Any], argument: int) -> None:
        x, tables, *_ = tiny
        expected = torch.func.jacrev(torch.func.jacrev(cubes, argument), argument)(x, tables)
        assert expected.abs().max() > 0
        forward_over_reverse = torch.func.hessian(cubes, argument)(x, tables)
        torch.testing.assert_close(forward_over_reverse, expected)
        jacobian = torch.func.jacfwd(cubes, argument)
        reverse_over_forward = torch.func.jacrev(jacobian, argument)(x, tables)
        torch.testing.assert_close(reverse_over_forward, expected)
        by_duals = torch.autograd.functional.hessian(
            lambda each: cubes(*((each, tables) if argument == 0 else (x, each))),
            tiny[argument],
            vectorize=True,
            outer_jacobian_strategy="forward-mode",
        )
        torch.testing.assert_close(by_duals, expected)


def test_mixed_derivatives(tiny: list[Any]) -> None:
    """Those in x and tables, in both orders of forward and reverse mode."""
    x, tables, *_ = tiny
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    expected = jacrev(jacrev(cubes, 0), 1)(x, tables)
    assert expected.abs().max() > 0
    torch.testing.assert_close(jacfwd(jacrev(cubes, 0), 1)(x, tables), expected)
    torch.testing.assert_close(jacrev(jacfwd(cubes, 0), 1)(x, tables), expected)


def test_gradient_of_a_derivative(tiny: list[Any]) -> None:
    """Of dual tensors' tangent, and the tangent of a gradient: both are the mixed derivatives."""
    x, tables, *tangents = tiny
    leaves = [each.requires_grad_() for each in (x, tables)]

    def gradients(*arguments: Any) -> Any:
        return torch.autograd.grad(cubes(*arguments), arguments, create_graph=True)

    derivative = along(cubes, leaves, tangents)
    of_derivative = torch.autograd.grad(derivative, leaves)
    for index, expected in enumerate(of_derivative):
        derivative_of = along(lambda *a, i=index: gradients(*a)[i], leaves, tangents)
        torch.testing.assert_close(derivative_of, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap(tiny: list[Any], axis: int) -> None:
    """Over directions of x and of tables, and over samples."""
    x, tables, *tangents = tiny

    def push(*tangents: Any) -> Any:
        return torch.func.jvp(lmkan, (x, tables), tangents)[1]

    many = [torch.stack([each, -2 * each], axis) for each in tangents]
    for mapped in ((0, None), (None, 0), (0, 0)):
        axes = tuple(None if each is None else axis for each in mapped)
        given = [
            one if each is None else more
            for one, more, each in zip(tangents, many, mapped, strict=True)
        ]
        both = torch.vmap(push, in_dims=axes)(*given)
        for index in range(2):
            single = [
                one if each is None else more.select(axis, index)
                for one, more, each in zip(tangents, many, mapped, strict=True)
            ]
            torch.testing.assert_close(both[index], push(*single))

    def of_sample(x: Any, tangent: Any) -> Any:
        return torch.func.jvp(partial(lmkan, tables=tables), (x,), (tangent,))[1]

    by_sample = torch.vmap(of_sample)(x, tangents[0])
    torch.testing.assert_close(by_sample, of_sample(x, tangents[0]))


def make_modules() -> dict[str, Any]:
    """Modules in float64 and the shapes of their inputs."""
    sizes = {"num_grids": 4, "dtype": torch.float64}
    linear, convolution = adapter.LMKANLinear, adapter.LMKANConv2d
    return {
        "layer": (linear(5, 3, **sizes), (6, 5)),
        "linear branch": (linear(5, 3, residual="linear", **sizes), (6, 5)),
        "relu branch": (linear(5, 3, residual="relu", **sizes), (6, 5)),
        "block": (adapter.LMKANBlock(5, 3, residual="linear", **sizes).eval(), (6, 5)),
        "convolution": (convolution(2, 3, 3, padding=1, **sizes), (2, 2, 4, 4)),
        "groups": (convolution(4, 2, 2, groups=2, residual="relu", **sizes), (2, 4, 3, 3)),
        "authors' layer": (adapter.LMKAN2DLayer(4, 4, 3).double(), (4, 6)),
    }


@pytest.mark.parametrize("name", make_modules())
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_modules(name: str, frozen: bool) -> None:
    """<g, J d> = <J^T g, d> for directions of the input and of all parameters."""
    module, shape = make_modules()[name]
    module.requires_grad_(not frozen)
    parameters = dict(module.named_parameters())
    given = [torch.randn(shape, dtype=torch.float64), *parameters.values()]
    tangents = [torch.randn_like(each) for each in given]

    def call(x: Any, *values: Any) -> Any:
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, state, (x,))

    y, dy = torch.func.jvp(call, tuple(given), tuple(tangents))
    torch.testing.assert_close(along(call, given, tangents), dy)
    cotangent = torch.randn_like(y)
    _, pull = torch.func.vjp(call, *given)
    products = [(a * b).sum() for a, b in zip(pull(cotangent), tangents, strict=True)]
    torch.testing.assert_close((cotangent * dy).sum(), sum(products))
    _, along_x = torch.func.jvp(module, (given[0],), (tangents[0],))
    assert along_x.abs().max() > 0


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("dtypes", first_short([FLOAT64, HALF_TABLES]), ids=str)
def test_penalty(rng: np.random.Generator, dtypes: Dtypes, requires_grad: bool) -> None:
    _, tables, _, tangent = tensors_of(make_problem(rng, SMALL, dtypes))
    layer = adapter.LMKANLinear(*SMALL[1:], dtype=tables.dtype)

    def penalty(tables: Any) -> Any:
        model = torch.nn.ModuleDict({"layer": layer})
        return torch.func.functional_call(_Penalty(model), {"model.layer.tables": tables}, ())

    tables.requires_grad_(requires_grad)
    _, expected = tolerances.hessian_penalty(tables.detach().numpy(), dtypes.x)
    direction = tolerances.to_float64(tangent.numpy())
    # As far off as its terms, and as their sum is rounded.
    size = np.abs(direction) * np.abs(expected.value)
    bound = np.sum(np.abs(direction) * expected.bound) + (
        direction.size * tolerances.unit(dtypes.x) * np.sum(size)
    )
    of_oracle = tolerances.Expected(np.sum(direction * expected.value), bound)
    of_oracle.check(along(penalty, [tables], [tangent]).detach().numpy())
    of_oracle.check(torch.func.jvp(penalty, (tables,), (tangent,))[1].detach().numpy())
    if dtypes == FLOAT64:
        hessian_product = torch.func.jvp(torch.func.grad(penalty), (tables,), (tangent,))[1]
        of_derivative = torch.func.grad(lambda each: along(penalty, [each], [tangent]))(tables)
        again = torch.func.grad(penalty)(tangent)  # the penalty is quadratic
        torch.testing.assert_close(hessian_product, again)
        torch.testing.assert_close(of_derivative, again)


class _Penalty(torch.nn.Module):  # type: ignore[misc]
    """`hessian_penalty` of a model as a module, for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Any:
        return adapter.hessian_penalty(self.model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("forward", ()),
        ("jvp", ()),
        ("backward", (True, True)),
        ("backward", (True, False)),
        ("backward", (False, True)),
        ("hessian_penalty", (True,)),
        ("hessian_penalty", (False,)),
    ],
)
@pytest.mark.parametrize("called", ["directly", "by the dispatcher"])
def test_every_operator(
    rng: np.random.Generator, name: str, options: tuple[bool, ...], called: str
) -> None:
    """All that torch can check, the forward mode of `jvp` excepted, which does not exist."""
    x, tables, grad_y, ggx, ggt = map(
        torch.from_numpy, make_problem(rng, Sizes(2, 3, 1, 3), FLOAT64)
    )
    tensors = {
        "forward": (x, tables),
        "jvp": (ggx, ggt, x, tables),
        "backward": (grad_y, x, tables),
        "hessian_penalty": (tables,),
    }[name]
    module = operators if called == "directly" else torch.ops.lmkan_cupy
    operator = getattr(module, name)

    def function(*tensors: Any) -> Any:
        results = operator(*tensors, *options)
        return tuple(each for each in torch.utils._pytree.tree_leaves(results) if each.numel())

    has_forward_mode = name != "jvp"
    assert torch.autograd.gradcheck(
        function,
        [each.requires_grad_() for each in tensors],
        check_forward_ad=has_forward_mode,
        check_batched_grad=True,
        check_batched_forward_grad=has_forward_mode,
    )
    if name in ("forward", "hessian_penalty"):
        assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_under_autocast(engine: str | None) -> None:
    """Tangents have the dtype of the values, as gradients have."""
    layer, x = adapter.LMKANLinear(5, 7, engine=engine), torch.randn(33, 5)
    expected = torch.func.jvp(layer, (x,), (x,))[1].bfloat16()
    of_sum = torch.func.grad(lambda x: layer(x).sum())(x)
    with torch.autocast("cpu"):
        for dy in (torch.func.jvp(layer, (x,), (x,))[1], along(layer, [x], [x])):
            assert torch.equal(dy, expected)
        torch.testing.assert_close(
            torch.func.grad(lambda x: layer(x).float().sum())(x), of_sum, rtol=0, atol=0
        )


class TestCompilers:
    @pytest.fixture(autouse=True)
    def from_scratch(self) -> None:
        torch.compiler.reset()

    def test_compiled(self, tiny: list[Any]) -> None:
        """A transform inside of the compiled function, and the gradient of its result."""
        x, tables, tangent, _ = tiny
        tables.requires_grad_()

        def derivative(x: Any, tangent: Any) -> Any:
            return torch.func.jvp(partial(lmkan, tables=tables), (x,), (tangent,))[1]

        compiled = torch.compile(derivative, fullgraph=True, backend="aot_eager")
        results = [each(x, tangent) for each in (derivative, compiled)]
        assert torch.equal(*results)
        grads = [torch.autograd.grad(each.square().sum(), tables)[0] for each in results]
        assert torch.equal(*grads)

    def test_compiled_hessian(self, tiny: list[Any]) -> None:
        x, tables, *_ = tiny
        hessian = torch.func.hessian(cubes)
        compiled = torch.compile(hessian, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, tables), hessian(x, tables))

    def test_exported(self) -> None:
        layer = adapter.LMKANLinear(5, 7).requires_grad_(False)
        x, tangent = torch.randn(4, 5), torch.randn(4, 5)
        exported = torch.export.export(layer, (x,)).module()
        _, expected = torch.func.jvp(layer, (x,), (tangent,))
        for dy in (
            torch.func.jvp(exported, (x,), (tangent,))[1],
            along(exported, [x], [tangent]),
        ):
            assert torch.equal(dy, expected)


def test_derivatives_that_are_not_there_are_an_error(tiny: list[Any]) -> None:
    x, tables, *_ = tiny
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    with pytest.raises(NotImplementedError, match=r"forward mode inside .* engine='torch'"):
        jacfwd(jacfwd(cubes))(x, tables)
    for third in (jacfwd(jacrev(jacrev(cubes))), jacrev(jacfwd(jacrev(cubes)))):
        with pytest.raises(NotImplementedError, match=r"third derivatives .* engine='torch'"):
            third(x, tables)
    by_torch = partial(lmkan, engine="torch")
    torch.testing.assert_close(
        jacfwd(jacfwd(by_torch))(x, tables), jacrev(jacrev(by_torch))(x, tables)
    )
