"""PyTorch's checkpoints in cnnx's layers: the names, and the one layout that differs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx import serialization
from cnnx.functional import _arguments as check
from cnnx.layers import Dense
from cnnx.layers.base import arrays_of, load_state


def load_state_dict(
    model: Any,
    state: Mapping[str, Any] | str | os.PathLike[str],
    strict: bool = True,
    *,
    names: Mapping[str, str] | None = None,
) -> None:
    """Fill a model from a PyTorch checkpoint, or change nothing; PyTorch itself is not needed.

    The weight of a :class:`~cnnx.Dense` is the transpose of a ``torch.nn.Linear``'s; all other
    arrays fit as they are. ``num_batches_tracked`` has no counterpart and is passed over.

    Parameters
    ----------
    model : layer
        A model of the same architecture; its arrays keep their dtype and are filled in place.
    state : path or mapping of str to tensor or array
        A file in the safetensors format, where bfloat16 is taken as float32, or what PyTorch's
        ``state_dict()`` returns.
    strict : bool
        False ignores names that are missing here or there. Shapes must agree all the same.
    names : mapping of str to str, optional
        What PyTorch calls a layer, or a layer of layers, where the names differ:
        ``{"0": "conv1", "5.body": "layer1.0"}``. The model itself is ``""``.

    Raises
    ------
    ValueError
        If names are missing or unexpected or shapes differ (all of them are listed), or the file is
        none of safetensors. The model is as it was.
    TypeError
        If an argument is of another kind, or an array's numbers cannot become the model's.
    ImportError
        If a file is given and the package safetensors is not installed.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import numpy as np, cnnx.torch
    >>> model = cnnx.Sequential(cnnx.Flatten(), cnnx.Dense(3, 2))
    >>> state = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}  # as torch.nn.Linear has it
    >>> cnnx.torch.load_state_dict(model, state, names={"1": "fc"})
    >>> model(np.ones((1, 3)))
    array([[3., 3.]])
    """
    layers = dict(_layers(model))
    check.flag(strict, "strict")
    prefixes = _checked_names(names, layers)
    source = "state"
    if not isinstance(state, Mapping):
        source = check.path(state, "state")
        state = _read(source)
    own, faults, taken = {}, [], set()
    for name, array in {**arrays_of(model, "params"), **arrays_of(model, "buffers")}.items():
        prefix, _, last = name.rpartition(".")
        theirs = _joined(_renamed(prefix, prefixes), last)
        taken.add(theirs)
        if theirs in state:
            own[name] = _in_our_layout(_array(theirs, state[theirs]), layers.get(prefix), last)
            if own[name].shape != array.shape:
                came = np.shape(state[theirs])
                shape = _in_our_layout(array, layers.get(prefix), last).shape  # and back
                faults.append(f"{theirs!r} has shape {came}, expected {shape}, for {name!r}")
        elif strict:
            faults.append(f"{theirs!r} is missing, for {name!r}")
    if strict:
        faults += [
            f"{name!r} is unexpected" for name in state if name not in taken | _passed(state)
        ]
    if faults:
        raise ValueError(f"{source} does not fit the model: " + "; ".join(faults))
    if hasattr(model, "load_state_dict"):
        model.load_state_dict(own, strict=False)
    else:
        load_state(model, own, strict=False)


def _layers(model: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The model and all layers inside, by name."""
    if isinstance(model, type) or not (hasattr(model, "params") or hasattr(model, "children")):
        raise TypeError(f"model is {check.described(model)}, expected a layer")
    yield name, model
    for child_name, child in (model.children() if hasattr(model, "children") else {}).items():
        if hasattr(child, "params") or hasattr(child, "children"):
            yield from _layers(child, _joined(name, child_name))


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _checked_names(names: Any, layers: Mapping[str, Any]) -> Mapping[str, str]:
    if names is None:
        return {}
    if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
        raise TypeError(f"names is {check.described(names)}, expected a mapping of str to str")
    for name in names:
        if name not in layers:
            raise ValueError(f"names has {name!r}, expected the name of a layer of the model")
    return names


def _renamed(layer: str, prefixes: Mapping[str, str]) -> str:
    """What PyTorch calls a layer: the longest part of its name that was given counts."""
    head = layer
    while head not in prefixes:
        if not head:
            return layer
        head = head.rpartition(".")[0]
    return _joined(prefixes[head], layer[len(head) :].lstrip("."))


def _read(path: str) -> Mapping[str, NDArray[Any]]:
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"state is {path!r}, expected a file whose name ends in .safetensors (pickles are not "
            "read, for they can run any program): "
            "safetensors.torch.save_file(net.state_dict(), 'net.safetensors') writes one"
        )
    return serialization.read(path)


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except Exception as error:  # such as a tensor's on another device
        raise TypeError(f"state[{name!r}] cannot become an array: {error}") from error
    return array


def _in_our_layout(array: NDArray[Any], layer: Any, name: str) -> NDArray[Any]:
    return array.T if isinstance(layer, Dense) and name == "weight" else array


def _passed(state: Mapping[str, Any]) -> set[str]:
    """What a normalisation of PyTorch's keeps and ours does not need."""
    return {name for name in state if name.rpartition(".")[2] == "num_batches_tracked"}
