"""Files of models: both formats, bit by bit; damaged ones; and writes that fail half-way."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh import python
from numpy.testing import assert_array_equal

import cnnx

FORMATS = [
    "npz",
    pytest.param(
        "safetensors",
        marks=pytest.mark.skipif(
            find_spec("safetensors") is None, reason="safetensors is not installed"
        ),
    ),
]


def net(rng: int, dtype: str = "float32") -> cnnx.Sequential:
    """A small net with buffers that are not at their beginning."""
    model = cnnx.Sequential(
        cnnx.Conv2D(1, 2, 3, dtype=dtype, rng=rng),
        cnnx.BatchNorm2D(2, dtype=dtype),
        cnnx.Flatten(),
        cnnx.Dense(8, 3, dtype=dtype, rng=rng),
    )
    model(np.random.default_rng(rng).standard_normal((5, 1, 4, 4)).astype(dtype))
    return model


def bits(model: Any) -> dict[str, bytes]:
    """The state to the last bit."""
    return {name: array.tobytes() for name, array in model.state_dict().items()}


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The name of a file in each format, in a folder of its own."""
    return tmp_path / f"model.{request.param}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back(path: Path, dtype: str) -> None:
    model, other = net(1, dtype), net(2, dtype)
    special = np.array([-0.0, np.inf, np.nan], dtype)
    model.params["3.bias"][...] = special
    cnnx.save(model, path)
    arrays = {**other.params, **other.buffers}
    assert cnnx.load(path, other) is other
    assert bits(other) == bits(model)
    assert {**other.params, **other.buffers}.keys() == arrays.keys()
    assert all(other.params[name] is arrays[name] for name in other.params)
    assert os.listdir(path.parent) == [path.name]


def test_a_name_as_string(path: Path) -> None:
    model = net(1)
    cnnx.save(model, str(path))
    assert bits(cnnx.load(str(path), net(2))) == bits(model)


def test_files_are_what_their_names_say(tmp_path: Path) -> None:
    model = net(1)
    cnnx.save(model, tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(model.state_dict())
        assert_array_equal(archive["3.weight"], model.params["3.weight"])
    cnnx.save(model, tmp_path / "model")  # any other name too, and exactly that name
    assert zipfile.is_zipfile(tmp_path / "model")


def test_safetensors_files_are_everybody_s(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    model = net(1)
    cnnx.save(model, tmp_path / "model.safetensors")
    theirs = safetensors.load_file(tmp_path / "model.safetensors")
    assert {name: array.tobytes() for name, array in theirs.items()} == bits(model)


def test_values_are_cast_to_the_model_s_dtype(path: Path) -> None:
    double = net(1, "float64")
    cnnx.save(double, path)
    single = cnnx.load(path, net(2))
    for name, array in single.state_dict().items():
        assert array.dtype == np.float32
        assert_array_equal(array, double.state_dict()[name].astype(np.float32))


def test_parameters_that_are_views(path: Path) -> None:
    dense = cnnx.Dense(3, 2, rng=0)
    dense.params["weight"] = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not C-contiguous
    cnnx.save(dense, path)
    twin = cnnx.load(path, cnnx.Dense(3, 2))
    assert_array_equal(twin.params["weight"], [[0, 3], [1, 4], [2, 5]])


class Minimal:
    """Not one of our layers: parameters, and nothing else that matters here."""

    def __init__(self, value: float) -> None:
        self.params = {"a": np.array([value]), "file": np.array([value])}


def test_somebody_else_s_model(path: Path) -> None:
    cnnx.save(Minimal(3.0), path)
    model = cnnx.load(path, Minimal(0.0))
    assert_array_equal(model.params["a"], [3.0])
    assert_array_equal(model.params["file"], [3.0])


# ---------------------------------------------------------------- files that do not fit


def test_another_architecture_changes_nothing(path: Path) -> None:
    cnnx.save(net(1), path)
    other = cnnx.Sequential(cnnx.Conv2D(1, 2, 3), cnnx.BatchNorm2D(2), cnnx.Dense(8, 4))
    before = bits(other)
    with pytest.raises(ValueError, match=r"'2\.weight' is missing.*'3\.bias' is unexpected"):
        cnnx.load(path, other)
    assert bits(other) == before
    wider = net(2)
    wider[3].params["weight"] = np.zeros((8, 4), np.float32)
    before = bits(wider)
    with pytest.raises(ValueError, match=r"'3\.weight' has shape \(8, 3\), expected \(8, 4\)"):
        cnnx.load(path, wider, strict=False)
    assert bits(wider) == before


def test_not_strict_takes_what_fits(path: Path) -> None:
    model = net(1)
    cnnx.save(model, path)
    part = cnnx.Sequential(cnnx.Conv2D(1, 2, 3), cnnx.BatchNorm2D(2), cnnx.Dense(4, 4, rng=0))
    kept = part.params["2.weight"].copy()
    cnnx.load(path, part, strict=False)
    assert_array_equal(part.params["0.weight"], model.params["0.weight"])
    assert_array_equal(part.params["2.weight"], kept)


@pytest.mark.parametrize("damage", ["empty", "cut", "other", "flipped"])
def test_damaged_files(path: Path, damage: str) -> None:
    cnnx.save(net(1), path)
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content = bytearray()
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "other":
        content = bytearray(b"\x93NUMPY not really")
    else:
        content[:] = bytes(byte ^ 0xFF for byte in content)
    path.write_bytes(content)
    model = net(2)
    before = bits(model)
    with pytest.raises(ValueError, match=f"{path.name} is not an? {path.suffix[1:]} file"):
        cnnx.load(path, model)
    assert bits(model) == before


def test_a_safetensors_header_that_lies(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    header = b'{"0.weight":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        cnnx.load(path, net(1))


class Exploit:
    """What a pickle can do: call anything when it is loaded."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("the pickle ran",)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(ValueError, match=r"model\.npz is not an npz file"):
        cnnx.load(path, net(1))
    np.savez(path, **{"0.weight": np.array([Exploit()], object)})
    with pytest.raises(ValueError, match=r"model\.npz is not an npz file"):
        cnnx.load(path, net(1))


def test_a_plain_npy_file(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"model\.npz is not an npz file"):
        cnnx.load(path, net(1))


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=path.name):
        cnnx.load(path, net(1))


def test_a_disk_that_fails_is_not_called_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnnx.save(net(1), tmp_path / "model.npz")

    class Bad(io.BytesIO):
        def read(self, *size: Any) -> bytes:
            raise OSError("input/output error")

    monkeypatch.setattr(builtins, "open", lambda *arguments: Bad())
    with pytest.raises(OSError, match="input/output error"):
        cnnx.load(tmp_path / "model.npz", net(1))


# ---------------------------------------------------------------- writes that fail


class DiskFull(OSError):
    """What the write below raises."""


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(
    path: Path, where: str, existed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existed:
        cnnx.save(net(1), path)
    before = path.read_bytes() if existed else None

    def fail(*arguments: Any) -> None:
        # By now the new content is written, and not under the file's own name.
        assert len(os.listdir(path.parent)) == (2 if existed else 1)
        raise DiskFull

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(DiskFull):
        cnnx.save(net(2), path)
    assert os.listdir(path.parent) == ([path.name] if existed else [])
    if existed:
        assert path.read_bytes() == before


def test_an_array_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    cnnx.save(net(1), path)
    before = path.read_bytes()
    model = Minimal(1.0)
    model.params["b"] = np.array([Exploit()], object)  # it would need a pickle
    with pytest.raises(TypeError, match="'b' has dtype object, expected numbers"):
        cnnx.save(model, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.npz"]


def test_the_disk_has_it_before_the_name_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(
        os, "replace", lambda old, new: (calls.append("replace"), replace(old, new))[1]
    )
    cnnx.save(net(1), path)
    assert calls == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill so")
def test_what_a_killed_process_left_goes_with_the_next_save(path: Path) -> None:
    code = f"""
import os, signal
from cnnx._files import atomic_write
with atomic_write({str(path)!r}) as file:
    file.write(b"half of it")
    file.flush()
    print("ready", flush=True)
    os.kill(os.getpid(), signal.{{}})
"""

    def left() -> list[Path]:
        return sorted(set(path.parent.iterdir()) - {path})

    others = [path.parent / f"{path.name}.part", path.parent / f".{path.name}.abc.part"]
    for file in others:
        file.write_bytes(b"the user's own")
    assert python(code.format("SIGKILL"), path.parent).returncode == -signal.SIGKILL
    (abandoned,) = set(left()) - {*others}
    cnnx.save(net(0), path)
    assert abandoned in left()  # so young, it could be that of a process that has just begun
    for file in left():
        os.utime(file, (0, 0))
    cnnx.save(net(0), path)
    assert left() == sorted(others)

    environment = {**os.environ, "PYTHONPATH": str(Path(cnnx.__file__).parents[1])}
    command = [sys.executable, "-c", code.format("SIGSTOP")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        (young,) = set(left()) - {*others}
        os.utime(young, (0, 0))
        cnnx.save(net(0), path)
        assert young in left()  # it lives
        writer.kill()


def test_permissions_are_those_of_any_new_file(path: Path) -> None:
    cnnx.save(net(1), path)
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "safetensors":
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (lambda: cnnx.save(net(1), path), lambda: cnnx.load(path, net(1))):
        with pytest.raises(ImportError, match=r"pip install 'cnnx\[demo\]'"):
            call()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.safetensors"]


class ForwardOnly:
    """Nothing of this could be saved, and the file would be empty."""

    def forward(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    "model",
    [None, {"a": np.ones(3)}, [1], ForwardOnly()],
    ids=["none", "dict", "list", "forward_only"],
)
def test_what_is_no_model_is_not_saved(tmp_path: Path, model: Any) -> None:
    with pytest.raises(TypeError, match=f"model is .*{type(model).__name__}.*, expected a layer"):
        cnnx.save(model, tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


def test_interrupt_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def replace_and_stop(*names: Any) -> None:
        rename(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_and_stop)
    with pytest.raises(KeyboardInterrupt):
        cnnx.save(cnnx.Dense(2, 1, rng=0), tmp_path / "model.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]
