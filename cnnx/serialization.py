"""Models on disk: parameters and buffers by name, as safetensors or npz, never pickle.

A file is written under a temporary name and takes its own when it is complete, so an interrupted
save leaves the old file. A file is read whole and checked against the model before anything in the
model changes.
"""

from __future__ import annotations

import os
import zipfile
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnx._files import atomic_write
from cnnx._npz import read_npz, require_numbers
from cnnx.functional import _arguments as check
from cnnx.layers.base import load_state, state_of

__all__ = ["load", "save"]

M = TypeVar("M")
PathLike = str | os.PathLike[str]

_SAFETENSORS = ".safetensors"
_DTYPES = {"BOOL": "?", "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_DTYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


def save(model: Any, path: PathLike) -> None:
    """Write a model's parameters and buffers to a file.

    Parameters
    ----------
    model : layer
        Anything with `params`.
    path : path
        A name that ends in ``.safetensors`` is written in that format, which needs the package
        of that name; any other name as NumPy's npz.

    Raises
    ------
    TypeError
        If `model` is nothing that has parameters or has arrays of something else than numbers, or
        `path` is no name.
    ImportError
        If safetensors is wanted and not installed.
    OSError
        If the file cannot be written. A file that was there is as it was.

    Examples
    --------
    >>> import tempfile, numpy as np, cnnx
    >>> model = cnnx.Sequential(cnnx.Dense(4, 2, rng=0))
    >>> copy = cnnx.Sequential(cnnx.Dense(4, 2, rng=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cnnx.save(model, f"{folder}/model.npz")
    ...     copy = cnnx.load(f"{folder}/model.npz", copy)
    >>> bool(np.array_equal(copy.params["0.weight"], model.params["0.weight"]))
    True
    """
    check.path(path)
    _require_state(model, "state_dict")
    state = model.state_dict() if hasattr(model, "state_dict") else state_of(model)
    # Before the file is opened, so that a missing package leaves no trace.
    safetensors = _safetensors() if _is_safetensors(path) else None
    for name, array in state.items():
        require_numbers(name, array)
    with atomic_write(path) as file:
        if safetensors is not None:
            file.write(safetensors.save(state))
            return
        # np.savez takes the names as keywords, and "file" is one of its own.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in state.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def load(path: PathLike, model: M, strict: bool = True) -> M:
    """Fill a model from a file that :func:`save` wrote, and return it.

    Parameters
    ----------
    path : path
        The file; read as safetensors if its name ends so, and as npz otherwise.
    model : layer
        A model of the same architecture; its arrays keep their dtype and are filled in place.
    strict : bool
        False ignores names that are missing in the file or in the model.

    Returns
    -------
    layer
        `model`.

    Raises
    ------
    ValueError
        If the file is damaged or holds pickles, unpacks to more than a hundred times its size, or
        its names or shapes are not the model's. The model is as it was.
    TypeError
        If `model` or `path` is something else, or numbers are not of a kind that the model takes.
    ImportError
        If safetensors is wanted and not installed.
    OSError
        If the file cannot be read.

    Notes
    -----
    PyTorch's files are read by :func:`cnnx.torch.load_state_dict`.

    Examples
    --------
    >>> import tempfile, numpy as np, cnnx
    >>> trained, fresh = cnnx.Dense(4, 2, rng=0), cnnx.Dense(4, 2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cnnx.save(trained, f"{folder}/dense.npz")
    ...     fresh = cnnx.load(f"{folder}/dense.npz", fresh)
    >>> bool((fresh.params["weight"] == trained.params["weight"]).all())
    True
    """
    check.path(path)
    _require_state(model, "load_state_dict")
    check.flag(strict, "strict")
    state = read(path)
    try:
        if hasattr(model, "load_state_dict"):
            model.load_state_dict(state, strict)
        else:
            load_state(model, state, strict)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{os.fsdecode(path)}: {error}") from error
    return model


def read(path: PathLike) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name."""
    safetensors = _safetensors() if _is_safetensors(path) else None
    with open(path, "rb") as file:  # whole: what fails after this is the content's fault
        content = file.read()
    try:
        if safetensors is None:
            return read_npz(content)
        return _read_safetensors(content)
    except MemoryError:
        raise
    except KeyError as error:  # a dtype
        raise ValueError(
            f"{os.fsdecode(path)} has arrays of {error}, which NumPy has not; save them as float32"
        ) from error
    except Exception as error:  # a damaged or forged file can provoke nearly any
        kind = "an npz" if safetensors is None else "a safetensors"
        raise ValueError(f"{os.fsdecode(path)} is not {kind} file of arrays: {error}") from error


def _read_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file's content; KeyError with the name of a dtype that is not read."""
    import safetensors

    deserialize: Any = safetensors.deserialize
    state: dict[str, NDArray[Any]] = {}
    for name, tensor in deserialize(content):
        array = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
        if tensor["dtype"] == "BF16":  # the upper half of a float32, which it becomes
            array = (array.astype("<u4") << 16).view("<f4")
        state[name] = array.reshape(tensor["shape"])
    return state


def _require_state(model: Any, method: str) -> None:
    """Raise unless the model is an object with something to save or to fill."""
    if isinstance(model, type) or not any(hasattr(model, name) for name in (method, "params")):
        raise TypeError(
            f"model is {check.described(model)}, expected a layer: an object with {method} or "
            "params"
        )


def has_safetensors() -> bool:
    """Whether the package is there and works."""
    try:
        _safetensors()
    except Exception:  # what a broken installation raises is its own affair
        return False
    return True


def _is_safetensors(path: PathLike) -> bool:
    return os.fsdecode(path).endswith(_SAFETENSORS)


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "files in the safetensors format need a package that is not installed: "
            "pip install 'cnnx[demo]', or choose a name that ends in .npz"
        ) from error
    module: ModuleType = safetensors.numpy
    return module
