"""The commands ``python -m lmkan_cupy fit`` and ``predict``."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmkan_cupy

from .dataset import InputError, read_dataset, read_features
from .fit import TITLES, fit
from .model import load


def run_fit(path: Path | None, target: str | None, out: Path | None, **options: Any) -> int:
    """Run ``python -m lmkan_cupy fit``; return its exit code, 130 after Ctrl-C.

    ``path`` is a table, None for the bundled methane sample; ``options`` are those of :func:`fit`.
    """
    if path is None:
        path = Path(lmkan_cupy.__file__).with_name("data") / "methane.npz"
    data = read_dataset(path, target)
    out = _free_folder() if out is None else out
    with _new_folder(out) as folder:
        result = fit(data, **options)
        result.save(folder)
    if result.interrupted:
        print("Interrupted: this is the best model so far.")
    print(_report(result.metrics, data.target_name))
    print(f"The model, its metrics and pictures are in {out}{os.sep}")
    return 130 if result.interrupted else 0


def run_predict(model: Path, data: Path, out: Path | None) -> int:
    """Run ``python -m lmkan_cupy predict``, which writes a CSV file of one column; return 0."""
    fitted = load(model)
    predictions = fitted.predict(read_features(data, fitted.description.feature_names))
    text = "\n".join([fitted.description.target_name, *(f"{each:.9g}" for each in predictions)])
    if out is None:
        print(text)
    else:
        part = _part(out)
        part.write_text(text + "\n")
        part.replace(out)
    return 0


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


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill; at the end it becomes ``out``, after an exception it is removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    part = _part(out)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(out: Path) -> Path:
    """Return the path where ``out`` is written until it is complete."""
    return out.with_name(f"{out.name}.part{os.getpid()}")


def _free_folder() -> Path:
    """Return the first of ``lmkan_fit``, ``lmkan_fit-2``, ... that does not exist."""
    numbers = itertools.count(2)
    out = Path("lmkan_fit")
    while out.exists():
        out = Path(f"lmkan_fit-{next(numbers)}")
    return out
