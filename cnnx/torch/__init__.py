"""The bridge to PyTorch: its layers on cnnx's kernels, and its checkpoints in cnnx's layers.

:func:`convert` gives the layers of an existing ``torch.nn.Module`` a forward and a backward on
cnnx's kernels, and :func:`revert` gives them back their own. :func:`load_state_dict` fills a cnnx
model from PyTorch's state. Importing this package does not import PyTorch; only the first two
functions need it.
"""

from __future__ import annotations

from typing import Any, TypeVar

from cnnx.torch._checkpoint import load_state_dict

__all__ = ["convert", "load_state_dict", "revert"]

M = TypeVar("M")


def convert(module: M) -> M:
    """Let the layers of a PyTorch module compute with cnnx's kernels, in place; return the module.

    Conv2d, ConvTranspose2d, Linear, MaxPool2d, AvgPool2d, AdaptiveMaxPool2d, AdaptiveAvgPool2d and
    BatchNorm2d, wherever they stand in the module, get another ``forward``. Each stays the object
    it was, with its class, parameters, buffers, hooks and names: optimizers, ``state_dict()`` and
    ``isinstance`` see no difference, and tensors are passed without a copy. Where a
    ``torch.nn.Sequential`` has a ReLU, Sigmoid or Tanh behind a Conv2d or a Linear, or a ReLU or
    ReLU6 behind a BatchNorm2d, both are one pass over the images.

    Parameters
    ----------
    module : torch.nn.Module
        Any module. It is changed; ``convert(copy.deepcopy(module))`` leaves the original alone.

    Returns
    -------
    torch.nn.Module
        `module`.

    Raises
    ------
    TypeError
        If `module` is no ``torch.nn.Module``.
    ImportError
        If PyTorch is not installed.

    Notes
    -----
    What cnnx has no kernel for goes to PyTorch's own forward, call by call: other dtypes than
    float32 and float64, other devices than the CPU, inputs of three dimensions, empty batches,
    options that cnnx does not know, and whatever runs under ``torch.autocast``, ``torch.compile``,
    ``torch.export``, ``torch.jit.trace``, the transforms of ``torch.func``, forward-mode
    differentiation or a mode that watches PyTorch's operations. Wrong arguments meet PyTorch's
    errors. A class that overrides ``forward`` is left alone.

    Gradients can be taken once: differentiating them again is a RuntimeError. :func:`revert` the
    module first for that, for many gradients in one go (``is_grads_batched``), for
    ``torch.jit.script``, and for the ``torch.export`` of PyTorch 2.4.

    Examples
    --------
    >>> import torch, cnnx.torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    >>> x = torch.ones(1, 1, 6, 6)
    >>> expected = net(x)
    >>> net = cnnx.torch.convert(net)
    >>> torch.allclose(net(x), expected, atol=1e-6)
    True
    """
    checked = _checked(module)
    from cnnx.torch import _layers

    _layers.convert(checked)
    return module


def revert(module: M) -> M:
    """Give the layers back PyTorch's own forward, in place; return the module.

    Parameters
    ----------
    module : torch.nn.Module
        What :func:`convert` was given, or any other module, which is left as it is.

    Returns
    -------
    torch.nn.Module
        `module`.

    Raises
    ------
    TypeError
        If `module` is no ``torch.nn.Module``.
    ImportError
        If PyTorch is not installed.

    Examples
    --------
    >>> import torch, cnnx.torch
    >>> net = cnnx.torch.revert(cnnx.torch.convert(torch.nn.Conv2d(1, 2, 3)))
    >>> "forward" in vars(net)
    False
    """
    checked = _checked(module)
    from cnnx.torch import _layers

    _layers.revert(checked)
    return module


def _checked(module: Any) -> Any:
    try:
        from torch.nn import Module
    except ImportError as error:
        raise ImportError(
            "cnnx.torch.convert needs PyTorch, which is not installed: pip install 'cnnx[torch]'"
        ) from error
    if not isinstance(module, Module):
        from cnnx.functional._arguments import described

        raise TypeError(f"module is {described(module)}, expected a torch.nn.Module")
    return module
