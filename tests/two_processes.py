"""What two processes check together, for test_torch_sharding: ``torchrun --nproc-per-node 2``.

Each check compares with the same model in one process. The penalty in the loss works on the tables
outside of the model's forward, the derivative in it asks for second derivatives.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from lmkan_cupy.adapters.torch import LMKANLinear, hessian_penalty
from lmkan_cupy.adapters.torch.sharding import ColumnParallel
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

PROCESSES = 2


def make_model(seed: int = 0) -> nn.Sequential:
    """Sizes that two processes cannot share equally: 3 pairs and 7 outputs, then 1 output."""
    torch.manual_seed(seed)
    return nn.Sequential(
        LMKANLinear(5, 7, 6, residual="relu"), nn.Hardtanh(-3, 3), LMKANLinear(7, 1, 5)
    )


def make_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(16, 5), torch.randn(16, 1)


def own_part(batch: Tensor) -> Tensor:
    return batch.chunk(PROCESSES)[distributed.get_rank()]


def backward(model: nn.Module, x: Tensor, target: Tensor, *, forces: bool = True) -> Tensor:
    """Leave gradients of energies, penalty and perhaps derivatives; return that of x."""
    x = x.clone().requires_grad_()
    y = model(x)
    loss = ((y - target) ** 2).mean() + 0.1 * hessian_penalty(model)
    if forces:
        (of_x,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = loss + (of_x**2).mean()
    loss.backward()
    assert x.grad is not None
    return x.grad


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_gradients(model: nn.Module, expected: nn.Module) -> None:
    for each, same in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(whole(each.grad), same.grad)


def sharded_by_pairs(seed: int = 0) -> nn.Sequential:
    model = make_model(seed)
    for layer in model:
        if isinstance(layer, LMKANLinear):
            fully_shard(layer)
    fully_shard(model)
    return model


def sharded_by_outputs(seed: int = 0) -> nn.Module:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    return parallelize_module(
        make_model(seed), mesh, {"0": ColumnParallel(), "2": ColumnParallel()}
    )


def ddp(folder: Path) -> None:
    x, target = make_batch()
    expected, model = make_model(), DistributedDataParallel(make_model())
    backward(expected, x, target)
    backward(model, own_part(x), own_part(target))
    assert_same_gradients(model, expected)


def fsdp(folder: Path) -> None:
    """Without forces: FSDP frees parameters in the first backward, those of any layer."""
    x, target = make_batch()
    expected, model = make_model(), sharded_by_pairs()
    backward(expected, x, target, forces=False)
    backward(model, own_part(x), own_part(target), forces=False)
    assert_same_gradients(model, expected)


def column_parallel(folder: Path) -> None:
    x, target = make_batch()
    expected, model = make_model(), sharded_by_outputs()
    assert_close(model(x), expected(x), rtol=0, atol=0)
    assert_close(backward(model, x, target), backward(expected, x, target))
    assert_same_gradients(model, expected)
    tables = model[0].tables
    assert tables.to_local().shape == (3, 7, 7, 4 - distributed.get_rank())


def column_parallel_without_gathering(folder: Path) -> None:
    x, _ = make_batch()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    layer = make_model()[0]
    expected = layer(x)
    y = parallelize_module(layer, mesh, ColumnParallel(gather_output=False))(x)
    assert y.to_local().shape == (16, 4 - distributed.get_rank())
    assert_close(y.full_tensor(), expected, rtol=0, atol=0)


def column_parallel_elsewhere(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    with pytest.raises(TypeError, match="ColumnParallel: expected an LMKANLinear, got Linear"):
        parallelize_module(nn.Linear(2, 2), mesh, ColumnParallel())


def save_and_load(make: Callable[[int], nn.Module], folder: Path) -> None:
    saved, loaded = make(0), make(1)
    checkpoint.save(get_model_state_dict(saved), checkpoint_id=folder)
    state = get_model_state_dict(loaded)
    checkpoint.load(state, checkpoint_id=folder)
    set_model_state_dict(loaded, state)
    for each, same in zip(loaded.parameters(), saved.parameters(), strict=True):
        assert_close(whole(each), whole(same), rtol=0, atol=0)


def checkpoint_of_fsdp(folder: Path) -> None:
    save_and_load(sharded_by_pairs, folder)


def checkpoint_of_column_parallel(folder: Path) -> None:
    save_and_load(sharded_by_outputs, folder)


CHECKS = [
    ddp,
    fsdp,
    column_parallel,
    column_parallel_without_gathering,
    column_parallel_elsewhere,
    checkpoint_of_fsdp,
    checkpoint_of_column_parallel,
]


def main(folder: Path) -> None:
    """Write what went wrong in which check into ``failures-<rank>.json``."""
    distributed.init_process_group("gloo")
    failures = {}
    for check in CHECKS:
        try:
            check(folder / check.__name__)
        except Exception:
            failures[check.__name__] = traceback.format_exc()
        distributed.barrier()
    rank = distributed.get_rank()
    (folder / f"failures-{rank}.json").write_text(json.dumps(failures))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
