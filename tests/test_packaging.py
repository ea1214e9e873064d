"""The package as a user meets it: its names, its documentation, what importing it costs."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import KERNELS, needs_kernels
from fresh import printed

import cnnx

NAMES = [name for name in cnnx.__all__ if callable(getattr(cnnx, name))]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(cnnx, name))]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(cnnx, name))]


def modules() -> Iterator[str]:
    """The names of the package and all of its modules in Python, as far as they can be imported."""
    yield "cnnx"
    apart = ["__main__", "_kernels"]
    apart += [] if find_spec("onnx") else ["cnnx.onnx.backend"]
    for module in pkgutil.walk_packages(cnnx.__path__, "cnnx."):
        lacking = module.name.startswith("cnnx.torch") and find_spec("torch") is None
        if not lacking and not module.name.endswith(tuple(apart)):
            yield module.name


needs_installed = pytest.mark.skipif(
    cnnx.__version__ == "0+unknown", reason="cnnx is not installed, only imported from its checkout"
)


def test_changelog() -> None:
    """The versions in their order, what comes next on top; a release has its section first."""
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^## (.*)$", text)
    if re.fullmatch(r"\d+\.\d+\.\d+", cnnx.__version__):  # else 0.2.1.dev3+g1234567
        assert headings[0].startswith(f"[{cnnx.__version__}] - ")
    versions = []
    for heading in headings[headings[0] == "[Unreleased]" :]:
        release = re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", heading)
        assert release, heading
        versions.append(tuple(map(int, release.groups())))
    assert versions == sorted(set(versions), reverse=True)


# ---------------------------------------------------------------------------- the module

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@needs_kernels
@pytest.mark.skipif(not FREE_THREADED, reason="this Python always has its lock")
def test_python_stays_without_its_lock(tmp_path: Path) -> None:
    # It comes back, for the whole process, where a module does not say that it needs none.
    code = "import sys, cnnx; print(sys._is_gil_enabled())"
    assert printed(code, tmp_path, PYTHON_GIL="") == "False"


@needs_kernels
@pytest.mark.skipif(
    sys.platform == "win32" or sys.implementation.name != "cpython" or sys.version_info < (3, 11),
    reason="its file's name does not tell, or there is no limited API",
)
def test_one_module_for_every_python() -> None:
    assert ("abi3" in Path(KERNELS.__file__).suffixes[0]) is not FREE_THREADED


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="the static checks run on Linux")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no such kernels")
def test_static_checks_see_every_kernel() -> None:
    """What tools/check.sh compiles is what setup.py does: it reads names out of there."""
    pytest.importorskip("setuptools", minversion="77")  # older ones cannot read pyproject.toml
    script = Path(__file__).parents[1] / "tools" / "check.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for its `python`
    environment = {**os.environ, "PATH": path}
    found = subprocess.run([script, "units"], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    checked = re.findall(r"(?m)^cnnx/_csrc/isa_(\w+)\.c ", found.stdout)
    assert checked == KERNELS.build_info()["instruction sets"]


# ---------------------------------------------------------------------------- names


def test_all_is_there_once() -> None:
    assert len(set(cnnx.__all__)) == len(cnnx.__all__)
    missing = [name for name in cnnx.__all__ if not hasattr(cnnx, name)]
    assert not missing
    assert len(FUNCTIONS) + len(CLASSES) == len(NAMES)


# The design's contract, section 2, written out: other people's code is checked against it.
FUNCTIONAL = [
    "conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "global_avg_pool2d", "linear",
    "relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "softmax", "log_softmax",
    "batch_norm2d",
]  # fmt: skip
LAYERS = [
    "Conv2D", "ConvTranspose2D", "MaxPool2D", "AvgPool2D", "GlobalAvgPool2D", "Flatten",
    "Dense", "ReLU", "LeakyReLU", "ReLU6", "Sigmoid", "Tanh", "GELU", "SiLU", "Softmax",
    "BatchNorm2D", "Dropout", "Sequential", "Residual",
]  # fmt: skip
REST = [
    "conv_forward", "conv_backward", "SoftmaxCrossEntropy", "MSELoss", "SGD", "Adam", "AdamW",
    "fit", "numerical_gradient", "eval_numerical_gradient", "gradcheck", "GradcheckError",
    "set_num_threads", "get_num_threads", "use_backend", "show_config", "set_winograd", "save",
    "load",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [*FUNCTIONAL, *(f"{name}_backward" for name in FUNCTIONAL), *LAYERS, *REST]
)
def test_contract(name: str) -> None:
    assert name in cnnx.__all__
    if name in LAYERS:
        assert getattr(cnnx.layers, name) is getattr(cnnx, name)
    elif name.removesuffix("_backward") in FUNCTIONAL:
        assert getattr(cnnx.functional, name) is getattr(cnnx, name)


SIGNATURES = {
    "conv2d": "(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', activation=None, out=None)",
    "conv2d_backward": "(grad_out, x, weight, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', need=(True, True, True))",
    "conv_transpose2d": "(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, "
    "dilation=1)",
    "max_pool2d": "(x, pool_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
    "return_indices=False)",
    "max_pool2d_backward": "(grad_out, indices, input_shape)",
    "avg_pool2d": "(x, pool_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True)",
    "avg_pool2d_backward": "(grad_out, input_shape, pool_size, stride=None, padding=0, "
    "ceil_mode=False, count_include_pad=True)",
    "conv_forward": "(X, W, b, stride=1, pad=0, activation='relu')",
    "conv_backward": "(dout, cache)",
    "numerical_gradient": "(f, x, grad_out=None, h=1e-05)",
    "Conv2D": "(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, "
    "bias=True, padding_mode='zeros', activation=None, dtype='float32', rng=None)",
    "MaxPool2D": "(pool_size=2, stride=None, padding=0, dilation=1, ceil_mode=False)",
    "AvgPool2D": "(pool_size=2, stride=None, padding=0, ceil_mode=False, count_include_pad=True)",
    "Sequential": "(*layers)",
    "Residual": "(body, shortcut=None, activation=None)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    signature = inspect.signature(getattr(cnnx, name))
    plain = signature.replace(
        parameters=[
            p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )
    assert str(plain) == SIGNATURES[name]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("SGD", "lr momentum weight_decay nesterov"),
        ("Dense", "in_features out_features bias activation"),
        ("eval_numerical_gradient", "f x df h"),
        ("conv_transpose2d_backward", "grad_out x weight"),
        ("ConvTranspose2D", "in_channels out_channels kernel_size"),
        ("fit", "model x y"),
    ],
)
def test_first_arguments(name: str, start: str) -> None:
    parameters = list(inspect.signature(getattr(cnnx, name)).parameters)
    assert parameters[: len(start.split())] == start.split()


# ---------------------------------------------------------------------------- documentation


def headings(name: str) -> list[str]:
    """The sections of a docstring in numpydoc's form."""
    return re.findall(r"(?m)^(\w[\w ]*)\n-{3,}$", inspect.getdoc(getattr(cnnx, name)) or "")


@pytest.mark.parametrize("name", NAMES)
def test_documentation(name: str) -> None:
    value: Any = getattr(cnnx, name)
    text = value.__doc__ or ""
    assert re.match(r"[A-Z`(].*\S", text)
    if "Parameters" in headings(name):
        arguments = inspect.signature(value).parameters
        assert not [a for a in arguments if not re.search(rf"(?<!\w)\*?{a}(?!\w)", text)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_examples(name: str) -> None:
    assert "Examples" in headings(name)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_examples(name: str) -> None:
    assert "Examples" in headings(name)


@pytest.mark.skipif(np.__version__.startswith("1."), reason="NumPy 1 writes scalars differently")
@pytest.mark.parametrize("module", list(modules()))
def test_examples(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert not failed, f"{failed} of {tried} lines differ; they stand in the captured output"


def test_examples_are_found() -> None:
    # testmod finds nothing without a word where a module's docstrings moved out of its reach.
    finder = doctest.DocTestFinder()
    found = {
        test.name.rpartition(".")[2]
        for module in modules()
        for test in finder.find(importlib.import_module(module))
        if test.examples
    }
    assert {*FUNCTIONS, *CLASSES} <= found


# ---------------------------------------------------------------------------- importing

OPTIONAL = (
    "rich",
    "matplotlib",
    "safetensors",
    "pooch",
    "PIL",
    "mpi4py",
    "onnx",
    "torch",
    "scipy",
    "pytest",
)


def test_import_takes_numpy_alone(tmp_path: Path) -> None:
    modules = f"name for name in {OPTIONAL} if name in sys.modules"
    code = f"import cnnx, cnnx.data, sys; print(*[{modules}])"
    assert printed(code, tmp_path) == ""


def test_import_works_without_the_optional(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); "
        "import cnnx, cnnx.cli, numpy as np; print(cnnx.Sequential(cnnx.ReLU())(np.ones(2)))"
    )
    assert printed(code, tmp_path) == "[1. 1.]"


def test_types_are_shipped() -> None:
    package = Path(cnnx.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "_kernels.pyi").exists()


@needs_installed
def test_requirements_are_numpy() -> None:
    requirements = importlib.metadata.requires("cnnx") or []
    always = [text for text in requirements if "extra ==" not in text]
    assert len(always) == 1 and always[0].startswith("numpy")


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```",
        (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block.replace("epochs=8", "epochs=1"), {})
