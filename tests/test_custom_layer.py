"""The protocol of `Layer`'s documentation: a layer of one's own works wherever a layer does."""

import copy

import numpy as np
import pytest

import cnnx


class Square(cnnx.Layer):
    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, grad_out):
        return 2 * self.x * grad_out


class Scale(cnnx.Layer):
    def __init__(self, features, start=1.0):
        self.params["factor"] = np.full(features, start, np.float32)

    def forward(self, x):
        self.x = x
        return x * self.params["factor"]

    def backward(self, grad_out):
        self.grads["factor"] = (grad_out * self.x).sum(axis=0)
        return grad_out * self.params["factor"]


def net(seed=0):
    return cnnx.Sequential(
        cnnx.Conv2D(1, 2, 3, rng=seed),
        Square(),
        cnnx.Flatten(),
        Scale(8),
        cnnx.Dense(8, 3, rng=seed + 1),
    )


@pytest.fixture
def images(rng):
    return rng.standard_normal((30, 1, 4, 4)).astype(np.float32)


@pytest.fixture
def labels(images):
    """Learnable: which of three pixels is the brightest."""
    return images[:, 0, 1, :3].argmax(axis=1)


@pytest.mark.parametrize("layer", [Square(), Scale(4), Scale(4, 2.5)])
def test_alone(layer, rng):
    x = rng.standard_normal((3, 4))
    report = cnnx.gradcheck(layer, x)
    assert report, str(report)
    assert {entry.name for entry in report.entries} == {"x", *layer.params}
    assert np.array_equal(layer(x), layer.forward(x))


def test_in_a_net(images):
    model = net()
    report = cnnx.gradcheck(model, images[:2])
    assert report, str(report)
    assert "3.factor" in {entry.name for entry in report.entries}
    assert "1: Square()" in repr(model)
    out = model(images)
    assert model.backward(np.ones_like(out)).shape == images.shape
    assert out.dtype == np.float32
    assert list(model.grads) == ["0.weight", "0.bias", "3.factor", "4.weight", "4.bias"]


@pytest.mark.parametrize("optimizer", [cnnx.SGD(0.02, momentum=0.9), cnnx.Adam(0.01)])
def test_fit_trains_its_parameters(images, labels, optimizer):
    model = net()
    history = cnnx.fit(
        model, images, labels, epochs=40, batch_size=10, optimizer=optimizer, progress=False
    )
    # 40 epochs of 30 images are more than 40 numbers need to learn most of them by heart.
    assert history.loss[-1] < 0.7 * history.loss[0]
    assert not np.any(model.params["3.factor"] == 1)


@pytest.mark.parametrize("name", ["net.npz", "net.safetensors"])
def test_save_and_load(images, labels, tmp_path, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    model, other = net(), net(seed=7)
    cnnx.fit(model, images, labels, epochs=2, progress=False)
    cnnx.save(model, tmp_path / name)
    cnnx.load(tmp_path / name, other)
    assert np.array_equal(other(images), model(images))
    assert "3.factor" in other.state_dict()


def test_modes_and_dtypes(images):
    model = net()
    before = model(images)
    assert np.allclose(model.freeze()(images), before, rtol=1e-5)  # another order of the same sums
    assert model.astype("float64").layers[3].params["factor"].dtype == np.float64
    assert model.unfreeze()(images.astype(np.float64)).dtype == np.float64
    assert copy.deepcopy(model).layers[3].params["factor"] is not model.layers[3].params["factor"]


def test_explain(images):
    if not hasattr(cnnx, "explain"):
        pytest.skip("there is no explain here")
    x = np.array([[1.0, -2.0]])
    assert np.array_equal(cnnx.explain.layer(Square(), x, np.ones((1, 2))).backward["x"], 2 * x)
    told = cnnx.explain.layer(Scale(2), x, np.ones((1, 2)))
    assert np.array_equal(told.backward["factor"], x[0])


# ---- mistakes


def test_a_wrong_backward_is_caught(rng):
    class Wrong(Square):
        def backward(self, grad_out):
            return self.x * grad_out

    assert not cnnx.gradcheck(Wrong(), rng.standard_normal((2, 3)))


def test_a_change_in_place_is_caught(rng):
    """The documentation's warning: a neighbour writes into what the layer has kept."""

    class InPlace(cnnx.Layer):
        def forward(self, x):
            np.maximum(x, 0, out=x)
            return x

        def backward(self, grad_out):
            return grad_out

    class Kept(Square):
        def forward(self, x):
            self.out = super().forward(x) - 1
            return self.out

        def backward(self, grad_out):
            return 2 * np.sqrt(self.out + 1) * np.sign(self.x) * grad_out

    x = rng.standard_normal((2, 3))
    assert cnnx.gradcheck(Kept(), x)
    assert not cnnx.gradcheck(cnnx.Sequential(Kept(), InPlace()), x)


def test_arguments_that_are_arrays_are_shown(rng):
    class Plain(Square):
        def __init__(self, table=None):
            self.table = np.arange(3) if table is None else table

    assert repr(Plain()) == "Plain(table=array([0, 1, 2]))"


def test_two_layers_share_no_dict():
    one, two = Scale(2), Square()
    assert "factor" not in two.params
    assert one.params is one.params
    assert one.grads is not two.grads


def test_a_layer_without_backward_cannot_be_made():
    class Half(cnnx.Layer):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="backward"):
        Half()
