"""Data sets to train on: the digits inside the package, and MNIST's two file formats.

:func:`digits` needs nothing but the package. :func:`load` reads what people have on disk: Keras's
``mnist.npz``, or the four IDX files of the original, gzipped or not. Both return a
:class:`Dataset` of float32 images (N, 1, H, W) in 0..1 and int64 labels, split into a part to train
on and a part to test on. A damaged file is one clear ``ValueError``, and no file can run code:
pickles are never read.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cnnx._npz import read_npz, warranted
from cnnx.functional import _arguments as check

__all__ = ["Dataset", "digits", "load", "read_idx"]

_IDX_UINT8 = 0x08  # the element type in an IDX magic number; MNIST uses no other
_MOST_DIMENSIONS = 32
_MOST_CLASSES = 4096  # a table of all against all must fit
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """Images and labels, split into a part to train on and a part to test on.

    Attributes
    ----------
    name : str
        What to call it in a report.
    x_train, x_test : ndarray, shape (N, C, H, W), float32
        Images, 0 (background) to 1.
    y_train, y_test : ndarray, shape (N,), int64
        Classes, from 0.
    classes : int
        How many classes there are.

    Examples
    --------
    >>> from cnnx.data import digits
    >>> digits().input_shape
    (1, 8, 8)
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width


def digits() -> Dataset:
    """Return the 1,797 handwritten digits that come with the package.

    Every fifth image is held out for the test, so the split depends on no seed: 1,438 images to
    train on, 359 to test.

    Returns
    -------
    Dataset
        Images (N, 1, 8, 8) and ten classes.

    Notes
    -----
    Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0.

    Examples
    --------
    >>> from cnnx.data import digits
    >>> data = digits()
    >>> data.x_train.shape, data.x_test.shape
    ((1438, 1, 8, 8), (359, 1, 8, 8))
    """
    arrays = read_npz((files("cnnx") / "data_files" / "digits.npz").read_bytes())
    x, y = _unit_images(arrays["images"], 16), arrays["labels"].astype(np.int64)
    test = np.arange(len(y)) % 5 == 4
    return Dataset("UCI digits", x[~test], y[~test], x[test], y[test], 10)


def load(path: str | os.PathLike[str]) -> Dataset:
    """Read a data set in one of MNIST's two formats.

    Parameters
    ----------
    path : path
        A ``.npz`` file in the layout of Keras's ``mnist.npz`` (arrays ``x_train``, ``y_train``,
        ``x_test``, ``y_test``), or a folder with the four IDX files ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``
        (``train-images.idx3-ubyte`` is understood as well), each gzipped (``.gz``) or not.

    Returns
    -------
    Dataset
        Images (N, 1, H, W); as many classes as the largest label of the training part says.

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
    path = Path(check.path(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    parts = _read_idx_folder(path) if path.is_dir() else _read_npz(path)
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
    return Dataset(
        path.name,
        _unit_images(x_train, 255),
        y_train.astype(np.int64),
        _unit_images(x_test, 255),
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
    path = Path(check.path(path))
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        try:
            return _read_idx_stream(file, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error


def _read_idx_stream(file: BinaryIO, path: Path) -> NDArray[np.uint8]:
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


def _read_idx_folder(folder: Path) -> list[NDArray[Any]]:
    arrays: list[NDArray[Any]] = []
    for part in ("train", "t10k"):
        for content, dims in (("images", 3), ("labels", 1)):
            file = _find_idx(folder, f"{part}-{content}-idx{dims}-ubyte")
            array = read_idx(file)
            if array.ndim != dims:
                raise ValueError(f"{file}: has {array.ndim} dimensions, expected {dims}")
            arrays.append(array)
    return arrays


def _find_idx(folder: Path, name: str) -> Path:
    for spelling in (name, name.replace("-idx", ".idx")):
        for file in (folder / spelling, folder / f"{spelling}.gz"):
            if file.is_file():
                return file
    raise FileNotFoundError(f"{folder} has no file {name} or {name}.gz")


def _read_npz(path: Path) -> list[NDArray[Any]]:
    try:
        arrays = read_npz(path.read_bytes())
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


def _unit_images(x: NDArray[np.uint8], white: int) -> NDArray[np.float32]:
    """(N, H, W) grey levels 0..white as (N, 1, H, W) float32 0..1."""
    return x[:, np.newaxis].astype(np.float32) / np.float32(white)
