"""Estimators on real tables: the smallest scale, resuming, what a user is told, and the scores."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import smoke_runs

from bench.experiments import table_data, tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of the smallest scale; tests change copies of them."""
    return run(tmp_path_factory.mktemp("finished") / "tables.json")


def run(path: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tables", "--out", str(path)])
        tables.main()
    results: dict[str, Any] = json.loads(path.read_text())
    return results


@pytest.mark.long
def test_all_estimators_are_fitted_to_all_tables(finished: dict[str, Any]) -> None:
    fits = [(fit["table"], fit["model"]) for fit in finished["fits"]]
    models = ["lmKAN", "MLP", "linear", "HistGradientBoosting"]
    assert fits == [(table, model) for table in ("diabetes", "breast_cancer") for model in models]
    for fit in finished["fits"]:
        scores = {"diabetes": ["R2"], "breast_cancer": ["accuracy", "log loss"]}[fit["table"]]
        assert [*fit["scores"]] == scores


def test_it_resumes_where_it_stopped(
    finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tables.json"
    linear = tables.CONTENDERS["linear"]

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    path.write_text(json.dumps(finished | {"fits": finished["fits"][:6]}))
    with monkeypatch.context() as patch:
        patch.setitem(tables.CONTENDERS, "linear", replace(linear, make=interrupted))
        with pytest.raises(SystemExit, match="after 6 of 8 runs"):
            run(path)
    assert smoke_runs.untimed(run(path), "fits") == smoke_runs.untimed(finished, "fits")


def test_results_of_another_setting_are_refused(finished: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    path.write_text(json.dumps(finished | {"setting": {"test": 0.5}}))
    with pytest.raises(ValueError, match="holds results of the setting"):
        run(path)


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tables", "--scale", "cpu"])
    monkeypatch.setattr(tables, "find_spec", lambda name: None if "boost" in name else name)
    with pytest.raises(SystemExit):
        tables.main()
    assert "needs catboost, xgboost: pip install -r bench/requirements.txt" in (
        capsys.readouterr().err
    )


def test_ranks_are_those_of_mean_scores() -> None:
    """Seeds with which an estimator is missing count for none."""
    scores = {"a": [(0.1, 0.5), (0.3, 0.4), (9.0, None)], "b": [(0.8, 0.6)]}
    fits = [
        {"table": table, "model": model, "seed": seed, "scores": {"R2": score}}
        for table, seeds in scores.items()
        for seed, both in enumerate(seeds)
        for model, score in zip(("lmKAN", "MLP"), both, strict=True)
        if score is not None
    ]
    about = {name: {"classes": None, "kept_out": name == "b"} for name in scores}
    timed = [fit | {"seconds": 1.0, "rows_per_second": 1e6} for fit in fits]
    table = tables.comparison({"fits": timed, "tables": about})
    assert [*table.columns] == ["lmKAN", "MLP"]
    assert table.loc["a (R2)"].tolist() == ["0.200", "0.450"]
    assert table.loc["mean rank"].tolist() == ["1.50", "1.50"]
    assert table.loc["mean rank, tables kept out"].tolist() == ["1.00", "2.00"]


def test_text_and_gaps_reach_estimators_as_categories_and_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = pd.DataFrame(
        {"x": [1.0, np.nan, 3.0], "word": ["a", None, "b"], "y": ["no", "yes", None]}
    )
    monkeypatch.setitem(table_data._READERS, "made up", lambda _: frame)
    features, target = table_data.Table("made up", "", "y", of_classes=True).read()
    assert target.tolist() == [0, 1]
    assert features["word"].tolist() == ["a", "missing"]
    assert features["word"].dtype == "category"
    assert features["x"].isna().tolist() == [False, True]
