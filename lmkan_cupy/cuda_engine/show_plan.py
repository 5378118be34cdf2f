"""How the CUDA engine computes a forward, in words, and what its model predicts."""

from .. import array_checks, tables
from ..installation import cuda_obstacle
from . import kernel_cache
from .forward_pass import plan_forward
from .plan import H100, LayerShape


def show_plan(
    in_features: int, out_features: int, num_grids: int, batch: int, *, table_dtype: str
) -> None:
    """Print how the CUDA engine computes a forward, and the time that its model predicts.

    For the current device; where there is none, for an H100, to which the model is fitted.

    Raises
    ------
    ValueError
        If a size is out of range.
    """
    for name, value in _rows(in_features, out_features, num_grids, batch, table_dtype).items():
        print(f"{name:<14} {value}")


def _rows(
    in_features: int, out_features: int, num_grids: int, batch: int, table_dtype: str
) -> dict[str, str]:
    tables.tables_shape("info --plan", in_features, out_features, num_grids)
    array_checks.check_size("info --plan", "batch", batch, at_least=0)
    if cuda_obstacle() is None:
        device, where = kernel_cache.device(), "this machine's"
    else:
        device, where = H100, "an H100, as there is no usable GPU here"
    rows = {"device": f"sm_{device.capability}, {device.multiprocessors} multiprocessors ({where})"}
    if batch == 0:
        return rows | {"kernel": "none: there is nothing to do for 0 samples"}
    real = array_checks.COMPUTE_DTYPE[table_dtype]
    layer = LayerShape(in_features, out_features, num_grids, real, table_dtype)
    plan = plan_forward(layer, batch, device, direction=False, aligned=True)
    predicted = plan.prediction
    rows["kernel"] = f"{plan.kernel.kernel}, {plan.kernel.blocks} blocks of {plan.kernel.threads}"
    if ring := plan.ring:
        rows["tables"] = (
            f"{'packed' if ring.packed else 'as they are'}, {ring.outputs} outputs wide, "
            f"{ring.stages} in shared memory ({plan.kernel.shared_bytes // 1024} KB)"
        )
        rows["samples"] = f"{ring.samples} per block, at most {ring.slice_size} per launch"
        rows["pairs"] = f"{ring.run} per block" + f", {ring.splits} parts" * (ring.splits > 1)
    else:
        rows["tables"] = "in global memory"
    rows["predicted"] = f"{1e3 * predicted.seconds:.4g} ms, limited by {predicted.bound}"
    rows["limits, ms"] = ", ".join(
        f"{name} {1e3 * seconds:.4g}" for name, seconds in predicted.bounds.items()
    )
    rows["besides, ms"] = f"{1e3 * predicted.others:.4g} for packing, parts and launches"
    rows["note"] = "a model's prediction, not a measurement"
    return rows
