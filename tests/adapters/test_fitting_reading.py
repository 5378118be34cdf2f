"""Tables that `fit` and `predict` read: every format, their columns, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import re
import zipfile
from collections.abc import Callable
from decimal import Decimal
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
    InputError,
    npz,
    read_dataset,
    read_table,
)

# Tables that are refused: one sentence, exit code 2, nothing written

BAD_TABLES: dict[str, tuple[pd.DataFrame, str]] = {
    "text": (with_cell(6, "b", "n/k"), "column 'b': row 7 holds 'n/k', which is no finite number"),
    "infinite": (with_cell(6, "b", np.inf), "column 'b': row 7 holds inf, which is no finite num"),
    "missing-target": (with_cell(6, "y", None), "column 'y': row 7 has no value"),
    "constant-target": (table().assign(y=4.0), "the target 'y' is constant"),
    "all-bad-columns": (
        with_cell(6, "b", "n/k").assign(c=np.inf, y=4.0),
        "column 'b': row 7 holds 'n/k', which is no finite number; column 'c': row 1 holds inf, "
        "which is no finite number (60 such rows); the target 'y' is constant",
    ),
    "nothing-to-learn-from": (
        table().assign(a=1.0, b=1.0, c=[f"n{i}" for i in range(60)]),
        "there is no column to learn from: 'a' is left out: constant, 'b' is left out: constant, ",
    ),
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


def read_columns(path: Path, names: list[str]) -> Any:
    return read_table(path, names)[names].to_numpy(np.float64)


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
        np.testing.assert_array_equal(data.encoded, dataset().encoded)
        np.testing.assert_array_equal(data.values[:, 0], dataset().values[:, 0])
        np.testing.assert_array_equal(read_columns(path, ["b", "a"]), data.encoded[:, [1, 0]])


@pytest.mark.parametrize("first", [0, 7])
def test_a_value_too_many_is_refused(tmp_path: Path, first: int) -> None:
    path = tmp_path / "data.csv"
    header, *lines = text_of(table())
    path.write_text("\n".join([header, *lines[:first], *(f"{line},3" for line in lines[first:])]))
    sentence = f"{path}: line {first + 2} holds 5 values, but the first line names 4 columns"
    assert refusal(path) == sentence
    with pytest.raises(InputError, match="holds 5 values"):
        read_columns(path, ["a"])


def test_a_file_that_begins_with_a_mark_of_utf_8(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("\n".join(text_of(table())), encoding="utf-8-sig")
    assert [*read_dataset(tmp_path / "data.csv").features] == [*"abc"]


CSV_FORMS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "semicolons": ("d.csv", lambda lines: "\n".join(lines).replace(",", ";")),
    "decimal-commas": (
        "d.csv",
        lambda lines: "\n".join(lines).replace(",", ";").replace(".", ","),
    ),
    "tabs": ("d.csv", lambda lines: "\n".join(lines).replace(",", "\t")),
    "tsv": ("d.tsv", lambda lines: "\n".join(lines).replace(",", "\t").replace(".", ",")),
    "bars": ("d.csv", lambda lines: "\n".join(lines).replace(",", "|")),
    "capitals": ("d.CSV", "\n".join),
    "windows": ("d.csv", "\r\n".join),
    "blanks-around": ("d.csv", lambda lines: "\n".join(lines).replace(",", " , ")),
    "quotes": (
        "d.csv",
        lambda lines: "\n".join(f'"{line}"'.replace(",", '" ,"') for line in lines),
    ),
    "empty-lines": ("d.csv", lambda lines: "\n\n" + "\n\n".join(lines) + "\n\n"),
}


@pytest.mark.parametrize("form", CSV_FORMS)
def test_forms_of_csv(tmp_path: Path, form: str) -> None:
    name, write = CSV_FORMS[form]
    text = write(text_of(table()))
    (tmp_path / name).write_text(text, newline="")
    with gzip.open(tmp_path / f"{name}.gz", "wt", newline="") as file:
        file.write(text)
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        data = read_dataset(path)
        assert ([*data.features], data.target_names) == ([*"abc"], ["y"])
        np.testing.assert_array_equal(data.encoded, dataset().encoded)
        np.testing.assert_array_equal(data.values, dataset().values)


def test_marks_can_be_given(tmp_path: Path) -> None:
    """Where the file tells nothing: 1,234 with semicolons may be a thousand."""
    path = tmp_path / "data.csv"
    path.write_text("a;b,c;y\n" + "\n".join(f"{i};{i},5;{i % 7}" for i in range(60)))
    data = read_dataset(path)
    assert [*data.features] == ["a", "b,c"]
    assert data.encoded[1].tolist() == [1, 1.5]
    with pytest.raises(InputError, match="no column to learn from"):
        read_dataset(path, sep=",")
    assert read_table(path, sep=";", decimal=".")["b,c"][1] == "1,5"
    path.write_text(path.read_text().replace(";", "\t"))
    assert [*read_dataset(path, sep="\\t").features] == ["a", "b,c"]


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("größe,y\n1,2\n".encode("latin-1"))
    assert "data.csv: cannot be read as csv: 'utf-8' codec can't decode byte" in refusal(path)


def test_text_that_looks_like_numbers_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,b\n01,02\n03,04\n")
    frame = read_table(path, text=["a"])
    assert (frame["a"].tolist(), frame["b"].tolist()) == (["01", "03"], [2, 4])


# Parquet files, and frames


def mixed() -> pd.DataFrame:
    rows = np.arange(60)
    return pd.DataFrame(
        {
            "nullable": pd.array(np.where(rows % 7, rows, None), "Int64"),
            "truth": pd.array(np.where(rows % 5, rows % 2 == 0, None), "boolean"),
            "level": pd.Categorical(np.array(["u", "v", "w"])[rows % 3]),
            "decimal": [100 + Decimal(int(row)) / 4 for row in rows],
            "day": pd.date_range("2024-01-01", periods=60, tz="Europe/Berlin"),
            "y": np.sin(rows),
        }
    )


KINDS = {
    "nullable": "number, missing in 9 rows (the median there, and marked)",
    "truth": "boolean, missing in 12 rows (the median there, and marked)",
    "level": "category of 3 levels",
    "decimal": "number",
    "day": "date and weekday",
}


def test_parquet_files_keep_the_kinds_of_columns(tmp_path: Path) -> None:
    mixed().to_parquet(tmp_path / "data.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    mixed()[:30].to_parquet(folder / "0.parquet")
    mixed()[30:].to_parquet(folder / "1.parquet")
    data = read_dataset(mixed())
    assert {
        name: fate.replace(" and time of day", "") for name, fate in data.fates.items()
    } == KINDS
    for path in (tmp_path / "data.parquet", folder):
        again = read_dataset(path)
        assert again.fates == data.fates
        np.testing.assert_array_equal(again.encoded, data.encoded)


def test_an_index_in_a_parquet_file_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table().set_index("b").to_parquet(path)
    assert [*read_dataset(path, "y").features] == ["a", "c", "b"]
    table().set_axis([f"row {i}" for i in range(60)]).to_parquet(path)
    data = read_dataset(path, "y")
    assert [*data.features] == [*"abc"]
    assert data.fates["__index_level_0__"] == "left out: numbers the rows"


@pytest.mark.parametrize("name", ["index", "rownames", "X"])
def test_row_numbers_with_the_names_of_pandas_and_r(name: str) -> None:
    frame = table()
    numbered = frame.assign(**{name: np.arange(1, 61)})[[name, *frame]]
    data = read_dataset(numbered)
    assert ([*data.features], data.fates[name]) == ([*"abc"], "left out: numbers the rows")
    assert [*read_dataset(numbered, name).features] == [*"abcy"]
    other = numbered.assign(**{name: frame["a"]})
    assert [*read_dataset(other).features] == [name, *"abc"]
    assert [*read_dataset(numbered[[*frame, name]], "y").features] == [*"abc", name]


def test_frames_of_polars() -> None:
    polars = pytest.importorskip("polars")
    data = read_dataset(polars.from_pandas(mixed()))
    assert data.fates == read_dataset(mixed()).fates


def test_other_tables_are_refused() -> None:
    with pytest.raises(TypeError, match="a table must be a Path or a frame of pandas or polars"):
        read_dataset([[1, 2]])


# Columns that are left out


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_are_left_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data.csv"
    table().to_csv(path, index_label=[name])
    data = read_dataset(path)
    assert ([*data.features], data.target_names) == ([*"abc"], ["y"])
    np.testing.assert_array_equal(data.encoded, dataset().encoded)
    assert data.fates[name or "column 1"] == "left out: numbers the rows"


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_can_be_dropped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](table(), path)
    data = read_dataset(path, drop=["b", "a"])
    assert ([*data.features], data.target_names) == (["c"], ["y"])
    np.testing.assert_array_equal(data.encoded, dataset().encoded[:, 2:])
    with pytest.raises(InputError, match="there is no column to drop 'z'; those there are: a, b"):
        read_dataset(path, drop=["z"])


def test_fit_drops_columns_and_prints_the_others(tmp_path: Path, command: Any) -> None:
    write_csv(table(), tmp_path / "data.csv")
    arguments = ["--drop", "c", "--drop", "y", "--width", "1", "--epochs", "1", "--no-baseline"]
    code, out, _ = command("fit", "data.csv", *arguments)
    assert code == 0
    assert out.startswith(
        "b is learned from a\n"
        "  c  left out: as asked for\n  y  left out: as asked for\n  a  number\n"
    )


# Names


def test_an_npz_file_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x, y = dataset().encoded, dataset().values[:, 0]
    np.savez(path, features=x, feature_names=["a", "b", "a"], y=y)
    assert refusal(path) == f"{path}: 2 columns are called 'a'; give each a name of its own"
    np.savez(path, features=x, feature_names=["a", "y", "c"], y=y, z=y)
    assert refusal(path, "y") == f"{path}: 2 columns are called 'y'; give each a name of its own"
    assert [*read_dataset(path, "z").features] == [*"ayc"]
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("y.npy", archive.read("z.npy"))
    assert refusal(path) == f"{path}: cannot be read as npz: it holds more than one array 'y'"


@pytest.mark.long
def test_only_parquet_files_need_pyarrow(tmp_path: Path) -> None:
    write_csv(table(), tmp_path / "data.csv")
    code = """
        import sys
        from pathlib import Path
        sys.modules["pyarrow"] = None
        from lmkan_cupy.adapters.fitting import read_dataset
        print([*read_dataset(Path("data.csv")).features])
    """
    assert fresh_process.run(code, tmp_path) == "['a', 'b', 'c']\n"


def test_names_in_a_parquet_file_need_not_be_text(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table().set_axis([0, 1, 2, 3], axis=1).to_parquet(path)
    data = read_dataset(path, "1")
    assert ([*data.features], data.target_names) == ([*"023"], ["1"])
    np.testing.assert_array_equal(read_columns(path, ["0", "2", "3"]), data.features)


# Memory layouts


@pytest.mark.parametrize("write", [write_npz, write_parquet])
def test_columns_can_stand_in_reversed_order(
    tmp_path: Path, write: Callable[[pd.DataFrame, Path], None]
) -> None:
    path = tmp_path / f"data{'.npz' if write is write_npz else '.parquet'}"
    write(table()[["c", "b", "a", "y"]], path)
    model = quick_fit().model
    np.testing.assert_array_equal(
        model.predict(read_columns(path, ["a", "b", "c"])), model.predict(dataset().encoded)
    )


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
    np.save(path.with_suffix(".npy"), dataset().encoded)
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
    target = dataset().values[:, 0]
    np.savez(path, y=target, z=target, features=dataset().encoded, remark=np.zeros((60, 1000)))
    assert read_dataset(path, "y").target_names == ["y"]
    assert read == ["features", "y"]
    read.clear()
    read_columns(path, ["x1"])
    assert read == ["features"]


@pytest.mark.parametrize(
    ("suffix", "library", "reader"), [(".csv", pd, "read_csv"), (".parquet", pq, "read_table")]
)
def test_only_columns_that_are_needed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: Any, reader: str
) -> None:
    read, read_file = [], getattr(library, reader)

    def recorded(*arguments: Any, **options: Any) -> Any:
        frame = read_file(*arguments, **options)
        read.append(frame.shape[1])
        return frame

    monkeypatch.setattr(library, reader, recorded)
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](table(), path)
    features = read_columns(path, ["c", "a"])
    np.testing.assert_array_equal(features, dataset().encoded[:, [2, 0]])
    assert read == [2]


def test_a_damaged_column_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table().to_parquet(path)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_columns(path, ["a", "c"]), dataset().encoded[:, [0, 2]])
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read as parquet")):
        read_columns(path, ["a", "b"])
