"""Inline PTX statements, replaced by calls that a C++ compiler knows.

A host assembler knows no PTX, so each `asm` statement of a kernel becomes a call of the function
in `cuda_language.h` that does the same. Known are asynchronous copies (`cp.async`, also in bulk),
barriers in shared memory (`mbarrier`), whose model includes what goes wrong when a wait is missing,
and vectors in shared memory by its own addresses. Any other instruction is an error, but
only where the preprocessor keeps it: the branch for another `__CUDA_ARCH__` may hold any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ASM_STATEMENT = re.compile(r"\b(?:asm|__asm__)\b(?:\s+(?:volatile|__volatile__))?\s*\(")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
OPERAND = re.compile(r'"[^"]*"\s*\((.*)\)', re.DOTALL)

COPY = re.compile(
    r"cp\.async\.(?P<cache>c[ag])\.shared(?:::cta)?\.global(?:\.L2::\w+)?\s*"
    r"\[(?P<target>[^\]]+)\]\s*,\s*\[(?P<source>[^\]]+)\]\s*,\s*(?P<bytes>[^,]+)"
    r"(?:,\s*(?P<source_bytes>[^,]+))?"
)
ALLOWED_BYTES = {"ca": ("4", "8", "16"), "cg": ("16",)}

VECTOR = r"\{(?P<a>[^,]+),(?P<b>[^,]+),(?P<c>[^,]+),(?P<d>[^}]+)\}"
INSTRUCTIONS = {
    r"cp\.async\.commit_group": "emulator::ptx_cp_async_commit_group();",
    r"cp\.async\.wait_all": "emulator::ptx_cp_async_wait_all();",
    r"cp\.async\.wait_group\s+(?P<pending>\S+)": "emulator::ptx_cp_async_wait_group({pending});",
    r"cp\.async\.mbarrier\.arrive\.noinc\.shared\.b64\s*\[(?P<barrier>[^\]]+)\]": (
        "emulator::ptx_cp_async_mbarrier_arrive_noinc({barrier});"
    ),
    r"cp\.async\.bulk\.shared::cluster\.global\.mbarrier::complete_tx::bytes\s*"
    r"\[(?P<target>[^\]]+)\]\s*,\s*\[(?P<source>[^\]]+)\]\s*,\s*(?P<bytes>[^,]+),\s*"
    r"\[(?P<barrier>[^\]]+)\]": (
        "emulator::ptx_cp_async_bulk({target}, (const void*)({source}), {bytes}, {barrier});"
    ),
    r"mbarrier\.init\.shared\.b64\s*\[(?P<barrier>[^\]]+)\]\s*,\s*(?P<arrivals>.+)": (
        "emulator::ptx_mbarrier_init({barrier}, {arrivals});"
    ),
    r"mbarrier\.arrive\.shared\.b64\s+\w+\s*,\s*\[(?P<barrier>[^\]]+)\]": (
        "emulator::ptx_mbarrier_arrive({barrier});"
    ),
    r"mbarrier\.arrive\.expect_tx\.shared\.b64\s+\w+\s*,\s*\[(?P<barrier>[^\]]+)\]\s*,"
    r"\s*(?P<bytes>.+)": "emulator::ptx_mbarrier_arrive_expect_tx({barrier}, {bytes});",
    r"mbarrier\.(?P<kind>try|test)_wait\.parity\.shared\.b64\s+(?P<ended>\w+)\s*,\s*"
    r"\[(?P<barrier>[^\]]+)\]\s*,\s*(?P<parity>.+)": (
        "ptx_{ended} = emulator::ptx_mbarrier_{kind}_wait_parity({barrier}, {parity});"
    ),
    r"fence\.mbarrier_init\.release\.cluster": "",  # memory is sequentially consistent
    rf"ld\.shared\.v4\.f32\s*{VECTOR}\s*,\s*\[(?P<source>[^\]]+)\]": (
        "{{ const float4 loaded = emulator::ptx_ld_shared_v4_f32({source}); "
        "{a} = loaded.x; {b} = loaded.y; {c} = loaded.z; {d} = loaded.w; }}"
    ),
    rf"st\.shared\.v4\.f32\s*\[(?P<target>[^\]]+)\]\s*,\s*{VECTOR}": (
        "emulator::ptx_st_shared_v4_f32({target}, make_float4({a}, {b}, {c}, {d}));"
    ),
    r"\.reg\s*\.b64\s+(?P<name>\w+)": "",  # of a result that nobody uses
    r"\.reg\s*\.pred\s+(?P<name>\w+)": "bool ptx_{name};",
    r"selp\.u32\s+(?P<target>[^,]+),\s*(?P<yes>[^,]+),\s*(?P<no>[^,]+),\s*(?P<predicate>\w+)": (
        "{target} = ptx_{predicate} ? {yes} : {no};"
    ),
}
"""Whole instructions, and the C++ that stands for them: groups are operands or names."""


def translate(source: str) -> str:
    """The source with every `asm` statement replaced; all line numbers stay as they are."""
    pieces = []
    position = 0
    for statement in _statements(source):
        pieces.append(source[position : statement.start])
        pieces.append(_call(statement.body))
        pieces.append("\n" * statement.text.count("\n"))
        position = statement.end
    pieces.append(source[position:])
    return "".join(pieces)


class _Statement:
    """One `asm ( body )`, from `start` to `end` in the source."""

    def __init__(self, source: str, start: int, body_start: int, body_end: int) -> None:
        self.start = start
        self.end = body_end + 1
        self.text = source[start : self.end]
        self.body = source[body_start:body_end]


def _statements(source: str) -> Iterator[_Statement]:
    for match in ASM_STATEMENT.finditer(source):
        body_end = _closing_bracket(source, match.end())
        yield _Statement(source, match.start(), match.end(), body_end)


def _closing_bracket(text: str, position: int) -> int:
    """The index of the bracket that closes the one before `position`."""
    depth = 1
    while position < len(text):
        string = STRING.match(text, position)
        if string:
            position = string.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
        position += 1
    raise ValueError("an asm statement is not closed")


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside strings and brackets; `::` of a C++ name is no separator."""
    parts = [""]
    position = 0
    while position < len(text):
        string = STRING.match(text, position)
        if string:
            parts[-1] += string[0]
            position = string.end()
        elif text[position] == "(":
            end = _closing_bracket(text, position + 1) + 1
            parts[-1] += text[position:end]
            position = end
        elif text[position] == separator:
            parts.append("")
            position += 1
        else:
            parts[-1] += text[position]
            position += 1
    return parts


def _call(body: str) -> str:
    template, *sections = _split(body, ":")
    operands = []
    for section in sections[:2]:  # outputs, inputs; a third section lists clobbers
        for operand in _split(section, ","):
            match = OPERAND.search(operand)
            if match:
                operands.append(match[1])
    text = "".join(STRING.findall(template)).replace("\\n", " ").replace("\\t", " ")
    block = re.fullmatch(r"\s*\{(.*;\s*)\}\s*", text)  # its registers are local
    instructions = [part.strip() for part in (block[1] if block else text).split(";")]
    calls = [_instruction(instruction, operands) for instruction in instructions if instruction]
    return "do { " + " ".join(calls) + " } while (0)"


def _instruction(instruction: str, operands: list[str]) -> str:
    def value(operand: str) -> str:
        operand = operand.strip()
        return f"({operands[int(operand[1:])]})" if operand.startswith("%") else operand

    for pattern, call in INSTRUCTIONS.items():
        if found := re.fullmatch(pattern, instruction):
            return call.format(**{name: value(text) for name, text in found.groupdict().items()})
    copy = COPY.fullmatch(instruction)
    if copy:
        size = value(copy["bytes"])
        source_bytes = value(copy["source_bytes"]) if copy["source_bytes"] else size
        allowed = " || ".join(f"({size}) == {n}" for n in ALLOWED_BYTES[copy["cache"]])
        return (
            f'static_assert({allowed}, "size of cp.async.{copy["cache"]}"); '
            f"emulator::ptx_cp_async({value(copy['target'])}, "
            f"(const void*)({value(copy['source'])}), {size}, {source_bytes});"
        )
    return f'_Pragma("GCC error \\"the emulator has no translation of PTX {instruction}\\"")'
