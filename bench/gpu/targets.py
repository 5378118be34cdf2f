"""The targets of the CUDA engine on an H100 or H200, checked against what `bench.gpu` measured."""

from collections.abc import Iterator
from typing import Any

from ..harness.results_file import OURS
from ..harness.targets import CheckedTarget

LARGE = {"in_features": 512, "out_features": 512, "batch": 2**20}
SMALL = {"in_features": 128, "out_features": 128, "batch": 2**10}


def check(results: dict[str, Any]) -> list[CheckedTarget]:
    """Check all targets against results as `bench.gpu` writes them."""
    return [*_forward(results), *_training(results)]


def _forward(results: dict[str, Any]) -> Iterator[CheckedTarget]:
    for num_grids, least in ((8, 1.5), (12, 1.5), (16, 1.1), (26, 1.25)):
        measured = _times_ours(results, "authors", "forward", num_grids=num_grids, **LARGE)
        yield _at_least(f"forward, G = {num_grids}: the authors' time", least, measured)
    yield _at_least(
        "forward, B = 1024, 128 x 128, G = 26: the authors' time",
        1.0,
        _times_ours(results, "authors", "forward", num_grids=26, **SMALL),
    )
    half = _times_ours(results, "float16 tables", "forward", num_grids=16, **LARGE)
    yield _at_least("forward, G = 16, float32 tables: float16 tables' time", 1.7, half and 1 / half)
    for num_grids, most in ((8, 5.0), (12, 5.0), (16, 7.5), (26, 7.5)):
        linear = _times_ours(results, "nn.Linear", "forward", num_grids=num_grids, **LARGE)
        yield _at_most(f"forward, G = {num_grids}: nn.Linear's time", most, linear and 1 / linear)
    for num_grids, least in ((8, 0.85), (16, 0.8), (26, 0.8)):
        case = _case(results, num_grids=num_grids, **LARGE)
        share = case and case["limits"][OURS].get("share of the shared-memory limit")
        yield _at_least(f"forward, G = {num_grids}: shared memory's limit", least, share)


def _training(results: dict[str, Any]) -> Iterator[CheckedTarget]:
    for num_grids in (8, 16, 26):
        measured = _times_ours(results, "authors", "backward", num_grids=num_grids, **LARGE)
        yield _at_least(f"backward, G = {num_grids}: the authors' time", 3.0, measured)
    for num_grids in (8, 16, 26):
        case = _case(results, num_grids=num_grids, **LARGE)
        ours = case and case["layers"][OURS]
        ratio = ours and ours["backward"]["ms"] / ours["forward"]["ms"]
        yield _at_most(f"backward, G = {num_grids}: our forward's time", 1.8, ratio)
    for shape, steps in results.get("training", {}).items():
        ours, authors = (steps.get(layer, {}).get("ms") for layer in (OURS, "authors"))
        ratio = ours and authors and authors / ours
        yield _at_least(f"training step, B = 2^14, {shape}: the authors' time", 2.0, ratio)
    penalty = results.get("penalty", {}).get("26")
    ratio = penalty and penalty["with gradient, ms"] / penalty["copy of the tables, ms"]
    yield _at_most("penalty with gradient, 512 x 512, G = 26: time of a copy", 1.5, ratio)
    for call in "forward of arrays", "LMKANLinear, inference mode":
        host = results.get("host", {}).get(f"{call}, host us")
        yield _at_most(f"{call}, B = 1024, 128 x 128: microseconds of the host", 25.0, host)


def _case(results: dict[str, Any], **sizes: int) -> dict[str, Any] | None:
    for case in results["cases"]:
        if all(case[name] == size for name, size in sizes.items()):
            found: dict[str, Any] = case
            return found
    return None


def _times_ours(results: dict[str, Any], layer: str, pass_: str, **sizes: int) -> float | None:
    """Return how many times our time another layer takes, None if it was not timed."""
    case = _case(results, **sizes)
    measured = case and case["layers"].get(layer)
    return float(measured[pass_]["median"]) if measured else None


def _at_least(what: str, target: float, measured: float | None) -> CheckedTarget:
    return _checked(what, f">= {target:g}", measured, lambda number: number >= target)


def _at_most(what: str, target: float, measured: float | None) -> CheckedTarget:
    return _checked(what, f"<= {target:g}", measured, lambda number: number <= target)


def _checked(what: str, target: str, measured: float | None, is_met: Any) -> CheckedTarget:
    if not measured:
        return CheckedTarget(what, target, "not measured", None)
    return CheckedTarget(what, target, f"{measured:.2f}", is_met(measured))
