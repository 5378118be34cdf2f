"""A network in one kernel (``network.cu``): plan, launch.

The kernel takes networks of up to ``MOST_LAYERS`` layers, linear ones among them, whose tables are
of functions of two variables with one grid and one dtype, if shared memory has room; compiled for a
gradient, it also pulls one back to x. Whether it is faster than layer by layer, the model says.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..array_checks import LinearLayer, Network
from ..array_library import Array, contiguous
from . import forward_model
from .forward_model import Prediction
from .forward_pass import plan_forward
from .launch import Kernel, ready
from .plan import (
    ITEM_BYTES,
    LANES,
    VECTOR_BYTES,
    Device,
    Launch,
    LayerShape,
    NetworkShape,
    ceil_div,
    launch_tasks,
    make_source,
)

#: Layers that the kernel has arguments for.
MOST_LAYERS = 6

#: dtype of x -> warps that a block may have, whose threads have a sample each. With a gradient, or
#: in float64, a thread of 16 warps would have too few registers.
WARPS = {"float32": (16, 8, 4), "float64": (8, 4)}
WARPS_WITH_GRADIENT = (8, 4)

#: dtype of the tables -> 16-byte chunks of a tile's row, at most, in linear layers, too. Their sums
#: take 32 registers, in float64 16 as other numbers take twice as many.
MOST_CHUNKS = {"float64": 4, "float32": 8, "float16": 4, "bfloat16": 4}

#: Bytes of shared memory besides columns and tables, at most: what a block knows of the layers.
CHAIN_BYTES = 384


@dataclass(frozen=True)
class NetworkPlan:
    """The launch of a network, and how it uses shared memory.

    Parameters
    ----------
    kernel : Launch
    rows : int
        Features of a sample that have room in shared memory.
    capacity : int
        16-byte chunks of tables that have room there.
    resident : bool
        Whether these are the tables of all layers.
    prediction : Prediction
    """

    kernel: Launch
    rows: int
    capacity: int
    resident: bool
    prediction: Prediction


def network_shape(network: Network) -> NetworkShape | None:
    """Return the shape of a network, or None if it is none that the kernel knows."""
    kinds = network.kinds
    of_tables = {(kind.shape[1:-1], kind.dtype) for kind in kinds if not kind.is_linear}
    if len(of_tables) != 1:
        return None
    ((axes, table),) = of_tables
    features = (network.in_features, *(kind.out_features for kind in kinds))
    linear = frozenset(k for k, kind in enumerate(kinds) if kind.is_linear)
    return NetworkShape(
        features, axes[0] - 1, network.dtype.name, table.name, linear, dimension=len(axes)
    )


def plan_network(
    shape: NetworkShape, batch: int, device: Device, *, gradient: bool
) -> NetworkPlan | None:
    """Return the launch for ``batch`` samples; None where layer by layer is faster, by the model.

    A pure function, as the other plans. With a ``gradient`` there is a plan only where there is one
    without, so that the outputs are the same, to the bit.
    """
    if gradient and plan_network(shape, batch, device, gradient=False) is None:
        return None
    possible = candidates(shape, batch, device, gradient=gradient)
    fastest = min(possible, key=lambda each: each.prediction.seconds, default=None)
    by_layers = seconds_by_layers(shape, batch, device, gradient=gradient)
    return fastest if fastest and fastest.prediction.seconds < by_layers else None


def seconds_by_layers(shape: NetworkShape, batch: int, device: Device, *, gradient: bool) -> float:
    """Return what the model predicts for the network layer by layer."""
    of_layers = [
        forward_model.linear(layer, batch, device)
        if k in shape.linear
        else plan_forward(layer, batch, device, direction=False, aligned=True).prediction
        for k, layer in enumerate(shape.layers)
    ]
    return forward_model.by_layers(shape, of_layers, batch, device, gradient=gradient)


def candidates(
    shape: NetworkShape, batch: int, device: Device, *, gradient: bool
) -> list[NetworkPlan]:
    """Return a plan for every size of a block with which shared memory has room."""
    if len(shape.layers) > MOST_LAYERS or shape.dimension != 2:
        return []
    plans = (
        through_shared(shape, batch, device, warps, gradient=gradient)
        for warps in (WARPS_WITH_GRADIENT if gradient else WARPS[shape.real])
    )
    return [plan for plan in plans if plan]


def through_shared(
    shape: NetworkShape, batch: int, device: Device, warps: int, *, gradient: bool
) -> NetworkPlan | None:
    """Return the plan with blocks of so many warps; None where shared memory lacks room."""
    samples, steps = LANES * warps, steps_of(shape)
    needed = sum(step.terms * step.rows * sum(step.tiles) for step in steps)
    rows = (_rows_with_gradients if gradient else _rows)(steps)
    of_columns = rows * samples * ITEM_BYTES[shape.real]
    room = (device.shared_bytes - CHAIN_BYTES - of_columns) // VECTOR_BYTES
    if room < max(step.rows * max(step.tiles) for step in steps):
        return None
    capacity = min(room, needed)
    source = make_source(
        "network.cu",
        replace(steps[0].layer, table=shape.table),
        WARPS=warps,
        DIRECTION=False,
        CHUNKS=MOST_CHUNKS[shape.table],
        GRADIENT=gradient,
    )
    blocks = min(ceil_div(batch, samples), device.multiprocessors)
    prediction = forward_model.of_network(
        shape,
        [(step.terms, chunks, step.rows == 1) for step in steps for chunks in step.tiles],
        batch,
        device,
        samples=samples,
        table_bytes=needed * VECTOR_BYTES,
        resident=capacity == needed,
        gradient=gradient,
    )
    return NetworkPlan(
        launch_tasks("network", blocks, source, of_columns + capacity * VECTOR_BYTES),
        rows,
        capacity,
        capacity == needed,
        prediction,
    )


class Step(NamedTuple):
    """A layer in the kernel.

    Parameters
    ----------
    layer : LayerShape
    terms : int
        Pairs of inputs; inputs of a linear layer.
    rows : int
        Of a term in shared memory: one for each node; a single one in a linear layer.
    tiles : list of int
        16-byte chunks of a row in every tile.
    """

    layer: LayerShape
    terms: int
    rows: int
    tiles: list[int]


def steps_of(shape: NetworkShape) -> list[Step]:
    """Return the layers of a network as the kernel takes them."""
    nodes, most = (shape.num_grids + 1) ** 2, MOST_CHUNKS[shape.table]
    return [
        Step(layer, layer.in_features, 1, _tiles(layer, most))
        if k in shape.linear
        else Step(layer, layer.pairs, nodes, _tiles(layer, most))
        for k, layer in enumerate(shape.layers)
    ]


def _tiles(layer: LayerShape, most: int) -> list[int]:
    """Return the 16-byte chunks of a row in every tile: powers of two, wide ones first."""
    left = ceil_div(layer.out_features * ITEM_BYTES[layer.table], VECTOR_BYTES)
    tiles = []
    while left:
        tiles.append(min(most, 2 ** (left.bit_length() - 1)))
        left -= tiles[-1]
    return tiles


def _rows(steps: list[Step]) -> int:
    """Return the rows of a column: where a layer has several tiles, its outputs need their own."""
    rows = steps[0].layer.in_features
    for layer, _, _, tiles in steps[:-1]:
        beside = layer.in_features if len(tiles) > 1 else 0
        rows = max(rows, layer.out_features + beside)
    return rows


def _rows_with_gradients(steps: list[Step]) -> int:
    """Return the same where all features stay.

    Behind the outputs of tables of several tiles, gradients of whole pairs need their own.
    """
    begin = rows = 0
    for layer, _, of_term, tiles in steps:
        beside = 2 * layer.pairs if len(tiles) > 1 and of_term > 1 else 0
        rows = max(rows, begin + layer.in_features + layer.out_features + beside)
        begin += layer.in_features
    return rows


def evaluate_network(network: Network, x: Array, out: Array) -> bool:
    """Overwrite ``out`` [B, O] with the network of ``x`` [B, I], if one kernel serves it.

    Returns
    -------
    bool
        Whether it does; else ``out`` is left as it is.
    """
    return _carried_out(network, x, None, out, None)


def pull_back_network(network: Network, x: Array, grad_y: Array, out: Array, grad_x: Array) -> bool:
    """Overwrite ``grad_x`` [B, I], too, with ``grad_y`` [B, O] pulled back to ``x``, likewise."""
    return _carried_out(network, x, grad_y, out, grad_x)


def _carried_out(
    network: Network, x: Array, grad_y: Array | None, out: Array, grad_x: Array | None
) -> bool:
    shape = network_shape(network)
    if shape is None:
        return False
    evaluation = ready(_evaluation, shape, len(x), grad_y is not None)
    return evaluation(network, x, grad_y, out, grad_x)


#: A function of ``network, x, grad_y, out, grad_x``; ``grad_y`` and ``grad_x`` may be None.
Evaluation: TypeAlias = Callable[[Network, Array, Array | None, Array, Array | None], bool]


def _evaluation(device: Device, shape: NetworkShape, batch: int, gradient: bool) -> Evaluation:
    plan = plan_network(shape, batch, device, gradient=gradient)
    return (lambda *_: False) if plan is None else by_plan(plan, shape, batch)


def by_plan(plan: NetworkPlan, shape: NetworkShape, batch: int) -> Evaluation:
    """Return a function that carries out a plan and returns True."""
    layers = len(shape.features) - 1
    absent = MOST_LAYERS - layers
    kernel = Kernel(
        plan.kernel,
        *(batch, layers, *shape.features, *[0] * absent),
        *(plan.rows, plan.capacity, plan.resident),
    )

    def evaluate(
        network: Network, x: Array, grad_y: Array | None, out: Array, grad_x: Array | None
    ) -> bool:
        given: list[Any] = [network.shift, network.scale]
        for layer in network.layers:
            given += (None, *layer) if isinstance(layer, LinearLayer) else (layer, None, None)
        arrays = [None if each is None else contiguous(each) for each in given]
        bounds = map(np.float64, (*network.bounds, *[0] * absent))
        kernel(x, *arrays, *[None] * 3 * absent, grad_y, out, grad_x, *bounds)
        return True

    return evaluate
