"""What is built is what stands in the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and the wheel built from it, out of a copy of the repository."""
    copy, target = tmp_path_factory.mktemp("copy") / "tree", tmp_path_factory.mktemp("built")
    left_out = (".git", ".venv", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_out))
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


@pytest.mark.long
def test_wheel_holds_the_tree(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == set(tree())


@pytest.fixture(scope="session")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the unpacked sdist."""
    (sdist,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


@pytest.mark.long
def test_sdist_holds_what_is_tracked(unpacked: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout, so nothing tells what is tracked")
    assert [each for each in listed.stdout.splitlines() if not (unpacked / each).exists()] == []


@pytest.mark.long
def test_sdist_holds_nothing_generated(unpacked: Path) -> None:
    generated = ("*.pyc", "__pycache__", "*.so", "*-smoke-*", "results/report.html")
    assert [each for pattern in generated for each in unpacked.rglob(pattern)] == []


@pytest.mark.long
def test_tests_run_from_the_sdist(unpacked: Path) -> None:
    """Some of every folder, one that compiles the emulator among them."""
    files = [
        "core/test_grid.py",
        "cuda/test_plan.py",
        "cuda/test_emulator_faults.py::test_a_report_says_everything",
        "adapters/test_torch_exchange.py",
        "bench/test_targets.py",
        "house/test_tolerances.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", *(f"tests/{file}" for file in files)]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_descriptions_pass_twine(built: Path) -> None:
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_extra_is_added_to_what_is_installed(tmp_path: Path) -> None:
    """The command in our messages needs no index that has this package."""
    try:
        metadata.version("lmkan-cupy")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a checkout, not installed")
    options = ["--no-index", "--no-deps", "--dry-run", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "lmkan-cupy[torch]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
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
