"""Files and folders that the commands write: each complete or not at all, and nothing else lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from secrets import token_hex

from .dataset import InputError

#: Files that are not complete yet are called so, with a random number; see :func:`written`.
_PARTS = ".*.part"


@contextmanager
def new_folder(out: Path | None) -> Iterator[Path]:
    """Yield an empty folder, ``out`` or by default one with a name that is free.

    ``out`` is made if there is none, and else stays what it is, also a link or a mount point. After
    an exception the folders that were made are removed, unless they hold files.

    Raises
    ------
    InputError
        If ``out`` is not empty or cannot be written to.
    """
    with ExitStack() as undo:
        with _writing(out or Path()):
            if out is None:
                folder = _make_folder()
                undo.callback(_remove_if_empty, folder)
            else:
                folder = out
                check_empty(folder)
                for each in reversed([folder, *folder.parents]):
                    if not each.exists():
                        each.mkdir(exist_ok=True)
                        undo.callback(_remove_if_empty, each)
            for part in folder.glob(_PARTS):  # left by a process that was killed
                part.unlink()
            tempfile.TemporaryFile(dir=folder).close()  # fails where files cannot be made
        yield folder
        undo.pop_all()


def check_empty(folder: Path) -> None:
    """Require that there is no such folder yet, or that it holds nothing but incomplete files."""
    if folder.exists() and not (
        folder.is_dir() and all(each.match(_PARTS) for each in folder.iterdir())
    ):
        raise InputError(f"{folder}: exists already; choose another --out")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield the path to write to, so that in the end ``path`` holds what was written.

    A plain file is replaced by a new one beside it, which gets its permissions; after an exception
    it is as it was. Links, pipes and devices are written through: they would be lost.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    part = path.with_name(f".{token_hex(8)}.part")
    try:
        yield part
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Require that ``path`` can be written, without opening it: who reads a pipe would see its end.

    Raises
    ------
    InputError
        If it is a folder or in none, or may not be written.
    """
    with _writing(path):
        if path.is_dir():
            raise InputError(f"{path}: is a folder, but must be a file")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path}: cannot be written (no permission)")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, as :func:`written` does, or raise an InputError."""
    with _writing(path), written(path) as file:
        file.write_text(text, encoding="utf-8", newline="")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _make_folder() -> Path:
    """Make the first of ``lmkan_fit``, ``lmkan_fit-2``, ... that nobody else has made."""
    names = chain(["lmkan_fit"], map("lmkan_fit-{}".format, count(2)))
    while True:
        folder = Path(next(names))
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
