"""Functions of tensors that a CUDA device replays as one graph."""

from collections.abc import Callable

import torch
from torch import Tensor


class Replayed:
    """A function of tensors; on CUDA its second call captures what all later ones replay.

    A step of a small network is some hundred kernels of a few microseconds, and the host needs
    longer to launch each; a graph is launched at once. The first call computes, and so compiles the
    kernels and fills what the function remembers. Arguments of other shapes than the first ones are
    computed too, and so is everything on another device.

    Call it on one stream all the time, which capture wants not to be the default one.

    Parameters
    ----------
    function : callable
        Gives a tensor. It reads its arguments and tensors that stay where they are, and does
        nothing that waits for the device.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._shapes: list[torch.Size] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the function's result, in memory that the next call may write to."""
        shapes = [each.shape for each in arguments]
        if self._shapes is None or shapes != self._shapes or not arguments[0].is_cuda:
            self._shapes = self._shapes or shapes
            return self._function(*arguments)
        if self._graph is None:
            self._arguments = [each.clone() for each in arguments]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self._result = self._function(*self._arguments)
            self._graph = graph  # only now: capture may fail
        for held, argument in zip(self._arguments, arguments, strict=True):
            held.copy_(argument)
        self._graph.replay()
        return self._result
