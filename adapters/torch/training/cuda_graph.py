"""CUDA graphs: many kernel launches recorded once and replayed with a single launch."""

from collections.abc import Callable

import torch
from torch import Tensor


class GraphedFunction:
    """A function of tensors that on CUDA is captured as a graph and replayed.

    A training step of a small network is about a hundred kernels of a few microseconds each, and
    the host needs longer to launch a kernel than the device to run it. A graph of them is launched
    at once.

    The first call runs the function, which compiles its kernels. The second call captures the graph
    that it and all later calls replay. Arguments of other shapes than those of the first call are
    computed without the graph, and so is everything on other devices.

    Make all calls on the same stream, and not on the default one, which cannot be captured.

    Parameters
    ----------
    function : callable
        Returns a tensor. Apart from its arguments it may read only tensors that stay at the same
        address, and it must not wait for the device.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._shapes: list[torch.Size] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the function's result, in memory that the next call may overwrite."""
        shapes = [each.shape for each in arguments]
        if self._shapes is None or shapes != self._shapes or not arguments[0].is_cuda:
            self._shapes = self._shapes or shapes
            return self._function(*arguments)
        if self._graph is None:
            self._arguments = [each.clone() for each in arguments]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self._result = self._function(*self._arguments)
            self._graph = graph  # only now: the capture may fail
        for held, argument in zip(self._arguments, arguments, strict=True):
            held.copy_(argument)
        self._graph.replay()
        return self._result


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a new stream that starts after all work queued so far; None for a CPU."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream
