"""Mutants: how they are described, which follow from a text, and the text that has them all."""

from __future__ import annotations

import re

import mutants
import pytest
from emulator.mutate import Mutant, all_of, changed, with_switches

TEXT = """
__device__ int last(const int* of, int size) {
    return size > 0 && of[0] >= 0 ? of[min(size, 9) - 1] : 0;  // if (nobody) __syncthreads();
}

__global__ void twice(const int* x, int* y, long long count) {
    __shared__ int sum[32];
    const bool own = threadIdx.x < count;
    for (long long k = threadIdx.x; own && k < count; k += blockDim.x) {
        if (x[k] < 0) continue;
        if (SEVERAL && k > 0) __syncwarp();
    }
    __syncthreads();
    wait_for_phase(full + 8,
                   max(0, 1));
}
"""
FROM_THE_TEXT = [
    "nothing for __syncwarp();",
    "nothing for __syncthreads();",
    "nothing for wait_for_phase(full + 8, max(0, 1));",
    "false for x[k] < 0",
    "true for k > 0",
    "true for threadIdx.x < count",
    "true for size > 0",
    "true for of[0] >= 0",
    "true for own",
    "size for min(size, 9)",
    "0 for max(0, 1)",
    "blockDim.x + 1 for blockDim.x",
]


def test_what_follows_from_a_text() -> None:
    found = list(all_of({"a.cu": TEXT}, "a.cu"))
    assert [each.description for each in found] == FROM_THE_TEXT
    for each in found:
        assert each.description.endswith(" ".join(TEXT[each.begin : each.end].split()))


def test_every_barrier_and_every_if_of_the_kernels_has_its_mutant() -> None:
    """Found line by line, that is, in another way than the mutants are."""
    barrier_or_if = re.compile(r"__sync(?:threads|warp)\(\);|\bif \((?![A-Z_ &=>\d]+\)|!?[A-Z]+\))")
    for file, text in mutants.SOURCES.items():
        places = {each.place(mutants.SOURCES) for each in all_of(mutants.SOURCES, file)}
        for number, line in enumerate(text.splitlines(), 1):
            if barrier_or_if.search(line.partition("//")[0]):
                assert f"{file}:{number}" in places, line


def test_one_text_with_several_mutants() -> None:
    """One inside another, two in the same place, a statement; what is outside stays."""
    sources = {"a.cu": "int y = f(a + 1, b); stop(); z;", "b.cuh": "w;"}
    described = [("a + 1", "a"), ("f(a + 1, b)", "0"), ("a + 1", "1"), ("stop();", "")]
    found = [changed(sources, "a.cu", *each, "") for each in described]
    inner = "(emulator::mutant() == 0 ? (a) : ((emulator::mutant() == 2 ? (1) : (a + 1))))"
    assert with_switches(sources, found) == {
        "a.cu": f"int y = (emulator::mutant() == 1 ? (0) : (f({inner}, b))); "
        "{ if (emulator::mutant() == 3) {  } else { stop(); } } z;",
        "b.cuh": "w;",
    }


def test_choices_within_choices() -> None:
    """Each condition alone, in every branch; and not at a name's "::"."""
    text = "int y = a ? b : N::c ? d ? 1 : 2 : 3;"
    sources = {"a.cu": text}
    found = [*all_of(sources, "a.cu")]
    assert [each.description for each in found] == ["true for a", "true for N::c", "true for d"]
    a, c, d = (
        f"(emulator::mutant() == {number} ? (true) : ({term}))"
        for number, term in enumerate(("a", "N::c", "d"))
    )
    switched = f"int y = {a} ? b : {c} ? {d} ? 1 : 2 : 3;"
    assert with_switches(sources, found) == {"a.cu": switched}


def test_mutants_that_overlap_are_refused() -> None:
    one, other = Mutant("a.cu", 0, 5, "", "one"), Mutant("a.cu", 3, 8, "", "other")
    with pytest.raises(ValueError, match="'one' and 'other' overlap"):
        with_switches({"a.cu": "0123456789"}, [one, other])


@pytest.mark.parametrize(
    ("part", "within", "message"),
    [
        ("c", "", "'useless': 'c' occurs 0 times in a.cu, not once"),
        ("a", "", "'useless': 'a' occurs 2 times in a.cu, not once"),
        ("a", "a + a", "'useless': 'a' occurs 2 times in 'a \\+ a', not once"),
    ],
)
def test_a_description_that_fits_no_place_is_refused(part: str, within: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed({"a.cu": "a + a"}, "a.cu", part, "", "useless", within)
