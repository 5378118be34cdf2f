"""Encoding of tables: columns of numbers, truth values, dates and categories become features.

What is known of a column is plain data (numbers, text, lists), which goes into a model's folder as
JSON. Applying it takes NumPy alone, so that a model predicts where nothing else is installed.

============ =================================== =================================================
kind         columns                             features
============ =================================== =================================================
``number``   numbers, also as text; durations    the number (of days); whether it is missing
``boolean``  truth values, also as text          1 or 0; whether it is missing
``date``     dates and times, also as text       days since 1970; sine and cosine of the time of
                                                 day, the weekday and the season, where they vary;
                                                 whether it is missing
``category`` other text; categorical dtypes      1 or 0 for every level, for missing ones, and for
                                                 all others
============ =================================== =================================================
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .array_checks import check_dense

#: A level in fewer rows than this is one of the others: too few to learn anything from.
LEAST_ROWS_OF_LEVEL = 5

#: Most levels of a category that have a feature each, as many as in skrub's TableVectorizer.
MOST_LEVELS = 40

#: How dates are written; the first form that fits all values is taken. "" stands for ISO 8601.
_DATE_FORMATS = (
    "",
    *(
        day + time
        for day in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y")
        for time in ("", " %H:%M", " %H:%M:%S")
    ),
)

#: Part of a date that recurs -> its period, in days.
PERIODS = {"time of day": 1.0, "weekday": 7.0, "season": 365.2425}

_EPOCH, _DAY = np.datetime64(0, "us"), np.timedelta64(1, "D")

_TRUTHS = {"true": 1.0, "false": 0.0}

#: What share of the values of a column may be of another kind by error; with more it is text.
_MOST_ERRORS = 0.1

#: An array [N] of float64, of datetime64 or of objects: None, bool, numbers, dates or text.
_Cells = NDArray[Any]

_T = TypeVar("_T")


class Encoder:
    """Turns columns of a table into features.

    Parameters
    ----------
    columns : sequence of dict
        What :func:`fit_encoder` found out about every column that is read, as plain data.

    Attributes
    ----------
    columns : list of dict
    names : list of str [I]
        What the features are called.

    Raises
    ------
    ValueError
        If ``columns`` are not those of an encoder.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._columns = {
                column["name"]: (_Category if "levels" in column else _Quantity)(**column)
                for column in columns
            }
            self.names = [name for each in self._columns.values() for name in each.feature_names]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Encoder: columns must be those of an encoder ({error})") from error
        self.columns = [asdict(column) for column in self._columns.values()]

    def __call__(self, table: Any) -> NDArray[np.float64]:
        """Return the features [N, I] of a table.

        Parameters
        ----------
        table : mapping or frame
            Name -> values [N], or a value where there is one row: arrays, sequences, columns of
            pandas and polars. None, NaN, NaT, ``pandas.NA``, blank text and what is masked are
            missing. Columns that the encoder does not know are not read.

        Returns
        -------
        float64 array [N, I], C-contiguous
            A level that is unknown counts as one of the others. Where :func:`fit_encoder` saw no
            others, its features are the averages over the rows that it saw.

        Raises
        ------
        ValueError
            If a column is not there, or holds what is not of its kind, an infinity, or missing
            values where :func:`fit_encoder` saw none. The message names all such columns. Or if
            columns differ in length.
        TypeError
            If a column is sparse.
        """
        table = _by_name(table)
        features = _for_each(
            self._columns, lambda name: self._columns[name].encoded(_cells_of(table, name))
        )
        flat = [feature for of_column in features for feature in of_column]
        if len(lengths := sorted({len(each) for each in flat})) > 1:
            raise ValueError(f"columns must be equally long, got {lengths[0]} and {lengths[-1]}")
        return np.array(flat, order="F").T

    def unseen(self, table: Any) -> dict[str, NDArray[np.bool_]]:
        """Return in which rows of a table columns hold what :func:`fit_encoder` did not see.

        Parameters
        ----------
        table : mapping or frame
            As for a call.

        Returns
        -------
        dict of bool array [N]
            For every column: where a number or a date is beyond the least or the largest one, or a
            level is unknown and there were no others.

        Raises
        ------
        TypeError, ValueError
            As a call does.
        """
        flags = _for_each(
            self._columns, lambda name: self._columns[name].unseen(_cells_of(table, name))
        )
        return dict(zip(self._columns, flags, strict=True))


def fit_encoder(table: Any) -> tuple[Encoder, dict[str, str]]:
    """Find out how to encode the columns of a table.

    A column has the kind that all its values have; only categorical dtypes of pandas and polars
    decide by themselves. Columns are left out that are constant, or text without a value that
    occurs in ``LEAST_ROWS_OF_LEVEL`` rows. The most frequent levels, ``MOST_LEVELS`` of those that
    occur in so many rows, have a feature each. What else is missing becomes the median.

    Parameters
    ----------
    table : mapping or frame
        As :class:`Encoder` takes it.

    Returns
    -------
    encoder : Encoder
    fates : dict
        For every column what became of it, in words; "left out: " and why, where it was.

    Raises
    ------
    ValueError
        If a column holds values of different kinds, of another kind, or infinities; the message
        names all such columns. Or if none is left.
    TypeError
        If a column is sparse.
    """
    names = [*getattr(table, "columns", table)]
    fitted = _for_each(
        names, lambda name: _fitted(name, _cells_of(table, name), is_categorical(table[name]))
    )
    fates = {name: fate for name, (_, fate) in zip(names, fitted, strict=True)}
    if not (columns := [column for column, _ in fitted if column is not None]):
        raise ValueError(
            "there is no column to learn from: "
            + ", ".join(f"{name!r} is {fate}" for name, fate in fates.items())
        )
    return Encoder([asdict(column) for column in columns]), fates


@dataclass(frozen=True)
class _Quantity:
    """A column of numbers, truth values or dates."""

    name: str
    kind: str
    """A key of `_READERS`."""
    parts: list[str]
    """Those that vary: "value", "missing" and the keys of `PERIODS`."""
    fill: float
    """What stands for missing values: number, truth value, or days since 1970."""
    format: str = ""
    """Of dates, see `_DATE_FORMATS`."""
    seen: list[float] | None = None
    """The least and the largest value that occurred; None where nobody looked."""

    def __post_init__(self) -> None:
        if (
            self.kind not in _READERS
            or not {*self.parts} <= {"value", "missing", *PERIODS}
            or not math.isfinite(self.fill)
        ):
            raise ValueError(f"{self} cannot be")

    @property
    def feature_names(self) -> list[str]:
        """What its features are called."""
        return [
            name
            for part in self.parts
            for name in (
                [f"{self.name} ({part}, {wave})" for wave in ("sine", "cosine")]
                if part in PERIODS
                else [self.name if part == "value" else f"{self.name} is missing"]
            )
        ]

    def encoded(self, cells: _Cells) -> list[NDArray[np.float64]]:
        """Return its features, each [N]."""
        values = _read(self.name, self.kind, cells, self.format)
        is_missing = np.isnan(values)
        if np.count_nonzero(is_missing):  # faster than any() where there are few rows
            if "missing" not in self.parts:
                raise ValueError(_where(self.name, is_missing, "has no value"))
            values = np.where(is_missing, self.fill, values)
        return [each for part in self.parts for each in _part(part, values, is_missing)]

    def unseen(self, cells: _Cells) -> NDArray[np.bool_]:
        """Return in which rows [N] the value is beyond those that occurred."""
        values = _read(self.name, self.kind, cells, self.format)
        low, high = self.seen or (-math.inf, math.inf)
        return (values < low) | (values > high)


@dataclass(frozen=True)
class _Category:
    """A column of levels."""

    name: str
    levels: list[str | None]
    """Those with a feature each; None is what is missing."""
    counts: list[int]
    """In how many rows they occurred."""
    others: int
    """How many rows had other levels."""

    def __post_init__(self) -> None:
        if (
            not all(isinstance(level, str | None) for level in self.levels)
            or not all(isinstance(count, int) for count in (*self.counts, self.others))
            or len(self.levels) != len(self.counts)
            or len(self.levels) + bool(self.others) < 2
        ):
            raise ValueError(f"{self} cannot be")

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        """The features of every level, and last of those that are unknown."""
        size = len(self.levels) + bool(self.others)
        counts = np.array(self.counts, np.float64)
        rows = np.eye(size) if self.others else np.vstack([np.eye(size), counts / counts.sum()])
        return rows[:, size == 2 :]  # the second of two is 1 where the first is 0

    @cached_property
    def _row_of(self) -> dict[str | None, int]:
        return {level: row for row, level in enumerate(self.levels)}

    @property
    def feature_names(self) -> list[str]:
        """What its features are called."""
        names = [
            f"{self.name} is missing" if level is None else f"{self.name} = {level}"
            for level in self.levels
        ]
        names += [f"{self.name} is another"] * bool(self.others)
        return names[len(names) == 2 :]

    def encoded(self, cells: _Cells) -> list[NDArray[np.float64]]:
        """Return its features, each [N]."""
        texts = _texts(cells)
        if None not in self.levels and None in texts:
            is_missing = np.array([text is None for text in texts])
            raise ValueError(_where(self.name, is_missing, "has no value"))
        rows = [self._row_of.get(text, -1) for text in texts]
        return [*self._rows[np.array(rows, np.intp)].T]

    def unseen(self, cells: _Cells) -> NDArray[np.bool_]:
        """Return in which rows [N] the level is unknown; where there were others it is known."""
        is_unknown = [text not in self._row_of for text in _texts(cells)]
        return np.array(is_unknown, bool) & (self.others == 0)


def _for_each(names: Iterable[str], function: Callable[[str], _T]) -> list[_T]:
    """Return the function's results, or raise one ValueError with the messages of all."""
    results, problems = [], []
    for name in names:
        try:
            results.append(function(name))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return results


def _where(name: str, is_bad: NDArray[np.bool_], problem: str) -> str:
    """Return the message that in rows [N] of a column there is a problem."""
    row, count = int(is_bad.argmax()) + 1, int(is_bad.sum())
    return f"column {name!r}: row {row} {problem}" + f" ({count} such rows)" * (count > 1)


# From columns of many kinds to cells of few


def _by_name(table: Any) -> Any:
    """Return a table, a frame of one row as a dict: a frame takes long to give out a column."""
    names = [*getattr(table, "columns", ())]
    if not names or len(table) != 1 or len(set(names)) < len(names):
        return table
    row = table.iloc[0].tolist() if hasattr(table, "iloc") else table.row(0)  # pandas or polars
    return dict(zip(names, row, strict=True))


def _cells_of(table: Any, name: str) -> _Cells:
    if name not in table:
        raise ValueError(f"there is no column {name!r}")
    column = table[name]
    check_dense("Encoder", f"column {name!r}", column)
    values = np.asarray(column)
    if values.dtype.kind == "U":  # which NumPy makes of numbers beside text, too
        values = np.asarray(column, object)
    if values.ndim == 0:
        values = values.reshape(1)
    if values.ndim != 1:
        raise ValueError(f"column {name!r} must have one value per row, got shape {values.shape}")
    if isinstance(column, np.ndarray) and hasattr(column, "mask"):
        values = values.astype(object)
        values[np.ma.getmaskarray(column)] = None
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    if values.dtype.kind == "m":  # NaT gives NaN
        return values / _DAY
    if values.dtype.kind == "M":
        return values.astype("M8[us]")
    if values.dtype == bool:
        return values
    cells = np.empty(len(values), object)
    cells[:] = [_cell(name, row, value) for row, value in enumerate(values.tolist())]
    return cells


def _cell(name: str, row: int, value: Any) -> Any:
    """Return a value as it stands in an array of objects, None where it is missing."""
    if isinstance(value, np.datetime64):
        value = value.astype("M8[us]")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, timedelta):
        value /= timedelta(days=1)
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool | Real | Decimal | date):
        return value if value == value else None  # NaN, NaT
    if value is None or type(value).__name__ == "NAType":  # pandas.NA
        return None
    raise ValueError(f"column {name!r}: row {row + 1} holds {value!r}, a {type(value).__name__}")


def is_categorical(column: Any) -> bool:
    """Return whether a column of pandas or polars holds categories."""
    return str(getattr(column, "dtype", "")).lower().startswith(("categor", "enum"))


# Quantities


def _number(cell: Any, _: str) -> float:
    if isinstance(cell, bool | date) or (isinstance(cell, str) and "_" in cell):
        raise ValueError  # float would take a bool, and "1_0" for 10
    return float(cell)


def _truth(cell: Any, _: str) -> float:
    if isinstance(cell, str) and cell.lower() in _TRUTHS:
        return _TRUTHS[cell.lower()]
    if not isinstance(cell, bool) and _number(cell, "") not in (0, 1):
        raise ValueError
    return float(cell)


def _days(cell: Any, form: str) -> float:
    """Return the days since 1970 of a date; times with a zone are turned into UTC."""
    if isinstance(cell, str):
        cell = (
            datetime.strptime(cell, form)
            if form
            else datetime.fromisoformat(cell.removesuffix("Z") + "+00:00" * cell.endswith("Z"))
        )
    if not isinstance(cell, date):
        raise ValueError
    if isinstance(cell, datetime) and cell.tzinfo:
        cell = cell.astimezone(timezone.utc).replace(tzinfo=None)
    return float((np.datetime64(cell, "us") - _EPOCH) / _DAY)


_READERS: dict[str, Callable[[Any, str], float]] = {
    "number": _number,
    "boolean": _truth,
    "date": _days,
}


def _values(kind: str, cells: _Cells, form: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return numbers [N], NaN where they are missing, and which cells are not of the kind."""
    if kind == "number" and cells.dtype == np.float64:
        return cells, np.isinf(cells)
    if kind == "date" and cells.dtype.kind == "M":
        days = (cells - _EPOCH) / _DAY
        return days, np.isinf(days)
    values, is_bad = np.full(len(cells), np.nan), np.zeros(len(cells), bool)
    for row, cell in enumerate(cells.tolist()):
        if cell is not None and cell == cell:
            try:
                values[row] = _READERS[kind](cell, form)
            except (ValueError, OverflowError):
                is_bad[row] = True
    return values, is_bad | np.isinf(values)


def _read(name: str, kind: str, cells: _Cells, form: str) -> NDArray[np.float64]:
    """Return numbers [N], NaN where they are missing."""
    values, is_bad = _values(kind, cells, form)
    if np.count_nonzero(is_bad):
        raise ValueError(_not_of_kind(name, kind, cells, is_bad))
    return values


def _not_of_kind(name: str, kind: str, cells: _Cells, is_bad: NDArray[np.bool_]) -> str:
    cell = cells.tolist()[is_bad.argmax()]
    return _where(
        name, is_bad, f"holds {cell!r}, which is no {'finite ' * (kind == 'number')}{kind}"
    )


def _part(
    part: str, values: NDArray[np.float64], is_missing: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    """Return the features of a part, each [N]; missing ones of ``values`` [N] have been filled."""
    if part == "value":
        return [values]
    if part == "missing":
        return [is_missing.astype(np.float64)]
    angle = 2 * np.pi * (values % PERIODS[part] / PERIODS[part])
    return [np.sin(angle), np.cos(angle)]


# Categories


def _texts(cells: _Cells) -> list[str | None]:
    """Return the names of the levels [N] in the cells, the same for 1, 1.0 and "1"."""
    return [
        str(int(cell))
        if isinstance(cell, float) and cell.is_integer()
        else str(cell)
        if cell is not None and cell == cell
        else None
        for cell in cells.tolist()
    ]


# Fitting


def _fitted(
    name: str, cells: _Cells, is_categorical: bool
) -> tuple[_Quantity | _Category | None, str]:
    """Return what is to be known of a column, None where it is left out, and its fate in words."""
    if is_categorical or (kind := _kind_of(name, cells)) is None:
        return _fitted_category(name, _texts(cells))
    return _fitted_quantity(name, *kind, cells)


def _kind_of(name: str, cells: _Cells) -> tuple[str, str] | None:
    """Return the kind of all cells and the form of dates; None where it is a category."""
    if cells.dtype != object:
        return {"f": "number", "M": "date", "b": "boolean"}[cells.dtype.kind], ""
    cells = cells[[cell is not None for cell in cells.tolist()]]
    if not len(cells):
        return "number", ""
    for kind in _READERS:
        for form in _forms_of(cells[0]) if kind == "date" else ("",):
            _, is_bad = _values(kind, cells, form)
            if not is_bad.any():
                return kind, form
            # Else a single error would turn numbers into text.
            if is_bad.mean() <= _MOST_ERRORS and len(set(_texts(cells))) > MOST_LEVELS:
                raise ValueError(_not_of_kind(name, kind, cells, is_bad))
    kinds = {type(cell) for cell in cells.tolist()}
    if any(issubclass(kind, date) for kind in kinds):
        raise ValueError(f"column {name!r} holds both dates and other values")
    if str not in kinds:
        raise ValueError(_not_of_kind(name, "number", cells, _values("number", cells, "")[1]))
    return None


def _forms_of(cell: Any) -> list[str]:
    """Return in which of the forms of dates a cell can be read."""
    forms = []
    for form in _DATE_FORMATS:
        with suppress(ValueError):
            _days(cell, form)
            forms.append(form)
    return forms


def _fitted_quantity(
    name: str, kind: str, form: str, cells: _Cells
) -> tuple[_Quantity | None, str]:
    values = _read(name, kind, cells, form)
    is_missing = np.isnan(values)
    if is_missing.all():
        return None, "left out: empty"
    fill = float(np.median(values[~is_missing]))
    values = np.where(is_missing, fill, values)
    spread = np.ptp(values)
    parts = [
        part
        for part in ("value", *(PERIODS if kind == "date" else ()), "missing")
        if spread > PERIODS.get(part, -1) and np.ptp(_part(part, values, is_missing), 1).any()
    ]
    if not parts:
        return None, "left out: constant"
    fate = " and ".join([kind, *(part for part in parts if part in PERIODS)])
    if form:
        fate += f", written as {form}"
    if count := int(is_missing.sum()):
        fate += f", missing in {count:,} rows (the median there, and marked)"
    seen = [float(values.min()), float(values.max())]  # the median, where it is missing, is between
    return _Quantity(name, kind, parts, fill, form, seen), fate


def _fitted_category(name: str, texts: list[str | None]) -> tuple[_Category | None, str]:
    counts = Counter(text for text in texts if text is not None)
    missing = texts.count(None)
    frequent = [
        level for level, count in counts.most_common(MOST_LEVELS) if count >= LEAST_ROWS_OF_LEVEL
    ]
    levels = sorted(frequent) + [None] * bool(missing)
    others = len(texts) - missing - sum(counts[level] for level in frequent)
    if not counts:
        return None, "left out: empty"
    if len(levels) + bool(others) < 2:
        reason = "constant" if levels else f"text, but no value in {LEAST_ROWS_OF_LEVEL} rows"
        return None, f"left out: {reason}"
    fate = f"category of {len(frequent)} levels"
    if others:
        fate += f"; {len(counts) - len(frequent):,} rare ones ({others:,} rows) are others"
    if missing:
        fate += f"; missing in {missing:,} rows, a level too"
    occurred = [counts[level] for level in sorted(frequent)] + [missing] * bool(missing)
    return _Category(name, levels, occurred, others), fate
