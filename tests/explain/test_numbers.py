"""What explanations compute: hand-worked examples, numerical gradients, and the terms shown."""

import dataclasses
import math

import numpy as np
import pytest

import cnnx
from cnnx import explain

# The homework's image, and its gradient of the four windows.
IMAGE = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]
UPSTREAM = [[0.5, 1.2], [0.8, -0.3]]


def titled(explanation, title):
    (step,) = (step for step in explanation if step.title == title)
    return step


def rows(panel):
    return [list(row) for row in panel.values]


def sums_of(explanation, part):
    return {line.name: line for step in explanation if step.part == part for line in step.sums}


# ---- by hand


def test_max_pool_of_the_homework():
    e = explain.max_pool2d(IMAGE, 2, grad_out=UPSTREAM)
    assert e.forward.tolist() == [[4, 5], [3, 6]]
    assert e.backward["x"].tolist() == [
        [0, 0, 0, 0],
        [0.5, 0, 0, 1.2],
        [0.8, 0, 0, 0],
        [0, 0, 0, -0.3],
    ]
    assert e.agrees
    window = titled(e, "Window (0, 1) gives Z[0, 1]")
    assert [term.value for term in window.sums[0].terms] == [2, 1, 0, 5]
    x, mask, out = window.panels
    assert rows(mask) == [[0, 0], [0, 1]]
    assert set(x.groups) == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert x.strong == {(1, 3)}
    assert set(x.groups.values()) == set(mask.groups.values()) == set(out.groups.values())
    assert rows(out) == [[4, 5], [None, None]]  # the others are still empty


def test_gradient_has_its_windows_colour():
    e = explain.max_pool2d(IMAGE, 2, grad_out=UPSTREAM)
    for name in ("0, 0", "0, 1", "1, 0", "1, 1"):
        forward = titled(e, f"Window ({name}) gives Z[{name}]")
        backward = titled(e, f"∂L/∂Z[{name}] goes back")
        assert forward.panels[0].groups == backward.panels[-1].groups


def test_overlapping_windows_accumulate():
    e = explain.max_pool2d([[0, 1, 0], [0, 9, 0], [0, 1, 0]], 2, 1, grad_out=[[1, 2], [3, 4]])
    assert e.backward["x"].tolist() == [[0, 0, 0], [0, 10, 0], [0, 0, 0]]
    (row,) = (step for step in e if step.title == "The sums of row 1")
    assert [term.factors for term in row.sums[1].terms] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert "never assign" in titled(e, "∂L/∂Z[1, 1] goes back").text


def test_first_of_equal_maxima_wins_and_the_kink_is_named():
    e = explain.max_pool2d([[7, 7], [7, 7]], 2, grad_out=[[2]])
    assert e.backward["x"].tolist() == [[2, 0], [0, 0]]
    assert "first one" in titled(e, "Window (0, 0) gives Z[0, 0]").text
    check = titled(e, "∂L/∂Z^{l-1} beside the numerical gradient")
    assert "kink" in check.text
    assert e.agrees


def test_average_pool_with_padding():
    e = explain.avg_pool2d([[1, 2], [3, 4]], 2, 1, 1)
    assert e.forward.tolist() == [[0.25, 0.75, 0.5], [1, 2.5, 1.5], [0.75, 1.75, 1]]
    # 1 lies in the four windows at the upper left: (1 + 2 + 4 + 5) / 4
    assert e.backward["x"].tolist() == [[3, 4], [6, 7]]
    share = titled(e, "Window (0, 0) gives Z[0, 0]").panels[1]
    assert share.name == "1/area = 1/4"
    assert rows(share) == [[0.25, 0.25], [0.25, 0.25]]
    padded, cropped = titled(e, "Crop the padding").panels
    assert len(padded.faint) == 12
    assert rows(cropped) == [[3, 4], [6, 7]]


def test_convolution_by_hand():
    x, w = [[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 0], [0, -1]]
    e = explain.conv2d(x, w, bias=5, grad_out=[[1, 10], [100, 1000]])
    assert e.forward.tolist() == [[1, 1], [1, 1]]  # 1 - 5 + 5, ...
    assert e.backward["weight"].tolist() == [[5421, 6532], [8754, 9865]]
    assert e.backward["bias"].tolist() == [1111]
    assert e.backward["x"].tolist() == [[1, 10, 0], [100, 999, -10], [0, -100, -1000]]
    middle = sums_of(e, "∂L/∂Z^{l-1}")["∂L/∂Z^{l-1}[1, 1]"]
    assert sorted(term.factors for term in middle.terms) == [(-1, 1), (0, 10), (0, 100), (1, 1000)]
    first = sums_of(e, "∂L/∂W")["∂L/∂W[0, 0]"]
    assert [term.factors for term in first.terms] == [(1, 1), (2, 10), (4, 100), (5, 1000)]


def test_strided_padded_convolution_by_hand():
    # One weight, at the lower right of a 2x2 window: out[i, j] = x_pad[2i + 1, 2j + 1] = x[2i, 2j]
    e = explain.conv2d([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[0, 0], [0, 1]], stride=2, padding=1)
    assert e.forward.tolist() == [[1, 3], [7, 9]]
    assert e.backward["x"].tolist() == [[1, 0, 2], [0, 0, 0], [3, 0, 4]]
    assert e.agrees


def test_input_that_no_window_touches():
    e = explain.conv2d([[1, 2, 3]], [[1]], stride=2)
    assert e.backward["x"].tolist() == [[1, 0, 2]]
    assert "No window touched" in titled(e, "∂L/∂Z^{l-1}[0, 1]").text


def test_bias_gradient_sums_over_the_batch():
    e = explain.conv2d(np.ones((3, 1, 2, 2)), np.ones((2, 1, 1, 1)), [0, 0])
    # grad_out is 1 .. 24 in (3, 2, 2, 2): of filter 0 the numbers 1-4, 9-12, 17-20
    assert e.backward["bias"].tolist() == [126, 174]
    assert len(sums_of(e, "∂L/∂b")["∂L/∂b[0]"].terms) == 12


def test_dense_by_hand():
    e = explain.dense([[1, 2], [3, 4]], [[1, -1], [2, 0]], [10, 20], grad_out=[[1, 2], [3, 4]])
    assert e.forward.tolist() == [[15, 19], [21, 17]]
    assert e.backward["x"].tolist() == [[-1, 2], [-1, 6]]
    assert e.backward["weight"].tolist() == [[10, 14], [14, 20]]
    assert e.backward["bias"].tolist() == [4, 6]


@pytest.mark.parametrize(
    ("name", "out", "slope"),
    [
        ("relu", lambda z: max(z, 0), lambda z: float(z > 0)),
        ("sigmoid", lambda z: 1 / (1 + math.exp(-z)), lambda z: 0.25 / math.cosh(z / 2) ** 2),
        ("tanh", math.tanh, lambda z: 1 / math.cosh(z) ** 2),
    ],
)  # fmt: skip
def test_activations(name, out, slope):
    z, upstream = [-2.0, 0.5, 1.0], [3.0, -1.0, 2.0]
    e = explain.activation(name, z, upstream)
    # 1e-15: one rounding more or less in numbers of about 1
    np.testing.assert_allclose(e.forward, [out(v) for v in z], atol=1e-15)
    expected = [slope(v) * g for v, g in zip(z, upstream, strict=True)]
    np.testing.assert_allclose(e.backward["x"], expected, atol=1e-15)
    assert e.agrees


def test_relu_at_zero_is_a_kink_and_no_mistake():
    e = explain.activation("relu", [0.0, 1.0])
    assert e.backward["x"].tolist() == [0, 2]
    assert e.agrees
    assert "kink" in titled(e, "∂L/∂Z beside the numerical gradient").text


# ---- against numerical gradients, over a grid

GRID = [
    {"stride": s, "padding": p, "dilation": d, "activation": a}
    for s in (1, (2, 1))
    for p in (0, 1, "same", ((0, 1), (2, 0)))
    for d in (1, 2)
    for a in (None, "tanh")
]


@pytest.mark.parametrize("options", GRID, ids=str)
def test_convolution_against_central_differences(rng, options):
    x, w, b = rng.standard_normal((1, 2, 5, 5)), rng.standard_normal((2, 2, 2, 2)), np.ones(2)
    e = explain.conv2d(x, w, b, **options)
    assert e.agrees
    g = np.arange(1.0, 1.0 + e.forward.size).reshape(e.forward.shape)
    trials = {
        "x": (lambda v: cnnx.conv2d(v, w, b, **options), x),
        "weight": (lambda v: cnnx.conv2d(x, v, b, **options), w),
        "bias": (lambda v: cnnx.conv2d(x, w, v, **options), b),
    }
    for name, (f, at) in trials.items():
        # 1e-7 of the largest: h**2 and rounding over h leave some 1e-9
        expected = cnnx.numerical_gradient(f, at.copy(), g)
        scale = abs(expected).max()
        np.testing.assert_allclose(e.backward[name], expected, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("size", [2, 3, (2, 1)])
@pytest.mark.parametrize("stride", [None, 1, (1, 2)])
@pytest.mark.parametrize("padding", [0, "same", ((1, 0), (0, 0))])
def test_pools_against_central_differences(rng, pool, size, stride, padding):
    x = rng.standard_normal((2, 1, 4, 5))
    e = getattr(explain, pool)(x, size, stride, padding)
    assert e.agrees
    g = np.arange(1.0, 1.0 + e.forward.size).reshape(e.forward.shape)

    def run(v):
        return getattr(cnnx, pool)(v, size, stride, padding)

    np.testing.assert_allclose(e.forward, run(x), rtol=1e-13)  # the mean's order of adding
    # 1e-7 of gradients up to 100: rounding over h
    expected = cnnx.numerical_gradient(run, x.copy(), g)
    np.testing.assert_allclose(e.backward["x"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_a_kernel_that_errs_is_found_out(monkeypatch, name):
    from cnnx.explain import _pooling

    honest = getattr(_pooling.F, f"{name}_backward")
    monkeypatch.setattr(_pooling.F, f"{name}_backward", lambda *args: honest(*args) * 1.001)
    e = getattr(explain, name)(IMAGE)
    assert not e.agrees
    assert "NOT agree" in str(e)
    assert "DISAGREES" in repr(e)


# ---- layers and nets


def test_layers_bring_their_parameters(rng):
    x = rng.standard_normal((1, 1, 4, 4)).astype(np.float32)
    conv = cnnx.Conv2D(1, 2, 2, padding=1, activation="relu", rng=0)
    out = conv(x)
    e = explain.layer(conv, x, np.ones_like(out))
    conv.backward(np.ones_like(out))
    assert e.agrees
    # 1e-5: the layer computes in float32
    np.testing.assert_allclose(e.forward, out, atol=1e-5)
    np.testing.assert_allclose(e.backward["weight"], conv.grads["weight"], atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        cnnx.MaxPool2D(2),
        cnnx.AvgPool2D(2, 1),
        cnnx.AvgPool2D(2, 1, 1, count_include_pad=False),
        cnnx.MaxPool2D(2, 1, dilation=2),
        cnnx.Flatten(),
        cnnx.GELU(),
        cnnx.Tanh(),
        cnnx.Residual(cnnx.ReLU()),
        cnnx.Conv2D(1, 1, 3, padding=1, padding_mode="reflect", rng=0),
    ],
    ids=repr,
)
def test_every_layer_can_be_explained(rng, layer):
    x = rng.standard_normal((1, 1, 4, 4))
    e = explain.layer(layer, x)
    assert e.agrees
    np.testing.assert_allclose(e.forward, layer.forward(x.astype(np.float32)), atol=1e-5)  # float32


class Double:
    """The least that is a layer."""

    def forward(self, x):
        return 2 * x

    def backward(self, grad_out):
        return 2 * grad_out


def test_a_layer_of_ones_own():
    e = explain.layer(Double(), [[1.0, 2.0]])
    assert e.backward["x"].tolist() == [[2, 4]]
    assert explain.model(cnnx.Sequential(Double(), cnnx.Dense(2, 1, rng=0)), [[1.0, 2.0]]).agrees


class Scale(cnnx.Layer):
    """A layer with a parameter, whose gradient is `error` times what it should be."""

    def __init__(self, error):
        super().__init__()
        self.params["factor"] = np.full(1, 2.0)
        self.error = error

    def forward(self, x):
        self.x = x
        return self.params["factor"] * x

    def backward(self, grad_out):
        self.grads["factor"] = np.array([self.error * (grad_out * self.x).sum()])
        return self.params["factor"] * grad_out


@pytest.mark.parametrize(("error", "agrees"), [(1, True), (2, False)])
def test_a_wrong_layer_of_ones_own_is_found_out(error, agrees):
    assert explain.layer(Scale(error), [[1.0, 2.0]]).agrees == agrees
    net = cnnx.Sequential(Scale(error), cnnx.Dense(2, 1, rng=0))
    assert explain.model(net, [[1.0, 2.0]]).agrees == agrees


def small_net():
    return cnnx.Sequential(
        cnnx.Conv2D(1, 1, 2, activation="relu", rng=0),
        cnnx.MaxPool2D(2),
        cnnx.Flatten(),
        cnnx.Dense(4, 2, rng=1),
    )


@pytest.mark.parametrize(
    ("y", "loss"),
    [
        (None, None),
        ([1], None),
        ([[0.0, 1.0]], cnnx.MSELoss()),
        ([0], cnnx.SoftmaxCrossEntropy(0.1)),
    ],
)
def test_net_gives_the_gradients_of_backward(rng, y, loss):
    net = small_net().astype("float64")
    before = {name: array.tobytes() for name, array in net.state_dict().items()}
    x = rng.standard_normal((1, 1, 5, 5))
    e = explain.model(net, x, y, loss)
    assert e.agrees
    assert before == {name: array.tobytes() for name, array in net.state_dict().items()}
    out = net(x)
    if y is None:
        g = np.array([[1.0, 2.0]])
    else:
        loss = loss or cnnx.SoftmaxCrossEntropy()
        loss(out, np.asarray(y))
        g = loss.backward()
    grads = {"x": net.backward(g), **net.grads}
    assert set(grads) == set(e.backward)
    for name, grad in grads.items():
        np.testing.assert_allclose(e.backward[name], grad, rtol=1e-10, atol=1e-13, err_msg=name)


def test_net_goes_forward_and_then_back(rng):
    e = explain.model(small_net(), rng.standard_normal((1, 1, 5, 5)), [1])
    chapters = list(dict.fromkeys(step.part.partition(": ")[0] for step in e))
    assert chapters == [
        "the net",
        "layer 0, Conv2D",
        "layer 1, MaxPool2D",
        "layer 2, Flatten",
        "layer 3, Dense",
        "loss",
        "the chain",
        "check",
    ]
    parts = [step.part for step in e]
    assert parts.index("loss") < parts.index("layer 3, Dense: ∂L/∂W")
    assert parts.index("layer 3, Dense: ∂L/∂W") < parts.index("layer 0, Conv2D: ∂L/∂W")


# ---- the data


def test_steps_cannot_be_changed():
    e = explain.max_pool2d(IMAGE)
    step = e[0]
    for thing, name in ((e, "steps"), (step, "title"), (step.panels[0], "values")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)
    with pytest.raises(TypeError):
        e.backward["x"] = None
    hash(step)  # tuples and frozensets all the way down


def test_inputs_are_not_changed():
    x, w = np.array(IMAGE, float), np.ones((2, 2))
    explain.conv2d(x, w, padding=1)
    explain.max_pool2d(x)
    assert x.tolist() == IMAGE
    assert w.tolist() == [[1, 1], [1, 1]]


def test_steps_of_a_batch_have_titles_of_their_own(rng):
    for e in (
        explain.max_pool2d(rng.standard_normal((2, 2, 2, 4))),
        explain.conv2d(
            rng.standard_normal((2, 1, 3, 3)), rng.standard_normal((2, 1, 2, 2)), [1, 2]
        ),
        explain.linear(rng.standard_normal((2, 3)), rng.standard_normal((3, 2)), [0, 1]),
    ):
        titles = [step.title for step in e if step.sums]
        # Forward, each window names its place and its output; the rest is told apart by its name.
        assert len(set(titles)) == len(titles)


def test_slices_and_highlights():
    e = explain.conv2d(IMAGE, [[1, 0], [0, 1]])
    assert e[2:4].steps == e.steps[2:4]
    assert 0 < len(e.highlights) < len(e)
    assert set(e.highlights) <= set(e)


# ---- errors


TWOS, X5 = np.ones((2, 2)), np.ones((1, 1, 5, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explain.max_pool2d(np.ones((1, 1, 28, 28))), r"x has .*28\), 784 .* at most 144 "),
        (lambda: explain.max_pool2d(np.ones((1, 1, 28, 28))), r"such as x\[:1, :1, :6, :6\]"),
        (lambda: explain.conv2d(IMAGE, np.ones((13, 13))), "weight has shape"),
        (lambda: explain.conv2d(IMAGE, TWOS, padding=9), "the padded x"),
        (lambda: explain.conv2d(IMAGE, TWOS, [1, 2]), "bias has shape"),
        (lambda: explain.conv2d(IMAGE, TWOS, activation="gelu"), "activation is 'gelu'"),
        (lambda: explain.conv2d(IMAGE, np.ones((5, 5))), "the output has no pixel"),
        (lambda: explain.max_pool2d([1, 2, 3]), r"x has shape \(3,\), expected \(H, W\)"),
        (lambda: explain.max_pool2d(np.ones((2, 30))), "expected at most 20 rows and columns"),
        (lambda: explain.max_pool2d(IMAGE, padding=2), "padding is 2"),
        (lambda: explain.max_pool2d(IMAGE, grad_out=[[1.0]]), "grad_out has shape"),
        (lambda: explain.max_pool2d([[1, np.nan]]), "x has a NaN"),
        (lambda: explain.max_pool2d(np.ones((0, 4))), "at least one number"),
        (lambda: explain.linear([[1, 2]], [[1.0]]), "weight has shape"),
        (lambda: explain.activation("gelu", [1.0]), "name is 'gelu'"),
        (lambda: explain.model(small_net(), X5, None, cnnx.MSELoss()), "y is None"),
        (lambda: explain.model(small_net(), X5[..., :3, :3]), "in layer 3, Dense: "),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explain.max_pool2d([["a"]]), "x has dtype"),
        (lambda: explain.layer(3, [1.0]), "layer is a int"),
        (lambda: explain.model(cnnx.ReLU, [1.0]), "model is a"),
    ],
)
def test_things_of_another_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_import_is_lazy():
    import subprocess
    import sys

    code = (
        "import sys, cnnx; assert 'cnnx.explain' not in sys.modules; cnnx.explain.max_pool2d;"
        "assert not {'matplotlib', 'rich'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
