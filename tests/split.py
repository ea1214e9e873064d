"""Calls of every function that are large enough to be split among threads.

The numbers are random, not whole: an order of summation that depended on the threads would show.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from calls import Call

import cnnx

IMAGES = (3, 9, 41, 39)  # enough work for convolution and pooling to split,
BATCH = (20, 70, 12, 12)  # which batch normalisation cuts into pieces
MANY = (3, 12, 61, 61)  # and for what does one operation on each element
ROWS = (700, 150)


def conv(x: tuple[int, ...], weight: tuple[int, ...], **options: Any) -> list[Call]:
    """A convolution and its backward."""
    with cnnx.use_backend("numpy"):
        out = cnnx.conv2d(np.zeros(x, np.float32), np.zeros(weight, np.float32), **options).shape
    return [
        Call("conv2d", {"x": x, "weight": weight, "bias": weight[:1]}, options),
        Call("conv2d_backward", {"grad_out": out, "x": x, "weight": weight}, options),
    ]


# One or more calls of every function, of a size that is split among threads.
ELEMENTWISE = ("relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu")
POOL = {"pool_size": 3, "stride": 2, "padding": 1}
CONVOLUTIONS: dict[str, list[Call]] = {
    "winograd": conv((3, 16, 25, 23), (24, 16, 3, 3), padding=1),
    "winograd_one_image": conv((1, 32, 30, 30), (40, 32, 3, 3), padding=1),
    "winograd_small_images": conv((9, 64, 7, 7), (64, 64, 3, 3), padding=1),
    # Several blocks of tiles, so that it depends on the threads who transforms the weights.
    "winograd_by_parts": conv((4, 70, 40, 40), (64, 70, 5, 5), padding=2),
    "winograd_strided": conv((3, 200, 30, 31), (96, 200, 3, 3), padding=1, stride=2),
    "direct": conv((2, 3, 45, 47), (16, 3, 5, 5), stride=2, padding=2),
    "direct_one_image": conv((1, 1, 90, 90), (6, 1, 5, 5)),
    "direct_many_pixels": conv((4, 3, 150, 150), (8, 3, 3, 3), padding=1),
    "gemm": conv((2, 20, 21, 22), (30, 20, 5, 5), padding=2),
    "gemm_one_image": conv((1, 40, 19, 20), (72, 40, 1, 1)),
    "gemm_dilated": conv((2, 9, 40, 40), (10, 9, 3, 3), dilation=2, padding=2),
    "gemm_strided": conv((3, 12, 37, 31), (20, 12, 3, 3), stride=(2, 3)),
    "gemm_many_pixels": conv((3, 8, 130, 130), (12, 8, 2, 2)),
    "depthwise": conv((2, 40, 40, 40), (40, 1, 3, 3), padding=1, groups=40),
    "depthwise_strided": conv((3, 80, 43, 40), (80, 1, 5, 5), stride=2, padding=2, groups=80),
    "depthwise_large": conv((2, 3, 180, 150), (3, 1, 3, 3), padding=1, groups=3),
    "depthwise_small": conv((3, 200, 14, 14), (200, 1, 7, 7), padding=3, groups=200),
    "grouped": conv((2, 32, 24, 24), (48, 16, 3, 3), padding=1, groups=2),
    "grouped_few": conv((5, 24, 60, 37), (24, 4, 3, 3), padding=1, groups=6),
    "reflected": conv((2, 9, 30, 30), (8, 9, 3, 3), padding=1, padding_mode="reflect"),
    "fused": [
        Call(
            "conv2d",
            {"x": (2, 20, 21, 22), "weight": (30, 20, 5, 5), "bias": (30,)},
            {"activation": "sigmoid"},
        )
    ],
}
_TRANSPOSE = {"stride": 2, "padding": 1, "output_padding": 1}
SPLIT: dict[str, list[Call]] = {
    **CONVOLUTIONS,
    "conv_transpose2d": [
        Call("conv_transpose2d", {"x": (3, 16, 30, 31), "weight": (16, 12, 3, 3)}, _TRANSPOSE),
        Call(
            "conv_transpose2d_backward",
            {"grad_out": (3, 12, 60, 62), "x": (3, 16, 30, 31), "weight": (16, 12, 3, 3)},
            _TRANSPOSE,
        ),
    ],
    "max_pool2d": [
        Call("max_pool2d", {"x": IMAGES}, {**POOL, "return_indices": True}),
        Call(
            "max_pool2d_backward",
            {"grad_out": (3, 12, 41, 39)},
            {
                "indices": np.arange(3 * 12 * 41 * 39).reshape(3, 12, 41, 39) * 5 % (61 * 61),
                "input_shape": MANY,
            },
        ),
    ],
    "avg_pool2d": [
        Call("avg_pool2d", {"x": IMAGES}, POOL),
        Call("avg_pool2d_backward", {"grad_out": (3, 9, 21, 20)}, {"input_shape": IMAGES, **POOL}),
        Call(
            "avg_pool2d_backward",
            {"grad_out": (3, 9, 41, 39)},
            {"input_shape": IMAGES, **POOL, "stride": 1},
        ),
        Call(
            "avg_pool2d_backward",
            {"grad_out": (3, 12, 30, 30)},
            {"input_shape": (3, 12, 60, 60), "pool_size": 2},
        ),
    ],
    "global_avg_pool2d": [
        Call("global_avg_pool2d", {"x": MANY}),
        Call("global_avg_pool2d_backward", {"grad_out": MANY[:2]}, {"input_shape": MANY}),
    ],
    "linear": [
        Call("linear", {"x": ROWS, "weight": (150, 70), "bias": (70,)}, {"activation": "tanh"}),
        Call("linear_backward", {"grad_out": (700, 70), "x": ROWS, "weight": (150, 70)}),
        Call("linear", {"x": (1, 1800), "weight": (1800, 600), "bias": (600,)}),
        Call("linear_backward", {"grad_out": (1, 600), "x": (1, 1800), "weight": (1800, 600)}),
    ],
    **{
        name: [Call(name, {"x": MANY}), Call(f"{name}_backward", {"grad_out": MANY, "x": MANY})]
        for name in ELEMENTWISE
    },
    **{
        name: [Call(name, {"x": ROWS}), Call(f"{name}_backward", {"grad_out": ROWS, "x": ROWS})]
        for name in ("softmax", "log_softmax")
    },
    "batch_norm2d": [
        Call("batch_norm2d", {"x": MANY, "weight": (12,), "bias": (12,)}),
        Call("batch_norm2d_backward", {"grad_out": MANY, "x": MANY, "weight": (12,)}),
        Call("batch_norm2d", {"x": BATCH, "weight": (70,), "bias": (70,)}),
        Call("batch_norm2d_backward", {"grad_out": BATCH, "x": BATCH, "weight": (70,)}),
    ],
    "conv_forward": [Call("conv_forward", {"X": IMAGES, "W": (10, 9, 3, 3), "b": (10,)})],
}


def random(call: Call, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(call.name))
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in call.shapes.items()}


def bits(results: list[Any]) -> list[bytes]:
    return [result.tobytes() for result in results]
