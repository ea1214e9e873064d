"""Models from files: known nets against their stored outputs and against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import cnnx  # noqa: E402
from tests.onnx_models import LIGHT, onnxruntime_of, with_weights  # noqa: E402

# A sum of K products in float32 is off by about sqrt(K) * 6e-8 of its size; through the 121 layers
# of a DenseNet both libraries stay within this of one another, relative to the largest output.
CLOSE = 1e-4

NETS = sorted(path.stem for path in LIGHT.glob("*.onnx"))


def ramp(shape: tuple[int, ...]) -> np.ndarray:
    """The input for which the onnx package keeps the outputs."""
    n = int(np.prod(shape))
    return (np.arange(n) / n).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("name", NETS)
def test_a_known_net_gives_its_stored_output(name):
    tensor = onnx.TensorProto()
    tensor.ParseFromString((LIGHT / f"{name}_output_0.pb").read_bytes())
    graph = cnnx.onnx.load(LIGHT / f"{name}.onnx")
    x = ramp((1, 3, 224, 224))
    want = onnx.numpy_helper.to_array(tensor)
    np.testing.assert_allclose(graph(x), want, rtol=1e-3, atol=1e-7)  # the package's own rtol
    np.testing.assert_allclose(graph.freeze()(x), want, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "name", [name for name in NETS if not name.endswith(("vgg19", "alexnet", "zfnet512"))]
)
def test_a_known_net_with_random_weights_agrees_with_onnxruntime(name):
    pytest.importorskip("onnxruntime")
    data = with_weights(LIGHT / f"{name}.onnx")
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    want = onnxruntime_of(data, x)
    graph = cnnx.onnx.load(data)
    assert np.ptp(want) > 1e-3  # else the comparison would say nothing
    assert np.abs(graph(x) - want).max() <= CLOSE * np.abs(want).max()
    assert np.abs(graph.freeze()(x) - want).max() <= CLOSE * np.abs(want).max()
