"""A frozen program's shorter form: several nodes become one wherever one kernel can do their work.

What a number goes through is the same, up to rounding: a scale and a shift of each channel go into
the weights of the convolution before them, gates such as ``x * sigmoid(x)`` become one function,
and an activation is applied as the operation before it stores. Every rule looks for a node whose
only taker is the next one, so that nobody misses what is no longer computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cnnx.functional._conv import prepared
from cnnx.onnx._program import Array, Node, Program, needed

# What each operator can apply to its result as it stores it, by the names of `functional`.
_STORED = {
    "Conv": ("relu", "relu6", "sigmoid", "tanh", "silu", "hard_swish"),
    "Gemm": ("relu", "sigmoid", "tanh"),
    "MatMul": ("relu", "sigmoid", "tanh"),
    "BatchNormalization": ("relu", "relu6"),
    "Add": ("relu",),
    "Sum": ("relu",),
}
_ACTIVATIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "SiLU": "silu",
    "HardSwish": "hard_swish",
}


def fuse(program: Program) -> Program:
    """Return a program that computes the same in fewer steps, for constants that do not change."""
    draft = _Draft(program)
    for rule in (_forget, _mean, _gate, _scale, _absorb, _bias, _pad, _cut, _activate, _lay_out):
        draft.apply(rule)
    return draft.program()


class _Draft:
    """A program that is being changed: who gives each name, and who takes it."""

    def __init__(self, program: Program) -> None:
        self.source, self.constants = program, dict(program.constants)
        self.nodes = [
            replace(
                node,
                inputs=list(node.inputs),
                outputs=list(node.outputs),
                attributes=dict(node.attributes),
            )
            for node in program.nodes
        ]
        self.outputs = list(program.outputs)
        self._look()

    def _look(self) -> None:
        self.givers = {name: node for node in self.nodes for name in node.outputs if name}
        self.takers: dict[str, list[Node]] = {name: [] for name in self.givers}
        for node in self.nodes:
            for name in node.inputs:
                self.takers.setdefault(name, []).append(node)

    def apply(self, rule: Callable[[_Draft, Node], bool]) -> None:
        """Offer each node to a rule, in their order, until it changes nothing more.

        A rule that has taken over what other nodes did leaves those without a taker; they go.
        """
        for node in list(self.nodes):
            while rule(self, node):
                self.nodes = needed(self.nodes, self.outputs)
                self._look()

    def program(self) -> Program:
        """Return the program as it is now."""
        wanted = {*self.outputs, *(name for node in self.nodes for name in node.inputs)}
        constants = {name: array for name, array in self.constants.items() if name in wanted}
        return Program(self.source.inputs, self.outputs, constants, self.nodes)

    def alive(self, node: Node) -> bool:
        """Whether the node is still there."""
        return self.givers.get(node.outputs[0]) is node

    def only_taker(self, node: Node) -> Node | None:
        """Return the node that alone takes what a node gives."""
        takers = self.takers[node.outputs[0]]
        return takers[0] if len(takers) == 1 and self.gives_one(node) else None

    def gives_one(self, node: Node) -> bool:
        """Whether nobody takes more than the first output, and that only inside."""
        first, *others = node.outputs
        used = (name in self.outputs or self.takers.get(name) for name in others if name)
        return first not in self.outputs and not any(used)

    def give(self, node: Node, later: Node) -> None:
        """Let a node give what a later one gave, which it has taken over."""
        later_name, own = later.outputs[0], node.outputs[0]
        later.outputs[0] = ""
        node.outputs = [later_name]
        for taker in self.takers.get(own, ()):
            taker.inputs = [later_name if name == own else name for name in taker.inputs]
        self.nodes = [other for other in self.nodes if other is not later]

    def number(self, name: str) -> float | None:
        """Return a constant that is one number."""
        array = self.constants.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def add(self, name: str, array: Array) -> str:
        """Keep a new constant under a name that is free."""
        while name in self.constants or name in self.givers:
            name += "'"
        self.constants[name] = np.ascontiguousarray(array)
        return name


def _split_binary(draft: _Draft, node: Node, name: str) -> str | None:
    """Of a node of two inputs, of which one is `name`, return the other."""
    if len(node.inputs) != 2 or node.inputs.count(name) != 1:
        return None
    return node.inputs[1 - node.inputs.index(name)]


# ---------------------------------------------------------------- nodes that do nothing


def _forget(draft: _Draft, node: Node) -> bool:
    """Take out what only passes its input on."""
    if node.op not in ("Identity", "Dropout") or len(node.inputs) > 2:
        return False
    if not draft.alive(node) or not draft.gives_one(node):
        return False
    name = node.outputs[0]
    for taker in draft.takers[name]:
        taker.inputs = [node.inputs[0] if other == name else other for other in taker.inputs]
    return True


def _mean(draft: _Draft, node: Node) -> bool:
    """The mean of whole images, kept as images of one pixel, has a kernel."""
    if node.op != "ReduceMean":
        return False
    axes = node.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in draft.constants:
        axes = draft.constants[node.inputs[1]].tolist()
    if not node.get("keepdims", 1) or axes not in ([2, 3], [-2, -1]):
        return False
    if not _images(draft, node.inputs[0]):
        return False
    node.op, node.inputs, node.attributes = "GlobalAveragePool", node.inputs[:1], {}
    return True


def _images(draft: _Draft, name: str) -> bool:
    """Whether an array is known to be one of images (N, C, H, W): through what keeps dimensions."""
    for _ in range(len(draft.nodes)):
        giver = draft.givers.get(name)
        if giver is None:
            shapes = {value.name: value.shape for value in draft.source.inputs}
            return len(shapes.get(name) or ()) == 4
        if giver.op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"):
            return True
        if giver.op not in (
            "Relu",
            "HardSwish",
            "SiLU",
            "Sigmoid",
            "Clip",
            "Concat",
            "Split",
            "BatchNormalization",
        ):
            return False
        name = giver.inputs[0]
    return False


# ---------------------------------------------------------------- gates


def _gate(draft: _Draft, node: Node) -> bool:
    """x * sigmoid(x), and x * min(max(x + 3, 0), 6) / 6 in the ways that files have it."""
    if not draft.alive(node):
        return False
    if node.op in ("Sigmoid", "HardSigmoid"):
        last = draft.only_taker(node)
        if last is None or last.op != "Mul":
            return False
        x = _split_binary(draft, last, node.outputs[0])
        if x != node.inputs[0]:
            return False
        if node.op == "HardSigmoid":
            alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
            if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
                return False
        last.op = "SiLU" if node.op == "Sigmoid" else "HardSwish"
        last.inputs, last.attributes = [x], {}
        return True
    if node.op != "Add":
        return False
    x, shift = node.inputs[0], draft.number(node.inputs[1])
    clip = draft.only_taker(node)
    if shift != 3 or clip is None or _limits(draft, clip) != (0, 6):
        return False
    first = draft.only_taker(clip)
    last = None if first is None else draft.only_taker(first)
    if first is None or last is None:
        return False
    if first.op == "Mul" and _split_binary(draft, first, clip.outputs[0]) == x:
        gone = _factor(draft, last, first.outputs[0])
    elif last.op == "Mul" and _split_binary(draft, last, first.outputs[0]) == x:
        gone = _factor(draft, first, clip.outputs[0])
    else:
        return False
    if gone is None or abs(gone - 1 / 6) > 1e-7:
        return False
    last.op, last.inputs, last.attributes = "HardSwish", [x], {}
    return True


def _factor(draft: _Draft, node: Node, name: str) -> float | None:
    """Return the number that a node multiplies a name with."""
    if node.op == "Div" and node.inputs[0] == name:
        number = draft.number(node.inputs[1])
        return 1 / number if number else None
    other = _split_binary(draft, node, name) if node.op == "Mul" else None
    return None if other is None else draft.number(other)


def _limits(draft: _Draft, node: Node) -> tuple[float | None, float | None] | None:
    """Return a clip's limits; None where it is no clip or they are not known."""
    if node.op != "Clip":
        return None
    found: list[float | None] = []
    for place, name in enumerate(("min", "max"), 1):
        given = node.inputs[place] if place < len(node.inputs) else ""
        if given and draft.number(given) is None:
            return None
        found.append(draft.number(given) if given else node.get(name))
    return found[0], found[1]


# ---------------------------------------------------------------- scales and shifts


def _scale_of(draft: _Draft, node: Node, name: str) -> tuple[Array, Array] | None:
    """Return scale and shift, one number each or one a channel, of a node that takes `name`.

    In float64; None where the node does something else, or not by constants.
    """
    if node.op == "BatchNormalization" and node.inputs[0] == name:
        arrays = [draft.constants.get(other) for other in node.inputs[1:]]
        if any(a is None or a.ndim != 1 for a in arrays) or node.get("training_mode", 0):
            return None
        if node.get("activation"):
            return None
        weight, bias, mean, var = (np.asarray(a, np.float64) for a in arrays)
        scale = weight / np.sqrt(var + node.get("epsilon", 1e-5))
        return scale, bias - mean * scale
    if node.op not in ("Mul", "Add", "Sub", "Div"):
        return None
    other = _split_binary(draft, node, name)
    if other is None or other not in draft.constants:
        return None
    if node.op in ("Sub", "Div") and node.inputs[0] != name:
        return None
    array = draft.constants[other]
    channel = array.ndim in (3, 4) and array.shape[-2:] == (1, 1) and array.shape[:-3] in ((), (1,))
    if array.dtype.kind != "f" or array.ndim > 4 or not (array.size == 1 or channel):
        return None
    numbers = np.asarray(array, np.float64).reshape(-1)
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    if node.op in ("Mul", "Div"):
        return (numbers if node.op == "Mul" else 1 / numbers), zero
    return one, (numbers if node.op == "Add" else -numbers)


def _scale(draft: _Draft, node: Node) -> bool:
    """Put the scale and shift after a convolution, or another scale and shift, into it."""
    if not draft.alive(node) or node.get("activation"):
        return False
    own = _affine(draft, node)
    taker = draft.only_taker(node)
    if own is None or taker is None:
        return False
    after = _scale_of(draft, taker, node.outputs[0])
    weight, bias, channels = own
    if after is None or after[0].size not in (1, channels):
        return False
    scale, shift = after
    axis = (-1,) + (1,) * (weight.ndim - 1)
    kind = next(draft.constants[key].dtype for key in node.inputs if key in draft.constants)
    new_bias = np.broadcast_to(bias * scale + shift, (channels,))
    if node.op == "Conv":
        _convolve(draft, node, weight * scale.reshape(axis), new_bias, kind)
    else:
        _normalise(draft, node, weight * scale, new_bias, kind)
    draft.give(node, taker)
    return True


def _absorb(draft: _Draft, node: Node) -> bool:
    """Put the scale and shift of what a convolution without padding takes into it."""
    giver = draft.givers.get(node.inputs[0]) if node.op == "Conv" else None
    if giver is None or giver.get("activation") or draft.only_taker(giver) is not node:
        return False
    before = None if giver.op == "Conv" else _affine(draft, giver)
    own = None if before is None else _affine(draft, node)
    padded = any(node.get("pads") or ()) or node.get("auto_pad", "NOTSET").startswith("SAME")
    if before is None or own is None or padded or not draft.alive(node):
        return False
    (scale, shift, channels), (weight, bias, filters) = before, own
    groups = node.get("group", 1)
    if groups < 1 or channels != weight.shape[1] * groups or filters % groups:
        return False
    if bias.shape != (filters,):
        return False
    # A filter of group g meets the channels of that group alone.
    scale, shift = (
        np.repeat(array.reshape(groups, -1), filters // groups, 0)[..., None, None]
        for array in (np.broadcast_to(scale, (channels,)), np.broadcast_to(shift, (channels,)))
    )
    name, kind = node.outputs[0], draft.constants[node.inputs[1]].dtype
    x = next(name for name in giver.inputs if name not in draft.constants)
    new_bias = bias + (weight * shift).sum((1, 2, 3))
    node.inputs = [
        x,
        draft.add(f"{name}.weight", (weight * scale).astype(kind)),
        draft.add(f"{name}.bias", new_bias.astype(kind)),
    ]
    return True


def _affine(draft: _Draft, node: Node) -> tuple[Array, Array, int] | None:
    """Return weight, bias and channels, in float64, of what can take in a scale and a shift."""
    if node.op == "Conv":
        arrays = [draft.constants.get(name) for name in node.inputs[1:] if name]
        if any(array is None for array in arrays) or arrays[0].ndim != 4:  # type: ignore[union-attr]
            return None
        weight, *rest = (np.asarray(array, np.float64) for array in arrays)
        channels = weight.shape[0]
        return weight, rest[0] if rest else np.zeros(channels), channels
    if node.op == "BatchNormalization":
        found = _scale_of(draft, node, node.inputs[0]) if _images(draft, node.inputs[0]) else None
        return None if found is None else (*found, found[0].size)
    x = next((name for name in node.inputs if name not in draft.constants), "")
    found, channels = _scale_of(draft, node, x), _channels(draft, x)
    if found is None or channels is None or found[0].size not in (1, channels):
        return None
    scale, shift = (np.broadcast_to(array, (channels,)) for array in found)
    return scale, shift, channels


def _channels(draft: _Draft, name: str) -> int | None:
    """Return how many channels images have, where a convolution has made them."""
    for _ in range(len(draft.nodes)):
        giver = draft.givers.get(name)
        if giver is None:
            return None
        if giver.op == "Conv":
            weight = draft.constants.get(giver.inputs[1])
            return None if weight is None or weight.ndim != 4 else int(weight.shape[0])
        if giver.op not in ("Relu", "HardSwish", "SiLU", "Sigmoid", "Clip", "BatchNormalization"):
            return None
        name = giver.inputs[0]
    return None


def _convolve(draft: _Draft, node: Node, weight: Array, bias: Array, kind: Any) -> None:
    """Give a convolution another weight and bias."""
    name = node.outputs[0]
    node.inputs[1:] = [
        draft.add(f"{name}.weight", weight.astype(kind)),
        draft.add(f"{name}.bias", bias.astype(kind)),
    ]


def _normalise(draft: _Draft, node: Node, scale: Array, shift: Array, kind: Any) -> None:
    """Make a node the normalisation that is this scale and shift."""
    name = node.outputs[0]
    x = next(other for other in node.inputs if other not in draft.constants)
    numbers = {"weight": scale, "bias": shift, "mean": 0 * scale, "var": np.ones_like(scale)}
    node.op, node.attributes = "BatchNormalization", {"epsilon": 0.0}
    node.inputs = [x] + [
        draft.add(f"{name}.{part}", np.asarray(array).astype(kind))
        for part, array in numbers.items()
    ]


def _bias(draft: _Draft, node: Node) -> bool:
    """Put the row that is added after a matrix product into it."""
    if node.op != "MatMul" or len(node.inputs) != 2 or not draft.alive(node):
        return False
    taker, weight = draft.only_taker(node), draft.constants.get(node.inputs[1])
    if taker is None or taker.op != "Add" or weight is None or weight.ndim != 2:
        return False
    row = draft.constants.get(_split_binary(draft, taker, node.outputs[0]) or "")
    if row is None or row.shape != weight.shape[1:] or row.dtype != weight.dtype:
        return False
    node.inputs.append(draft.add(f"{node.outputs[0]}.bias", row))
    draft.give(node, taker)
    return True


# ---------------------------------------------------------------- padding, activations, layouts


def _pad(draft: _Draft, node: Node) -> bool:
    """Let a convolution pad its images itself, where the border is zero."""
    if node.op != "Pad" or node.get("mode", "constant") != "constant" or not draft.alive(node):
        return False
    taker = draft.only_taker(node)
    if taker is None or taker.op != "Conv" or taker.inputs[0] != node.outputs[0]:
        return False
    if taker.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or len(node.inputs) > 3:
        return False
    pads, value = node.get("pads"), node.get("value", 0.0)
    if len(node.inputs) > 1:
        known = draft.constants.get(node.inputs[1])
        pads = None if known is None else known.tolist()
    if len(node.inputs) > 2 and node.inputs[2]:
        value = draft.number(node.inputs[2])
    if (
        value != 0
        or pads is None
        or len(pads) != 8
        or min(pads) < 0
        or any(pads[i] for i in (0, 1, 4, 5))
    ):
        return False
    own = taker.get("pads") or [0, 0, 0, 0]
    taker.attributes["pads"] = [a + b for a, b in zip(own, [*pads[2:4], *pads[6:8]], strict=True)]
    taker.attributes.pop("auto_pad", None)
    taker.inputs[0] = node.inputs[0]
    return True


def _cut(draft: _Draft, node: Node) -> bool:
    """Let a convolution compute the line of a hard sigmoid after it, and cut it at 0 and 1."""
    if node.op != "Conv" or not draft.alive(node) or node.get("activation"):
        return False
    own, taker = _affine(draft, node), draft.only_taker(node)
    if own is None or taker is None or taker.op != "HardSigmoid":
        return False
    alpha, beta = taker.get("alpha", 0.2), taker.get("beta", 0.5)
    kind = draft.constants[node.inputs[1]].dtype
    _convolve(draft, node, own[0] * alpha, own[1] * alpha + beta, kind)
    node.attributes["activation"] = "relu1"
    draft.give(node, taker)
    return True


def _activate(draft: _Draft, node: Node) -> bool:
    """Apply an activation as the node before it stores."""
    if node.op not in _STORED or not draft.alive(node) or node.get("activation"):
        return False
    if node.op in ("Add", "Sum") and len(node.inputs) != 2:
        return False
    taker = draft.only_taker(node)
    if taker is None or taker.inputs[0] != node.outputs[0]:
        return False
    kind = _ACTIVATIONS.get(taker.op)
    if _limits(draft, taker) == (0, 6):
        kind = "relu6"
    if kind not in _STORED[node.op]:
        return False
    node.attributes["activation"] = kind
    draft.give(node, taker)
    return True


def _lay_out(draft: _Draft, node: Node) -> bool:
    """Keep the packed weights of a convolution, and a matrix as its product reads it."""
    if node.op == "Conv" and draft.constants.keys() >= {*filter(None, node.inputs[1:])}:
        node.attributes["frozen"] = (prepared(),)
    if node.op == "Gemm" and node.get("transB", 0) and node.inputs[1] in draft.constants:
        weight = draft.constants[node.inputs[1]]
        node.inputs[1] = draft.add(f"{node.outputs[0]}.weight", weight.T)
        node.attributes["transB"] = 0
    return False
