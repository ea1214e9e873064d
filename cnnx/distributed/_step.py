"""One step of a rank: its shards of a batch, and what all shards sum up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cnnx._run import Loss, count_hits, generators_of
from cnnx.distributed._communicator import Array, Communicator
from cnnx.distributed._lockstep import Lockstep, Meet
from cnnx.distributed._norm import together
from cnnx.distributed._reduction import Buckets, Reduction, summed
from cnnx.layers import Container, Sequential
from cnnx.layers.base import arrays_of
from cnnx.layers.containers import named_layers

_TOTALS = ""  # among the names of the gradients: what else is summed over the shards


class Totals(NamedTuple):
    """Sums over the shards of a batch, the same on every rank."""

    loss: float  # times images
    hits: int | None  # None where there are no classes
    stop: bool  # whether any rank was asked to
    images: int


class Worker:
    """This rank's part of the steps of one model.

    Every shard starts from the same parameters, buffers (such as running statistics) and, for each
    random generator, a seed that this generator drew for it. Gradients are summed over the shards;
    buffers become their mean, weighted by images. So it makes no difference who computes a shard.

    Parameters
    ----------
    model : layer
        Anything with params and grads.
    communicator : Communicator
        The way to the other ranks.
    shards : int
        Of a batch, on all ranks together.
    reduction : function
        How ranks sum up.
    bucket_bytes : int
        How much travels at once.
    sync_batch_norm : bool
        Whether batch normalisations take all shards together.
    """

    def __init__(
        self,
        model: Any,
        communicator: Communicator,
        shards: int,
        reduction: Reduction,
        bucket_bytes: int,
        sync_batch_norm: bool,
    ) -> None:
        self._model, self._described = model, described(model)
        self._all_shards, own = shards, shards // communicator.size
        self._first = own * communicator.rank
        self._buffers = sum(buffer.size for buffer in arrays_of(model, "buffers").values())
        # The totals come last in a step; as gradients are sent in reverse, they stand first.
        arrays = {_TOTALS: np.zeros(4 + self._buffers), **arrays_of(model, "params")}
        self._buckets = Buckets(arrays, own, bucket_bytes, reduction, communicator)
        self._lockstep = None
        self._copies = [_Copy(model)] * own
        if sync_batch_norm:
            tag = len(self._buckets)
            self._lockstep = Lockstep(lambda array: summed(array, reduction, communicator, tag))
            self._copies[1:] = [_Copy(_twin(model)) for _ in self._copies[1:]]

    def fits(self, model: Any) -> bool:
        """Whether this is still the worker for that model."""
        layers = self._copies[0].layers
        return (
            model is self._model
            and described(model) == self._described
            and list(map(id, _with_layers(model))) == list(map(id, layers))
        )

    def run(
        self, loss: Loss, batches: Iterable[tuple[Array, Array]], images: int, stop: bool
    ) -> Totals:
        """Leave the gradients of the whole batch's mean loss in the model's `grads`."""
        self._buckets.begin()
        model = self._copies[0]
        buffers = [array.copy() for array in model.buffers()]
        with self._seeded() as seed:
            jobs = (
                partial(self._shard, number, copy, seed, buffers, loss, x, y, images, stop)
                for number, (copy, (x, y)) in enumerate(zip(self._copies, batches, strict=True))
            )
            if self._lockstep is None:
                for job in jobs:
                    job(None)
            else:
                for copy in self._copies[1:]:
                    copy.behave_like(model)
                self._lockstep.run(list(jobs))
        summed_up = dict(self._buckets.finish())
        totals = summed_up[_TOTALS]
        for prefix, layer in model.inside(self._model):
            for name in arrays_of(layer, "params"):
                arrays_of(layer, "grads")[name] = summed_up[prefix + name]
        ends = np.cumsum([array.size for array in buffers])
        model.put_buffers(np.split(totals[4:], ends[:-1]) if buffers else [])
        hits = None if np.isnan(totals[1]) else int(totals[1])
        return Totals(float(totals[0]), hits, bool(totals[2]), int(totals[3]))

    def _shard(
        self,
        number: int,
        copy: _Copy,
        seed: Callable[[int, _Copy], None],
        buffers: list[Array],
        loss: Loss,
        x: Array,
        y: Array,
        images: int,
        stop: bool,
        meet: Meet | None,
    ) -> None:
        weight = len(x) / images
        if not len(x) and meet is None:  # no layer of anybody's need understand an empty batch
            for name, param in arrays_of(copy.model, "params").items():
                self._buckets.put(name, number, np.zeros_like(param))
            totals = np.array([0, 0, stop, 0, *[0] * self._buffers], np.float64)
            self._buckets.put(_TOTALS, number, totals)
            return
        copy.put_buffers(buffers)
        seed(number, copy)
        with self._listening(number, copy), together(copy.layers, meet) if meet else nullcontext():
            out = copy.model.forward(x)
            value, hits = loss.forward(out, y), count_hits(out, y, loss)
            copy.model.backward(loss.backward() * weight)
        self._take(number, copy.inside(copy.model))
        head = [value * len(x), np.nan if hits is None else hits, stop, len(x)]
        # In float64, so that the mean of equal float32 numbers is that number.
        parts = [np.ravel(array).astype(np.float64) * weight for array in copy.buffers()]
        self._buckets.put(_TOTALS, number, np.concatenate([head, *parts]))

    def _take(self, number: int, holders: Iterable[tuple[str, Any]]) -> None:
        for prefix, layer in holders:
            for name, grad in arrays_of(layer, "grads").items():
                self._buckets.put(prefix + name, number, grad)

    @contextmanager
    def _listening(self, number: int, copy: _Copy) -> Iterator[None]:
        """Hear of every layer that a Sequential is done with."""

        def finished(layer: Any) -> None:
            self._take(number, copy.inside(layer))
            self._buckets.progress()

        containers = [layer for layer in copy.layers if isinstance(layer, Sequential)]
        for container in containers:
            container._finished = finished
        try:
            yield
        finally:
            for container in containers:
                del container._finished

    @contextmanager
    def _seeded(self) -> Iterator[Callable[[int, _Copy], None]]:
        """A function that puts the generators of a shard's model where that shard begins.

        Afterwards the model's own are as if each had only drawn the shards' seeds.
        """
        own = _generators(self._model)
        seeds = [generator.integers(2**63, size=self._all_shards) for generator in own]
        after = [generator.bit_generator.state for generator in own]

        def seed(number: int, copy: _Copy) -> None:
            generators = _generators(copy.model) if own else []
            for generator, numbers in zip(generators, seeds, strict=True):
                kind = type(generator.bit_generator)
                generator.bit_generator.state = kind(numbers[self._first + number]).state

        try:
            yield seed
        finally:
            for generator, state in zip(own, after, strict=True):
                generator.bit_generator.state = state


class _Copy:
    """A model, and the layers in it that have arrays, found once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = _with_layers(model)
        self._holders = {id(model): list(_holders(model, ""))}
        for name, layer in named_layers(model):
            self._holders[id(layer)] = list(_holders(layer, f"{name}."))

    def inside(self, layer: Any) -> list[tuple[str, Any]]:
        """A layer's inner ones, or itself, with the beginning of their arrays' names."""
        return self._holders[id(layer)]

    def buffers(self) -> list[Array]:
        """The buffers of the model, in the order of their names."""
        holders = self.inside(self.model)
        return [array for _, layer in holders for array in arrays_of(layer, "buffers").values()]

    def put_buffers(self, values: Iterable[Array]) -> None:
        """Write into them; what counts something stays whole."""
        for array, value in zip(self.buffers(), values, strict=True):
            value = value if array.dtype.kind == "f" else np.rint(value)
            array[...] = value.reshape(array.shape)

    def behave_like(self, other: _Copy) -> None:
        """Take over who is in training."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if hasattr(theirs, "training"):
                mine.training = theirs.training


def _with_layers(model: Any) -> list[Any]:
    """A model, and all layers in it."""
    return [model, *(layer for _, layer in named_layers(model))]


def _holders(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(layer, Container):
        for name, child in layer.children().items():
            yield from _holders(child, f"{prefix}{name}.")
    else:
        yield prefix, layer


def described(model: Any) -> list[tuple[str, str, tuple[int, ...], str]]:
    """The names, shapes and dtypes of a model's parameters and buffers."""
    return [
        (kind, name, array.shape, array.dtype.name)
        for kind in ("params", "buffers")
        for name, array in arrays_of(model, kind).items()
    ]


def _generators(model: Any) -> list[np.random.Generator]:
    """Each once, however many layers draw from it."""
    return list({id(generator): generator for _, generator in generators_of(model)}.values())


def _twin(model: Any) -> Any:
    """A copy that has the same parameters, the very arrays, and for itself what a shard changes."""
    shared = [arrays_of(layer, "params") for layer in _with_layers(model)]
    return deepcopy(model, {id(params): params for params in shared})
