"""Data-parallel training: ``torchrun --nproc-per-node 2 bench/examples/distributed.py``."""

import torch
from lmkan_cupy.adapters.torch import LMKANBlock, hessian_penalty
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

distributed.init_process_group("gloo")  # "nccl" for GPUs
torch.manual_seed(0)
model = nn.Sequential(LMKANBlock(4, 32), LMKANBlock(32, 1))
fully_shard(model)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
torch.manual_seed(distributed.get_rank())  # each process draws its own samples
for step in range(201):
    x = torch.randn(512, 4)
    error = nn.functional.mse_loss(model(x), x[:, :2].prod(1, keepdim=True))
    optimizer.zero_grad()
    (error + 1e-6 * hessian_penalty(model)).backward()
    optimizer.step()
    if step % 50 == 0 and distributed.get_rank() == 0:
        print(f"step {step}: mean squared error {error.item():.4f}")
distributed.destroy_process_group()
