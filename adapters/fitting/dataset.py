"""Tables of numbers from CSV, Parquet and npz files, checked before anything is fitted to them."""

import csv
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lmkan_cupy.array_checks import check_dense

from . import npz

_log = logging.getLogger("lmkan_cupy")

#: Fewer rows than this leave too few to test on.
MIN_ROWS = 50

#: The name of a column that has none, as it stands in a file or as pandas writes it.
_NO_NAME = re.compile(r"\s*|Unnamed: [\d.]+")


class InputError(ValueError):
    """The user's file or argument cannot be used; the message says why, in one sentence."""


def one_line(error: Exception) -> str:
    """Return the message of an error for the end of a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Dataset:
    """Features and a target to predict from them.

    Arrays of other dtypes, sequences and masked arrays are converted; what is masked is missing.

    Attributes
    ----------
    features : float64 array [N, I]
    target : float64 array [N]
    feature_names : sequence of str [I]
    target_name : str

    Raises
    ------
    InputError
        If shapes do not fit, there are fewer than 50 rows or no feature, a name occurs twice, a
        value is missing or infinite, or a column is constant.
    TypeError
        If features or target are sparse.
    """

    features: NDArray[np.float64]
    target: NDArray[np.float64]
    feature_names: Sequence[str]
    target_name: str = "target"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", as_numbers("Dataset", "features", self.features))
        object.__setattr__(self, "target", as_numbers("Dataset", "target", self.target))
        object.__setattr__(self, "feature_names", [*map(str, self.feature_names)])
        object.__setattr__(self, "target_name", str(self.target_name))
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
        _check_unique(names)
        values = np.column_stack([self.features, self.target])
        check_finite(values, names)
        for name, spread in zip(names, np.ptp(values, axis=0), strict=True):
            if spread == 0:
                raise InputError(f"column {name!r} is constant; leave it out")


def read_dataset(path: Path, target: str | None = None, drop: Sequence[str] = ()) -> Dataset:
    """Read a table with a target.

    A column without a name is left out, with a warning: pandas and R write row numbers so.

    Parameters
    ----------
    path : Path
        A ``.csv`` file in UTF-8, whose first line names the columns, or a ``.parquet`` file: all
        columns but the target are features. Or an ``.npz`` file: its array ``features`` [N, I]
        holds the features, its array ``feature_names`` [I] their names, if there is one, and each
        array [N] can be the target.
    target : str, optional
        Name of the target; by default the last column, or the last array [N].
    drop : sequence of str
        Names of columns to leave out.

    Raises
    ------
    InputError
        If the file cannot be read, lacks one of these columns, or :class:`Dataset` refuses its
        numbers.
    """
    with _reading(path):
        frame = _without(_read_frame(path), drop, path)
        _check_unique(frame)
        if path.suffix == ".npz":
            values = _read_npz_target(path, target, len(frame))
        else:
            values = frame.pop(_chosen([*frame], target))
        return Dataset(
            _numbers(frame), _numbers(values.to_frame())[:, 0], [*frame], str(values.name)
        )


def read_features(path: Path, feature_names: Sequence[str]) -> NDArray[np.float64]:
    """Read the named columns of a table as features [N, I].

    The table may hold other columns, too, which are not read, and its columns may have any order.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column or has two of its name, or a value is not a
        finite number.
    """
    with _reading(path):
        frame = _read_frame(path, feature_names)
        for name in feature_names:
            if name not in frame:
                raise InputError(f"there is no column {name!r}, which the model needs")
        _check_unique(name for name in frame if name in feature_names)
        values = _numbers(frame[[*feature_names]])
        check_finite(values, feature_names)
        return values


def as_numbers(function: str, name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return a C-contiguous float64 array of a function's argument, NaN where it is masked.

    PyTorch can read neither masks nor negative strides, and rounds differently in other layouts.

    Raises
    ------
    TypeError
        If the argument is sparse.
    """
    check_dense(function, name, values)
    return np.asarray(np.ma.asarray(values, np.float64, "C").filled(np.nan))


def check_finite(values: NDArray[np.float64], names: Sequence[str]) -> None:
    """Require that ``values`` [N, I], with columns called ``names``, are all finite."""
    bad_rows, bad_columns = np.nonzero(~np.isfinite(values))
    if len(bad_rows):
        raise InputError(
            f"values are missing or infinite in {len(np.unique(bad_rows))} rows, first in row "
            f"{bad_rows[0] + 1}, column {names[bad_columns[0]]!r}; leave these rows out"
        )


def _check_unique(names: Iterable[object]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"{times} columns are called {name!r}; give each a name of its own")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors into an InputError that names the file."""
    try:
        if not path.is_file():
            raise InputError("there is no such file")
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # The libraries that read these formats raise errors of nearly every kind at damaged files.
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as {path.suffix[1:]}: {one_line(error)}"
        ) from error


def _read_frame(path: Path, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Read all columns that can be features, or of a CSV or Parquet file those named ``only``.

    The names in the table are text.
    """
    if path.suffix == ".csv":
        return _read_csv(path, only)
    if path.suffix == ".npz":
        return _read_npz_features(path)
    if path.suffix != ".parquet":
        raise InputError("the file name must end in .csv, .parquet or .npz")
    # Here, since other files can be read without it.
    from pyarrow.parquet import read_schema  # type: ignore[import-untyped]

    names = [name for name in read_schema(path).names if only is None or name in only]
    frame = pd.read_parquet(path, columns=names)
    if frame.columns.nlevels > 1:
        raise InputError("its columns have names of several levels; give them names of one")
    return frame.set_axis([*map(str, frame)], axis=1)


def _read_csv(path: Path, only: Sequence[str] | None) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        names = next(filter(None, lines), [])
        for values in lines:
            if any(map(str.strip, values[len(names) :])):
                raise InputError(
                    f"line {lines.line_num} holds {len(values)} values, but the first line names "
                    f"{len(names)} columns"
                )
    if names and all(map(_is_number, names)):
        raise InputError("the first line holds numbers, but must name the columns")
    # Without `index_col` the first column of a file whose lines end in a comma names its rows.
    columns = [i for i, name in enumerate(names) if only is None or name in only]
    frame = pd.read_csv(path, index_col=False, usecols=columns)
    return frame.set_axis([names[i] for i in columns], axis=1)


def _read_npz_features(path: Path) -> pd.DataFrame:
    with zipfile.ZipFile(path) as archive:
        shapes = npz.read_shapes(archive)
        features = npz.read_array(archive, "features") if "features" in shapes else np.empty(0)
        if features.ndim != 2:
            raise InputError("there is no array 'features' of shape [rows, columns]")
        if "feature_names" in shapes:
            names = [*map(str, npz.read_array(archive, "feature_names"))]
        else:
            names = [f"x{i + 1}" for i in range(features.shape[1])]
    return pd.DataFrame(features, columns=names)


def _read_npz_target(path: Path, target: str | None, rows: int) -> "pd.Series[Any]":
    with zipfile.ZipFile(path) as archive:
        shapes = npz.read_shapes(archive)
        columns = [name for name, shape in shapes.items() if shape == (rows,)]
        name = _chosen([name for name in columns if name != "feature_names"], target)
        return pd.Series(npz.read_array(archive, name), name=name)


def _without(frame: pd.DataFrame, drop: Sequence[str], path: Path) -> pd.DataFrame:
    """Leave out the columns to ``drop``, and those that have no name."""
    names = [*map(str, frame)]
    for name in drop:
        if name not in names:
            raise InputError(
                f"there is no column {name!r} to drop; those there are: {', '.join(names)}"
            )
    nameless = [i for i, name in enumerate(names, 1) if _NO_NAME.fullmatch(name)]
    if nameless:
        _log.warning(
            "%s: columns without a name, as pandas and R write row numbers, are left out: %s",
            path,
            ", ".join(map(str, nameless)),
        )
    return frame.loc[:, [not _NO_NAME.fullmatch(name) and name not in drop for name in names]]


def _chosen(names: Sequence[str], target: str | None) -> str:
    """Return the name of the target, by default the last."""
    if not names:
        raise InputError("there is no array with one target value per row")
    if target is not None and target not in names:
        raise InputError(f"there is no target {target!r}; those there are: {', '.join(names)}")
    return target or names[-1]


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
