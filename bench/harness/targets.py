"""Targets of the benches, and whether what was measured meets them."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; ``met`` is None where nothing could be."""

    what: str
    target: str
    measured: str
    met: bool | None


def verdict_rows(verdicts: Iterable[Verdict]) -> list[tuple[str, str, str, str]]:
    met = {True: "yes", False: "NO", None: "?"}
    return [(each.what, each.target, each.measured, met[each.met]) for each in verdicts]
