"""Three nets to start from, each a function that returns a fresh ``Sequential``.

:func:`classroom` is the net of a first course, :func:`lenet5` the one that read cheques in 1998,
:func:`resnet20` a residual net of 0.27 million weights. They are built from the public layers
alone: copy one and change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cnnx.functional import _arguments as check
from cnnx.functional._norm import NormActivation
from cnnx.layers import (
    AvgPool2D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
)

__all__ = ["MODELS", "classroom", "lenet5", "resnet20"]

Seed = int | np.random.Generator | None


def classroom(
    input_shape: Sequence[int],
    classes: int = 10,
    *,
    filters: int = 32,
    hidden: int = 128,
    dtype: str = "float32",
    rng: Seed = None,
) -> Sequential:
    """Return Conv 3x3, ReLU, MaxPool 2x2, Flatten, Dense with ReLU, Dense.

    Parameters
    ----------
    input_shape : sequence of three ints
        Shape (C, H, W) of one image; H and W at least 2.
    classes : int
        Number of outputs: one score (logit) for each class.
    filters : int
        Output channels of the convolution, which keeps the image's size ("same" padding).
    hidden : int
        Outputs of the first dense layer.
    dtype : {"float32", "float64"}
        Type of the parameters.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from; the same integer gives the same net.

    Returns
    -------
    Sequential
        Takes (N, C, H, W), gives (N, classes).

    Raises
    ------
    ValueError
        If `input_shape` is not three sizes, or an image is smaller than the pooling window.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.models import classroom
    >>> net = classroom((1, 8, 8), classes=10, rng=0)
    >>> net(np.zeros((2, 1, 8, 8), np.float32)).shape
    (2, 10)
    """
    channels, height, width = _image(input_shape, smallest=2)
    check.integer(filters, "filters", 1)
    check.integer(hidden, "hidden", 1)
    check.integer(classes, "classes", 1)
    rng = check.generator(rng)
    flat = filters * (height // 2) * (width // 2)
    return Sequential(
        Conv2D(channels, filters, 3, padding="same", dtype=dtype, rng=rng),
        ReLU(),
        MaxPool2D(2),
        Flatten(),
        Dense(flat, hidden, activation="relu", dtype=dtype, rng=rng),
        Dense(hidden, classes, dtype=dtype, rng=rng),
    )


def lenet5(
    input_shape: Sequence[int],
    classes: int = 10,
    *,
    dtype: str = "float32",
    rng: Seed = None,
) -> Sequential:
    """Return LeNet-5: two 5x5 convolutions with average pooling, then three dense layers.

    As in the paper with tanh, but with plain averages for pooling, every map of the second
    convolution connected to all of the first, and logits for the softmax at the end. For 28x28
    images the first convolution pads by 2, which gives the paper's 32x32; images below 12x12 are
    too small for its unpadded second convolution, which then pads by 2 as well.

    Parameters
    ----------
    input_shape : sequence of three ints
        Shape (C, H, W) of one image; H and W at least 4.
    classes : int
        Number of outputs: one score (logit) for each class.
    dtype : {"float32", "float64"}
        Type of the parameters.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from; the same integer gives the same net.

    Returns
    -------
    Sequential
        Takes (N, C, H, W), gives (N, classes).

    Raises
    ------
    ValueError
        If `input_shape` is not three sizes, or an image is smaller than 4x4.

    Notes
    -----
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 86(11), 1998, section II.B.

    Examples
    --------
    >>> from cnnx.models import lenet5
    >>> net = lenet5((1, 28, 28), rng=0)
    >>> sum(p.size for p in net.params.values())
    61706
    """
    channels, height, width = _image(input_shape, smallest=4)
    check.integer(classes, "classes", 1)
    rng = check.generator(rng)
    padding = 0 if min(height, width) >= 12 else 2
    shrink = 4 - 2 * padding
    # Each pooling halves, rounding down; the second convolution takes off 4 pixels, or none.
    flat = 16 * ((height // 2 - shrink) // 2) * ((width // 2 - shrink) // 2)
    return Sequential(
        Conv2D(channels, 6, 5, padding=2, activation="tanh", dtype=dtype, rng=rng),
        AvgPool2D(2),
        Conv2D(6, 16, 5, padding=padding, activation="tanh", dtype=dtype, rng=rng),
        AvgPool2D(2),
        Flatten(),
        Dense(flat, 120, activation="tanh", dtype=dtype, rng=rng),
        Dense(120, 84, activation="tanh", dtype=dtype, rng=rng),
        Dense(84, classes, dtype=dtype, rng=rng),
    )


def resnet20(
    input_shape: Sequence[int],
    classes: int = 10,
    *,
    dtype: str = "float32",
    rng: Seed = None,
) -> Sequential:
    """Return the 20-layer residual net for small images: three stages of three blocks.

    16, 32 and 64 channels; the second and third stage start with stride 2. Where a block changes
    the shape, a 1x1 convolution with batch normalisation is its shortcut (the paper's option B).

    Parameters
    ----------
    input_shape : sequence of three ints
        Shape (C, H, W) of one image.
    classes : int
        Number of outputs: one score (logit) for each class.
    dtype : {"float32", "float64"}
        Type of the parameters.
    rng : int, numpy.random.Generator or None
        Where the initial weights come from; the same integer gives the same net.

    Returns
    -------
    Sequential
        Takes (N, C, H, W), gives (N, classes).

    Raises
    ------
    ValueError
        If `input_shape` is not three sizes of at least 1.

    Notes
    -----
    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
    section 4.2.

    Examples
    --------
    >>> from cnnx.models import resnet20
    >>> net = resnet20((3, 32, 32), rng=0)
    >>> sum(p.size for p in net.params.values())
    272474
    """
    channels, _, _ = _image(input_shape, smallest=1)
    check.integer(classes, "classes", 1)
    rng = check.generator(rng)
    layers: list[Layer] = _conv_norm(channels, 16, 3, 1, "relu", dtype, rng)
    width = 16
    for out, first_stride in ((16, 1), (32, 2), (64, 2)):
        for stride in (first_stride, 1, 1):
            body = Sequential(
                *_conv_norm(width, out, 3, stride, "relu", dtype, rng),
                *_conv_norm(out, out, 3, 1, None, dtype, rng),
            )
            shortcut = None
            if stride != 1 or width != out:
                shortcut = Sequential(*_conv_norm(width, out, 1, stride, None, dtype, rng))
            layers.append(Residual(body, shortcut, activation="relu"))
            width = out
    return Sequential(*layers, GlobalAvgPool2D(), Dense(width, classes, dtype=dtype, rng=rng))


MODELS: dict[str, Callable[..., Sequential]] = {
    "classroom": classroom,
    "lenet5": lenet5,
    "resnet20": resnet20,
}


def _conv_norm(
    channels: int,
    out: int,
    kernel: int,
    stride: int,
    activation: NormActivation,
    dtype: str,
    rng: np.random.Generator,
) -> list[Layer]:
    """A convolution without bias, which the normalisation after it would only take off again."""
    return [
        Conv2D(channels, out, kernel, stride, kernel // 2, bias=False, dtype=dtype, rng=rng),
        BatchNorm2D(out, activation=activation, dtype=dtype),
    ]


def _image(input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    expected = f"(channels, height, width) with height and width at least {smallest}"
    if not isinstance(input_shape, tuple | list):
        raise TypeError(f"input_shape is {check.described(input_shape)}, expected {expected}")
    sizes = [check.integer(size, f"input_shape[{i}]", 1) for i, size in enumerate(input_shape)]
    if len(sizes) != 3 or min(sizes[1:]) < smallest:
        raise ValueError(f"input_shape is {tuple(input_shape)}, expected {expected}")
    channels, height, width = sizes
    return channels, height, width
