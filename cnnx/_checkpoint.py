"""A tree of dicts, lists, numbers and arrays in one npz file, without pickle.

The arrays are entries of the archive; the rest is JSON in one more entry, where each array's place
holds its name. Floats come back to the last bit, and the integers of a random generator's state may
be of any size.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx._files import atomic_write
from cnnx._npz import read_npz, require_numbers

_ARRAY = "array in this file"
_TREE = "tree.json"


def write_tree(path: str | os.PathLike[str], tree: dict[str, Any]) -> None:
    """Write `tree` to `path`, whole or not at all. Its dicts have strings as keys."""
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps(_without_arrays(tree, "", arrays))
    arrays[_TREE] = np.frombuffer(text.encode(), np.uint8)
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub confuses names with options


def read_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_tree` wrote; ValueError where the file is something else."""
    with open(path, "rb") as file:  # whole: what fails after this is the content's fault
        content = file.read()
    try:
        arrays = read_npz(content)
        tree = _with_arrays(json.loads(arrays[_TREE].tobytes()), arrays)
        if not isinstance(tree, dict):
            raise TypeError(f"{_TREE} holds a {type(tree).__name__}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{os.fsdecode(path)} is not a whole checkpoint: {error}") from error
    return tree


def _without_arrays(node: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(node, dict):
        return {key: _without_arrays(value, f"{name}{key}/", arrays) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_without_arrays(value, f"{name}{i}/", arrays) for i, value in enumerate(node)]
    if isinstance(node, np.ndarray):
        name = name.rstrip("/")
        while name in arrays:  # there may be a / in a key
            name += "'"
        require_numbers(name, node)
        arrays[name] = node
        return {_ARRAY: name}
    return node.item() if isinstance(node, np.generic) else node


def _with_arrays(node: Any, archive: dict[str, NDArray[Any]]) -> Any:
    if isinstance(node, dict):
        if _ARRAY in node:
            return archive[node[_ARRAY]]
        return {key: _with_arrays(value, archive) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_arrays(value, archive) for value in node]
    return node
