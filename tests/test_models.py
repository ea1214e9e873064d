"""The ready nets: shapes, the papers' sizes, reproducible weights, and right gradients."""

from pathlib import Path

import numpy as np
import pytest

import cnnx
from cnnx.data import digits
from cnnx.models import MODELS, classroom, lenet5, resnet20
from cnnx.training import evaluate

TRAINED = Path(__file__).parents[1] / "examples" / "lenet5.npz"
every_model = pytest.mark.parametrize("name", sorted(MODELS))


@every_model
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (2, 13, 17), (1, 12, 11)])
def test_shapes_forward_and_backward(name, input_shape):
    net = MODELS[name](input_shape, 7, rng=0)
    x = np.random.default_rng(1).standard_normal((2, *input_shape)).astype(np.float32)
    out = net(x)
    assert out.shape == (2, 7)
    assert out.dtype == np.float32
    assert net.backward(np.ones_like(out)).shape == x.shape
    assert {k: v.shape for k, v in net.grads.items()} == {k: v.shape for k, v in net.params.items()}


def test_classroom_is_the_net_of_the_course():
    net = classroom((1, 8, 8), 10)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Conv2D", "ReLU", "MaxPool2D", "Flatten", "Dense", "Dense"]
    # by hand: 32 filters 3x3 with bias; 32*4*4 -> 128; 128 -> 10
    expected = (32 * 9 + 32) + (512 * 128 + 128) + (128 * 10 + 10)
    assert sum(p.size for p in net.params.values()) == expected


def test_lenet5_has_the_size_of_the_paper():
    # C1 156, F6 10164 parameters are the paper's; C3 fully connected is 6*16*25 + 16, C5 48120
    net = lenet5((1, 28, 28), 10)
    sizes = [p.size for p in net.params.values()]
    per_layer = [sizes[i] + sizes[i + 1] for i in range(0, len(sizes), 2)]
    assert per_layer == [156, 2416, 48120, 10164, 850]


def test_resnet20_has_twenty_layers_and_the_papers_size():
    net = resnet20((3, 32, 32), 10)
    weights = [p for name, p in net.params.items() if p.ndim > 1 and "shortcut" not in name]
    assert len(weights) == 20
    # 0.27 million in the paper's table 6
    assert round(sum(p.size for p in net.params.values()) / 1e6, 2) == 0.27


@every_model
def test_weights_follow_the_seed(name):
    first, same, other = (MODELS[name]((1, 8, 8), 10, rng=seed).params for seed in (5, 5, 6))
    for key in first:
        np.testing.assert_array_equal(first[key], same[key])
    assert any(not np.array_equal(first[key], other[key]) for key in first)


def test_layers_of_one_net_differ():
    """One generator runs through the net: equal shapes must not get equal weights."""
    params = resnet20((1, 8, 8), rng=0).params
    square = [p for p in params.values() if p.shape == (16, 16, 3, 3)]
    assert len(square) == 6
    assert len({p.tobytes() for p in square}) == 6


@every_model
def test_gradients(name):
    net = MODELS[name]((1, 8, 8), 3, dtype="float64", rng=0)
    x = np.random.default_rng(2).standard_normal((2, 1, 8, 8))
    net(x)  # running statistics that are not the initial ones
    cnnx.gradcheck(net.eval(), x, raise_on_failure=True)


@every_model
def test_dtype(name):
    net = MODELS[name]((1, 8, 8), 3, dtype="float64")
    assert {p.dtype for p in net.params.values()} == {np.dtype(np.float64)}
    assert net(np.zeros((1, 1, 8, 8))).dtype == np.float64


@pytest.mark.skipif(not TRAINED.exists(), reason="examples are not here")
def test_trained_lenet5_reads_digits_that_it_has_never_seen():
    """Others than MNIST's: those of the package, drawn from 8x8 to 20x20 as MNIST's are."""
    assert TRAINED.stat().st_size < 300_000
    net = cnnx.load(TRAINED, lenet5((1, 28, 28)))
    assert all(np.isfinite(p).all() for p in net.params.values())
    data = digits()
    places = np.linspace(0, 7, 20)
    images = np.zeros((len(data.x_test), 1, 28, 28), np.float32)
    for image, small in zip(images[:, 0], data.x_test[:, 0], strict=True):
        rows = np.array([np.interp(places, np.arange(8), column) for column in small.T]).T
        image[4:24, 4:24] = [np.interp(places, np.arange(8), row) for row in rows]
    # 303 of 359 are right, and 63 with the best of ten untrained nets.
    assert evaluate(net, images, data.y_test)[1] > 0.8
    _, sideways = evaluate(net, np.ascontiguousarray(images.swapaxes(2, 3)), data.y_test)
    assert sideways < 0.3


@pytest.mark.parametrize(
    ("name", "input_shape", "message"),
    [
        ("classroom", (8, 8), r"input_shape is \(8, 8\), expected \(channels, height, width\)"),
        ("classroom", (1, 1, 8), r"\(1, 1, 8\), .* at least 2"),
        ("lenet5", (1, 28, 3), r"\(1, 28, 3\), .* at least 4"),
        ("resnet20", (0, 8, 8), r"input_shape\[0\] is 0, .* from 1"),
    ],
)
def test_wrong_input_shape(name, input_shape, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](input_shape, 10)
