"""lmKAN layers for PyTorch: a differentiable function of tensors, layers, and their penalty.

=================== ==============================================================================
module              what
=================== ==============================================================================
``exchange``        calls the core on tensors: shared memory, torch's stream and allocator
``operators``       ``torch.ops.lmkan_cupy``: kernels, fake kernels, derivatives, autocast, vmap
``plain_torch``     ``engine="torch"``: the same function in torch's own operations
``functional``      ``lmkan``: checks, chooses the engine
``layers``          what layers share, ``LMKANLinear``, ``LMKANBlock``
``convolution``     ``LMKANConv2d``
``authors_layer``   ``LMKAN2DLayer``, for checkpoints of the authors' package
``replacement``     ``replace_linear``: from a network of linear layers to lmKAN layers
``schedule``        the penalty's weight in the course of a fit
``sharding``        sharded tensors, ``ColumnParallel``
``plots``           pictures of learned functions
=================== ==============================================================================
"""

from .authors_layer import LMKAN2DLayer
from .convolution import LMKANConv2d
from .functional import lmkan
from .layers import LMKANBlock, LMKANLinear, hessian_penalty
from .plots import plot_function, plot_layer
from .replacement import replace_linear
from .schedule import HessianSchedule

__all__ = [
    "HessianSchedule",
    "LMKAN2DLayer",
    "LMKANBlock",
    "LMKANConv2d",
    "LMKANLinear",
    "hessian_penalty",
    "lmkan",
    "plot_function",
    "plot_layer",
    "replace_linear",
]
