"""What a data set is, and the one inside the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from cnnx._npz import read_npz


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
    class_names : tuple of str
        What they are called; empty where they are only numbers.

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
    class_names: tuple[str, ...] = ()

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
    x, y = unit_images(arrays["images"][:, np.newaxis], 16), arrays["labels"].astype(np.int64)
    test = np.arange(len(y)) % 5 == 4
    return Dataset("UCI digits", x[~test], y[~test], x[test], y[test], 10)


def unit_images(x: NDArray[np.uint8], white: int = 255) -> NDArray[np.float32]:
    """Levels 0..white as float32 0..1."""
    return np.divide(x, np.float32(white), dtype=np.float32)
