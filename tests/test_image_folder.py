"""Pictures in folders: what is read from where, and that a bad file is one clear error."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest

from cnnx.data import _pictures, image_folder, load

Image = pytest.importorskip("PIL.Image")


def grey(seed, h=4, w=5):
    return np.random.default_rng(seed).integers(0, 256, (h, w)).astype(np.uint8)


def rgb(seed, h=4, w=5):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)


def write(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes with eleven grey pictures each; made in another order than that of the names."""
    for name, first in (("cat", 100), ("ant", 0)):
        for i in reversed(range(11)):
            write(tmp_path / "set" / name / f"{i:02}.png", grey(first + i))
    return tmp_path / "set"


def levels(x):
    """Back from 0..1 to 0..255: exact, for each level comes from one float32."""
    back = np.rint(x * 255)
    np.testing.assert_array_equal((back / np.float32(255)).astype(np.float32), x)
    return back


# ---- what is read


def test_classes_and_parts(folder):
    data = image_folder(folder)
    assert data.name == "set"
    assert data.class_names == ("ant", "cat")
    assert data.classes == 2
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.x_train.shape == (18, 1, 4, 5)
    train, test = [0, 1, 2, 3, 5, 6, 7, 8, 10], [4, 9]
    for x, y, chosen in ((data.x_train, data.y_train, train), (data.x_test, data.y_test, test)):
        assert y.tolist() == [0] * len(chosen) + [1] * len(chosen)
        expected = [grey(first + i) for first in (0, 100) for i in chosen]
        np.testing.assert_array_equal(levels(x)[:, 0], expected)


@pytest.mark.parametrize(("test_every", "held_out"), [(2, 10), (11, 2), (4, 4)])
def test_another_part_held_out(folder, test_every, held_out):
    data = image_folder(folder, test_every=test_every)
    assert (len(data.y_train), len(data.y_test)) == (22 - held_out, held_out)
    np.testing.assert_array_equal(levels(data.x_test)[0, 0], grey(test_every - 1))


def test_folders_of_their_own_for_the_test(tmp_path):
    for part, first, n in (("train", 0, 3), ("test", 10, 2)):
        for i in range(n):
            for label, name in enumerate(("b", "c", "d")):
                write(tmp_path / part / name / f"{i}.png", grey(first + 3 * i + label))
    data = image_folder(tmp_path)
    assert data.class_names == ("b", "c", "d")
    assert data.y_train.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.y_test.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(levels(data.x_test)[3, 0], grey(10 + 3 + 1))
    assert load(tmp_path).x_train.tobytes() == data.x_train.tobytes()


def test_load_takes_pictures_too(folder):
    data, same = load(folder), image_folder(folder)
    assert data.class_names == same.class_names
    np.testing.assert_array_equal(data.x_train, same.x_train)


def test_load_prefers_idx_files(tmp_path, folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 0]))
    with pytest.raises(FileNotFoundError, match="has no file train-images-idx3-ubyte"):
        load(folder)


def test_colours(tmp_path):
    for i in range(2):
        write(tmp_path / "a" / f"{i}.png", rgb(i))
        write(tmp_path / "b" / f"{i}.png", grey(10 + i))
    data = image_folder(tmp_path, test_every=2)
    assert data.input_shape == (3, 4, 5)
    np.testing.assert_array_equal(levels(data.x_train)[0], rgb(0).transpose(2, 0, 1))
    np.testing.assert_array_equal(levels(data.x_train)[1], np.stack([grey(10)] * 3))
    data = image_folder(tmp_path, test_every=2, channels=1)
    assert data.input_shape == (1, 4, 5)
    # ITU-R 601, as Pillow says that it does it; in whole numbers, so within one level
    luma = rgb(1).astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(data.x_test[0, 0] * 255 - luma).max() <= 1
    np.testing.assert_array_equal(levels(data.x_test)[1, 0], grey(11))
    only_grey = image_folder(tmp_path, channels=3, test_every=2)
    np.testing.assert_array_equal(levels(only_grey.x_test)[1], np.stack([grey(11)] * 3))


def test_modes_and_formats(tmp_path):
    """The same grey picture in every mode, and in the formats that keep it as it is."""
    pixels = (grey(1) > 127).astype(np.uint8) * 255
    one = Image.fromarray(pixels)
    transparent = np.zeros_like(pixels)
    transparent[0] = 255
    variants = {
        "l.png": one,
        "1.png": one.convert("1"),
        "la.png": Image.merge("LA", (one, Image.fromarray(transparent))),
        "rgba.png": Image.merge("RGBA", (one, one, one, Image.fromarray(transparent))),
        "p.png": one.convert("P"),
        "rgb.bmp": one.convert("RGB"),
        "l.pgm": one,
        "rgb.ppm": one.convert("RGB"),
    }
    (tmp_path / "a").mkdir()
    for name, image in variants.items():
        image.save(tmp_path / "a" / name)
    one.save(tmp_path / "a" / "see-through.png", transparency=0)
    one.convert("P").save(tmp_path / "a" / "bytes.png", transparency=bytes(range(256)))
    data = image_folder(tmp_path, channels=1, test_every=5)
    assert len(data.y_train) == 8 and len(data.y_test) == 2
    for image in levels(np.concatenate([data.x_train, data.x_test])):
        np.testing.assert_array_equal(image[0], pixels)


def test_a_photograph_is_near(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    for i in range(5):
        write(tmp_path / "a" / f"{i}.JPG", smooth, quality=95)
    data = image_folder(tmp_path)
    assert data.input_shape == (1, 64, 48)
    assert np.abs(data.x_test[0, 0] * 255 - smooth).max() < 4  # what the format loses of a ramp


def test_a_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 16:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn it by 90 degrees clockwise
    for i in range(5):
        write(tmp_path / "a" / f"{i}.jpg", pixels, exif=exif, quality=100)
    data = image_folder(tmp_path)
    assert data.input_shape == (1, 32, 16)
    assert data.x_test[0, 0, :14].max() < 0.1 and data.x_test[0, 0, 18:].min() > 0.7


def test_resizing(tmp_path):
    for i in range(5):
        write(tmp_path / "a" / f"{i}.png", np.full((10 + i, 20 - i), 17 * i, np.uint8))
    data = image_folder(tmp_path, size=(6, 8))
    assert data.input_shape == (1, 6, 8)
    for i in range(4):
        np.testing.assert_array_equal(levels(data.x_train)[i, 0], np.full((6, 8), 17 * i))
    halves = np.zeros((8, 8), np.uint8)
    halves[4:] = 240
    for i in range(5):
        write(tmp_path / "a" / f"{i}.png", halves)
    x = image_folder(tmp_path, size=4).x_test[0, 0] * 255
    assert (np.diff(x, axis=0) >= 0).all() and (np.diff(x, axis=1) == 0).all()
    assert x[0].max() < 60 < 180 < x[-1].min()


def test_what_is_passed_over(folder):
    (folder / "notes.txt").write_text("not a class")
    write(folder / ".hidden" / "1.png", grey(1))
    (folder / "ant" / "Thumbs.db").write_bytes(b"no picture")
    (folder / "ant" / "._00.png").write_bytes(b"no picture")
    (folder / "ant" / "inner.png").mkdir()
    data = image_folder(folder)
    assert data.class_names == ("ant", "cat")
    assert len(data.y_train) == 18


# ---- bad files


def png_header(width, height, depth=8, colour=0):
    """The start of a PNG file that says that it is so large."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def png_of(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


DAMAGED = {
    "empty": b"",
    "text": b"not a picture",
    "cut off": png_of(rgb(1, 40, 40))[:-60],
    "cut in its header": png_of(rgb(1))[:20],
    "nothing but its header": png_of(rgb(1))[:33],
    "a flipped byte": png_of(rgb(1, 40, 40)).replace(b"IDAT", b"IDAT\0", 1),
    "a bomb": png_header(60_000, 60_000),
    "a bomb that Pillow would let pass": png_header(9_000, 9_000),
    "a bomb of which Pillow would warn": png_header(12_000, 12_000),
    "no pixels": png_header(0, 5),
    "16 bits": png_of(np.arange(20, dtype=np.uint16).reshape(4, 5)),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n",
    "a GIF": b"GIF89a" + bytes(20),
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.filterwarnings("ignore")  # also where Pillow's warnings are no errors
def test_damaged_pictures(folder, what, capfd):
    file = folder / "cat" / "05.png"
    file.write_bytes(DAMAGED[what])
    with pytest.raises(ValueError, match=r"05\.png is not a whole picture: .") as caught:
        image_folder(folder)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_photographs(folder, kept):
    write(folder / "cat" / "05.jpg", rgb(1, 64, 64))
    content = (folder / "cat" / "05.jpg").read_bytes()
    (folder / "cat" / "05.jpg").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"05\.jpg is not a whole picture"):
        image_folder(folder)


def test_every_cut_of_a_picture_is_an_error_or_the_picture(tmp_path):
    """The picture, where only checksums and end marks are missing."""
    content = png_of(grey(3))
    file = tmp_path / "a.png"
    read = 0
    for n in range(len(content)):
        file.write_bytes(content[:n])
        try:
            picture = _pictures._picture(file, _pictures._pillow(), None, None)
        except ValueError:
            continue
        np.testing.assert_array_equal(picture[0], grey(3))
        read += 1
    assert read <= 4 + 4 + 12 + 4  # Adler-32, the chunk's CRC, IEND, and the last bits of padding


def test_random_damage_is_a_value_error(tmp_path):
    rng = np.random.default_rng(0)
    files = {"png": png_of(rgb(3, 9, 9))}
    for kind in ("jpeg", "bmp", "ppm"):
        stream = io.BytesIO()
        Image.fromarray(rgb(3, 9, 9)).save(stream, kind)
        files[kind] = stream.getvalue()
    for kind, content in files.items():
        for _ in range(150):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                damaged[place] = rng.integers(256)
            file = tmp_path / f"a.{kind}"
            file.write_bytes(damaged)
            try:
                picture = _pictures._picture(file, _pictures._pillow(), None, None)
            except ValueError as error:
                assert str(file) in str(error)  # noqa: PT017
            else:
                assert picture.dtype == np.uint8 and picture.ndim == 3


def test_too_many_pixels_are_refused_before_they_are_unpacked(folder):
    (folder / "cat" / "05.png").write_bytes(DAMAGED["a bomb that Pillow would let pass"])
    with pytest.raises(ValueError, match="9000 x 9000 pixels, expected at most 67,108,864"):
        image_folder(folder)


def test_a_16_bit_picture_says_so(folder):
    (folder / "cat" / "05.png").write_bytes(DAMAGED["16 bits"])
    with pytest.raises(ValueError, match=r"mode I;16, expected one of .* 8 bits a channel"):
        image_folder(folder)


# ---- bad folders


def test_sizes_that_differ(folder):
    write(folder / "cat" / "03.png", grey(1, 5, 4))
    with pytest.raises(
        ValueError, match=r"03\.png is 5 x 4 pixels and .*00\.png 4 x 5: .* size=\(height, width\)"
    ):
        image_folder(folder)


def test_folders_that_do_not_fit(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        image_folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no folders in it"):
        image_folder(folder / "ant")
    with pytest.raises(ValueError, match=r"no class has 12 pictures \(test_every\)"):
        image_folder(folder, test_every=12)
    (folder / "bee").mkdir()
    with pytest.raises(ValueError, match=r"bee has no picture in it, .* \.png"):
        image_folder(folder)


def test_parts_with_other_classes(tmp_path):
    write(tmp_path / "train" / "a" / "1.png", grey(1))
    write(tmp_path / "train" / "b" / "1.png", grey(2))
    write(tmp_path / "test" / "a" / "1.png", grey(3))
    with pytest.raises(ValueError, match="the classes a, b, and that to test on a, expected"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size is 0"),
        ({"size": (1, 2, 3)}, ValueError, r"size is \(1, 2, 3\)"),
        ({"size": "big"}, TypeError, "size is 'big'"),
        ({"channels": 2}, ValueError, r"channels is 2 \(int\), expected None, 1 or 3"),
        ({"channels": "L"}, ValueError, "channels is 'L'"),
        ({"test_every": 1}, ValueError, "test_every is 1, expected an integer from 2"),
    ],
)
def test_wrong_options(folder, options, error, message):
    with pytest.raises(error, match=message):
        image_folder(folder, **options)


def test_no_path():
    with pytest.raises(TypeError, match="path is 3"):
        image_folder(3)


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'cnnx\[data\]'"):
        image_folder(folder)
