"""The tables of ``bench.experiments.tables``: real ones, which Python packages ship."""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution

import numpy as np
import pandas as pd
from sklearn import datasets

#: The archive of pydataset, and where its CSV files are.
_ARCHIVE, _CSV_FILES = "pydataset/resources.tar.gz", "resources/rdata/csv"


@dataclass(frozen=True)
class Table:
    """A table to learn a column of.

    Attributes
    ----------
    package : str
        That ships it.
    name : str
        What it is called there, with its folder in pydataset.
    target : str
        The column to predict.
    of_classes : bool
        Whether the target is classes.
    kept_out : bool
        Whether it was kept out of all choices of settings.
    """

    package: str
    name: str
    target: str
    of_classes: bool = False
    kept_out: bool = False

    def read(self) -> tuple[pd.DataFrame, "pd.Series[float]"]:
        """Return features and target: text and truth values as categories, gaps as NaN.

        Raises
        ------
        ModuleNotFoundError
            If the package is missing.
        """
        frame = _READERS[self.package](self.name)
        target = frame.pop(self.target)
        frame, target = frame[target.notna()], target[target.notna()]
        if self.of_classes:
            target = pd.Series(np.unique(target.astype(str), return_inverse=True)[1], frame.index)
        texts = frame.select_dtypes(exclude="number").columns
        # A category of its own for gaps: CatBoost takes none among categories.
        frame[texts] = frame[texts].astype("str").fillna("missing").astype("category")
        return frame, target


def _from_scikit_learn(name: str) -> pd.DataFrame:
    frame: pd.DataFrame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return frame


def _from_pydataset(name: str) -> pd.DataFrame:
    # Its archive is read here, because importing the package unpacks it into the home folder.
    with tarfile.open(distribution("pydataset").locate_file(_ARCHIVE)) as archive:
        file = archive.extractfile(f"{_CSV_FILES}/{name}.csv")
        return pd.read_csv(file, index_col=0)


def _from_statsmodels(name: str) -> pd.DataFrame:
    from statsmodels import datasets as tables

    frame: pd.DataFrame = getattr(tables, name).load_pandas().data
    return frame


_READERS = {
    "scikit-learn": _from_scikit_learn,
    "pydataset": _from_pydataset,
    "statsmodels": _from_statsmodels,
}

#: All tables by the names in results, from the smallest to the largest.
TABLES: Mapping[str, Table] = {
    "diabetes": Table("scikit-learn", "diabetes", "target"),
    "Hedonic": Table("pydataset", "Ecdat/Hedonic", "mv"),
    "breast_cancer": Table("scikit-learn", "breast_cancer", "target", of_classes=True),
    "quakes": Table("pydataset", "datasets/quakes", "mag"),
    "Cigar": Table("pydataset", "Ecdat/Cigar", "sales"),
    "digits": Table("scikit-learn", "digits", "target", of_classes=True),
    "Hdma": Table("pydataset", "Ecdat/Hdma", "deny", of_classes=True),
    "Chile": Table("pydataset", "car/Chile", "vote", of_classes=True, kept_out=True),
    "Wages": Table("pydataset", "Ecdat/Wages", "lwage", kept_out=True),
    "Benefits": Table("pydataset", "Ecdat/Benefits", "ui", of_classes=True),
    "Computers": Table("pydataset", "Ecdat/Computers", "price"),
    "fair": Table("statsmodels", "fair", "rate_marriage", of_classes=True),
    "NOxEmissions": Table("pydataset", "robustbase/NOxEmissions", "LNOx"),
    "HI": Table("pydataset", "Ecdat/HI", "whi", of_classes=True),
    "BudgetFood": Table("pydataset", "Ecdat/BudgetFood", "wfood"),
    "diamonds": Table("pydataset", "ggplot2/diamonds", "price"),
}
