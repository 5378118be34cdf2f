"""The commands ``python -m lmkan_cupy fit`` and ``predict``."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

import lmkan_cupy

from ..torch.training import held_back
from .dataset import Dataset, InputError, Task, check_unique
from .files import check_empty, check_file, new_folder, write_bytes
from .fit import TITLES, FitResult, check_options, fit
from .model import FittedModel, load
from .reading import SEPARATORS, STANDARD_STREAM, read_dataset, read_table

#: What the metrics hold about the errors of a network -> what the report calls it.
_ERRORS = {
    "r2": "R2",
    "rmse": "RMSE",
    "mae": "MAE",
    "accuracy": "accuracy",
    "log_loss": "log loss",
}


def run_fit(
    path: Path | None,
    target: Sequence[str],
    drop: Sequence[str],
    id: Sequence[str],
    task: Task | None,
    sep: str | None,
    decimal: str | None,
    validation: Path | None,
    out: Path | None,
    baseline: bool,
    **options: Any,
) -> int:
    """Run ``python -m lmkan_cupy fit``; return its exit code, 130 after Ctrl-C or a signal like it.

    ``path`` is a table, None for the bundled methane sample, and ``validation`` one of rows for
    validation. The columns of ``id`` are dropped, too. The other options are those of
    :func:`~.reading.read_dataset`, :func:`~.files.new_folder` and :func:`fit`.
    """
    if path is None:
        path = Path(lmkan_cupy.__file__).with_name("data") / "methane.npz"
    data = read_dataset(path, target, [*drop, *id], task=task, sep=sep, decimal=decimal)
    check_options(data, **options)
    rows = None
    if validation is not None:
        names, levels = _names(data.encoder.columns)
        names += data.target_names
        rows = read_table(validation, names, text=levels, sep=sep, decimal=decimal)
        try:
            data.prepared(rows)
        except InputError as error:
            raise InputError(f"{validation}: {error}") from error
    with held_back("SIGINT", "SIGTERM", "SIGHUP") as interruption:
        with new_folder(out) as folder:
            print(_introduction(data), flush=True)
            result = fit(data, baseline=baseline, validation=rows, **options)
            _save(result, folder)
        if result.interrupted:
            print("Interrupted: this is the best model so far.")
        print(_report(result.metrics, data.target_names))
        print(f"The model, its metrics and pictures are in {folder}{os.sep}")
        print(f"To apply it: python -m lmkan_cupy predict {quote(str(folder))} DATA")
    return 130 if interruption.came or result.interrupted else 0


def run_predict(
    model: Path,
    data: Path,
    id: Sequence[str],
    sep: str | None,
    decimal: str | None,
    out: Path | None,
) -> int:
    """Run ``python -m lmkan_cupy predict``, which writes a CSV or Parquet file; return 0.

    Its columns are those of ``id``, then one for each target, named as the target; after labels
    "probability of" each of them.
    """
    kind = ".csv"
    if out is not None and out != STANDARD_STREAM:
        check_file(out)
        kind = out.suffix.lower() or kind
        if kind not in {*SEPARATORS, ".parquet"}:
            raise InputError(f"{out}: the file name must end in .csv, .tsv or .parquet")
    fitted = load(model)
    needed, levels = _names(fitted.description.columns)
    table = read_table(data, [*needed, *id], text=[*levels, *id], sep=sep, decimal=decimal)
    try:
        if missing := [name for name in (*needed, *id) if name not in table]:
            raise InputError("; ".join(f"there is no column {name!r}" for name in missing))
        check_unique(table)
        answer = pd.concat([table[[*id]], _predicted(fitted, table)], axis=1)
        check_unique(answer)
        _warn_of_unseen(fitted, table)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    content = _file_content(answer, kind)
    if out is None or out == STANDARD_STREAM:
        print(content.decode(), end="")
    else:
        # Each of them ends it; but it must not leave half a file behind.
        with held_back("SIGINT", "SIGTERM", "SIGHUP") as interruption, interruption.let_through():
            write_bytes(out, content)
    return 0


def _file_content(table: pd.DataFrame, kind: str) -> bytes:
    """Return a table as a file of a kind: ".csv", ".tsv" or ".parquet"."""
    if kind == ".parquet":
        return table.to_parquet(engine="pyarrow", index=False)
    separator = SEPARATORS[kind][0]
    text = table.to_csv(sep=separator, index=False, float_format="%.9g", lineterminator="\n")
    return text.encode()


def _names(columns: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the names of all columns of an encoder, and of those that are categories."""
    return (
        [column["name"] for column in columns],
        [column["name"] for column in columns if "levels" in column],
    )


def _warn_of_unseen(fitted: FittedModel, table: pd.DataFrame) -> None:
    """Tell on standard error in how many rows columns hold what the fitted table did not."""
    counts = {
        name: np.count_nonzero(is_unseen)
        for name, is_unseen in fitted.description.encoder.unseen(table).items()
    }
    if found := [f"{name!r} in {count:,}" for name, count in counts.items() if count]:
        print(
            f"warning: of {len(table):,} rows some are beyond the table that the model was fitted "
            f"to: {', '.join(found)}",
            file=sys.stderr,
        )


def _predicted(fitted: FittedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Return a column for every target, then one for the probability of every class."""
    description = fitted.description
    if description.classes is None:
        return pd.DataFrame(fitted.predict(table), table.index, description.target_names)
    probabilities = fitted.predict_proba(table)
    names = [f"probability of {label}" for label in description.classes]
    answers = pd.DataFrame(probabilities, table.index, names)
    labels = np.array(description.classes)[probabilities.argmax(axis=1)]
    answers.insert(0, description.target_names[0], labels)
    return answers


def _introduction(data: Dataset) -> str:
    """Return what is learned from what, and what became of every column."""
    targets = ", ".join(data.target_names)
    verb = "is" if len(data.target_names) == 1 else "are"
    names = ", ".join(column["name"] for column in data.encoder.columns)
    lines = [f"{targets} {verb} learned from {names}"]
    if data.classes is not None:
        some = ", ".join(map(str, data.classes[:5])) + ", ..." * (len(data.classes) > 5)
        hint = "" if isinstance(data.classes[0], str) else " (--task regression learns numbers)"
        lines.append(f"{targets} holds {len(data.classes)} classes: {some}{hint}")
    width = max(map(len, data.fates))
    return "\n".join([*lines, *(f"  {name:<{width}}  {fate}" for name, fate in data.fates.items())])


def _save(result: FitResult, folder: Path) -> None:
    """Save to ``folder``, or to one for temporary files if it was filled or went away meanwhile."""
    try:
        check_empty(folder)
        result.save(folder)
    except (InputError, OSError) as error:
        rescued = Path(tempfile.mkdtemp(prefix="lmkan_fit-"))
        result.save(rescued)
        raise InputError(f"{error}; the model is in {rescued}{os.sep}") from error


def _report(metrics: dict[str, Any], target_names: Sequence[str]) -> str:
    """Return a table of the metrics, a column for every network."""
    networks = {title: metrics[name] for name, title in TITLES.items() if name in metrics}
    rows: list[tuple[str, list[Any], str]] = []
    for key, error in _ERRORS.items():
        found = [network[key] for network in networks.values() if key in network]
        for name in target_names if found else ():
            values = [each[name] if isinstance(each, dict) else each for each in found]
            rows.append((f"test {error} of {name}", values, ".4g"))
    for key, title, form in (
        ("parameters", "parameters", ",d"),
        ("flops", "inference FLOPs per row", ",d"),
        ("rows_per_second", "rows per second", ",.0f"),
    ):
        rows.append((title, [network[key] for network in networks.values()], form))
    width = max(len(title) for title, *_ in rows)
    lines = [" " * width + "".join(f"{title:>14}" for title in networks)]
    for title, values, form in rows:
        lines.append(f"{title:<{width}}" + "".join(f"{value:>14{form}}" for value in values))
    count = metrics["rows"]
    lines.append(
        f"{count['train']:,} rows to train, {count['test']:,} to test; {metrics['seconds']:.0f} s"
    )
    return "\n".join(lines)
