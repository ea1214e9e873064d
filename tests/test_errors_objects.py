"""Wrong calls of layers, losses, optimizers, training and files: refused at once, in clear words.

Of functions, test_errors does the same. Each row is a call and the strings that its error must
hold: the argument's name, what came, what was expected. What can never work must not wait for the
first forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from texts import assert_says, refuses

import cnnx
from cnnx import cli, models
from cnnx.data import load, read_idx
from cnnx.training import evaluate, predict

Row = tuple[Callable[[], Any], str]  # the parts are separated by bars

X, Y = np.zeros((4, 1, 8, 8), np.float32), np.array([0, 1, 0, 1])
SGD = cnnx.SGD(0.1)
RNG = "expected None, an integer from 0 or a numpy.random.Generator"
NUMBER, INTEGER, FLAG = "expected a number", "expected an integer", "expected True or False"
FILE = "expected a file name: a str or an os.PathLike"


def net() -> cnnx.Sequential:
    return cnnx.Sequential(cnnx.Flatten(), cnnx.Dense(64, 2, rng=0))


def fit(**options: Any) -> Any:
    return cnnx.fit(net(), X, Y, progress=False, **options)


# These calls are wrong on purpose, and the type checker would say so of most.
new: Any = cnnx

LAYER_TYPES: list[Row] = [
    (lambda: new.Dropout("a"), f"p|'a'|str|{NUMBER}"),
    (lambda: new.Dropout(None), f"p|None|{NUMBER}"),
    (lambda: new.Dropout(True), f"p|True|{NUMBER}"),
    (lambda: new.Dropout(rng="a"), f"rng|'a'|{RNG}"),
    (lambda: new.Dropout(rng=1.5), f"rng|1.5|{RNG}"),
    (lambda: new.Conv2D(1, 1, 3, rng="a"), f"rng|'a'|{RNG}"),
    (lambda: new.Dense(1, 1, rng=True), f"rng|True|{RNG}"),
    (lambda: new.ConvTranspose2D(1, 1, 3, rng=[1.5]), f"rng|[1.5]|{RNG}"),
    (lambda: new.Softmax(1.5), f"axis|1.5|{INTEGER}"),
    (lambda: new.Softmax("last"), f"axis|'last'|{INTEGER}"),
    (lambda: new.BatchNorm2D(2, momentum=None), f"momentum|None|{NUMBER}"),
    (lambda: new.LeakyReLU("0.1"), f"slope|'0.1'|{NUMBER}"),
    # The slip of who knows another library: activation is not the third argument.
    (lambda: new.Dense(10, 5, "relu"), f"bias|'relu'|{FLAG}"),
    (lambda: new.Conv2D(3, 8, 3, bias="same"), f"bias|'same'|{FLAG}"),
    (lambda: new.ConvTranspose2D(3, 8, 3, bias=None), f"bias|None|{FLAG}"),
    (lambda: new.BatchNorm2D(3, affine=0.5), f"affine|0.5|{FLAG}"),
    (lambda: new.MaxPool2D(2, ceil_mode="no"), f"ceil_mode|'no'|{FLAG}"),
    (lambda: new.AvgPool2D(2, ceil_mode=2), f"ceil_mode|2|{FLAG}"),
    (lambda: new.AvgPool2D(2, count_include_pad=[]), f"count_include_pad|[]|{FLAG}"),
    (lambda: new.Sequential(3), "layer 0|3|int|expected an object with forward and backward"),
    (lambda: net().load_state_dict(3), "state|3|int|expected a mapping"),  # type: ignore[arg-type]
    (lambda: new.SoftmaxCrossEntropy("a"), f"label_smoothing|'a'|{NUMBER}"),
    (lambda: models.classroom(8), "input_shape|8|int|(channels, height, width)"),  # type: ignore[arg-type]
    (lambda: models.resnet20("abc"), "input_shape|'abc'|str|(channels, height, width)"),
    (lambda: models.lenet5((1, 8, 8.5)), f"input_shape[2]|8.5|{INTEGER}"),  # type: ignore[arg-type]
    (lambda: models.classroom((1, 8, 8), filters="a"), f"filters|'a'|{INTEGER}"),  # type: ignore[arg-type]
    (lambda: models.classroom((1, 8, 8), rng="a"), f"rng|'a'|{RNG}"),  # type: ignore[arg-type]
]
LAYER_VALUES: list[Row] = [
    (lambda: new.Conv2D(1, 1, 3, rng=-1), f"rng|-1|{RNG}"),
    (lambda: new.Dropout(-0.1), "p|-0.1|from 0 to below 1"),
    (lambda: new.BatchNorm2D(2, momentum=2), "momentum|2|from 0 to 1"),
    (lambda: new.MaxPool2D(2, padding=5), "padding|5|top|less than|1*(2 - 1) + 1 = 2"),
    (lambda: new.MaxPool2D((2, 3), padding=(1, 3)), "padding|3|left|width|1*(3 - 1) + 1 = 3"),
    (lambda: new.MaxPool2D(2, padding=3, dilation=2), "padding|3|2*(2 - 1) + 1 = 3"),
    (lambda: new.AvgPool2D(2, padding=((0, 2), (0, 0))), "padding|2|bottom|height|= 2"),
    (lambda: new.ConvTranspose2D(1, 1, 3, padding="same"), "padding|'same'|expected integers"),
    (lambda: new.ConvTranspose2D(1, 1, 3, output_padding=2), "output_padding|2|stride 1"),
    (
        lambda: new.ConvTranspose2D(1, 1, 3, stride=(3, 1), output_padding=(2, 1)),
        "output_padding|1|width|stride 1|dilation 1",
    ),
    (lambda: new.SoftmaxCrossEntropy(-0.5), "label_smoothing|-0.5|from 0 to 1"),
    (lambda: models.classroom((1, 8, 8), classes=0), "classes|0|from 1"),
    (lambda: models.classroom((1, 8, 8), hidden=-1), "hidden|-1|from 1"),
]

OPTIMIZER = "expected an object with step(layer), such as cnnx.Adam()"
LOSS = "expected an object with forward(pred, target) and backward(), such as cnnx.MSELoss()"
OPTIM_TYPES: list[Row] = [
    (lambda: new.SGD("a"), f"lr|'a'|str|{NUMBER}"),
    (lambda: new.SGD(True), f"lr|True|{NUMBER}"),
    (lambda: new.SGD(0.1, momentum=None), f"momentum|None|{NUMBER}"),
    (lambda: new.SGD(0.1, momentum=0.9, nesterov="no"), f"nesterov|'no'|{FLAG}"),
    (lambda: new.Adam(lr=None), f"lr|None|{NUMBER}"),
    (lambda: new.Adam(betas=0.9), "betas|0.9|expected a pair of numbers"),
    (lambda: new.Adam(betas=(0.9,)), "betas|(0.9,)|expected a pair of numbers"),
    (lambda: new.Adam(betas=(0.9, "a")), f"betas[1]|'a'|{NUMBER}"),
    (lambda: new.AdamW(eps=[1]), f"eps|[1]|{NUMBER}"),
    (lambda: new.StepLR(None, 1), f"optimizer|None|{OPTIMIZER}"),
    (lambda: new.StepLR(cnnx.SGD, 1), f"optimizer|the class SGD|{OPTIMIZER}"),
    (lambda: new.StepLR(SGD, 1.5), f"step_size|1.5|{INTEGER}"),
    (lambda: new.StepLR(SGD, 1, "a"), f"gamma|'a'|{NUMBER}"),
    (lambda: new.CosineLR(SGD, "a"), f"total_steps|'a'|{INTEGER}"),
    (lambda: new.CosineLR(SGD, 10, warmup=None), f"warmup|None|{INTEGER}"),
    (lambda: new.CosineLR(SGD, 10, min_lr="a"), f"min_lr|'a'|{NUMBER}"),
    (lambda: SGD.step(3), "layer|3|int|expected an object with params and grads"),
    (lambda: new.SGD(1).load_state_dict(3), "state|3|an optimizer's state_dict()"),
    (lambda: new.SGD(1).load_state_dict({"steps": "a", "lr": 1, "memory": {}}), "state['steps']"),
    (lambda: new.SGD(1).load_state_dict({"steps": 1, "lr": None, "memory": {}}), "state['lr']"),
    (lambda: new.SGD(1).load_state_dict({"steps": 1, "lr": 1, "memory": 3}), "state['memory']|3"),
    (
        lambda: new.SGD(1, 0.9).load_state_dict(
            {"steps": 1, "lr": 1, "memory": {"w": {"momentum": np.array(["a"])}}}
        ),
        "state['memory']['w']['momentum']|float32 or float64",
    ),
    (lambda: new.StepLR(SGD, 1).load_state_dict(None), "state|None|a schedule's state_dict()"),
    (lambda: new.StepLR(SGD, 1).load_state_dict({"steps": None, "base_lr": 1}), "state['steps']"),
]

TRAINING_TYPES: list[Row] = [
    (lambda: fit(optimizer="adam"), f"optimizer|'adam'|{OPTIMIZER}"),
    (lambda: fit(optimizer=cnnx.SGD), f"optimizer|the class SGD|{OPTIMIZER}"),
    (lambda: fit(optimizer=cnnx.StepLR(SGD, 1)), f"optimizer|StepLR|{OPTIMIZER}"),
    (lambda: fit(loss="mse"), f"loss|'mse'|{LOSS}"),
    (lambda: fit(loss=cnnx.MSELoss), f"loss|the class MSELoss|{LOSS}"),
    (lambda: fit(schedule="cosine"), "schedule|'cosine'|expected an object with step()"),
    (lambda: fit(schedule=SGD), "schedule|SGD|expected an object with step()"),
    (lambda: fit(validation=X), "validation|ndarray|expected a pair of arrays"),
    (lambda: fit(validation=(X,)), "validation|tuple|expected a pair of arrays"),
    (lambda: fit(validation=5), "validation|5|expected a pair of arrays"),
    (lambda: fit(validation=(X, [1])), "validation[1]|[1]|expected an array of shape (N, ...)"),
    (lambda: fit(batch_size=True), f"batch_size|True|{INTEGER}"),
    (lambda: fit(epochs=2.0), f"epochs|2.0|{INTEGER}"),
    (lambda: fit(seed=None), f"seed|None|{INTEGER}"),
    (lambda: fit(shuffle="no"), f"shuffle|'no'|{FLAG}"),
    (lambda: fit(resume="yes"), f"resume|'yes'|{FLAG}"),
    (lambda: fit(callback=3), "callback|3|expected a function"),
    (lambda: fit(checkpoint=3), f"checkpoint|3|{FILE}"),
    (lambda: cnnx.fit("net", X, Y), "model|'net'|expected an object with forward(x)"),
    (lambda: cnnx.fit(cnnx.Dense, X, Y), "model|the class Dense|expected an object"),
    (lambda: cnnx.fit(net(), X, Y, progress="no"), f"progress|'no'|{FLAG}"),  # type: ignore[arg-type]
    (lambda: predict("net", X), "model|'net'|expected an object with forward(x)"),
    (lambda: predict(net(), [1]), "x|[1]|expected an array of shape (N, ...)"),  # type: ignore[arg-type]
    (lambda: predict(net(), X, batch_size=True), f"batch_size|True|{INTEGER}"),
    (
        lambda: evaluate(net(), X, Y, loss="mse"),  # type: ignore[arg-type]
        "loss|'mse'|expected an object with forward(pred, target)",
    ),
]

FILE_TYPES: list[Row] = [
    (lambda: new.save(net(), 3), f"path|3|int|{FILE}"),
    (lambda: new.save(net(), None), f"path|None|{FILE}"),
    (lambda: new.save("model.npz", net()), f"path|Sequential|{FILE}"),  # the wrong way round
    (lambda: new.load(net(), "model.npz"), f"path|Sequential|{FILE}"),
    (lambda: new.save(cnnx.Sequential, "model.npz"), "model|the class Sequential|expected a layer"),
    (lambda: new.load("model.npz", "net"), "model|'net'|expected a layer"),
    (lambda: new.load("model.npz", net(), strict="no"), f"strict|'no'|{FLAG}"),
    (lambda: load(3), f"path|3|{FILE}"),  # type: ignore[arg-type]
    (lambda: read_idx(None), f"path|None|{FILE}"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("row", LAYER_TYPES + OPTIM_TYPES + TRAINING_TYPES + FILE_TYPES)
def test_type_error(row: Row) -> None:
    refuses(TypeError, row[0], *row[1].split("|"))


@pytest.mark.parametrize("row", LAYER_VALUES)
def test_value_error(row: Row) -> None:
    refuses(ValueError, row[0], *row[1].split("|"))


def test_what_is_refused_has_trained_nothing() -> None:
    model = net()
    before = model.state_dict()
    with pytest.raises(TypeError):
        cnnx.fit(model, X, Y, optimizer="adam", progress=False)  # type: ignore[arg-type]
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_objects_that_are_not_ours_are_taken() -> None:
    # An optimizer needs no more than `step` and `lr`, a loss the two methods of the protocol, and a
    # method in C, which does not tell its arguments, gets the benefit of the doubt.
    class Nothing:
        lr = 0.0
        step = staticmethod(lambda layer, **options: None)

    class Distance:
        def forward(self, pred: Any, target: Any, scale: float = 1.0) -> float:
            self.size = pred.shape
            return 0.0

        def backward(self) -> Any:
            return np.zeros(self.size, np.float32)

    seen: list[Any] = []
    cnnx.fit(
        net(), X, Y, epochs=1, optimizer=Nothing(), loss=Distance(), progress=False,  # type: ignore[arg-type]
        callback=seen.append,
    )  # fmt: skip
    assert len(seen) == 1


@pytest.mark.parametrize("rng", [None, 3, np.int64(3), 2**80, np.random.default_rng(3), [1, 2]])
def test_seeds_that_are_good(rng: Any) -> None:
    assert np.isfinite(cnnx.Dense(2, 2, rng=rng).params["weight"]).all()


# ---------------------------------------------------------------------------- homework's names

W, B = np.zeros((2, 1, 3, 3)), np.zeros(2)
CLASSROOM: list[tuple[tuple[Any, ...], str]] = [
    ((X, np.zeros((2, 3, 3, 3)), B), "W has shape (2, 3, 3, 3)|X's 1 channels|X has shape"),
    ((X, np.zeros((2, 1, 9, 9)), B), "no pixel|X has shape|(H + top + bottom - KH) / stride"),
    ((X, np.zeros((0, 1, 3, 3)), np.zeros(0)), "W has shape (0, 1, 3, 3)|at least 1"),
    ((X[:, :0], W[:, :0], B), "X has shape (4, 0, 8, 8)|at least 1"),
    ((X, W, np.zeros(3)), "b has shape (3,)|2 filters of W"),
    ((X, W, B, 0), "stride|0|from 1"),
    ((X, W, B, 1, -1), "pad|-1|from 0"),
    ((X, W, B, 1, (1, 2, 3)), "pad|(1, 2, 3)|(height, width)"),
    ((X, W, B, 1, "same2"), "pad|'same2'|'same'"),
    ((X, W, B, 1, 2**20), "the output would have shape"),
    ((X, W, B, 1, 0, "x"), "activation|'x'|'relu'"),
]


@pytest.mark.parametrize("row", CLASSROOM)
def test_classroom_speaks_homework_s_names(row: tuple[tuple[Any, ...], str]) -> None:
    arguments, parts = row
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the parts are the match)
        cnnx.conv_forward(*arguments)
    assert_says(str(caught.value), *parts.split("|"))
    for foreign in ("x has", "weight", "bias", "padding", "groups", "dilation", "conv2d"):
        assert foreign not in str(caught.value)


@pytest.mark.parametrize("activation", ["relu", None])
def test_classroom_backward_speaks_homework_s_names(activation: Any) -> None:
    out, cache = cnnx.conv_forward(X, W, B, activation=activation)
    with pytest.raises(ValueError, match=r"^dout has shape \(4, 2, 6, 5\), expected"):
        cnnx.conv_backward(out[..., 1:], cache)
    with pytest.raises(ValueError, match=r"dout has shape \(4, 2, 6, 6\).*conv_forward's output"):
        cnnx.conv_backward(out, cache._replace(W=W[:, :, :2]))  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--threads", "2000"], "--threads|'2000'|from 1 to 1024"),
        (["train", "--threads", "two"], "--threads|'two'|an integer"),
        (["train", "--epochs", "0"], "--epochs|'0'|from 1"),
        (["train", "--seed", "-1"], "--seed|'-1'|from 0"),
        (["train", "--lr", "fast"], "--lr|fast"),
        (["explain", "conv", "--size", "13"], "--size|'13'|from 1 to 12"),
        (["explain", "conv", "--padding", "1.5"], "--padding|'1.5'|an integer"),
    ],
)
def test_options_of_commands(arguments: list[str], parts: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert_says(capsys.readouterr().err, *parts.split("|"))


def test_a_number_too_large_is_no_crash() -> None:
    refuses(ValueError, lambda: cnnx.SGD(10**400), "lr", "finite")
    refuses(ValueError, lambda: cnnx.SGD(math.nan), "lr", "nan", "finite")
