"""lmKAN layers for PyTorch: modules, the differentiable function behind them, and their penalty.

Use :class:`LMKANBlock` to build networks: it standardises and bounds its inputs, as the grid of an
lmKAN layer expects. Use :class:`LMKANLinear`, the layer alone, where inputs are already
standardised and bounded.

=================== ==============================================================================
module              what
=================== ==============================================================================
``layers``          ``LMKANLinear``, ``LMKANBlock``, and what layers share
``convolution``     ``LMKANConv2d``
``functional``      ``lmkan``: checks its arguments and chooses the engine
``operators``       ``torch.ops.lmkan_cupy``: kernels, fake kernels, derivatives, autocast, vmap
``layer_operators`` those of a layer and of its convolution
``nodes``           a block, and the penalties of a model, as one node of autograd each
``dispatch``        how autograd records these operators, and calls around torch's dispatcher
``exchange``        calls the core on tensors: shared memory, torch's stream and allocator
``plain_torch``     ``engine="torch"``: the same function in torch's own operations
``authors_layer``   ``LMKAN2DLayer``, for checkpoints of the authors' package
``chains``          which modules a chain of layers is made of
``fusion``          ``fuse``: a chain of layers as one module for inference
``pruning``         ``prune_``: a chain of layers without what does not matter
``replacement``     ``replace_linear``: from a network of linear layers to lmKAN layers
``schedule``        ``HessianSchedule``, ``PhasedSchedule``: weights and rates of every step
``training``        the training loop of ``fit`` and the estimators; imported only on demand
``sharding``        ``ColumnParallel``, a layer in parts; imported only on demand
``sharding_rules``  how the operators compute on sharded tensors; imported only on demand
``plots``           pictures of learned functions
=================== ==============================================================================
"""

from .authors_layer import LMKAN2DLayer
from .convolution import LMKANConv2d
from .functional import lmkan
from .fusion import FusedNetwork, fuse
from .layers import LMKANBlock, LMKANLinear, hessian_penalty
from .plots import plot_function, plot_layer
from .pruning import prune_
from .replacement import replace_linear
from .schedule import HessianSchedule, PhasedSchedule

__all__ = [
    "FusedNetwork",
    "HessianSchedule",
    "LMKAN2DLayer",
    "LMKANBlock",
    "LMKANConv2d",
    "LMKANLinear",
    "PhasedSchedule",
    "fuse",
    "hessian_penalty",
    "lmkan",
    "plot_function",
    "plot_layer",
    "prune_",
    "replace_linear",
]
