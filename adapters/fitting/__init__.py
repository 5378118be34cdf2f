"""Networks of lmKAN layers for tables of numbers: ``python -m lmkan_cupy fit`` and ``predict``.

================ =================================================================================
module           what
================ =================================================================================
``command``      the two commands, and the printed report
``fit``          ``fit``: trains the network, and an MLP of equal FLOPs beside it
``model``        ``FittedModel``, ``load``: a fitted network on disk and in memory
``dataset``      tables from CSV, Parquet and npz files, checked
``npz``          arrays of npz files
``files``        folders and files that are written
``pictures``     pictures of a fit
``mlp``          the MLPs that lmKAN networks are compared with
================ =================================================================================
"""

from .command import run_fit, run_predict
from .dataset import Dataset, InputError, read_dataset, read_features
from .fit import FitResult, fit
from .model import FittedModel, ModelDescription, load

__all__ = [
    "Dataset",
    "FitResult",
    "FittedModel",
    "InputError",
    "ModelDescription",
    "fit",
    "load",
    "read_dataset",
    "read_features",
    "run_fit",
    "run_predict",
]
