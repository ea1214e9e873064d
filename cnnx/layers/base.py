"""What every layer shares: arrays by name, modes, what backward needs, and the state as a dict.

:class:`Layer` is a convenience, not a requirement: wherever the library takes a layer it takes any
object with ``forward`` and ``backward`` (:class:`LayerLike`). Where such an object has ``params``,
``grads`` or ``buffers``, dicts of arrays, they are trained and saved like those of any layer; the
functions of this file that take a layer therefore never assume more than that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from inspect import signature
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnx._notebook import layer_table
from cnnx.functional._arguments import described, flag, unmasked

Array = NDArray[Any]
L = TypeVar("L", bound="Layer")

_DTYPES = (np.dtype("float32"), np.dtype("float64"))
_change = object()


class LayerLike(Protocol):
    """The least that counts as a layer."""

    def forward(self, x: Any, /) -> Any:
        """Return the output for an input."""

    def backward(self, grad_out: Any, /) -> Any:
        """Return the gradient of the last forward's input."""


def latest_change() -> object:
    """Return what is another object after each freeze and unfreeze of any layer.

    Who derives something from several layers, some of them perhaps frozen anew alone or by another
    thread, keeps it with the object from before it looked at them.
    """
    return _change


def _no_arrays(layer: Any) -> dict[str, Array]:
    return {}


class Layer(ABC):
    """Base class of the layers, and of your own: five lines make one.

    ::

        class Square(cnnx.Layer):
            def forward(self, x):
                self.x = x
                return x * x
            def backward(self, grad_out):
                return 2 * self.x * grad_out

    That is all that `Sequential`, `gradcheck`, `fit`, `save`, `load` and `explain` need:

    - ``forward(x)`` returns the output, in the dtype of x, and keeps on the layer what backward
      will need of this call.
    - ``backward(grad_out)`` gets the gradient of the loss by that output, in its shape, and returns
      the gradient by x, in x's shape: grad_out times the derivative (the chain rule).
    - A parameter is one line in ``__init__``: ``self.params["name"] = array``. Then backward also
      puts its gradient, in the same shape, into ``self.grads["name"]``; it assigns, and does not
      add to the gradient of the step before.

    Do not write into x, grad_out or anything kept. They are not copied: what is changed in place
    between forward and backward, by this layer or by a neighbour that kept the same array, gives
    wrong gradients without an error. ``cnnx.gradcheck(layer, x)`` shows it.

    Attributes
    ----------
    params : dict of str to ndarray
        What is trained. Change the arrays in place, or replace them; the next call honours it.
    grads : dict of str to ndarray
        The gradients of the last backward, under the names of `params`; zeros before the first.
    buffers : dict of str to ndarray
        State that is saved and not trained, such as BatchNorm2D's running statistics.
    training : bool
        Set by :meth:`train` and :meth:`eval`; only BatchNorm2D and Dropout behave differently.
    frozen : bool
        Set by :meth:`freeze`: the parameters are promised not to change.
    needs_input_grad : bool
        Set it to False on a net whose images need no gradient: then a first layer with weights
        returns None from backward and saves the work. :func:`cnnx.fit` does so while it trains.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> class Scale(cnnx.Layer):
    ...     def __init__(self):
    ...         self.params["factor"] = np.ones(1, np.float32)
    ...
    ...     def forward(self, x):
    ...         self.x = x
    ...         return self.params["factor"] * x
    ...
    ...     def backward(self, grad_out):
    ...         self.grads["factor"] = np.array([(grad_out * self.x).sum()])
    ...         return self.params["factor"] * grad_out
    >>> layer = Scale()
    >>> layer.params["factor"] *= 3
    >>> layer(np.array([1.0, 2.0]))
    array([3., 6.])
    >>> layer.state_dict()
    {'factor': array([3.], dtype=float32)}
    >>> bool(cnnx.gradcheck(layer, np.array([1.0, 2.0])))
    True
    """

    training = True
    frozen = False
    needs_input_grad = True
    _saved: tuple[Any, ...] | None = None
    _kept: Any = None  # what a frozen layer has derived from its parameters
    _since: object = None  # another one after each freeze and unfreeze

    # Made when they are first asked for, so that a layer of one's own needs no super().__init__().
    params = cached_property(_no_arrays)
    grads = cached_property(_no_arrays)
    buffers = cached_property(_no_arrays)

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Return the layer's output for `x`."""

    @abstractmethod
    def backward(self, grad_out: Array) -> Array:
        """Return the gradient of the last forward's input, and fill `grads`.

        Parameters
        ----------
        grad_out : ndarray
            The gradient of the loss by the output of the last :meth:`forward`, in its shape.

        Raises
        ------
        RuntimeError
            If there was no forward.
        """

    def __call__(self, x: Array) -> Array:
        """Return the layer's output for `x`: the same as :meth:`forward`."""
        return self.forward(x)

    def children(self) -> dict[str, Any]:
        """Return the layers inside this one by name; a plain layer has none."""
        return {}

    def train(self: L) -> L:
        """Switch to training behaviour, and unfreeze; return the layer."""
        self.training = True
        self._promise(False)
        return self._tell_children("train")

    def eval(self: L) -> L:
        """Switch to the behaviour of use after training; return the layer."""
        self.training = False
        return self._tell_children("eval")

    def freeze(self: L) -> L:
        """Switch to :meth:`eval`, and promise that the parameters will not change.

        A frozen layer keeps what it derives from its weights from one call to the next, and a
        frozen :class:`Sequential` makes one layer of a convolution, a normalisation and an
        activation. So changes in place need not show until :meth:`unfreeze`, :meth:`train` or
        another freeze, and there is no backward.
        """
        self.training = False
        self._saved = None
        self._promise(True)
        return self._tell_children("freeze")

    def unfreeze(self: L) -> L:
        """Take the promise of :meth:`freeze` back, and stay in the present mode."""
        self._promise(False)
        return self._tell_children("unfreeze")

    def _promise(self, frozen: bool) -> None:
        """Be frozen or not, and let nothing derived from the parameters outlive a change."""
        global _change
        changed = frozen or self.frozen
        self.frozen, self._kept = frozen, None
        if changed:
            self._since = _change = object()  # last: who has seen it sees the rest

    def astype(self: L, dtype: str | np.dtype[Any] | type[np.floating[Any]]) -> L:
        """Convert the parameters, gradients and buffers to a dtype; return the layer.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            Where it changes something, the arrays are new ones.
        """
        convert(self, checked_dtype(dtype))
        return self.freeze() if self.frozen else self

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters and buffers by name, such as ``"0.weight"``."""
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays by name into the parameters and buffers, or change nothing.

        Parameters
        ----------
        state : mapping of str to array
            As :meth:`state_dict` returns it; values are cast to the layer's dtypes.
        strict : bool
            False ignores names that are missing here or there. Shapes must agree all the same.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or shapes differ. All of them are listed, and the
            layer is as it was.
        TypeError
            If an array's dtype cannot become the layer's, complex numbers for example, or `state`
            is no mapping.
        """
        load_state(self, state, strict)
        if self.frozen:
            self.freeze()

    def _tell_children(self: L, method: str) -> L:
        for child in self.children().values():
            if hasattr(child, method):
                getattr(child, method)()
        return self

    def _recall(self) -> tuple[Any, ...]:
        """What forward left for backward in `_saved`."""
        if self.frozen:
            raise RuntimeError(
                f"{type(self).__name__} is frozen and keeps nothing for backward; unfreeze() the "
                "net, and run forward again"
            )
        if self._saved is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward came before forward: there is no input yet "
                "whose gradient it could compute"
            )
        return self._saved

    def _repr_html_(self) -> str:
        """The layers, their sizes and their parameters as a table, for notebooks."""
        return layer_table(self)

    def __repr__(self) -> str:
        """The constructor's arguments, those that differ from their defaults."""
        values = {**vars(self), "bias": "bias" in self.params}
        shown = []
        for name, parameter in signature(type(self)).parameters.items():
            value = values.get(name, parameter.default)
            if name != "rng" and np.any(value != parameter.default):  # an array has many answers
                text = value.name if isinstance(value, np.dtype) else value
                shown.append(f"{name}={text!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def checked_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of a layer's arrays, or say which there are."""
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if result not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'float64'")
    return result


def arrays_of(layer: Any, kind: str) -> dict[str, Array]:
    """Return a layer's `params`, `grads` or `buffers`; empty where it has no such dict."""
    return getattr(layer, kind, {})


def state_of(layer: Any) -> dict[str, Array]:
    """Return copies of the parameters and buffers of anything that counts as a layer."""
    own = {**arrays_of(layer, "params"), **arrays_of(layer, "buffers")}
    return {name: np.array(array, order="C") for name, array in own.items()}


def load_state(layer: Any, state: Mapping[str, Any], strict: bool = True) -> None:
    """Do what :meth:`Layer.load_state_dict` says, for anything that counts as a layer."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state is {described(state)}, expected a mapping of names to arrays")
    flag(strict, "strict")
    own = {**arrays_of(layer, "params"), **arrays_of(layer, "buffers")}
    arrays = {name: unmasked(f"state[{name!r}]", state[name]) for name in own if name in state}
    faults = [
        f"{name!r} has shape {array.shape}, expected {own[name].shape}"
        for name, array in arrays.items()
        if array.shape != own[name].shape
    ]
    faults += [
        f"{name!r} cannot be filled: the layer's own array is read-only"
        for name in arrays
        if not own[name].flags.writeable
    ]
    if strict:
        faults += [f"{name!r} is missing" for name in own if name not in state]
        faults += [f"{name!r} is unexpected" for name in state if name not in own]
    if faults:
        raise ValueError("state does not fit the layer: " + "; ".join(faults))
    for name, array in arrays.items():
        if not np.can_cast(array.dtype, own[name].dtype, "same_kind"):
            raise TypeError(
                f"state[{name!r}] has dtype {array.dtype}, which cannot become {own[name].dtype}"
            )
    for name, array in arrays.items():
        own[name][...] = array


def convert(layer: Any, dtype: np.dtype[Any]) -> None:
    """Do what :meth:`Layer.astype` says, for anything that counts as a layer."""
    children = layer.children() if hasattr(layer, "children") else {}
    for child in children.values():
        convert(child, dtype)
    if not children:
        for kind in ("params", "grads", "buffers"):
            arrays = arrays_of(layer, kind)
            arrays.update({name: array.astype(dtype) for name, array in arrays.items()})
    if hasattr(layer, "dtype"):
        layer.dtype = dtype
