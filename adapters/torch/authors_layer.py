"""The layer of the authors' package, for its checkpoints.

https://github.com/schwallergroup/lmkan
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lmkan_cupy.grid import sigma_grid
from lmkan_cupy.tables import init_bound, tables_shape

from . import functional
from .functional import Engine
from .layers import TablesModule, as_leaf

#: Arguments that tune the authors' kernels for a GPU; this library chooses such things itself.
_TILE_ARGUMENTS = {
    "block_size_forward",
    "block_size_backward",
    "tile_size_forward",
    "tile_size_backward",
    "backward_fast_mode",
}


class LMKAN2DLayer(TablesModule):
    """A layer with the interface and the ``state_dict`` of the authors' class: batch last.

    The authors store tables with the pairs last, so every call copies them. For new models use
    :class:`LMKANLinear`; its ``tables`` are ``func_parameter.permute(3, 0, 1, 2)``.

    Parameters
    ----------
    num_grids, input_dim, output_dim : int
        Grid intervals G >= 3, inputs I, which must be even, and outputs O.
    init_scale : float
        The tables are drawn from U(-a, a), ``a = init_scale / sqrt(input_dim)``.
    engine : {None, "torch"}
        See :func:`lmkan`.
    **ignored_tile_arguments
        Block and tile sizes of the authors' kernels, and their ``backward_fast_mode``.

    Attributes
    ----------
    func_parameter : Parameter [S, S, O, P]
        ``tables [P, S, S, O]`` with their axes in another order.
    borders : buffer [S]
        The knots, float32.

    Raises
    ------
    TypeError, ValueError
        If a size or ``engine`` is out of range, ``input_dim`` is odd, or there is an unknown
        argument; from ``load_state_dict``, if ``borders`` are not the knots.
    """

    borders: Tensor

    def __init__(
        self,
        num_grids: int,
        input_dim: int,
        output_dim: int,
        *,
        init_scale: float = 0.1,
        engine: Engine = None,
        **ignored_tile_arguments: Any,
    ) -> None:
        super().__init__()
        if unknown := set(ignored_tile_arguments) - _TILE_ARGUMENTS:
            raise TypeError(f"LMKAN2DLayer: unknown arguments {', '.join(sorted(unknown))}")
        pairs, num_knots, _, _ = tables_shape("LMKAN2DLayer", input_dim, output_dim, num_grids)
        if input_dim % 2:
            raise ValueError(f"LMKAN2DLayer: input_dim must be even, got {input_dim}")
        functional.check_engine("LMKAN2DLayer", engine)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.init_scale = init_scale
        self.engine = engine
        self.func_parameter = nn.Parameter(torch.empty(num_knots, num_knots, output_dim, pairs))
        self.register_buffer("borders", torch.empty(num_knots, dtype=torch.float32))
        self.register_load_state_dict_pre_hook(_check_borders)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new tables, and set the knots."""
        bound = init_bound(self.input_dim, self.init_scale)
        nn.init.uniform_(self.func_parameter, -bound, bound)
        self.borders.copy_(torch.from_numpy(sigma_grid(self.num_grids)))

    @property
    def tables(self) -> Tensor:  # type: ignore[override]
        """The tables [P, S, S, O]: a view of ``func_parameter``."""
        return self.func_parameter.permute(3, 0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[O, B]`` for ``x [I, B]``."""
        if isinstance(x, Proxy):
            return as_leaf(self, x)
        if x.ndim != 2 or x.shape[0] != self.input_dim:
            raise ValueError(
                f"LMKAN2DLayer: x must have shape [{self.input_dim}, batch], "
                f"got x.shape={tuple(x.shape)}"
            )
        return functional.lmkan(x.T, self.tables, engine=self.engine).T

    def get_hessian_regularization(self) -> Tensor:
        """Return the Hessian penalty, under the authors' name."""
        return self.hessian_penalty()

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return (
            f"num_grids={self.num_grids}, input_dim={self.input_dim}, "
            f"output_dim={self.output_dim}, engine={self.engine_name()!r}"
        )


def _check_borders(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse tables on other knots; knots may differ by rounding."""
    borders = state.get(f"{prefix}borders")
    if borders is None or borders.shape != module.borders.shape:
        return  # torch itself says what is wrong
    knots = torch.from_numpy(sigma_grid(module.num_grids))
    precision = max(torch.finfo(each.dtype).eps for each in (borders, knots))
    rounding = precision * (1 + knots.abs())
    if not ((borders.cpu() - knots).abs() <= rounding).all():
        raise ValueError(
            f"LMKAN2DLayer: borders are not the knots of num_grids={module.num_grids}: {borders}"
        )
