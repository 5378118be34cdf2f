"""The Python blocks of all pages run as they stand, and numbers are those of committed results.

Blocks run in the interpreter of the tests, each with names and a folder of its own. Blocks for CUDA
devices run where there is one; those marked ``py`` need more than a page gives them and never run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pages
import pandas as pd
import pytest
from fresh_process import ROOT

from bench import readme

BLOCKS = [
    block for page in pages.PAGES for block in pages.blocks(page) if block.language == "python"
]

#: What a block holds that takes more than a few seconds.
_SLOW = ("GridSearchCV", "jax.random.split", "torch.onnx.export", "torch.compile(")


def on_cuda(block: pages.Block) -> bool:
    return '"cuda"' in block.text


def marks(block: pages.Block) -> list[pytest.MarkDecorator]:
    """All blocks of README.md are in the short run but those that train or compile for long."""
    slow = block.page.parent.name == "adapters" or any(each in block.text for each in _SLOW)
    return [pytest.mark.gpu] * on_cuda(block) + [pytest.mark.long] * slow


def label(block: pages.Block) -> str:
    """Page, heading, and number where several blocks stand under the heading."""
    beside = [each for each in BLOCKS if each[:3] == block[:3]]
    number = f" {beside.index(block) + 1}" if len(beside) > 1 else ""
    return f"{pages.name(block.page)}: {block.heading}{number}"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to work in; random numbers and figures are afterwards as before."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


def leave_fitted_model(folder: Path) -> None:
    """What `python -m lmkan_cupy fit` leaves, for three features."""
    fitting = pytest.importorskip("lmkan_cupy.adapters.fitting")
    features = np.random.default_rng(0).uniform(size=(60, 3))
    frame = pd.DataFrame(features, columns=["a", "b", "c"])
    data = fitting.Dataset(frame, pd.DataFrame({"y": features.sum(1)}))
    folder.mkdir()
    fitting.fit(data, width=4, epochs=1, baseline=False).model.save(folder)


def test_there_are_blocks() -> None:
    assert {on_cuda(each) for each in BLOCKS} == {False, True}
    assert {"README.md", "adapters/README.md"} <= {pages.name(each.page) for each in BLOCKS}


@pytest.mark.usefixtures("scene")
@pytest.mark.filterwarnings("ignore:.*(LeafSpec|torch.jit.script)")  # of torch itself
@pytest.mark.parametrize(
    "block", [pytest.param(each, marks=marks(each), id=label(each)) for each in BLOCKS]
)
def test_block_runs(block: pages.Block) -> None:
    if on_cuda(block) and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if "torch.compile(" in block.text and not any(map(shutil.which, compilers)):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    if re.search(r'load(_network)?\("model"\)', block.text):
        leave_fitted_model(Path("model"))
    exec(compile(block.text, label(block), "exec"), {"__name__": "__main__"})


def test_blocks_are_python() -> None:
    """Also where they do not run."""
    for block in BLOCKS:
        compile(block.text, label(block), "exec")


def spread(experiment: str, rival: str, cost: str) -> str:
    """Of what a rival needs for the error of an lmKAN: "least to most", where it is reached."""
    report = pytest.importorskip("bench.report")
    comparison = report.matched(
        report.read_results(readme.RESULTS / f"{experiment}.json"), rival, cost
    )
    ratios = comparison.groupby("model")["ratio"].median()
    ratios = ratios[np.isfinite(ratios)]
    return f"{ratios.min():.2g} to {ratios.max():.2g}"


@pytest.mark.parametrize(
    ("start", "experiment", "rival"),
    [
        ("methane from distances", "methane-gpu-cuda", "MLP"),
        ("the same on 2 CPU cores", "methane-cpu-cpu", "MLP"),
        ("the answers of a random network", "approximation-cpu-cpu", "MLP"),
        ("methane's energies and forces", "methane_forces-gpu-cuda", "MLP"),
        ("CIFAR-10", "cifar10-gpu-cuda", "CNN"),
    ],
)
def test_accuracy_on_the_landing_page(start: str, experiment: str, rival: str) -> None:
    assert row(start)[1:] == [spread(experiment, rival, cost) for cost in ("FLOPs", "seconds")]


def row(start: str) -> list[str]:
    """The cells of a row of the landing page."""
    lines = (ROOT / "README.md").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"| {start}")]
    return [cell.strip().replace("*", "") for cell in found.strip("|").split("|")]


def times(layer: str, pass_: str, features: int, batch: int | None = None) -> list[float]:
    """The time of another layer over ours, on an H100 at all sizes, the least and the most."""
    results = json.loads((readme.RESULTS / "gpu-h100-80gb-hbm3-2026-11-22.json").read_text())
    ratios = [
        case["layers"][layer][pass_]["median"]
        for case in results["cases"]
        if case["in_features"] == features and batch in (None, case["batch"])
    ]
    return [min(ratios), max(ratios)]


def test_speed_on_the_landing_page() -> None:
    float32 = "{:.2f} to {:.2f}".format(*times("nn.Linear", "forward", 512))
    bfloat16 = "{:.2f} to {:.2f}".format(*times("nn.Linear, bfloat16", "forward", 512))
    assert row("a layer's forward")[2] == f"{float32}; {bfloat16}"
    for start, features, batch in (("time, 512", 512, 2**20), ("time, 128", 128, None)):
        forward = "{:.2g} to {:.2g}".format(*times("authors", "forward", features, batch))
        backward = "{:.2g} to {:.2g}".format(*times("authors", "backward", features, batch))
        assert row(start)[2] == f"forward {forward}, backward {backward}"
