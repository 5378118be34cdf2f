"""From kernel text to a library that runs it on the host, kept on disk under its content's hash."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from emulator.inline_ptx import translate

HERE = Path(__file__).parent
CACHE = HERE / "build"
RUNTIME_SOURCES = ("scheduler.cpp", "memory.cpp", "mbarrier.cpp", "faults.cpp")

MOST_SHARED_BYTES = 227 * 1024
"""What a block may have at most on any architecture; the launch plan knows each one's own limit."""

RED_ZONE_BYTES = 256
"""Left free behind every static shared variable, so that an index too large hits no other one."""

UNIT_FOLDER = "/unit"
HEADER_FOLDER = "/emulator"
"""What the two folders are called in debug information, wherever they are."""

COMMON_FLAGS = (
    "-std=gnu++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-g1",
    "-gdwarf-4",
)
KERNEL_FLAGS = (
    *COMMON_FLAGS,
    "-w",  # warnings about kernels are NVRTC's to give
    "-ffp-contract=off",
    "-fno-strict-aliasing",  # NVRTC does not use it, and kernels load through float4*
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-unroll-loops",
    "-fno-extern-tls-init",  # else a thread_local array in another unit is taken to be initialised
    "-fno-gnu-unique",
    "-fstack-clash-protection",  # a stack overflow hits the page that is there for it
)
UNCHECKED_FLAGS = ("-O2",)
CHECKED_FLAGS = (
    "-O1",
    "-fsanitize=thread,undefined,float-cast-overflow,bounds-strict",
    "-fno-sanitize-recover=all",
    "--param=tsan-instrument-func-entry-exit=0",
)
RUNTIME_FLAGS = (*COMMON_FLAGS, "-O2", "-Wall", "-Wextra")


class BuildError(Exception):
    """g++ refused the kernel text; the message is its own."""


def missing_tools() -> str | None:
    """Why nothing can be built here, or None."""
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        return f"the emulator is for Linux on x86_64, not for {machine}"
    missing = [tool for tool in ("g++", "as", "ld", "addr2line") if shutil.which(tool) is None]
    return f"not found: {', '.join(missing)} (packages g++ and binutils)" if missing else None


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
    objects = runtime_objects()
    name = _digest([unit, *flags, *(path.name for path in objects)])
    library = CACHE / f"kernels-{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _build_kernels(Path(folder), unit, flags, objects)
            # Two processes may build the same: whoever comes last replaces an equal file.
            os.replace(Path(folder, "kernels.so"), library)
    return library


def _build_kernels(folder: Path, unit: str, flags: Iterable[str], objects: Iterable[Path]) -> None:
    Path(folder, "unit.cpp").write_text(unit)
    folders = (
        f"-I{HERE / 'include'}",
        f"-fdebug-prefix-map={HERE}={HEADER_FOLDER}",
        f"-fdebug-prefix-map={folder}={UNIT_FOLDER}",
    )
    _run(["g++", *flags, *folders, "-S", "unit.cpp", "-o", "unit.s"], folder)
    assembly = Path(folder, "unit.s")
    assembly.write_text(_lay_out_shared_memory(assembly.read_text()))
    _run(["g++", "-shared", "unit.s", *map(str, objects), "-o", "kernels.so"], folder)


@cache
def runtime_objects() -> list[Path]:
    """The compiled runtime. It is linked into every library, so each has its own state."""
    texts = [(HERE / file).read_text() for file in _emulator_files()]
    version = subprocess.run(
        ["g++", "--version"], capture_output=True, text=True, check=True
    ).stdout
    digest = _digest([*texts, *RUNTIME_FLAGS, version])
    CACHE.mkdir(exist_ok=True)
    objects = [CACHE / f"{Path(file).stem}-{digest}.o" for file in RUNTIME_SOURCES]
    for file, target in zip(RUNTIME_SOURCES, objects, strict=True):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                _run(["g++", *RUNTIME_FLAGS, "-c", str(HERE / file), "-o", "runtime.o"], folder)
                os.replace(Path(folder, "runtime.o"), target)
    return objects


def _emulator_files() -> list[str]:
    """Everything a built library depends on, besides the kernel text."""
    headers = sorted(path.relative_to(HERE).as_posix() for path in HERE.rglob("*.h"))
    return [*headers, *RUNTIME_SOURCES]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _run(command: Sequence[str], folder: Path | str) -> None:
    english = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd=folder, env=english, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")


def _lay_out_shared_memory(assembly: str) -> str:
    """The kernel's assembly with red zones, dynamic shared memory and tables for the runtime.

    All `__shared__` variables are thread-local symbols by now. Those that the text defines get a
    red zone. Those that it only declares are `extern __shared__` arrays: names for one and the same
    piece of memory, which is defined here. Found in the assembly and not in the text, they may come
    out of macros and templates.
    """
    sizes: dict[str, int] = {}
    lines = []
    in_shared_memory = False
    for line in assembly.splitlines():
        section = re.match(r"\t\.(?:section\t(\S+?)[,\s]|text|data|bss)", line + " ")
        if section:
            name = section[1] or ""
            in_shared_memory = name.startswith(".tbss")
            if name.startswith(".tdata"):
                raise BuildError("a __shared__ variable cannot have an initial value")
        size = re.match(r"\t\.size\t([\w.$]+), (\d+)$", line)
        if in_shared_memory and size:
            sizes[size[1]] = int(size[2])
        lines.append(line)
        if in_shared_memory and line.startswith("\t.zero\t"):
            lines.append(f"\t.zero\t{RED_ZONE_BYTES}")
    mentioned = set(re.findall(r"([\w.$]+)@(?:tlsgd|dtpoff|gottpoff|tpoff)\b", assembly))
    dynamic_names = sorted(mentioned - set(sizes))
    lines += _dynamic_shared_memory(dynamic_names) + _tables(sizes)
    return "\n".join(lines) + "\n"


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

    def define(name: str, *values: str | int) -> None:
        lines.extend([f"\t.globl\t{name}", f"\t.hidden\t{name}", f"{name}:"])
        lines.extend(f"\t.quad\t{value}" for value in values)

    define("emulator_dynamic_shared_offset", "emulator_dynamic_shared@dtpoff")
    define("emulator_shared_variable_count", len(sizes))
    define("emulator_shared_variables")
    for number, (name, size) in enumerate(sizes.items()):
        lines.append(f"\t.quad\t{name}@dtpoff, {size}, .Lemulator_name_{number}")
    for number, name in enumerate(sizes):
        lines.append(f'.Lemulator_name_{number}:\n\t.string\t"{name}"')
    return lines
