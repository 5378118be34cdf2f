"""Small tables, quick fits, and what a refusal looks like: for the tests of `fit` and `predict`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lmkan_cupy.adapters.fitting import Dataset, FitResult, fit

QUICK: dict[str, Any] = {"width": 4, "epochs": 3}
QUICK_ARGUMENTS = ["--width", "4", "--epochs", "3"]
MODEL = {"model.safetensors", "model.json"}
FILES = {*MODEL, "metrics.json", "parity.png", "functions.png"}


def table(rows: int = 60, features: int = 3) -> pd.DataFrame:
    """Columns a, b, ... and a smooth function of them, "y"."""
    x = np.random.default_rng(0).normal(size=(rows, features))
    frame = pd.DataFrame(x, columns=list("abcdefgh"[:features]))
    return frame.assign(y=np.sin(x[:, 0]) + x[:, 0] * x[:, -1])


def with_cell(row: int, column: str, value: object) -> pd.DataFrame:
    frame = table().astype(object)
    frame.loc[row, column] = value
    return frame


def dataset(rows: int = 60, features: int = 3) -> Dataset:
    frame = table(rows, features)
    return Dataset(frame.drop(columns="y"), frame[["y"]])


@cache
def quick_fit() -> FitResult:
    """A fit to `dataset()` that many tests only read."""
    return fit(dataset(), baseline=False, **QUICK)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path)


def write_npz(frame: pd.DataFrame, path: Path) -> None:
    names = list(frame)[:-1]
    np.savez(path, features=frame[names].to_numpy(), feature_names=names, y=frame["y"].to_numpy())


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".npz": write_npz,
}


def check_refusal(outcome: tuple[int, str, str], *sentences: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for sentence in sentences:
        assert sentence in err
