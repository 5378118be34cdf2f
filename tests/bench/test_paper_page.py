"""The page with the results in the paper's setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import paper
from bench.experiments.experiment import RESULTS


def made_up_run(kind: str, flops: int, error: float, label: str = "") -> dict[str, Any]:
    return {
        "model": f"{kind} {label or flops}",
        "kind": kind,
        "flops": flops,
        "parameters": 10 * flops,
        "rate": 0.1,
        "seed": 0,
        "validation_loss": error,
        "curve": [[10, 2 * error], [20, error]],
        "errors": {"error": error},
        "seconds": 3.0,
        "cpu_seconds": 2.0,
    }


def write_made_up_file(path: Path, runs: list[dict[str, Any]], is_timed: bool = True) -> None:
    circumstances = {"cpu": "a CPU", "threads": 1, "commit": "abc", "date": "today"}
    content = {"title": "Made up", "setting": {}, "circumstances": circumstances, "runs": runs}
    if is_timed:
        content["rows_per_second"] = {run["model"]: 1e6 / run["flops"] for run in runs}
    path.write_text(json.dumps(content))


RUNS = [
    made_up_run("MLP", 100, 1.0),
    made_up_run("MLP", 10_000, 0.01),
    made_up_run("MLP, SiLU", 300, 0.1),
    made_up_run("lmKAN", 200, 0.1),
    made_up_run("lmKAN, ReLU first", 500, 0.05),
    made_up_run("lmKAN, own procedure", 50, 0.2),
]


def test_the_committed_table_and_pictures_are_those_of_the_results(tmp_path: Path) -> None:
    paper.write(RESULTS, tmp_path)
    page = (RESULTS / "paper.md").read_text()
    assert page == (tmp_path / "paper.md").read_text(), "run python -m bench.paper"
    assert {each.name for each in tmp_path.glob("*.svg")} == {
        each.name for each in RESULTS.glob("*-paper-*.svg")
    }


def test_every_result_has_a_row(tmp_path: Path) -> None:
    write_made_up_file(tmp_path / "methane-paper-cpu-cpu.json", RUNS)
    write_made_up_file(tmp_path / "methane_cartesian-paper-cpu-cpu.json", RUNS, is_timed=False)
    rows = paper.table(tmp_path).set_index("result")
    assert len(rows) == len(paper.CLAIMS)
    methane = rows.loc["methane, distances"]
    assert methane["here: FLOPs"] == "4, 5"  # 2000 / 500 and 1000 / 200
    assert methane["here: CPU time"] == "4, 5"
    assert methane["here: GPU time"] == "not run"
    assert methane["strongest rival: FLOPs"].startswith("1.5, ")  # 300 / 200
    assert rows.loc["methane, coordinates", "here: FLOPs"] == "4, 5"
    assert rows.loc["methane, coordinates", "here: CPU time"] == "not measured"
    assert rows.loc["CIFAR-10", "here: FLOPs"] == "not run"


def test_fastkans_are_compared_by_their_parameters(tmp_path: Path) -> None:
    runs = [made_up_run("FastKAN", 100, 0.5), made_up_run("lmKAN", 50, 0.5)]
    write_made_up_file(tmp_path / "cifar10_flat-paper-cpu-cpu.json", runs)
    (cell,) = paper.table(tmp_path)["here: FLOPs"][lambda cells: cells != "not run"]
    assert cell == "2"


@pytest.mark.long
def test_pictures(tmp_path: Path) -> None:
    write_made_up_file(tmp_path / "methane-paper-cpu-cpu.json", RUNS)
    swept = [
        *(made_up_run("lmKAN, grids", 10, 1 / g, f"4-4-1 G={g}") for g in (4, 8)),
        *(made_up_run(f"lmKAN, penalty {w:g}", 10, w, "4-4-1 G=4") for w in (1e-4, 1e-2)),
    ]
    write_made_up_file(tmp_path / "methane_sweep-paper-cpu-cpu.json", swept)
    paper.write(tmp_path, tmp_path)
    page = (tmp_path / "paper.md").read_text()
    for name in ("methane", "methane_sweep"):
        file = f"{name}-paper-cpu-cpu.svg"
        assert f"]({file})" in page
        assert "<svg" in (tmp_path / file).read_text()


@pytest.mark.long
def test_more_steps_are_another_picture(tmp_path: Path) -> None:
    path = tmp_path / "methane-paper-cpu-cpu.json"
    write_made_up_file(path, RUNS)
    (_, before, _), (_, again, _) = (next(paper.pictures(tmp_path)) for _ in range(2))
    assert again == before
    write_made_up_file(path, [*RUNS[1:], RUNS[0] | {"curve": [[10, 1.0], [40, 0.5]]}])
    assert next(paper.pictures(tmp_path))[1] != before
