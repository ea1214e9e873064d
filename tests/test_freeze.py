"""Frozen nets: the same answers from fewer layers and kept weights, and nothing stale."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import ISAS, KERNELS
from numpy.testing import assert_allclose, assert_array_equal

import cnnx

WEIGHT = np.full((1, 1, 1, 1), 7)


class Doubled(cnnx.Conv2D):
    """A convolution of the user's own."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def net(dtype: str = "float64") -> cnnx.Sequential:
    """Every pair that may become one layer, and pairs that must not; statistics off 0 and 1."""

    def conv(c: int, f: int, **options: Any) -> cnnx.Conv2D:
        return cnnx.Conv2D(c, f, 3, padding=1, dtype=dtype, rng=c + f, **options)

    body = cnnx.Sequential(
        conv(9, 9, bias=False),
        cnnx.BatchNorm2D(9, activation="relu6", dtype=dtype),
        conv(9, 9, groups=9),
        cnnx.BatchNorm2D(9, affine=False, dtype=dtype),
    )
    model = cnnx.Sequential(
        conv(2, 9),
        cnnx.BatchNorm2D(9, dtype=dtype),
        cnnx.ReLU6(),
        cnnx.Residual(body),
        conv(9, 4, activation="tanh"),
        cnnx.BatchNorm2D(4, dtype=dtype),
        cnnx.Sigmoid(),
        Doubled(4, 3, 3, dtype=dtype, rng=1),
        cnnx.ReLU(),
        conv(3, 2),
        cnnx.Tanh(),
        cnnx.Tanh(),
        cnnx.MaxPool2D(2),
        cnnx.BatchNorm2D(2, dtype=dtype),
        cnnx.ReLU6(),
        cnnx.Flatten(),
        cnnx.Dense(12, 9, dtype=dtype, rng=2),
        cnnx.Sigmoid(),
        cnnx.Dense(9, 5, dtype=dtype, rng=3),
        cnnx.ReLU6(),
    )
    rng = np.random.default_rng(0)
    for name, array in {**model.params, **model.buffers}.items():
        if array.ndim == 1:
            array += rng.uniform(0.1, 0.9, array.shape)
            assert "var" not in name or (array > 0).all()
    return model


def images(n: int = 3, dtype: Any = np.float64) -> Any:
    return np.random.default_rng(1).standard_normal((n, 2, 8, 7)).astype(dtype)


def test_same_answers(implementation: str) -> None:
    model, x = net().eval(), images()
    known = model(x)
    model.freeze()
    for _ in range(2):  # the second time with what the first has kept
        assert_allclose(model(x), known, rtol=0, atol=1e-13)  # numbers below 2, some ten roundings
    assert_allclose(model(images(1)), known[:1], rtol=0, atol=1e-13)
    assert_array_equal(model.unfreeze()(x), known)


def test_the_normalisations_are_gone() -> None:
    model = net().freeze()
    model(images())
    kinds = [type(layer).__name__ for layer, _ in model._kept[1]]
    assert kinds == [
        "Conv2D", "Residual", "Conv2D", "BatchNorm2D", "Sigmoid", "Doubled", "ReLU", "Conv2D",
        "Tanh", "MaxPool2D", "BatchNorm2D", "Flatten", "Dense", "Dense", "ReLU6",
    ]  # fmt: skip
    assert [type(layer).__name__ for layer, _ in model[3].body._kept[1]] == ["Conv2D", "Conv2D"]
    assert [type(layer).__name__ for layer in model][:3] == ["Conv2D", "BatchNorm2D", "ReLU6"]
    assert [layer.activation for layer in model if isinstance(layer, cnnx.Dense)] == [None, None]
    assert model[0].activation is None


def test_silu_is_stored_by_the_convolution(implementation: str) -> None:
    model = cnnx.Sequential(cnnx.Conv2D(2, 9, 3, dtype="float64", rng=0), cnnx.SiLU()).eval()
    known = model(images())
    model.freeze()
    assert_allclose(model(images()), known, rtol=0, atol=1e-14)  # numbers below 4, one function
    assert len(model._kept[1]) == 1


def test_a_mismatch_is_still_told() -> None:
    model = cnnx.Sequential(cnnx.Conv2D(2, 3, 3), cnnx.BatchNorm2D(1)).freeze()
    with pytest.raises(ValueError, match="weight has shape"):
        model(images(dtype=np.float32))


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    model, x = net().freeze(), images()
    norm = model[1]
    calls = []
    norm.forward = lambda x: calls.append(x.shape) or type(norm).forward(norm, x)
    model(x)
    assert calls == [(3, 9, 8, 7)]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.freeze(),
        lambda model: model.unfreeze(),
        lambda model: model.train().eval(),
    ],
)
def test_nothing_stale(backend: str, change: Any) -> None:
    model, x = net().freeze(), images()
    before = model(x)
    for param in model.params.values():
        param *= 1.5
    change(model)
    after = model(x)
    assert not np.allclose(after, before)
    assert_allclose(after, model.unfreeze()(x), rtol=0, atol=1e-13)


def test_loading_and_converting_show_at_once(backend: str) -> None:
    model, x = net().freeze(), images()
    model(x)
    other = net()
    for param in other.params.values():
        param *= 1.5
    model.load_state_dict(other.state_dict())
    assert model.frozen
    assert_allclose(model(x), other.eval()(x), rtol=0, atol=1e-13)
    assert model.astype("float32")(x.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict({**layer.state_dict(), "weight": WEIGHT}),
        lambda layer: layer.params["weight"].fill(7) or layer.freeze(),
        lambda layer: layer.params["weight"].fill(7) or layer.unfreeze(),
    ],
    ids=["load", "freeze", "unfreeze"],
)
def test_a_layer_alone_shows_at_once(backend: str, change: Any) -> None:
    # The net computes with a layer of its own, into which the ReLU has gone.
    model = cnnx.Sequential(cnnx.Conv2D(1, 1, 1, rng=0), cnnx.ReLU()).freeze()
    x = np.ones((1, 1, 1, 1), np.float32)
    model(x)
    change(model[0])
    assert model(x).item() == 7


def test_loading_while_others_compute(backend: str) -> None:
    # A thread that has begun to fuse the layers before the new numbers were there ends afterwards.
    model = cnnx.Sequential(cnnx.Conv2D(1, 1, 1, rng=0), cnnx.BatchNorm2D(1, eps=0)).freeze()
    model[0].params["weight"].fill(1)
    begun, loaded = threading.Event(), threading.Event()

    class Slow(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            if name == "running_var":  # the mean has been read
                begun.set()
                assert loaded.wait(60)
            return super().__getitem__(name)

    norm, x = model[1], np.ones((1, 1, 1, 1), np.float32)
    norm.buffers = Slow(norm.buffers)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(model, x)
        assert begun.wait(60)
        norm.buffers = dict(norm.buffers)
        model.load_state_dict({**model.state_dict(), "1.running_mean": np.full(1, -6)})
        loaded.set()
        early.result()
    assert model(x).item() == 7


def test_freezing_while_others_compute(backend: str) -> None:
    model, x = net("float32").freeze(), images(1, np.float32)
    known = model(x)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(model, x) for _ in range(100)]
        while not all(result.done() for result in results):
            model.freeze()
        for result in results:
            assert_array_equal(result.result(), known)


def test_unfreezing_while_others_compute(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Between a thread's look at whether the layer is frozen and what it keeps for that.
    layer, x = cnnx.Conv2D(1, 1, 1, rng=0).freeze(), np.ones((1, 1, 1, 1), np.float32)
    prepared = cnnx.layers.conv.prepared
    monkeypatch.setattr(cnnx.layers.conv, "prepared", lambda: layer.unfreeze() and prepared())
    layer(x)
    for value in (3, 7):
        layer.params["weight"].fill(value)
        assert layer(x).item() == value


def test_what_forward_kept_before_is_gone() -> None:
    model = cnnx.Sequential(cnnx.Dense(1, 1, rng=0), cnnx.ReLU())
    x = np.ones((1, 1), np.float32)
    model(x)
    model.freeze()(2 * x)
    with pytest.raises(RuntimeError, match="before forward"):  # not the gradient for 1
        model.unfreeze().backward(x)


def test_no_backward(backend: str) -> None:
    model, x = net(), images()
    out = model.eval()(x)
    model.freeze()(x)
    with pytest.raises(RuntimeError, match="Conv2D is frozen and keeps nothing for backward"):
        cnnx.Sequential(model[0]).backward(x)
    with pytest.raises(RuntimeError, match="MaxPool2D is frozen"):
        _ = model[12].max_indices
    with pytest.raises(RuntimeError, match="is frozen and keeps nothing for backward"):
        model.backward(out)
    model.unfreeze()
    assert model.backward(model(x)).shape == x.shape


@pytest.mark.skipif(KERNELS is None, reason="the compiled kernels are missing")
def test_kept_weights_serve_only_their_own_problem(rng: np.random.Generator) -> None:
    # One layer over images, batches, threads, algorithms, instruction sets and dtypes in turn; the
    # batches innermost, for only between them is what was kept of the right kind.
    layer = cnnx.Conv2D(16, 24, 3, padding=1, activation="relu", rng=0)
    before, threads, isa = layer.params["weight"], cnnx.get_num_threads(), KERNELS.isa()
    batches = [
        rng.standard_normal((n, 16, size, size)).astype(dtype)
        for n, size, dtype in (
            (1, 8, "float32"),
            (9, 8, "float32"),
            (12, 40, "float32"),  # so many tiles that Winograd's weights are transformed ahead
            (2, 40, "float32"),
            (1, 8, "float64"),
        )
    ]
    kept = None
    try:
        for name, winograd, count in product((*ISAS, isa), (False, True), (1, 2)):
            KERNELS.use_isa(name)
            cnnx.set_num_threads(count)
            cnnx.set_winograd(winograd)
            for x in batches:
                layer.params["weight"] = before.astype(x.dtype)
                known = layer.unfreeze()(x)
                layer.frozen = True  # with what it has kept of the problem before
                layer._kept = kept
                for _ in range(2):
                    assert_array_equal(layer(x), known)
                kept = layer._kept
    finally:
        KERNELS.use_isa(isa)
        cnnx.set_num_threads(threads)
        cnnx.set_winograd(True)


def test_one_frozen_net_for_many_threads(backend: str) -> None:
    # It keeps nothing of a forward; and batches that differ fight for what it keeps of its weights.
    model = net("float32").freeze()
    batches = [images(1 + k % 5, np.float32) for k in range(60)]
    expected = [model(x) for x in batches]
    model.freeze()
    with ThreadPoolExecutor(6) as pool:
        for result, known in zip(pool.map(model, batches), expected, strict=True):
            assert_array_equal(result, known)


def test_copies_of_a_frozen_net() -> None:
    model, x = net().freeze(), images()
    known = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model[0]))):
        assert twin.frozen
    assert_array_equal(copy.deepcopy(model)(x), known)
