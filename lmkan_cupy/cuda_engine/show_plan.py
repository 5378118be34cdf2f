"""How the CUDA engine computes a layer or a network, in words, and what its model predicts."""

from collections.abc import Sequence
from itertools import pairwise

from .. import array_checks, tables
from ..installation import cuda_obstacle
from . import kernel_cache, network_pass
from .forward_model import Prediction
from .forward_pass import plan_forward
from .network_pass import NetworkPlan, plan_network
from .plan import H100, VECTOR_BYTES, Device, Launch, NetworkShape


def show_plan(
    features: Sequence[int], num_grids: int, batch: int, *, table_dtype: str, dimension: int = 2
) -> None:
    """Print how the CUDA engine computes a forward, and the time that its model predicts.

    For the current device; where there is none, for an H100, to which the model is fitted.

    Parameters
    ----------
    features : sequence of int
        Inputs and outputs of a layer; or of a network the inputs, then the outputs of every layer.
    num_grids, batch : int
    table_dtype : str
    dimension : int
        Inputs of an inner function, 1 or 2.

    Raises
    ------
    ValueError
        If a size is out of range.
    """
    for name, value in _rows(features, num_grids, batch, table_dtype, dimension).items():
        print(f"{name:<14} {value}")


def _rows(
    features: Sequence[int], num_grids: int, batch: int, table_dtype: str, dimension: int
) -> dict[str, str]:
    for inputs, outputs in pairwise(features):
        tables.tables_shape("info --plan", inputs, outputs, num_grids, dimension)
    array_checks.check_size("info --plan", "batch", batch, at_least=0)
    if cuda_obstacle() is None:
        device, where = kernel_cache.device(), "this machine's"
    else:
        device, where = H100, "an H100, as there is no usable GPU here"
    rows = {"device": f"sm_{device.capability}, {device.multiprocessors} multiprocessors ({where})"}
    if batch == 0:
        return rows | {"kernel": "none: there is nothing to do for 0 samples"}
    real = array_checks.COMPUTE_DTYPE[table_dtype]
    shape = NetworkShape(tuple(features), num_grids, real, table_dtype, dimension=dimension)
    of_kind = _of_layer if len(features) == 2 else _of_network
    return rows | of_kind(shape, batch, device)


def _of_layer(shape: NetworkShape, batch: int, device: Device) -> dict[str, str]:
    (layer,) = shape.layers
    plan = plan_forward(layer, batch, device, direction=False, aligned=True)
    rows = _of_kernel(plan.kernel)
    if ring := plan.ring:
        rows["tables"] = (
            f"{'packed' if ring.packed else 'as they are'}, {ring.outputs} outputs wide, "
            f"{ring.stages} in shared memory ({plan.kernel.shared_bytes // 1024} KB)"
        )
        rows["samples"] = f"{ring.samples} per block, at most {ring.slice_size} per launch"
        rows["pairs"] = f"{ring.run} per block" + f", {ring.splits} parts" * (ring.splits > 1)
    else:
        rows["tables"] = "in global memory"
        if layer.dimension == 1:
            rows["tables"] += ": tiles in shared memory are for functions of two variables"
    return rows | _of_prediction(plan.prediction, "packing, parts and launches")


def _of_network(shape: NetworkShape, batch: int, device: Device) -> dict[str, str]:
    forward, gradient = (
        plan_network(shape, batch, device, gradient=gradient) for gradient in (False, True)
    )
    by_layers, of_gradient = (
        f"{1e3 * network_pass.seconds_by_layers(shape, batch, device, gradient=gradient):.4g}"
        for gradient in (False, True)
    )
    if forward is None:
        why = _why_by_layers(shape, batch, device, gradient=False)
        return {"kernel": f"one for each layer: {why}", "by layers": f"{by_layers} ms, predicted"}
    rows = {
        **_of_kernel(forward.kernel),
        "tables": _of_tables(forward),
        **_of_prediction(forward.prediction, "copies of tables and the launch"),
        "by layers": f"{by_layers} ms, predicted",
    }
    if gradient is None:
        why = _why_by_layers(shape, batch, device, gradient=True)
        return rows | {"with gradient": f"layer by layer: {why}"}
    return rows | {
        "with gradient": f"{gradient.kernel.blocks} blocks of {gradient.kernel.threads}, tables "
        f"{_of_tables(gradient)}: {1e3 * gradient.prediction.seconds:.4g} ms, predicted; by layers "
        f"at least {of_gradient}"
    }


def _why_by_layers(shape: NetworkShape, batch: int, device: Device, *, gradient: bool) -> str:
    if shape.dimension == 1:
        return "one kernel takes functions of two variables only"
    if len(shape.layers) > network_pass.MOST_LAYERS:
        return f"a kernel takes at most {network_pass.MOST_LAYERS} layers"
    if network_pass.candidates(shape, batch, device, gradient=gradient):
        return "that is faster, by the model"
    return "shared memory has no room for the features and a tile of tables"


def _of_tables(plan: NetworkPlan) -> str:
    kb = plan.capacity * VECTOR_BYTES // 1024
    return f"{'all' if plan.resident else 'in stages'} in shared memory ({kb} KB)"


def _of_kernel(launch: Launch) -> dict[str, str]:
    return {"kernel": f"{launch.kernel}, {launch.blocks} blocks of {launch.threads}"}


def _of_prediction(predicted: Prediction, others: str) -> dict[str, str]:
    return {
        "predicted": f"{1e3 * predicted.seconds:.4g} ms, limited by {predicted.bound}",
        "limits, ms": ", ".join(
            f"{name} {1e3 * seconds:.4g}" for name, seconds in predicted.bounds.items()
        ),
        "besides, ms": f"{1e3 * predicted.others:.4g} for {others}",
        "note": "a model's prediction, not a measurement",
    }
