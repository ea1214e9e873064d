"""Layers: a forward, the backward that belongs to it, and the arrays in between.

A layer's forward is one call into :mod:`cnnx.functional`; what it adds is memory: its parameters,
and of the last forward what backward needs.
"""

from cnnx.layers.activation import (
    GELU,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from cnnx.layers.base import Layer
from cnnx.layers.containers import Container, Residual, Sequential
from cnnx.layers.conv import Conv2D, ConvTranspose2D
from cnnx.layers.dense import Dense
from cnnx.layers.dropout import Dropout
from cnnx.layers.norm import BatchNorm2D
from cnnx.layers.pool import AvgPool2D, GlobalAvgPool2D, MaxPool2D
from cnnx.layers.shape import Flatten

__all__ = [
    "AvgPool2D",
    "BatchNorm2D",
    "Container",
    "Conv2D",
    "ConvTranspose2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GELU",
    "GlobalAvgPool2D",
    "Layer",
    "LeakyReLU",
    "MaxPool2D",
    "ReLU",
    "ReLU6",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
