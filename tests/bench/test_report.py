"""The page with the results of all experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import report


@pytest.mark.long
def test_the_committed_page_shows_the_committed_results() -> None:
    page = report.render("report.md", report.read_all(report.RESULTS))
    assert page == (report.RESULTS / "report.md").read_text(), "run python -m bench.report"


def made_up_results(errors: dict[str, list[tuple[int, Any]]]) -> report.Results:
    """Return results with these (FLOPs, error) by kind; several errors are of several seeds."""
    runs = pd.DataFrame(
        {"model": f"{kind} {flops}", "kind": kind, "seed": seed, "FLOPs": flops, "error": error}
        for kind, points in errors.items()
        for flops, of_seeds in points
        for seed, error in enumerate(np.atleast_1d(of_seeds).tolist())
    )
    runs = runs.assign(
        **{"learning rate": 0.1}, parameters=1, validation=1.0, seconds=np.nan, chosen=True
    )
    return report.Results("made-up", "Made up", {}, {}, runs, ["error"])


def test_the_front_leaves_out_beaten_networks() -> None:
    cost = np.array([1.0, 2.0, 3.0, 3.0, 4.0])
    error = np.array([0.5, 0.6, 0.2, 0.3, 0.2])
    assert report.pareto_front(cost, error).tolist() == [0, 2]


def test_cost_is_interpolated_in_logarithms() -> None:
    costs, errors = np.array([1.0, 100.0]), np.array([1.0, 0.01])
    assert report.cost_at(0.1, costs, errors) == pytest.approx(10.0)
    assert report.cost_at(0.01, costs, errors) == pytest.approx(100.0)
    assert report.cost_at(0.009, costs, errors) == np.inf
    assert report.cost_at(1.1, costs, errors) == pytest.approx(1.0)
    assert report.error_at(10.0, costs, errors) == pytest.approx(0.1)
    assert report.error_at(101.0, costs, errors) == pytest.approx(0.01)
    assert np.isnan(report.error_at(0.9, costs, errors))


def test_fronts_go_through_medians_over_seeds() -> None:
    """One lucky seed puts no network on a front, and one unlucky seed removes none."""
    mlps = [(100, [0.3, 0.2, 0.01]), (400, [0.1, 0.1, 0.2])]
    lmkans = [(50, [0.2, 0.01, 0.2]), (60, [0.3, 0.3, 0.005]), (80, [0.09, 0.08, 0.2])]
    results = made_up_results({"MLP": mlps, "lmKAN": lmkans})
    rows = report.matched(results, "MLP", "FLOPs")
    assert rows["model"].tolist() == ["lmKAN 50"] * 3 + ["lmKAN 80"] * 3
    assert rows["ratio"].tolist() == pytest.approx([2, np.inf, 2, np.inf, np.inf, 100 / 80])
    table = report.ratio_table(results, "MLP", "FLOPs")
    assert table["MLP needs"].tolist() == ["2.00 times", "never reached"]
    assert table["from - to"].tolist() == [
        "2.00 times - never reached",
        "1.25 times - never reached",
    ]
    assert table["MLP at equal cost"].tolist() == ["", ""]


def test_ratios_at_matched_error() -> None:
    results = made_up_results(
        {"MLP": [(10, 1.0), (1000, 0.01)], "lmKAN": [(20, 0.1), (200, 0.05), (400, 0.001)]}
    )
    ratios = report.matched(results, "MLP", "FLOPs").set_index("model")
    assert ratios.loc["lmKAN 20", "ratio"] == pytest.approx(100 / 20)
    assert ratios.loc["lmKAN 200", "ratio"] == pytest.approx(200 / 200)
    assert ratios.loc["lmKAN 400", "ratio"] == np.inf
    assert ratios["theirs"].tolist() == pytest.approx([10 / 20, 10 / 200, 10 / 400])
    sentence = report.conclusion(results, "MLP", "FLOPs")
    assert "1.00 to 5.00 times" in sentence
    assert "no MLP trained here is as accurate as lmKAN 400" in sentence
    assert "lose" not in sentence


def test_the_summary_counts_networks_without_a_ratio() -> None:
    mlps = [(10, 1.0), (1000, 0.01)]
    lmkans = [(5, 3.0), (12, 2.0), (20, 0.1), (200, 0.05), (400, 0.001)]
    results = [made_up_results({"MLP": mlps, "lmKAN": each}) for each in (lmkans, lmkans[4:])]
    (column,) = (each for each in report.summary(results) if "FLOPs" in each)
    cells = report.summary(results)[column].tolist()
    assert cells == ["0.83, 1, 5; 1 not reached; 1 cheaper", "1 not reached"]


@pytest.mark.parametrize("error", [0.1, 2.0], ids=["on the front", "above the front"])
def test_the_page_says_where_lmkans_lose(error: float) -> None:
    results = made_up_results({"MLP": [(10, 1.0), (1000, 0.01)], "lmKAN": [(400, error)]})
    assert "lmKANs lose for lmKAN 400" in report.conclusion(results, "MLP", "FLOPs")


def test_a_cheaper_and_less_accurate_network_loses_nothing() -> None:
    mlps = [(10, 1.0), (100, 3.0), (1000, 0.01)]  # one is on no front
    results = made_up_results({"MLP": mlps, "lmKAN": [(5, 2.0)]})
    assert "none as cheap" in report.conclusion(results, "MLP", "FLOPs")


def made_up_run(
    model: str, lr: float, seed: int, validation: float, error: float
) -> dict[str, Any]:
    losses = {"validation_loss": validation, "errors": {"error": error}}
    sizes = {"model": model, "kind": model.split()[0], "flops": 1, "parameters": 1}
    return {**sizes, "rate": lr, "seed": seed, **losses}


def write_made_up_file(path: Path, runs: list[dict[str, Any]], **more: Any) -> None:
    circumstances = {"cpu": "a CPU", "threads": 1, "commit": "abc", "date": "today"}
    content = {"title": "Made up", "setting": {}, "circumstances": circumstances, "runs": runs}
    path.write_text(json.dumps(content | more))


def test_the_chosen_learning_rate_has_the_lowest_validation_loss(tmp_path: Path) -> None:
    tried = [(0.1, 0, 2.0, 0.1), (0.2, 0, 1.0, 0.3), (0.2, 1, 9.0, 0.5)]
    write_made_up_file(tmp_path / "made-up.json", [made_up_run("MLP A", *each) for each in tried])
    results = report.read_results(tmp_path / "made-up.json")
    assert results.chosen["error"].tolist() == [0.3, 0.5]
    assert results.costs == ["FLOPs"]  # nothing has been timed
    table = report.models_table(results)
    assert table["error"].tolist() == ["0.4 (0.3 - 0.5)"]
    assert table["learning rate"].tolist() == ["0.2 (highest tried)"]  # a better one may lie beyond


def test_both_pages_have_every_network(tmp_path: Path) -> None:
    labels = ["lmKAN 8-1", "MLP 8-1", "FastKAN 8-1", "lmKAN, no branch 8-1"]
    runs = [made_up_run(label, 0.1, seed, 1.0, 0.5) for label in labels for seed in range(3)]
    runs = [run | {"kind": run["model"].removesuffix(" 8-1")} for run in runs]
    speed = {"rows_per_second": dict.fromkeys(labels, 100.0)}
    write_made_up_file(tmp_path / "made-up.json", runs, **speed)
    (tmp_path / "other.json").write_text('{"cases": []}')  # of another benchmark
    report.write_report(tmp_path, tmp_path)
    page, tables = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("data:image/png;base64,") == 2  # against FLOPs and time
    for label in labels:
        assert label in page
        assert f"| {label}" in tables


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no experiment has written its results here"):
        report.write_report(tmp_path, tmp_path)
