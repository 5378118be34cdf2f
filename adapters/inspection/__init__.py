"""Looking inside: what a model has learned, what matters for it, and how far to trust it.

Everything here takes a :class:`~lmkan_cupy.adapters.fitting.FittedModel`, an estimator, or a chain
of layers as :func:`~lmkan_cupy.adapters.torch.fuse` does.

================ =================================================================================
module           what
================ =================================================================================
``view``         what a model is for the others: a chain of layers with named ends
``pictures``     ``plot_network``: a picture of a whole network
``flows``        which functions of a network carry how much
``hats``         by which weights the values at the knots are interpolated
``command``      the command ``show``
``pruning``      ``prune_``: a model without what does not matter
``formulas``     ``formula``: a small network as expressions of named functions
``forms``        these functions
``effects``      ``effect``, ``plot_effect``: how the prediction depends on one column or two
``importance``   ``importance``, ``interactions``: which columns and pairs of them matter how much
``trust``        ``unseen``, ``intervals``: rows beyond the fitted ones, intervals of predictions
================ =================================================================================
"""

from .command import run_show
from .effects import effect, plot_effect
from .formulas import Formula, Part, formula
from .importance import importance, interactions
from .pictures import plot_network
from .pruning import prune_
from .trust import intervals, unseen

__all__ = [
    "Formula",
    "Part",
    "effect",
    "formula",
    "importance",
    "interactions",
    "intervals",
    "plot_effect",
    "plot_network",
    "prune_",
    "run_show",
    "unseen",
]
