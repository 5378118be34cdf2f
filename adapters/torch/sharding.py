"""The operators on sharded tensors (``torch.distributed.tensor``), and a layer sharded by outputs.

Importing this module registers how the operators are sharded; :mod:`.dispatch` imports it as soon
as there can be a DTensor. FSDP2 shards tables by pairs, :class:`ColumnParallel` by outputs.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.parallel import ParallelStyle

from .layers import LMKANLinear

#: Placements of an operator's results along one axis of a mesh, and of its arguments.
_Sharding: TypeAlias = tuple[Sequence[Placement], Sequence[Placement | None]]

_WHOLE, _SUM = Replicate(), Partial()
_PAIRS, _OUTPUTS = Shard(0), Shard(3)  # of tables [P, S, S, O]


class ColumnParallel(ParallelStyle):
    """Shards the outputs of an :class:`LMKANLinear` over the processes of a mesh.

    Use it with ``torch.distributed.tensor.parallel.parallelize_module``. All processes get the same
    inputs; each keeps, trains and evaluates its part of the outputs. Parameters become DTensors, in
    place.

    Parameters
    ----------
    gather_output : bool
        Whether every process gets all outputs, as a tensor. Otherwise the output is a DTensor,
        sharded along its last axis.
    """

    def __init__(self, *, gather_output: bool = True) -> None:
        super().__init__()
        self.gather_output = gather_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, LMKANLinear):
            raise TypeError(f"ColumnParallel: expected an LMKANLinear, got {type(module).__name__}")
        outputs: Any = partial(_outputs, self.gather_output)
        inputs: Any = _whole_inputs  # torch's annotation says that these functions return nothing
        return distribute_module(module, device_mesh, _shard_parameters, inputs, outputs)


def _shard_parameters(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    for each, parameter in list(module.named_parameters(recurse=False)):
        placement = _OUTPUTS if each == "tables" else Shard(0)  # weight [O, I] and bias [O]
        sharded = distribute_tensor(parameter, mesh, [placement])
        module.register_parameter(each, nn.Parameter(sharded, parameter.requires_grad))


def _whole_inputs(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> DTensor:
    (x,) = inputs
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, [_WHOLE], run_check=False)
    # Also if x is replicated: this sums the parts of its gradient, and can be differentiated again.
    return x.redistribute(mesh, [_WHOLE])


def _outputs(gather: bool, module: nn.Module, y: DTensor, mesh: DeviceMesh) -> Tensor:
    return y.redistribute(mesh, [_WHOLE]).to_local() if gather else y


# --- Shardings of the operators -------------------------------------------------------------------


def _fills_all(tables: Any, shard: Shard) -> bool:
    """Tell whether every process gets a part of the tables; empty tables are no layer."""
    processes, size = tables.mesh.size(), tables.shape[shard.dim]
    return bool(-(-size // processes) * (processes - 1) < size)


def _of_layer(
    x: Any, tables: Any, results: list[str], arguments: list[str | None]
) -> list[_Sharding]:
    """Return the possible shardings of an operator: none, by outputs, by an axis of samples.

    ``results`` and ``arguments`` say for each of them whether it has the shape of "x", "y" or
    "tables"; None stands for an argument that is no tensor.
    """
    last = len(x.shape) - 1

    def sharding(of: Mapping[str, Placement], from_: Mapping[str, Placement]) -> _Sharding:
        return [of[each] for each in results], [
            None if each is None else from_[each] for each in arguments
        ]

    whole = {"x": _WHOLE, "y": _WHOLE, "tables": _WHOLE}
    found = [sharding(whole, whole)]
    if _fills_all(tables, _OUTPUTS):
        by_outputs = {"y": Shard(last), "tables": _OUTPUTS}
        found.append(sharding(by_outputs | {"x": _SUM}, by_outputs | {"x": _WHOLE}))
    for axis in range(last):
        by_samples = {"x": Shard(axis), "y": Shard(axis)}
        found.append(sharding(by_samples | {"tables": _SUM}, by_samples | {"tables": _WHOLE}))
    return found


def _forward(x: Any, tables: Any) -> list[_Sharding]:
    return _of_layer(x, tables, ["y"], ["x", "tables"])


def _backward(grad_y: Any, x: Any, tables: Any, need_x: bool, need_tables: bool) -> list[_Sharding]:
    return _of_layer(x, tables, ["x", "tables"], ["y", "x", "tables", None, None])


def _backward_backward(ggx: Any, ggt: Any, grad_y: Any, x: Any, tables: Any) -> list[_Sharding]:
    given = [ggx and "x", ggt and "tables"]
    return _of_layer(x, tables, ["y", "x", "tables"], [*given, "y", "x", "tables"])


def _hessian_penalty(tables: Any, need_grad: bool) -> list[_Sharding]:
    shards = [each for each in (_PAIRS, _OUTPUTS) if _fills_all(tables, each)]
    return [
        ([_WHOLE, _WHOLE], [_WHOLE, None]),
        *(([_SUM, each], [each, None]) for each in shards),
    ]


_SHARDINGS = {
    "forward": _forward,
    "backward": _backward,
    "backward_backward": _backward_backward,
    "hessian_penalty": _hessian_penalty,
}

for _name, _function in _SHARDINGS.items():
    _operator: Any = getattr(torch.ops.lmkan_cupy, _name).default
    register_sharding(_operator)(_function)
