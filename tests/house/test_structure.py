"""The structure of the repository: which module may import which, and what a folder may hold.

Every rule is a function that lists what breaks it below a given folder. It is applied to the
repository, and to small trees with one violation each, which it must find.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from fresh_process import ROOT

#: Folder with files of ours -> the other folders that its modules may import. No module imports
#: anything of `cuda`, which is read as text.
MAY_IMPORT = {
    "cuda": set(),
    "lmkan_cupy": set(),
    "adapters": {"lmkan_cupy"},
    "bench": {"lmkan_cupy", "adapters"},
    "tests": {"lmkan_cupy", "adapters", "bench"},
}
#: The one module of the core that may import an adapter, inside a function.
COMMAND_LINE = Path("lmkan_cupy/__main__.py")

#: Front end -> the other front ends that it may use.
MAY_USE = {
    "sklearn": {"torch"},
    "fitting": {"torch", "sklearn"},
    "inspection": {"torch", "sklearn", "fitting"},
}

MOST_LINES = 600
SOURCES = {".py", ".cu", ".cuh"}

MOST_CHARACTERS = 120

FOLDERS_OF_TESTS = ["core", "cuda", "adapters", "bench", "house"]


class Module(NamedTuple):
    path: Path
    """From the root."""
    package: str
    """Where its relative imports start."""
    tree: ast.Module

    @property
    def folder(self) -> str:
        return self.path.parts[0]

    @property
    def in_adapters(self) -> tuple[str, ...]:
        """Its name below `adapters`, ("torch", "layers"); empty for modules that are elsewhere."""
        return self.path.with_suffix("").parts[1:] if self.folder == "adapters" else ()

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


class Import(NamedTuple):
    module: Module
    target: Module
    line: int
    taken: str
    """The name that is taken out of the target, "" where it is the target itself."""
    local: str
    """What stands for the target, or for the name, in the module."""
    in_function: bool

    def __str__(self) -> str:
        of = f"{self.taken} of " if self.taken else ""
        return (
            f"{self.module.path.as_posix()}:{self.line} imports {of}{self.target.path.as_posix()}"
        )


def files(root: Path, *suffixes: str) -> list[Path]:
    """Our files with one of these endings: at the root and in our folders, but none that are built.

    Other tests may build files at the same time.
    """
    found = [Path(file.name) for file in root.iterdir()]
    for name in MAY_IMPORT:
        for folder, subfolders, file_names in os.walk(root / name):
            subfolders[:] = [each for each in subfolders if each != "build"]
            found += [Path(folder, each).relative_to(root) for each in file_names]
    return sorted(path for path in found if path.suffix in suffixes)


@cache
def modules(root: Path) -> dict[str, Module]:
    """All modules by the names under which they are imported."""
    found = {}
    for path in files(root, ".py"):
        parts = list(path.with_suffix("").parts)
        if parts[0] not in MAY_IMPORT:
            continue
        if parts[0] == "adapters":
            parts.insert(0, "lmkan_cupy")
        elif parts[0] == "tests":  # stands on the search path of the tests
            del parts[0]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        package = name if is_package else name.rpartition(".")[0]
        found[name] = Module(path, package, ast.parse((root / path).read_text()))
    return found


def imported(node: ast.AST, package: str) -> Iterator[tuple[str, str, str]]:
    """What a statement or a call imports: a module, a name in it or "", and its local name."""
    if isinstance(node, ast.Import):
        for each in node.names:
            yield each.name, "", each.asname or each.name
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        parents = parents[: len(parents) - node.level + 1] if node.level else []
        base = ".".join([*parents, node.module or ""]).strip(".")
        for each in node.names:
            yield base, each.name, each.asname or each.name
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        argument = ast.unparse(node.args[0]).replace("{__package__}", package)
        if text := re.fullmatch(r"f?'([\w.]+)'", argument):
            yield text[1], "", ""


@cache
def imports(root: Path) -> list[Import]:
    """Every import of one of our modules by another, wherever in the module it stands."""
    known = modules(root)
    found = []
    for module in known.values():
        nodes = [*ast.walk(module.tree)]
        functions = [
            range(each.lineno, (each.end_lineno or each.lineno) + 1)
            for each in nodes
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        for node in nodes:
            for base, name, local in imported(node, module.package):
                taken = "" if f"{base}.{name}" in known else name
                target = known.get(base if taken or not name else f"{base}.{name}")
                if target is not None:
                    line = getattr(node, "lineno", 0)
                    in_function = any(line in each for each in functions)
                    found.append(Import(module, target, line, taken, local, in_function))
    return found


def wrong_directions(root: Path) -> list[str]:
    """Imports go one way; the command line alone goes up, and only when a command needs it."""
    return [
        str(each)
        for each in imports(root)
        if each.target.folder not in {each.module.folder, *MAY_IMPORT[each.module.folder]}
        and not (
            each.module.path == COMMAND_LINE
            and each.target.folder == "adapters"
            and each.in_function
        )
    ]


def circles(root: Path) -> list[str]:
    """No module imports itself by way of others, in functions or for type checkers either."""
    graph: dict[str, set[str]] = {}
    for each in imports(root):
        graph.setdefault(each.module.path.as_posix(), set()).add(each.target.path.as_posix())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def private_names(root: Path) -> list[str]:
    """No module uses a `_name` of another; tests may, to replace it."""
    found = []
    for each in imports(root):
        if each.module.folder == "tests":
            continue
        names = [each.taken] if each.taken else used_of(each.local, each.module.tree)
        found += [f"{each}, whose {name} is private" for name in names if is_private(name)]
    return found


def used_of(local: str, tree: ast.Module) -> list[str]:
    """The attributes that a module uses of what it calls `local`."""
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return [node.attr for node in attributes if ast.unparse(node.value) == local]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def front_ends_inside_each_other(root: Path) -> list[str]:
    """A front end uses only those that it may, and of these only what their packages offer."""
    found = []
    for each in imports(root):
        module, target = each.module.in_adapters, each.target.in_adapters
        if not module or not target or module[0] == target[0]:
            continue
        if target[0] not in MAY_USE.get(module[0], set()):
            found.append(f"{each}, another front end")
        elif len(target) > 1 and not each.target.is_package:
            found.append(f"{each}, an inner module of another front end")
    return found


def imports_under_a_second_name(root: Path) -> list[str]:
    """Adapters are imported as `lmkan_cupy.adapters`: under another name they would run twice."""
    return [
        f"{module.path.as_posix()}:{node.lineno} imports {base}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for base, *_ in imported(node, module.package)
        if base.partition(".")[0] == "adapters"
    ]


def long_files(root: Path) -> list[str]:
    counts = {path: len((root / path).read_text().splitlines()) for path in files(root, *SOURCES)}
    return [
        f"{path.as_posix()} has {count} lines"
        for path, count in counts.items()
        if count > MOST_LINES
    ]


def python_in_cuda(root: Path) -> list[str]:
    """`cuda` is a namespace package of NVIDIA's: a module of ours there would hide it."""
    return [path.as_posix() for path in files(root, ".py") if path.parts[0] == "cuda"]


def long_lines(root: Path) -> list[str]:
    """Lines of Markdown are short, but for those that cannot be broken: tables, code, addresses."""
    found = []
    for path in files(root, ".md"):
        in_code = False
        for number, line in enumerate((root / path).read_text().splitlines(), 1):
            if line.lstrip().startswith("```"):
                in_code = not in_code
            if in_code or line.lstrip().startswith("|") or len(line) <= MOST_CHARACTERS:
                continue
            words = re.sub(r"`[^`]*`", "code", line).strip("->#* ").split()
            if len(words) > 1:
                found.append(f"{path.as_posix()}:{number} has {len(line)} characters")
    return found


def misplaced_tests(root: Path) -> list[str]:
    """Tests stand in a folder below `tests`, and what several of them need in `tests` itself.

    In `tests/adapters` and `tests/bench` a file is named after the module or package that it tests.
    In the other folders many files are named after a property that holds for several modules.
    """
    found = []
    for path in files(root, ".py"):
        if path.parts[0] != "tests" or path.parts[1] == "emulator":
            continue
        is_test, in_folder = path.name.startswith("test_"), len(path.parts) > 2
        if is_test != in_folder and path.name != "conftest.py":
            found.append(f"{path.as_posix()} is in the wrong folder")
        elif in_folder and path.parts[1] not in FOLDERS_OF_TESTS:
            found.append(f"{path.as_posix()} is in a folder that is none of the tests'")
        elif is_test and path.parts[1] in ("adapters", "bench"):
            names = {
                part
                for each in files(root, ".py")
                for part in each.with_suffix("").parts[1:]
                if each.parts[0] == path.parts[1]
            }
            words = path.stem.split("_")[1:]
            if names.isdisjoint("_".join(words[: n + 1]) for n in range(len(words))):
                found.append(f"{path.as_posix()} is named after no module")
    return found


#: Rule -> trees that break it: file -> text.
RULES: dict[Callable[[Path], list[str]], list[dict[str, str]]] = {
    wrong_directions: [
        {"lmkan_cupy/grid.py": "from .adapters import array", "adapters/array.py": ""},
        {"lmkan_cupy/grid.py": "def f():\n    import bench.cpu", "bench/cpu.py": ""},
        {"lmkan_cupy/__main__.py": "from .adapters import array", "adapters/array.py": ""},
        {"adapters/array.py": "from bench import cpu", "bench/cpu.py": ""},
        {"bench/cpu.py": "import oracle", "tests/oracle.py": ""},
    ],
    circles: [
        {
            "lmkan_cupy/grid.py": "from . import tables",
            "lmkan_cupy/tables.py": "def f():\n    from lmkan_cupy.grid import locate",
        },
        {
            "adapters/torch/__init__.py": "from .layers import Layer",
            "adapters/torch/layers.py": "from ..torch import schedule, lmkan",
        },
        {
            "bench/cpu.py": "from .gpu import layers",
            "bench/gpu/layers.py": "if TYPE_CHECKING:\n    from ..cpu import Case",
        },
        {
            "adapters/torch/layers.py": "from . import operators",
            "adapters/torch/operators.py": "import_module(f'{__package__}.layers')",
        },
    ],
    private_names: [
        {"adapters/array.py": "from lmkan_cupy.grid import _knots", "lmkan_cupy/grid.py": ""},
        {"bench/cpu.py": "from lmkan_cupy import grid as g\ng._knots", "lmkan_cupy/grid.py": ""},
        {
            "bench/cpu.py": "import lmkan_cupy.grid\nlmkan_cupy.grid._knots",
            "lmkan_cupy/grid.py": "",
        },
    ],
    front_ends_inside_each_other: [
        {"adapters/jax.py": "from .torch import lmkan", "adapters/torch/__init__.py": ""},
        {"adapters/torch/__init__.py": "from .. import sklearn", "adapters/sklearn.py": ""},
        {"adapters/sklearn.py": "from .torch.layers import Layer", "adapters/torch/layers.py": ""},
        {"adapters/fitting/fit.py": "from ..torch import layers", "adapters/torch/layers.py": ""},
        {"adapters/sklearn.py": "from . import inspection", "adapters/inspection/__init__.py": ""},
    ],
    imports_under_a_second_name: [
        {"bench/cpu.py": "import adapters.torch"},
        {"tests/core/test_grid.py": "def test():\n    from adapters import torch"},
    ],
    long_files: [
        {"bench/cpu.py": "\n" * (MOST_LINES + 1)},
        {"cuda/forward.cu": "\n" * (MOST_LINES + 1)},
    ],
    python_in_cuda: [{"cuda/__init__.py": ""}],
    long_lines: [
        {"README.md": "word " * 25},
        {"cuda/README.md": "- `code` and " + "x" * MOST_CHARACTERS},
    ],
    misplaced_tests: [
        {"tests/test_grid.py": ""},
        {"tests/core/oracle.py": ""},
        {"tests/misc/test_grid.py": ""},
        {"tests/adapters/test_layers.py": "", "adapters/torch/__init__.py": ""},
    ],
}

#: A tree that breaks no rule, though it comes near to breaking some.
RIGHT = {
    "README.md": f"`{'code ' * 30}`\n| {'cell ' * 30}|\n```\n{'code ' * 30}\n```\n",
    "lmkan_cupy/__init__.py": "from .grid import locate",
    "lmkan_cupy/__main__.py": "def command():\n    from .adapters import fitting",
    "lmkan_cupy/grid.py": "import numpy as np\n_knots = np._private",
    "lmkan_cupy/cpu_engine/kernels.py": "\n" * MOST_LINES,
    "adapters/fitting/__init__.py": "from ..torch.training import fit\nfrom .. import sklearn",
    "adapters/inspection/__init__.py": "from ..fitting import load\nfrom ..torch import fuse",
    "adapters/sklearn.py": "from .torch import LMKANLinear\nimport torch",
    "adapters/torch/__init__.py": "import lmkan_cupy\nfrom .layers import LMKANLinear",
    "adapters/torch/training/__init__.py": "from .. import LMKANLinear",
    "adapters/torch/layers.py": "import_module('cupy')\nself._state\nlmkan_cupy.__version__",
    "bench/cpu.py": "from lmkan_cupy.adapters.torch.layers import LMKANLinear",
    "tests/emulator/build/tmp/unit.cu": "\n" * (MOST_LINES + 1),
    "tests/oracle.py": "",
    "tests/conftest.py": "import oracle",
    "tests/core/test_properties.py": "from lmkan_cupy.grid import _knots\nfrom bench import cpu",
    "tests/adapters/test_torch_layers.py": "import oracle",
}


def grow(root: Path, tree: dict[str, str]) -> Path:
    for path, text in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_repository() -> None:
    """All rules in one process, which reads the files once."""
    broken = [f"{rule.__name__}: {each}" for rule in RULES for each in rule(ROOT)]
    assert not broken, "\n".join(["", *broken])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_right_passes(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert rule(grow(tmp_path, RIGHT)) == []


@pytest.mark.parametrize(
    ("rule", "tree"),
    [
        pytest.param(rule, tree, id=f"{rule.__name__}-{number}")
        for rule, trees in RULES.items()
        for number, tree in enumerate(trees)
    ],
)
def test_what_is_wrong_is_found(
    rule: Callable[[Path], list[str]], tree: dict[str, str], tmp_path: Path
) -> None:
    assert len(rule(grow(tmp_path, tree))) == 1
