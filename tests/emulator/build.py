"""From kernel text to a library that runs it on the host, kept on disk under its content's hash."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from emulator.inline_ptx import translate

HERE = Path(__file__).parent
CACHE = HERE / "build"
RUNTIME_SOURCES = ("scheduler.cpp", "memory.cpp", "mbarrier.cpp", "faults.cpp", "library.cpp")

MOST_SHARED_BYTES = 227 * 1024
"""What a block may have at most on any architecture; the launch plan knows each one's own limit."""

RED_ZONE_BYTES = 256
"""Left free behind every static shared variable, so that an index too large hits no other one."""

COMMON_FLAGS = (
    *("-target", "x86_64-linux-gnu"),  # for any such processor that converts halves
    "-mf16c",
    "-std=gnu++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-stack-protector",
)
KERNEL_FLAGS = (
    *COMMON_FLAGS,
    "-g1",  # where each instruction comes from, for `_tables`
    "-w",  # warnings about kernels are NVRTC's to give
    "-ffp-contract=off",
    "-fno-strict-aliasing",  # NVRTC does not use it, and kernels load through float4*
    "-fno-unroll-loops",
    "-fno-optimize-sibling-calls",  # a check reports where it returns to
    "-fstack-clash-protection",  # a stack overflow hits the page that is there for it
)
UNCHECKED_FLAGS = ("-O2",)
CHECKED_FLAGS = (
    "-O1",
    "-fsanitize=thread,undefined,float-cast-overflow",
    "-fno-sanitize=vptr,function",
    "-fno-sanitize-recover=all",
    "-fsanitize-recover=pointer-overflow",  # faults.cpp makes an exception of null
    *("-mllvm", "-tsan-instrument-func-entry-exit=0"),
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
    *("-mllvm", "-instcombine-code-sinking=0"),  # else some loads happen in a branch alone
)
RUNTIME_FLAGS = (
    *COMMON_FLAGS,
    "-O2",
    "-Wall",
    "-Wextra",
    "-fno-threadsafe-statics",
    "-fno-c++-static-destructors",
)


class BuildError(Exception):
    """The compiler refused the kernel text; the message is its own."""


def missing_tools() -> str | None:
    """Why nothing can be built here, or None."""
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        return f"the emulator is for Linux on x86_64, not for {machine}"
    if importlib.util.find_spec("ziglang") is None:
        return "not found: ziglang, a C++ compiler in a wheel (pip install ziglang)"
    return None


def build(source: str, kernels: Sequence[str], *, file: str, arch: int, check: bool) -> Path:
    """Path of the library that holds `kernels`; compiled unless that very text was before.

    Parameters are those of `emulator.compile`.
    """
    unit = "\n".join(
        [
            f"#define __CUDA_ARCH__ {arch}",
            f'#include "{HERE / "cuda_language.h"}"',
            f'#line 1 "{file}"',
            translate(source),
            '#line 1 "kernel entries"',
            *(f"EMULATED_KERNEL({name})" for name in kernels),
            "",
        ]
    )
    flags = KERNEL_FLAGS + (CHECKED_FLAGS if check else UNCHECKED_FLAGS)
    name = _digest([unit, *flags, runtime().name])
    library = CACHE / f"kernels-{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _build_kernels(Path(folder), unit, flags)
            # Two processes may build the same: whoever comes last replaces an equal file.
            os.replace(Path(folder, "kernels.so"), library)
    return library


def _build_kernels(folder: Path, unit: str, flags: Iterable[str]) -> None:
    Path(folder, "unit.cpp").write_text(unit)
    _zig(["c++", *flags, f"-I{HERE / 'include'}", "-S", "unit.cpp", "-o", "unit.s"], folder)
    assembly = Path(folder, "unit.s")
    assembly.write_text(_with_tables(assembly.read_text()))
    _zig(["c++", *COMMON_FLAGS[:2], "-c", "unit.s", "-o", "unit.o"], folder)
    # The linker alone: "c++ -shared" would first compile a C++ library of its own.
    _zig(["ld.lld", "-shared", "-S", "unit.o", str(runtime()), "-o", "kernels.so"], folder)


@cache
def runtime() -> Path:
    """The compiled runtime. It is linked into every library, so each has its own state."""
    digest = _digest([*map(Path.read_text, _emulator_files()), *RUNTIME_FLAGS, version("ziglang")])
    target = CACHE / f"runtime-{digest}.o"
    if not target.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            # As one text: most of the time goes into the headers that they have in common.
            text = "".join(f'#include "{HERE / file}"\n' for file in RUNTIME_SOURCES)
            Path(folder, "runtime.cpp").write_text(text)
            _zig(["c++", *RUNTIME_FLAGS, "-c", "runtime.cpp", "-o", "runtime.o"], folder)
            os.replace(Path(folder, "runtime.o"), target)
    return target


def _emulator_files() -> list[Path]:
    """Everything a built library depends on, besides the kernel text."""
    return [Path(__file__), *sorted(HERE.rglob("*.h")), *(HERE / file for file in RUNTIME_SOURCES)]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _zig(command: Sequence[str], folder: Path | str) -> None:
    """Run a tool of zig in a temporary folder, where its own cache of what it did is of no use."""
    import ziglang

    zig = Path(ziglang.__file__).with_name("zig")
    caches = dict.fromkeys(
        ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(Path(folder, "zig"))
    )
    done = subprocess.run(
        [zig, *command],
        cwd=folder,
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(done.stderr.strip() or f"zig {command[0]} ended with {done.returncode}")


LINE_OF_INTEREST = re.compile(
    r"^\t\.(?:"
    r"(?:section\t(?P<section>[^\s,]+)|text|data|bss)\b.*"
    r"|size\t(?P<name>[\w.$]+), (?P<bytes>\d+)$"
    r"|zero\t(?P<zero>\d+)$"
    r"|loc\t\d+ [1-9].*# (?P<trace>.*)$"
    r")",
    re.MULTILINE,
)


def _with_tables(assembly: str) -> str:
    """The kernel's assembly with red zones, dynamic shared memory and tables for the runtime.

    All `__shared__` variables are thread-local symbols by now. Those that the text defines get a
    red zone. Those that it only declares are `extern __shared__` arrays: names for one and the same
    piece of memory, which is defined here. Found in the assembly and not in the text, they may come
    out of macros and templates.
    """
    sizes: dict[str, int] = {}
    traces: list[str] = []
    in_shared_memory = False

    def replaced(found: re.Match[str]) -> str:
        nonlocal in_shared_memory
        line = found[0]
        if found["trace"]:
            traces.append(found["trace"])
            return f".Lemulator_code_{len(traces) - 1}:\n{line}"
        if found["name"]:
            if in_shared_memory:
                sizes[found["name"]] = int(found["bytes"])
        elif found["zero"]:
            if in_shared_memory:
                return f"{line}\n\t.zero\t{RED_ZONE_BYTES}"
        else:
            section = found["section"] or ""
            in_shared_memory = section.startswith(".tbss")
            if section.startswith(".tdata"):
                raise BuildError("a __shared__ variable cannot have an initial value")
        return line

    text = LINE_OF_INTEREST.sub(replaced, assembly)
    mentioned = set(re.findall(r"([\w.$]+)@(?:TLSGD|TLSLD|DTPOFF|GOTTPOFF|TPOFF)\b", assembly))
    added = _dynamic_shared_memory(sorted(mentioned - set(sizes)))
    return "\n".join([text, *added, *_tables(sizes), *_lines(traces)]) + "\n"


def _dynamic_shared_memory(names: Iterable[str]) -> list[str]:
    lines = [
        '\t.section\t.tbss.dynamic,"awT",@nobits',
        "\t.balign\t1024",
        "\t.globl\temulator_dynamic_shared",
        "\t.hidden\temulator_dynamic_shared",
        "\t.type\temulator_dynamic_shared, @tls_object",
        "emulator_dynamic_shared:",
        f"\t.zero\t{MOST_SHARED_BYTES}",
    ]
    for name in names:
        lines += [
            f"\t.globl\t{name}",
            f"\t.hidden\t{name}",
            f"\t.type\t{name}, @tls_object",
            f"\t.set\t{name}, emulator_dynamic_shared",
        ]
    return lines


def _tables(sizes: dict[str, int]) -> list[str]:
    """The variables that scheduler.cpp declares as extern."""
    lines = ['\t.section\t.data.rel.ro.emulator,"aw"', "\t.balign\t8"]
    lines += _global("emulator_dynamic_shared_offset")
    lines += ["\t.quad\temulator_dynamic_shared@DTPOFF"]
    lines += [*_global("emulator_shared_variable_count"), f"\t.quad\t{len(sizes)}"]
    lines += _global("emulator_shared_variables")
    for number, (name, size) in enumerate(sizes.items()):
        lines.append(f"\t.quad\t{name}@DTPOFF, {size}, .Lemulator_name_{number}")
    for number, name in enumerate(sizes):
        lines.append(f'.Lemulator_name_{number}:\n\t.string\t"shared {_readable(name)}"')
    return lines


def _readable(mangled: str) -> str:
    """ "function::variable" of `_ZZ<length><function>...E<length><variable>`, else as it is."""
    function = re.match(r"_ZZ(\d+)", mangled)
    variable = re.search(r"E\d+([A-Za-z_]\w*)$", mangled)
    if not function or not variable:
        return mangled
    return f"{mangled[function.end() :][: int(function[1])]}::{variable[1]}"


def _lines(traces: Sequence[str]) -> list[str]:
    """For faults.cpp: where code begins that comes from another line, and which that is.

    The compiler writes "file:line:column @[ file:line:column ]", an inlined function first.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(traces))}
    lines = ['\t.section\t.rodata.emulator,"a"', "\t.balign\t4"]
    lines += _global("emulator_lines")
    for number, text in enumerate(traces):
        lines += [f"\t.long\t.Lemulator_code_{number} - ., .Lemulator_trace_{numbers[text]} - ."]
    lines += ["\t.long\t0, 0"]
    for text, number in numbers.items():
        places = re.findall(r"([^\[\]@]+?):(\d+)(?::\d+)?(?: |$)", text)
        kept = [f"{file.strip()}:{line}" for file, line in places if str(HERE) not in file]
        lines.append(f'.Lemulator_trace_{number}:\n\t.string\t"{"|".join(kept)}"')
    return lines


def _global(name: str) -> list[str]:
    return [f"\t.globl\t{name}", f"\t.hidden\t{name}", f"{name}:"]
