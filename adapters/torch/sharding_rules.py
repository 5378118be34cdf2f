"""How the operators compute on sharded tensors (``torch.distributed.tensor``).

Importing this module registers the rules; :mod:`.dispatch` imports it as soon as there can be a
DTensor. FSDP2 shards tables by pairs, :class:`~.sharding.ColumnParallel` by outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

#: Placements of an operator's results along one axis of a mesh, and of its arguments.
_Sharding: TypeAlias = tuple[Sequence[Placement], Sequence[Placement | None]]

WHOLE = Replicate()
_PAIRS, _SUM = Shard(0), Partial()


def outputs_of(tables: Any) -> Shard:
    """Return the placement by outputs of tables [P, S, ..., S, O]."""
    return Shard(len(tables.shape) - 1)


def _fills_all(tables: Any, shard: Shard) -> bool:
    """Tell whether every process gets a part of the tables: an empty part cannot be evaluated."""
    processes, size = tables.mesh.size(), tables.shape[shard.dim]
    return bool(-(-size // processes) * (processes - 1) < size)


def _of_layer(
    x: Any, tables: Any, results: list[str], arguments: list[str | None]
) -> list[_Sharding]:
    """Return the possible shardings of an operator: none, by outputs, by an axis of samples.

    ``results`` and ``arguments`` say for each of them whether it has the shape of "x", "y" or
    "tables"; None stands for an argument that is not a tensor.
    """
    last = len(x.shape) - 1

    def sharding(of: Mapping[str, Placement], from_: Mapping[str, Placement]) -> _Sharding:
        return [of[each] for each in results], [
            None if each is None else from_[each] for each in arguments
        ]

    whole = {"x": WHOLE, "y": WHOLE, "tables": WHOLE}
    found = [sharding(whole, whole)]
    if _fills_all(tables, outputs_of(tables)):
        by_outputs = {"y": Shard(last), "tables": outputs_of(tables)}
        found.append(sharding(by_outputs | {"x": _SUM}, by_outputs | {"x": WHOLE}))
    for axis in range(last):
        by_samples = {"x": Shard(axis), "y": Shard(axis)}
        found.append(sharding(by_samples | {"tables": _SUM}, by_samples | {"tables": WHOLE}))
    return found


def _forward(x: Any, tables: Any) -> list[_Sharding]:
    return _of_layer(x, tables, ["y"], ["x", "tables"])


def _backward(grad_y: Any, x: Any, tables: Any, need_x: bool, need_tables: bool) -> list[_Sharding]:
    return _of_layer(x, tables, ["x", "tables"], ["y", "x", "tables", None, None])


def _backward_backward(ggx: Any, ggt: Any, grad_y: Any, x: Any, tables: Any) -> list[_Sharding]:
    given = [ggx and "x", ggt and "tables"]
    return _of_layer(x, tables, ["y", "x", "tables"], [*given, "y", "x", "tables"])


def _hessian_penalty(tables: Any, need_grad: bool) -> list[_Sharding]:
    shards = [each for each in (_PAIRS, outputs_of(tables)) if _fills_all(tables, each)]
    return [
        ([WHOLE, WHOLE], [WHOLE, None]),
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
