"""The operators under vmap, torch.func, torch.compile, torch.export and checkpointing."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANLinear, lmkan = adapter.LMKANLinear, adapter.lmkan

pytestmark = pytest.mark.usefixtures("deterministic_torch")

ENGINES = [None, "torch"]


@pytest.mark.parametrize("engine", ENGINES)
class TestVmap:
    @pytest.fixture
    def x(self) -> Any:
        return torch.randn(6, 4, 5)

    @pytest.fixture
    def tables(self) -> Any:
        return torch.randn(3, 5, 5, 2)

    @pytest.mark.parametrize("axis", [0, 1, -2])
    def test_over_samples(self, x: Any, tables: Any, axis: int, engine: str | None) -> None:
        mapped = torch.vmap(partial(lmkan, tables=tables, engine=engine), in_dims=axis)(x)
        expected = lmkan(x, tables, engine=engine).movedim(axis, 0)
        torch.testing.assert_close(mapped, expected)

    def test_over_tables(self, x: Any, tables: Any, engine: str | None) -> None:
        """An ensemble, on shared samples and on samples of its own."""
        ensemble = torch.stack([tables, -2 * tables, tables.flip(1)])
        layer = partial(lmkan, engine=engine)
        for in_dims, samples in ((None, [x[0]] * 3), (0, x[:3])):
            given = x[0] if in_dims is None else x[:3]
            torch.testing.assert_close(
                torch.vmap(layer, in_dims=(in_dims, 0))(given, ensemble),
                torch.stack([layer(s, t) for s, t in zip(samples, ensemble, strict=True)]),
            )

    def test_gradients_of_every_sample(self, x: Any, tables: Any, engine: str | None) -> None:
        """Those of the input take one call for all samples, those of the tables one per sample."""
        layer = partial(lmkan, engine=engine)

        def loss(sample: Any, tables: Any) -> Any:
            return layer(sample, tables).square().sum()

        for argument in (0, 1):
            grads = torch.vmap(torch.func.grad(loss, argument), in_dims=(0, None))(x[0], tables)
            expected = [
                torch.autograd.functional.vjp(loss, (sample, tables))[1][argument]
                for sample in x[0]
            ]
            torch.testing.assert_close(grads, torch.stack(expected))

    def test_forces_of_an_ensemble(self, x: Any, tables: Any, engine: str | None) -> None:
        """Gradients of the input alone, where every member has its own tables."""
        ensemble = torch.stack([tables, -2 * tables])
        layer = partial(lmkan, engine=engine)

        def energy(sample: Any, tables: Any) -> Any:
            return layer(sample, tables).square().sum()

        forces = torch.vmap(torch.func.grad(energy), in_dims=(None, 0))(x[0], ensemble)
        torch.testing.assert_close(forces[1], 4 * forces[0])

    def test_jacobian_and_its_gradient(self, x: Any, tables: Any, engine: str | None) -> None:
        layer = partial(lmkan, engine=engine)
        sample = x[0, 0]
        jacobian = torch.func.jacrev(layer)(sample, tables)
        expected = torch.autograd.functional.jacobian(layer, (sample, tables))[0]
        torch.testing.assert_close(jacobian, expected)

        def roughness(tables: Any) -> Any:
            return torch.func.jacrev(layer)(sample, tables).square().sum()

        def again(tables: Any) -> Any:
            jacobians = torch.autograd.functional.jacobian(
                partial(layer, tables=tables), sample, create_graph=True
            )
            return jacobians.square().sum()

        torch.testing.assert_close(
            torch.func.grad(roughness)(tables),
            torch.autograd.functional.vjp(again, tables)[1],
        )

    def test_penalty_of_an_ensemble(self, tables: Any, engine: str | None) -> None:
        layer = LMKANLinear(5, 2, 4, engine=engine)
        ensemble = torch.stack([tables, -2 * tables])

        def penalty(tables: Any) -> Any:
            model = torch.nn.ModuleDict({"layer": layer})
            return torch.func.functional_call(_Penalty(model), {"model.layer.tables": tables}, ())

        penalties = torch.vmap(penalty)(ensemble)
        torch.testing.assert_close(penalties[1], 4 * penalties[0])
        grads = torch.vmap(torch.func.grad(penalty))(ensemble)
        torch.testing.assert_close(grads[1], -2 * grads[0])
        of_sum = torch.func.grad(lambda tables: torch.vmap(penalty)(tables).sum())(ensemble)
        torch.testing.assert_close(of_sum, grads)


class _Penalty(torch.nn.Module):  # type: ignore[misc]
    """`hessian_penalty` of a model as a module, for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Any:
        return adapter.hessian_penalty(self.model)


def grads_of(model: Any, x: Any) -> list[Any]:
    """The output, and the gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


# torch itself still uses torch.jit.script here.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
class TestCompilers:
    @pytest.fixture(autouse=True)
    def from_scratch(self) -> None:
        torch.compiler.reset()

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_compiled_is_eager_to_the_bit(self, dynamic: bool, dtype: Any) -> None:
        layer = LMKANLinear(5, 7, dtype=dtype)
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
        for batch in (33, 34, 1):
            x = torch.randn(batch, 5, dtype=dtype)
            for result, expected in zip(grads_of(compiled, x), grads_of(layer, x), strict=True):
                assert torch.equal(result, expected)

    @pytest.mark.long
    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_plain_torch(self, dynamic: bool) -> None:
        """Tables are an argument, so their sizes are symbolic; the knots must still be right."""
        compiled = torch.compile(
            partial(lmkan, engine="torch"), fullgraph=True, dynamic=dynamic, backend="aot_eager"
        )
        for num_grids in (4, 5):
            x, tables = torch.randn(33, 5), torch.randn(3, num_grids + 1, num_grids + 1, 7)
            assert torch.equal(compiled(x, tables), lmkan(x, tables, engine="torch"))

    def test_training_step(self) -> None:
        """A loss with autocast and penalty in one graph; errors keep their message."""
        layer, x = LMKANLinear(5, 7), torch.randn(33, 5)

        def loss(x: Any) -> Any:
            with torch.autocast("cpu"):
                y = layer(x)
            return y.float().square().mean() + 0.1 * layer.hessian_penalty()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        grads = [torch.autograd.grad(each(x), layer.tables)[0] for each in (compiled, loss)]
        assert torch.equal(*grads)
        with pytest.raises(Exception, match="x must have 5 features on its last axis"):
            compiled(torch.randn(33, 6))

    def test_vmap(self) -> None:
        tables, x = torch.randn(3, 5, 5, 7), torch.randn(33, 5)
        mapped = torch.vmap(partial(lmkan, tables=tables))
        compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), mapped(x))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_export(self, engine: str | None) -> None:
        """With any batch size, and through a file."""
        model = torch.nn.Sequential(LMKANLinear(5, 7, engine=engine), torch.nn.ReLU())
        batch = torch.export.Dim("batch", min=2)
        exported = torch.export.export(model, (torch.randn(4, 5),), dynamic_shapes=({0: batch},))
        targets = {str(node.target) for node in exported.graph.nodes}
        assert ("lmkan_cupy.forward.default" in targets) == (engine is None)
        file = io.BytesIO()
        torch.export.save(exported, file)
        file.seek(0)
        x = torch.randn(33, 5)
        assert torch.equal(torch.export.load(file).module()(x), model(x))

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_checkpointing(self, engine: str | None, use_reentrant: bool) -> None:
        layer, x = LMKANLinear(5, 7, engine=engine), torch.randn(33, 5)

        class Checkpointed(torch.nn.Module):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant)

        expected = grads_of(layer, x)
        x = x.requires_grad_()
        y = Checkpointed()(x)
        y.square().sum().backward()
        for result, same in zip((y, x.grad, layer.tables.grad), expected, strict=True):
            assert torch.equal(result, same)
