"""The operators of a layer and those of its convolution: kernels, shapes, derivatives, vmap.

Both are the core's functions ``forward``, ``jvp``, ``backward`` and ``backward_backward``. All that
torch is told about them is the same, but for the *window*: trailing arguments that are not tensors,
of which a layer has none.

Gradients of half tables are float32; autograd expects gradients and tangents in the dtype of the
tables.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import lmkan_cupy

from . import exchange
from .dispatch import Operator


def not_needed(argument: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what stands for a gradient that is not needed, as an operator returns only tensors.

    It is empty and has as many axes as the argument.
    """
    return argument.new_empty([0] * argument.ndim, dtype=dtype)


def nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor]:
    """Keep no tensors for derivatives."""
    return ()


def in_front(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    """Return a tensor with its mapped axis first; a tensor without one is repeated along it."""
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def one_by_one(operator: Callable[..., Any], info: Any, axes: Any, arguments: Any) -> Any:
    """Return the stacked results of an operator for each index along the mapped axes."""
    members = [
        [
            each.select(axis, index) if isinstance(axis, int) else each
            for each, axis in zip(arguments, axes, strict=True)
        ]
        for index in range(info.batch_size)
    ]
    results = [operator(*member) for member in members]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


class LayerOperators:
    """What torch is told about the four operators, and functions that call them.

    Parameters
    ----------
    prefix : str
        Of the operators' names, which are those of the core's functions.
    schema : str
        The window in torch's language.
    options : callable
        ``options(*window)`` returns the window as the core's functions take it, by name.
    shape_of_y : callable
        ``shape_of_y(x, tables, *window)`` checks shapes and dtypes and returns those of the result.
    """

    # Set by `call_each_other`.
    forward: Callable[..., Tensor]
    jvp: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor]]
    backward_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]

    def __init__(
        self,
        prefix: str,
        schema: str,
        options: Callable[..., dict[str, Any]],
        shape_of_y: Callable[..., tuple[int, ...]],
    ) -> None:
        self._prefix, self._schema = prefix, schema
        self._options, self._shape_of_y = options, shape_of_y

    def described(self) -> Iterator[tuple[str, Operator]]:
        """Give every operator's name and what torch is told about it."""
        layer, window = "Tensor x, Tensor tables", self._schema
        yield (
            f"{self._prefix}forward",
            Operator(
                f"({layer}{window}) -> Tensor",
                *(self._forward, self._forward_like, self._saving(2)),
                *(self._forward_vjp, self._forward_jvp, self._forward_vmap),
            ),
        )
        yield (
            f"{self._prefix}jvp",
            Operator(
                f"(Tensor? tangent_x, Tensor? tangent_tables, {layer}{window}) -> Tensor",
                *(self._jvp, self._jvp_like, self._saving(4)),
                *(self._jvp_vjp, _no_second_forward_mode, self._jvp_vmap),
            ),
        )
        yield (
            f"{self._prefix}backward",
            Operator(
                f"(Tensor grad_y, {layer}, bool need_x, bool need_tables{window})"
                " -> (Tensor, Tensor)",
                *(self._backward, self._backward_like, _tensors_and_needs),
                *(self._backward_vjp, self._backward_jvp, self._backward_vmap),
            ),
        )
        yield (
            f"{self._prefix}backward_backward",
            Operator(
                f"(Tensor? ggx, Tensor? ggt, Tensor grad_y, {layer}{window})"
                " -> (Tensor, Tensor, Tensor)",
                *(self._backward_backward, self._backward_backward_like, nothing),
                *(_no_third_derivative, _no_third_derivative, self._backward_backward_vmap),
            ),
        )

    def call_each_other(self, define: Callable[[str], Callable[..., Any]]) -> None:
        """Take the functions that call the operators, which ``define(name)`` returns."""
        self.forward = define(f"{self._prefix}forward")
        self.jvp = define(f"{self._prefix}jvp")
        self.backward = define(f"{self._prefix}backward")
        self.backward_backward = define(f"{self._prefix}backward_backward")

    # --- Kernels ----------------------------------------------------------------------------------

    def _run(self, name: str, tensors: Sequence[Any], window: Sequence[Any], **needs: bool) -> Any:
        function = getattr(lmkan_cupy, self._prefix + name)
        return exchange.run(function, *tensors, **needs, **self._options(*window))

    def _forward(self, x: Tensor, tables: Tensor, *window: Any) -> Any:
        return self._run("forward", (x, tables), window)

    def _jvp(
        self,
        tangent_x: Tensor | None,
        tangent_tables: Tensor | None,
        x: Tensor,
        tables: Tensor,
        *window: Any,
    ) -> Any:
        return self._run("jvp", (tangent_x, tangent_tables, x, tables), window)

    def _backward(
        self,
        grad_y: Tensor,
        x: Tensor,
        tables: Tensor,
        need_x: bool,
        need_tables: bool,
        *window: Any,
    ) -> tuple[Tensor, Tensor]:
        grad_x, grad_tables = self._run(
            "backward", (grad_y, x, tables), window, need_x=need_x, need_tables=need_tables
        )
        return (
            not_needed(x, x.dtype) if grad_x is None else grad_x,
            not_needed(tables, x.dtype) if grad_tables is None else grad_tables,
        )

    def _backward_backward(
        self,
        ggx: Tensor | None,
        ggt: Tensor | None,
        grad_y: Tensor,
        x: Tensor,
        tables: Tensor,
        *window: Any,
    ) -> Any:
        return self._run("backward_backward", (ggx, ggt, grad_y, x, tables), window)

    # --- Shapes and dtypes only -------------------------------------------------------------------

    def _forward_like(self, x: Tensor, tables: Tensor, *window: Any) -> Tensor:
        return x.new_empty(self._shape_of_y(x, tables, *window))

    def _jvp_like(
        self,
        tangent_x: Tensor | None,
        tangent_tables: Tensor | None,
        x: Tensor,
        tables: Tensor,
        *window: Any,
    ) -> Tensor:
        return self._forward_like(x, tables, *window)

    def _backward_like(
        self,
        grad_y: Tensor,
        x: Tensor,
        tables: Tensor,
        need_x: bool,
        need_tables: bool,
        *window: Any,
    ) -> tuple[Tensor, Tensor]:
        return (
            x.new_empty(x.shape) if need_x else not_needed(x, x.dtype),
            x.new_empty(tables.shape) if need_tables else not_needed(tables, x.dtype),
        )

    def _backward_backward_like(
        self,
        ggx: Tensor | None,
        ggt: Tensor | None,
        grad_y: Tensor,
        x: Tensor,
        tables: Tensor,
        *window: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_empty(grad_y.shape), x.new_empty(x.shape), x.new_empty(tables.shape)

    # --- Derivatives: see :func:`.dispatch.recorder` ----------------------------------------------

    @staticmethod
    def _saving(tensors: int) -> Callable[..., Sequence[Tensor | None]]:
        """Return what keeps the tensors, the first of the arguments, and the window."""

        def saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor | None]:
            ctx.window = inputs[tensors:]
            return inputs[:tensors]

        return saved

    def _forward_vjp(self, ctx: Any, kept: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * len(ctx.window)
        if grad_y is None:
            return None, None, *rest
        x, tables = kept
        need_x, need_tables = ctx.needs_input_grad[1:3]
        grad_x, grad_tables = self.backward(grad_y, x, tables, need_x, need_tables, *ctx.window)
        return (
            grad_x if need_x else None,
            grad_tables.to(tables.dtype) if need_tables else None,
            *rest,
        )

    def _forward_jvp(
        self,
        ctx: Any,
        kept: Any,
        tangent_x: Tensor | None,
        tangent_tables: Tensor | None,
        *window: None,
    ) -> Tensor:
        x, tables = kept
        return self.jvp(tangent_x, _as_gradient(tangent_tables, x), x, tables, *ctx.window)

    def _jvp_vjp(self, ctx: Any, kept: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * len(ctx.window)
        if grad_y is None:
            return (None,) * 4 + rest
        *direction, x, tables = kept
        needs = ctx.needs_input_grad[1:5]
        grads: list[Tensor | None] = [None] * 4
        if any(needs[:2]):
            grads[:2] = self.backward(grad_y, x, tables, *needs[:2], *ctx.window)
        if any(needs[2:]):
            _, grad_x, grad_tables = self.backward_backward(
                *direction, grad_y, x, tables, *ctx.window
            )
            grads[2:] = grad_x, grad_tables.to(tables.dtype)
        return (
            *(grad if need else None for grad, need in zip(grads, needs, strict=True)),
            *rest,
        )

    def _backward_vjp(
        self, ctx: Any, kept: Any, ggx: Tensor | None, ggt: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        rest = (None,) * (2 + len(ctx.window))
        ggx, ggt = ggx if ctx.need_x else None, ggt if ctx.need_tables else None
        if ggx is None and ggt is None:
            return None, None, None, *rest
        grad_y, x, tables = kept
        grad_grad_y, grad_x, grad_tables = self.backward_backward(
            ggx, ggt, grad_y, x, tables, *ctx.window
        )
        return grad_grad_y, grad_x, grad_tables.to(tables.dtype), *rest

    def _backward_jvp(
        self,
        ctx: Any,
        kept: Any,
        tangent_y: Tensor | None,
        tangent_x: Tensor | None,
        tangent_tables: Tensor | None,
        *needs_and_window: None,
    ) -> tuple[Tensor | None, ...]:
        """The backward is linear in ``grad_y``; its derivative in the layer is symmetric."""
        grad_y, x, tables = kept
        needs, terms = (ctx.need_x, ctx.need_tables), []
        if tangent_y is not None:
            terms.append(self.backward(tangent_y, x, tables, *needs, *ctx.window))
        if tangent_x is not None or tangent_tables is not None:
            direction = tangent_x, _as_gradient(tangent_tables, x)
            terms.append(self.backward_backward(*direction, grad_y, x, tables, *ctx.window)[1:])
        of_x, of_tables = zip(*terms, strict=True)
        return (
            sum(of_x[1:], start=of_x[0]) if ctx.need_x else not_needed(x, x.dtype),
            sum(of_tables[1:], start=of_tables[0])
            if ctx.need_tables
            else not_needed(tables, x.dtype),
        )

    # --- vmap -------------------------------------------------------------------------------------

    def _forward_vmap(self, info: Any, axes: Any, x: Tensor, tables: Tensor, *window: Any) -> Any:
        if axes[1] is None:  # inputs may have any number of leading axes
            return self.forward(x.movedim(axes[0], 0), tables, *window), 0
        return one_by_one(self.forward, info, axes, (x, tables, *window))

    def _jvp_vmap(
        self,
        info: Any,
        axes: Any,
        tangent_x: Tensor | None,
        tangent_tables: Tensor | None,
        x: Tensor,
        tables: Tensor,
        *window: Any,
    ) -> Any:
        if axes[1] is None and axes[3] is None:
            if tangent_x is not None:
                tangent_x = in_front(tangent_x, axes[0], info.batch_size)
            x = in_front(x, axes[2], info.batch_size)
            return self.jvp(tangent_x, tangent_tables, x, tables, *window), 0
        return one_by_one(self.jvp, info, axes, (tangent_x, tangent_tables, x, tables, *window))

    def _backward_vmap(
        self,
        info: Any,
        axes: Any,
        grad_y: Tensor,
        x: Tensor,
        tables: Tensor,
        need_x: bool,
        need_tables: bool,
        *window: Any,
    ) -> Any:
        if axes[2] is None and not need_tables:
            samples = (
                in_front(each, axis, info.batch_size)
                for each, axis in ((grad_y, axes[0]), (x, axes[1]))
            )
            return self.backward(*samples, tables, need_x, False, *window), (0, None)
        arguments = (grad_y, x, tables, need_x, need_tables, *window)
        return one_by_one(self.backward, info, axes, arguments)

    def _backward_backward_vmap(self, info: Any, axes: Any, *arguments: Any) -> Any:
        return one_by_one(self.backward_backward, info, axes, arguments)


def _as_gradient(tangent_tables: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a tangent of tables in the dtype of their gradient."""
    return None if tangent_tables is None else tangent_tables.to(x.dtype)


def _tensors_and_needs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor]:
    grad_y, x, tables, ctx.need_x, ctx.need_tables, *ctx.window = inputs
    return grad_y, x, tables


def _no_second_forward_mode(ctx: Any, kept: Any, *tangents: Tensor | None) -> None:
    raise NotImplementedError(
        "lmkan: forward mode inside forward mode is not implemented: take reverse mode inside, as "
        "torch.func.hessian does, or engine='torch'"
    )


def _no_third_derivative(ctx: Any, kept: Any, *cotangents_or_tangents: Tensor | None) -> None:
    raise NotImplementedError(
        "lmkan: third derivatives are not implemented; engine='torch' has them"
    )
