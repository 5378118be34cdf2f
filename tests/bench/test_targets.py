"""The targets of `bench.gpu`, and their table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import readme
from bench.gpu import targets
from bench.harness.results_file import OURS


def results_with(authors: float, backward_ms: float) -> dict[str, Any]:
    """Return one large case, whose authors' forward takes so many times our 10 ms."""
    ours = {"forward": {"ms": 10.0}, "backward": {"ms": backward_ms}}
    of_authors = {"forward": {"median": authors}, "backward": {"median": 3.0}}
    case = {**targets.LARGE, "num_grids": 16, "layers": {OURS: ours, "authors": of_authors}}
    return {"cases": [case | {"limits": {OURS: {"share of the shared-memory limit": 0.81}}}]}


def met(results: dict[str, Any]) -> dict[str, bool | None]:
    return {each.what: each.met for each in targets.check(results)}


def test_at_least_and_at_most() -> None:
    good, bad = met(results_with(1.1, 18.0)), met(results_with(1.09, 18.1))
    for what in "forward, G = 16: the authors' time", "backward, G = 16: our forward's time":
        assert (good[what], bad[what]) == (True, False)
    assert good["backward, G = 16: the authors' time"]
    assert good["forward, G = 16: shared memory's limit"]


def test_a_target_that_was_not_measured_is_neither_met_nor_missed() -> None:
    checked = met({"cases": []})
    assert len(checked) == 22
    assert set(checked.values()) == {None}


def test_the_table_of_targets() -> None:
    checked = targets.check(results_with(1.1, 18.1))
    table = readme.target_table({"targets": [asdict(each) for each in checked]})
    assert ["forward, G = 16: the authors' time", ">= 1.1", "1.10", "yes"] in table
    assert ["backward, G = 16: our forward's time", "<= 1.8", "1.81", "NO"] in table
    assert ["forward, G = 8: the authors' time", ">= 1.5", "not measured", "?"] in table
