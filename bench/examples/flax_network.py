"""A network in Flax (NNX): ``python bench/examples/flax_network.py``."""

import jax
import optax
from flax import nnx
from jax import Array
from jax import numpy as jnp
from lmkan_cupy.adapters.jax import hessian_penalty, init_tables, lmkan


class LMKANBlock(nnx.Module):
    """Standardise the features over the batch, clip them, evaluate an lmKAN layer."""

    def __init__(
        self, in_features: int, out_features: int, num_grids: int, *, rngs: nnx.Rngs
    ) -> None:
        self.norm = nnx.BatchNorm(in_features, use_scale=False, use_bias=False, rngs=rngs)
        self.tables = nnx.Param(init_tables(rngs.params(), in_features, out_features, num_grids))

    def __call__(self, x: Array) -> Array:
        return lmkan(jnp.clip(self.norm(x), -3, 3), self.tables[...])


def loss(model: nnx.Sequential, x: Array) -> Array:
    errors = model(x)[:, 0] - x[:, 0] * x[:, 1]
    penalty = sum(hessian_penalty(block.tables[...]) for block in model.layers)
    return (errors**2).mean() + 1e-6 * penalty


@nnx.jit
def train(model: nnx.Sequential, optimizer: nnx.Optimizer, x: Array) -> Array:
    value, gradient = nnx.value_and_grad(loss)(model, x)
    optimizer.update(model, gradient)
    return value


rngs = nnx.Rngs(0)
model = nnx.Sequential(LMKANBlock(4, 32, 8, rngs=rngs), LMKANBlock(32, 1, 8, rngs=rngs))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
for step in range(201):
    value = train(model, optimizer, jax.random.normal(rngs.samples(), (512, 4)))
    if step % 50 == 0:
        print(f"step {step}: loss {value:.4f}")
