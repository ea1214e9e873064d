"""Changes to whole batches of images: flips, crops and normalisation.

Plain functions of an array (N, C, H, W), which they leave alone. Those that leave something to
chance draw it from a generator that they are given: one number an image, or two, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from cnnx._shapes import require_room
from cnnx.functional import _arguments as check

Array = NDArray[Any]
IntOrPair = int | Sequence[int]


def random_flip(
    x: Array, rng: np.random.Generator, horizontal: float = 0.5, vertical: float = 0.0
) -> Array:
    """Mirror some of the images.

    Parameters
    ----------
    x : ndarray, shape (N, C, H, W), float32 or float64
        Images.
    rng : numpy.random.Generator
        Decides for each image.
    horizontal, vertical : float
        Probability that left and right change places, and that top and bottom do.

    Returns
    -------
    ndarray, shape (N, C, H, W)
        A new array.

    Raises
    ------
    ValueError
        If `x` has not four dimensions or a probability is not in 0..1.
    TypeError
        If an argument is something else than said above.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.data import random_flip
    >>> x = np.array([[[[1.0, 2.0, 3.0]]]])
    >>> random_flip(x, np.random.default_rng(0), horizontal=1.0)
    array([[[[3., 2., 1.]]]])
    """
    x = _images(x)
    _require_generator(rng)
    for name, share, axis in (("horizontal", horizontal, 3), ("vertical", vertical, 2)):
        chosen = rng.random(len(x)) < check.number(share, name, 0, 1)
        x = np.where(chosen[:, None, None, None], np.flip(x, axis), x)
    return x


def random_crop(
    x: Array, rng: np.random.Generator, size: IntOrPair | None = None, padding: IntOrPair = 0
) -> Array:
    """Cut a window out of each image, at a place of its own, after a border of zeros was put on.

    With `padding` alone, images keep their size and move by up to so many pixels. The border is
    black as long as 0 is: crop before you normalise.

    Parameters
    ----------
    x : ndarray, shape (N, C, H, W), float32 or float64
        Images.
    rng : numpy.random.Generator
        Decides for each image; every place where the window fits is as likely.
    size : int or (height, width), optional
        Of the window. Default: that of the images.
    padding : int or (height, width)
        Rows of zeros to put on above and below, and columns left and right.

    Returns
    -------
    ndarray, shape (N, C, height, width)
        A new array.

    Raises
    ------
    ValueError
        If `x` has not four dimensions, or the window is larger than the padded images.
    TypeError
        If an argument is something else than said above.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.data import random_crop
    >>> x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> random_crop(x, np.random.default_rng(0), padding=1)
    array([[[[3., 4.],
             [0., 0.]]]])
    """
    x = _images(x)
    _require_generator(rng)
    above, beside = check.pair(padding, "padding", 0)
    height, width = x.shape[2:] if size is None else check.pair(size, "size")
    pads = (above, above, beside, beside)
    require_room(f"with padding ({above}, {beside}), x", x.shape, pads)
    padded = np.pad(x, ((0, 0), (0, 0), (above, above), (beside, beside)))
    _require_fit(padded, height, width)
    top = rng.integers(0, padded.shape[2] - height + 1, len(x))
    left = rng.integers(0, padded.shape[3] - width + 1, len(x))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(len(x)), :, top, left]


def center_crop(x: Array, size: IntOrPair) -> Array:
    """Cut the window in the middle out of each image; of two middles the upper and left one.

    Parameters
    ----------
    x : ndarray, shape (N, C, H, W), float32 or float64
        Images.
    size : int or (height, width)
        Of the window.

    Returns
    -------
    ndarray, shape (N, C, height, width)
        A new array.

    Raises
    ------
    ValueError
        If `x` has not four dimensions, or the window is larger than the images.
    TypeError
        If an argument is something else than said above.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.data import center_crop
    >>> center_crop(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  6.],
             [ 9., 10.]]]])
    """
    x = _images(x)
    height, width = check.pair(size, "size")
    _require_fit(x, height, width)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width].copy()


def mean_std(x: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation of each channel, for :func:`cnnx.data.normalize`.

    Parameters
    ----------
    x : ndarray, shape (N, C, H, W), float32 or float64
        Images: those to train on, not those to test on.

    Returns
    -------
    mean, std : ndarray, shape (C,), float64
        Over all images and pixels, summed in float64.

    Raises
    ------
    ValueError
        If `x` has not four dimensions or is empty.
    TypeError
        If `x` is no array of floats.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.data import mean_std
    >>> mean_std(np.array([[[[0.0, 2.0]]], [[[4.0, 6.0]]]]))
    (array([3.]), array([2.23606798]))
    """
    x = _images(x)
    if x.size == 0:
        raise ValueError(f"x has shape {x.shape}, expected at least one pixel")
    over = (0, 2, 3)
    mean = x.mean(over, np.float64)
    # Channel by channel: the float64 copy of all images need not fit beside them.
    channels = (np.subtract(x[:, c], mean[c], dtype=np.float64) for c in range(x.shape[1]))
    return mean, np.array([np.sqrt(np.square(channel).mean()) for channel in channels])


def normalize(x: Array, mean: ArrayLike, std: ArrayLike) -> Array:
    """Return ``(x - mean) / std``, channel by channel.

    Parameters
    ----------
    x : ndarray, shape (N, C, H, W), float32 or float64
        Images.
    mean, std : array_like, shape (C,)
        What to take off each channel, and what to divide it by; one number does for all.

    Returns
    -------
    ndarray, shape (N, C, H, W)
        A new array of the dtype of `x`.

    Raises
    ------
    ValueError
        If `x` has not four dimensions, `mean` or `std` is not one number a channel, or a number is
        not finite, or a `std` not above 0.
    TypeError
        If an argument is something else than said above.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.data import normalize
    >>> normalize(np.array([[[[0.0, 0.5, 1.0]]]]), mean=[0.5], std=[0.25])
    array([[[[-2.,  0.,  2.]]]])
    """
    x = _images(x)
    mean, std = _by_channel(mean, "mean", x), _by_channel(std, "std", x)
    if not (std > 0).all():
        raise ValueError(f"std is {std.ravel().tolist()}, expected numbers above 0")
    return (x - mean) / std


def _images(x: object) -> Array:
    (images,) = check.floats((("x", 4, check.IMAGES, True),), x)
    array: Array = images
    return array


def _require_generator(rng: object) -> None:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng is {check.described(rng)}, expected a numpy.random.Generator, such as "
            "np.random.default_rng(0)"
        )


def _require_fit(x: Array, height: int, width: int) -> None:
    if height > x.shape[2] or width > x.shape[3]:
        raise ValueError(
            f"size is ({height}, {width}), expected a window within the images, which are "
            f"({x.shape[2]}, {x.shape[3]}) with their padding"
        )


def _by_channel(value: ArrayLike, name: str, x: Array) -> Array:
    """One number for each channel of `x`, in its dtype, ready to be broadcast."""
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of several lengths
        numbers = np.empty(0, object)
    if numbers.dtype.kind not in "fiu":
        raise TypeError(f"{name} is {check.described(value)}, expected numbers, one a channel")
    if numbers.shape not in ((), (1,), (x.shape[1],)):
        raise ValueError(
            f"{name} has shape {numbers.shape}, expected ({x.shape[1]},): one number a channel"
        )
    with np.errstate(over="ignore"):  # a float64 may be too large
        cast = numbers.astype(x.dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"{name} is {numbers.tolist()}, expected finite numbers of {x.dtype}")
    return cast.reshape(-1, 1, 1)
