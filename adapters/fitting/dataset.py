"""Tables of numbers from CSV, Parquet and npz files, checked before anything is fitted to them."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Fewer rows than this leave too few to test on.
MIN_ROWS = 50


class InputError(ValueError):
    """The user's file or argument cannot be used; the message says why, in one sentence."""


@dataclass(frozen=True)
class Dataset:
    """Features and a target to predict from them.

    Attributes
    ----------
    features : float64 array [N, I]
    target : float64 array [N]
    feature_names : sequence of str [I]
    target_name : str

    Raises
    ------
    InputError
        If shapes do not fit, there are fewer than 50 rows or no feature, a value is missing or
        infinite, or a column is constant.
    """

    features: NDArray[np.float64]
    target: NDArray[np.float64]
    feature_names: Sequence[str]
    target_name: str = "target"

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.shape != (
            *self.target.shape,
            len(self.feature_names),
        ):
            raise InputError(
                f"features, target and feature_names must have shapes [N, I], [N] and [I], got "
                f"{self.features.shape}, {self.target.shape} and [{len(self.feature_names)}]"
            )
        if not self.feature_names:
            raise InputError(f"there is no column beside the target {self.target_name!r}")
        if len(self.target) < MIN_ROWS:
            raise InputError(f"{len(self.target)} rows are too few; at least {MIN_ROWS} are needed")
        names = [*self.feature_names, self.target_name]
        values = np.column_stack([self.features, self.target])
        check_finite(values, names)
        for name, spread in zip(names, np.ptp(values, axis=0), strict=True):
            if spread == 0:
                raise InputError(f"column {name!r} is constant; leave it out")


def read_dataset(path: Path, target: str | None = None) -> Dataset:
    """Read a table with a target.

    Parameters
    ----------
    path : Path
        A ``.csv`` file, whose first line names the columns, or a ``.parquet`` file: all columns but
        the target are features. Or an ``.npz`` file: its array ``features`` [N, I] holds the
        features, its array ``feature_names`` [I] their names, if there is one, and each array [N]
        can be the target.
    target : str, optional
        Name of the target; by default the last column, or the last array [N].

    Raises
    ------
    InputError
        If the file cannot be read, has no such target, or :class:`Dataset` refuses its numbers.
    """
    features, targets = _read(path)
    try:
        target = _target_name(targets, target)
        features = features.drop(columns=target, errors="ignore")
        return Dataset(
            _numbers(features), _numbers(targets[[target]])[:, 0], _names(features), target
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_features(path: Path, feature_names: Sequence[str]) -> NDArray[np.float64]:
    """Read the named columns of a table as features [N, I].

    The table may hold other columns, too, and its columns may have any order.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, or a value is not a finite number.
    """
    features, _ = _read(path)
    try:
        for name in feature_names:
            if name not in features:
                raise InputError(f"there is no column {name!r}, which the model needs")
        values = _numbers(features[list(feature_names)])
        check_finite(values, feature_names)
        return values
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_finite(values: NDArray[np.float64], names: Sequence[str]) -> None:
    """Require that ``values`` [N, I], with columns called ``names``, are all finite."""
    bad_rows, bad_columns = np.nonzero(~np.isfinite(values))
    if len(bad_rows):
        raise InputError(
            f"values are missing or infinite in {len(np.unique(bad_rows))} rows, first in row "
            f"{bad_rows[0] + 1}, column {names[bad_columns[0]]!r}; leave these rows out"
        )


def _read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns that can be features and those that can be the target."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        if path.suffix == ".npz":
            return _read_npz(path)
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
        elif path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            raise InputError(f"{path}: the file name must end in .csv, .parquet or .npz")
    except InputError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]}: {reason}") from error
    if path.suffix == ".csv" and all(map(_is_number, _names(frame))):
        raise InputError(f"{path}: the first line holds numbers, but must name the columns")
    return frame, frame


def _read_npz(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    with np.load(path) as arrays:  # refuses pickled objects, so that reading runs no code
        columns = {name: arrays[name] for name in arrays.files}
    features = columns.pop("features", np.empty(0))
    if features.ndim != 2:
        raise InputError(f"{path}: there is no array 'features' of shape [rows, columns]")
    names = columns.pop("feature_names", [f"x{i + 1}" for i in range(features.shape[1])])
    targets = {name: each for name, each in columns.items() if each.shape == features.shape[:1]}
    return pd.DataFrame(features, columns=list(map(str, names))), pd.DataFrame(targets)


def _names(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame]


def _target_name(targets: pd.DataFrame, name: str | None) -> str:
    names = _names(targets)
    if not names:
        raise InputError("there is no array with one target value per row")
    if name is not None and name not in names:
        raise InputError(f"there is no target {name!r}; those there are: {', '.join(names)}")
    return name or names[-1]


def _numbers(frame: pd.DataFrame) -> NDArray[np.float64]:
    for name, column in frame.items() if len(frame) else ():
        if not pd.api.types.is_numeric_dtype(column) or np.iscomplexobj(column):
            bad = pd.to_numeric(column, errors="coerce").isna() & column.notna()
            row = int(bad.argmax())
            raise InputError(
                f"column {name!r} is not numeric: row {row + 1} holds {column.iloc[row]!r}"
            )
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
