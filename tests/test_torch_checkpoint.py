"""PyTorch's checkpoints in cnnx's layers; most of it as arrays, so that no PyTorch is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh import printed

import cnnx.torch

State = dict[str, Any]


def net(dtype: str = "float64") -> cnnx.Sequential:
    return cnnx.Sequential(
        cnnx.Conv2D(2, 4, 3, bias=False, dtype=dtype, rng=0),
        cnnx.BatchNorm2D(4, activation="relu", dtype=dtype),
        cnnx.Residual(cnnx.Sequential(cnnx.ConvTranspose2D(4, 4, 1, dtype=dtype, rng=1))),
        cnnx.Flatten(),
        cnnx.Dense(64, 64, dtype=dtype, rng=2),  # square: the shape does not tell the layout
        cnnx.Dense(64, 3, dtype=dtype, rng=3),
    )


NAMES = {"0": "conv1", "1": "bn1", "2.body": "layer1", "4": "fc.0", "5": "fc.1"}
SHAPES = {
    "conv1.weight": (4, 2, 3, 3),
    "bn1.weight": (4,),
    "bn1.bias": (4,),
    "bn1.running_mean": (4,),
    "bn1.running_var": (4,),
    "bn1.num_batches_tracked": (),
    "layer1.0.weight": (4, 4, 1, 1),
    "layer1.0.bias": (4,),
    "fc.0.weight": (64, 64),
    "fc.0.bias": (64,),
    "fc.1.weight": (3, 64),
    "fc.1.bias": (3,),
}


def checkpoint(dtype: Any = np.float32) -> State:
    rng = np.random.default_rng(5)
    state: State = {
        name: rng.uniform(0.5, 1, shape).astype(dtype) for name, shape in SHAPES.items()
    }
    state["bn1.num_batches_tracked"] = np.array(7)
    return state


def expected(state: State, x: Any) -> Any:
    """The net's output in eval mode, by functions, from PyTorch's arrays."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    x = cnnx.conv2d(x, state["conv1.weight"])
    mean, var = state["bn1.running_mean"], state["bn1.running_var"]
    x = cnnx.relu(cnnx.batch_norm2d(x, state["bn1.weight"], state["bn1.bias"], mean, var))
    mixed = np.einsum("nchw,cfij->nfhw", x, state["layer1.0.weight"])  # 1x1: (C, F, 1, 1)
    x = (x + mixed + state["layer1.0.bias"].reshape(-1, 1, 1)).reshape(len(x), -1)
    for layer in ("fc.0", "fc.1"):
        x = x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
    return x


X = np.random.default_rng(6).standard_normal((3, 2, 6, 6))


def refused(model: Any, state: Any, error: type[Exception], match: str, **options: Any) -> None:
    """The error comes, and the model is as it was."""
    before = model.state_dict()
    with pytest.raises(error, match=match):
        cnnx.torch.load_state_dict(model, state, **options)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_from_arrays(dtype: Any) -> None:
    model, state = net().eval(), checkpoint(dtype)
    assert cnnx.torch.load_state_dict(model, state, names=NAMES) is None
    np.testing.assert_allclose(model(X), expected(state, X), rtol=1e-12)


@pytest.mark.parametrize("make", [str, Path])
def test_from_a_file(make: Callable[[str], Any], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    path, state = str(tmp_path / "net.safetensors"), checkpoint()
    safetensors.save_file(state, path)
    model = net().eval()
    cnnx.torch.load_state_dict(model, make(path), names=NAMES)
    np.testing.assert_allclose(model(X), expected(state, X), rtol=1e-12)


def test_frozen_nets_notice() -> None:
    model, state = net().freeze(), checkpoint()
    model(X)
    cnnx.torch.load_state_dict(model, state, names=NAMES)
    np.testing.assert_allclose(model(X), expected(state, X), rtol=1e-12)


def test_the_whole_under_another_name() -> None:
    layer, weight = cnnx.Dense(2, 3), np.arange(6.0).reshape(3, 2)
    state = {"module.weight": weight, "module.bias": np.zeros(3)}
    cnnx.torch.load_state_dict(layer, state, names={"": "module"})
    np.testing.assert_array_equal(layer.params["weight"], weight.T)
    nested = cnnx.Sequential(layer)
    state = {"module.0.weight": 2 * weight, "module.0.bias": np.zeros(3)}
    cnnx.torch.load_state_dict(nested, state, names={"": "module"})
    np.testing.assert_array_equal(layer.params["weight"], 2 * weight.T)


def test_layers_of_ones_own() -> None:
    class Scale:
        def __init__(self) -> None:
            self.params = {"weight": np.ones((2, 2))}

        def forward(self, x: Any) -> Any:
            return self.params["weight"] * x

        def backward(self, grad_out: Any) -> Any:
            return grad_out

    weight = np.array([[1.0, 2.0], [3.0, 4.0]])
    for model, name in ((Scale(), "weight"), (cnnx.Sequential(cnnx.ReLU(), Scale()), "1.weight")):
        cnnx.torch.load_state_dict(model, {name: weight})
        np.testing.assert_array_equal(model.params[name], weight)


# ---------------------------------------------------------------------------- refusals


def test_faults_are_listed_together() -> None:
    state = checkpoint()
    del state["conv1.weight"]
    state["fc.1.weight"] = state["fc.1.weight"].T
    state["head.weight"] = np.zeros(1)
    refused(
        net(),
        state,
        ValueError,
        r"^state does not fit the model: 'conv1.weight' is missing, for '0.weight'; 'fc.1.weight' "
        r"has shape \(64, 3\), expected \(3, 64\), for '5.weight'; 'head.weight' is unexpected$",
        names=NAMES,
    )


def test_not_strict() -> None:
    model, state = net(), {"fc.1.bias": np.ones(3), "head.weight": np.zeros(1)}
    weight = model.params["0.weight"].copy()
    cnnx.torch.load_state_dict(model, state, False, names=NAMES)
    assert (model.params["5.bias"] == 1).all()
    np.testing.assert_array_equal(model.params["0.weight"], weight)
    wrong = {"fc.1.bias": np.ones(3), "fc.0.bias": np.zeros(2)}
    refused(model, wrong, ValueError, r"'fc.0.bias' has shape \(2,\)", strict=False, names=NAMES)


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        (
            {**checkpoint(), "fc.1.bias": np.ones(3, complex)},
            TypeError,
            "complex128.*cannot become",
        ),
        (
            {**checkpoint(), "fc.1.bias": [1, [2, 3]]},
            TypeError,
            r"state\['fc.1.bias'\] cannot beco",
        ),
        (3, TypeError, r"state is 3 \(int\)"),
        ("net.pt", ValueError, r"expected a file whose name ends in .safetensors.*save_file"),
    ],
)
def test_wrong_states(state: Any, error: type[Exception], match: str) -> None:
    refused(net(), state, error, match, names=NAMES)


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ({"7": "conv1"}, ValueError, "names has '7', expected the name of a layer of the model"),
        ({"0": 1}, TypeError, "expected a mapping of str to str"),
        ([("0", "conv1")], TypeError, "expected a mapping of str to str"),
    ],
)
def test_wrong_names(names: Any, error: type[Exception], match: str) -> None:
    refused(net(), checkpoint(), error, match, names=names)


@pytest.mark.parametrize("model", [3, cnnx.Dense, None])
def test_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match=r"^model is .*, expected a layer$"):
        cnnx.torch.load_state_dict(model, {})


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    content = safetensors.save(checkpoint())
    path = tmp_path / "net.safetensors"
    for damaged in (b"", content[:100], content[:-1], b"\xff" * 64, content[8:]):
        path.write_bytes(damaged)
        refused(net(), path, ValueError, "is not a safetensors file", names=NAMES)
    refused(net(), tmp_path / "none.safetensors", OSError, "none.safetensors", names=NAMES)
    state = {name: array for name, array in checkpoint().items() if name != "fc.0.weight"}
    safetensors.save_file(state, path)
    refused(net(), path, ValueError, r"net.safetensors does not fit the model: 'fc", names=NAMES)


# ---------------------------------------------------------------------------- with PyTorch


def torch_net(torch: Any) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.ConvTranspose2d(4, 4, 1))

        def forward(self, x: Any) -> Any:
            return x + self.body(x)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), Block(), nn.Flatten(),
        nn.Linear(64, 64), nn.Linear(64, 3),
    )  # fmt: skip
    model(torch.randn(8, 2, 6, 6))  # moves the running statistics
    return model.eval().double()


TORCH_NAMES = {"2.body": "3.body", "4": "5", "5": "6"}


def test_from_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch_net(torch)
    wanted = theirs(torch.from_numpy(X)).detach().numpy()
    sources: list[Any] = [theirs.state_dict(), theirs.state_dict(keep_vars=True)]
    save_file = pytest.importorskip("safetensors.torch").save_file
    sources.append(tmp_path / "net.safetensors")
    save_file(theirs.state_dict(), sources[-1])
    for source in sources:
        model = net().eval()
        cnnx.torch.load_state_dict(model, source, names=TORCH_NAMES)
        np.testing.assert_allclose(model(X), wanted, rtol=1e-9)  # float64 in another order


def test_bfloat16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = torch_net(torch).bfloat16().state_dict()
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    model = net()
    cnnx.torch.load_state_dict(model, path, names=TORCH_NAMES)
    np.testing.assert_array_equal(model.params["0.weight"], state["0.weight"].double().numpy())
    refused(net(), state, TypeError, r"state\['0.weight'\] cannot become", names=TORCH_NAMES)


def test_bfloat16_of_every_kind(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)  # all there are
    save_file({"weight": bits.view(torch.bfloat16)}, tmp_path / "all.safetensors")
    found = cnnx.serialization.read(tmp_path / "all.safetensors")["weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bits.view(torch.bfloat16).float().numpy())


def test_eight_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = {
        name: tensor.to(torch.float8_e5m2) for name, tensor in torch_net(torch).state_dict().items()
    }
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    words = "arrays of 'F8_E5M2', which NumPy has not; save them as float32"
    refused(net(), path, ValueError, words, names=TORCH_NAMES)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
sys.modules["torch"] = None
import cnnx.torch
model = cnnx.Sequential(cnnx.Dense(2, 1))
cnnx.torch.load_state_dict(model, {"0.weight": np.ones((1, 2)), "0.bias": np.zeros(1)})
print(model(np.ones((1, 2))))
"""
    assert printed(code, tmp_path) == "[[2.]]"
