"""What `fit` and `predict` write, and where: nothing is lost, and nothing else is touched."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import fresh_process
import numpy as np
import pandas as pd
import pytest
from fits import (
    FILES,
    check_refusal,
    quick_fit,
    table,
    write_csv,
)
from lmkan_cupy.adapters.fitting import FitResult, files, load, pictures
from lmkan_cupy.adapters.fitting import command as commands

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is `data.csv`, and training on it takes no time."""
    write_csv(table(), tmp_path / "data.csv")
    monkeypatch.setattr(commands, "fit", lambda *_, **__: quick_fit())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files."""
    for name in ("save_parity_picture", "save_functions_picture"):
        monkeypatch.setattr(pictures, name, lambda path, **_: path.touch())


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


# The folder of fit


@pytest.mark.usefixtures("trained", "undrawn")
def test_the_default_folder_is_a_new_one_every_time(tmp_path: Path, command: Command) -> None:
    for expected in ("lmkan_fit", "lmkan_fit-2", "lmkan_fit-3"):
        _, out, _ = command("fit", "data.csv")
        assert out.endswith(
            f"are in {expected}{os.sep}\n"
            f"To apply it: python -m lmkan_cupy predict {expected} DATA\n"
        )
        assert names(tmp_path / expected) == FILES


def test_two_fits_at_a_time_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with files.new_folder(None) as first, files.new_folder(None) as second:
        assert (first.name, second.name) == ("lmkan_fit", "lmkan_fit-2")


@pytest.mark.parametrize("out", ["here", "empty"])
def test_a_folder_that_another_fit_is_going_to_fill_is_refused_before_the_training(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    write_csv(table(), tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(commands, "fit", lambda *_, **__: pytest.fail("not refused at once"))
    with files.new_folder(Path(out)) as folder:
        sentence = f"{out}: another fit is going to fill it; choose another --out"
        check_refusal(command("fit", "data.csv", "--out", out), sentence)
        assert folder.exists()
    assert names(folder) == set()


def test_a_folder_can_be_filled_where_nothing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.FileLock, "acquire", fail)
    with files.new_folder(tmp_path / "here") as folder:
        assert names(folder) == set()


@pytest.mark.usefixtures("trained", "undrawn")
@pytest.mark.parametrize("out", ["empty", "link"])
def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path, command: Command, out: str) -> None:
    """As a mount point has to be, which can be neither renamed nor removed; and a link."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    inode = (tmp_path / "empty").stat().st_ino
    assert command("fit", "data.csv", "--out", out)[0] == 0
    assert names(tmp_path / "empty") == FILES
    assert (tmp_path / "empty").stat().st_ino == inode
    assert (tmp_path / "link").is_symlink()


@pytest.mark.usefixtures("trained", "undrawn")
def test_the_current_folder_is_filled_if_it_is_empty(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert command("fit", "../data.csv", "--out", ".")[0] == 0
    assert names(tmp_path / "empty") == FILES


@pytest.mark.usefixtures("trained", "undrawn")
def test_what_a_killed_process_left_is_cleared(tmp_path: Path, command: Command) -> None:
    model = tmp_path / "here" / "model.json"
    model.parent.mkdir()
    with files.written(model) as part:
        part.touch()
    model.rename(part)
    with files.new_folder(model.parent):
        left = names(model.parent)
    assert left
    for each in left:
        (model.parent / each).touch()
    assert command("fit", "data.csv", "--out", "here")[0] == 0
    assert names(tmp_path / "here") == FILES


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (".", ".: exists already; choose another --out"),
        ("data.csv", "data.csv: exists already; choose another --out"),
        ("data.csv/x", "data.csv/x: cannot be written (Not a directory)"),
        ("pipe", "pipe: exists already; choose another --out"),
        ("nowhere", "nowhere: cannot be written (File exists)"),
        ("x" * 300, "cannot be written (File name too long)"),
        ("read-only", "read-only: cannot be written (Read-only file system)"),
    ],
    ids=lambda value: value[:10],
)
def test_a_folder_that_cannot_be_filled_is_refused_before_the_training(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, out: str, sentence: str
) -> None:
    def fail(dir: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    write_csv(table(), tmp_path / "data.csv")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("nothing")
    if out == "read-only":  # not by its permissions, which root can ignore
        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    before = sorted(tmp_path.rglob("*"))
    check_refusal(command("fit", "data.csv", "--out", out), sentence)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["here", "new/here", "empty/here", "empty", ""])
def test_a_failure_of_the_training_leaves_nothing_behind(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("of the training")

    write_csv(table(), tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(commands, "fit", fail)
    with pytest.raises(RuntimeError, match="of the training"):
        command("fit", "data.csv", *(["--out", out] if out else []))
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "data.csv", tmp_path / "empty"]


# The model of a training is never lost


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["save_parity_picture", "save_functions_picture"])
def test_a_picture_that_fails_is_left_out(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    def fail(path: Path, **_: object) -> None:
        path.write_text("half of a pic")
        load(path.parent)  # has been saved by now
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pictures, name, fail)
    assert command("fit", "data.csv", "--out", "here")[0] == 0
    left_out = f"{name.split('_')[1]}.png"
    assert names(tmp_path / "here") == FILES - {left_out}
    assert caplog.messages == [
        f"here/{left_out} is left out: [Errno {errno.ENOSPC}] No space left on device"
    ]


def test_names_are_no_mathematics(tmp_path: Path) -> None:
    fitted, replace = quick_fit(), dataclasses.replace
    *features, target = (f"$\\{name}{{$" for name in "abcy")
    columns = [
        column | {"name": name}
        for column, name in zip(fitted.model.description.columns, features, strict=True)
    ]
    described = replace(fitted.model.description, columns=columns, target_names=[target])
    replace(
        fitted,
        model=replace(fitted.model, description=described),
        test_table=fitted.test_table.set_axis(features, axis=1),
    ).save(tmp_path)
    assert names(tmp_path) == FILES


def fill(folder: Path) -> None:
    (folder / "notes.txt").touch()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("happens", "sentence"),
    [(fill, "here: exists already"), (shutil.rmtree, "No such file or directory")],
    ids=["filled", "removed"],
)
def test_a_model_that_cannot_be_saved_in_its_folder_goes_to_another(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path], None],
    sentence: str,
) -> None:
    """Where another fit has filled the folder, or somebody removed it."""

    def trained(*_: object, **__: object) -> FitResult:
        happens(tmp_path / "here")
        return quick_fit()

    write_csv(table(), tmp_path / "data.csv")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(commands, "fit", trained)
    code, _, err = command("fit", "data.csv", "--out", "here")
    assert code == 2
    assert sentence in err
    (rescued,) = (tmp_path / "temporary").iterdir()
    assert err.endswith(f"; the model is in {rescued}{os.sep}\n")
    assert names(rescued) == FILES


def test_all_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        quick_fit().save(tmp_path)
    finally:
        os.umask(before)
    assert {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == dict.fromkeys(
        FILES, 0o640
    )


# The file of predict


@pytest.fixture
def model(tmp_path: Path) -> None:
    """There are `model` and `data.csv`."""
    (tmp_path / "model").mkdir()
    quick_fit().model.save(tmp_path / "model")
    write_csv(table(), tmp_path / "data.csv")


@pytest.mark.usefixtures("model")
def test_a_plain_file_is_replaced_and_keeps_its_permissions(
    tmp_path: Path, command: Command
) -> None:
    _, expected, _ = command("predict", "model", "data.csv")
    path = tmp_path / "y.csv"
    path.write_text("old")
    path.chmod(0o604)
    inode = path.stat().st_ino
    assert command("predict", "model", "data.csv", "--out", "y.csv") == (0, "", "")
    assert path.read_text() == expected
    assert path.stat().st_mode & 0o777 == 0o604
    assert path.stat().st_ino != inode  # a reader of the old file is not disturbed


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("target", ["y.csv", "new.csv", os.devnull])
def test_a_link_stays_and_is_written_through(tmp_path: Path, command: Command, target: str) -> None:
    (tmp_path / "y.csv").write_text("old and much longer than what is new " * 100)
    (tmp_path / "link").symlink_to(target)
    _, expected, _ = command("predict", "model", "data.csv")
    assert command("predict", "model", "data.csv", "--out", "link") == (0, "", "")
    assert os.readlink(tmp_path / "link") == target
    if target != os.devnull:
        assert (tmp_path / target).read_text() == expected


@pytest.mark.usefixtures("model")
def test_a_pipe_stays_and_is_written_to(tmp_path: Path, command: Command) -> None:
    _, expected, _ = command("predict", "model", "data.csv")
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert command("predict", "model", "data.csv", "--out", "pipe") == (0, "", "")
        assert os.read(end, 2**16).decode() == expected
    finally:
        os.close(end)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("out", ["y.csv", "y.TSV", "y.parquet"])
def test_the_ending_of_its_name_is_the_kind_of_file(
    tmp_path: Path, command: Command, out: str
) -> None:
    assert command("predict", "model", "data.csv", "--id", "b", "--out", out) == (0, "", "")
    readers = {".csv": pd.read_csv, ".TSV": pd.read_table, ".parquet": pd.read_parquet}
    found = readers[Path(out).suffix](tmp_path / out)
    assert [*found] == ["b", "y"]
    np.testing.assert_allclose(found["b"].astype(float), table()["b"])
    np.testing.assert_allclose(found["y"], quick_fit().model.predict(table()), rtol=1e-8)


@pytest.mark.usefixtures("model")
def test_standard_input_and_output(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = command("predict", "model", "data.csv")
    content = table().to_csv(index=False, sep=";", decimal=",").encode("utf-8-sig")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert command("predict", "model", "-", "--out", "-") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,b\n1,2\n")))
    check_refusal(command("predict", "model", "-"), "-: there is no column 'c'")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    check_refusal(command("predict", "model", "-"), "-: cannot be read as csv: ")


@pytest.mark.usefixtures("model")
def test_a_name_that_it_would_have_twice(command: Command) -> None:
    outcome = command("predict", "model", "data.csv", "--id", "y")
    check_refusal(outcome, "data.csv: 2 columns are called 'y'")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("y.xlsx", "y.xlsx: the file name must end in .csv, .tsv or .parquet"),
        ("nodir/y.csv", "nodir/y.csv: there is no folder nodir"),
        ("data.csv/y.csv", "data.csv/y.csv: there is no folder data.csv"),
        ("model", "model: is a folder, but must be a file"),
        ("x" * 300, "cannot be written (File name too long)"),
        ("full", "full: cannot be written (No space left on device)"),
        ("protected", "protected: cannot be written (no permission)"),
    ],
    ids=lambda value: value[:10],
)
def test_a_file_that_cannot_be_written(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, out: str, sentence: str
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "protected").touch()
    if out == "protected":  # root may write any
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    if out != "full":
        monkeypatch.setattr(commands, "load", lambda _: pytest.fail("not refused at once"))
    before = sorted(tmp_path.rglob("*"))
    check_refusal(command("predict", "model", "data.csv", "--out", out), sentence)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_exception_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "y.csv"
    path.write_text("old")

    def replace_half() -> None:
        with files.written(path) as part:
            part.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        replace_half()
    assert names(tmp_path) == {"y.csv"}
    assert path.read_text() == "old"


# Text


@pytest.mark.long
def test_predictions_are_csv_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    fitted = quick_fit().model
    described = dataclasses.replace(fitted.description, target_names=['π, "k"'])
    dataclasses.replace(fitted, description=described).save(tmp_path)
    write_csv(table(), tmp_path / "data.csv")
    code = """
        import sys
        from lmkan_cupy.__main__ import main
        sys.argv = ["lmkan_cupy", "predict", ".", "data.csv"]
        assert main() == 0
        sys.argv += ["--out", "y.csv"]
        assert main() == 0
    """
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    out = fresh_process.run(code, tmp_path, **ascii_only)
    assert out == (tmp_path / "y.csv").read_text(encoding="utf-8")
    with (tmp_path / "y.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == ['π, "k"']


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        (None, 141, ""),  # as `head` leaves it
        ("/dev/full", 2, f"error: [Errno {errno.ENOSPC}] No space left on device\n"),
    ],
)
def test_standard_output_that_cannot_be_written(path: str | None, code: int, message: str) -> None:
    if path is None:
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(path, os.O_WRONLY)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lmkan_cupy", "info"],
            cwd=fresh_process.ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (code, message)
