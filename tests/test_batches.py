"""Batches: what they hold, that a thread changes nothing, and that it ends."""

from __future__ import annotations

import gc
import os
import threading
import time
from itertools import islice

import numpy as np
import pytest
from fresh import printed

import cnnx
from cnnx.data import Batches, random_crop, random_flip

IMAGES = 23


def make_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(IMAGES, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, IMAGES)


def augment(x, rng):
    return random_crop(random_flip(x, rng), rng, padding=1)


def make_batches(**options):
    return Batches(*make_data(), **{"batch_size": 4, "seed": 5, "augment": augment, **options})


def contents(batches, *place):
    return [(x.tobytes(), y.tobytes()) for x, y in batches.epoch(*place)]


def threads_of_batches():
    return [t for t in threading.enumerate() if t.name.startswith("cnnx-batches")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()  # what a failed test's traceback holds is not this test's affair
    assert not threads_of_batches()


# ---- what they hold


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_in_order(prefetch):
    x, y = make_data()
    batches = Batches(x, y, batch_size=4, shuffle=False, prefetch=prefetch)
    pieces = list(batches.epoch(1))
    assert len(pieces) == len(batches) == 6
    assert [len(part) for part, _ in pieces] == [4, 4, 4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in pieces]), x)
    np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), y)


def test_every_epoch_has_every_image_once_in_an_order_of_its_own():
    x, y = np.arange(IMAGES), np.arange(IMAGES) * 10
    batches = Batches(x, y, batch_size=4)
    orders = []
    for epoch in (1, 2, 3):
        pieces = list(batches.epoch(epoch))
        order = np.concatenate([part for part, _ in pieces])
        np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), order * 10)
        assert sorted(order) == list(range(IMAGES))
        orders.append(order.tolist())
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == np.random.default_rng((0, 1)).permutation(IMAGES).tolist()
    assert orders[0] == np.concatenate([part for part, _ in batches.epoch(1)]).tolist()


def test_the_same_batches_for_any_prefetch():
    expected = contents(make_batches(prefetch=0), 2)
    for prefetch in (1, 2, 3, 100):
        assert contents(make_batches(prefetch=prefetch), 2) == expected
    assert contents(make_batches(prefetch=2), 1) != expected
    assert contents(make_batches(prefetch=2, seed=6), 2) != expected


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_epoch_from_its_middle(prefetch):
    whole = contents(make_batches(prefetch=0), 3)
    for start in range(7):
        assert contents(make_batches(prefetch=prefetch), 3, start) == whole[start:]


def test_two_epochs_side_by_side():
    batches = make_batches()
    first, second = contents(batches, 1), contents(batches, 2)
    pairs = list(zip(batches.epoch(1), batches.epoch(2), strict=True))
    assert [(x.tobytes(), y.tobytes()) for (x, y), _ in pairs] == first
    assert [(x.tobytes(), y.tobytes()) for _, (x, y) in pairs] == second


def test_augmentation_gets_a_generator_for_each_batch():
    """The same for a batch in every run, and not that of the order or of another batch."""
    seen = []

    def spy(x, rng):
        seen.append(rng.integers(2**62))
        return x

    for prefetch in (0, 2):
        list(make_batches(augment=spy, prefetch=prefetch).epoch(1))
    assert seen[:6] == seen[6:]
    list(make_batches(augment=spy).epoch(2))
    seen.append(np.random.default_rng((5, 1)).integers(2**62))
    assert len(set(seen)) == 6 + 6 + 1


def test_the_data_is_left_alone():
    x, y = make_data()
    before = x.copy()

    def destroy(x, rng):
        x[...] = 0
        return x

    for part, _ in Batches(x, y, shuffle=False, augment=destroy).epoch(1):
        assert not part.any()
    np.testing.assert_array_equal(x, before)


def test_a_file_mapped_into_memory(tmp_path):
    x, y = make_data()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"batch_size": 4, "augment": augment}
    assert contents(Batches(mapped, y, **options), 1) == contents(Batches(x, y, **options), 1)


# ---- the thread


def test_it_works_while_the_consumer_does():
    """No further ahead than told; and the consumer finds what was prepared."""
    done = []

    def slow(x, rng):
        done.append(threading.current_thread())
        return x

    for prefetch in (1, 3):
        done.clear()
        iterator = make_batches(augment=slow, prefetch=prefetch).epoch(1)
        assert not done  # nothing starts before it is asked for
        next(iterator)
        wait_until(lambda: len(done) == prefetch + 1)  # noqa: B023
        time.sleep(0.05)
        assert len(done) == prefetch + 1
        assert {t.name for t in done} == {"cnnx-batches_0"}
        iterator.close()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_thread_prepares_where_there_is_something_to_prepare(tmp_path):
    x, y = make_data()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for images, change, expected in ((x, None, 0), (x, augment, 2), (mapped, None, 2)):
        batches = Batches(images, y, augment=change)
        assert batches.prefetch == expected
        iterator = batches.epoch(1)
        next(iterator)
        assert bool(threads_of_batches()) == bool(expected)
        iterator.close()


def test_without_prefetch_there_is_no_thread():
    here = []
    list(make_batches(augment=lambda x, rng: here.append(threading.current_thread()) or x,
                      prefetch=0).epoch(1))  # fmt: skip
    assert set(here) == {threading.current_thread()}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_stop_iteration_does_not_end_the_epoch(prefetch):
    def ends(x, rng):
        return next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(make_batches(augment=ends, prefetch=prefetch).epoch(1))


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_an_error_comes_out_where_its_batch_would(prefetch):
    calls = []

    def fails(x, rng):
        calls.append(1)
        if len(calls) == 4:
            raise ArithmeticError("the fourth")
        return x

    got = []
    with pytest.raises(ArithmeticError, match="the fourth"):
        got.extend(make_batches(augment=fails, prefetch=prefetch).epoch(1))
    iterator = make_batches(augment=fails, prefetch=prefetch).epoch(1)
    calls.clear()
    assert len(list(islice(iterator, 3))) == 3
    with pytest.raises(ArithmeticError, match="the fourth"):
        next(iterator)
    assert not threads_of_batches()
    with pytest.raises(StopIteration):
        next(iterator)


def test_leaving_early_ends_the_thread():
    for how in ("close", "forget", "break"):
        iterator = make_batches().epoch(1)
        next(iterator)
        assert threads_of_batches()
        if how == "close":
            iterator.close()
        elif how == "break":
            for _ in iterator:
                break
        del iterator
        gc.collect()
        assert not threads_of_batches()


def test_the_end_of_the_interpreter_does_not_hang(tmp_path):
    code = """
import numpy as np
from cnnx.data import Batches
batches = Batches(np.zeros((1000, 4)), np.zeros(1000), batch_size=1, augment=lambda x, rng: x)
iterators = [batches.epoch(1) for _ in range(5)]
for iterator in iterators:
    next(iterator)
print("left")
"""
    assert printed(code, tmp_path) == "left"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_in_the_midst_of_an_epoch(tmp_path):
    """The child has no thread; it and the parent go on, and both end."""
    code = """
import os, sys, warnings, zlib
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
import numpy as np
from cnnx.data import Batches
noise = lambda x, rng: x + rng.normal(size=x.shape)
batches = Batches(np.arange(40.0), np.arange(40), batch_size=2, augment=noise)
def rest(iterator):
    return zlib.crc32(b"".join(x.tobytes() for x, y in iterator))
expected = batches.epoch(1)
for _ in range(3): next(expected)
expected = rest(expected)
iterator = batches.epoch(1)
for _ in range(3): next(iterator)
child = os.fork()
if rest(iterator) != expected or rest(batches.epoch(1, 3)) != expected:
    os._exit(1)
if child == 0:
    sys.exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert printed(code, tmp_path) == "0"


def test_threads_of_their_own_share_one():
    batches = make_batches()
    expected = contents(batches, 1)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(contents(batches, 1))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 6


# ---- in fit


def make_net():
    return cnnx.Sequential(cnnx.Flatten(), cnnx.Dropout(0.2, rng=1), cnnx.Dense(36, 3, rng=0))


def fit(net, **options):
    options = {"epochs": 3, "batch_size": 4, "seed": 5, "augment": augment, **options}
    return cnnx.fit(net, *make_data(), optimizer=cnnx.Adam(0.01), progress=False, **options)


def state(net):
    return {name: array.tobytes() for name, array in net.state_dict().items()}


def test_fit_goes_through_these_batches():
    net, plain = make_net(), make_net()
    fit(net)
    optimizer, loss = cnnx.Adam(0.01), cnnx.SoftmaxCrossEntropy()
    batches = make_batches(prefetch=0)
    for epoch in (1, 2, 3):
        for x, y in batches.epoch(epoch):
            loss(plain(x), y)
            plain.backward(loss.backward())
            optimizer.step(plain)
    assert state(net) == state(plain)
    without = make_net()
    fit(without, augment=None)
    assert state(without) != state(net)


@pytest.mark.parametrize("batches", [1, 5, 6, 7, 11, 17])
def test_fit_resumes_with_the_same_bits(tmp_path, batches):
    net, file = make_net(), tmp_path / "checkpoint.npz"
    history = fit(net)
    left = batches

    def stop(step):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_net(), checkpoint=file, callback=stop)
    assert not threads_of_batches()
    resumed = make_net()
    assert fit(resumed, checkpoint=file, resume=True) == history
    assert state(resumed) == state(net)


def test_fit_does_not_resume_without_its_augmentation(tmp_path):
    file = tmp_path / "checkpoint.npz"
    fit(make_net(), checkpoint=file, epochs=1)
    with pytest.raises(ValueError, match="its augment was True, and here it is False"):
        fit(make_net(), checkpoint=file, resume=True, augment=None)


def test_an_error_in_augmentation_comes_out_of_fit():
    def fails(x, rng):
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        fit(make_net(), augment=fails)


# ---- wrong calls


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": "4"}, TypeError, "batch_size is '4'"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"shuffle": "no"}, TypeError, "shuffle is 'no'"),
        ({"prefetch": -1}, ValueError, "prefetch is -1"),
        ({"augment": 3}, TypeError, r"augment is 3 \(int\)"),
        ({"augment": lambda x: x}, TypeError, "expected a function of a batch's inputs and"),
        ({"x": [1, 2]}, TypeError, "x is .1, 2. .list., expected an array"),
        ({"x": np.zeros((3, 1))}, ValueError, r"x has shape \(3, 1\) and y has shape \(23,\)"),
        ({"x": np.zeros((0, 1)), "y": np.zeros(0)}, ValueError, "at least 1"),
    ],
)
def test_wrong_options(options, error, message):
    x, y = make_data()
    x, y = options.pop("x", x), options.pop("y", y)
    with pytest.raises(error, match=message):
        Batches(x, y, **options)


@pytest.mark.parametrize(
    ("place", "error"),
    [((0,), ValueError), ((1, 7), ValueError), ((1, -1), ValueError), ((1.5,), TypeError)],
)
def test_wrong_places(place, error):
    with pytest.raises(error):
        make_batches().epoch(*place)


@pytest.mark.parametrize("result", [None, np.zeros(3), np.float32(1), "images"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_augmentation_that_returns_something_else(result, prefetch):
    batches = make_batches(augment=lambda x, rng: result, prefetch=prefetch)
    with pytest.raises(ValueError, match=r"augment returned .* array of the batch's 4 images"):
        next(batches.epoch(1))
