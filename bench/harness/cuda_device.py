"""The first CUDA device: timing, memory and clocks."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import cupy
import torch

#: Cycles for which the device is kept busy while the host queues a call: about a millisecond.
BUSY_CYCLES = 2_000_000

#: What is raised if the device has too little memory.
OUT_OF_MEMORY = (torch.OutOfMemoryError, cupy.cuda.memory.OutOfMemoryError)

#: Milliseconds between two readings of the clocks.
INTERVAL = 50


def device_stopwatch(call: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Return the seconds that the device took for what a call queued, and the call's result."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    result = call(*arguments)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def free_memory() -> None:
    """Free the memory that CuPy and torch keep for later."""
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


@contextmanager
def watched_clocks() -> Iterator[dict[str, dict[str, int]]]:
    """Yield a dict that at the end has median, least and most MHz of the SM and memory clock."""
    clocks: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryFile("w+") as file:
        watch = subprocess.Popen(_nvidia_smi(["clocks.sm", "clocks.mem"], INTERVAL), stdout=file)
        try:
            yield clocks
        finally:
            watch.terminate()
            watch.wait()
        file.seek(0)
        clocks.update(_clocks(file.read()))


def _clocks(lines: str) -> dict[str, dict[str, int]]:
    """Summarise complete lines ``SM clock, memory clock``; the last line may be cut off."""
    whole = [line.split(", ") for line in lines.split("\n")[:-1] if line.count(", ") == 1]
    pairs = [(int(sm), int(memory)) for sm, memory in whole if sm.isdigit() and memory.isdigit()]
    return {
        name: {"median": round(median(each)), "least": min(each), "most": max(each)}
        for name, each in zip(("SM", "memory"), zip(*pairs, strict=True), strict=False)
    }


def describe() -> dict[str, str]:
    """Return name, driver and highest clocks in MHz, as ``nvidia-smi`` reports them."""
    fields = ["name", "driver_version", "clocks.max.sm", "clocks.max.mem"]
    answer = subprocess.run(_nvidia_smi(fields), capture_output=True, text=True, check=True)
    return dict(zip(fields, answer.stdout.strip().split(", "), strict=True))


def _nvidia_smi(fields: Sequence[str], interval: int | None = None) -> list[str]:
    """Return the command that queries CUDA's first device, whatever its number in nvidia-smi."""
    return [
        "nvidia-smi",
        f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}",
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader,nounits",
        *([] if interval is None else [f"--loop-ms={interval}"]),
    ]
