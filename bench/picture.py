"""``python -m bench.picture``: draws the picture of the root's README from ``bench/results``.

All three panels show the same networks with the same errors, those of methane's distances trained
on an H100, against three costs of a row: FLOPs, time on the H100, and time on a CPU.
"""

import argparse
import io
import json

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from .experiments.experiment import RESULTS
from .report import pareto_front, read_results

PICTURE = RESULTS / "accuracy-against-cost.svg"

#: Trained and timed on an H100; the same networks, timed on a CPU.
ON_GPU, ON_CPU = RESULTS / "methane-gpu-cuda.json", RESULTS / "methane-cpu-cpu.json"

#: Networks that are drawn, and their colours.
KINDS = {"lmKAN": "tab:red", "MLP": "tab:blue", "FastKAN": "tab:gray"}

#: Columns of ``networks``, and what the axes call them.
COSTS = {
    "FLOPs": "multiply-adds",
    "ns on an H100": "nanoseconds on an H100",
    "ns on a CPU": "nanoseconds on 2 CPU cores",
}

ERROR = "MAE, eV"


def networks() -> pd.DataFrame:
    """Return kind, error and costs of a row of every network, medians over seeds."""
    results = read_results(ON_GPU)
    rows_per_second = pd.Series(json.loads(ON_CPU.read_text())["rows_per_second"])
    runs = results.chosen[results.chosen["kind"].isin(KINDS)]
    medians = runs.groupby("model").agg({"kind": "first", "FLOPs": "first", ERROR: "median"})
    medians["ns on an H100"] = 1e9 * runs.groupby("model")["seconds"].first()
    medians["ns on a CPU"] = 1e9 / rows_per_second.reindex(medians.index)
    return medians


def draw(networks: pd.DataFrame) -> Figure:
    """Draw every network as a point, and for every kind a line through those that no other network
    of its kind beats in both error and cost."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (cost, title) in zip(panels, COSTS.items(), strict=True):
        for kind, colour in KINDS.items():
            points = networks.loc[networks["kind"] == kind, [cost, ERROR]].dropna()
            front = pareto_front(points[cost].to_numpy(), points[ERROR].to_numpy())
            axes.plot(*points.to_numpy().T, ".", color=colour, alpha=0.4)
            axes.plot(*points.iloc[front].to_numpy().T, "o-", color=colour, label=kind)
        axes.set(xscale="log", yscale="log", xlabel=f"{title} per row")
        axes.grid(which="both", alpha=0.2)
    panels[0].set_ylabel("error of the energy, MAE in eV")
    panels[0].yaxis.set_major_locator(FixedLocator([0.02, 0.03, 0.05, 0.1, 0.2]))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("")
    panels[0].legend()
    return figure


def as_svg(figure: Figure) -> str:
    """Return a figure as text, the same at every call with the same version of Matplotlib."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": PICTURE.name}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in picture.getvalue().splitlines())


def main() -> None:
    argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__).parse_args()
    PICTURE.write_text(as_svg(draw(networks())))
    print(PICTURE)


if __name__ == "__main__":
    main()
