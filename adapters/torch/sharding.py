"""A layer whose outputs are sharded over several processes (``torch.distributed.tensor``)."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ParallelStyle

from .layers import LMKANLinear
from .sharding_rules import WHOLE, outputs_of


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

    Raises
    ------
    TypeError
        From ``parallelize_module``, if the module is not an :class:`LMKANLinear`.
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
        # Else weight [O, I] and bias [O].
        placement = outputs_of(parameter) if each == "tables" else Shard(0)
        sharded = distribute_tensor(parameter, mesh, [placement])
        module.register_parameter(each, nn.Parameter(sharded, parameter.requires_grad))


def _whole_inputs(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> DTensor:
    (x,) = inputs
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, [WHOLE], run_check=False)
    # Also if x is replicated: this sums the parts of its gradient, and can be differentiated again.
    return x.redistribute(mesh, [WHOLE])


def _outputs(gather: bool, module: nn.Module, y: DTensor, mesh: DeviceMesh) -> Tensor:
    return y.redistribute(mesh, [WHOLE]).to_local() if gather else y
