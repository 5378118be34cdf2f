"""Networks of lmKAN layers for tables: ``python -m lmkan_cupy fit`` and ``predict``.

================ =================================================================================
module           what
================ =================================================================================
``command``      the two commands, and the printed report
``fit``          ``fit``: trains the network, and an MLP of equal FLOPs beside it
``search``       several settings of the network, of which the best is kept
``model``        ``FittedModel``, ``load``: a fitted network on disk and in memory
``onnx_model``   a fitted network with its encoder as an ONNX file
``reading``      tables from CSV, Parquet and npz files and from frames
``dataset``      ``Dataset``: columns encoded as features, and targets, checked
``npz``          arrays of npz files
``files``        folders and files that are written
``pictures``     pictures of a fit
``mlp``          the MLPs that lmKAN networks are compared with
================ =================================================================================
"""

from .command import run_fit, run_predict
from .dataset import Dataset, InputError
from .fit import FitResult, fit
from .model import FittedModel, ModelDescription, load
from .reading import read_dataset, read_table

__all__ = [
    "Dataset",
    "FitResult",
    "FittedModel",
    "InputError",
    "ModelDescription",
    "fit",
    "load",
    "read_dataset",
    "read_table",
    "run_fit",
    "run_predict",
]
