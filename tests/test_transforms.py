"""Flips, crops and normalisation of batches, against a loop over images and pixels."""

from __future__ import annotations

import numpy as np
import pytest

from cnnx.data import center_crop, mean_std, normalize, random_crop, random_flip


def images(n=7, c=3, h=5, w=6, dtype=np.float32):
    """No two pixels alike, so that a pixel tells where it came from."""
    return (np.arange(n * c * h * w).reshape(n, c, h, w) + 1).astype(dtype)


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- flips


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flip_of_all_and_of_none(dtype):
    x = images(dtype=dtype)
    mirrored, upside_down, turned = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    n, c, h, w = x.shape
    for i, j, row, column in np.ndindex(n, c, h, w):
        mirrored[i, j, row, column] = x[i, j, row, w - 1 - column]
        upside_down[i, j, row, column] = x[i, j, h - 1 - row, column]
        turned[i, j, row, column] = x[i, j, h - 1 - row, w - 1 - column]
    for shares, expected in (((1, 0), mirrored), ((0, 1), upside_down), ((1, 1), turned)):
        out = random_flip(x, rng(), *shares)
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, expected)
    out = random_flip(x, rng(), 0.0)
    np.testing.assert_array_equal(out, x)
    assert not np.shares_memory(out, x)


def test_flip_turns_whole_images_as_often_as_told():
    n = 4000
    x = images(n)
    out = random_flip(x, rng(1), 0.3, 0.6)
    counts = np.zeros((2, 2), int)
    for image, flipped in zip(x, out, strict=True):
        kinds = [
            (a, b)
            for a in (0, 1)
            for b in (0, 1)
            if np.array_equal(flipped, image[:, :: 1 - 2 * b, :: 1 - 2 * a])
        ]
        assert len(kinds) == 1
        counts[kinds[0]] += 1
    expected = n * np.outer([0.7, 0.3], [0.4, 0.6])
    # A binomial's deviation is below sqrt(n p): five of them come once in a million.
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_flip_by_default_takes_half_from_left_to_right():
    x = images(1000)
    out = random_flip(x, rng())
    flipped = np.array([not np.array_equal(a, b) for a, b in zip(x, out, strict=True)])
    np.testing.assert_array_equal(out[flipped], x[flipped][..., ::-1])
    assert 400 < flipped.sum() < 600  # six deviations of sqrt(1000 / 4) are 95


# ---- crops


def place_of(window, image, padding):
    """Where in the padded image the window lies, found by trying; exactly one place."""
    above, beside = padding
    c, h, w = image.shape
    padded = np.zeros((c, h + 2 * above, w + 2 * beside), image.dtype)
    padded[:, above : above + h, beside : beside + w] = image
    height, width = window.shape[1:]
    places = [
        (top, left)
        for top in range(padded.shape[1] - height + 1)
        for left in range(padded.shape[2] - width + 1)
        if np.array_equal(window, padded[:, top : top + height, left : left + width])
    ]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize(
    ("size", "padding"), [(None, 1), (None, (2, 1)), (3, 0), ((2, 5), 0), ((4, 7), (0, 2)), (7, 2)]
)
def test_random_crop_is_a_window_and_every_place_comes(size, padding):
    n = 2000
    x = images(n)
    out = random_crop(x, rng(3), size, padding)
    above, beside = (padding, padding) if isinstance(padding, int) else padding
    height, width = x.shape[2:] if size is None else (size, size) if type(size) is int else size
    assert out.shape == (n, 3, height, width)
    assert out.dtype == x.dtype
    rows, columns = 5 + 2 * above - height + 1, 6 + 2 * beside - width + 1
    counts = np.zeros((rows, columns), int)
    for window, image in zip(out, x, strict=True):
        counts[place_of(window, image, (above, beside))] += 1
    expected = n / counts.size
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()  # as for the flips


def test_random_crop_of_the_whole():
    x = images()
    out = random_crop(x, rng())
    np.testing.assert_array_equal(out, x)
    assert not np.shares_memory(out, x)


@pytest.mark.parametrize("size", [1, 2, 3, 5, (4, 3), (5, 6)])
def test_center_crop(size):
    x = images()
    height, width = (size, size) if isinstance(size, int) else size
    out = center_crop(x, size)
    assert out.shape == (7, 3, height, width)
    above, left = (5 - height) // 2, (6 - width) // 2
    for i, j, row, column in np.ndindex(out.shape):
        assert out[i, j, row, column] == x[i, j, above + row, left + column]
    assert not np.shares_memory(out, x)
    # As much is cut off above as below, and one pixel more below where it does not go up.
    assert 0 <= (5 - height - above) - above <= 1


# ---- normalisation


def test_mean_and_std_by_a_loop():
    x = (rng(2).normal(size=(6, 3, 4, 5)) * [[[1]], [[10]], [[0.1]]] + 3).astype(np.float32)
    mean, std = mean_std(x)
    assert mean.shape == std.shape == (3,)
    for c in range(3):
        values = [float(v) for v in x[:, c].ravel()]
        average = sum(values) / len(values)
        spread = (sum((v - average) ** 2 for v in values) / len(values)) ** 0.5
        # Both sum in float64: 120 roundings of 1e-16, and a deviation that is 30 times below the
        # mean loses as much again.
        assert mean[c] == pytest.approx(average, rel=1e-13)
        assert std[c] == pytest.approx(spread, rel=1e-12)


def test_mean_std_of_many_float32_pixels():
    # Summed in float32 one after the other, 0.1 + 0.1 + ... would be off by a per cent.
    mean, std = mean_std(np.full((64, 1, 256, 256), 0.1, np.float32))
    assert mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert std[0] < 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalize_by_a_loop(dtype):
    x = images(dtype=dtype)
    mean, std = [1.5, -2.0, 100.0], [0.5, 4.0, 7.0]
    out = normalize(x, mean, std)
    assert out.dtype == dtype
    for i, c, row, column in np.ndindex(x.shape):
        expected = (float(x[i, c, row, column]) - mean[c]) / std[c]
        # two roundings
        assert out[i, c, row, column] == pytest.approx(expected, rel=2 * float(np.finfo(dtype).eps))


def test_normalized_images_have_mean_0_and_deviation_1():
    x = (rng(4).normal(size=(50, 3, 9, 9)) * 5 + 2).astype(np.float32)
    mean, std = mean_std(normalize(x, *mean_std(x)))
    np.testing.assert_allclose(mean, 0, atol=1e-6)  # each of float32's roundings is below 1e-6
    np.testing.assert_allclose(std, 1, rtol=1e-6)


def test_one_number_for_all_channels():
    x = images()
    np.testing.assert_array_equal(normalize(x, 3, 2), normalize(x, [3, 3, 3], np.full(3, 2.0)))


# ---- inputs


ALL = [
    lambda x: random_flip(x, rng(), 0.5, 0.5),
    lambda x: random_crop(x, rng(), 3, 1),
    lambda x: center_crop(x, 3),
    lambda x: normalize(x, [1, 2, 3], 2),
]


@pytest.mark.parametrize("function", ALL)
def test_inputs_are_left_alone_and_need_not_be_contiguous(function):
    x = images()
    strange = np.asfortranarray(x.astype(">f4"))[::-1][::-1]
    strange.flags.writeable = False
    np.testing.assert_array_equal(function(strange), function(x))
    np.testing.assert_array_equal(x, images())


@pytest.mark.parametrize("function", ALL)
def test_no_images(function):
    assert function(images()[:0]).shape[0] == 0


@pytest.mark.parametrize("function", [*ALL, mean_std])
def test_wrong_images(function):
    with pytest.raises(TypeError, match=r"x is an array of uint8, .* cast it"):
        function(images().astype(np.uint8))
    with pytest.raises(ValueError, match=r"x has shape \(3, 5, 6\), expected 4 dimensions"):
        function(images()[0])


def test_nan_and_infinity_pass_through():
    x = images()
    x[0, 0, 0, 0], x[1, 1, 1, 1] = np.nan, np.inf
    out = random_flip(x, rng(), 1.0)
    assert np.isnan(out[0, 0, 0, -1]) and np.isinf(out[1, 1, 1, -2])
    out = normalize(x, 1, 2)
    assert np.isnan(out[0, 0, 0, 0]) and np.isinf(out[1, 1, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: random_flip(x, 0), TypeError, r"rng is 0 \(int\), expected a numpy.random.Gen"),
        (lambda x: random_flip(x, rng(), 1.5), ValueError, "horizontal is 1.5"),
        (lambda x: random_flip(x, rng(), 0, np.nan), ValueError, "vertical is nan"),
        (lambda x: random_crop(x, np.random), TypeError, "rng is a module"),
        (lambda x: random_crop(x, rng(), 6), ValueError, r"size is \(6, 6\), .* are \(5, 6\)"),
        (lambda x: random_crop(x, rng(), 8, 1), ValueError, r"\(7, 8\) with their padding"),
        (lambda x: random_crop(x, rng(), 0), ValueError, "size is 0"),
        (lambda x: random_crop(x, rng(), None, -1), ValueError, "padding is -1"),
        (lambda x: random_crop(x, rng(), 2.0), TypeError, r"size is 2.0 \(float\)"),
        (lambda x: center_crop(x, (5, 7)), ValueError, r"size is \(5, 7\), .* are \(5, 6\)"),
        (lambda x: mean_std(x[:0]), ValueError, "at least one pixel"),
        (lambda x: normalize(x, [1, 2], 1), ValueError, r"mean has shape \(2,\), expected \(3,\)"),
        (lambda x: normalize(x, 0, [1, 0, 1]), ValueError, r"std is \[1.0, 0.0, 1.0\]"),
        (lambda x: normalize(x, 0, -1), ValueError, "expected numbers above 0"),
        (lambda x: normalize(x, 0, 1e-300), ValueError, "expected numbers above 0"),
        (lambda x: normalize(x, np.nan, 1), ValueError, "mean is nan, expected finite"),
        (lambda x: normalize(x, 0, [1, np.inf, 1]), ValueError, "expected finite"),
        (
            lambda x: normalize(x, 1e300, 1),
            ValueError,
            "1e.300, expected finite numbers of float32",
        ),
        (lambda x: normalize(x, 0, 1e300), ValueError, "std is 1e.300, expected finite numbers"),
        (lambda x: normalize(x, "a", 1), TypeError, "mean is 'a'"),
        (
            lambda x: normalize(x, [[1, 2], [3]], 1),
            TypeError,
            r"mean is \[\[1, 2\], \[3\]\] \(list",
        ),
        (
            lambda x: random_crop(x, rng(), None, 2**31 - 1),
            ValueError,
            r"with padding \(2147483647",
        ),
        (lambda x: normalize(x, None, 1), TypeError, "mean is None"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(images())
