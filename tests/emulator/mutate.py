"""Mutants: kernels broken on purpose, each of which a test must notice.

A test that passes says little until one has seen it fail. Each mutant is a small change that could
be a mistake; the runner tells which of them the tests find.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from emulator.build import BuildError
from emulator.launch import KernelFault

Sources = Mapping[str, str]
"""Texts by file name."""


class Mutant(NamedTuple):
    """In `file`, `pattern`, which occurs exactly once, becomes `replacement`."""

    file: str
    pattern: str
    replacement: str
    description: str

    def apply(self, sources: Sources) -> dict[str, str]:
        text = sources[self.file]
        occurrences = text.count(self.pattern)
        if occurrences != 1:
            raise ValueError(
                f"mutant {self.description!r}: {self.pattern!r} occurs {occurrences} times in "
                f"{self.file}, not once"
            )
        return {**sources, self.file: text.replace(self.pattern, self.replacement)}


class Outcome(NamedTuple):
    mutant: Mutant
    killed_by: str
    """ "fault", "wrong result" or "nothing"."""
    evidence: str

    @property
    def survived(self) -> bool:
        return self.killed_by == "nothing"

    def __str__(self) -> str:
        return f"{self.mutant.description}: {self.killed_by} {self.evidence}".rstrip()


def run_mutants(
    mutants: Sequence[Mutant], sources: Sources, trial: Callable[[Sources], None]
) -> list[Outcome]:
    """Try all mutants, several at a time.

    Parameters
    ----------
    mutants : sequence of Mutant
    sources : mapping of str to str
        The correct texts, for which the trial must pass.
    trial : callable
        Compiles and runs what the given texts make, and raises AssertionError (of which
        `KernelFault` is one) if anything is wrong. It is called from several threads.

    Raises
    ------
    ValueError
        If a mutant's pattern does not occur exactly once, or if a mutant does not compile: then it
        proves nothing.
    """
    trial(sources)
    mutated = [mutant.apply(sources) for mutant in mutants]

    def outcome(mutant: Mutant, texts: Sources) -> Outcome:
        try:
            trial(texts)
        except KernelFault as fault:
            return Outcome(mutant, "fault", str(fault.reports[0]))
        except AssertionError as error:
            return Outcome(mutant, "wrong result", str(error).strip().partition("\n")[0])
        except BuildError as error:
            raise ValueError(f"mutant {mutant.description!r} does not compile: {error}") from error
        return Outcome(mutant, "nothing", "")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(outcome, mutants, mutated))
