"""Tables that `fit` and `predict` read: every format, their columns, and what is refused."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pandas as pd
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from fits import (
    WRITERS,
    check_refusal,
    dataset,
    quick_fit,
    table,
    with_cell,
    write_csv,
    write_npz,
    write_parquet,
)
from lmkan_cupy.adapters.fitting import (
    Dataset,
    InputError,
    npz,
    read_dataset,
    read_features,
)
from scipy.sparse import csr_array  # type: ignore[import-untyped]

# Tables that are refused: one sentence, exit code 2, nothing written

BAD_TABLES: dict[str, tuple[pd.DataFrame, str]] = {
    "text": (with_cell(6, "b", "n/k"), "column 'b' is not numeric: row 7 holds 'n/k'"),
    "missing": (with_cell(6, "b", None), "missing or infinite in 1 rows, first in row 7, colum"),
    "infinite": (with_cell(6, "b", np.inf), "missing or infinite in 1 rows, first in row 7, col"),
    "constant": (table().assign(b=4.0), "column 'b' is constant; leave it out"),
    "constant-target": (table().assign(y=4.0), "column 'y' is constant; leave it out"),
    "few-rows": (table(49), "49 rows are too few; at least 50 are needed"),
    "no-rows": (table(60)[:0], "0 rows are too few; at least 50 are needed"),
    "no-features": (table()[["y"]], "there is no column beside the target 'y'"),
    "no-header": (table().set_axis(["1.5", "2", "-3", "1e3"], axis=1), "must name the columns"),
    "one-name-twice": (table().set_axis([*"abay"], axis=1), "2 columns are called 'a'"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(tmp_path: Path, command: Any, name: str) -> None:
    frame, sentence = BAD_TABLES[name]
    write_csv(frame, tmp_path / "data.csv")
    check_refusal(command("fit", "data.csv"), "data.csv: ", sentence)
    assert os.listdir(tmp_path) == ["data.csv"]


def refusal(path: Path, target: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(path, target)
    return str(caught.value)


# Lines of CSV files


def text_of(frame: pd.DataFrame) -> list[str]:
    return frame.to_csv(index=False).splitlines()


def test_a_comma_at_the_end_of_lines_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    header, *lines = text_of(table())
    for ends in ([","] * 60, ["", ", ,"] * 30, [",", ""] * 30):
        path.write_text("\n".join([header, *map(str.__add__, lines, ends)]))
        data = read_dataset(path)
        np.testing.assert_array_equal(data.features, dataset().features)
        np.testing.assert_array_equal(data.target, dataset().target)
        np.testing.assert_array_equal(read_features(path, ["b", "a"]), data.features[:, [1, 0]])


@pytest.mark.parametrize("first", [0, 7])
def test_a_value_too_many_is_refused(tmp_path: Path, first: int) -> None:
    path = tmp_path / "data.csv"
    header, *lines = text_of(table())
    path.write_text("\n".join([header, *lines[:first], *(f"{line},3" for line in lines[first:])]))
    sentence = f"{path}: line {first + 2} holds 5 values, but the first line names 4 columns"
    assert refusal(path) == sentence
    with pytest.raises(InputError, match="holds 5 values"):
        read_features(path, ["a"])


def test_a_file_that_begins_with_a_mark_of_utf_8(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("\n".join(text_of(table())), encoding="utf-8-sig")
    assert read_dataset(tmp_path / "data.csv").feature_names == ["a", "b", "c"]


# Columns that are left out


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_are_left_out(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.csv"
    table().to_csv(path, index_label=[name])
    data = read_dataset(path)
    assert (data.feature_names, data.target_name) == (["a", "b", "c"], "y")
    np.testing.assert_array_equal(data.features, dataset().features)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: columns without a name")
    assert message.endswith(": 1")


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_can_be_dropped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](table(), path)
    data = read_dataset(path, drop=["b", "a"])
    assert (data.feature_names, data.target_name) == (["c"], "y")
    np.testing.assert_array_equal(data.features, dataset().features[:, 2:])
    with pytest.raises(InputError, match="there is no column 'z' to drop; those there are: a, b"):
        read_dataset(path, drop=["z"])


def test_fit_drops_columns_and_prints_the_others(tmp_path: Path, command: Any) -> None:
    write_csv(table(), tmp_path / "data.csv")
    arguments = ["--drop", "c", "--drop", "y", "--width", "1", "--epochs", "1", "--no-baseline"]
    code, out, _ = command("fit", "data.csv", *arguments)
    assert code == 0
    assert out.startswith("b is learned from a\n")


# Names


def test_an_npz_file_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x, y = dataset().features, dataset().target
    np.savez(path, features=x, feature_names=["a", "b", "a"], y=y)
    assert refusal(path) == f"{path}: 2 columns are called 'a'; give each a name of its own"
    np.savez(path, features=x, feature_names=["a", "y", "c"], y=y, z=y)
    assert refusal(path, "y") == f"{path}: 2 columns are called 'y'; give each a name of its own"
    assert read_dataset(path, "z").feature_names == ["a", "y", "c"]
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("y.npy", archive.read("z.npy"))
    assert refusal(path) == f"{path}: cannot be read as npz: it holds more than one array 'y'"


def test_predict_refuses_a_column_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    write_csv(table().set_axis([*"abay"], axis=1), path)
    assert read_features(path, ["b"]).shape == (60, 1)
    with pytest.raises(InputError, match="2 columns are called 'a'"):
        read_features(path, ["a", "b"])


@pytest.mark.long
def test_only_parquet_files_need_pyarrow(tmp_path: Path) -> None:
    write_csv(table(), tmp_path / "data.csv")
    code = """
        import sys
        from pathlib import Path
        sys.modules["pyarrow"] = None
        from lmkan_cupy.adapters.fitting import read_dataset
        print(read_dataset(Path("data.csv")).feature_names)
    """
    assert fresh_process.run(code, tmp_path) == "['a', 'b', 'c']\n"


def test_names_in_a_parquet_file_need_not_be_text(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table().set_axis([0, 1, 2, 3], axis=1).to_parquet(path)
    data = read_dataset(path, "1")
    assert (data.feature_names, data.target_name) == (["0", "2", "3"], "1")
    np.testing.assert_array_equal(read_features(path, ["0", "2", "3"]), data.features)
    table().set_axis(pd.MultiIndex.from_product([["a", "b"], [1, 2]]), axis=1).to_parquet(path)
    assert "names of several levels" in refusal(path)


# Memory layouts


@pytest.mark.parametrize("write", [write_npz, write_parquet])
def test_columns_can_stand_in_reversed_order(
    tmp_path: Path, write: Callable[[pd.DataFrame, Path], None]
) -> None:
    path = tmp_path / f"data{'.npz' if write is write_npz else '.parquet'}"
    write(table()[["c", "b", "a", "y"]], path)
    model = quick_fit().model
    np.testing.assert_array_equal(
        model.predict(read_features(path, ["a", "b", "c"])), model.predict(dataset().features)
    )


def test_a_dataset_takes_what_numpy_takes() -> None:
    x, y = dataset().features, dataset().target
    data = Dataset(pd.DataFrame(x[::-1, ::-1]), [*y[::-1]], pd.Index([3, 2, 1]))  # type: ignore[arg-type]
    assert data.feature_names == ["3", "2", "1"]
    assert data.features.flags.c_contiguous
    np.testing.assert_array_equal(data.features, x[::-1, ::-1])
    np.testing.assert_array_equal(data.target, y[::-1])


def test_what_is_masked_is_missing() -> None:
    x = np.ma.masked_greater((10 * dataset().features).astype(int), 15)  # type: ignore[no-untyped-call]
    assert x.mask.any()
    with pytest.raises(InputError, match="missing or infinite"):
        Dataset(x, dataset().target, [*"abc"])
    with pytest.raises(InputError, match="missing or infinite"):
        quick_fit().model.predict(x)


def test_what_is_sparse_is_refused() -> None:
    data, model = dataset(), quick_fit().model
    x, y = csr_array(data.features), csr_array(data.target[:, None])
    for name, call in {
        "Dataset: features": lambda: Dataset(x, data.target, [*"abc"]),  # type: ignore[arg-type]
        "Dataset: target": lambda: Dataset(data.features, y, [*"abc"]),  # type: ignore[arg-type]
        "predict: features": lambda: model.predict(x),  # type: ignore[arg-type]
        "TableNetwork: features": lambda: model.module.predict(x),  # type: ignore[arg-type]
    }.items():
        argument = name.partition(": ")[2]
        sentence = f"{name} must be dense, got a sparse csr_array: {argument}.toarray()"
        with pytest.raises(TypeError, match=re.escape(sentence)):
            call()


# npz files that are damaged or evil


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """An array's file whose header promises this shape."""
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def write_encrypted(path: Path) -> None:
    write_npz(table(), path)
    data = bytearray(path.read_bytes())
    position = 0
    while (position := data.find(b"PK\x01\x02", position) + 1) > 0:  # the entries of the directory
        data[position + 7] |= 1
    path.write_bytes(data)


def write_corrupt(path: Path) -> None:
    write_npz(table(), path)
    data = bytearray(path.read_bytes())
    data[300:400] = bytes(100)
    path.write_bytes(data)


def write_npy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), dataset().features)
    path.with_suffix(".npy").rename(path)


def write_lying(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", npy((10**12, 3), bytes(8 * 180)))
        archive.writestr("y.npy", npy((60,), bytes(8 * 60)))


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted": (write_encrypted, "is encrypted, password required"),
    "corrupt": (write_corrupt, "Bad CRC-32"),
    "empty-file": (Path.touch, "File is not a zip file"),
    "no-archive": (write_npy, "File is not a zip file"),
    "header": (write_lying, "buffer is too small for requested array"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_bad_npz_files(tmp_path: Path, command: Any, name: str) -> None:
    write, sentence = BAD_ARCHIVES[name]
    write(tmp_path / "data.npz")
    check_refusal(command("fit", "data.npz"), "data.npz: cannot be read as npz: ", sentence)
    quick_fit().model.save(tmp_path)
    check_refusal(command("predict", ".", "data.npz"), "data.npz: cannot be read as npz: ")


def test_an_empty_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz")
    assert "there is no array 'features' of shape [rows, columns]" in refusal(tmp_path / "data.npz")


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def recorded(archive: zipfile.ZipFile, name: str, read_array: Any = npz.read_array) -> Any:
        read.append(name)
        return read_array(archive, name)

    monkeypatch.setattr(npz, "read_array", recorded)
    path = tmp_path / "data.npz"
    target = dataset().target
    np.savez(path, y=target, z=target, features=dataset().features, remark=np.zeros((60, 1000)))
    assert read_dataset(path, "y").target_name == "y"
    assert read == ["features", "y"]
    read.clear()
    read_features(path, ["x1"])
    assert read == ["features"]


@pytest.mark.parametrize(("suffix", "reader"), [(".csv", "read_csv"), (".parquet", "read_parquet")])
def test_only_columns_that_are_needed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, reader: str
) -> None:
    read, read_file = [], getattr(pd, reader)

    def recorded(*arguments: Any, **options: Any) -> Any:
        frame = read_file(*arguments, **options)
        read.append([*frame])
        return frame

    monkeypatch.setattr(pd, reader, recorded)
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](table(), path)
    features = read_features(path, ["c", "a"])
    np.testing.assert_array_equal(features, dataset().features[:, [2, 0]])
    with pytest.raises(InputError, match="there is no column 'z', which the model needs"):
        read_features(path, ["z"])
    assert read == [["a", "c"], []]


def test_a_damaged_column_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table().to_parquet(path)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_features(path, ["a", "c"]), dataset().features[:, [0, 2]])
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read as parquet")):
        read_features(path, ["a", "b"])
