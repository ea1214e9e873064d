"""Explanations: what a layer computes, forward and backward, step by step with the real numbers.

::

    max_pool2d, conv2d, ...     the public functions, here
        |
    _pooling  _convolution  _dense  _activation  _net      an operation's story, as steps
        |          \\________/            (_weighted: what convolution and Dense share)
    _steps                      Step, Sum, Panel, Explanation: immutable
        |
    _text  _html  _image        the renderers; they know steps and no operation

Every number is computed by the sums that are shown, in plain Python, and then held against cnnx's
kernels and against the numerical gradient.
"""

from __future__ import annotations

from typing import Any

from cnnx.explain import _activation, _convolution, _dense, _net, _pooling
from cnnx.explain._steps import Explanation, Panel, Step, Sum, Term

__all__ = [
    "Explanation",
    "Panel",
    "Step",
    "Sum",
    "Term",
    "activation",
    "avg_pool2d",
    "conv2d",
    "dense",
    "layer",
    "linear",
    "max_pool2d",
    "model",
]


def max_pool2d(
    x: Any, pool_size: Any = 2, stride: Any = None, padding: Any = 0, grad_out: Any = None
) -> Explanation:
    """Explain max pooling: windows, maxima, masks, and where the gradients go.

    Parameters
    ----------
    x : array or nested lists, shape (H, W) or (N, C, H, W)
        The image, at most 144 numbers.
    pool_size, stride, padding
        As :func:`cnnx.max_pool2d` takes them.
    grad_out : array, optional
        ∂L/∂Z, in the shape of the output; by default 1, 2, 3, ...

    Returns
    -------
    Explanation
        Print it, ``show()`` it, or ``save()`` it.

    Raises
    ------
    ValueError
        If an argument does not fit, or is too large to look at.
    TypeError
        If an argument is of another kind.

    Examples
    --------
    >>> import cnnx
    >>> x = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]
    >>> e = cnnx.explain.max_pool2d(x, 2, grad_out=[[0.5, 1.2], [0.8, -0.3]])
    >>> e.forward
    array([[4., 5.],
           [3., 6.]])
    >>> e.backward["x"]
    array([[ 0. ,  0. ,  0. ,  0. ],
           [ 0.5,  0. ,  0. ,  1.2],
           [ 0.8,  0. ,  0. ,  0. ],
           [ 0. ,  0. ,  0. , -0.3]])
    >>> len(e), e.agrees
    (17, True)
    """
    return _pooling.explain("max", x, pool_size, stride, padding, grad_out)


def avg_pool2d(
    x: Any, pool_size: Any = 2, stride: Any = None, padding: Any = 0, grad_out: Any = None
) -> Explanation:
    """Explain average pooling: windows, the matrix 1/area, and how gradients are shared out.

    The arguments are those of :func:`max_pool2d`. The padding's zeros count as pixels.

    Examples
    --------
    >>> import cnnx
    >>> e = cnnx.explain.avg_pool2d([[1, 2, 3], [4, 5, 6]], 2, stride=1)
    >>> e.forward
    array([[3., 4.]])
    >>> e.backward["x"]  # 1/4 of 1 and of 2; the middle column lies in both windows
    array([[0.25, 0.75, 0.5 ],
           [0.25, 0.75, 0.5 ]])
    """
    return _pooling.explain("avg", x, pool_size, stride, padding, grad_out)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    activation: str | None = None,
    grad_out: Any = None,
) -> Explanation:
    """Explain a convolution: every term of Z, ∂L/∂W, ∂L/∂b and ∂L/∂Z^{l-1}.

    Parameters
    ----------
    x : array or nested lists, shape (H, W) or (N, C, H, W)
        The image, at most 144 numbers.
    weight : array or nested lists, shape (KH, KW) or (F, C, KH, KW)
        The filters.
    bias : array or number, optional
        One for each filter.
    stride, padding, dilation
        As :func:`cnnx.conv2d` takes them.
    activation : {None, "relu", "sigmoid", "tanh"}
        What follows.
    grad_out : array, optional
        The gradient of the loss by the output, in its shape; by default 1, 2, 3, ...

    Returns
    -------
    Explanation
        Its ``backward`` has "x", "weight" and, with a bias, "bias".

    Raises
    ------
    ValueError
        If an argument does not fit, or is too large to look at.
    TypeError
        If an argument is of another kind.

    Examples
    --------
    >>> import cnnx
    >>> e = cnnx.explain.conv2d([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 0], [0, -1]], bias=10)
    >>> e.forward
    array([[6., 6.],
           [6., 6.]])
    >>> e.backward["weight"]
    array([[37., 47.],
           [67., 77.]])
    """
    return _convolution.explain(x, weight, bias, stride, padding, dilation, activation, grad_out)


def linear(
    x: Any, weight: Any, bias: Any = None, activation: str | None = None, grad_out: Any = None
) -> Explanation:
    """Explain a Dense layer, Z = Z^{l-1} @ W + b, and its gradients.

    Parameters
    ----------
    x : array or nested lists, shape (features,) or (N, features)
        The inputs, at most 144 numbers.
    weight : array or nested lists, shape (in_features, out_features)
        The weights.
    bias : array or number, optional
        One for each output.
    activation : {None, "relu", "sigmoid", "tanh"}
        What follows.
    grad_out : array, optional
        The gradient of the loss by the output, (N, out_features); by default 1, 2, 3, ...

    Returns
    -------
    Explanation
        Its ``backward`` has "x", "weight" and, with a bias, "bias".

    Raises
    ------
    ValueError
        If an argument does not fit, or is too large to look at.
    TypeError
        If an argument is of another kind.

    Examples
    --------
    >>> import cnnx
    >>> e = cnnx.explain.linear([[10, 100]], [[2], [3]], grad_out=[[1]])
    >>> e.forward, e.backward["x"]
    (array([[320.]]), array([[2., 3.]]))
    """
    return _dense.explain(x, weight, bias, activation, grad_out)


dense = linear


def activation(name: str, x: Any, grad_out: Any = None) -> Explanation:
    """Explain an activation: each element, its slope, and the product with the gradient.

    Parameters
    ----------
    name : {"relu", "sigmoid", "tanh"}
        Which one.
    x : array or nested lists of one to four dimensions
        Z, the numbers before the activation, at most 144.
    grad_out : array, optional
        ∂L/∂A, in the shape of x; by default 1, 2, 3, ...

    Examples
    --------
    >>> import cnnx
    >>> cnnx.explain.activation("relu", [-1, 2], grad_out=[5, 7]).backward["x"]
    array([0., 7.])
    """
    return _activation.explain(name, x, grad_out)


def layer(layer: Any, x: Any, grad_out: Any = None) -> Explanation:
    """Explain one layer object with its own parameters.

    Parameters
    ----------
    layer : layer
        Conv2D, MaxPool2D, AvgPool2D, Dense, ReLU, Sigmoid and Tanh are told in full; any other
        object with forward and backward by its input, output and gradients.
    x : array or nested lists
        Its input.
    grad_out : array, optional
        The gradient of the loss by its output; by default 1, 2, 3, ...

    Examples
    --------
    >>> import cnnx
    >>> cnnx.explain.layer(cnnx.ReLU(), [[-1, 2]], [[5, 7]]).backward["x"]
    array([[0., 7.]])
    """
    return _net.explain_layer(layer, x, grad_out)


def model(model: Any, x: Any, y: Any = None, loss: Any = None) -> Explanation:
    """Explain a whole small net: each layer forward, the loss, then each layer backward.

    Parameters
    ----------
    model : Sequential
        The net; a layer inside is told as :func:`layer` tells it. It is copied, not changed.
    x : array or nested lists
        The input, a batch.
    y : array or list, optional
        The target. Without it the gradient of the output is 1, 2, 3, ...
    loss : loss, optional
        By default SoftmaxCrossEntropy for integer targets and MSELoss for others.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> net = cnnx.Sequential(cnnx.Dense(2, 3, activation="tanh", rng=0), cnnx.Dense(3, 2, rng=1))
    >>> e = cnnx.explain.model(net, [[1.0, -1.0]], [0])
    >>> sorted(e.backward)
    ['0.bias', '0.weight', '1.bias', '1.weight', 'x']
    """
    return _net.explain_model(model, x, y, loss)
