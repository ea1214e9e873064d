"""Files that are written: under which names, and what is there when the writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnx
from cnnx import cli
from cnnx._checkpoint import read_tree, write_tree

needs_safetensors = pytest.mark.skipif(
    find_spec("safetensors") is None, reason="safetensors is not installed"
)


def small_net(rng: int = 0) -> cnnx.Dense:
    return cnnx.Dense(2, 2, rng=rng)


# ---------------------------------------------------------------------------- names


def test_names_in_bytes(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path / "model.npz")
    cnnx.save(small_net(1), file)  # type: ignore[arg-type]
    cnnx.load(file, small_net(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [lambda path: cnnx.save(small_net(), path),
                                  lambda path: cnnx.load(path, small_net())])  # fmt: skip
def test_a_folder_is_no_file(call: Any, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        call(tmp_path)


def test_a_missing_folder_is_named_as_the_caller_knows_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/model\.npz'$"):
        cnnx.save(small_net(), tmp_path / "missing" / "model.npz")


@pytest.mark.skipif(os.name != "posix", reason="links and permission bits are POSIX's")
def test_links_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "model.npz", tmp_path / "model.npz"
    link.symlink_to(real)
    cnnx.save(small_net(1), link)  # first the link leads nowhere
    assert link.is_symlink()
    real.chmod(0o640)
    cnnx.save(small_net(2), link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "real") == ["model.npz"]
    cnnx.load(real, small_net())


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write to anything")
def test_a_write_protected_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    cnnx.save(small_net(1), path)
    content = path.read_bytes()
    path.chmod(0o440)
    with pytest.raises(PermissionError, match=r"model\.npz"):
        cnnx.save(small_net(2), path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["model.npz"]
    path.chmod(0o640)  # or Windows could not remove it


class Labelled(cnnx.Layer):
    """Keeps an array that no file of numbers can hold."""

    def __init__(self, labels: Any) -> None:
        self.params["factor"] = np.ones(1)
        self.buffers["labels"] = np.array(labels)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x * self.params["factor"]

    def backward(self, grad_out: Any) -> Any:
        self.grads["factor"] = np.array([(grad_out * self.x).sum()])
        return grad_out * self.params["factor"]


@pytest.mark.parametrize("labels", [["cat", "dog"], [None, {}]], ids=["text", "objects"])
def test_what_could_not_be_read_is_not_written(labels: Any, tmp_path: Path) -> None:
    layer, path = Labelled(labels), tmp_path / "model.npz"
    with pytest.raises(TypeError, match=r"'labels' has dtype .*, expected numbers"):
        cnnx.save(layer, path)
    with pytest.raises(TypeError, match=r"labels' has dtype .*, expected numbers"):
        cnnx.fit(layer, np.eye(3), np.arange(3), epochs=1, progress=False, checkpoint=path)
    assert not path.exists()


def test_names_with_slashes_do_not_meet(tmp_path: Path) -> None:
    tree = {"a": {"b": np.zeros(1)}, "a/b": np.ones(1), "a/b/": np.full(1, 2.0)}
    write_tree(tmp_path / "tree.npz", tree)
    found = read_tree(tmp_path / "tree.npz")
    assert [found["a"]["b"][0], found["a/b"][0], found["a/b/"][0]] == [0, 1, 2]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no /dev/null")
def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"not a regular file.*pipe"):
        cnnx.save(small_net(), pipe)
    assert pipe.is_fifo()


# ---------------------------------------------------------------------------- kill -9


@contextmanager
def killed(code: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run code until it says that it has begun, and kill it without mercy after the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(cnnx.__file__).parents[1])},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


SAVES = """
import numpy as np, cnnx
first, second = cnnx.Dense(300, 300, rng=1), cnnx.Dense(300, 300, rng=2)
print("begun", flush=True)
while True:
    cnnx.save(first, {name!r})
    cnnx.save(second, {name!r})
"""


needs_sigkill = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="Windows has no such signal"
)


@needs_sigkill
@pytest.mark.parametrize(
    "name", ["model.npz", pytest.param("model.safetensors", marks=needs_safetensors)]
)
def test_killed_while_saving(name: str, tmp_path: Path) -> None:
    first, second, read = (cnnx.Dense(300, 300, rng=rng) for rng in (1, 2, 3))
    whole = {first.params["weight"].tobytes(), second.params["weight"].tobytes()}
    cnnx.save(first, tmp_path / name)
    for turn in range(12):  # a save takes 1 to 3 ms
        with killed(SAVES.format(name=name), tmp_path):
            time.sleep(0.002 + 0.0007 * turn)
        assert cnnx.load(tmp_path / name, read).params["weight"].tobytes() in whole


@needs_sigkill
def test_training_killed_again_and_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (120, 8, 8)).astype(np.uint8)
    labels = (images.reshape(120, 64).argmax(axis=1) % 4).astype(np.uint8)
    np.savez(
        tmp_path / "images.npz", x_train=images[:90], y_train=labels[:90],
        x_test=images[90:], y_test=labels[90:],
    )  # fmt: skip
    options = ["--data", str(tmp_path / "images.npz"), "--epochs", "40", "--batch-size", "4"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(["train", *options, "--output", str(whole)]) == 0

    def arguments() -> list[str]:
        if (broken / "settings.json").exists():
            return ["train", "--resume", "--output", str(broken)]
        return ["train", *options, "--output", str(broken)]

    def saved() -> Any:
        file = broken / "checkpoint.npz"
        return file.stat().st_ino if file.exists() else None

    epochs = []
    for turn in range(6):  # an epoch takes 5 to 10 ms, most of it for the checkpoint
        before = saved()
        code = f"import cnnx.cli; print(flush=True); cnnx.cli.main({arguments()!r})"
        with killed(code, tmp_path) as process:
            while turn and saved() == before and process.poll() is None:  # the first: at once
                time.sleep(0.001)
            time.sleep(0.002 * turn)
        if turn:
            epochs.append(read_tree(broken / "checkpoint.npz")["position"]["epoch"])
    assert cli.main(arguments()) == 0
    (ours,), (theirs,) = broken.glob("model.*"), whole.glob("model.*")
    assert ours.read_bytes() == theirs.read_bytes()
    assert epochs == sorted(epochs)
    assert len(set(epochs)) > 1, "no kill met a training under way"
