"""Files that are damaged or made to do harm: one clear error, little memory, nothing changed.

Three readers share these rules: of models (`load`), of checkpoints (`fit`'s) and of data sets. Each
byte of a small file of each kind is changed, files are cut at every length, and headers promise
what is not there. Memory is measured by tracemalloc, which sees NumPy's allocations.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import refuses

import cnnx
from cnnx import _npz, cli, data
from cnnx._checkpoint import read_tree, write_tree

MIB = 2**20
needs_safetensors = pytest.mark.skipif(
    find_spec("safetensors") is None, reason="safetensors is not installed"
)


def small_net(rng: int = 0) -> cnnx.Sequential:
    return cnnx.Sequential(
        cnnx.Flatten(), cnnx.Dense(4, 2, rng=rng), cnnx.Dropout(0.5, rng=rng), cnnx.Dense(2, 2)
    )


X, Y = np.ones((6, 1, 2, 2), np.float32), np.array([0, 1, 0, 1, 1, 0])


def fit(model: Any, file: Path, epochs: int = 1, optimizer: Any = None, **options: Any) -> Any:
    optimizer = cnnx.Adam() if optimizer is None else optimizer
    return cnnx.fit(
        model, X, Y, epochs=epochs, batch_size=3, progress=False, checkpoint=file,
        optimizer=optimizer, **options,
    )  # fmt: skip


def npz_of_images(file: Path, **changes: Any) -> None:
    arrays: dict[str, Any] = {
        "x_train": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
        "y_train": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "x_test": np.zeros((2, 2, 2), np.uint8),
        "y_test": np.array([2, 1], np.uint8),
    }
    np.savez_compressed(file, **{**arrays, **changes})


def idx(array: Any) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


# Each kind of file: how a good one is written, and what reads it. A reader returns what must not
# have changed if it raised.


class Kind:
    """A kind of file, and the object that it is read into."""

    name = "file"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.name
        self.write()

    def write(self) -> None:
        raise NotImplementedError

    def read(self) -> None:
        raise NotImplementedError

    def state(self) -> Any:
        return None


class Model(Kind):
    name = "model.npz"

    def write(self) -> None:
        cnnx.save(small_net(1), self.path)
        self.model = small_net(2)

    def read(self) -> None:
        cnnx.load(self.path, self.model)

    def state(self) -> Any:
        return {name: array.tobytes() for name, array in self.model.state_dict().items()}


class Safetensors(Model):
    name = "model.safetensors"


class Checkpoint(Kind):
    name = "checkpoint.npz"

    def write(self) -> None:
        fit(small_net(1), self.path)
        self.model, self.optimizer = small_net(2), cnnx.Adam(0.5)

    def read(self) -> None:
        fit(self.model, self.path, optimizer=self.optimizer, resume=True)

    def state(self) -> Any:
        return (
            {name: array.tobytes() for name, array in self.model.state_dict().items()},
            self.model[2].rng.bit_generator.state,
            repr(self.optimizer.state_dict()),  # of numbers so few that all are shown
        )


class Images(Kind):
    name = "images.npz"

    def write(self) -> None:
        npz_of_images(self.path)

    def read(self) -> None:
        data.load(self.path)


class MappedImages(Images):
    def write(self) -> None:
        super().write()
        with np.load(self.path) as arrays:
            np.savez(self.path, **arrays)  # not compressed

    def read(self) -> None:
        data._files.load_levels(self.path).x_train.sum()


class Idx(Kind):
    name = "train-images"

    def write(self) -> None:
        self.path.write_bytes(idx(np.zeros((2, 3, 4), np.uint8)))

    def read(self) -> None:
        data.read_idx(self.path)


class MappedIdx(Idx):
    def read(self) -> None:
        data._files._idx(self.path, mapped=True).sum()


class ZippedIdx(Idx):
    name = "train-images.gz"

    def write(self) -> None:
        self.path.write_bytes(gzip.compress(idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))))


KINDS = [
    Model,
    pytest.param(Safetensors, marks=needs_safetensors),
    Checkpoint,
    Images,
    MappedImages,
    Idx,
    MappedIdx,
    ZippedIdx,
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


def good_or_one_clear_error(kind: Any, content: bytes) -> bool:
    """Read the content: it is taken, or is a ValueError that names the file and changes nothing."""
    kind.path.write_bytes(content)
    before = kind.state()
    try:
        kind.read()
        return True
    except (ValueError, TypeError) as error:
        caught = error
    assert type(caught) is ValueError or "cannot become" in str(caught)  # the model's dtype
    assert kind.path.name in str(caught)
    assert len(str(caught)) < 600
    assert kind.state() == before
    return False


def test_a_good_file_is_read(kind: Any) -> None:
    assert good_or_one_clear_error(kind, kind.path.read_bytes())


def test_each_byte_changed(kind: Any) -> None:
    # A zip file's or gzip's checksum tells most; the rest are headers, and IDX has none at all.
    content = kind.path.read_bytes()
    step = max(1, len(content) // 1500)  # a checkpoint's reading takes a millisecond
    refused = 0
    for place in range(0, len(content), step):
        for change in (0xFF, 0x01, 0x80):
            changed = bytearray(content)
            changed[place] ^= change
            refused += not good_or_one_clear_error(kind, bytes(changed))
            if kind.state() is not None and refused % 7 == 0:
                kind.write()  # a good file moved the model on
    assert refused > 0


def test_cut_at_each_length(kind: Any) -> None:
    content = kind.path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 700)):
        assert not good_or_one_clear_error(kind, content[:length])


@pytest.mark.parametrize("junk", [b"", b"\0" * 100, b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY" * 9])
def test_junk(kind: Any, junk: bytes) -> None:
    assert not good_or_one_clear_error(kind, junk)


# ---------------------------------------------------------------------------- memory


def npy(shape: str, size: int, dtype: str = "<f4") -> bytes:
    """An npy file whose header says that shape, and that has `size` bytes of zeros."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size)


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return file.getvalue()


def peak_of(call: Callable[[], Any]) -> int:
    """The most bytes that the call held at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HOSTILE = {
    "a shape without its numbers": archive({"1.weight.npy": npy("(1099511627776,)", 64)}),
    "a shape beyond 64 bits": archive({"1.weight.npy": npy(f"({2**70}, 4)", 64)}),
    "a shape below zero": archive({"1.weight.npy": npy("(-4, -4)", 64)}),
    "nothing times very much": archive({"1.weight.npy": npy(f"(0, {2**62}, {2**62})", 0)}),
    "65 dimensions": archive({"1.weight.npy": npy(str((1,) * 65), 4)}),
    "no tuple": archive({"1.weight.npy": npy("__import__('os').getcwd()", 4)}),
    "a deep header": archive({"1.weight.npy": npy("(" * 9000, 4)}),
    "a long header": archive({"1.weight.npy": npy("(" + "1," * 20000 + ")", 4)}),
    "objects": archive({"1.weight.npy": npy("(4, 2)", 64, "|O")}),
    "text": archive({"1.weight.npy": npy("(4, 2)", 32, "<U1")}),
    "fields": archive({"1.weight.npy": npy("(4, 2)", 64, "<f4, <f4")}),
    "a dtype of 2**30 bytes": archive({"1.weight.npy": npy("(1,)", 4, f"|V{2**30}")}),
    "a bomb": archive({"1.weight.npy": npy("(50331648,)", 201326592)}, zipfile.ZIP_DEFLATED),
    "the same name twice": archive({"a.npy": npy("(1,)", 4), "a": b""}),
    "out of the folder": archive({"../../1.weight.npy": npy("(4, 2)", 32)}),
    "an absolute name": archive({"/etc/1.weight.npy": npy("(4, 2)", 32)}),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("reader", [Model, Checkpoint, Images, MappedImages])
def test_hostile_npz(what: str, reader: Any, tmp_path: Path) -> None:
    kind = reader(tmp_path)
    content = HOSTILE[what]
    assert len(content) < MIB / 2
    # Half a megabyte for what a reader has to do anyway: a fit's own arrays, NumPy's header parser.
    assert peak_of(lambda: good_or_one_clear_error(kind, content)) < 4 * len(content) + 3 * MIB
    assert not good_or_one_clear_error(kind, content)
    assert os.listdir(tmp_path) == [kind.path.name]
    assert not (tmp_path.parent / "1.weight.npy").exists()


def test_a_lie_in_the_zip_s_directory(tmp_path: Path) -> None:
    # The directory says 10 bytes; the entry unpacks to 50 MB. zipfile must not go on beyond 10.
    kind = Model(tmp_path)
    content = bytearray(
        archive({"1.weight.npy": npy("(12582912,)", 50331648)}, zipfile.ZIP_DEFLATED)
    )
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 10)
    assert peak_of(lambda: good_or_one_clear_error(kind, bytes(content))) < 4 * MIB
    assert not good_or_one_clear_error(kind, bytes(content))


def test_zipped_bombs_of_images(tmp_path: Path) -> None:
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(struct.pack(">BBBB2I", 0, 0, 8, 2, 2**15, 2**13) + bytes(2**28)))
    assert file.stat().st_size < MIB
    peak = peak_of(lambda: refuses(ValueError, lambda: data.read_idx(file), "images.gz"))
    assert peak < 2.5 * _npz.warranted(file.stat().st_size)  # 2**28 would be four times as much


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(8, 8, 8)", f"({2**70}, 4)", "(-4, 2, 2)"])
def test_hostile_npz_that_stays_in_its_file(shape: str, tmp_path: Path) -> None:
    kind = MappedImages(tmp_path)
    labels = {f"y_{part}.npy": npy("(6,)", 6, "|u1") for part in ("train", "test")}
    images = {f"x_{part}.npy": npy(shape, 24, "|u1") for part in ("train", "test")}
    assert not good_or_one_clear_error(kind, archive({**images, **labels}))


def test_a_lie_about_what_stays_in_its_file(tmp_path: Path) -> None:
    # The directory and the array's header agree on 2 MB, which the file has not.
    kind = MappedImages(tmp_path)
    content = bytearray(archive({"x_train.npy": npy("(2, 1024, 1024)", 24, "|u1")}))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 128 + 2**21)
    assert not good_or_one_clear_error(kind, bytes(content))


def test_real_compression_is_far_from_the_limit(tmp_path: Path) -> None:
    # The digits of the package, which are mostly background, beside the factor that is refused.
    images = (data.digits().x_train * 16).astype(np.uint8)
    np.savez_compressed(tmp_path / "digits.npz", images=images)
    assert images.nbytes < 10 * (tmp_path / "digits.npz").stat().st_size
    zeros = io.BytesIO()
    np.savez_compressed(zeros, zeros=np.zeros(2**22))  # below 64 MiB there is no limit
    assert _npz.read_npz(zeros.getvalue())["zeros"].size == 2**22


@needs_safetensors
@pytest.mark.parametrize(
    "header",
    [
        {"1.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"1.weight": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 32]}},
        {"1.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 0]}},
        {"1.weight": {"dtype": "O", "shape": [4, 2], "data_offsets": [0, 32]}},
        {"1.weight": {"dtype": "F32", "shape": [-4, -2], "data_offsets": [0, 32]}},
        {"../1.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}},
        ["1.weight"],
        {},
    ],
)
def test_hostile_safetensors(header: Any, tmp_path: Path) -> None:
    kind = Safetensors(tmp_path)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(32)
    assert peak_of(lambda: good_or_one_clear_error(kind, content)) < MIB
    assert not good_or_one_clear_error(kind, content)
    oversized = struct.pack("<Q", 2**62) + text
    assert peak_of(lambda: good_or_one_clear_error(kind, oversized)) < MIB


# ---------------------------------------------------------------------------- what fits nowhere


@pytest.mark.parametrize(
    "tree",
    [
        [1],
        "text",
        None,
        {},
        {"training": []},
    ],
)
def test_checkpoints_that_are_no_tree(tree: Any, tmp_path: Path) -> None:
    kind = Checkpoint(tmp_path)
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **{"tree.json": text})
    assert not good_or_one_clear_error(kind, file.getvalue())


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no model": lambda tree: tree.pop("model"),
    "a model that is a list": lambda tree: tree.update(model=[1]),
    "a wrong shape": lambda tree: tree["model"].update({"1.bias": np.zeros(3, np.float32)}),
    "a wrong dtype": lambda tree: tree["model"].update({"1.bias": np.zeros(2, complex)}),
    "no optimizer": lambda tree: tree.pop("optimizer"),
    "an optimizer that is a number": lambda tree: tree.update(optimizer=1),
    "memory of other parameters": lambda tree: tree["optimizer"]["memory"].pop("1.bias"),
    "memory of another shape": lambda tree: tree["optimizer"]["memory"]["1.bias"].update(
        mean=np.zeros(9)
    ),
    "memory that is a number": lambda tree: tree["optimizer"].update(memory=1),
    "a learning rate that is text": lambda tree: tree["optimizer"].update(lr="x"),
    "an infinite count of steps": lambda tree: tree["optimizer"].update(steps=2**80),
    "no generator": lambda tree: tree.update(generators={}),
    "a generator that is none": lambda tree: tree["generators"].update({"2.rng": {"a": 1}}),
    "a generator of another kind": lambda tree: tree["generators"]["2.rng"].update(
        bit_generator="MT19937"
    ),
    "a generator beyond 128 bits": lambda tree: tree["generators"]["2.rng"]["state"].update(
        state=2**200
    ),
    "no position": lambda tree: tree.pop("position"),
    "an epoch that is text": lambda tree: tree["position"].update(epoch="1"),
    "a batch beyond the last": lambda tree: tree["position"].update(batch=10**9),
    "hits that are a list": lambda tree: tree["position"].update(hits=[]),
    "a history that is a list": lambda tree: tree.update(history=[]),
    "a history of text": lambda tree: tree["history"].update(loss=["a"]),
    "a history with more in it": lambda tree: tree["history"].update(colour=[1.0]),
    "a schedule": lambda tree: tree.update(schedule={"steps": 1, "base_lr": 1}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_checkpoints_with_a_wrong_tree(what: str, tmp_path: Path) -> None:
    # Whole files, made by somebody who means no good, or by another version.
    kind = Checkpoint(tmp_path)
    tree = read_tree(kind.path)
    DAMAGE[what](tree)
    write_tree(kind.path, tree)
    assert not good_or_one_clear_error(kind, kind.path.read_bytes())


def test_a_checkpoint_of_a_diverged_training_is_none_of_these(tmp_path: Path) -> None:
    kind = Checkpoint(tmp_path)
    tree = read_tree(kind.path)
    tree["history"]["loss"] = [float("nan")]
    write_tree(kind.path, tree)
    assert good_or_one_clear_error(kind, kind.path.read_bytes())


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (np.array([0, 1, 2, 0, 1, 2**62]), "labels go up to 4611686018427387904"),
        (np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64), "labels go up to"),
        (np.array([0, 1, 2, 0, 1, 2**31]), "labels go up to"),
        (np.array([0.0, 1, 2, 0, 1, 2]), "labels are float64"),
    ],
)
def test_labels_that_are_no_classes(labels: Any, parts: str, tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    npz_of_images(file, y_train=labels)
    refuses(ValueError, lambda: data.load(file), "images.npz", "training " + parts)


def test_idx_with_too_many_dimensions(tmp_path: Path) -> None:
    file = tmp_path / "images"
    file.write_bytes(b"\0\0\x08\xff" + struct.pack(">255I", *(1,) * 255) + b"\0")
    refuses(ValueError, lambda: data.read_idx(file), "images", "255 dimensions")


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "x"},
        {"lr": 0},
        {"lr": None},
        {"epochs": True},
        {"epochs": -1},
        {"batch_size": 0},
        {"batch_size": [1]},
        {"seed": -1},
        {"model": ["classroom"]},
        {"optimizer": 3},
        {"data": 5},
        {"colour": 1},
    ],
)
def test_settings_of_cnnx_train(change: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    good = {
        "data": None, "model": "classroom", "epochs": 1, "batch_size": 32, "lr": 0.1,
        "optimizer": "adam", "seed": 0,
    }  # fmt: skip
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**good, **change}))
    assert cli.main(["train", "--resume", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "settings.json is damaged" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["[1]", "3", "[" * 100_000, '{"lr": 1', "\xff"])
def test_settings_that_are_none(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "settings.json").write_bytes(text.encode("latin1"))
    assert cli.main(["train", "--resume", "--output", str(tmp_path)]) == 2
    assert "settings.json is damaged" in capsys.readouterr().err


def test_a_broken_safetensors_is_noticed_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("raise OSError('wrong architecture')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    npz_of_images(tmp_path / "images.npz", x_train=np.zeros((6, 8, 8), np.uint8),
                  x_test=np.zeros((2, 8, 8), np.uint8))  # fmt: skip
    run = ["train", "--data", str(tmp_path / "images.npz"), "--output", str(tmp_path / "run")]
    assert cli.main([*run, "--epochs", "1"]) in (0, 1)
    assert (tmp_path / "run" / "model.npz").exists()
