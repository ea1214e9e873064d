"""Pictures in folders, one folder a class, read by Pillow.

All are read at once: nets that train on a CPU see each picture dozens of times, and decoding it
every time would take longer than the training step.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx.data._dataset import Dataset, unit_images
from cnnx.functional import _arguments as check

# Formats that Pillow always has, and that call no other program.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm"}
# Pillow's modes of 8 bits a channel, and the channels that they have: 16 bits it would clip.
_MODES = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3}
_MOST_PIXELS = 2**26  # beyond what cameras have, and far below what a bomb unpacks to
_PARTS = ("train", "test")


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    test_every: int = 5,
) -> Dataset:
    """Read pictures that lie in folders, one folder a class.

    Either ``path/class/picture.png``: then every fifth picture of each class, by name, is held out
    for the test. Or ``path/train/class/picture.png`` and ``path/test/class/picture.png``. Classes
    are numbered in the order of their names. Hidden files, and files whose name does not end like
    that of a picture, are passed over.

    Parameters
    ----------
    path : path
        The folder.
    size : int or (height, width), optional
        What to bring every picture to, whatever its proportions were. Without it all must have one
        size.
    channels : {1, 3}, optional
        Grey or red, green and blue. Default: 1 where all pictures are grey, else 3. Transparency
        is not looked at.
    test_every : int
        Which pictures to hold out for the test where there are no folders of that name: every
        second, third, and so on.

    Returns
    -------
    Dataset
        Images (N, C, H, W) in memory, in the order of their classes and names, and
        ``class_names``.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a picture is damaged, larger than 64 million pixels, of more than 8 bits a channel or of
        another size than the first; a class has no picture; no picture is left to test on; or the
        two parts differ in their classes. The message names the file or folder.
    ImportError
        If Pillow is not installed: ``pip install 'cnnx[data]'``.

    Notes
    -----
    PNG, JPEG, BMP, PGM and PPM are read. A photograph is turned upright as its camera says.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from cnnx.data import image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, grey in (("dark", 10), ("light", 240)):
    ...         place = pathlib.Path(folder, name)
    ...         place.mkdir()
    ...         for i in range(5):
    ...             pgm = b"P5 4 4 255 " + bytes([grey + i] * 16)
    ...             _ = (place / f"{i}.pgm").write_bytes(pgm)
    ...     data = image_folder(folder)
    >>> data.class_names, data.x_train.shape, data.x_test.shape
    (('dark', 'light'), (8, 1, 4, 4), (2, 1, 4, 4))
    """
    folder = Path(check.path(path))
    wanted_size = None if size is None else check.pair(size, "size")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {check.described(channels)}, expected None, 1 or 3")
    check.integer(test_every, "test_every", 2)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    pillow = _pillow()
    train, test, names = _parts(folder, test_every)
    # In one go, so that one size and number of channels holds for both parts.
    pictures = _stacked([file for file, _ in (*train, *test)], pillow, wanted_size, channels)
    x = unit_images(pictures)
    y = np.array([label for _, label in (*train, *test)], np.int64)
    n = len(train)
    return Dataset(folder.name, x[:n], y[:n], x[n:], y[n:], len(names), names)


def has_folders(folder: Path) -> bool:
    """Whether a folder may be one of pictures."""
    return bool(_folders(folder))


Labelled = list[tuple[Path, int]]


def _parts(folder: Path, test_every: int) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """The files to train on and to test on, each with its label, and the classes' names."""
    names = _folders(folder)
    if sorted(names) == sorted(_PARTS):
        of_train, of_test = (_labelled(folder / part) for part in _PARTS)
        if of_train.keys() != of_test.keys():
            raise ValueError(
                f"{folder}: its part to train on has the classes {', '.join(of_train)}, and that "
                f"to test on {', '.join(of_test)}, expected the same"
            )
    else:
        of_class = _labelled(folder)
        of_test = {name: files[test_every - 1 :: test_every] for name, files in of_class.items()}
        of_train = {
            name: [f for i, f in enumerate(files, 1) if i % test_every]
            for name, files in of_class.items()
        }
        if not any(of_test.values()):
            raise ValueError(
                f"{folder}: no class has {test_every} pictures (test_every), so that none is left "
                "to test on"
            )
    train, test = (
        [(file, label) for label, files in enumerate(part.values()) for file in files]
        for part in (of_train, of_test)
    )
    return train, test, tuple(of_train)


def _labelled(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class, by name."""
    classes = {name: _files(folder / name) for name in _folders(folder)}
    if not classes:
        raise ValueError(f"{folder} has no folders in it, expected one for each class")
    for name, files in classes.items():
        if not files:
            raise ValueError(
                f"{folder / name} has no picture in it, expected files that end in "
                f"{', '.join(sorted(_SUFFIXES))}"
            )
    return classes


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _stacked(
    files: list[Path], pillow: Any, size: tuple[int, int] | None, channels: int | None
) -> NDArray[np.uint8]:
    """All pictures as one array (N, C, H, W)."""
    pictures = [_picture(file, pillow, size, channels) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape[1:] != pictures[0].shape[1:]:
            height, width = picture.shape[1:]
            raise ValueError(
                f"{file} is {height} x {width} pixels and {files[0]} "
                f"{pictures[0].shape[1]} x {pictures[0].shape[2]}: expected one size, or the "
                "argument size=(height, width)"
            )
    most = max(len(picture) for picture in pictures)
    return np.stack([np.broadcast_to(p, (most, *p.shape[1:])) for p in pictures])


def _picture(
    file: Path, pillow: Any, size: tuple[int, int] | None, channels: int | None
) -> NDArray[np.uint8]:
    """One picture (C, H, W); as it is, where neither size nor channels are wanted."""
    content = file.read_bytes()  # what fails after this is the content's fault
    try:
        with pillow.Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise ValueError(f"{height} x {width} pixels, expected at most {_MOST_PIXELS:,}")
            if image.mode not in _MODES:
                raise ValueError(
                    f"its pixels are of Pillow's mode {image.mode}, expected one of "
                    f"{', '.join(_MODES)}: grey or RGB, 8 bits a channel"
                )
            grey = (channels or _MODES[image.mode]) == 1
            upright = pillow.ImageOps.exif_transpose(image)
            if "transparency" in upright.info:  # Pillow warns of it on any other way
                upright = upright.convert("RGBA")
            pixels = upright.convert("L" if grey else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # a damaged or forged file can provoke nearly any
        raise ValueError(f"{file} is not a whole picture: {error}") from error
    if size is not None and pixels.size != size[::-1]:
        pixels = pixels.resize(size[::-1], pillow.Image.Resampling.BILINEAR)
    array: NDArray[np.uint8] = np.asarray(pixels)
    return array[np.newaxis] if grey else array.transpose(2, 0, 1)


def _pillow() -> ModuleType:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError(
            "pictures need a package that is not installed: pip install 'cnnx[data]'"
        ) from error
    module: ModuleType = PIL
    return module
