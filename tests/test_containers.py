"""Layers made of layers, modes, and the state of a model as a dict of arrays."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import cnnx
from cnnx.layers.fusion import relu_of_maxima


def net(rng: int = 0) -> cnnx.Sequential:
    """A net with every kind of name: nested, with buffers, and a shortcut."""
    return cnnx.Sequential(
        cnnx.Conv2D(1, 2, 3, padding=1, bias=False, rng=rng),
        cnnx.BatchNorm2D(2),
        cnnx.Residual(
            cnnx.Sequential(cnnx.ReLU(), cnnx.Conv2D(2, 3, 1, rng=rng)),
            cnnx.Conv2D(2, 3, 1, bias=False, rng=rng),
        ),
        cnnx.Flatten(),
        cnnx.Dropout(0.5, rng=rng),
        cnnx.Dense(12, 2, rng=rng),
    )


PARAMS = [
    "0.weight",
    "1.weight",
    "1.bias",
    "2.body.1.weight",
    "2.body.1.bias",
    "2.shortcut.weight",
    "5.weight",
    "5.bias",
]
BUFFERS = ["1.running_mean", "1.running_var"]


class Double:
    """The least a layer can be: forward and backward, derived from nothing."""

    def forward(self, x: Any) -> Any:
        """Twice the input."""
        return 2 * x

    def backward(self, grad_out: Any) -> Any:
        """Twice the gradient."""
        return 2 * grad_out


class Half:
    """Whose backward loses images."""

    def forward(self, x: Any) -> Any:
        """The input."""
        return x

    def backward(self, grad_out: Any) -> Any:
        """The gradient of the first half."""
        return grad_out[: len(grad_out) // 2]


class Scale:
    """A layer of somebody else's, with a parameter."""

    def __init__(self) -> None:
        self.params = {"factor": np.array([3.0])}
        self.grads = {"factor": np.array([0.0])}

    def forward(self, x: Any) -> Any:
        """The input times the factor."""
        self.x = x
        return x * self.params["factor"]

    def backward(self, grad_out: Any) -> Any:
        """The gradient times the factor."""
        self.grads["factor"] = np.array([(grad_out * self.x).sum()])
        return grad_out * self.params["factor"]


# ---------------------------------------------------------------- names


def test_names_say_where_the_arrays_are() -> None:
    model = net()
    assert list(model.params) == PARAMS
    assert list(model.grads) == PARAMS
    assert list(model.buffers) == BUFFERS
    assert sorted(model.state_dict()) == sorted(PARAMS + BUFFERS)
    assert list(model.children()) == ["0", "1", "2", "3", "4", "5"]
    assert list(model[2].children()) == ["body", "shortcut"]
    assert list(cnnx.Residual(cnnx.ReLU()).children()) == ["body"]


def test_arrays_are_the_children_s_own() -> None:
    model = net()
    assert model.params["2.body.1.weight"] is model[2].body[1].params["weight"]
    assert model.buffers["1.running_var"] is model[1].buffers["running_var"]
    model.backward(np.ones_like(model(np.ones((2, 1, 2, 2), np.float32))))
    assert model.grads["5.bias"] is model[5].grads["bias"]


def test_assigning_a_parameter_writes_into_the_child() -> None:
    # The update that a first course writes: on a dict made afresh it would be lost in silence.
    model = cnnx.Sequential(cnnx.Dense(2, 2, rng=0))
    weight, start = model[0].params["weight"], model[0].params["weight"].copy()
    model.params["0.weight"] = model.params["0.weight"] - 1
    assert_array_equal(weight, start - 1)
    model.params["0.weight"] -= 1
    assert_array_equal(weight, start - 2)
    model.params.update({"0.weight": np.full((2, 2), 7)})
    assert_array_equal(weight, np.full((2, 2), 7))
    assert model[0].params["weight"] is weight
    with pytest.raises(KeyError, match="weights"):
        model.params["weights"] = start


def test_copies_of_params_are_plain_and_apart() -> None:
    model = net()
    for snapshot in (copy.deepcopy(model.params), {**copy.deepcopy(model.params)}):
        assert type(snapshot) is dict
        snapshot["new"] = np.zeros(1)
        snapshot["0.weight"][...] = 0
    assert model.params["0.weight"].any()


# ---------------------------------------------------------------- forward and backward


def test_sequential_is_one_after_the_other() -> None:
    dense, relu = cnnx.Dense(3, 2, rng=0), cnnx.ReLU()
    model = cnnx.Sequential(dense, relu)
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    out = model(x)
    assert_array_equal(out, relu(dense(x)))
    assert_array_equal(model.backward(out), dense.backward(relu.backward(out)))
    assert len(model) == 2
    assert [*model] == [dense, relu]
    assert model[-1] is relu
    assert_array_equal(cnnx.Sequential()(x), x)


def test_residual_by_hand() -> None:
    block = cnnx.Residual(Double())
    x = np.array([1.0, 2.0])
    assert_array_equal(block(x), [3.0, 6.0])
    assert_array_equal(block.backward(x), [3.0, 6.0])
    both = cnnx.Residual(Double(), cnnx.Sequential(Double(), Double()))
    assert_array_equal(both(x), [6.0, 12.0])
    assert_array_equal(both.backward(x), [6.0, 12.0])


def test_residual_with_relu(backend: str, rng: np.random.Generator) -> None:
    x, grad_out = rng.standard_normal((2, 3, 2, 5, 5), np.float32)
    bodies = [cnnx.Conv2D(2, 2, 3, padding=1, rng=0) for _ in range(2)]
    fused = cnnx.Residual(bodies[0], activation="relu")
    plain = cnnx.Sequential(cnnx.Residual(bodies[1]), cnnx.ReLU())
    assert_array_equal(fused(x), plain(x))
    assert_array_equal(fused.backward(grad_out), plain.backward(grad_out))
    assert_array_equal(bodies[0].grads["weight"], bodies[1].grads["weight"])
    assert_array_equal(fused.freeze()(x), plain(x))
    with pytest.raises(RuntimeError, match="frozen"):
        fused.backward(grad_out)
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        cnnx.Residual(bodies[0], activation="tanh")  # type: ignore[arg-type]


def test_residual_does_not_broadcast() -> None:
    block = cnnx.Residual(cnnx.Conv2D(1, 3, 1))
    x = np.ones((2, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and x has shape \(2, 1, 4, 4\)"):
        block(x)
    block.shortcut = cnnx.Conv2D(1, 3, 2)
    with pytest.raises(ValueError, match=r"and shortcut\(x\) has shape \(2, 3, 3, 3\)"):
        block(x)
    # A layer of somebody's own may have a backward that is wrong.
    block = cnnx.Residual(Half())
    block(x)
    with pytest.raises(ValueError, match=r"body.backward\(grad_out\) has shape \(1, 1, 4, 4\) and"):
        block.backward(x)


def test_somebody_else_s_layers_are_layers() -> None:
    model = cnnx.Sequential(Double(), cnnx.Sequential(Scale()))
    x = np.array([1.0, 5.0])
    assert_array_equal(model.train()(x), [6.0, 30.0])
    assert_array_equal(model.backward(np.array([1.0, 1.0])), [6.0, 6.0])
    assert list(model.params) == ["1.0.factor"]
    assert_array_equal(model.grads["1.0.factor"], [12.0])
    model.freeze().unfreeze().eval().load_state_dict({"1.0.factor": [10.0]})
    assert_array_equal(model(x), [20.0, 100.0])
    model.astype("float32")
    assert model.params["1.0.factor"].dtype == np.float32


def test_a_layer_that_overrides_backward_is_a_layer() -> None:
    class Stop(cnnx.Dense):
        def backward(self, grad_out: Any) -> Any:
            return 0 * super().backward(grad_out)

    model = cnnx.Sequential(cnnx.Dense(2, 2, rng=0), Stop(2, 2, rng=0))
    model.backward(np.ones_like(model(np.ones((1, 2), np.float32))))
    assert model.grads["1.weight"].all()
    assert not model.grads["0.weight"].any()


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="layer 1 is the class ReLU, expected an object of it"):
        cnnx.Sequential(cnnx.Flatten(), cnnx.ReLU)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"layer 0 is \[ReLU\(\)\] \(list\), without forward\(\)"):
        cnnx.Sequential([cnnx.ReLU()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"layer body is a function, without forward\(\)"):
        cnnx.Residual(lambda x: x)  # type: ignore[arg-type]


def test_one_layer_in_two_places_is_refused() -> None:
    relu = cnnx.ReLU()
    with pytest.raises(ValueError, match=r"layer 1 is layer 0 again"):
        cnnx.Sequential(relu, relu)
    with pytest.raises(ValueError, match=r"layer 1\.body\.0 is layer 0 again"):
        cnnx.Sequential(relu, cnnx.Residual(cnnx.Sequential(relu)))


def test_repr_is_a_tree() -> None:
    model = cnnx.Sequential(cnnx.Flatten(), cnnx.Residual(cnnx.ReLU()))
    assert repr(model) == "Sequential(\n  0: Flatten()\n  1: Residual(\n    body: ReLU()\n  )\n)"
    assert repr(cnnx.Sequential()) == "Sequential()"


# ---------------------------------------------------------------- modes


def every_layer(layer: Any) -> list[Any]:
    return [layer, *(inner for child in layer.children().values() for inner in every_layer(child))]


def test_modes_reach_every_layer() -> None:
    model = net()

    def modes() -> set[tuple[bool, bool]]:
        return {(layer.training, layer.frozen) for layer in every_layer(model)}

    assert modes() == {(True, False)}
    assert model.eval() is model
    assert modes() == {(False, False)}
    assert model.freeze() is model
    assert modes() == {(False, True)}
    assert model.unfreeze() is model
    assert modes() == {(False, False)}
    assert model.freeze().train() is model
    assert modes() == {(True, False)}


def test_freezing_keeps_the_results() -> None:
    model, x = net().eval(), np.ones((2, 1, 2, 2), np.float32)
    out = model(x).copy()
    # The normalisation's factor is rounded into the weights: some roundings of numbers below 1.
    np.testing.assert_allclose(model.freeze()(x), out, rtol=0, atol=1e-6)
    model.unfreeze()
    for name in ("5.weight", "5.bias"):
        model.params[name] *= 2  # changes no rounding
    assert_array_equal(model(x), 2 * out)


# ---------------------------------------------------------------- state


def test_state_is_a_copy() -> None:
    model = net()
    state = model.state_dict()
    state["0.weight"][...] = 7
    assert not (model.params["0.weight"] == 7).any()


def test_loading_fills_the_same_arrays() -> None:
    model, other = net(rng=1), net(rng=2)
    other.forward(np.random.default_rng(0).standard_normal((8, 1, 2, 2)).astype(np.float32))
    arrays = {**model.params, **model.buffers}
    model.load_state_dict(other.state_dict())
    assert set(map(id, {**model.params, **model.buffers}.values())) == set(map(id, arrays.values()))
    for name, array in other.state_dict().items():
        assert arrays[name].tobytes() == array.tobytes(), name
    assert (model.buffers["1.running_mean"] != 0).all()


def test_loading_casts() -> None:
    dense = cnnx.Dense(1, 2, dtype="float32")
    dense.load_state_dict({"weight": np.array([[0.1, 2]]), "bias": [3, 4]})
    assert_array_equal(dense.params["weight"], np.array([[0.1, 2]], np.float32))
    assert_array_equal(dense.params["bias"], np.array([3, 4], np.float32))
    start = dense.state_dict()
    with pytest.raises(TypeError, match=r"state\['bias'\] has dtype complex128.* float32"):
        dense.load_state_dict({"weight": np.zeros((1, 2)), "bias": np.zeros(2, complex)})
    assert_array_equal(dense.params["weight"], start["weight"])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"5.weight": np.zeros((2, 12))}, r"'5.weight' has shape \(2, 12\), expected \(12, 2\)"),
        ({"5.bias": np.float32(1)}, r"'5.bias' has shape \(\), expected \(2,\)"),
    ],
)
def test_a_wrong_shape_changes_nothing(strict: bool, change: Any, message: str) -> None:
    model, state = net(rng=1), {**net(rng=2).state_dict(), **change}
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state, strict)
    for name, array in model.state_dict().items():
        assert array.tobytes() == before[name].tobytes(), name


def test_a_read_only_array_changes_nothing() -> None:
    dense = cnnx.Dense(1, 2, rng=0)
    before = dense.params["weight"].copy()
    dense.params["bias"] = np.broadcast_to(np.float32(0), (2,))
    with pytest.raises(ValueError, match=r"'bias' cannot be filled: .* read-only"):
        dense.load_state_dict({"weight": np.ones((1, 2)), "bias": np.ones(2)})
    assert_array_equal(dense.params["weight"], before)


def test_missing_and_unexpected_names() -> None:
    model, state = net(rng=1), net(rng=2).state_dict()
    state["9.weight"] = state.pop("5.weight")
    state["2.more"] = state.pop("1.running_var")
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"5\.weight' is missing") as caught:
        model.load_state_dict(state)
    for fault in (
        "'1.running_var' is missing",
        "'9.weight' is unexpected",
        "'2.more' is unexpected",
    ):
        assert fault in str(caught.value)
    for name, array in model.state_dict().items():
        assert array.tobytes() == before[name].tobytes(), name
    model.load_state_dict(state, strict=False)
    for name, array in model.state_dict().items():
        expected = before[name] if name in ("5.weight", "1.running_var") else state[name]
        assert array.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("window", [{"pool_size": 2}, {"pool_size": 3, "stride": 2, "padding": 1}])
def test_relu_before_a_max_pool(
    backend: str, window: dict[str, int], separate: bool, rng: np.random.Generator
) -> None:
    # The gradient goes through the ReLU at the maxima: what it is layer by layer, to the last bit.
    relu = [cnnx.ReLU()] if separate else []
    conv = cnnx.Conv2D(2, 5, 3, activation=None if separate else "relu", rng=1)
    pool = cnnx.MaxPool2D(**window)
    model = cnnx.Sequential(conv, *relu, pool, cnnx.Conv2D(5, 3, 2, rng=2))
    x = rng.standard_normal((4, 2, 11, 11), np.float32)
    out = model(x)
    assert relu_of_maxima(model.layers, len(relu) + 1)
    grad_out = rng.standard_normal(out.shape, np.float32)
    grad_x, grads = model.backward(grad_out), {**model.grads}
    expected = grad_out
    for layer in reversed(model.layers):
        expected = layer.backward(expected)
    np.testing.assert_array_equal(grad_x, expected)
    for name, grad in model.grads.items():
        np.testing.assert_array_equal(grads[name], grad)


def test_relu_before_a_max_pool_only_where_nobody_can_tell(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 1, 6, 6))

    class Doubled(cnnx.Layer):
        """Changes its input, as the library's layers never do."""

        def forward(self, x: Any) -> Any:
            x *= -2
            return x

        def backward(self, grad_out: Any) -> Any:
            return grad_out * -2

    class Own(cnnx.Conv2D):
        pass

    def model(
        conv: Any = cnnx.Conv2D, activation: Any = "relu", after: Any = ()
    ) -> cnnx.Sequential:
        first = conv(1, 2, 3, padding=1, activation=activation, dtype="float64", rng=0)
        last = [cnnx.Flatten(), cnnx.Dense(18, 2, dtype="float64", rng=1)]
        return cnnx.Sequential(first, cnnx.MaxPool2D(2), *after, *last)

    nets = {
        "plain": model(),
        "subclass": model(conv=Own),
        "tanh": model(activation="tanh"),
        "in place": model(after=[Doubled()]),
        "override": model(),
        "other input": model(),
    }
    nets["override"][0].backward = lambda grad_out: "mine"
    for name, net in nets.items():
        net(x)
        if name == "other input":
            net[1](x.repeat(2, axis=1))
        assert relu_of_maxima(net.layers, 1) == (name == "plain"), name
    assert nets["override"].backward(np.ones((2, 2))) == "mine"
    assert cnnx.gradcheck(nets["plain"], x)
