"""What is built is what stands in the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fresh_process
import pytest
from fresh_process import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Top-level folder -> where its files go in the wheel.
FOLDERS = {"lmkan_cupy": "lmkan_cupy", "adapters": "lmkan_cupy/adapters", "cuda": "lmkan_cupy/cuda"}


def tree() -> dict[str, str]:
    """Path in the wheel -> path in the repository, for all files of the package."""
    return {
        f"{target}/{file.relative_to(ROOT / folder).as_posix()}": file.relative_to(ROOT).as_posix()
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and the wheel built from it, out of a copy of the repository."""
    copy, target = tmp_path_factory.mktemp("copy") / "tree", tmp_path_factory.mktemp("built")
    kept_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=kept_out)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, copy],
        check=True,
        capture_output=True,
    )
    return target


def test_package_list_is_the_tree() -> None:
    """A sub-package that is forgotten in pyproject.toml is missing in every installation."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    holding_files = {path.rpartition("/")[0].replace("/", ".") for path in tree()}
    assert set(listed) == holding_files


def test_wheel_holds_the_tree(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == set(tree())


def test_sdist_holds_the_tree(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tree().values()) <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_wheel_works_from_another_folder(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = """
        import lmkan_cupy, lmkan_cupy.adapters.array, numpy
        print(lmkan_cupy.__file__, lmkan_cupy.adapters.array.__file__, lmkan_cupy.__version__)
        lmkan_cupy.forward(numpy.zeros((2, 4), "float32"), lmkan_cupy.init_tables(4, 3, 8))
    """
    package, adapter, version = fresh_process.run(code, tmp_path, package=installed).split()
    assert Path(package).parent == installed / "lmkan_cupy"
    assert Path(adapter).parent == installed / "lmkan_cupy" / "adapters"
    assert f"-{version}-" in wheel.name


def test_cuda_folder_holds_no_python() -> None:
    """`cuda` is NVIDIA's namespace package: a module of ours there would hide it."""
    assert not list((ROOT / "cuda").rglob("*.py"))
