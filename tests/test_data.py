"""Data sets: the digits in the package, IDX and npz files, and damaged ones."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from cnnx.data import Dataset, digits, load, read_idx
from cnnx.data._dataset import unit_images
from cnnx.data._files import load_levels

# Images per class of optdigits.tes, from the data set's own description at UCI.
UCI_CLASS_SIZES = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
FIRST_OF_OPTDIGITS_TES = [
    [0, 0, 5, 13, 9, 1, 0, 0],
    [0, 0, 13, 15, 10, 15, 5, 0],
    [0, 3, 15, 2, 0, 11, 8, 0],
    [0, 4, 12, 0, 0, 8, 8, 0],
    [0, 5, 8, 0, 0, 9, 8, 0],
    [0, 4, 11, 0, 1, 12, 7, 0],
    [0, 2, 14, 5, 10, 12, 0, 0],
    [0, 0, 6, 13, 10, 0, 0, 0],
]


def some_images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 5)).astype(np.uint8)


def labels_up_to(top, n):
    return (np.arange(n) % (top + 1)).astype(np.uint8)


ARRAYS = {
    "x_train": some_images(7),
    "y_train": labels_up_to(3, 7),
    "x_test": some_images(4, seed=1),
    "y_test": labels_up_to(2, 4),
}
IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def idx_bytes(array):
    """An IDX file, written with struct: independent of the reader."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_idx_folder(folder: Path, zipped=(), spelling=lambda name: name):
    for key, name in IDX_NAMES.items():
        content = idx_bytes(ARRAYS[key])
        if key in zipped:
            (folder / f"{spelling(name)}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / spelling(name)).write_bytes(content)
    return folder


def write_npz(path: Path, **changes):
    arrays = {**ARRAYS, **changes}
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def check(data: Dataset):
    assert data.input_shape == (1, 6, 5)
    assert data.classes == 4
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        # 1e-7: half a unit in the last place of float32 below 1 is 3e-8
        np.testing.assert_allclose(x[:, 0] * 255.0, ARRAYS[f"x_{part}"], rtol=1e-7 * 2, atol=0)
        np.testing.assert_array_equal(y, ARRAYS[f"y_{part}"])


def test_digits_are_those_of_uci():
    data = digits()
    labels = np.concatenate([data.y_train, data.y_test])
    assert np.bincount(labels).tolist() == UCI_CLASS_SIZES
    images = np.concatenate([data.x_train, data.x_test])
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    np.testing.assert_array_equal(data.x_train[0, 0] * 16, FIRST_OF_OPTDIGITS_TES)
    assert data.y_train[0] == 0


def test_digits_hold_out_every_fifth():
    data = digits()
    assert len(data.y_train) == 1438
    assert len(data.y_test) == 359
    assert data.classes == 10
    # the test set of UCI starts 0 1 2 3 4 5 6 7 8 9 0 1 ...
    assert data.y_train[:8].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert data.y_test[:2].tolist() == [4, 9]


def test_licence_of_the_digits_is_beside_them():
    import cnnx

    text = (Path(cnnx.__file__).parent / "data_files" / "LICENSE-digits.txt").read_text()
    for fact in ("CC BY 4.0", "Alpaydin", "Kaynak", "UCI Machine Learning Repository"):
        assert fact in text


@pytest.mark.parametrize("zipped", [(), tuple(IDX_NAMES), ("x_train", "y_test")])
def test_idx_folder(tmp_path, zipped):
    check(load(write_idx_folder(tmp_path, zipped)))


def test_idx_folder_with_dots_in_the_names(tmp_path):
    check(load(write_idx_folder(tmp_path, ("x_test",), lambda name: name.replace("-idx", ".idx"))))


def test_npz(tmp_path):
    check(load(write_npz(tmp_path / "tiny.npz")))


def test_npz_with_wider_labels(tmp_path):
    check(load(write_npz(tmp_path / "tiny.npz", y_train=ARRAYS["y_train"].astype(">i4"))))


def write_stored_npz(path: Path):
    np.savez(path, **ARRAYS)
    return path


@pytest.mark.parametrize(
    ("write", "mapped"),
    [
        (lambda folder: write_idx_folder(folder), True),
        (lambda folder: write_idx_folder(folder, ("x_test", "y_train")), True),
        (lambda folder: write_idx_folder(folder, ("x_train",)), False),
        (lambda folder: write_stored_npz(folder / "tiny.npz"), True),
        (lambda folder: write_npz(folder / "tiny.npz"), False),
    ],
)
def test_what_is_not_compressed_stays_in_its_file(tmp_path, write, mapped):
    place = write(tmp_path)
    data = load_levels(place)
    whole = load(place)
    assert data.x_train.dtype == np.uint8
    np.testing.assert_array_equal(data.x_train[:, 0], ARRAYS["x_train"])
    np.testing.assert_array_equal(unit_images(data.x_train), whole.x_train)
    for name in ("x_test", "y_train", "y_test"):
        np.testing.assert_array_equal(getattr(data, name), getattr(whole, name))
        assert getattr(data, name).dtype == getattr(whole, name).dtype
    assert isinstance(data.x_train, np.memmap) == mapped
    if mapped:
        assert not data.x_train.flags.writeable
        file = place / "train-images-idx3-ubyte" if place.is_dir() else place
        content = bytearray(file.read_bytes())
        at = content.index(ARRAYS["x_train"].tobytes())
        with open(file, "r+b") as opened:  # it is the file that is seen
            opened.seek(at)
            opened.write(bytes([content[at] ^ 1]))
        assert data.x_train[0, 0, 0, 0] == content[at] ^ 1


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 4), (0,)])
def test_read_idx_shapes(tmp_path, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(np.uint8).reshape(shape)
    (tmp_path / "array").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "array"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"starts with the bytes \(none\)"),
        (b"\0\0\x08", "starts with the bytes 00 00 08,"),
        (b"PK\x03\x04 a zip file", "starts with the bytes 50 4b 03 04"),
        (b"\0\0\x0d\x01" + bytes(8), "starts with the bytes 00 00 0d 01"),
        (b"\0\0\x08\x00", "starts with the bytes 00 00 08 00"),
        (b"\0\0\x08\x03" + bytes(11), "ends inside its header of 3 dimensions"),
        (idx_bytes(some_images(2))[:-1], "2 x 6 x 5 = 60 bytes of data, but 59 came"),
        (idx_bytes(some_images(2)) + b"\0", "2 x 6 x 5 = 60 bytes of data, but more came"),
        # 2**96 bytes announced: must not be allocated
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", "bytes of data, but 3 came"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_idx(tmp_path, content, message, zipped):
    file = tmp_path / ("broken.gz" if zipped else "broken")
    file.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-9],  # cut off
        lambda packed: packed[:12] + b"\xff" * 20 + packed[32:],  # garbage inside
        lambda packed: b"not gzip at all",
        lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:],  # wrong checksum
    ],
)
def test_damaged_gzip(tmp_path, damage):
    file = tmp_path / "broken.gz"
    file.write_bytes(damage(gzip.compress(idx_bytes(some_images(5)))))
    with pytest.raises(ValueError, match=r"broken\.gz"):
        read_idx(file)


def test_idx_folder_lacks_a_file(tmp_path):
    write_idx_folder(tmp_path)
    (tmp_path / IDX_NAMES["y_test"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no file t10k-labels-idx1-ubyte or .*\.gz"):
        load(tmp_path)


def test_idx_labels_in_place_of_images(tmp_path):
    write_idx_folder(tmp_path)
    (tmp_path / IDX_NAMES["x_test"]).write_bytes(idx_bytes(ARRAYS["y_test"]))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: has 1 dimensions, expected 3"):
        load(tmp_path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load(tmp_path / "nothing.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "no array y_test in it; it has x_test, x_train, y_train"),
        ({"x_train": ARRAYS["x_train"] / 255}, "training images are float64 of shape"),
        ({"x_test": ARRAYS["x_test"][..., None]}, r"test images are uint8 of shape \(4, 6, 5, 1\)"),
        ({"x_test": ARRAYS["x_test"][:0], "y_test": ARRAYS["y_test"][:0]}, "none of them zero"),
        ({"x_test": ARRAYS["x_test"][:, 1:]}, r"are \(6, 5\) pixels and test images \(5, 5\)"),
        ({"y_train": ARRAYS["y_train"][1:]}, r"labels are uint8 of shape \(6,\), .* shape \(7,\)"),
        ({"y_train": np.eye(7)}, "training labels are float64"),
        ({"y_test": ARRAYS["y_test"].astype(np.int8) - 1}, "test labels go down to -1"),
        ({"y_test": ARRAYS["y_test"] + 7}, "labels go up to 9, but the training labels only to 3"),
    ],
)
def test_npz_that_does_not_fit_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(write_npz(tmp_path / "tiny.npz", **changes))


class Bomb:
    """Unpickling this object creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_npz_never_unpickles(tmp_path):
    trap = tmp_path / "unpickled"
    bomb = np.array([Bomb(trap)], dtype=object)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        load(write_npz(tmp_path / "bomb.npz", y_train=bomb))
    assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_npz(tmp_path, kept):
    file = write_npz(tmp_path / "tiny.npz")
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(ValueError, match=r"tiny\.npz: not a whole npz file"):
        load(file)


def test_npz_with_flipped_bits(tmp_path):
    file = write_npz(tmp_path / "tiny.npz")
    content = bytearray(file.read_bytes())
    start = content.index(b"x_train.npy") + 40
    for i in range(start, start + 8):
        content[i] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tiny\.npz"):
        load(file)
