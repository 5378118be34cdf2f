"""Arrays of npz files: each is read alone, and takes no more memory than the file has data for."""

import math
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_shapes(archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all arrays by their names, without reading the arrays."""
    shapes = {}
    for file_name in archive.namelist():
        name = file_name.removesuffix(".npy")
        if name in shapes:
            raise ValueError(f"it holds more than one array {name!r}")
        if name != file_name:
            with archive.open(file_name) as file:
                shapes[name], *_ = _read_header(file)
    return shapes


def read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array; one of Python objects is refused, so that reading runs no code."""
    with archive.open(f"{name}.npy") as file:
        shape, is_fortran, dtype = _read_header(file)
        if dtype.hasobject:
            raise ValueError(f"array {name!r} holds Python objects")
        data = file.read(math.prod(shape) * dtype.itemsize)  # less where the header is false
        return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, memory order and dtype; what follows in the file is the data."""
    return _READ_HEADER[np.lib.format.read_magic(file)](file)
