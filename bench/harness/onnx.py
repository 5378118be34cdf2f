"""Networks in onnxruntime: on a CPU the fastest way that we know to evaluate an MLP."""

import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn


def session(
    network: nn.Module, in_features: int, threads: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a network in evaluation mode, from rows [N, in_features] to [N, K], in onnxruntime."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter about torch itself
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, in_features),),
            path,
            input_names=["x"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        made: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def evaluate(x: NDArray[np.float32]) -> NDArray[np.float32]:
        results: list[NDArray[np.float32]] = made.run(None, {"x": x})
        return results[0]

    return evaluate
