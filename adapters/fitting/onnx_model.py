"""A fitted model as ONNX: from the columns of a table to its answers, in standard operators.

ONNX has no operators that read numbers and dates from text, or that raise errors: these stay with
the caller. See :meth:`.model.FittedModel.save_onnx` for what the file takes and gives.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass

from lmkan_cupy.encoding import PERIODS, Encoder

from ..torch.training import TableNetwork
from .files import written


def save_onnx(path: Path, module: TableNetwork, encoder: Encoder, output: str) -> None:
    """Write module and encoder to ``path``; the result [rows, K] is called ``output``."""
    features = torch.zeros(2, len(encoder.names), dtype=torch.float64)
    rows = torch.export.Dim("rows")
    program = torch.onnx.export(
        module, (features,), output_names=[output], dynamic_shapes=({0: rows},), verbose=False
    )
    assert program is not None
    graph = program.model.graph
    tape = ir.tape.Tape()
    inputs, encoded = [], []
    for column in encoder.columns:
        dtype = ir.DataType.STRING if "levels" in column else ir.DataType.DOUBLE
        cells = ir.val(column["name"], dtype, ["rows"])
        as_column = tape.op("Unsqueeze", [cells, _constant(tape, [1])])  # [rows, 1]
        encode = _encode_levels if "levels" in column else _encode_quantity
        encoded += encode(tape, column, as_column)
        inputs.append(cells)
    (taken,) = graph.inputs
    ir.convenience.replace_all_uses_with(taken, tape.op("Concat", encoded, {"axis": 1}))
    graph.insert_before(graph[0], tape.nodes)
    graph.inputs[:] = inputs
    NameFixPass()(program.model)  # a column may be called as a value inside of the network is
    with written(path) as part:
        ir.save(program.model, part)


def _constant(tape: ir.tape.Tape, values: Any) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.asarray(values))})


def _encode_quantity(
    tape: ir.tape.Tape, column: dict[str, Any], values: ir.Value
) -> list[ir.Value]:
    """Return the features, each [rows, 1], of numbers, truth values or dates [rows, 1]."""
    is_missing = tape.op("IsNaN", [values])
    if "missing" in column["parts"]:
        values = tape.op("Where", [is_missing, _constant(tape, column["fill"]), values])
    features = []
    for part in column["parts"]:
        if part == "value":
            features.append(values)
        elif part == "missing":
            features.append(tape.op("Cast", [is_missing], {"to": ir.DataType.DOUBLE}))
        else:
            periods = tape.op("Div", [values, _constant(tape, PERIODS[part])])
            phase = tape.op("Sub", [periods, tape.op("Floor", [periods])])
            angle = tape.op("Mul", [phase, _constant(tape, 2 * math.pi)])
            features += [tape.op("Sin", [angle]), tape.op("Cos", [angle])]
    return features


def _encode_levels(tape: ir.tape.Tape, column: dict[str, Any], texts: ir.Value) -> list[ir.Value]:
    """Return the features [rows, F] of texts [rows, 1]."""
    levels = column["levels"]
    unknown = "".join(filter(None, levels)) + "?"  # longer than every level
    *known, other = Encoder([column])({column["name"]: [*levels, unknown]})
    names = tape.op("Constant", [], {"value_strings": [level or "" for level in levels]})
    is_level = tape.op("Cast", [tape.op("Equal", [texts, names])], {"to": ir.DataType.DOUBLE})
    beside_other = tape.op("MatMul", [is_level, _constant(tape, np.array(known) - other)])
    return [tape.op("Add", [beside_other, _constant(tape, other)])]
