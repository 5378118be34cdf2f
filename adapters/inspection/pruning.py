"""``prune_``: a model without what does not matter for its predictions."""

from typing import Any

from ..torch import prune_ as prune_chain_
from .view import view


def prune_(model: Any, data: Any, tolerance: float) -> float:
    """Remove from a model what does not matter for its predictions, in place.

    See :func:`lmkan_cupy.adapters.torch.prune_` for what goes. A fitted model and an estimator keep
    reading all of their columns; they lose outputs and pairs behind the first layer.

    Parameters
    ----------
    model : FittedModel, estimator, TableNetwork or chain of layers
    data : frame, mapping or array [N, columns]
        Rows like those that the model is going to predict; some thousand will do.
    tolerance : float
        The largest change of the predictions, measured as the result is.

    Returns
    -------
    float
        The root mean square change over ``data``, divided by the standard deviation; of
        standardised targets, or of logits of classes.

    Raises
    ------
    TypeError, ValueError
        If the model or ``data`` cannot be taken, nothing can be removed, all predictions are the
        same, or ``tolerance`` is negative.
    """
    viewed = view("prune_", model)
    rows = viewed.inputs(viewed.frame(data))
    return prune_chain_(viewed.chain, rows, tolerance, keep_inputs=viewed.chain is not model)
