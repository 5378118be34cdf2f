"""lmKAN layers for PyTorch: a differentiable function of tensors, layers, and their penalty.

=================== ==============================================================================
module              what
=================== ==============================================================================
``exchange``        calls the core on tensors: shared memory, torch's stream and allocator
``operators``       ``torch.ops.lmkan_cupy``: kernels, fake kernels, derivatives, autocast, vmap
``plain_torch``     ``engine="torch"``: the same function in torch's own operations
``functional``      ``lmkan``: checks, chooses the engine
``layers``          modules
``schedule``        the penalty's weight in the course of a fit
=================== ==============================================================================
"""

from .functional import lmkan
from .layers import LMKANBlock, LMKANLinear, hessian_penalty
from .schedule import HessianSchedule

__all__ = ["HessianSchedule", "LMKANBlock", "LMKANLinear", "hessian_penalty", "lmkan"]
