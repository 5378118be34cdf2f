"""``python -m bench.report``: one page with the results of all experiments.

``report.html`` has plots and tables, ``report.md`` only the tables. A ratio at matched error says
how many times the FLOPs (or the time) of an lmKAN a network of another kind needs for the same
error: the other kind's Pareto front, of medians over seeds, is interpolated in the logarithms of
cost and error. Only lmKANs on their own front are compared.
"""

import argparse
import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .experiments.experiment import RESULTS, chosen_lr

OURS, VARIANT = "lmKAN", "lmKAN, "

#: All kinds of networks, in the order of the tables; variants of ours come after them.
KINDS = (OURS, "MLP", "CNN", "FastKAN", "pykan")

#: The costs of a row: the columns of runs, and their names in tables.
COSTS = {"FLOPs": "FLOPs per row", "seconds": "seconds per row"}


@dataclass(frozen=True, eq=False)
class Results:
    """One results file: a row for every run; ``chosen`` marks a model's chosen learning rate."""

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
        """The costs that were measured, of FLOPs and seconds."""
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
            **{key: run[key] for key in ("model", "kind", "seed", "parameters")},
            "learning rate": run["rate"],
            "FLOPs": run["flops"],
            "seconds": 1 / speed.get(run["model"], math.nan),
            "validation": run["validation_loss"],
            **run["errors"],
        }
        for run in sorted(content["runs"], key=_sort_key)
    )
    chosen = {model: chosen_lr(content["runs"], model) for model in runs["model"].unique()}
    runs["chosen"] = runs["learning rate"] == runs["model"].map(chosen)
    return Results(
        name=path.stem,
        title=content["title"],
        setting=content["setting"],
        circumstances=content["circumstances"],
        runs=runs,
        errors=[*content["runs"][0]["errors"]],
    )


def _sort_key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort runs by kind, and networks of a kind by their cost."""
    kind = KINDS.index(run["kind"]) if run["kind"] in KINDS else len(KINDS)
    return kind, run["kind"], run["flops"], run["model"], run["rate"], run["seed"]


def read_all(folder: Path) -> list[Results]:
    """Return the results of all experiments in a folder.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if '"runs"' in path.read_text()]
    if not paths:
        raise FileNotFoundError(f"{folder}: no experiment has written its results here")
    return [read_results(path) for path in paths]


def pareto_front(cost: NDArray[Any], error: NDArray[Any]) -> NDArray[np.intp]:
    """Return the points that no other beats in both, from the cheapest to the most accurate."""
    order = np.lexsort((error, cost))
    best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best]


def cost_at(error: float, costs: NDArray[Any], errors: NDArray[Any]) -> float:
    """Return the cost at which a Pareto front reaches an error.

    It is infinite if the front never does, and the least cost if all of it is more accurate.
    """
    front = pareto_front(costs, errors)
    front_errors, front_costs = np.log(errors[front][::-1]), np.log(costs[front][::-1])
    return float(np.exp(np.interp(np.log(error), front_errors, front_costs, left=np.inf)))


def error_at(cost: float, costs: NDArray[Any], errors: NDArray[Any]) -> float:
    """Return the error that a Pareto front reaches at a cost.

    It is NaN if all of the front costs more, and the least error if all of it costs less.
    """
    front = pareto_front(costs, errors)
    front_costs, front_errors = np.log(costs[front]), np.log(errors[front])
    return float(np.exp(np.interp(np.log(cost), front_costs, front_errors, left=np.nan)))


@cache  # used by the summary, a table and a sentence
def matched(results: Results, rival: str, cost: str) -> pd.DataFrame:
    """Compare a rival with every seed of the lmKANs on their Pareto front.

    Fronts go through medians over seeds. The columns are model, seed, error, ``ratio`` (the rival's
    cost at that error divided by the lmKAN's) and ``theirs`` (the rival's error at the lmKAN's
    cost). ``ratio`` is infinite if no network of the rival is that accurate. If every one is more
    accurate, the cost of the cheapest is compared: a ratio below 1 is then an upper bound, and one
    above 1 is replaced by NaN, because the lmKAN is cheaper than any of them.
    """
    kinds = results.chosen["kind"].unique()
    rows = []
    if OURS in kinds and rival in kinds:
        both = [cost, results.main_error]
        by_model = results.chosen.groupby(["kind", "model"], sort=False)
        medians = by_model[both].median().dropna()
        ours, (costs, errors) = medians.loc[OURS], medians.loc[rival].to_numpy(float).T
        front = ours.index[pareto_front(*ours.to_numpy(float).T)]
        for _, run in results.chosen.set_index("model").loc[front].reset_index().iterrows():
            cost_of_ours, error = run[both]
            ratio = cost_at(error, costs, errors) / cost_of_ours
            is_worst = error > errors[pareto_front(costs, errors)[0]]
            rows.append(
                {
                    "model": run["model"],
                    "seed": run["seed"],
                    "error": error,
                    "ratio": math.nan if is_worst and ratio > 1 else ratio,
                    "theirs": error_at(cost_of_ours, costs, errors),
                }
            )
    return pd.DataFrame(rows, columns=["model", "seed", "error", "ratio", "theirs"])


def ratio_table(results: Results, rival: str, cost: str) -> pd.DataFrame:
    """Return a row for every lmKAN on its front: median error, median ratio and range."""
    rows = []
    for model, runs in matched(results, rival, cost).groupby("model", sort=False):
        ratios, theirs = runs["ratio"], runs["theirs"].median()
        rows.append(
            {
                "lmKAN": model,
                results.main_error: f"{runs['error'].median():.3g}",
                f"{rival} needs": _times(ratios.median()),
                "from - to": f"{_times(ratios.min())} - {_times(ratios.max())}",
                "seeds in which lmKAN loses": int((ratios < 1).sum()),
                f"{rival} at equal cost": "" if math.isnan(theirs) else f"{theirs:.3g}",
            }
        )
    return pd.DataFrame(rows)


def _times(ratio: float) -> str:
    if math.isnan(ratio):
        return "more than any"  # the least of the rival's cost
    return "never reached" if math.isinf(ratio) else f"{ratio:.2f} times"


def conclusion(results: Results, rival: str, cost: str) -> str:
    """Return a sentence that says who wins, with the losing cases."""
    comparison = matched(results, rival, cost)
    if comparison.empty:
        return f"Nothing to compare with {rival} yet."
    ratios = comparison.groupby("model", sort=False)["ratio"].median()
    finite, never = ratios[np.isfinite(ratios)], ratios.index[np.isposinf(ratios)]
    parts = []
    if len(finite):
        least, most = f"{finite.min():.2f}", f"{finite.max():.2f}"
        times = least if least == most else f"{least} to {most}"
        parts.append(
            f"at equal {results.main_error} {rival} networks take {times} times the "
            f"{COSTS[cost]} of lmKANs (medians over seeds)"
        )
    if (ratios < 1).any():
        parts.append(f"against {rival}, lmKANs lose for {', '.join(ratios.index[ratios < 1])}")
    if len(never):
        parts.append(f"no {rival} trained here is as accurate as {', '.join(never)}")
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
                f"{COSTS[cost]} it needs for an lmKAN's error, lmKAN = 1": needs(
                    matched(results, rival, cost)
                )
                for cost in results.costs
            },
        }
        for results in all_results
        for rival in results.rivals
    ).fillna("")


def needs(comparison: pd.DataFrame) -> str:
    """Return what a rival needs for the errors of the lmKANs on the front, medians over seeds."""
    ratios = comparison.groupby("model", sort=False)["ratio"].median()
    numbers = ", ".join(f"{ratio:.2g}" for ratio in sorted(ratios[np.isfinite(ratios)]))
    never, cheaper = int(np.isposinf(ratios).sum()), int(ratios.isna().sum())
    parts = [numbers, f"{never} not reached" * bool(never), f"{cheaper} cheaper" * bool(cheaper)]
    return "; ".join(filter(None, parts))


def models_table(results: Results) -> pd.DataFrame:
    """Return a row for every model: cost, chosen learning rate, errors and their range."""
    rows = []
    for model, runs in results.chosen.groupby("model", sort=False):
        first = runs.iloc[0]
        tried = results.runs.loc[results.runs["model"] == model, "learning rate"]
        edges = {tried.min(): "lowest tried", tried.max(): "highest tried"}
        lr = first["learning rate"]
        at_edge = f" ({edges[lr]})" if lr in edges else ""
        row = {
            "model": model,
            "FLOPs": first["FLOPs"],
            "parameters": first["parameters"],
            "learning rate": f"{lr:g}{at_edge}",
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
    """Plot error against cost: every run, and for every kind the Pareto front of the medians."""
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
    """Return what the templates show for every results file."""
    return [
        {
            "results": results,
            "models": models_table(results),
            "tried": results.runs[~results.runs["chosen"]].drop(columns=["seconds", "chosen"]),
            "comparisons": [
                {
                    "cost": COSTS[cost],
                    "rival": rival,
                    "conclusion": conclusion(results, rival, cost),
                    "table": ratio_table(results, rival, cost),
                }
                for cost in results.costs
                for rival in results.rivals
            ],
        }
        for results in all_results
    ]


def render(name: str, all_results: Sequence[Results]) -> str:
    """Return the page ``name``, made of the results."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "harness" / "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(f"{name}.jinja").render(
        summary=summary(all_results),
        sections=sections(all_results),
        picture=lambda results, cost: as_image(plot(results, cost)),
    )
    return f"{page.rstrip()}\n"


def write_report(folder: Path, out: Path) -> None:
    """Write ``report.html`` and ``report.md`` into ``out`` from the results in ``folder``.

    Raises
    ------
    FileNotFoundError
        If there are no results of experiments.
    """
    all_results = read_all(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "report.md"):
        (out / name).write_text(render(name, all_results))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    write_report(arguments.results, arguments.out)
    print(arguments.out / "report.html")


if __name__ == "__main__":
    main()
