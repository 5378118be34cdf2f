"""The commands ``python -m lmkan_cupy fit`` and ``predict``."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd

import lmkan_cupy

from ..torch.training import held_back
from .dataset import InputError, read_dataset, read_features
from .files import check_empty, check_file, new_folder, write_text
from .fit import TITLES, FitResult, check_options, fit
from .model import load


def run_fit(
    path: Path | None,
    target: Sequence[str],
    drop: Sequence[str],
    out: Path | None,
    baseline: bool,
    **options: Any,
) -> int:
    """Run ``python -m lmkan_cupy fit``; return its exit code, 130 after Ctrl-C or a signal like it.

    ``path`` is a table, None for the bundled methane sample; ``target`` has the name of one column
    or none. The other options are those of :func:`~.dataset.read_dataset`,
    :func:`~.files.new_folder` and :func:`fit`.
    """
    if path is None:
        path = Path(lmkan_cupy.__file__).with_name("data") / "methane.npz"
    if len(target) > 1:
        raise InputError(f"--target: one column can be the target, got {', '.join(target)}")
    data = read_dataset(path, target[0] if target else None, drop)
    check_options(data, **options)
    names = ", ".join(data.feature_names)
    with held_back("SIGINT", "SIGTERM", "SIGHUP") as interruption:
        with new_folder(out) as folder:
            print(f"{data.target_name} is learned from {names}", flush=True)
            result = fit(data, baseline=baseline, **options)
            _save(result, folder)
        if result.interrupted:
            print("Interrupted: this is the best model so far.")
        print(_report(result.metrics, data.target_name))
        print(f"The model, its metrics and pictures are in {folder}{os.sep}")
        print(f"To apply it: python -m lmkan_cupy predict {quote(str(folder))} DATA")
    return 130 if interruption.came or result.interrupted else 0


def run_predict(model: Path, data: Path, out: Path | None) -> int:
    """Run ``python -m lmkan_cupy predict``, which writes a CSV file of one column; return 0."""
    if out is not None:
        check_file(out)
    fitted = load(model)
    predictions = fitted.predict(read_features(data, fitted.description.feature_names))
    column = pd.DataFrame({fitted.description.target_name: predictions})
    text = column.to_csv(index=False, float_format="%.9g", lineterminator="\n")
    if out is None:
        print(text, end="")
    else:
        # Each of them ends it; but it must not leave half a file behind.
        with held_back("SIGINT", "SIGTERM", "SIGHUP") as interruption, interruption.let_through():
            write_text(out, text)
    return 0


def _save(result: FitResult, folder: Path) -> None:
    """Save to ``folder``, or to one for temporary files if it was filled or went away meanwhile."""
    try:
        check_empty(folder)
        result.save(folder)
    except (InputError, OSError) as error:
        rescued = Path(tempfile.mkdtemp(prefix="lmkan_fit-"))
        result.save(rescued)
        raise InputError(f"{error}; the model is in {rescued}{os.sep}") from error


def _report(metrics: dict[str, Any], target_name: str) -> str:
    """Return a table of the metrics, a column for every network."""
    networks = {title: metrics[name] for name, title in TITLES.items() if name in metrics}
    rows = [
        (f"test RMSE of {target_name}", "rmse", ".4g"),
        (f"test MAE of {target_name}", "mae", ".4g"),
        ("parameters", "parameters", ",d"),
        ("inference FLOPs per row", "flops", ",d"),
        ("rows per second", "rows_per_second", ",.0f"),
    ]
    width = max(len(title) for title, *_ in rows)
    lines = [" " * width + "".join(f"{title:>14}" for title in networks)]
    for title, key, form in rows:
        values = "".join(f"{network[key]:>14{form}}" for network in networks.values())
        lines.append(f"{title:<{width}}{values}")
    count = metrics["rows"]
    lines.append(
        f"{count['train']:,} rows to train, {count['test']:,} to test; {metrics['seconds']:.0f} s"
    )
    return "\n".join(lines)
