"""Layers made of layers: one after the other, and around a shortcut.

Parameters, gradients and buffers of a container are those of its children, under names that say
where they are: ``"0.weight"``, ``"body.1.running_mean"``. They are the very same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from cnnx.functional._activation import activation_backward_from_output, add
from cnnx.functional._arguments import choice, described
from cnnx.layers.base import Array, Layer, LayerLike, arrays_of, latest_change
from cnnx.layers.fusion import fused, relu_of_maxima
from cnnx.layers.pool import MaxPool2D


class Container(Layer):
    """Base class of layers that consist of others: define children, forward and backward.

    Call ``super().__init__()`` once the children are there.

    Raises
    ------
    TypeError
        If a child has no forward and backward.
    ValueError
        If one layer is used in two places.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> class Sum(cnnx.Container):
    ...     def __init__(self, first, second):
    ...         self.first, self.second = first, second
    ...         super().__init__()
    ...
    ...     def children(self):
    ...         return {"first": self.first, "second": self.second}
    ...
    ...     def forward(self, x):
    ...         return self.first(x) + self.second(x)
    ...
    ...     def backward(self, grad_out):
    ...         return self.first.backward(grad_out) + self.second.backward(grad_out)
    >>> layer = Sum(cnnx.ReLU(), cnnx.Dense(2, 2, rng=0))
    >>> list(layer.params)
    ['second.weight', 'second.bias']
    >>> bool(cnnx.gradcheck(layer, np.array([[1.0, -2.0]])))
    True
    """

    def __init__(self) -> None:
        # Without Layer's: the dicts are put together from the children's on each access.
        seen: dict[int, str] = {}
        for name, layer in named_layers(self):
            if id(layer) in seen:
                raise ValueError(
                    f"{type(self).__name__}: layer {name} is layer {seen[id(layer)]} again; make "
                    "two, for a layer keeps what its backward needs of one forward only"
                )
            seen[id(layer)] = name

    @property
    def params(self) -> dict[str, Array]:  # type: ignore[override]
        """The parameters of all children; assigning to a name writes into the child's array."""
        return self._gather("params")

    @property
    def grads(self) -> dict[str, Array]:  # type: ignore[override]
        """The gradients of all children."""
        return self._gather("grads")

    @property
    def buffers(self) -> dict[str, Array]:  # type: ignore[override]
        """The buffers of all children."""
        return self._gather("buffers")

    def _gather(self, kind: str) -> dict[str, Array]:
        return _Gathered(
            (f"{prefix}.{name}", array)
            for prefix, child in self.children().items()
            for name, array in arrays_of(child, kind).items()
        )

    def __repr__(self) -> str:
        """One child a line."""
        lines = [f"{name}: {child!r}" for name, child in self.children().items()]
        body = "".join(f"\n{line}" for line in lines).replace("\n", "\n  ")
        return f"{type(self).__name__}({body}\n)" if lines else f"{type(self).__name__}()"


class Sequential(Container):
    """Layers one after the other: the output of each is the input of the next.

    Parameters
    ----------
    *layers : layers
        Anything with forward and backward. Children are named "0", "1", ...

    Attributes
    ----------
    layers : list
        The layers in their order; ``model[0]``, ``len(model)`` and loops work too.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> model = cnnx.Sequential(
    ...     cnnx.Conv2D(1, 4, 3, activation="relu"),
    ...     cnnx.MaxPool2D(2),
    ...     cnnx.Flatten(),
    ...     cnnx.Dense(36, 10),
    ... )
    >>> out = model(np.zeros((5, 1, 8, 8), np.float32))
    >>> out.shape
    (5, 10)
    >>> model.backward(np.ones_like(out)).shape
    (5, 1, 8, 8)
    >>> list(model.grads)
    ['0.weight', '0.bias', '3.weight', '3.bias']
    """

    _finished: Callable[[Any], None] | None = None  # hears of each layer that backward is done with

    def __init__(self, *layers: LayerLike) -> None:
        self.layers = list(layers)
        super().__init__()

    @property
    def needs_input_grad(self) -> bool:
        """Whether backward must return a gradient: the first layer's affair."""
        return getattr(self.layers[0], "needs_input_grad", True) if self.layers else True

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        if self.layers and isinstance(self.layers[0], Layer):
            self.layers[0].needs_input_grad = value

    def children(self) -> dict[str, Any]:
        """Return the layers by number."""
        return {str(number): layer for number, layer in enumerate(self.layers)}

    def forward(self, x: Array) -> Array:
        """Return the last layer's output."""
        if self.frozen:
            return self._infer(x)
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def _infer(self, x: Array) -> Array:
        """The frozen net's forward, by layers made for it, which keep nothing for backward."""
        change, kept = latest_change(), self._kept
        if kept is None or kept[0] is not change:
            layers = [(layer, isinstance(layer, Layer)) for layer in fused(self.layers)]
            self._kept = kept = change, layers
        for layer, ours in kept[1]:
            x = layer.forward(x)
            if ours:
                layer._saved = None  # its memory serves the next but one layer's result
        return x

    def backward(self, grad_out: Array) -> Array:
        """Return the gradient of the first layer's input; every layer fills its grads."""
        layers: list[Any] = self.layers
        done: Any = None  # the layer whose ReLU the gradient has been through
        for number in range(len(layers) - 1, -1, -1):
            layer = layers[number]
            if type(layer) is MaxPool2D and relu_of_maxima(layers, number):
                grad_out, done = layer._after_relu(grad_out), layers[number - 1]
            elif layer is done:
                grad_out = done._before_activation(grad_out)
            else:
                grad_out = layer.backward(grad_out)
            if self._finished is not None:
                self._finished(layer)
        return grad_out

    def __getitem__(self, number: int) -> Any:
        """Return a layer by its number."""
        return self.layers[number]

    def __len__(self) -> int:
        """Return how many layers there are."""
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        """Go through the layers in their order."""
        return iter(self.layers)


class Residual(Container):
    """A body with a way around it: out = activation(body(x) + shortcut(x)).

    Parameters
    ----------
    body : layer
        Anything with forward and backward.
    shortcut : layer or None
        Brings x to the shape of the body's output, where they differ; None adds x as it is.
    activation : {None, "relu"}
        Applied as the sum is stored, without a second pass over it. Backward reads the output that
        forward returned: do not change it.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> block = cnnx.Residual(cnnx.ReLU())
    >>> block(np.array([-1.0, 2.0]))
    array([-1.,  4.])
    >>> block.backward(np.array([1.0, 1.0]))
    array([1., 2.])
    """

    def __init__(
        self,
        body: LayerLike,
        shortcut: LayerLike | None = None,
        activation: Literal["relu"] | None = None,
    ) -> None:
        self.body = body
        self.shortcut = shortcut
        self.activation = choice(activation, "activation", (None, "relu"))
        super().__init__()

    def children(self) -> dict[str, Any]:
        """Return body and, where there is one, shortcut."""
        both = {"body": self.body, "shortcut": self.shortcut}
        return {name: layer for name, layer in both.items() if layer is not None}

    def forward(self, x: Array) -> Array:
        """Return activation(body(x) + shortcut(x)); the shapes of both must agree."""
        main: Array = self.body.forward(x)
        way: Array = x if self.shortcut is None else self.shortcut.forward(x)
        source = "x" if self.shortcut is None else "shortcut(x)"
        out = add(main, way, self.activation, names=("body(x)", source))
        self._saved = (out,) if self.activation and not self.frozen else None
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return the sum of the gradients of both ways."""
        if self.activation is not None:
            (out,) = self._recall()
            grad_out = activation_backward_from_output(grad_out, out, self.activation)
        main: Array = self.body.backward(grad_out)
        way: Array = grad_out if self.shortcut is None else self.shortcut.backward(grad_out)
        source = "grad_out" if self.shortcut is None else "shortcut.backward(grad_out)"
        return add(main, way, names=("body.backward(grad_out)", source))


class _Gathered(dict[str, Array]):
    """The children's arrays under their full names.

    Assigning writes into the child's array, so that ``params[name] = params[name] - step`` does
    what it does on a plain layer. Copies are plain dicts.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        self[name][...] = value

    def update(self, other: Mapping[str, Any]) -> None:  # type: ignore[override]
        for name, value in other.items():
            self[name] = value

    def __reduce__(self) -> tuple[type, tuple[dict[str, Array]]]:
        return dict, (dict(self),)


def named_layers(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All layers inside a layer with their names, checked to be layers."""
    children = layer.children() if hasattr(layer, "children") else {}
    for name, child in children.items():
        if isinstance(child, type):
            raise TypeError(
                f"layer {prefix}{name} is the class {child.__name__}, expected an object of it"
            )
        for method in ("forward", "backward"):
            if not callable(getattr(child, method, None)):
                raise TypeError(
                    f"layer {prefix}{name} is {described(child)}, without {method}(), "
                    "expected an object with forward and backward"
                )
        yield prefix + name, child
        yield from named_layers(child, f"{prefix}{name}.")
