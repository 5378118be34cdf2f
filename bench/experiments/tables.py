"""``python -m bench.experiments.tables``: lmKANs beside what people use, on real tables.

Every estimator has its default settings, and one thread. A fifth of a table's rows is kept for the
test, another fifth for every seed. The estimators are compared by their ranks: on each table, by
the mean over seeds of the R2, or of the accuracy for classes.

Gradient boosting gets the tables as they are, all others numbers, encoded as ``fit`` does it;
scikit-learn's MLP and the linear models also get them standardised.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
from lmkan_cupy.adapters.sklearn import LMKANClassifier, LMKANRegressor
from lmkan_cupy.adapters.torch.training import progress_bar
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import lmkan_cupy
from lmkan_cupy.encoding import fit_encoder

from ..harness.results_file import RESULTS, circumstances, of_same_setting, write
from .experiment import told_how_to_resume
from .table_data import TABLES

#: The share of the rows to test on.
_TEST = 0.2

#: Predictions that are timed; the fastest counts.
_PREDICTIONS = 5


def _lmkan(of_classes: bool, seed: int, _: list[str]) -> Any:
    return (LMKANClassifier if of_classes else LMKANRegressor)(random_state=seed)


def _hist_gradient_boosting(of_classes: bool, seed: int, _: list[str]) -> Any:
    kind = HistGradientBoostingClassifier if of_classes else HistGradientBoostingRegressor
    return kind(random_state=seed)


def _xgboost(of_classes: bool, seed: int, _: list[str]) -> Any:
    import xgboost

    kind = xgboost.XGBClassifier if of_classes else xgboost.XGBRegressor
    return kind(random_state=seed, n_jobs=1, enable_categorical=True)


def _lightgbm(of_classes: bool, seed: int, _: list[str]) -> Any:
    import lightgbm

    kind = lightgbm.LGBMClassifier if of_classes else lightgbm.LGBMRegressor
    return kind(random_state=seed, n_jobs=1, verbose=-1)


def _catboost(of_classes: bool, seed: int, categories: list[str]) -> Any:
    import catboost

    kind = catboost.CatBoostClassifier if of_classes else catboost.CatBoostRegressor
    return kind(
        random_seed=seed,
        thread_count=1,
        cat_features=categories,
        verbose=False,
        allow_writing_files=False,
    )


def _mlp(of_classes: bool, seed: int, _: list[str]) -> Any:
    return _standardised(
        MLPClassifier(random_state=seed) if of_classes else MLPRegressor(random_state=seed)
    )


def _linear(of_classes: bool, seed: int, _: list[str]) -> Any:
    return _standardised(LogisticRegression() if of_classes else Ridge())


def _standardised(estimator: Any) -> Any:
    """Return an estimator whose features are standardised before, and whose targets if numbers."""
    pipeline = make_pipeline(StandardScaler(), estimator)
    if isinstance(estimator, MLPClassifier | LogisticRegression):
        return pipeline
    return TransformedTargetRegressor(pipeline, transformer=StandardScaler())


@dataclass(frozen=True)
class Contender:
    """An estimator to compare.

    Attributes
    ----------
    make : callable
        ``make(of_classes, seed, names of the columns of categories)``
    package : str
        That has it.
    takes_frames : bool
        Whether it takes frames with categories and gaps, or else numbers alone.
    """

    make: Callable[[bool, int, list[str]], Any]
    package: str
    takes_frames: bool = False


OURS = "lmKAN"

CONTENDERS = {
    OURS: Contender(_lmkan, "torch"),
    "MLP": Contender(_mlp, "scikit-learn"),
    "linear": Contender(_linear, "scikit-learn"),
    "HistGradientBoosting": Contender(_hist_gradient_boosting, "scikit-learn", True),
    "XGBoost": Contender(_xgboost, "xgboost", True),
    "LightGBM": Contender(_lightgbm, "lightgbm", True),
    "CatBoost": Contender(_catboost, "catboost", True),
}


@dataclass(frozen=True)
class Scale:
    """What is compared: tables, estimators, seeds, and at most so many rows of a table."""

    tables: Sequence[str]
    contenders: Sequence[str]
    seeds: int
    rows: int | None = None


SCALES = {
    "smoke": Scale(
        ("diabetes", "breast_cancer"),
        [name for name, each in CONTENDERS.items() if each.package in ("torch", "scikit-learn")],
        seeds=1,
        rows=60,
    ),
    "cpu": Scale([*TABLES], [*CONTENDERS], seeds=5),
}


def compare(scale: Scale, path: Path) -> None:
    """Do the fits that the file at ``path`` lacks, and write it after each of them.

    Raises
    ------
    ValueError
        If the file holds results of another setting.
    SystemExit
        After Ctrl-C.
    """
    setting = {"test": _TEST, "rows": scale.rows}
    results = of_same_setting(path, {"title": "Real tables", "setting": setting, "fits": []})
    here, fits = circumstances(), results["fits"]
    here["versions"] |= {each: version(each) for each in sorted(_packages(scale))}
    results.setdefault("circumstances", here)
    results["tables"] = {name: _described(name, scale) for name in scale.tables}
    done = {(fit["table"], fit["model"], fit["seed"]) for fit in fits}
    planned = [
        (table, model, seed)
        for seed in range(scale.seeds)  # first all tables and estimators once
        for table in scale.tables
        for model in scale.contenders
    ]
    numba.set_num_threads(1)
    lmkan_cupy.warmup(2, 2, 3)  # compiles what serves every size
    with (
        told_how_to_resume(fits, len(planned)),
        threadpool_limits(1),
        progress_bar(total=len(planned), initial=len(done), unit="fit", desc=path.stem) as bar,
    ):
        for key in planned:
            if key not in done:
                bar.set_postfix_str("{}, {}, seed {}".format(*key), refresh=False)
                fits.append({**_fitted(*key, scale.rows), "commit": here["commit"]})
                bar.update()
                write(path, results)
    print(comparison(results).to_markdown(disable_numparse=True))
    print(f"{path} has all {len(fits)} fits")


def _packages(scale: Scale) -> set[str]:
    """Return the packages of tables and estimators."""
    return {TABLES[name].package for name in scale.tables} | {
        CONTENDERS[name].package for name in scale.contenders
    }


@cache
def _read(name: str, rows: int | None) -> tuple[pd.DataFrame, "pd.Series[float]"]:
    features, target = TABLES[name].read()
    if rows is not None:
        some = np.random.default_rng(0).permutation(len(target))[:rows]
        features, target = features.iloc[some], target.iloc[some]
    return features, target


def _described(name: str, scale: Scale) -> dict[str, Any]:
    table = TABLES[name]
    features, target = _read(name, scale.rows)
    return {
        "package": table.package,
        "rows": len(target),
        "columns": features.shape[1],
        "target": table.target,
        "classes": target.nunique() if table.of_classes else None,
        "kept_out": table.kept_out,
    }


def _fitted(table: str, model: str, seed: int, rows: int | None) -> dict[str, Any]:
    """Fit an estimator to a table; return its scores on the rows for the test, and its times."""
    of_classes, contender = TABLES[table].of_classes, CONTENDERS[model]
    X, y = _read(table, rows)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=_TEST, random_state=seed, stratify=y if of_classes else None
    )
    if not contender.takes_frames:
        encoder, _ = fit_encoder(X_train)
        X_train, X_test = encoder(X_train), encoder(X_test)
    categories = X.select_dtypes("category").columns.tolist()
    estimator = contender.make(of_classes, seed, categories)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # default settings are compared
        seconds, _ = _cpu_seconds(estimator.fit, X_train, y_train.to_numpy())
    timed = [_cpu_seconds(estimator.predict, X_test) for _ in range(_PREDICTIONS)]
    predicting, predictions = min(timed, key=lambda each: each[0])
    if of_classes:
        scores = {
            "accuracy": accuracy_score(y_test, np.ravel(predictions)),
            "log loss": log_loss(y_test, estimator.predict_proba(X_test)),
        }
    else:
        scores = {"R2": r2_score(y_test, predictions)}
    return {
        "table": table,
        "model": model,
        "seed": seed,
        "scores": scores,
        "seconds": round(seconds, 3),
        "rows_per_second": len(y_test) / predicting,
    }


def comparison(results: Mapping[str, Any]) -> pd.DataFrame:
    """Return the mean scores of every estimator on every table, and below them summaries.

    Only seeds count with which all estimators were fitted to a table.
    """
    tables, fits = results["tables"], pd.DataFrame(results["fits"])
    fits["score"] = [next(iter(scores.values())) for scores in fits["scores"]]
    fits["log loss"] = [scores.get("log loss") for scores in fits["scores"]]
    fits["row"] = 1e6 / fits["rows_per_second"]

    def means(column: str) -> pd.DataFrame:
        by_model = fits.pivot(index=["table", "seed"], columns="model", values=column).dropna()
        of_tables = by_model[list(dict.fromkeys(fits["model"]))].groupby("table").mean()
        return of_tables.reindex([name for name in tables if name in of_tables.index])

    scores = means("score")
    ranks = scores.rank(axis="columns", ascending=False)
    kept_out = [name for name in scores.index if tables[name]["kept_out"]]
    summaries = {
        "mean rank": ranks.mean(),
        "mean rank by log loss": means("log loss").rank(axis="columns").mean(),
        "mean rank, tables kept out": ranks.loc[kept_out].mean(),
        "seconds to train, median": means("seconds").median(),
        "microseconds for a row, median": means("row").median(),
    }
    titles = [
        f"{name}{', kept out' * table['kept_out']} ({'accuracy' if table['classes'] else 'R2'})"
        for name, table in ((name, tables[name]) for name in scores.index)
    ]
    rounded = [
        scores.set_axis(titles).map("{:.3f}".format),
        pd.DataFrame(summaries).T.map("{:.2f}".format),
    ]
    return pd.concat(rounded).rename_axis(None, axis="columns")


def _cpu_seconds(call: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Return the seconds of a processor that a call took, and its result.

    With one thread they are the time on an idle machine, also where other programs run.
    """
    start = time.process_time()
    result = call(*arguments)
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=SCALES, default="smoke", help="default: smoke")
    parser.add_argument("--out", type=Path, help="the file to write, and to resume from")
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    if missing := sorted(each for each in _packages(scale) if not _is_installed(each)):
        parser.error(
            f"--scale {arguments.scale} needs {', '.join(missing)}: "
            "pip install -r bench/requirements.txt"
        )
    compare(scale, arguments.out or RESULTS / f"tables-{arguments.scale}-cpu.json")


def _is_installed(package: str) -> bool:
    return find_spec({"scikit-learn": "sklearn"}.get(package, package)) is not None


if __name__ == "__main__":
    main()
