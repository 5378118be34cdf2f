"""The tests of the kernels notice when a kernel is broken on purpose."""

from __future__ import annotations

from collections.abc import Iterable

import emulated
import emulator
import pytest
from crossing import MANY_PAIRS, NETWORKS, ONE_VARIABLE, PENALTIES, RINGS, Case, row_cases
from emulated import ROW, SMALL_CHUNK_SIZES
from emulator.mutate import Mutant, with_switches
from mutants import MUTANTS, SOURCES, with_headers

pytest_plugins = ["emulator.fixtures"]
pytestmark = [pytest.mark.usefixtures("emulator_tools", "engine"), pytest.mark.long]

CASES = row_cases(ROW)
for sizes in SMALL_CHUNK_SIZES:
    if sizes != ROW:
        CASES += row_cases(sizes, wanted=["both gradients"])
CASES += [*NETWORKS, *RINGS, *PENALTIES, *MANY_PAIRS, *ONE_VARIABLE]
"""First those in which most mutants fail."""

SWITCHED = with_switches(SOURCES, MUTANTS)


def check(cases: Iterable[Case], mutant: int) -> None:
    with emulated.using(read=SWITCHED.__getitem__, order="random", mutant=mutant):
        for case in cases:
            case.check()


@pytest.mark.parametrize("case", CASES, ids=lambda each: each.name)
def test_no_mutant_in_force(case: Case) -> None:
    check([case], emulator.NO_MUTANT)


@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda each: f"{each.place(SOURCES)} {each.description}"
)
def test_mutant_is_noticed(mutant: Mutant) -> None:
    """By one of the cases whose kernels have its file."""
    concerned = [each for each in CASES if mutant.file in with_headers(*each.files)]
    with pytest.raises(AssertionError):
        check(concerned, MUTANTS.index(mutant))
