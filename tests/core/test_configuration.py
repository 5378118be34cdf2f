"""`show_config` and `python -m lmkan_cupy info`."""

from __future__ import annotations

from pathlib import Path

import fresh_process
import numba
import numpy as np
import pytest
import safetensors

import lmkan_cupy
from lmkan_cupy.installation import install_extra

SHOW = "import lmkan_cupy; lmkan_cupy.show_config()"
INFO = """
    import runpy, sys
    sys.argv = ["lmkan_cupy", "info", *{arguments}]
    try:
        runpy.run_module("lmkan_cupy", run_name="__main__")
    except SystemExit as end:
        assert not end.code
"""


def test_an_extra_is_installed_from_the_checkout_or_the_wheel() -> None:
    wheel = f"lmkan_cupy-{lmkan_cupy.__version__}-py3-none-any.whl"
    expected = f"pip install '.[fit]' in the checkout, or '{wheel}[fit]' beside the wheel"
    assert install_extra("fit") == expected


def test_no_message_sends_to_an_index() -> None:
    sources = [*(fresh_process.ROOT / "lmkan_cupy").rglob("*.py")]
    sources += (fresh_process.ROOT / "adapters").rglob("*.py")
    assert [each for each in sources if "lmkan-cupy[" in each.read_text()] == []


def test_every_line_has_a_value(tmp_path: Path) -> None:
    """An empty value would leave a line that ends in the spaces of the column."""
    shown = fresh_process.run(SHOW, tmp_path).splitlines()
    assert shown
    assert [line for line in shown if line != line.rstrip()] == []


def test_versions_and_threads(tmp_path: Path) -> None:
    shown = fresh_process.run(SHOW, tmp_path, NUMBA_NUM_THREADS="1")
    for part in (
        np.__version__,
        numba.__version__,
        safetensors.__version__,
        "NUMBA_NUM_THREADS",
        " 1 ",
    ):
        assert part in shown


@pytest.mark.long
def test_what_is_missing_comes_with_its_command(tmp_path: Path) -> None:
    hidden = f"""
        import importlib.metadata as metadata
        found = metadata.version
        def version(name):
            if name == "torch":
                raise metadata.PackageNotFoundError(name)
            return found(name)
        metadata.version = version
        {SHOW}
    """
    (line,) = (
        line
        for line in fresh_process.run(hidden, tmp_path).splitlines()
        if line.startswith("torch")
    )
    assert "missing" in line
    assert line.endswith(f": {install_extra('torch')}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("cuda", "text"),
    [("12.8", ", for CUDA 12.8"), (None, ", without CUDA"), ("13.0", ", for CUDA 13.0")],
)
def test_cuda_majors_of_torch_and_cupy(tmp_path: Path, cuda: str | None, text: str) -> None:
    """With CuPy for CUDA 13, and a stand-in for torch that has only the file of its version."""
    pytest.importorskip("torch")
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('torch was imported')")
    (package / "version.py").write_text(f"cuda = {cuda!r}")
    code = f"""
        from lmkan_cupy import installation
        installation.cupy_distributions = lambda: ["cupy-cuda13x 14.2.0"]
        {SHOW}
    """
    lines = fresh_process.run(code, tmp_path).splitlines()
    (of_torch,) = (line for line in lines if line.startswith("torch "))
    assert of_torch.endswith(text)
    majors = [line for line in lines if line.startswith("cuda majors")]
    assert len(majors) == (cuda == "12.8")
    for line in majors:
        assert "torch is for CUDA 12, CuPy for CUDA 13" in line
        assert f"pip uninstall cupy-cuda13x, then {install_extra('cuda12')}" in line


def test_info_is_the_configuration(tmp_path: Path) -> None:
    info = fresh_process.run(INFO.format(arguments=[]), tmp_path)
    assert info == fresh_process.run(SHOW, tmp_path)


def test_the_version_is_an_option(tmp_path: Path) -> None:
    version = INFO.replace('"info", *{arguments}', '"--version"')
    assert fresh_process.run(version, tmp_path) == f"lmkan-cupy {lmkan_cupy.__version__}\n"
