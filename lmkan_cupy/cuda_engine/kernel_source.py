"""The text of a kernel: a preamble of constants, then a file of ``cuda/`` with its headers.

Headers are pasted into the text instead of found by the compiler, because CuPy's disk cache does
not see what is in them.
"""

import re
from collections.abc import Callable, Iterable
from importlib.resources import files

import numpy as np

from ..grid import sigma_grid
from .plan import Source

#: dtype -> its name in CUDA C, and the header that defines it.
_CUDA_TYPES = {
    "float32": ("float", None),
    "float64": ("double", None),
    "float16": ("__half", "cuda_fp16.h"),
    "bfloat16": ("__nv_bfloat16", "cuda_bf16.h"),
}


def read(file: str) -> str:
    """Return a file of ``cuda/``."""
    return files("lmkan_cupy.cuda").joinpath(file).read_text("utf-8")


def text(source: Source, read: Callable[[str], str] = read) -> str:
    """Return the text to compile.

    Parameters
    ----------
    source : Source
    read : callable
        Returns the text of a file; tests pass one that returns broken text.

    Returns
    -------
    str
        With ``#line`` directives, so that compiler messages name the files of ``cuda/``.
    """
    return _preamble(source) + _pasted(source.file, read)


def _preamble(source: Source) -> str:
    table, header = _CUDA_TYPES[source.table]
    real, _ = _CUDA_TYPES[source.real]
    constants = {
        "REAL": real,
        "TABLE": table,
        "TABLE_IS_FLOAT16": int(source.table == "float16"),
        "TABLE_IS_BFLOAT16": int(source.table == "bfloat16"),
        "DIMENSION": source.dimension,
        "NUM_GRIDS": source.num_grids,
        **dict(source.constants),
    }
    lines = [f"#include <{header}>"] if header else []
    lines += [f"#define {name} {value}" for name, value in constants.items()]
    lines.append(f"__device__ const REAL GRID[NUM_GRIDS + 1][3] = {_grid(source)};")
    return "\n".join(lines) + "\n"


def _grid(source: Source) -> str:
    """Return an initialiser: per knot k_i, 1 / h_i and 1 / (h_{i-1} + h_i), h_i = k_{i+1} - k_i.

    Where an outermost knot has no such neighbour, there is a zero.
    """
    wide = sigma_grid(source.num_grids, dtype=source.real).astype(np.float64)
    inverse_width = np.append(1 / np.diff(wide), 0)
    inverse_span = np.pad(1 / (wide[2:] - wide[:-2]), 1)
    suffix = "f" if source.real == "float32" else ""
    rows = np.column_stack([wide, inverse_width, inverse_span]).astype(source.real)
    # repr gives enough digits to make every value exact.
    return _braced(_braced(f"{float(each)!r}{suffix}" for each in row) for row in rows)


def _braced(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"


def _pasted(file: str, read: Callable[[str], str]) -> str:
    """Return a file, every ``#include "header"`` in it replaced by the header, once."""
    pasted: set[str] = set()

    def paste(name: str) -> str:
        pasted.add(name)
        lines = read(name).splitlines()
        for number, line in enumerate(lines):
            if include := re.fullmatch(r'#include "(.+)"', line):
                header = include[1]
                body = "" if header in pasted else paste(header)
                lines[number] = f'{body}#line {number + 2} "{name}"'
        return "\n".join([f'#line 1 "{name}"', *lines, ""])

    return paste(file)
