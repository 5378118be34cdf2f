"""The first CUDA device: its clock, and its memory."""

from collections.abc import Callable
from typing import Any

import cupy
import torch

#: Cycles for which the device is kept busy while the host queues a call: about a millisecond.
BUSY_CYCLES = 2_000_000


def device_stopwatch(call: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Return the seconds that the device took for what a call started, and its result."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    result = call(*arguments)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def free_memory() -> None:
    """Give back what CuPy and torch keep for later."""
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()
