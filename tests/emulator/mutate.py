"""Mutants: kernels broken on purpose, each of which a test must notice.

A test that passes says little until one has seen it fail. Each mutant is a small change that could
be a mistake. Some are thought out (`changed`), others follow from the text, so that what is added
to it later has its mutants, too (`all_of`).

All mutants are compiled into one text, in which a number chooses the one that is in force ("mutant
schemata": R. Untch, J. Offutt, M. Harrold, ISSTA 1993): trying one takes no compilation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Sources = Mapping[str, str]
"""Texts by file name."""


class Mutant(NamedTuple):
    """In `file`, an expression or whole statements become `replacement`."""

    file: str
    begin: int
    end: int
    replacement: str
    description: str

    def place(self, sources: Sources) -> str:
        return f"{self.file}:{sources[self.file].count(chr(10), 0, self.begin) + 1}"


def changed(
    sources: Sources, file: str, part: str, replacement: str, description: str, within: str = ""
) -> Mutant:
    """A mutant by what it changes.

    Parameters
    ----------
    sources, file
    part, replacement : str
        Two expressions; or statements, each with its semicolon or brackets, the second maybe empty.
    description : str
    within : str
        Text around `part`, where that alone occurs several times.

    Raises
    ------
    ValueError
        If `within` does not occur exactly once in the file, or `part` in it.
    """
    text, within = sources[file], within or part
    for inner, outer, name in ((within, text, file), (part, within, repr(within))):
        if (times := outer.count(inner)) != 1:
            raise ValueError(f"{description!r}: {inner!r} occurs {times} times in {name}, not once")
    begin = text.index(within) + within.index(part)
    return Mutant(file, begin, begin + len(part), replacement, description)


def with_switches(sources: Sources, mutants: Sequence[Mutant]) -> dict[str, str]:
    """The texts with all mutants in them; number n is in force in a launch with `mutant=n`."""
    texts = dict(sources)
    for file in {each.file for each in mutants}:
        # Outer ones first: of those that begin together, the longer.
        numbered = sorted(
            ((number, each) for number, each in enumerate(mutants) if each.file == file),
            key=lambda pair: (pair[1].begin, -pair[1].end),
        )
        texts[file] = _switched(sources[file], 0, len(sources[file]), numbered)
    return texts


def _switched(text: str, begin: int, end: int, mutants: list[tuple[int, Mutant]]) -> str:
    """The text from `begin` to `end`, with these mutants, which lie in it."""
    pieces = []
    while mutants:
        (number, outer), *mutants = mutants
        inner = [each for each in mutants if each[1].begin < outer.end]
        mutants = mutants[len(inner) :]
        if crossing := [each for _, each in inner if each.end > outer.end]:
            raise ValueError(f"{outer.description!r} and {crossing[0].description!r} overlap")
        part = _switched(text, outer.begin, outer.end, inner)
        in_force = f"emulator::mutant() == {number}"
        if text[outer.end - 1] in ";}":
            switch = f"{{ if ({in_force}) {{ {outer.replacement} }} else {{ {part} }} }}"
        else:
            switch = f"({in_force} ? ({outer.replacement}) : ({part}))"
        pieces += [text[begin : outer.begin], switch]
        begin = outer.end
    return "".join([*pieces, text[begin:end]])


# ---- mutants that follow from the text -----------------------------------------------------------

#: A statement that waits for other threads or for copies, or tells them to go on.
BARRIER = re.compile(r"\b(?:__sync\w+|wait_for_phase|arrive\w*|\w+_barriers?)\([^;{}]*\);")
IF = re.compile(r"\bif \(")
FOR = re.compile(r"\bfor \((?=[^:]*?;)")
CLAMP = re.compile(r"\b(?:min|max)\(")
CHOICE = re.compile(r" \? ")
TRUTH = re.compile(r"\bbool \w+ =\s+|\breturn (?=[^;?]*&&[^;?]*;)")
WAY_OUT = re.compile(r"\)\s+(?:continue|break|return)\b")
STEP = re.compile(r"\w+ \+= ([^,]+)")
EDGE = re.compile(r"[,;{}?]|(?<!:):(?!:)|(?<![=<>!])=(?!=)|\breturn\b")
IS_CONSTANT = re.compile(r"[!<>=&|() A-Z_\d]+")
"""A choice of the preamble: its other branch may not even compile."""

Span = tuple[int, int]


def all_of(sources: Sources, file: str) -> Iterator[Mutant]:
    """Every barrier left out, every guard open, every clamp loose, every loop with a wrong step.

    A guard is a condition, or each term of one, that is not the end of a loop. It is open where it
    is always true; or always false where what follows is a way out.
    """
    text = _without_comments(sources[file])

    def mutant(span: Span, replacement: str) -> Mutant:
        part = " ".join(text[slice(*span)].split())
        description = f"{replacement or 'nothing'} for {part}"
        return Mutant(file, *span, replacement, description)

    for found in BARRIER.finditer(text):
        yield mutant(found.span(), "")
    for span, opened in _guards(text):
        yield mutant(span, opened)
    for found in CLAMP.finditer(text):
        inner = _brackets(text, found.end())
        first, _ = _terms(text, inner, ",")
        yield mutant((found.start(), inner[1] + 1), text[slice(*first)])
    for found in FOR.finditer(text):
        *_, last = _terms(text, _brackets(text, found.end()), ";")
        if step := STEP.match(text, *last):
            yield mutant(step.span(1), f"{step[1]} + 1")


def _guards(text: str) -> Iterator[tuple[Span, str]]:
    """Where guards stand, and what opens them."""
    conditions = [_brackets(text, found.end()) for found in IF.finditer(text)]
    conditions += [(found.end(), text.index(";", found.end())) for found in TRUTH.finditer(text)]
    conditions += [(_begin(text, found.start()), found.start()) for found in CHOICE.finditer(text)]
    for condition in conditions:
        opened = "false" if WAY_OUT.match(text, condition[1]) else "true"
        for term in _terms(text, condition, "&&"):
            if not IS_CONSTANT.fullmatch(text, *term):
                yield term, opened
    for found in FOR.finditer(text):
        first, second, _ = _terms(text, _brackets(text, found.end()), ";")
        variable = text[slice(*first)].partition(" = ")[0].split()[-1]
        for term in _terms(text, second, "&&"):
            if not text.startswith(variable, term[0]):  # not the end of the loop
                yield term, "true"


def _without_comments(text: str) -> str:
    """The text, as long as before, with blanks for comments and lines of the preprocessor."""
    return re.sub(r"//.*|^#.*", lambda found: " " * len(found[0]), text, flags=re.MULTILINE)


def _brackets(text: str, begin: int) -> Span:
    """What stands between a bracket that ends at `begin` and the one that closes it."""
    depth = 1
    for at in range(begin, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return begin, at
    raise ValueError(f"a bracket is not closed: {text[begin - 20 : begin]}")


def _begin(text: str, end: int) -> int:
    """Where a condition of "?" begins that ends at `end`.

    Behind a bracket, a comma, "=", "return", or the "?" or ":" of another one.
    """
    depth = 0
    for at in range(end - 1, -1, -1):
        depth += (text[at] in ")]}") - (text[at] in "([{")
        edge = EDGE.match(text, at)
        if depth < 0 or (depth == 0 and edge):
            return _stripped(text, (edge.end() if edge else at + 1, end))[0]
    raise ValueError(f"an expression has no beginning: {text[end - 20 : end]}")


def _terms(text: str, span: Span, separator: str) -> list[Span]:
    """The parts of an expression between separators, without blanks around them."""
    spans, depth, begin = [], 0, span[0]
    for at in range(*span):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0 and text.startswith(separator, at):
            spans.append((begin, at))
            begin = at + len(separator)
    spans.append((begin, span[1]))
    return [_stripped(text, each) for each in spans]


def _stripped(text: str, span: Span) -> Span:
    part = text[slice(*span)]
    begin = span[0] + len(part) - len(part.lstrip())
    return begin, begin + len(part.strip())
