"""The modules ``LMKANLinear``, in place of ``nn.Linear``, and ``LMKANBlock``, the safe block."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook
from typing_extensions import Self

import lmkan_cupy
from lmkan_cupy.tables import init_bound, tables_shape

from . import dispatch, exchange, functional, nodes
from .functional import Engine

_log = logging.getLogger("lmkan_cupy")

#: The branch beside the tables.
Residual: TypeAlias = Literal["linear", "relu", "relu_last"] | None


def hessian_penalty(module: nn.Module) -> Tensor:
    """Return the sum of the Hessian penalties of all lmKAN layers of a model, 0-d; 0 without any.

    The penalty is the roughness of the inner functions: sums of their squared second derivatives,
    :func:`lmkan_cupy.hessian_penalty`. Add it to the loss, times a weight: it smooths the functions
    and determines them where there are no data. The more data, the less weight it needs;
    :class:`HessianSchedule` lets the weight fall during a training.

    Where tables require a gradient, the gradient is computed in the same pass as the value and kept
    until the backward pass. It takes as many bytes as the tables in float32, or in float64 if they
    are float64.
    """
    layers = table_modules(module)
    # A number on the CPU can be added to tensors on any device.
    return penalty_of(layers) if layers else torch.zeros((), dtype=torch.float32, device="cpu")


def table_modules(module: nn.Module) -> list["TablesModule"]:
    """Return the layers of a model that have tables."""
    return [each for each in module.modules() if isinstance(each, TablesModule)]


def penalty_of(layers: "Sequence[TablesModule]") -> Tensor:
    """Return the sum of the Hessian penalties of layers, 0-d; of one at least."""
    tables = [each.by_pair() for each in layers]
    if dispatch.is_eager(tables) and not any([each.engine for each in layers]):
        is_recorded = torch.is_grad_enabled()
        return nodes.penalty([is_recorded and each.requires_grad for each in tables], *tables)
    penalties = [
        functional.hessian_penalty_of(each, engine=layer.engine)
        for each, layer in zip(tables, layers, strict=True)
    ]
    return sum(penalties[1:], penalties[0])


class TablesModule(nn.Module):
    """A module with ``tables [..., P, S, ..., S, O]``, which :func:`hessian_penalty` finds."""

    tables: Tensor
    engine: Engine
    #: Inputs of an inner function, which the tables alone do not tell where they have groups.
    dimension = 2

    @property
    def num_grids(self) -> int:
        """Grid intervals per axis."""
        return self.tables.shape[-2] - 1

    def by_pair(self) -> Tensor:
        """Return the tables [P, S, ..., S, O] of all groups."""
        return self.tables.flatten(0, -self.dimension - 2)

    def hessian_penalty(self) -> Tensor:
        """Return the roughness of the tables: :func:`lmkan_cupy.hessian_penalty`."""
        return penalty_of([self])

    def engine_name(self) -> str:
        """Return the name of what computes the layer: a device's engine, or plain torch."""
        return self.engine or self.tables.device.type


class Layer(TablesModule):
    """What :class:`LMKANLinear` and ``LMKANConv2d`` share: parameters, folding, refining.

    Parameters
    ----------
    in_features, out_features, num_grids : int
        Sizes of one group.
    groups : tuple of int
        Leading axes of the tables.
    kernel_size : tuple of int
        Trailing axes of the branch's weight, which has ``in_features`` elements per output.
    dimension, residual, bias, tables_weight, init_scale, engine, device, dtype
        As in :class:`LMKANLinear`.
    """

    tables: nn.Parameter
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    tables_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int,
        *,
        groups: tuple[int, ...] = (),
        kernel_size: tuple[int, ...] = (),
        dimension: int,
        residual: Residual,
        bias: bool,
        tables_weight: float | None,
        init_scale: float,
        engine: Engine,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        shape = tables_shape(name, in_features, out_features, num_grids, dimension)
        _check_residual(name, residual, num_grids)
        functional.check_engine(name, engine)
        self.dimension = dimension
        self.residual = residual
        self.init_scale = init_scale
        self.engine = engine
        self._features = in_features
        self.tables = nn.Parameter(torch.empty((*groups, *shape), device=device, dtype=dtype))
        self.weight = self.bias = None
        if residual is not None:
            outputs = math.prod(groups) * out_features
            columns = in_features // math.prod(kernel_size)
            self.weight = nn.Parameter(
                torch.empty((outputs, columns, *kernel_size), device=device, dtype=dtype)
            )
            if bias:
                self.bias = nn.Parameter(torch.empty(outputs, device=device, dtype=dtype))
        self._initial_tables_weight = 1.0 if tables_weight is None else tables_weight
        self.register_buffer(
            "tables_weight",
            None if tables_weight is None else torch.empty((), device=device, dtype=dtype),
        )
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new parameters; those of the branch as torch's own layers draw theirs.

        ``generator`` draws them, by default torch's own.
        """
        bound = init_bound(self._features, self.init_scale)
        nn.init.uniform_(self.tables, -bound, bound, generator)
        if self.tables_weight is not None:
            assert self._initial_tables_weight is not None
            self.tables_weight.fill_(self._initial_tables_weight)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                bound = 1 / math.sqrt(self._features)
                nn.init.uniform_(parameter, -bound, bound, generator)

    @torch.no_grad()
    def fold_(self) -> Self:
        """Add the residual branch to the tables, in place, and remove it; ``tables_weight``, too.

        The layer computes the same function as before, up to rounding, and costs less: see
        ``residual`` of :class:`LMKANLinear`.

        Raises
        ------
        ValueError
            If the branch is "relu_last".
        """
        if self.residual == "relu_last":
            raise ValueError(
                "fold_: the branch of residual='relu_last' is no sum of functions of one input "
                "each, so tables cannot hold it: keep the layer as it is, or train one with "
                "residual='relu' or 'linear'"
            )
        if self.tables_weight is not None:
            self.tables.mul_(self.tables_weight)
            self.tables_weight = None
        if self.weight is not None:
            fold = lmkan_cupy.fold_relu if self.residual == "relu" else lmkan_cupy.fold_linear
            groups = self.tables.reshape(-1, *self.tables.shape[-self.dimension - 2 :])
            branch = [self.weight.flatten(1)] + ([] if self.bias is None else [self.bias])
            parts = zip(groups, *[each.chunk(len(groups)) for each in branch], strict=True)
            folded = [exchange.run(fold, *map(_widened, part)) for part in parts]
            self.tables.copy_(torch.stack(folded).reshape(self.tables.shape))
            self.weight = self.bias = self.residual = None
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *details: Any
    ) -> None:
        """Load a state; if it has tables alone, as a folded layer has, become a folded layer.

        Raises
        ------
        RuntimeError
            If the state has a branch and the layer has none.
        """
        name = prefix.removesuffix(".") or type(self).__name__
        if self.weight is None and f"{prefix}weight" in state_dict:
            raise RuntimeError(
                f"load_state_dict: {name} was saved with a residual branch, which this one lacks: "
                "make it with the `residual` that it had, and call fold_() after loading"
            )
        foldable = [
            each for each in ("weight", "bias", "tables_weight") if getattr(self, each) is not None
        ]
        tables = state_dict.get(f"{prefix}tables")
        if (
            foldable
            and tables is not None
            and tables.shape == self.tables.shape
            and not any(f"{prefix}{each}" in state_dict for each in foldable)
        ):
            self.weight = self.bias = self.residual = self.tables_weight = None
            _log.info("load_state_dict: %s was saved folded, and is folded with it", name)
        super()._load_from_state_dict(state_dict, prefix, *details)

    @torch.no_grad()
    def refine_(self, num_grids: int, optimizer: torch.optim.Optimizer | None = None) -> Self:
        """Move to a grid of ``num_grids`` intervals, in place: :func:`lmkan_cupy.refine`.

        ``tables`` stays the same Parameter, so an optimiser keeps it. Pass the ``optimizer``, if
        there is one, to have its moments resampled too; otherwise its next step fails on their old
        shape. Call it between steps: a forward on the old grid has no backward any more.

        Raises
        ------
        ValueError
            If the grid is too coarse, or odd where there is a ReLU branch.
        TypeError
            If the optimiser keeps anything but numbers and moments of the parameters' shapes, as
            LBFGS and Adafactor do.
        """
        _check_residual("refine_", self.residual, num_grids)
        if optimizer is not None:
            _check_moments(optimizer)
        states = optimizer.state.get(self.tables, {}) if optimizer is not None else {}
        for name, state in states.items():
            if isinstance(state, Tensor) and state.shape == self.tables.shape:
                states[name] = _resampled(state, num_grids, self.dimension)
        refined: Tensor = exchange.run(lmkan_cupy.refine, _widened(self.by_pair()), num_grids)
        shape = (*self.tables.shape[: -self.dimension - 1], *refined.shape[1:])
        self.tables.data = refined.to(self.tables.dtype).reshape(shape).contiguous()
        self.tables.grad = None
        return self

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return (
            f"num_grids={self.num_grids}, dimension={self.dimension}, "
            f"residual={self.residual!r}, engine={self.engine_name()!r}"
        )

    def _with_branch(self, y: Tensor, x: Tensor, linear: Callable[..., Tensor]) -> Tensor:
        """Return the layer's output: what its tables give, ``y``, with the branch of ``x``.

        ``linear`` takes an input, the branch's weight and its bias or None.
        """
        if self.tables_weight is not None:
            y = self.tables_weight.to(y.dtype) * y
        if self.weight is None:
            return y
        x = torch.relu(x) if self.residual == "relu" else x
        bias = None if self.bias is None else self.bias.to(x.dtype)
        branch = linear(x, self.weight.to(x.dtype), bias)
        return y + (torch.relu(branch) if self.residual == "relu_last" else branch)


class LMKANLinear(Layer):
    """An lmKAN layer in place of ``nn.Linear``, ``[..., I] -> [..., O]``.

    Its inputs should be standardised and bounded; :class:`LMKANBlock` does that, so prefer it
    wherever nothing else does.

    Parameters
    ----------
    in_features, out_features : int
        Sizes I and O.
    num_grids : int
        Grid intervals per axis, G >= 3; the paper advises to start with 8 to 10.
    residual : {None, "linear", "relu", "relu_last"}
        A branch ``weight @ act(x) + bias`` that is added to the output, where ``act`` is the
        identity or ReLU. A network with branches starts close to a linear or ReLU network and
        trains better; "linear" did best (``bench/results/procedure.md``). After the training
        :meth:`fold_` adds the branch to the tables, so that it costs nothing in inference. That is
        exact: the branch is a sum of functions of one input each, which are linear between the
        knots, and tables hold every such function. ReLU bends at 0, so "relu" needs a knot there:
        an even ``num_grids``. "relu_last" adds ``relu(weight @ x + bias)``, which stays beside the
        tables and costs I O multiply-adds more.
    bias : bool
        Whether the branch has a bias. The tables hold constants in any case, so without a branch
        there is no bias, whatever ``bias`` is.
    dimension : {1, 2, 3}
        Inputs d of an inner function. With 1, grids may be fine: 200 intervals, say.
    tables_weight : float, optional
        What the tables give is multiplied by it; by default by nothing. It is a buffer, which a
        training may change: :class:`PhasedSchedule`. :meth:`fold_` multiplies the tables by it.
    init_scale : float
        The tables are drawn from U(-a, a), ``a = init_scale / sqrt(in_features)``.
    engine : {None, "torch"}
        None computes on the engine of the device, see :func:`lmkan`.
    device, dtype
        Device and dtype of the parameters.

    Attributes
    ----------
    tables : Parameter [P, S, ..., S, O]
        Values of the inner functions at the knots, P = ceil(I / d), d axes of S = G + 1 knots.
    weight, bias : Parameter [O, I] and [O], or None
        The residual branch.
    tables_weight : Tensor, 0-d, or None

    Raises
    ------
    TypeError, ValueError
        If a size, ``residual`` or ``engine`` is out of range, or ``num_grids`` a bool: the third
        argument of ``nn.Linear``, ``bias``, is given by its name here.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int = 10,
        *,
        dimension: int = 2,
        residual: Residual = None,
        bias: bool = True,
        tables_weight: float | None = None,
        init_scale: float = 0.1,
        engine: Engine = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(num_grids, bool):
            raise TypeError(
                f"LMKANLinear: num_grids, the third argument, must be a whole number, got "
                f"{num_grids}; bias={num_grids} is given by name"
            )
        super().__init__(
            in_features,
            out_features,
            num_grids,
            dimension=dimension,
            residual=residual,
            bias=bias,
            tables_weight=tables_weight,
            init_scale=init_scale,
            engine=engine,
            device=device,
            dtype=dtype,
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Return ``y [..., O]`` for ``x [..., I]``."""
        if isinstance(x, Proxy):
            return as_leaf(self, x)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"LMKANLinear: x must have {self.in_features} features on its last axis, "
                f"got x.shape={tuple(x.shape)}"
            )
        y = functional.lmkan(x, self.tables, engine=self.engine)
        return self._with_branch(y, x, nn.functional.linear)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {super().extra_repr()}"


class LMKANBlock(nn.Module):
    """The safe building block: batch normalisation, bounds, then :class:`LMKANLinear`.

    Build networks from blocks. The grid of an lmKAN layer is made for standardised inputs, which
    batch normalisation gives it. Outside the grid the functions continue as bilinear ones, which
    grow quadratically along the diagonals of a pair, so in a deep network a single outlier can ruin
    the output; therefore the inputs are cut at ``+-bound``. Take :class:`LMKANLinear` alone only
    where the inputs are known to be standardised and bounded.

    Parameters
    ----------
    in_features, out_features, num_grids
        As in :class:`LMKANLinear`.
    bound : float or None
        Where inputs are cut, in standard deviations; None leaves them unbounded.
    **layer_arguments
        Further arguments of :class:`LMKANLinear`.

    Raises
    ------
    TypeError, ValueError
        As :class:`LMKANLinear`.
    """

    norm: nn.BatchNorm1d | nn.Identity

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_grids: int = 10,
        *,
        bound: float | None = 3.0,
        **layer_arguments: Any,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(
            in_features,
            affine=False,
            device=layer_arguments.get("device"),
            dtype=layer_arguments.get("dtype"),
        )
        self.bound = nn.Identity() if bound is None else nn.Hardtanh(-bound, bound)
        self.layer = LMKANLinear(in_features, out_features, num_grids, **layer_arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``y [..., O]`` for ``x [..., I]``; the statistics are over all leading axes."""
        if (arguments := self._usual_arguments(x)) is not None:
            rows = nodes.block(*arguments)
            return rows.reshape(*x.shape[:-1], rows.shape[-1])
        normed = self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        y: Tensor = self.layer(self.bound(normed))
        return y

    def _usual_arguments(self, x: Tensor) -> tuple[Any, ...] | None:
        """Return the arguments of :func:`.nodes.block`; None where the modules have to be called.

        That is, where somebody replaced them or hooked on to them, where they raise an error, or
        where torch has more to do than to record what they compute.
        """
        norm, bound, layer = self.norm, self.bound, self.layer
        if not (
            isinstance(x, Tensor)
            and not _has_any_global_hook()  # type: ignore[no-untyped-call]
            and _is_usual(norm, nn.BatchNorm1d, nn.Identity)
            and _is_usual(bound, nn.Hardtanh, nn.Identity)
            and _is_usual(layer, LMKANLinear)
            and layer.engine is None
            and layer.residual in (None, "linear")
            and layer.tables_weight is None
            and (layer.weight is not None or layer.bias is None)
            and x.shape[-1:] == (layer.in_features,)
        ):
            return None
        x = x.reshape(-1, layer.in_features)
        mean = variance = num_batches = normalisation = limits = None
        if isinstance(norm, nn.BatchNorm1d):
            mean, variance = norm.running_mean, norm.running_var
            if (
                mean is None
                or variance is None
                or not x.shape[1:] == mean.shape == variance.shape
                or norm.momentum is None
                or norm.affine
                or x.shape[0] <= int(norm.training)  # torch.export compares with no bool
            ):
                return None
            num_batches = norm.num_batches_tracked if norm.training else None
            normalisation = norm.training, norm.momentum, norm.eps
        if isinstance(bound, nn.Hardtanh):
            limits = bound.min_val, bound.max_val
        tensors = x, layer.tables, layer.weight, layer.bias, mean, variance
        if not dispatch.is_eager([each for each in tensors if each is not None]):
            return None
        if num_batches is not None:
            num_batches.add_(1)
        return nodes.BlockSettings(normalisation, limits), *tensors


def _is_usual(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Tell whether calling a module is to compute what a module of one of these kinds computes."""
    return type(module) in kinds and not is_altered(module)


def as_leaf(module: nn.Module, x: Proxy) -> Any:
    """Return a module's result as one node of a traced graph: ``torch.fx`` looks into no layer."""
    tracer: Any = x.tracer
    path = tracer.path_of_module(module)
    if not path:
        raise TypeError(
            f"symbolic_trace: a {type(module).__name__} is not traced itself: trace a model that "
            "holds it"
        )
    return tracer.create_proxy("call_module", path, (x,), {})


def is_altered(module: nn.Module) -> bool:
    """Tell whether a call of a module does more than its class says."""
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    return "forward" in vars(module) or any(hooks)


def _resampled(moments: Tensor, num_grids: int, dimension: int) -> Tensor:
    """Return an optimiser's moments ``[..., S, ..., S, O]`` at the knots of another grid.

    Unlike tables they are not extrapolated: every new moment is a weighted mean of old ones. So a
    mean of squares stays at least the square of the mean, and Adam's next step as small as its
    last.
    """
    old = lmkan_cupy.sigma_grid(moments.shape[-2] - 1, dtype="float64")
    new = lmkan_cupy.sigma_grid(num_grids, dtype="float64")
    weights = torch.from_numpy(np.stack([np.interp(new, old, each) for each in np.eye(len(old))]))
    wide = _widened(moments)
    weights = weights.to(wide)  # [S, new S]
    axes = [("i", "k"), ("j", "l"), ("m", "n")][:dimension]
    before, after = map("".join, zip(*axes, strict=True))
    matrices = ",".join(map("".join, axes))
    equation = f"...{before}o,{matrices}->...{after}o"
    resampled = torch.einsum(equation, wide, *[weights] * dimension).to(moments.dtype)
    return resampled.contiguous()  # as the tables are: fused optimisers need it


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Require a state that consists of numbers and of one value per element of a parameter."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            per_element = isinstance(value, Tensor) and value.shape in ((), parameter.shape)
            if not (per_element or value is None or isinstance(value, int | float)):
                raise TypeError(
                    f"refine_: {type(optimizer).__name__} keeps {name!r}, which cannot be moved to "
                    "another grid: leave out optimizer, and make a new one after refining"
                )


def _widened(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that its sums are computed in, float32 or float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_residual(function: str, residual: str | None, num_grids: int) -> None:
    if residual not in (None, "linear", "relu", "relu_last"):
        raise ValueError(
            f"{function}: residual must be None, 'linear', 'relu' or 'relu_last', got {residual!r}"
        )
    if residual == "relu" and num_grids % 2:
        raise ValueError(
            f"{function}: residual='relu' needs an even num_grids (a knot at 0), got {num_grids}"
        )
