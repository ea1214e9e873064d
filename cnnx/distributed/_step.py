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
from cnnx.layers import Sequential
from cnnx.layers.base import arrays_of
from cnnx.layers.containers import named_layers

_TOTALS = ""  # among the names of the gradients: what else is summed over the shards


class Totals(NamedTuple):
    """Sums over the shards of a batch, the same on every rank."""

    loss: float  # times images
    hits: int | None  # None where there are no classes
    stop: bool  # whether any rank was asked to


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
        self.model, self._all_shards = model, shards
        own = shards // communicator.size
        self._first = own * communicator.rank
        self._described = described(model)
        params, buffers = arrays_of(model, "params"), arrays_of(model, "buffers")
        totals = np.zeros(3 + sum(buffer.size for buffer in buffers.values()))
        # The totals come last in a step; as gradients are sent in reverse, they stand first.
        self._buckets = Buckets(
            {_TOTALS: totals, **params}, own, bucket_bytes, reduction, communicator
        )
        self._lockstep = None
        self._models = [model] * own
        if sync_batch_norm:
            tag = len(self._buckets)
            self._lockstep = Lockstep(lambda array: summed(array, reduction, communicator, tag))
            # What is between forward and backward is a shard's own; the parameters are common.
            self._models[1:] = [_twin(model) for _ in self._models[1:]]

    def fits(self, model: Any) -> bool:
        """Whether this is still the worker for that model."""
        return model is self.model and described(model) == self._described

    def run(
        self, loss: Loss, batches: Iterable[tuple[Array, Array]], images: int, stop: bool
    ) -> Totals:
        """Leave the gradients of the whole batch's mean loss in the model's `grads`."""
        self._buckets.begin()
        buffers = {name: array.copy() for name, array in arrays_of(self.model, "buffers").items()}
        with self._seeded() as seed:
            jobs = (
                partial(self._shard, number, seed, buffers, loss, x, y, images, stop)
                for number, (x, y) in enumerate(batches)
            )
            if self._lockstep is not None:
                self._lockstep.run(list(jobs))
            else:
                for job in jobs:
                    job(None)
        grads = arrays_of(self.model, "grads")
        for name, total in self._buckets.finish():
            if name == _TOTALS:
                totals = total
            else:
                grads[name] = total
        self._put_buffers(self.model, self._mean_buffers(totals[3:], buffers))
        hits = None if np.isnan(totals[1]) else int(totals[1])
        return Totals(float(totals[0]), hits, bool(totals[2]))

    def _shard(
        self,
        number: int,
        seed: Callable[[int], None],
        buffers: dict[str, Array],
        loss: Loss,
        x: Array,
        y: Array,
        images: int,
        stop: bool,
        meet: Meet | None,
    ) -> None:
        model, weight = self._models[number], len(x) / images
        if not len(x) and meet is None:  # no layer of anybody's need understand an empty batch
            for name, param in arrays_of(model, "params").items():
                self._buckets.put(name, number, np.zeros_like(param))
            totals = np.zeros(3 + sum(buffer.size for buffer in buffers.values()))
            totals[2] = stop
            self._buckets.put(_TOTALS, number, totals)
            return
        self._put_buffers(model, buffers)
        seed(number)
        layers = [model, *(layer for _, layer in named_layers(model))]
        with self._listening(model, number), together(layers, meet) if meet else nullcontext():
            out = model.forward(x)
            value, hits = loss.forward(out, y), count_hits(out, y, loss)
            model.backward(loss.backward() * weight)
        self._take("", model, number)
        parts = [np.ravel(array) * weight for array in arrays_of(model, "buffers").values()]
        head = [value * len(x), np.nan if hits is None else hits, stop]
        self._buckets.put(_TOTALS, number, np.concatenate([head, *parts]))

    def _take(self, prefix: str, layer: Any, number: int) -> None:
        for name, grad in arrays_of(layer, "grads").items():
            self._buckets.put(prefix + name, number, grad)

    @contextmanager
    def _listening(self, model: Any, number: int) -> Iterator[None]:
        """Hear of every layer that a Sequential is done with."""
        layers = dict(named_layers(model))
        prefixes = {id(layer): f"{name}." for name, layer in layers.items()}

        def finished(layer: Any) -> None:
            self._take(prefixes[id(layer)], layer, number)
            self._buckets.progress()

        containers = [layer for layer in (model, *layers.values()) if isinstance(layer, Sequential)]
        for container in containers:
            container._finished = finished
        try:
            yield
        finally:
            for container in containers:
                del container._finished

    @contextmanager
    def _seeded(self) -> Iterator[Callable[[int], None]]:
        """A function that puts the generators of a shard's model where that shard begins.

        Afterwards the model's own are as if each had only drawn the shards' seeds.
        """
        own = _generators(self.model)
        seeds = [generator.integers(2**63, size=self._all_shards) for generator in own]
        after = [generator.bit_generator.state for generator in own]

        def seed(number: int) -> None:
            for generator, numbers in zip(_generators(self._models[number]), seeds, strict=True):
                kind = type(generator.bit_generator)
                generator.bit_generator.state = kind(numbers[self._first + number]).state

        try:
            yield seed
        finally:
            for generator, state in zip(own, after, strict=True):
                generator.bit_generator.state = state

    @staticmethod
    def _put_buffers(model: Any, buffers: dict[str, Array]) -> None:
        for name, array in arrays_of(model, "buffers").items():
            array[...] = buffers[name]

    @staticmethod
    def _mean_buffers(flat: Array, like: dict[str, Array]) -> dict[str, Array]:
        sizes = np.cumsum([array.size for array in like.values()])
        parts = np.split(flat, sizes[:-1]) if like else []
        return {
            name: (part if array.dtype.kind == "f" else np.rint(part)).reshape(array.shape)
            for (name, array), part in zip(like.items(), parts, strict=True)
        }


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
    """A copy that has the same parameters, the very arrays, and all else for itself."""
    layers = [model, *(layer for _, layer in named_layers(model))]
    shared = [arrays_of(layer, "params") for layer in layers]
    return deepcopy(model, {id(params): params for params in shared})
