"""Looking inside: what a model has learned, what matters for it, and how far to trust it.

Everything here takes a :class:`~lmkan_cupy.adapters.fitting.FittedModel`, an estimator, or a chain
of layers as :func:`~lmkan_cupy.adapters.torch.fuse` does.

================ =================================================================================
module           what
================ =================================================================================
``view``         what a model is for the others: a chain of layers with named ends
``pruning``      ``prune_``: a model without what does not matter
================ =================================================================================
"""

from .pruning import prune_

__all__ = ["prune_"]
