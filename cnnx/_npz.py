"""Reading npz files of numbers, which may be damaged or made to do harm.

NumPy's own reader allocates what an array's header promises before it looks whether the file has as
much, and meets damage with a dozen kinds of exception. Here all of it is a ``ValueError``, pickles
are never read, names are only names (nothing is unpacked to a disk), and at most `warranted` bytes
come out of a file. What is not compressed may stay in the file.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from cnnx._shapes import Shape

# Compressed digits and photographs unpack to 2 to 20 times the file, and zeros may to 1000 times.
# What goes beyond is no set of images, and no trained weights.
_RATIO, _SMALL = 100, 2**26
_MOST_DIMENSIONS = 32
_LONGEST_TEXT = 300
_NPY = ".npy"
_LONGEST_HEADER = 2**16  # of an npy file; NumPy reads none above 10,000 characters
_LENGTHS = 26  # where they stand in an entry's own header


def warranted(size: int) -> int:
    """How many bytes a compressed file of `size` bytes may unpack to."""
    return max(_RATIO * size, _SMALL)


def require_numbers(name: str, array: NDArray[Any]) -> None:
    """Raise for an array that `read_npz` would refuse, before it is in a file alone."""
    if not _is_numbers(array.dtype):
        raise TypeError(
            f"{name!r} has dtype {array.dtype}, expected numbers: no file with it could be read"
        )


def _is_numbers(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" and dtype.subdtype is None


def read_npz(content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file by name, read-only; ValueError where it is not whole."""
    return _read(io.BytesIO(content), len(content))


def map_npz(path: Path, large: str) -> dict[str, NDArray[Any]]:
    """Do the same, but leave one array in the file, as a memory map, if it is not compressed."""
    with open(path, "rb") as file:
        return _read(file, os.path.getsize(path), large)


def _read(file: BinaryIO, size: int, large: str = "") -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(file) as archive:
            return _arrays(archive, warranted(size), file, large)
    except MemoryError:
        raise
    except Exception as error:  # zipfile knows many kinds
        text = str(error) or type(error).__name__
        if len(text) > _LONGEST_TEXT:  # zipfile quotes a name of 64 KiB
            text = text[:_LONGEST_TEXT] + " ..."
        raise ValueError(text) from error


def _arrays(
    archive: zipfile.ZipFile, room: int, file: BinaryIO, large: str
) -> dict[str, NDArray[Any]]:
    entries = archive.infolist()
    # Before anything is read, and where the directory lies, too, no more than that is read.
    size = sum(entry.file_size for entry in entries)
    if size > room:
        raise ValueError(f"its arrays would take {size:,} bytes, expected at most {room:,}")
    arrays: dict[str, NDArray[Any]] = {}
    for entry in entries:
        name = entry.filename.removesuffix(_NPY)
        if name in arrays or not entry.filename.endswith(_NPY):
            raise ValueError(f"entry {entry.filename!r} is no array, or there are two of its name")
        try:
            with archive.open(entry) as content:
                if name == large and entry.compress_type == zipfile.ZIP_STORED:
                    arrays[name] = _mapped(file, entry, content.read(_LONGEST_HEADER))
                    continue
                # Not read(), which would unpack all there is, whatever the directory says.
                arrays[name] = _array(content.read(entry.file_size))
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"array {name!r}: {error}") from error
    return arrays


def _array(content: bytes) -> NDArray[Any]:
    """Return the array of an npy file."""
    shape, order, dtype, start = _header(content, len(content))
    flat = np.frombuffer(content, dtype, offset=start)
    return flat.reshape(shape, order=order)


def _mapped(file: BinaryIO, entry: zipfile.ZipInfo, beginning: bytes) -> NDArray[Any]:
    """Return the array of an npy file that stands in an archive as it is."""
    shape, order, dtype, start = _header(beginning, entry.file_size)
    file.seek(entry.header_offset + _LENGTHS)
    name, more = file.read(2), file.read(2)  # the lengths of what stands before the content
    start += file.tell() + int.from_bytes(name, "little") + int.from_bytes(more, "little")
    return np.memmap(file, dtype, "r", start, shape, order)


def _header(content: bytes, size: int) -> tuple[Shape, Literal["F", "C"], np.dtype[Any], int]:
    """Return what a whole npy file of that size says of its array, and where the numbers begin."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"its npy version is {version}, expected (1, 0) or (2, 0)")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    if not _is_numbers(dtype):
        raise ValueError(f"its dtype is {dtype}, expected numbers")
    if len(shape) > _MOST_DIMENSIONS or any(n < 0 for n in shape):
        raise ValueError(f"its shape is {shape}")
    expected, start = math.prod(shape) * dtype.itemsize, file.tell()
    if size - start != expected:
        raise ValueError(
            f"{dtype} of shape {shape} are {expected:,} bytes, but {size - start:,} came"
        )
    return shape, "F" if fortran else "C", dtype, start
