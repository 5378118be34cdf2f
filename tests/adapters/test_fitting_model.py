"""Fitted models on disk and in memory: what is damaged, and what `predict` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fits import check_refusal, dataset, quick_fit, table, write_csv
from lmkan_cupy.adapters.fitting import InputError, load
from lmkan_cupy.adapters.fitting import model as models

import lmkan_cupy

NUMBER = {"name": "d", "kind": "number", "parts": ["value"], "fill": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of width 4, three layers and a grid of 8."""
    quick_fit().model.save(tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, **entries: Any) -> None:
    """Change entries of `model.json`; Infinity becomes the number 1e400."""
    path = folder / "model.json"
    text = json.dumps(json.loads(path.read_text()) | entries)
    path.write_text(text.replace("Infinity", "1e400"))


def test_another_version_is_named(folder: Path) -> None:
    change(folder, format_version=4)
    assert "format version 4, but this version of lmkan_cupy reads 2 and 3" in refusal(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 10**6])
def test_a_damaged_description(folder: Path, text: bytes) -> None:
    (folder / "model.json").write_bytes(text)
    assert "the model is damaged" in refusal(folder)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("bound", each) for each in (0, -1, float("inf"), "4", None)),
        *(("columns", each) for each in ([], [{}], [1, 2, 3], [*"abcd"], 3, [NUMBER] * 4)),
        *(("target_names", each) for each in ([], [1], "yz", 3)),
        *(("classes", each) for each in ([], [1], [1, 2], 3)),
        ("code", "print()"),
    ],
    ids=lambda value: repr(value),
)
def test_a_description_that_cannot_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, value: Any
) -> None:
    change(folder, **{entry: value})
    monkeypatch.setattr(models, "TableNetwork", lambda *_: pytest.fail("takes memory"))
    assert "the model is damaged" in refusal(folder)


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    assert "the model is damaged" in refusal(folder)
    weights.write_bytes(data)
    tensors = safetensors.torch.load(data)
    del tensors["feature_mean"]
    safetensors.torch.save_file(tensors, weights)
    assert "the model is damaged" in refusal(folder)
    weights.unlink()
    assert "there is no model.safetensors" in refusal(folder)


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, **_: str) -> str:  # not by its permissions, which root can ignore
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", fail)
    assert refusal(folder) == f"{folder}: the model cannot be read (Permission denied)"


def test_predict_says_so_in_one_sentence(folder: Path, command: Any) -> None:
    (folder / "model.json").unlink()
    write_csv(table(), folder / "data.csv")
    check_refusal(command("predict", ".", "data.csv", "--out", "y.csv"), "there is no model.json")
    assert not (folder / "y.csv").exists()


def test_predictions_that_are_no_numbers_are_refused(folder: Path, command: Any) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["layers.0"][...] = torch.nan
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    write_csv(table(), folder / "data.csv")
    sentence = "the model predicts no finite numbers for 60 rows, first for row 1"
    check_refusal(command("predict", ".", "data.csv", "--out", "y.csv"), sentence)
    assert not (folder / "y.csv").exists()


def test_the_core_predicts_the_same(folder: Path) -> None:
    """What `load_network` gives, to the bit; the module, in torch's float32, up to rounding."""
    model, x = quick_fit().model, dataset().encoded
    expected = model.predict(x)
    np.testing.assert_array_equal(lmkan_cupy.load_network(folder).predict(x)[:, 0], expected)
    np.testing.assert_array_equal(load(folder).predict(x), expected)
    by_torch = model.module.predict(x)[:, 0]
    np.testing.assert_allclose(by_torch, expected, atol=1e-5 * np.abs(expected).max())


def test_any_memory_layout_is_taken() -> None:
    model, x = quick_fit().model, dataset().encoded
    expected = model.predict(x)
    for layout in (
        x[::-1][::-1],
        np.asfortranarray(x),
        x[:, ::-1].copy()[:, ::-1],
        x.astype(">f8"),
    ):
        np.testing.assert_array_equal(model.predict(layout), expected)
    np.testing.assert_array_equal(model.predict(x[::-1]), expected[::-1])
    with pytest.raises(InputError, match=r"table must have shape \[N, 3\], got \(60, 2\)"):
        model.predict(x[:, :2])
