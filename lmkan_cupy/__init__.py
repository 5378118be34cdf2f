"""Lookup multivariate Kolmogorov-Arnold networks (lmKANs) on NumPy and CuPy arrays."""

from pathlib import Path
from typing import Any

# A wheel holds adapters/ inside this package, a checkout holds it beside this package.
if not (Path(__file__).parent / "adapters").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from .configuration import show_config
from .convolution import (
    conv2d_backward,
    conv2d_backward_backward,
    conv2d_forward,
    conv2d_jvp,
)
from .fitted import load_network
from .functional import (
    backward,
    backward_backward,
    forward,
    hessian_penalty,
    hessian_penalty_and_grad,
    hessian_penalty_grad,
    jvp,
    warmup,
)
from .grid import occupancy, sigma_grid
from .network import network_forward, network_value_and_grad
from .tables import (
    evaluate,
    flops,
    fold_linear,
    fold_relu,
    init_tables,
    memory,
    num_parameters,
    refine,
)

__all__ = [
    "backward",
    "backward_backward",
    "conv2d_backward",
    "conv2d_backward_backward",
    "conv2d_forward",
    "conv2d_jvp",
    "evaluate",
    "flops",
    "fold_linear",
    "fold_relu",
    "forward",
    "hessian_penalty",
    "hessian_penalty_and_grad",
    "hessian_penalty_grad",
    "init_tables",
    "jvp",
    "load_network",
    "memory",
    "network_forward",
    "network_value_and_grad",
    "num_parameters",
    "occupancy",
    "refine",
    "show_config",
    "sigma_grid",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # on demand, because searching the installed packages takes time
        from .installation import installed_version

        return installed_version("lmkan-cupy") or "unknown: run from a checkout, not installed"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
