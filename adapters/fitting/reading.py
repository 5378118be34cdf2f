"""Reading tables: CSV, Parquet and npz files, and frames of pandas and polars."""

import csv
import gzip
import re
import sys
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from . import npz
from .dataset import Dataset, InputError, Task, check_unique, one_line

#: In place of a file, stands for standard input or output.
STANDARD_STREAM = Path("-")

#: Ending of a CSV file -> what may separate its values, the most probable first.
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|"}

#: A column without a name, as it stands in a file or as pandas, R and Arrow write it.
_NO_NAME = re.compile(r"\s*|Unnamed: [\d.]+|__index_level_\d+__")

#: What pandas and R call a first column that numbers the rows.
_ROW_NUMBERS = {"index", "rownames", "row.names", "X"}

_COUNTS_ROWS = "left out: numbers the rows"

#: A number with a decimal comma, and one with a decimal point.
_COMMA, _POINT = (re.compile(rf"\s*[+-]?\d*{mark}\d+([eE][+-]?\d+)?\s*") for mark in (",", r"\."))

#: Lines of a CSV file in which its separator and its decimal mark are looked for.
_LINES = 1000


def read_dataset(
    table: Any,
    target: str | Sequence[str] | None = None,
    drop: Sequence[str] = (),
    *,
    task: Task | None = None,
    sep: str | None = None,
    decimal: str | None = None,
) -> Dataset:
    """Read a table with targets.

    All other columns are features, but those to ``drop`` and those that number the rows: the ones
    without a name, and a first one that counts and is called as pandas and R call it.

    Parameters
    ----------
    table : Path, or a frame of pandas or polars
        A file as :func:`read_table` reads it. Of an npz file each array [N] can be a target.
    target : str or sequence of str, optional
        Names of the targets; by default the last column, or the last array [N].
    drop : sequence of str
        Names of columns to leave out.
    task : {"regression", "classification"}, optional
        As for :class:`Dataset`.
    sep, decimal : str, optional
        Of CSV files, as for :func:`read_table`.

    Raises
    ------
    InputError
        If the table cannot be read, lacks one of these columns, or :class:`Dataset` refuses it.
    """
    targets = [target] if isinstance(target, str) else [*(target or ())]
    frame = read_table(table, sep=sep, decimal=decimal)
    with _naming(table):
        if missing := [name for name in drop if name not in frame]:
            raise InputError(_there_is_no("column to drop", missing, [*frame]))
        fates = dict.fromkeys(drop, "left out: as asked for")
        frame = frame.loc[:, [name not in drop for name in frame]]
        numbers = _row_numbers(frame, targets)
        fates |= {frame.columns[i] or f"column {i + 1}": _COUNTS_ROWS for i in numbers}
        frame = frame.iloc[:, [i for i in range(len(frame.columns)) if i not in numbers]]
        check_unique(frame)
        if _kind(table) == ".npz":
            return Dataset(frame, _read_npz_targets(table, targets, len(frame)), task, fates)
        if missing := [name for name in targets if name not in frame]:
            raise InputError(_there_is_no("target", missing, [*frame]))
        targets = targets or [*frame.columns[-1:]]
        return Dataset(frame.drop(columns=targets), frame[targets], task, fates)


def read_table(
    table: Any,
    only: Collection[str] | None = None,
    *,
    text: Collection[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
) -> pd.DataFrame:
    """Read a table as it is.

    Parameters
    ----------
    table : Path, or a frame of pandas or polars
        A ``.csv`` or ``.tsv`` file in UTF-8, also compressed by gzip (``.gz``), whose first line
        names the columns; a ``.parquet`` file or a folder of such files; or an ``.npz`` file: its
        array ``features`` [N, I] holds the columns, its array ``feature_names`` [I] their names,
        if there is one. ``Path("-")`` is a CSV file on standard input.
    only : collection of str, optional
        Names of the columns to read.
    text : collection of str
        Names of columns that are text in a CSV file, even if all of it looks like numbers.
    sep, decimal : str, optional
        What separates the values in a CSV file, and its decimal mark. By default they are found in
        its first lines.

    Returns
    -------
    DataFrame
        Its names are text, without blanks around them.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    with _naming(table):
        kind = _kind(table)
        if kind == "":
            frame = table if isinstance(table, pd.DataFrame) else table.to_pandas()
        elif kind in SEPARATORS:
            # What comes from standard input can be read only once.
            source = sys.stdin.buffer.read() if table == STANDARD_STREAM else table
            return _read_csv(source, SEPARATORS[kind], only, text, sep, decimal)
        elif kind == ".npz":
            frame = _read_npz_features(table)
        else:
            frame = _read_parquet(table, only)
        frame = frame.set_axis([str(name).strip() for name in frame], axis=1)
        return frame.loc[:, [only is None or name in only for name in frame]]


def _kind(table: Any) -> str:
    """Return the kind of a table: the ending of a file's name, or "" for a frame."""
    if not isinstance(table, Path):
        if not hasattr(table, "to_pandas") and not isinstance(table, pd.DataFrame):
            raise TypeError(
                f"a table must be a Path or a frame of pandas or polars, got {type(table).__name__}"
            )
        return ""
    if table == STANDARD_STREAM:
        return ".csv"
    if not table.exists():
        raise InputError("there is no such file")
    kind = Path(table.name.lower().removesuffix(".gz")).suffix
    if table.is_dir():
        if not any(table.rglob("*.parquet")):
            raise InputError("is a folder without Parquet files")
        return ".parquet"
    if kind not in {*SEPARATORS, ".parquet", ".npz"}:
        raise InputError("the file name must end in .csv, .csv.gz, .tsv, .parquet or .npz")
    return kind


@contextmanager
def _naming(table: Any) -> Iterator[None]:
    """Turn errors into an InputError that names the file."""
    if not isinstance(table, Path):
        yield
        return
    try:
        yield
    except InputError as error:
        raise InputError(f"{table}: {error}") from error
    # The libraries that read these formats raise errors of nearly every kind at damaged files.
    except Exception as error:
        kind = "parquet" if table.is_dir() else table.suffix[1:] or "csv"
        raise InputError(f"{table}: cannot be read as {kind}: {one_line(error)}") from error


# CSV


def _read_csv(
    source: Path | bytes,
    separators: str,
    only: Collection[str] | None,
    text: Collection[str],
    sep: str | None,
    decimal: str | None,
) -> pd.DataFrame:
    with _opened(source) as file:
        first = [*islice(file, _LINES)]
    sep = "\t" if sep == "\\t" else sep or _separator(first, separators)
    for name, mark in (("sep", sep), ("decimal", decimal)):
        if mark is not None and len(mark) != 1:
            raise InputError(f"{name} must be one character, got {mark!r}")
    decimal = decimal or _decimal(first, sep)
    with _opened(source) as file:
        lines = csv.reader(file, delimiter=sep, skipinitialspace=True)
        names = [name.strip() for name in next(filter(None, lines), [])]
        for values in lines:
            if any(map(str.strip, values[len(names) :])):
                raise InputError(
                    f"line {lines.line_num} holds {len(values)} values, but the first line names "
                    f"{len(names)} columns"
                )
    if names and all(map(_is_number, names)):
        raise InputError("the first line holds numbers, but must name the columns")
    columns = [i for i, name in enumerate(names) if only is None or name in only]
    with _opened(source) as file:
        frame = pd.read_csv(
            file,
            sep=sep,
            decimal=decimal,
            names=range(len(names)),
            header=0,
            index_col=False,  # else a comma at the end of lines makes the first column their name
            usecols=columns,
            dtype={i: str for i in columns if names[i] in text},
            skipinitialspace=True,
            low_memory=False,  # which would read parts of a column as numbers, and parts as text
        )
    return frame.set_axis([names[i] for i in columns], axis=1)


def _opened(source: Path | bytes) -> TextIO:
    """Open a file, or the content of one, as text."""
    if isinstance(source, bytes):
        return TextIOWrapper(BytesIO(source), encoding="utf-8-sig", newline="")
    if source.suffix.lower() == ".gz":
        return gzip.open(source, "rt", encoding="utf-8-sig", newline="")
    return source.open(encoding="utf-8-sig", newline="")


def _separator(lines: list[str], candidates: str) -> str:
    """Return the candidate that splits all lines into as many values, and into the most."""

    def fit(candidate: str) -> tuple[bool, int]:
        names, *rows = [
            *filter(None, csv.reader(lines, delimiter=candidate, skipinitialspace=True))
        ]
        fits = all(not any(map(str.strip, row[len(names) :])) for row in rows)
        return len(names) > 1 and fits, len(names)

    return max(candidates, key=fit) if any(map(str.strip, lines)) else candidates[0]


def _decimal(lines: list[str], sep: str) -> str:
    """Return "," if there are numbers with it and none with a point."""
    values = [value for row in csv.reader(lines, delimiter=sep) for value in row]
    has_comma = sep != "," and any(map(_COMMA.fullmatch, values))
    return "," if has_comma and not any(map(_POINT.fullmatch, values)) else "."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# Parquet and npz


def _read_parquet(path: Path, only: Collection[str] | None) -> pd.DataFrame:
    # Here, since other files can be read without it.
    from pyarrow import parquet  # type: ignore[import-untyped]

    names = parquet.ParquetDataset(path).schema.names
    # Metadata of pandas would hide columns in an index.
    needed = [name for name in names if only is None or name.strip() in only]
    frame: pd.DataFrame = parquet.read_table(path, columns=needed).to_pandas(ignore_metadata=True)
    return frame


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


def _read_npz_targets(path: Path, targets: Sequence[str], rows: int) -> pd.DataFrame:
    with zipfile.ZipFile(path) as archive:
        shapes = npz.read_shapes(archive)
        names = [name for name, shape in shapes.items() if shape == (rows,)]
        names = [name for name in names if name != "feature_names"]
        if not names:
            raise InputError("there is no array with one target value per row")
        if missing := [name for name in targets if name not in names]:
            raise InputError(_there_is_no("target", missing, names))
        return pd.DataFrame({name: npz.read_array(archive, name) for name in targets or names[-1:]})


# Columns that number the rows


def _row_numbers(frame: pd.DataFrame, targets: Sequence[str]) -> list[int]:
    """Return which columns number the rows."""
    return [
        i
        for i, name in enumerate(map(str, frame))
        if name not in targets
        and (
            _NO_NAME.fullmatch(name)
            or (i == 0 and name in _ROW_NUMBERS and _counts(frame.iloc[:, i]))
        )
    ]


def _counts(column: "pd.Series[Any]") -> bool:
    """Whether the values are numbers that grow by one from 0 or 1."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    return len(values) > 0 and bool((values == np.arange(len(values)) + values[0]).all())


def _there_is_no(what: str, names: Sequence[str], known: Sequence[Any]) -> str:
    those = ", ".join(map(repr, names))
    return f"there is no {what} {those}; those there are: {', '.join(known)}"
