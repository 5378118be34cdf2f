"""Files and folders that the commands write: each complete or not at all, and nothing else lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

from .dataset import InputError

#: Files that are not complete yet are called so, with a random number; see :func:`written`.
_PARTS = ".*.part"

#: Is locked in a folder that somebody is going to fill.
_LOCK = ".lmkan_fit.lock"


@contextmanager
def new_folder(out: Path | None) -> Iterator[Path]:
    """Yield an empty folder, ``out`` or by default one with a name that is free, to nobody else.

    ``out`` is made if there is none, and else stays what it is, also a link or a mount point. After
    an exception the folders that were made are removed, unless they hold files.

    Raises
    ------
    InputError
        If ``out`` is not empty, cannot be written to, or has been yielded to another.
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
            tempfile.TemporaryFile(dir=folder).close()  # fails where files cannot be made
        with _claimed(folder):
            for part in folder.glob(_PARTS):  # left by a process that was killed
                part.unlink(missing_ok=True)
            yield folder
            undo.pop_all()


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock a file in the folder; however this process ends, the system unlocks it."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another fit is going to fill it; choose another --out"
        ) from error
    except OSError:
        pass  # a file system without locks: who comes second learns of it after the training
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file, but removes this one when unlocked
            Path(lock.lock_file).unlink()
        lock.release()


def check_empty(folder: Path) -> None:
    """Require that there is no such folder yet, or none but locks and incomplete files in it."""
    if folder.exists() and not (
        folder.is_dir()
        and all(each.name == _LOCK or each.match(_PARTS) for each in folder.iterdir())
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


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, as :func:`written` does, or raise an InputError."""
    with _writing(path), written(path) as file:
        file.write_bytes(content)


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
