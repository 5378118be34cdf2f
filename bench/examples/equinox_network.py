"""A network in Equinox: ``python bench/examples/equinox_network.py``."""

import equinox as eqx
import jax
import optax
from jax import Array
from jax import numpy as jnp
from lmkan_cupy.adapters.jax import hessian_penalty, init_tables, lmkan


class LMKANLayer(eqx.Module):
    """Clip the features of a sample, which should be standardised, and evaluate an lmKAN layer."""

    tables: Array

    def __init__(self, in_features: int, out_features: int, num_grids: int, *, key: Array) -> None:
        self.tables = init_tables(key, in_features, out_features, num_grids)

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        return lmkan(jnp.clip(x, -3, 3), self.tables)


def loss(model: eqx.nn.Sequential, x: Array) -> Array:
    errors = jax.vmap(model)(x)[:, 0] - x[:, 0] * x[:, 1]
    penalty = sum(hessian_penalty(layer.tables) for layer in (model[0], model[2]))
    return (errors**2).mean() + 1e-6 * penalty


@eqx.filter_jit
def train(
    model: eqx.nn.Sequential, state: optax.OptState, x: Array
) -> tuple[eqx.nn.Sequential, optax.OptState, Array]:
    value, gradient = eqx.filter_value_and_grad(loss)(model, x)
    updates, state = optimizer.update(gradient, state)
    return eqx.apply_updates(model, updates), state, value


*keys, key = jax.random.split(jax.random.key(0), 3)
model = eqx.nn.Sequential(
    [
        LMKANLayer(4, 32, 8, key=keys[0]),
        eqx.nn.LayerNorm(32),
        LMKANLayer(32, 1, 8, key=keys[1]),
    ]
)
optimizer = optax.adam(3e-3)
state = optimizer.init(eqx.filter(model, eqx.is_array))
for step in range(201):
    key, of_samples = jax.random.split(key)
    model, state, value = train(model, state, jax.random.normal(of_samples, (512, 4)))
    if step % 50 == 0:
        print(f"step {step}: loss {value:.4f}")
