"""The device that a training runs on."""

import torch

from lmkan_cupy.array_checks import check_device
from lmkan_cupy.installation import cuda_obstacle


def device_of(function: str, device: str | None) -> torch.device:
    """Return the device that ``device`` names, None, "cpu", "cuda" (the first) or "cuda:1", ...

    Raises
    ------
    ValueError
        If it names none, or one that is not there or that the CUDA engine cannot use.
    """
    index = check_device(function, device)
    if index is None:
        return torch.device("cpu")
    if index >= (count := torch.cuda.device_count()):
        there = ", ".join(["'cpu'", *(f"'cuda:{each}'" for each in range(count))])
        raise ValueError(f"{function}: torch finds no device {device!r}, only {there}")
    if obstacle := cuda_obstacle():
        raise ValueError(f"{function}: device {device!r} cannot be used: {obstacle}")
    return torch.device("cuda", index)
