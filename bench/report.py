"""``python -m bench.report``: one page of everything that the experiments wrote.

``report.html`` has the plots and tables, ``report.md`` the tables alone. A ratio at matched error
says how many times the FLOPs (or the time) of an lmKAN a network of another kind needs for the
same error: for every lmKAN, its seed's Pareto front of the other kind is interpolated in the
logarithms of cost and error. Where the other kind never reaches that error there is no such number.
"""

import argparse
import base64
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .experiments.experiment import RESULTS

OURS, VARIANT = "lmKAN", "lmKAN, "

#: All kinds of networks in the order in which they are shown; variants of ours come after them.
KINDS = (OURS, "MLP", "CNN", "FastKAN", "pykan")

#: Costs of a row, by their names in tables.
COSTS = {"FLOPs": "FLOPs per row", "seconds": "seconds per row"}


@dataclass(frozen=True)
class Results:
    """One file: all runs, a row each, and which of them have their model's chosen learning rate."""

    name: str
    title: str
    setting: Mapping[str, Any]
    circumstances: Mapping[str, Any]
    runs: pd.DataFrame
    errors: list[str]

    @property
    def main_error(self) -> str:
        return self.errors[0]

    @property
    def chosen(self) -> pd.DataFrame:
        return self.runs[self.runs["chosen"]]

    @property
    def costs(self) -> list[str]:
        """Of FLOPs and seconds those that are there."""
        return [cost for cost in COSTS if self.runs[cost].notna().all()]

    @property
    def rivals(self) -> list[str]:
        """The kinds that lmKANs are compared with."""
        return [kind for kind in self.runs["kind"].unique() if not kind.startswith(OURS)]


def read_results(path: Path) -> Results:
    content = json.loads(path.read_text())
    speed = content.get("rows_per_second", {})
    runs = pd.DataFrame(
        {
            **{key: run[key] for key in ("model", "kind", "rate", "seed", "parameters")},
            "FLOPs": run["flops"],
            "seconds": 1 / speed[run["model"]] if speed else math.nan,
            "validation": run["validation_loss"],
            **run["errors"],
        }
        for run in sorted(content["runs"], key=_place)
    )
    first_seed = runs[runs["seed"] == 0]
    best = first_seed.loc[first_seed.groupby("model")["validation"].idxmin()]
    rates = best.set_index("model")["rate"]
    runs["chosen"] = runs["rate"] == runs["model"].map(rates)
    return Results(
        name=path.stem,
        title=content["title"],
        setting=content["setting"],
        circumstances=content["circumstances"],
        runs=runs,
        errors=[*content["runs"][0]["errors"]],
    )


def _place(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what runs are sorted by: networks of a kind by their cost."""
    kind = KINDS.index(run["kind"]) if run["kind"] in KINDS else len(KINDS)
    return kind, run["kind"], run["flops"], run["model"], run["rate"], run["seed"]


def read_all(folder: Path) -> list[Results]:
    """Return the results of all experiments that wrote into a folder.

    Raises
    ------
    FileNotFoundError
        If none did.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if '"runs"' in path.read_text()]
    if not paths:
        raise FileNotFoundError(f"{folder}: no experiment has written its results here")
    return [read_results(path) for path in paths]


def pareto_front(cost: NDArray[Any], error: NDArray[Any]) -> NDArray[np.intp]:
    """Return which points no other beats in both, from the cheapest to the most accurate."""
    order = np.lexsort((error, cost))
    best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best]


def cost_at(error: float, costs: NDArray[Any], errors: NDArray[Any]) -> float | None:
    """Return the cost at which a front reaches an error; None outside of the front's errors."""
    front = pareto_front(costs, errors)
    front_errors, front_costs = errors[front][::-1], costs[front][::-1]
    if not front_errors[0] <= error <= front_errors[-1]:
        return None
    return float(np.exp(np.interp(np.log(error), np.log(front_errors), np.log(front_costs))))


def matched(results: Results, rival: str, cost: str) -> pd.DataFrame:
    """Return the ratios of a rival's cost to that of every lmKAN on its front, for every seed.

    Columns: model, seed, error, ratio, ``reached``, whether the rival has any network that
    accurate, and ``loses``, whether it needs less for it. ``ratio`` is NaN where it has none, and
    where even its least accurate one errs less.
    """
    rows = []
    for seed, runs in results.chosen.groupby("seed"):
        ours, theirs = runs[runs["kind"] == OURS], runs[runs["kind"] == rival]
        if ours.empty or theirs.empty:
            continue
        costs = theirs[cost].to_numpy(float)
        errors = theirs[results.main_error].to_numpy(float)
        front = pareto_front(ours[cost].to_numpy(float), ours[results.main_error].to_numpy(float))
        for _, run in ours.iloc[front].iterrows():
            cost_of_ours, error = run[cost], run[results.main_error]
            needed = cost_at(error, costs, errors)
            rows.append(
                {
                    "model": run["model"],
                    "seed": seed,
                    "error": error,
                    "ratio": math.nan if needed is None else needed / cost_of_ours,
                    "reached": bool(errors.min() <= error),
                    "loses": bool((costs[errors <= error] < cost_of_ours).any())
                    or (needed is not None and needed < cost_of_ours),
                }
            )
    return pd.DataFrame(rows, columns=["model", "seed", "error", "ratio", "reached", "loses"])


def ratio_table(results: Results, rival: str, cost: str) -> pd.DataFrame:
    """Return a row for every lmKAN on its front: median error, median ratio and its spread."""
    rows = []
    for model, runs in matched(results, rival, cost).groupby("model", sort=False):
        ratios = runs["ratio"].dropna()
        rows.append(
            {
                "lmKAN": model,
                results.main_error: f"{runs['error'].median():.3g}",
                f"{rival} needs": f"{ratios.median():.2f} times" if len(ratios) else "",
                "from - to": f"{ratios.min():.2f} - {ratios.max():.2f}" if len(ratios) else "",
                "seeds compared": len(ratios),
                "seeds in which it never gets there": int((~runs["reached"]).sum()),
                "seeds in which lmKAN loses": int(runs["loses"].sum()),
            }
        )
    return pd.DataFrame(rows)


def verdict(results: Results, rival: str, cost: str) -> str:
    """Say in a sentence who wins, with the losing cases."""
    comparison = matched(results, rival, cost)
    if comparison.empty:
        return f"Nothing to compare with {rival} yet."
    by_model = comparison.groupby("model", sort=False)
    ratios = by_model["ratio"].median().dropna()
    reached, loses = by_model["reached"].max(), by_model["loses"].mean() >= 0.5
    parts = []
    if len(ratios):
        least, most = f"{ratios.min():.2f}", f"{ratios.max():.2f}"
        times = least if least == most else f"{least} to {most}"
        parts.append(
            f"at equal {results.main_error} {rival} networks take {times} times the "
            f"{COSTS[cost]} of lmKANs (medians over seeds)"
        )
    if loses.any():
        parts.append(f"against {rival}, lmKANs lose for {', '.join(loses.index[loses])}")
    if not reached.all():
        beyond = ", ".join(reached.index[~reached])
        parts.append(f"no {rival} trained here is as accurate as {beyond}")
    if not parts:
        parts.append(f"every {rival} trained here is more accurate, and none as cheap")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def summary(all_results: Iterable[Results]) -> pd.DataFrame:
    """Return a row for every experiment and rival."""
    return pd.DataFrame(
        {
            "experiment": results.name,
            "rival": rival,
            **{
                f"{COSTS[cost]} it needs for an lmKAN's error, lmKAN = 1": _needs(
                    matched(results, rival, cost)
                )
                for cost in results.costs
            },
        }
        for results in all_results
        for rival in results.rivals
    ).fillna("")


def _needs(comparison: pd.DataFrame) -> str:
    """Say what a rival needs for the errors of the lmKANs on the front, medians over seeds."""
    by_model = comparison.groupby("model", sort=False)
    ratios, reached = by_model["ratio"].median(), by_model["reached"].max()
    # Even the least accurate rival errs less, and costs less.
    below = int((ratios.isna() & reached & (by_model["loses"].mean() >= 0.5)).sum())
    never = int((~reached).sum())
    parts = [
        ", ".join(f"{ratio:.2g}" for ratio in sorted(ratios.dropna())),
        f"{below} below 1" if below else "",
        f"{never} not reached" if never else "",
    ]
    return "; ".join(filter(None, parts))


def models_table(results: Results) -> pd.DataFrame:
    """Return a row for every model: cost, chosen rate and errors with their spread over seeds."""
    rows = []
    for model, runs in results.chosen.groupby("model", sort=False):
        first = runs.iloc[0]
        tried = results.runs.loc[results.runs["model"] == model, "rate"]
        edges = {tried.min(): "lowest tried", tried.max(): "highest tried"}
        at_edge = f" ({edges[first['rate']]})" if first["rate"] in edges else ""
        row = {
            "model": model,
            "FLOPs": first["FLOPs"],
            "parameters": first["parameters"],
            "rate": f"{first['rate']:g}{at_edge}",
            "seeds": len(runs),
        }
        if "seconds" in results.costs:
            row["rows per second"] = f"{1 / first['seconds']:,.0f}"
        for error in results.errors:
            low, middle, high = runs[error].quantile([0, 0.5, 1])
            row[error] = f"{middle:.3g} ({low:.3g} - {high:.3g})"
        rows.append(row)
    return pd.DataFrame(rows)


def plot(results: Results, cost: str) -> Figure:
    """Draw error against cost: every run, and a Pareto front of the medians for every kind."""
    figure = Figure(figsize=(9.0, 4.6), layout="constrained", dpi=110)
    axes = figure.subplots()
    for kind, runs in results.runs.groupby("kind", sort=False):
        chosen = runs[runs["chosen"]]
        is_variant = str(kind).startswith(VARIANT)
        dots = axes.plot(
            chosen[cost],
            chosen[results.main_error],
            "x" if is_variant else "o",
            markersize=4,
            label=kind,
        )
        tried = runs[~runs["chosen"]]
        axes.plot(tried[cost], tried[results.main_error], ".", alpha=0.3, color=dots[0].get_color())
        if not is_variant:
            medians = chosen.groupby("model")[[cost, results.main_error]].median()
            costs, errors = medians.to_numpy(float).T
            front = pareto_front(costs, errors)
            axes.plot(costs[front], errors[front], "-", color=dots[0].get_color())
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=COSTS[cost],
        ylabel=results.main_error,
        title=results.name,
    )
    axes.grid(which="both", alpha=0.2)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def as_image(figure: Figure) -> str:
    """Return a figure as the source of an HTML image."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"


def sections(all_results: Iterable[Results]) -> list[dict[str, Any]]:
    """Return what the templates show of every file."""
    return [
        {
            "results": results,
            "models": models_table(results),
            "tried": results.runs[~results.runs["chosen"]].drop(columns=["seconds", "chosen"]),
            "comparisons": [
                {
                    "cost": COSTS[cost],
                    "rival": rival,
                    "verdict": verdict(results, rival, cost),
                    "table": ratio_table(results, rival, cost),
                }
                for cost in results.costs
                for rival in results.rivals
            ],
            "pictures": [as_image(plot(results, cost)) for cost in results.costs],
        }
        for results in all_results
    ]


def write_report(folder: Path, out: Path) -> None:
    """Write ``report.html`` and ``report.md`` into ``out`` from the results in ``folder``.

    Raises
    ------
    FileNotFoundError
        If there are no results of experiments.
    """
    all_results = read_all(folder)
    content = sections(all_results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "report.md"):
        page = environment.get_template(name).render(summary=summary(all_results), sections=content)
        (out / name).write_text(f"{page.rstrip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    write_report(arguments.results, arguments.out)
    print(arguments.out / "report.html")


if __name__ == "__main__":
    main()
