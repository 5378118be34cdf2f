"""Targets of the benchmarks, and whether the measurements meet them."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckedTarget:
    """A target beside the measurement; ``met`` is None where nothing could be measured."""

    what: str
    target: str
    measured: str
    met: bool | None


def target_rows(targets: Iterable[CheckedTarget]) -> list[tuple[str, str, str, str]]:
    """Return the rows of a table."""
    met = {True: "yes", False: "NO", None: "?"}
    return [(each.what, each.target, each.measured, met[each.met]) for each in targets]
