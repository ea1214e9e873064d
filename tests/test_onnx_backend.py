"""The onnx package's own tests of operators, through its interface for libraries."""

from __future__ import annotations

import re
import unittest
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")  # without which the package cannot make its cases

from cnnx.onnx import backend  # noqa: E402
from tests.onnx_models import model_of  # noqa: E402

# What stays out, by the reason; every other case of an operator below must pass.
LEFT_OUT = {
    "cnnx has layers for images, of two dimensions": (
        r"_[13]d_|[13]d_(cpu|pad|strid|dilat|group|input|size)|Conv[13]d|Pool[13]d|BatchNorm[13]d|operator_maxpool"
    ),
    "cnnx has no average pooling with dilations": r"averagepool_2d_dilations",
    "the case is made of operators that are no part of image nets": r"_expanded",
    "cnnx has no float16": r"float16",
}
OPERATORS = {
    "Conv": r"(basic_conv_|conv_|Conv2d|ConvTranspose2d_no|operator_conv_)",
    "ConvTranspose": r"(convtranspose|ConvTranspose2d|operator_convtranspose)",
    "MaxPool": r"(maxpool_|MaxPool2d|operator_maxpool)",
    "AveragePool": r"(averagepool_|AvgPool2d)",
    "GlobalAveragePool": r"globalaveragepool",
    "BatchNormalization": r"(batchnorm_|BatchNorm2d)",
    "Gemm": r"(gemm_|Linear|operator_addmm|operator_mm)",
    "MatMul": r"matmul_",
    "Relu": r"(relu_|ReLU_)",
    "LeakyRelu": r"(leakyrelu_|LeakyReLU)",
    "PRelu": r"(prelu_|PReLU)",
    "Clip": r"clip_",
    "Sigmoid": r"(sigmoid_|Sigmoid_)",
    "HardSigmoid": r"hardsigmoid",
    "HardSwish": r"hardswish",
    "Tanh": r"(tanh_|Tanh_)",
    "Softmax": r"(softmax_|Softmax_)",
    "LogSoftmax": r"(logsoftmax_|LogSoftmax_)",
    "LRN": r"lrn_",
    "Add": r"add_",
    "Sub": r"sub_",
    "Mul": r"mul_",
    "Div": r"div_",
    "Sum": r"sum_",
    "Concat": r"(concat_|operator_concat)",
    "Split": r"split_(?!to_sequence)",
    "Flatten": r"(flatten_|operator_flatten)",
    "Reshape": r"reshape_",
    "Transpose": r"transpose_",
    "Squeeze": r"squeeze_",
    "Unsqueeze": r"unsqueeze_",
    "Pad": r"(constant_pad|edge_pad|reflect_pad|wrap_pad|ConstantPad2d|ReflectionPad2d|ZeroPad2d)",
    "Resize": (
        r"resize_(?!.*(antialias|exclude_outside|not_larger|not_smaller|tf_crop))"  # said to be out
    ),
    "Slice": r"slice_",
    "Gather": r"gather_(?!elements)",
    "Shape": r"shape_",
    "Cast": r"cast_(FLOAT_to_DOUBLE|DOUBLE_to_FLOAT_)",
    "ReduceMean": r"reduce_mean",
    "Dropout": r"dropout_",
    "Identity": r"identity_(?!opt|sequence)",
    "Constant": r"constant_cpu",
    "ConstantOfShape": r"constantofshape",
    "Expand": r"expand_",
    "Pow": r"pow_",
    "Sqrt": r"sqrt_",
    "Min": r"min_",
    "Max": r"max_(?!pool|unpool)",
}


@pytest.fixture(scope="module")
def cases() -> dict[str, Callable[[Any], None]]:
    """All cases of the package for the CPU, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package divides by zero while it makes its cases
        from onnx.backend.test import BackendTest

        items = BackendTest(backend.CnnxBackend, __name__)._test_items
    return {
        name: item.func
        for category in items.values()
        for name, item in category.items()
        if name.endswith("_cpu")
    }


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(operator: str, cases: dict[str, Callable[[Any], None]]) -> None:
    pattern, failed, passed = re.compile(f"test_{OPERATORS[operator]}"), [], 0
    for name, run in cases.items():
        if not pattern.match(name) or any(re.search(out, name) for out in LEFT_OUT.values()):
            continue
        try:
            run(None)
            passed += 1
        except unittest.SkipTest:
            continue
        except Exception as error:
            failed.append(f"{name}: {error}")
    assert not failed, "\n".join(failed)
    assert passed


def test_the_module_is_a_backend() -> None:
    data = model_of([onnx.helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 2)}, ["y"])
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    x = np.array([[-1.0, 2.0]], np.float32)
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA")
    for results in (backend.prepare(model).run([x]), backend.run_model(model, x)):
        np.testing.assert_array_equal(results[0], [[0.0, 2.0]])
