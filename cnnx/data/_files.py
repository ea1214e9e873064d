"""MNIST's two file formats: Keras's ``mnist.npz``, and the four IDX files of the original."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cnnx._npz import map_npz, read_npz, warranted
from cnnx.data._dataset import Dataset, unit_images
from cnnx.data._pictures import has_folders, image_folder
from cnnx.functional import _arguments as check

_IDX_UINT8 = 0x08  # the element type in an IDX magic number; MNIST uses no other
_MOST_DIMENSIONS = 32
_MOST_CLASSES = 4096  # a table of all against all must fit
_CHUNK = 1 << 20
# The four files, in the order of `assembled`, and how many dimensions the array of each has.
IDX_FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}


def load(path: str | os.PathLike[str]) -> Dataset:
    """Read a data set: one of MNIST's two formats, or pictures in folders.

    Parameters
    ----------
    path : path
        A ``.npz`` file in the layout of Keras's ``mnist.npz`` (arrays ``x_train``, ``y_train``,
        ``x_test``, ``y_test``), or a folder with the four IDX files ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``
        (``train-images.idx3-ubyte`` is understood as well), each gzipped (``.gz``) or not. A
        folder that has folders of pictures in their place is read by
        :func:`cnnx.data.image_folder`.

    Returns
    -------
    Dataset
        Images (N, C, H, W); with MNIST's files C is 1, and the largest label of the training part
        says how many classes there are.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder, or a folder lacks one of the four.
    ValueError
        If a file is damaged, or its arrays do not fit together. The message names the file.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from cnnx.data import load
    >>> images, labels = np.zeros((4, 28, 28), np.uint8), np.array([0, 1, 2, 1], np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "tiny.npz"
    ...     np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    ...     load(file).x_train.shape
    (4, 1, 28, 28)
    """
    return _load(path, levels=False)


def load_levels(path: str | os.PathLike[str]) -> Dataset:
    """Do what :func:`load` does, but leave MNIST's images to train on as they are: levels 0..255.

    Where the file has them uncompressed they stay in it, as a memory map: who wants a part of them
    reads that part. The file must not be cut off meanwhile.
    """
    return _load(path, levels=True)


def _load(path: str | os.PathLike[str], levels: bool) -> Dataset:
    path = Path(check.path(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if not path.is_dir():
        return assembled(path, _read_npz(path, levels), levels)
    files = {name: _find_idx(path, name) for name in IDX_FILES}
    if has_folders(path) and not any(files.values()):
        return image_folder(path)
    large = "train-images-idx3-ubyte" if levels else ""
    parts = [read_part(path, name, file, name == large) for name, file in files.items()]
    return assembled(path, parts, levels)


def assembled(path: Path, parts: Sequence[NDArray[Any]], levels: bool = False) -> Dataset:
    """Make a data set of its four arrays, after a look whether they fit together."""
    x_train, y_train, x_test, y_test = parts
    _check_part(path, "training", x_train, y_train)
    _check_part(path, "test", x_test, y_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{path}: training images are {x_train.shape[1:]} pixels and "
            f"test images {x_test.shape[1:]}, expected one size"
        )
    classes = int(y_train.max()) + 1
    if int(y_test.max()) >= classes:
        raise ValueError(
            f"{path}: the test labels go up to {y_test.max()}, "
            f"but the training labels only to {classes - 1}"
        )
    x: Any = x_train[:, np.newaxis]
    return Dataset(
        path.name,
        x if levels else unit_images(x),
        y_train.astype(np.int64),
        unit_images(x_test[:, np.newaxis]),
        y_test.astype(np.int64),
        classes,
    )


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped where its name ends in ``.gz``.

    The format: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the elements in row-major order.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    ndarray, uint8
        Of the shape that the header announces.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the header is not that of an IDX file of bytes, or the file is shorter or longer than
        its header says.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from cnnx.data import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "labels"
    ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(file)
    array([7, 2, 1], dtype=uint8)
    """
    return _idx(Path(check.path(path)), mapped=False)


def _idx(path: Path, mapped: bool) -> NDArray[np.uint8]:
    zipped = path.suffix == ".gz"
    opener: Any = gzip.open if zipped else open
    with opener(path, "rb") as file:
        try:
            return _read_idx_stream(file, path, mapped and not zipped)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error


def _read_idx_stream(file: BinaryIO, path: Path, mapped: bool) -> NDArray[np.uint8]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _IDX_UINT8 or magic[3] == 0:
        raise ValueError(
            f"{path}: starts with the bytes {magic.hex(' ') or '(none)'}, "
            "expected 00 00 08 and the number of dimensions (an IDX file of unsigned bytes)"
        )
    if magic[3] > _MOST_DIMENSIONS:
        raise ValueError(f"{path}: announces {magic[3]} dimensions, expected 1 to 32")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise ValueError(f"{path}: ends inside its header of {magic[3]} dimensions")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    expected, room = math.prod(shape), warranted(path.stat().st_size)
    if mapped and file.tell() + expected == path.stat().st_size and expected:
        return np.memmap(file, np.uint8, "r", file.tell(), shape)
    # In chunks: a damaged header may announce more bytes than there is memory.
    data = bytearray()
    while len(data) <= min(expected, room) and (chunk := file.read(_CHUNK)):
        data += chunk
    if len(data) > room:
        raise ValueError(f"{path}: unpacks to more than {room:,} bytes, too many for its size")
    if len(data) != expected:
        came = f"{len(data):,}" if len(data) < expected else "more"
        raise ValueError(
            f"{path}: the header says {' x '.join(map(str, shape))} = {expected:,} bytes of data, "
            f"but {came} came"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_part(
    folder: Path, name: str, file: Path | None, mapped: bool = False
) -> NDArray[np.uint8]:
    """Read the file of a folder that stands for one of IDX_FILES, or map it if that can be."""
    if file is None:
        raise FileNotFoundError(f"{folder} has no file {name} or {name}.gz")
    array = _idx(file, mapped)
    if array.ndim != IDX_FILES[name]:
        raise ValueError(f"{file}: has {array.ndim} dimensions, expected {IDX_FILES[name]}")
    return array


def _find_idx(folder: Path, name: str) -> Path | None:
    for spelling in (name, name.replace("-idx", ".idx")):
        for file in (folder / spelling, folder / f"{spelling}.gz"):
            if file.is_file():
                return file
    return None


def _read_npz(path: Path, mapped: bool) -> list[NDArray[Any]]:
    try:
        arrays = map_npz(path, "x_train") if mapped else read_npz(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a whole npz file ({error})") from error
    wanted = ("x_train", "y_train", "x_test", "y_test")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        has = ", ".join(sorted(arrays))
        raise ValueError(f"{path}: no array {', '.join(missing)} in it; it has {has}")
    return [arrays[name] for name in wanted]


def _check_part(path: Path, part: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.dtype != np.uint8 or x.ndim != 3 or 0 in x.shape:
        raise ValueError(
            f"{path}: {part} images are {x.dtype} of shape {x.shape}, "
            "expected uint8 of shape (N, H, W), none of them zero"
        )
    if y.dtype.kind not in "ui" or y.shape != x.shape[:1]:
        raise ValueError(
            f"{path}: {part} labels are {y.dtype} of shape {y.shape}, "
            f"expected integers of shape ({len(x)},), one for each image"
        )
    if int(y.min()) < 0:
        raise ValueError(f"{path}: {part} labels go down to {y.min()}, expected classes from 0")
    if int(y.max()) >= _MOST_CLASSES:
        raise ValueError(
            f"{path}: {part} labels go up to {y.max()}, expected at most {_MOST_CLASSES - 1}"
        )
