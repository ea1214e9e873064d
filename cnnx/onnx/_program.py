"""What a model is once it has been read: inputs, constants, and nodes in an order that can run."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# By the numbers of TensorProto.DataType: the types that operators of this package take, as a file
# has them. float16, bfloat16, complex numbers, strings and the types of quantised nets are missing.
DTYPES = {
    number: np.dtype(layout)
    for number, layout in {
        1: "<f4",
        2: "<u1",
        3: "<i1",
        4: "<u2",
        5: "<i2",
        6: "<i4",
        7: "<i8",
        9: "?",
        11: "<f8",
        12: "<u4",
        13: "<u8",
    }.items()
}
LARGEST = 2**31  # bytes of one array that a file may ask for by a few numbers: a file's own limit


@dataclass
class Node:
    """One operation: the names of what it takes and gives, and its attributes.

    A name of "" among the inputs is one that is left out.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    opset: int = 0

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute, or what holds where it is left out."""
        return self.attributes.get(attribute, default)

    def __str__(self) -> str:
        """For error messages: the operator and the node's name."""
        return f"{self.op} {self.name or self.outputs[0]!r}"


@dataclass
class Input:
    """An array that a caller gives; a size of None is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass
class Program:
    """A model: its nodes, each after all whose outputs it takes."""

    inputs: list[Input]
    outputs: list[str]
    constants: dict[str, Array]
    nodes: list[Node]


def in_order(nodes: Iterable[Node], known: Iterable[str]) -> list[Node]:
    """Return the nodes, each after all whose outputs it takes.

    Raises
    ------
    ValueError
        If a node takes what nothing gives, or nodes wait for each other.
    """
    waiting, there, result = list(nodes), {"", *known}, []
    givers: dict[str, Node] = {}
    for node in waiting:
        for name in filter(None, node.outputs):
            if name in givers or name in there:
                raise ValueError(f"{node} gives {name!r}, which is already given")
            givers[name] = node
    missing = [{*node.inputs} - there for node in waiting]
    takers: dict[str, list[int]] = {}
    for number, node in enumerate(waiting):
        for name in missing[number]:
            if name not in givers:
                raise ValueError(f"{node} takes {name!r}, which nothing gives")
            takers.setdefault(name, []).append(number)
    ready = [number for number, names in enumerate(missing) if not names]
    while ready:  # a heap: the file's own order wherever it is one
        node = waiting[heapq.heappop(ready)]
        result.append(node)
        for name in filter(None, node.outputs):
            for number in takers.get(name, ()):
                missing[number].discard(name)
                if not missing[number]:
                    heapq.heappush(ready, number)
    if len(result) < len(waiting):
        stuck = [str(node) for node, names in zip(waiting, missing, strict=True) if names]
        raise ValueError(f"the graph has a cycle among {_some(stuck)}")
    return result


def needed(nodes: list[Node], outputs: Iterable[str]) -> list[Node]:
    """Return the nodes that the outputs depend on, in the same order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(filter(None, node.outputs)):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


def require_room(shape: Iterable[int], itemsize: int = 4) -> None:
    """Raise where an array of a shape that a file asks for would be larger than a file can be."""
    sizes = [int(size) for size in shape]
    total = itemsize
    for size in sizes:
        if size < 0:
            raise ValueError(f"an array would have the shape {tuple(sizes)}")
        total *= size
    if total > LARGEST:
        raise ValueError(
            f"an array would have the shape {tuple(sizes)}, more than {LARGEST >> 30} GiB"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
