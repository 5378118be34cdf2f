"""lmKAN layers over plain NumPy or CuPy arrays, for prototyping without any framework."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import lmkan_cupy
from lmkan_cupy.array_library import Array


class LMKANLayer:
    """A layer with its tables, their gradient and the moments of Adam.

    Parameters
    ----------
    in_features, out_features, num_grids : int
        Sizes I, O and grid intervals per axis G >= 3.
    dimension : {1, 2, 3}
        Inputs of an inner function.
    dtype : {"float32", "float64"}
        Of tables, inputs and outputs.
    rng : None, int, Generator or RandomState
        Draws the tables, see :func:`lmkan_cupy.init_tables`.
    xp : module
        ``numpy`` or ``cupy``.

    Attributes
    ----------
    tables : array [P, S, ..., S, O]
    grad_tables : array [P, S, ..., S, O] or None
        The gradient from the last :meth:`backward`.

    Raises
    ------
    TypeError, ValueError
        If a size or ``dtype`` is out of range, or arguments of the methods do not fit the layer.
    RuntimeError
        If :meth:`backward` is called before :meth:`forward`, or :meth:`adam_step` before
        :meth:`backward`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int = 10,
        *,
        dimension: int = 2,
        dtype: Any = "float32",
        rng: Any = None,
        xp: Any = np,
    ) -> None:
        dtype = lmkan_cupy.sigma_grid(num_grids, dtype=dtype).dtype  # raises for half dtypes
        self.in_features = in_features
        self.tables = lmkan_cupy.init_tables(
            in_features,
            out_features,
            num_grids,
            dimension=dimension,
            dtype=dtype,
            rng=rng,
            xp=xp,
        )
        self.grad_tables: Array | None = None
        self._x: Array | None = None
        self._mean = xp.zeros_like(self.tables)
        self._mean_of_squares = xp.zeros_like(self.tables)
        self._steps = 0

    def forward(self, x: Array) -> Array:
        """Return ``y [..., O]`` for ``x [..., I]``, and keep ``x`` for :meth:`backward`."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"LMKANLayer.forward: x must have {self.in_features} features on its last axis, "
                f"got x.shape={x.shape}"
            )
        self._x = x
        return lmkan_cupy.forward(x, self.tables)

    def backward(self, grad_y: Array, *, penalty: float = 0.0) -> Array:
        """Return ``grad_x [..., I]`` for ``grad_y [..., O]``, and store ``grad_tables``.

        ``penalty`` times the gradient of :func:`lmkan_cupy.hessian_penalty` is added to the latter.
        """
        if self._x is None:
            raise RuntimeError("LMKANLayer.backward: call forward first")
        grad_x, self.grad_tables = lmkan_cupy.backward(grad_y, self._x, self.tables)
        assert grad_x is not None
        if penalty:
            lmkan_cupy.hessian_penalty_and_grad(self.tables, penalty, add_to=self.grad_tables)
        return grad_x

    def adam_step(self, lr: float) -> None:
        """Move the tables by one step of Adam (Kingma, Ba, arXiv 1412.6980, betas 0.9, 0.999)."""
        if self.grad_tables is None:
            raise RuntimeError("LMKANLayer.adam_step: call backward first")
        self._steps += 1
        self._mean += 0.1 * (self.grad_tables - self._mean)
        self._mean_of_squares += 0.001 * (self.grad_tables**2 - self._mean_of_squares)
        mean = self._mean / (1 - 0.9**self._steps)
        deviation = (self._mean_of_squares / (1 - 0.999**self._steps)) ** 0.5
        self.tables -= lr * mean / (deviation + 1e-8)


def evaluate(
    layers: Sequence[LMKANLayer], x: Array, *, bound: float | Sequence[float | None] | None = None
) -> Array:
    """Return ``y [..., O]`` of a chain of layers for ``x [..., I]``, in one call.

    It equals ``forward`` of one layer after the other to the bit, and keeps nothing for
    ``backward``.

    Parameters
    ----------
    layers : sequence of LMKANLayer
        Each takes as many features as the one before it gives.
    x : array [..., I]
        In the dtype of the layers.
    bound : float or sequence of (float or None), optional
        Where inputs of the layers are cut, see :func:`lmkan_cupy.network_forward`.

    Raises
    ------
    TypeError, ValueError
        If there is no layer, or sizes, dtypes, libraries or ``bound`` do not fit.
    """
    shape = x.shape
    for k, layer in enumerate(layers):
        if shape[-1:] != (layer.in_features,):
            raise ValueError(
                f"evaluate: layers[{k}] must get {layer.in_features} features on the last axis, "
                f"got shape {shape}"
            )
        shape = (*shape[:-1], layer.tables.shape[-1])
    return lmkan_cupy.network_forward(x, [each.tables for each in layers], bound=bound)
