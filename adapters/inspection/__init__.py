"""Looking inside: what a model has learned, what matters for it, and how far to trust it.

Everything here takes a :class:`~lmkan_cupy.adapters.fitting.FittedModel`, an estimator, or a chain
of layers as :func:`~lmkan_cupy.adapters.torch.fuse` does.

================ =================================================================================
module           what
================ =================================================================================
``view``         what a model is for the others: a chain of layers with named ends
``pruning``      ``prune_``: a model without what does not matter
``formulas``     ``formula``: a small network as expressions of named functions
``forms``        these functions
``effects``      ``effect``, ``plot_effect``: how the prediction depends on one column or two
``importance``   ``importance``, ``interactions``: which columns and pairs of them matter how much
================ =================================================================================
"""

from .effects import effect, plot_effect
from .formulas import Formula, Part, formula
from .importance import importance, interactions
from .pruning import prune_

__all__ = [
    "Formula",
    "Part",
    "effect",
    "formula",
    "importance",
    "interactions",
    "plot_effect",
    "prune_",
]
