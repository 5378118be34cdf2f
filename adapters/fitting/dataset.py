"""What a network is fitted to: the columns of a table as features, and its targets, checked."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmkan_cupy.encoding import LEAST_ROWS_OF_LEVEL, Encoder, fit_encoder

Task = Literal["regression", "classification"]

#: Fewer rows than this leave too few to test on.
MIN_ROWS = 50


class InputError(ValueError):
    """The user's file or argument cannot be used; the message says why, in one sentence."""


def one_line(error: Exception) -> str:
    """Return the message of an error for the end of a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Dataset:
    """Columns of a table, and targets to predict from them.

    Parameters
    ----------
    features : DataFrame [N, columns]
        As :func:`lmkan_cupy.encoding.fit_encoder` takes them: numbers, text, dates, gaps.
    targets : DataFrame [N, K]
    task : {"regression", "classification"}, optional
        By default a single target of text, truth values, categories or zeros and ones is one of
        classes, and everything else is of numbers.
    left_out : dict of str
        Columns of the table that are not among the features, and why, for ``fates``.

    Attributes
    ----------
    encoder : Encoder
        Turns the columns into features.
    fates : dict of str
        What became of every column.
    encoded : float64 array [N, I]
        The features.
    classes : list or None
        The labels of a classification, sorted: all text, all truth values or all numbers.
    values : float64 array [N, K], or int64 array [N]
        The targets; of a classification the indices of the labels.

    Raises
    ------
    InputError
        If lengths differ, there are fewer than 50 rows or no column to learn from, a name occurs
        twice, a target is missing or constant, a class has fewer than 5 rows, several targets are
        to be classified, or a column holds what cannot be used.
    """

    features: pd.DataFrame
    targets: pd.DataFrame
    task: Task | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    encoder: Encoder = field(init=False)
    fates: dict[str, str] = field(init=False)
    encoded: NDArray[np.float64] = field(init=False)
    classes: list[Any] | None = field(init=False)
    values: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("features", "targets"):
            frame = pd.DataFrame(getattr(self, name)).reset_index(drop=True)
            object.__setattr__(self, name, frame.set_axis([*map(str, frame)], axis=1))
        check_unique([*self.features, *self.targets])
        rows = len(self.targets)
        if len(self.features) != rows:
            raise InputError(
                f"features and targets must have equally many rows, got {len(self.features)} and "
                f"{rows}"
            )
        if self.features.columns.empty or self.targets.columns.empty:
            names = ", ".join(map(repr, self.target_names))
            raise InputError(f"there is no column beside the target {names}")
        if rows < MIN_ROWS:
            raise InputError(f"{rows} rows are too few; at least {MIN_ROWS} are needed")
        problems = []
        for prepare in (self._prepare_features, self._prepare_targets):
            try:
                prepare()
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise InputError("; ".join(problems))

    @property
    def target_names(self) -> list[str]:
        """Names of the targets [K]."""
        return [*self.targets]

    def prepared(self, table: Any) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Return features and targets of other rows, as ``encoded`` and ``values``.

        Raises
        ------
        InputError
            If a column is not there or holds what it must not.
        """
        try:
            if missing := [name for name in self.target_names if name not in table]:
                raise ValueError("; ".join(f"there is no column {name!r}" for name in missing))
            if self.classes is None:
                return self.encoder(table), _numbers(self.target_names, table)
            (name,) = self.target_names
            return self.encoder(table), _indices(name, _labels(table[name]), self.classes)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _prepare_features(self) -> None:
        encoder, fates = fit_encoder(self.features)
        self._set(encoder=encoder, fates=self.left_out | fates, encoded=encoder(self.features))

    def _prepare_targets(self) -> None:
        columns = [column for _, column in self.targets.items()]
        if self.task is None:
            is_classes = len(columns) == 1 and _holds_classes(columns[0])
            self._set(task="classification" if is_classes else "regression")
        if self.task not in ("classification", "regression"):
            raise ValueError(f"task must be 'regression' or 'classification', got {self.task!r}")
        if self.task == "regression":
            values = _numbers(self.target_names, self.targets)
            is_constant = np.ptp(values, axis=0) == 0
            self._set(classes=None, values=values)
        else:
            if len(columns) > 1:
                raise ValueError(f"only one target can be classes, got {len(columns)}")
            labels = _labels(columns[0])
            classes = _classes(self.target_names[0], labels)
            is_constant = [len(classes) < 2]
            self._set(classes=classes, values=_indices(self.target_names[0], labels, classes))
        if constant := [
            name for name, each in zip(self.target_names, is_constant, strict=True) if each
        ]:
            raise ValueError("; ".join(f"the target {name!r} is constant" for name in constant))

    def _set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)


def check_unique(names: Iterable[object]) -> None:
    """Require that no two columns have the same name."""
    repeated = {name: times for name, times in Counter(names).items() if times > 1}
    if repeated:
        raise InputError(
            "; ".join(f"{times} columns are called {name!r}" for name, times in repeated.items())
            + "; give each a name of its own"
        )


def _holds_classes(target: "pd.Series[Any]") -> bool:
    """Whether a target is one of classes unless it is said to be of numbers."""
    if isinstance(target.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(target):
        return True
    values = target.dropna()
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        return not pd.api.types.is_datetime64_any_dtype(values)
    return all(isinstance(value, bool) for value in values) or set(numbers) == {0, 1}


def _numbers(names: Sequence[str], targets: Any) -> NDArray[np.float64]:
    """Return targets as numbers [N, K]."""
    number = {"kind": "number", "parts": ["value"], "fill": 0.0}
    return Encoder([{"name": name, **number} for name in names])(targets)


def _labels(target: "pd.Series[Any]") -> list[str | bool | int | float]:
    """Return labels [N] as JSON holds them; all text, if they are of several types."""
    if target.isna().any():
        row, count = int(target.isna().argmax()) + 1, int(target.isna().sum())
        raise ValueError(
            f"column {target.name!r}: row {row} has no value"
            + f" ({count} such rows)" * (count > 1)
        )
    labels = [*map(_label, target.tolist())]
    return labels if len({*map(type, labels)}) == 1 else [*map(str, labels)]


def _label(value: Any) -> str | bool | int | float:
    """Return 1 for 1.0, and text for what is neither text nor a number."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return str(value)


def _classes(name: str, labels: Sequence[Any]) -> list[Any]:
    """Return the labels that occur, sorted."""
    counts = Counter(labels)
    if rare := [label for label, count in counts.items() if count < LEAST_ROWS_OF_LEVEL]:
        some = ", ".join(map(repr, rare[:3])) + ", ..." * (len(rare) > 3)
        raise ValueError(
            f"the target {name!r} has classes in fewer than {LEAST_ROWS_OF_LEVEL} rows: {some}"
        )
    return sorted(counts)


def _indices(name: str, labels: Sequence[Any], classes: list[Any]) -> NDArray[np.int64]:
    """Return the indices [N] of labels."""
    index = {label: i for i, label in enumerate(classes)}
    if isinstance(classes[0], str):
        labels = [*map(str, labels)]
    if unknown := [label for label in dict.fromkeys(labels) if label not in index]:
        raise ValueError(f"column {name!r} holds {unknown[0]!r}, which is none of the classes")
    return np.array([index[label] for label in labels], np.int64)
