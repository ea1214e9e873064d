"""Files of layers: checked by the onnx package, run by ONNX Runtime, read back."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import cnnx  # noqa: E402
from cnnx import models  # noqa: E402
from tests.onnx_models import onnxruntime_of  # noqa: E402


def conv(*args, **options):
    return cnnx.Conv2D(3, 4, *args, rng=0, **options)


LAYERS = {
    "conv": conv(3),
    "conv same": conv((2, 3), stride=2, padding="same", activation="sigmoid"),
    "conv one-sided": conv(3, padding=((2, 0), (1, 3)), dilation=(1, 2), bias=False),
    "conv groups": cnnx.Conv2D(3, 6, 3, groups=3, activation="tanh", rng=0),
    "conv reflect": conv(3, padding=(1, 2), padding_mode="reflect", activation="relu"),
    "conv replicate": conv(3, padding=1, padding_mode="replicate"),
    "conv transpose": cnnx.ConvTranspose2D(3, 4, 3, stride=2, padding=1, output_padding=1, rng=0),
    "max pool": cnnx.MaxPool2D(3, 2, padding=1, dilation=2),
    "max pool ceil": cnnx.MaxPool2D(2, 3, ceil_mode=True),
    "average pool": cnnx.AvgPool2D((3, 2), 2, padding=(1, 0)),
    "average pool ceil": cnnx.AvgPool2D(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    "global average pool": cnnx.GlobalAvgPool2D(),
    "batch norm": cnnx.BatchNorm2D(3, eps=0.1, activation="relu6"),
    "batch norm without affine": cnnx.BatchNorm2D(3, affine=False),
    "flatten, dense": cnnx.Sequential(cnnx.Flatten(), cnnx.Dense(3 * 9 * 10, 5, rng=0)),
    "dropout": cnnx.Sequential(cnnx.Dropout(0.5), cnnx.ReLU()),
    "softmax": cnnx.Softmax(axis=1),
    "leaky relu": cnnx.LeakyReLU(0.2),
    "relu6": cnnx.ReLU6(),
    "gelu": cnnx.GELU(),
    "silu": cnnx.SiLU(),
    "sigmoid": cnnx.Sigmoid(),
    "tanh": cnnx.Tanh(),
    "residual": cnnx.Residual(conv(3, padding=1), conv(1), activation="relu"),
    "residual without shortcut": cnnx.Residual(cnnx.Sequential(cnnx.Tanh(), cnnx.ReLU())),
    "nothing": cnnx.Sequential(),
}
SHAPE = (3, 9, 10)


def images(n: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((n, *shape), np.float32)


def stirred(model: cnnx.Layer) -> cnnx.Layer:
    """The model with statistics, biases and scales other than the 0 and 1 they begin with."""
    rng = np.random.default_rng(4)
    for arrays in (model.params, model.buffers):
        for name, array in arrays.items():
            if not name.endswith("weight") or array.ndim == 1:
                array[...] = rng.uniform(0.5, 1.5, array.shape)
    return model


# Float rounding: sums of at most a few hundred products of numbers about 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_s_file_computes_the_same(name, tmp_path):
    model, path = stirred(LAYERS[name]).eval(), tmp_path / "net.onnx"
    cnnx.onnx.save(model, path, SHAPE)
    # The checker's shapes leave out the rule that a last window must begin inside the image, which
    # ONNX Runtime has as well.
    onnx.checker.check_model(onnx.load(path), full_check="ceil" not in name)
    for n in (1, 3):  # the batch is free
        x = images(n)
        want = model(x)
        np.testing.assert_allclose(cnnx.onnx.load(path)(x), want, **CLOSE)
        np.testing.assert_allclose(cnnx.onnx.load(path).freeze()(x), want, **CLOSE)
        pytest.importorskip("onnxruntime")
        np.testing.assert_allclose(onnxruntime_of(path.read_bytes(), x), want, **CLOSE)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.classroom((1, 12, 12), rng=0), (1, 12, 12)),
        (models.lenet5((1, 28, 28), rng=0), (1, 28, 28)),
        (models.resnet20((3, 32, 32), rng=0), (3, 32, 32)),
    ],
    ids=["classroom", "lenet5", "resnet20"],
)
def test_a_net_s_file_computes_the_same(model, shape, tmp_path):
    path, x = tmp_path / "net.onnx", images(2, shape)
    stirred(model)
    cnnx.onnx.save(model.train(), path, shape)
    assert model.training
    want = model.eval()(x)
    close = 1e-5 * np.abs(want).max()  # up to 20 layers, one after the other
    assert np.abs(cnnx.onnx.load(path).freeze()(x) - want).max() <= close
    cnnx.onnx.save(model.freeze(), path, shape)
    assert model.frozen
    pytest.importorskip("onnxruntime")
    assert np.abs(onnxruntime_of(path.read_bytes(), x) - want).max() <= close


def test_the_state_s_names_are_the_file_s(tmp_path):
    model = models.resnet20((3, 32, 32), rng=0)
    cnnx.onnx.save(model, tmp_path / "net.onnx", (3, 32, 32))
    graph = cnnx.onnx.load(tmp_path / "net.onnx")
    state = model.state_dict()
    assert graph.state_dict().keys() == state.keys()
    for name, array in graph.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_float64(tmp_path):
    model, path = conv(3, dtype="float64", activation="relu"), tmp_path / "net.onnx"
    cnnx.onnx.save(model, path, SHAPE)
    x = images(2).astype(np.float64)
    np.testing.assert_allclose(cnnx.onnx.load(path)(x), model(x), rtol=1e-12, atol=1e-12)


class Own(cnnx.ReLU):
    pass


@pytest.mark.parametrize(
    ("model", "shape", "error", "words"),
    [
        (cnnx.Sequential(cnnx.ReLU(), Own()), SHAPE, TypeError, r"layer '1'.*expected a layer of"),
        (Own(), SHAPE, TypeError, "the model is.*expected a layer of cnnx"),
        ("net", SHAPE, TypeError, "the model is 'net'"),
        (conv(3), (4, 9, 9), ValueError, "4"),
        (conv(3), (3, 1, 1), ValueError, "(?i)size|pixel|output"),
        (conv(3), 7, TypeError, "input_shape is 7"),
        (conv(3), (3, 0, 4), ValueError, r"input_shape\[1\]"),
        (conv(3, padding=1, padding_mode="circular"), SHAPE, TypeError, "circular"),
    ],
)
def test_what_cannot_be_saved_is_an_error_and_no_file(model, shape, error, words, tmp_path):
    with pytest.raises(error, match=words):
        cnnx.onnx.save(model, tmp_path / "net.onnx", shape)
    assert not list(tmp_path.iterdir())
