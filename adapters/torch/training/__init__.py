"""Training networks of lmKAN layers: the procedure of ``fit``, the estimators and the experiments.

================ =================================================================================
module           what
================ =================================================================================
``network``      ``TableNetwork``, a chain of lmKAN blocks; folding, refining, evaluating
``rows``         a table's rows in batches; batch size, steps and penalty for so many rows
``trainer``      ``Trainer``, the training loop
``device``       the device that is named, if it is there
``cuda_graph``   steps that a CUDA device replays as one graph
``interruption`` Ctrl-C and other signals that end a training
``progress``     bars on a terminal, lines elsewhere
================ =================================================================================

What each part of the procedure contributes was measured: see ``bench/results/procedure.md``.
"""

from .device import device_of
from .interruption import Interruption, held_back
from .network import (
    BOUND,
    ROWS_AT_ONCE,
    TableNetwork,
    block_chain,
    evaluate,
    fold_,
    fold_chain_,
    lmkan_layers,
    parameter_groups,
)
from .progress import progress_bar
from .rows import MOST_STEPS, Rows, epochs_for, penalty_for
from .trainer import Trainer, Training

__all__ = [
    "BOUND",
    "MOST_STEPS",
    "ROWS_AT_ONCE",
    "Interruption",
    "Rows",
    "TableNetwork",
    "Trainer",
    "Training",
    "block_chain",
    "device_of",
    "epochs_for",
    "evaluate",
    "fold_",
    "fold_chain_",
    "held_back",
    "lmkan_layers",
    "parameter_groups",
    "penalty_for",
    "progress_bar",
]
