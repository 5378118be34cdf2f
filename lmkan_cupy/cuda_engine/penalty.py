"""The Hessian penalty and its gradient (``hessian_penalty.cu``): plan, workspace, launches."""

from dataclasses import dataclass

import numpy as np

from ..array_library import Array
from .launch import Kernel, Workspace, aligned, ready
from .plan import (
    ITEM_BYTES,
    LANES,
    PAIRED_OPERATIONS,
    Device,
    Launch,
    LayerShape,
    ceil_div,
    launch_tasks,
    layer_shape_of_tables,
    make_source,
    vector_outputs,
)

#: Threads of a block, at most.
MOST_THREADS = 384

#: dtype of the gradient -> warps that a multiprocessor should hold, and by how many these are fewer
#: from PAIRED_OPERATIONS on.
RESIDENT_WARPS, PAIRED_WARPS = {"float32": 24, "float64": 12}, 8

#: Blocks that a multiprocessor should hold, at most.
RESIDENT_BLOCKS = 8

#: Columns of knots of a block, at most.
MOST_COLUMNS = 48


@dataclass(frozen=True)
class PenaltyPlan:
    """The launches of the penalty: ``partials`` partial sums, then their sum."""

    partials: int
    penalty: Launch
    total: Launch

    @property
    def launches(self) -> tuple[Launch, ...]:
        return self.penalty, self.total


def plan_penalty(layer: LayerShape, device: Device, *, aligned: bool) -> PenaltyPlan:
    """Return the launches for all functions of a layer.

    ``aligned`` tells whether all arrays begin at multiples of 16 bytes.
    """
    knots = layer.num_grids + 1
    vector = vector_outputs(layer, aligned)
    all_columns = layer.nodes // knots
    columns = min(all_columns, MOST_COLUMNS)
    # Two on either side are shared.
    own_columns = columns if columns == all_columns else columns - 4
    vectors = min(
        2 ** ((MOST_THREADS // columns).bit_length() - 1), ceil_div(layer.out_features, vector)
    )
    warps = ceil_div(columns * vectors, LANES)
    paired = device.capability >= PAIRED_OPERATIONS
    resident = RESIDENT_WARPS[layer.real] - (PAIRED_WARPS if paired else 0)
    source = make_source(
        "hessian_penalty.cu",
        layer,
        WARPS=warps,
        BLOCKS=min(max(resident // warps, 1), RESIDENT_BLOCKS),
        VECTOR=vector,
        VECTORS=vectors,
        COLUMNS=columns,
    )
    tiles = ceil_div(all_columns, own_columns) * ceil_div(layer.out_features, vector * vectors)
    partials = layer.pairs * tiles
    return PenaltyPlan(
        partials,
        launch_tasks("hessian_penalty", partials, source),
        launch_tasks("hessian_penalty_sum", 1, source),
    )


def penalize(
    tables: Array, scale: float, grad: Array | None, penalty: Array, accumulate: bool
) -> None:
    """Overwrite ``penalty`` [] with R and ``grad``, where not None, with ``scale dR/dT``.

    ``tables`` and ``grad`` are [P, S, S, O]. With ``accumulate``, ``scale dR/dT`` is added to
    ``grad``.
    """
    layer = layer_shape_of_tables(tables, penalty.dtype)
    ready(_Penalty, layer, aligned(tables, grad), accumulate)(tables, scale, grad, penalty)


class _Penalty:
    """The penalty of all functions: partial sums, then their sum."""

    def __init__(
        self, device: Device, layer: LayerShape, all_aligned: bool, accumulate: bool
    ) -> None:
        plan = plan_penalty(layer, device, aligned=all_aligned)
        self._workspace = Workspace(plan.partials * ITEM_BYTES["float64"])
        sizes = (layer.pairs, layer.out_features)
        self._penalty = Kernel(plan.penalty, *sizes, accumulate)
        self._total = Kernel(plan.total, plan.partials)

    def __call__(self, tables: Array, scale: float, grad: Array | None, penalty: Array) -> None:
        (partial,) = self._workspace.parts(tables)
        self._penalty(tables, grad, partial, np.float64(scale))
        self._total(partial, penalty)
