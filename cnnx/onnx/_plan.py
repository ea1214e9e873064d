"""How a frozen graph runs for one shape of its inputs: made on the first call with that shape.

That call runs every node, with all checks, and looks on; those after it go straight to the
kernels. What depends on shapes alone (``Shape``, and what is computed from it) gave numbers that it
will give again: its nodes are left out from then on. An array is let go after its last use, so that
the pool of recycled memory gives it to the next one, still in the cache; an elementwise node writes
over its input where nobody reads that any more; and what a ``Concat`` puts one after the other is
written where it will stand, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from cnnx.functional._arguments import empty
from cnnx.onnx._elementwise import IN_PLACE
from cnnx.onnx._planned import fills, views
from cnnx.onnx._program import Array, Node, Program

# What a node may raise for arrays that do not fit it.
FAULTS = (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError)
_LIKE = {np.dtype(kind): np.empty(0, kind) for kind in ("float32", "float64")}
_WRITES = IN_PLACE | {"Conv", "Concat"}  # operators that take an array for their result
# Operators whose inputs, from this one on, make the shape of the result.
_SHAPED = {"ConstantOfShape": 0, "Range": 0}
_SHAPED.update(
    dict.fromkeys(
        ["Expand", "Pad", "ReduceMean", "Reshape", "Resize", "Slice", "Split", "Squeeze"], 1
    ),
    Unsqueeze=1,
)
_ADDS = ("Add", "Sum")
_NEVER = 2**62  # the last use of an output


def call(node: Node, run: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Array, ...]:
    """Run a node, or say which one it was that could not."""
    try:
        results = run(*inputs)
    except FAULTS as error:
        raise ValueError(f"{node}: {error}") from error
    if type(results) is np.ndarray:
        return (results,)
    return tuple(map(np.asarray, results if type(results) is tuple else (results,)))


@dataclass
class _Step:
    """One node of a plan; arrays are known by their slots."""

    node: Node
    run: Callable[..., Any]
    inputs: list[int]
    outputs: list[int]
    fills: bool = False  # whether `run` takes the array for the result
    # Where the result goes: over the input in a slot, into a part of the array in a slot, or into a
    # new array of a shape.
    over: int = -1
    part: tuple[int, int, int, int] | None = None  # slot, whole size, from, to
    shape: tuple[int, ...] = ()
    like: Array | None = None
    # Of a Concat that is written in place: what is still to be copied, with its place in the whole.
    copies: list[tuple[int, int, int]] | None = None
    dead: list[int] = field(default_factory=list)  # slots to let go afterwards


class Plan:
    """The steps for one shape of the inputs, and the arrays they start from.

    Attributes
    ----------
    results : tuple of ndarray
        The outputs of the first run, which made the plan.
    repeats : bool
        Whether inputs of these shapes will always have arrays of the same shapes inside; not where
        numbers of an input become sizes.
    """

    def __init__(
        self, program: Program, runs: Sequence[Callable[..., Any]], inputs: Sequence[Array]
    ) -> None:
        slots: dict[str, int] = {"": 0}

        def slot(name: str) -> int:
            return slots.setdefault(name, len(slots))

        self._given = [slot(value.name) for value in program.inputs]
        values: dict[int, Any] = {slot(name): array for name, array in program.constants.items()}
        values[0] = None
        fixed = set(values)
        # Arrays that will lie in memory as they do now: what writes or moves them says so.
        known = {number for number, array in values.items() if number == 0 or array.flags.carray}
        known.update(self._given)
        values.update(zip(self._given, inputs, strict=True))
        self._steps: list[_Step] = []
        self.repeats = True
        for node, run in zip(program.nodes, runs, strict=True):
            takes, gives = [slot(name) for name in node.inputs], [slot(n) for n in node.outputs]
            step, arrays = _Step(node, run, takes, gives), [values[number] for number in takes]
            results = call(node, run, arrays)
            values.update(zip(gives, results, strict=False))
            first = _SHAPED.get(node.op)
            if first is not None and not fixed.issuperset(takes[first:]):
                self.repeats = False
            if node.op == "Shape" or fixed.issuperset(takes):
                fixed.update(gives)
                known.update(gives)
                continue
            self._steps.append(step)
            same = known.issuperset(takes)
            fill, view = fills(node, arrays, results[0], same), views(node, arrays, results)
            step.run, step.fills = fill or view or run, fill is not None
            written = node.op in IN_PLACE and results[0].dtype in _LIKE
            joined = same and node.op == "Concat"
            if fill or (same and view) or ((written or joined) and results[0].flags.carray):
                known.update(gives)
        self._outputs = [slots[name] for name in program.outputs]
        self.results = tuple(values[number] for number in self._outputs)
        buffers = _place(self._steps, values, self._outputs, len(slots))
        _reuse(self._steps, values, fixed.union(self._given), self._outputs)
        self._start: list[Any] = [None] * (len(slots) + buffers)
        taken = {*self._outputs, *(number for step in self._steps for number in step.inputs)}
        for number in fixed & taken:
            self._start[number] = values[number]

    def run(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Return the outputs."""
        values = self._start.copy()
        for number, array in zip(self._given, inputs):  # noqa: B905 (as many, which was checked)
            values[number] = array
        step = None
        try:
            for step in self._steps:
                if step.like is None:
                    results = step.run(*[values[number] for number in step.inputs])
                    if type(results) is not tuple:
                        values[step.outputs[0]] = results
                    else:
                        for number, result in zip(step.outputs, results):  # noqa: B905
                            values[number] = result
                else:
                    values[step.outputs[0]] = _written(step, values)
                for number in step.dead:
                    values[number] = None
        except FAULTS as error:
            raise ValueError(f"{step and step.node}: {error}") from error
        found = (np.asarray(values[number]) for number in self._outputs)
        return tuple(
            array.copy() if array is self._start[number] else array
            for number, array in zip(self._outputs, found, strict=True)
        )


def _written(step: _Step, values: list[Any]) -> Array:
    """Run a step that puts its result into an array, and return that."""
    out: Array
    if step.over >= 0:
        out = values[step.over]
    elif step.part is None:
        out = empty(step.shape, step.like)  # type: ignore[arg-type]
    else:
        number, size, begin, end = step.part
        if values[number] is None:  # whoever writes first makes it
            values[number] = empty((size,), step.like)  # type: ignore[arg-type]
        out = values[number][begin:end].reshape(step.shape)
    if step.copies is None:
        result = step.run(*[values[number] for number in step.inputs], out=out)
        if result is not out:
            out[...] = result
        return out
    flat = out.reshape(-1)
    for number, begin, end in step.copies:
        flat[begin:end] = values[number].reshape(-1)
    return out


# ---------------------------------------------------------------- where results go


def _place(steps: list[_Step], values: dict[int, Any], outputs: list[int], first: int) -> int:
    """Let what a Concat takes be written where it will stand; return how many arrays that needs.

    Parts that lie one after the other in memory can be: those along the channels of one image. The
    last Concat is looked at first, for its array may hold the arrays of those before it.
    """
    givers = {step.outputs[0]: step for step in steps if len(step.outputs) == 1}
    buffers = 0
    for step in reversed(steps):
        if step.node.op != "Concat":
            continue
        whole = values[step.outputs[0]]
        like, axis = _LIKE.get(whole.dtype), step.node.get("axis") % whole.ndim
        if like is None or prod(whole.shape[:axis]) != 1 or not whole.size:
            continue
        here = []  # what can be written here, with its place
        begin = 0
        for number in step.inputs:
            giver, array = givers.get(number), values[number]
            end = begin + array.size
            if (
                giver is not None
                and (giver.fills or giver.node.op in _WRITES)
                and giver.part is None
                and number not in outputs
                and step.inputs.count(number) == 1
                and array.dtype == whole.dtype
                and array.size
            ):
                here.append((giver, number, begin, end))
            begin = end
        if not here:
            continue
        if step.part is None:
            step.part = (first + buffers, whole.size, 0, whole.size)
            buffers += 1
        step.like, step.shape = like, whole.shape
        slot, size, start, _ = step.part
        for giver, number, begin, end in here:
            giver.part, giver.like = (slot, size, start + begin, start + end), like
            giver.shape = values[number].shape
        placed, step.copies, begin = {number for _, number, _, _ in here}, [], 0
        for number in step.inputs:
            end = begin + values[number].size
            if number not in placed:
                step.copies.append((number, begin, end))
            begin = end
    return buffers


def _reuse(
    steps: list[_Step], values: dict[int, Any], others: set[int], outputs: list[int]
) -> None:
    """Say after which step each array is let go, and which results are written over an input.

    `others` are the slots of arrays that are not the plan's to write into.
    """
    group = _groups(steps, values)
    last: dict[int, int] = {}  # of slots
    ends: dict[int, int] = {}  # of groups, whose members share memory
    for place, step in enumerate(steps):
        for number in (*step.inputs, *step.outputs):
            last[number] = ends[group(number)] = place
    for number in outputs:
        last[number] = ends[group(number)] = _NEVER
    foreign = {group(number) for number in others}
    for place, step in enumerate(steps):
        if (step.fills or step.node.op in IN_PLACE) and step.part is None:
            out = values[step.outputs[0]]
            step.like = _LIKE.get(out.dtype)
            step.shape = out.shape
        # A kernel may have to read again what it has written, unless it adds.
        if step.node.op in (_ADDS if step.fills else IN_PLACE) and step.part is None:
            shared = [group(number) for number in step.inputs]
            for number in step.inputs if step.like is not None else ():
                array, own = values[number], group(number)
                if (
                    array is not None
                    and own not in foreign
                    and ends[own] == place
                    and shared.count(own) == 1
                    and array.shape == out.shape
                    and array.dtype == out.dtype
                    and array.flags.carray
                ):
                    step.over = number
                    break
        step.dead = [n for n in {*step.inputs, *step.outputs} - others if last[n] == place]
        if (
            step.part is not None
            and step.node.op == "Concat"
            and step.part[2:] == (0, step.part[1])
        ):
            step.dead.append(step.part[0])


def _groups(steps: list[_Step], values: dict[int, Any]) -> Callable[[int], int]:
    """Return the function that tells the group of a slot: of those whose arrays share memory."""
    parents: dict[int, int] = {}

    def group(number: int) -> int:
        while number in parents:
            number = parents[number]
        return number

    def join(a: int, b: int) -> None:
        a, b = group(a), group(b)
        if a != b:
            parents[a] = b

    wholes: dict[int, int] = {}
    for step in steps:
        for one in step.outputs:
            for other in step.inputs:
                if _share(values.get(one), values[other]):
                    join(one, other)
        if step.part is not None:
            join(step.outputs[0], wholes.setdefault(step.part[0], step.outputs[0]))
    return group


def _share(a: Any, b: Any) -> bool:
    return a is not None and b is not None and np.may_share_memory(a, b)
