"""``python -m bench.paper``: the page with the results in the paper's setting.

``paper.md`` has a table of the paper's results and ours, and a picture for every experiment that
was run: errors against costs, and errors during the training.
"""

import argparse
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from .experiments.experiment import RESULTS
from .report import COSTS, Results, matched, needs, pareto_front, read_results

#: What stands in the table where there is no result.
NOT_RUN, NOT_MEASURED = "not run", "not measured"

#: Kinds of networks in the paper's comparison, and those that we add. In each group the networks
#: are compared as if they were of one kind.
OURS = ("lmKAN", "lmKAN, ReLU first")
ALL_OURS = (*OURS, "lmKAN, own procedure")


@dataclass(frozen=True)
class Claim:
    """A result of the paper.

    Attributes
    ----------
    result : str
    name : str
        The experiment, as its files are named.
    rivals, all_rivals : tuple of str
        Kinds of networks that the paper compares with, and all that we do.
    flops, time : str
        How many times an lmKAN's cost its rival needs for an equal error, according to the paper.
    cost : str
        The cost that is compared instead of FLOPs.
    """

    result: str
    name: str
    rivals: tuple[str, ...]
    flops: str
    time: str
    all_rivals: tuple[str, ...] = ()
    cost: str = "FLOPs"


CLAIMS = (
    Claim(
        "general functions, 32 inputs",
        "approximation",
        ("MLP",),
        "2.8, 3.9, 4.1, 6.0",
        "1.8",
        ("MLP", "MLP, SiLU"),
    ),
    Claim(
        "methane, distances",
        "methane",
        ("MLP",),
        "up to 1021",
        "71.6",
        ("MLP", "MLP, SiLU"),
    ),
    Claim(
        "methane, coordinates",
        "methane_cartesian",
        ("MLP",),
        "up to 78",
        "12.9",
        ("MLP", "MLP, SiLU"),
    ),
    Claim("CIFAR-10", "cifar10", ("CNN",), "1.6 to 2.1", NOT_MEASURED),
    Claim(
        "CIFAR-10, flat: parameters of FastKANs",
        "cifar10_flat",
        ("FastKAN",),
        "never reached",
        NOT_MEASURED,
        cost="parameters",
    ),
    Claim("ImageNet, 81 x 81 pixels", "imagenet", ("CNN",), "1.7", NOT_MEASURED),
)

#: Experiments with many grids and penalties.
SWEEPS = ("approximation_sweep", "methane_sweep", "methane_cartesian_sweep")


def find(folder: Path, name: str, device: str) -> Results | None:
    """Return an experiment's results on a device, if there are any."""
    scale = {"cpu": "cpu", "cuda": "gpu"}[device]
    path = folder / f"{name}-paper-{scale}-{device}.json"
    return read_results(path) if path.exists() else None


def compared(results: Results | None, ours: Iterable[str], rivals: Iterable[str], cost: str) -> str:
    """Return what rivals need of a cost for the errors of lmKANs, as the cell of a table."""
    if results is None:
        return NOT_RUN
    groups = dict.fromkeys(ours, "lmKAN") | dict.fromkeys(rivals, "rival")
    runs = results.runs[results.runs["kind"].isin(groups)]
    runs = runs.assign(kind=runs["kind"].map(groups))
    if cost not in (*results.costs, "parameters"):
        return NOT_MEASURED
    return needs(matched(replace(results, runs=runs), "rival", cost)) or NOT_RUN


def table(folder: Path) -> pd.DataFrame:
    """Return a row for every result of the paper."""
    return pd.DataFrame(_row(claim, folder) for claim in CLAIMS)


def _row(claim: Claim, folder: Path) -> dict[str, str]:
    on_cpu, on_gpu = (find(folder, claim.name, device) for device in ("cpu", "cuda"))
    strongest = claim.all_rivals or claim.rivals
    return {
        "result": claim.result,
        "paper: FLOPs": claim.flops,
        "paper: time, H100": claim.time,
        "here: FLOPs": compared(on_cpu, OURS, claim.rivals, claim.cost),
        "here: CPU time": compared(on_cpu, OURS, claim.rivals, "seconds"),
        "here: GPU time": compared(on_gpu, OURS, claim.rivals, "seconds"),
        "strongest rival: FLOPs": compared(on_cpu, ALL_OURS, strongest, claim.cost),
        "strongest rival: CPU time": compared(on_cpu, ALL_OURS, strongest, "seconds"),
    }


def draw(results: Results, trainings: pd.DataFrame) -> Figure:
    """Draw errors against the costs of a row and of the training, and losses during it."""
    points = results.chosen.groupby("model", sort=False).median(numeric_only=True)
    points["kind"] = results.chosen.groupby("model", sort=False)["kind"].first()
    points["seconds of training"] = trainings["cpu_seconds"]
    costs = {**{cost: COSTS[cost] for cost in results.costs}, "parameters": "parameters"}
    if points["seconds of training"].notna().all():
        costs["seconds of training"] = "seconds of one core, training"
    figure = Figure(figsize=(3.2 * (len(costs) + 1), 3.6), layout="constrained")
    *panels, last = figure.subplots(1, len(costs) + 1)
    for number, (kind, of_kind) in enumerate(points.groupby("kind", sort=False)):
        colour = f"C{number}"
        for axes, cost in zip(panels, costs, strict=True):
            cost_and_error = of_kind[[cost, results.main_error]].to_numpy(float)
            front = cost_and_error[pareto_front(*cost_and_error.T)]
            axes.plot(*cost_and_error.T, ".", color=colour, alpha=0.4)
            axes.plot(*front.T, "o-", color=colour, markersize=4, label=kind)
        for curve in trainings.loc[of_kind.index, "curve"]:
            last.plot(*zip(*curve, strict=True), color=colour, linewidth=0.8)
    for axes, label in zip(panels, costs.values(), strict=True):
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.grid(which="both", alpha=0.2)
    last.set(xscale="log", yscale="log", xlabel="steps", ylabel="loss in validation")
    panels[0].set_ylabel(results.main_error)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def draw_sweep(results: Results) -> Figure:
    """Draw error, parameters and time against the grid, and the error against the penalty."""
    figure = Figure(figsize=(12.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 4)
    runs = results.chosen
    grids = runs[runs["kind"] == "lmKAN, grids"]
    num_grids = grids["model"].str.extract(r"G=(\d+)$")[0].astype(int)
    flops = f"{grids['FLOPs'].iloc[0]:,} FLOPs each" if len(grids) else ""
    for axes, column in zip(panels, (results.main_error, "parameters", "seconds"), strict=False):
        axes.plot(num_grids, grids[column], "o-")
        axes.set(xlabel="grid intervals G", ylabel=column)
    panels[0].set_title(flops, fontsize="medium")
    panels[1].set(yscale="log")
    penalties = runs[runs["kind"].str.startswith("lmKAN, penalty")]
    weights = penalties["kind"].str.extract(r"penalty (\S+)$")[0].astype(float)
    panels[3].plot(weights, penalties[results.main_error], "o-")
    panels[3].set(xscale="log", xlabel="weight of the penalty", ylabel=results.main_error)
    for axes in panels:
        axes.grid(alpha=0.2)
    return figure


def as_svg(figure: Figure, name: str) -> str:
    """Return a figure as text, the same at every call with the same version of Matplotlib."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in picture.getvalue().splitlines())


def trainings_of(path: Path) -> pd.DataFrame:
    """Return a row for every model, with the "curve" and the "cpu_seconds" of its seed 0."""
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    first = pd.DataFrame([run for run in runs if run["seed"] == 0]).set_index("model")
    return first.reindex(columns=["curve", "cpu_seconds"])


def pictures(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the name of a file, its picture and the title, of every experiment that was run."""
    for name in (*(claim.name for claim in CLAIMS), *SWEEPS):
        for device in ("cpu", "cuda"):
            if (results := find(folder, name, device)) is None:
                continue
            path = folder / f"{results.name}.json"
            figure = draw_sweep(results) if name in SWEEPS else draw(results, trainings_of(path))
            yield f"{results.name}.svg", as_svg(figure, results.name), results.title


def render(folder: Path, shown: Iterable[tuple[str, str]]) -> str:
    """Return the page; ``shown`` are the files of its pictures and their titles."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "harness" / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("paper.md.jinja").render(table=table(folder), pictures=shown)
    return f"{page.rstrip()}\n"


def write(folder: Path, out: Path) -> None:
    """Write the page and its pictures into ``out`` from the results in ``folder``."""
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    for file, picture, title in pictures(folder):
        (out / file).write_text(picture)
        shown.append((file, title))
    (out / "paper.md").write_text(render(folder, shown))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    write(arguments.results, arguments.out)
    print(arguments.out / "paper.md")


if __name__ == "__main__":
    main()
