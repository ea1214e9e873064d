"""What data-parallel training is made of: sums in the order of a tree, buckets, jobs that meet.

Ranks are threads here (ranks.py), so that this runs everywhere.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from ranks import on_ranks

from cnnx.distributed._lockstep import Lockstep
from cnnx.distributed._reduction import Buckets, TreeSum, any_order_sum, summed, tree_sum

# ---- sums


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [0, 1, 5, 64])
def test_tree_sum_adds_in_the_order_of_the_tree(size, length):
    # Numbers of very different sizes: another order gives other bits.
    rng = np.random.default_rng(length)
    leaves = (rng.standard_normal((8, length)) * 10.0 ** rng.integers(-8, 8, (8, length))).astype(
        np.float32
    )
    level = list(leaves)
    while len(level) > 1:
        level = [level[i] + level[i + 1] for i in range(0, len(level), 2)]

    def job(rank):
        tree = TreeSum()
        for leaf in np.split(leaves, size)[rank.rank]:
            tree.add(leaf)
        array = tree.result().copy()
        summed(array, tree_sum, rank, 0)
        return array.tobytes(), rank.sent

    results = on_ranks(size, job)
    assert {array for array, _ in results} == {level[0].tobytes()}
    if length == 64:  # each rank sends no more than is necessary
        assert {sent for _, sent in results} == {2 * (size - 1) * 64 // size}


def test_another_order_would_be_seen():
    numbers = np.float32([1, 2**-24, 2**-24, 2**-24])
    tree = TreeSum()
    for number in numbers:
        tree.add(np.array([number]))
    assert tree.result()[0] == (numbers[0] + numbers[1]) + (numbers[2] + numbers[3])
    assert tree.result()[0] != np.float32(1)  # which is what adding one after the other gives


@pytest.mark.parametrize("reduction", [tree_sum, any_order_sum])
@pytest.mark.parametrize("bucket_bytes", [1, 40, 10**6])
def test_buckets_sum_what_comes_in_any_order(reduction, bucket_bytes):
    shapes = {"a": (3,), "b": (2, 4), "c": (), "d": (0,), "e": (5,)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    params["f"] = np.zeros(2, np.float64)

    def grad(name, shard):
        return np.full_like(params[name], (ord(name) + 1000 * shard))

    def job(rank):
        buckets = Buckets(params, 2, bucket_bytes, reduction, rank)
        for _ in range(2):
            buckets.begin()
            for shard in range(2):
                for name in ("c", "f", "a", "e", "d", "b"):
                    grads = grad(name, 2 * rank.rank + shard)
                    buckets.put(name, shard, grads)
                    buckets.put(name, shard, grads * 0)  # came already: not taken
                    buckets.progress()
            result = {name: array.copy() for name, array in buckets.finish()}
        return result

    for result in on_ranks(2, job):
        for name in params:
            expected = sum(grad(name, shard) for shard in range(4))
            np.testing.assert_array_equal(result[name], expected)
            assert result[name].shape == params[name].shape


def test_a_bucket_leaves_before_the_rest_of_backward():
    # The gradients of the last layer have arrived while the first layer's are not yet there.
    params = {"first": np.zeros(4), "last": np.zeros(4)}
    both_sent = threading.Barrier(2)

    def job(rank):
        buckets = Buckets(params, 1, 1, tree_sum, rank)
        buckets.begin()
        buckets.put("last", 0, np.ones(4))
        end = time.monotonic() + 20
        while buckets._buckets[0].pending is not None or not buckets._started:
            buckets.progress()
            assert time.monotonic() < end
        arrived = buckets._buckets[0].array.copy()
        both_sent.wait(20)
        buckets.put("first", 0, np.ones(4))
        dict(buckets.finish())
        return arrived

    for arrived in on_ranks(2, job):
        np.testing.assert_array_equal(arrived, np.full(4, 2.0))


# ---- jobs that meet


@pytest.mark.parametrize("count", [1, 2, 4])
def test_lockstep_meets_in_order(count):
    said = []

    def make(number):
        def job(meet):
            said.append((number, "before"))
            assert meet(np.array([2.0**number])) == [10 * (2.0**count - 1)]
            said.append((number, "between"))
            assert meet(np.array([1.0])) == [10.0 * count]
            said.append((number, "after"))

        return job

    Lockstep(lambda array: 10 * array).run([make(number) for number in range(count)])
    places = ("before", "between", "after")
    assert said == [(number, place) for place in places for number in range(count)]


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_lockstep_ends_with_the_error_of_one(fails):
    def make(number):
        def job(meet):
            if number == fails:
                raise ValueError(f"job {number}")
            meet(np.zeros(1))
            meet(np.zeros(1))

        return job

    with pytest.raises(ValueError, match=f"job {fails}"):
        Lockstep(lambda array: array).run([make(number) for number in range(3)])
