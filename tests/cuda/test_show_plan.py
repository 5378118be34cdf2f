"""`python -m lmkan_cupy info --plan`: how a forward would be computed."""

from __future__ import annotations

from typing import Any

import pytest

from lmkan_cupy.__main__ import main
from lmkan_cupy.cuda_engine import show_plan


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Rows that `info --plan` prints where there is no GPU."""
    monkeypatch.setattr(show_plan, "cuda_obstacle", lambda: "no GPU")

    def rows(*sizes: int, dtype: str = "float32", dimension: int = 2) -> dict[str, str]:
        arguments = ["info", "--dtype", dtype, "--dimension", str(dimension)]
        arguments += ["--plan", *map(str, sizes)]
        monkeypatch.setattr("sys.argv", ["lmkan_cupy", *arguments])
        assert main() == 0
        lines = capsys.readouterr().out.splitlines()
        return {line[:14].strip(): line[15:] for line in lines}

    return rows


def test_plan_of_a_large_batch(plan: Any) -> None:
    rows = plan(512, 512, 40, 2**20)
    assert rows["device"] == "sm_90, 132 multiprocessors (an H100, as there is no usable GPU here)"
    assert rows["kernel"] == "forward_ring, 2112 blocks of 512"
    assert rows["tables"] == "packed, 16 outputs wide, 2 in shared memory (215 KB)"
    assert rows["samples"] == "2048 per block, at most 135168 per launch"
    assert rows["pairs"] == "256 per block"
    assert rows["predicted"].endswith(" ms, limited by shared memory")
    limits = dict(each.rsplit(" ", 1) for each in rows["limits, ms"].split(", "))
    assert set(limits) == {"shared memory", "L2", "memory"}
    seconds = float(limits["shared memory"]) + float(rows["besides, ms"].split()[0])
    assert float(rows["predicted"].split()[0]) == pytest.approx(seconds, rel=1e-3)
    assert "not a measurement" in rows["note"]


def test_plan_of_a_small_batch(plan: Any) -> None:
    assert plan(512, 512, 16, 1024)["pairs"] == "32 per block, 8 parts"
    assert plan(128, 128, 26, 1024)["tables"] == "in global memory"


def test_plan_of_functions_of_one_variable(plan: Any) -> None:
    why = "tiles in shared memory are for functions of two variables"
    assert plan(512, 512, 200, 2**17, dimension=1)["tables"] == f"in global memory: {why}"
    why = "one kernel takes functions of two variables only"
    assert plan(12, 16, 1, 8, 100, dimension=1)["kernel"] == f"one for each layer: {why}"


@pytest.mark.parametrize(
    ("dtype", "kernel", "bound"),
    [
        ("float32", "forward_ring", "shared memory"),
        ("float16", "forward_ring", "issue"),
        ("bfloat16", "forward_ring", "issue"),
        ("float64", "forward", "memory"),
    ],
)
def test_plan_of_tables_of_other_dtypes(plan: Any, dtype: str, kernel: str, bound: str) -> None:
    rows = plan(512, 512, 16, 2**17, dtype=dtype)
    assert rows["kernel"].startswith(f"{kernel}, ")
    assert rows["predicted"].endswith(f"limited by {bound}")


def test_plan_of_no_samples(plan: Any) -> None:
    rows = plan(512, 512, 16, 0)
    assert rows["kernel"] == "none: there is nothing to do for 0 samples"
    assert set(rows) == {"device", "kernel"}


def test_plan_of_a_network(plan: Any) -> None:
    rows = plan(10, 16, 16, 1, 8, 2**22)
    assert rows["kernel"] == "network, 132 blocks of 256"
    assert rows["tables"] == "all in shared memory (75 KB)"
    assert rows["predicted"].endswith(" ms, limited by shared memory")
    assert float(rows["by layers"].split()[0]) > float(rows["predicted"].split()[0])
    assert "not a measurement" in rows["note"]
    how, _, times = rows["with gradient"].partition(": ")
    assert how == "132 blocks of 256, tables all in shared memory (75 KB)"
    predicted, by_layers = times.split(" ms, predicted; by layers at least ")
    assert float(rows["predicted"].split()[0]) < float(predicted) < float(by_layers)
    assert plan(32, 32, 32, 1, 8, 2**20)["tables"].startswith("in stages in shared memory (")
    with_stages = plan(16, 16, 16, 16, 2**22)["with gradient"]
    assert with_stages == "layer by layer: that is faster, by the model"


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ((4, 4, 4, 4, 4, 4, 4, 4, 8, 1000), "a kernel takes at most 6 layers"),
        ((512, 512, 512, 8, 2**20), "shared memory has no room for the features and a tile of"),
        ((128, 128, 128, 8, 2**20), "that is faster, by the model"),
    ],
)
def test_plan_of_a_network_that_one_kernel_does_not_serve(
    plan: Any, sizes: tuple[int, ...], why: str
) -> None:
    rows = plan(*sizes)
    assert rows["kernel"].startswith(f"one for each layer: {why}")
    assert rows["by layers"].endswith(" ms, predicted")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4, 4, 8, -1], "batch must be at least 0, got -1"),
        ([4, 0, 4, 8, 10], "out_features must be at least 1, got 0"),
        ([4, 4, 8], "--plan needs at least 4 numbers, I O G B, got 3"),
    ],
)
def test_plan_refuses_sizes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sizes: list[int],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["lmkan_cupy", "info", "--plan", *map(str, sizes)])
    assert main() == 2
    assert message in capsys.readouterr().err
