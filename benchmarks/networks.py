"""The nets that are measured: cnnx models, and their twins in PyTorch with the same weights.

A net is written once, in cnnx's layers; :func:`to_torch` translates it, so that both sides compute
the same numbers, and :func:`to_onnx` exports the twin.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import cnnx
from cnnx.models import lenet5, resnet20


def conv_norm(
    c: int, f: int, k: int, stride: int = 1, groups: int = 1, activation: Any = None
) -> list[Any]:
    conv = cnnx.Conv2D(c, f, k, stride, k // 2, groups=groups, bias=False)
    return [conv, cnnx.BatchNorm2D(f, activation=activation)]


def classroom() -> cnnx.Sequential:
    """The net of a first course, as cnnx would have it: the activations are the layers' own."""
    return cnnx.Sequential(
        cnnx.Conv2D(1, 32, 3, padding=1, activation="relu"),
        cnnx.MaxPool2D(2),
        cnnx.Flatten(),
        cnnx.Dense(6272, 512, activation="relu"),
        cnnx.Dense(512, 10),
    )


def vgg11(classes: int = 10) -> cnnx.Sequential:
    """VGG's configuration A with batch normalisation, for 32x32 images (arXiv:1409.1556)."""
    layers: list[Any] = []
    channels = 3
    for out in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if out:
            layers += conv_norm(channels, out, 3, activation="relu")
            channels = out
        else:
            layers.append(cnnx.MaxPool2D(2))
    return cnnx.Sequential(*layers, cnnx.Flatten(), cnnx.Dense(512, classes))


def mobilenet_v2(classes: int = 1000) -> cnnx.Sequential:
    """MobileNetV2 of width 1 for 224x224 images (arXiv:1801.04381, table 2), without dropout."""
    layers: list[Any] = conv_norm(3, 32, 3, 2, activation="relu6")
    channels = 32
    for factor, out, count, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for stride in (first_stride, *[1] * (count - 1)):
            inner = factor * channels
            body = conv_norm(channels, inner, 1, activation="relu6") if factor > 1 else []
            body += conv_norm(inner, inner, 3, stride, inner, "relu6")
            body += conv_norm(inner, out, 1)
            if stride == 1 and channels == out:
                layers.append(cnnx.Residual(cnnx.Sequential(*body)))
            else:
                layers += body
            channels = out
    layers += conv_norm(channels, 1280, 1, activation="relu6")
    return cnnx.Sequential(*layers, cnnx.GlobalAvgPool2D(), cnnx.Dense(1280, classes))


class Net(NamedTuple):
    """One net, the batch it is trained with, and its images."""

    build: Callable[[], cnnx.Sequential]
    batch: int
    image: tuple[int, int, int]
    classes: int = 10


NETS = {
    "classroom": Net(classroom, 64, (1, 28, 28)),
    "LeNet-5": Net(lambda: lenet5((1, 28, 28)), 64, (1, 28, 28)),
    "CIFAR VGG-11": Net(vgg11, 64, (3, 32, 32)),
    "ResNet-20": Net(lambda: resnet20((3, 32, 32)), 64, (3, 32, 32)),
    "MobileNetV2": Net(mobilenet_v2, 4, (3, 224, 224), 1000),
}


class _Residual(torch.nn.Module):
    def __init__(self, body: torch.nn.Module, shortcut: torch.nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class _GlobalAvgPool(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


_ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "relu": lambda: torch.nn.ReLU(inplace=True),
    "relu6": lambda: torch.nn.ReLU6(inplace=True),
    "tanh": torch.nn.Tanh,
}


def to_torch(layer: Any) -> torch.nn.Module:
    """The same layer in PyTorch, with copies of the weights and the activation behind it."""
    activation = getattr(layer, "activation", None)
    twin = _twin(layer)
    return twin if activation is None else torch.nn.Sequential(twin, _ACTIVATIONS[activation]())


def _twin(layer: Any) -> torch.nn.Module:
    if isinstance(layer, cnnx.Sequential):
        return torch.nn.Sequential(*map(to_torch, layer))
    if isinstance(layer, cnnx.Residual):
        shortcut = torch.nn.Identity() if layer.shortcut is None else to_torch(layer.shortcut)
        return _Residual(to_torch(layer.body), shortcut)
    if isinstance(layer, cnnx.ReLU):
        return _ACTIVATIONS["relu"]()
    if isinstance(layer, cnnx.Flatten):
        return torch.nn.Flatten()
    if isinstance(layer, cnnx.GlobalAvgPool2D):
        return _GlobalAvgPool()
    if isinstance(layer, cnnx.MaxPool2D):
        return torch.nn.MaxPool2d(layer.pool_size)
    if isinstance(layer, cnnx.AvgPool2D):
        return torch.nn.AvgPool2d(layer.pool_size)
    twin: torch.nn.Module
    if isinstance(layer, cnnx.BatchNorm2D):
        twin = torch.nn.BatchNorm2d(layer.num_features)
    elif isinstance(layer, cnnx.Conv2D):
        # A number for "same": PyTorch's own word for it costs it a copy of the image.
        padding = layer.kernel_size // 2 if layer.padding == "same" else layer.padding
        options = (layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups)
        bias = "bias" in layer.params
        twin = torch.nn.Conv2d(layer.in_channels, layer.out_channels, *options, bias=bias)
    else:
        twin = torch.nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        for name, array in {**layer.params, **layer.buffers}.items():
            transposed = isinstance(layer, cnnx.Dense) and name == "weight"
            getattr(twin, name).copy_(torch.from_numpy(array.T if transposed else array))
    return twin


def to_onnx(model: torch.nn.Module, x: np.ndarray) -> bytes:
    """The net as an ONNX file; needs ``onnx``."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is old, and needs the fewest packages
        torch.onnx.export(model, (torch.from_numpy(x),), file, dynamo=False)
    return file.getvalue()
