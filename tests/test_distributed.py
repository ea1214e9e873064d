"""Data-parallel training: the same bits for every number of ranks, and how a job ends.

Ranks are threads here (ranks.py), so that this runs everywhere; test_mpi has processes and an MPI.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fresh import complaint
from ranks import Aborted, Team, on_ranks

import cnnx
from cnnx._checkpoint import read_tree
from cnnx.data import random_flip
from cnnx.distributed import DataParallel

IMAGES, BATCH = 45, 8  # the last batch has 5 images, so of 4 shards one has two
RANKS = (1, 2, 4)


@pytest.fixture(autouse=True)
def one_thread():
    cnnx.set_num_threads(1)


def make_data(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, IMAGES)
    x = rng.standard_normal((IMAGES, 1, 6, 6)).astype(dtype)
    x[np.arange(IMAGES), 0, 2 * y] += 2
    return x, y


def make_net(dtype="float32", dropout=0.25):
    """Everything that has a state: weights, running statistics, random generators."""
    rng = np.random.default_rng(3)
    body = cnnx.Sequential(
        cnnx.Conv2D(1, 4, 3, padding=1, rng=rng, dtype=dtype),
        cnnx.BatchNorm2D(4, activation="relu", dtype=dtype),
    )
    return cnnx.Sequential(
        cnnx.Residual(body, cnnx.Conv2D(1, 4, 1, rng=rng, dtype=dtype)),
        cnnx.BatchNorm2D(4, affine=False, dtype=dtype),
        cnnx.ReLU(),
        cnnx.MaxPool2D(2),
        cnnx.Dropout(dropout, rng=rng),
        cnnx.Flatten(),
        cnnx.Dropout(dropout, rng=7),
        cnnx.Dense(36, 3, rng=rng, dtype=dtype),
    )


def trained(rank, net=None, epochs=2, data=None, optimizer=None, **options):
    """The bytes of all state after a training, and its history."""
    fitting = {
        name: options.pop(name)
        for name in (
            "checkpoint",
            "resume",
            "callback",
            "shuffle",
            "batch_size",
            "seed",
            "augment",
        )
        if name in options
    }
    net = make_net() if net is None else net
    x, y = make_data() if data is None else data
    optimizer = cnnx.SGD(0.05, momentum=0.9) if optimizer is None else optimizer
    history = cnnx.fit(
        net,
        x,
        y,
        **{"epochs": epochs, "batch_size": BATCH, "progress": False, **fitting},
        validation=make_data(1),
        optimizer=DataParallel(optimizer, rank, **options),
    )
    return {name: array.tobytes() for name, array in net.state_dict().items()}, history


# ---- training


@pytest.mark.parametrize("sync_batch_norm", [False, True])
@pytest.mark.parametrize("augment", [None, random_flip])
def test_the_same_bits_for_every_number_of_ranks(sync_batch_norm, augment):
    options = {"sync_batch_norm": sync_batch_norm, "augment": augment}
    results = [
        result for size in RANKS for result in on_ranks(size, lambda rank: trained(rank, **options))
    ]
    for state, history in results:
        assert state == results[0][0]
        assert history == results[0][1]
    assert results[0][1].loss[-1] < results[0][1].loss[0]


def test_every_shard_is_augmented_by_chances_of_its_own():
    drawn = {}

    def job(rank):
        mine = drawn[threading.current_thread()] = []

        def augment(x, rng):
            mine.append(int(rng.integers(2**62)))
            return x

        trained(rank, augment=augment)
        return mine

    one, four = on_ranks(1, job)[0], [n for mine in on_ranks(4, job) for n in mine]
    assert len(set(one)) == len(one)
    assert sorted(one) == sorted(four)


@pytest.mark.parametrize("size", RANKS)
def test_synchronised_gradients_are_those_of_the_whole_batch(size):
    x, y = make_data(dtype=np.float64)
    whole, loss = make_net("float64", dropout=0), cnnx.SoftmaxCrossEntropy()
    expected = loss(whole(x), y)
    whole.backward(loss.backward())

    def job(rank):
        net, loss = make_net("float64", dropout=0), cnnx.SoftmaxCrossEntropy()
        parallel = DataParallel(cnnx.SGD(1), rank, sync_batch_norm=True)
        shards = np.array_split(np.arange(IMAGES), 4)[parallel.mine]
        batches = ((x[shard], y[shard]) for shard in shards)
        return parallel.gradients(net, loss, batches, IMAGES), net

    for value, net in on_ranks(size, job):
        # Sums of 45 * 36 numbers in another order, through two normalisations, in float64.
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        for name, grad in whole.grads.items():
            np.testing.assert_allclose(net.grads[name], grad, rtol=0, atol=1e-13, err_msg=name)
        for name, array in whole.buffers.items():
            np.testing.assert_allclose(net.buffers[name], array, rtol=1e-13, err_msg=name)


def test_without_batch_norm_a_step_is_that_of_the_whole_batch():
    x, y = make_data(dtype=np.float64)

    def net():
        rng = np.random.default_rng(0)
        return cnnx.Sequential(
            cnnx.Conv2D(1, 3, 3, activation="relu", dtype="float64", rng=rng),
            cnnx.MaxPool2D(2),
            cnnx.Flatten(),
            cnnx.Dense(12, 3, dtype="float64", rng=rng),
        )

    options = {"epochs": 2, "batch_size": BATCH, "shuffle": False, "progress": False}
    alone = net()
    history = cnnx.fit(alone, x, y, optimizer=cnnx.Adam(), **options)

    def job(rank):
        model = net()
        return cnnx.fit(model, x, y, optimizer=DataParallel(cnnx.Adam(), rank), **options), model

    for theirs, model in on_ranks(2, job):
        np.testing.assert_allclose(theirs.loss, history.loss, rtol=1e-12)
        assert theirs.accuracy == history.accuracy
        for name, param in alone.params.items():
            # Adam divides by the gradient's size, and so shows the rounding of small ones.
            np.testing.assert_allclose(model.params[name], param, rtol=0, atol=1e-9)


def test_running_statistics_are_the_mean_of_the_shards():
    x, y = make_data()

    def job(rank):
        net = cnnx.Sequential(cnnx.BatchNorm2D(1), cnnx.Flatten(), cnnx.Dense(36, 3, rng=0))
        parallel = DataParallel(cnnx.SGD(0), rank)
        shards = np.array_split(np.arange(IMAGES), 4)
        batches = [(x[shard], y[shard]) for shard in shards[parallel.mine]]
        parallel.gradients(net, cnnx.SoftmaxCrossEntropy(), batches, IMAGES)
        return net.buffers

    parts = [x[shard].astype(np.float64) for shard in np.array_split(np.arange(IMAGES), 4)]
    mean = sum(len(part) * 0.1 * part.mean() for part in parts) / IMAGES
    var = sum(len(part) * (0.9 + 0.1 * part.var(ddof=1)) for part in parts) / IMAGES
    for buffers in on_ranks(2, job):
        np.testing.assert_allclose(buffers["0.running_mean"], [mean], rtol=1e-6)  # float32
        np.testing.assert_allclose(buffers["0.running_var"], [var], rtol=1e-6)


def test_buffers_that_no_shard_moves_stay():
    x, y = make_data()
    rng = np.random.default_rng(0)
    mean, var = rng.standard_normal((2, 50)).astype(np.float32)

    def job(rank):
        norm = cnnx.BatchNorm2D(50)
        norm.buffers["running_mean"][...], norm.buffers["running_var"][...] = mean, var**2
        before = {name: array.tobytes() for name, array in norm.buffers.items()}
        net = cnnx.Sequential(cnnx.Conv2D(1, 50, 6, rng=0), norm, cnnx.Flatten(), cnnx.Dense(50, 3))
        norm.eval()
        for sync_batch_norm in (False, True):
            parallel = DataParallel(cnnx.SGD(0), rank, sync_batch_norm=sync_batch_norm)
            shards = np.array_split(np.arange(IMAGES), 4)
            batches = [(x[shard], y[shard]) for shard in shards[parallel.mine]]
            parallel.gradients(net, cnnx.SoftmaxCrossEntropy(), batches, IMAGES)
            assert {name: array.tobytes() for name, array in norm.buffers.items()} == before

    on_ranks(2, job)


def test_dropout_has_another_mask_in_each_shard_and_step():
    masks = {}

    class Spy(cnnx.Layer):
        def __init__(self, rank):
            self.rank = rank

        def forward(self, x):
            masks.setdefault(self.rank, []).append((x != 0).tobytes())
            return x

        def backward(self, grad_out):
            return grad_out

    def job(rank):
        net = cnnx.Sequential(
            cnnx.Dropout(0.5, rng=0), Spy((rank.size, rank.rank)), cnnx.Flatten(), cnnx.Dense(36, 3)
        )
        data = np.ones((32, 1, 6, 6), np.float32), np.zeros(32, np.int64)
        cnnx.fit(net, *data, epochs=1, batch_size=16, progress=False,
                 optimizer=DataParallel(cnnx.SGD(0), rank))  # fmt: skip

    for size in RANKS:
        on_ranks(size, job)
    assert len(set(masks[1, 0])) == 8  # two steps of four shards
    first, second = masks[2, 0], masks[2, 1]
    assert [*first[:2], *second[:2], *first[2:], *second[2:]] == masks[1, 0]


def test_every_rank_reads_its_own_images_only():
    seen = {}

    class Watched(np.ndarray):
        def __getitem__(self, index):
            if isinstance(index, np.ndarray):
                seen[threading.current_thread()].append(index)
            return np.asarray(self)[index]

    x, y = make_data()

    def job(rank):
        mine = seen[threading.current_thread()] = []
        trained(rank, data=(x.view(Watched), y))
        return set(np.concatenate(mine).tolist()), sum(map(len, mine))

    results = on_ranks(4, job)
    assert [images for images, _ in results] == [set(range(r, IMAGES, 4)) for r in range(4)]
    assert sum(count for _, count in results) == 2 * IMAGES  # each once an epoch


@pytest.mark.parametrize("size", [2, 3])
def test_the_fast_reduction_takes_any_number_of_ranks(size):
    def job(rank):
        options = {"batch_size": 12, "reduction": "fast"}
        return trained(rank, **options, epochs=4)

    results = on_ranks(size, job)
    assert all(state == results[0][0] for state, _ in results)
    assert results[0][1].loss[-1] < results[0][1].loss[0]


def test_ranks_start_from_rank_0():
    def job(rank):
        net = make_net()
        for param in net.params.values():
            param += rank.rank
        return trained(rank, net)[0]

    for state in on_ranks(2, job):
        assert state == on_ranks(1, trained)[0][0]


def test_a_model_that_is_no_sequential():
    class Own:
        """The least that can be trained; it writes its gradient into one array again and again."""

        def __init__(self):
            self.params = {"factor": np.ones(36), "unused": np.ones(2)}
            self.grads = {"factor": np.zeros(36), "unused": np.zeros(2)}

        def forward(self, x):
            self.x = x.reshape(len(x), 36)
            return (self.x * self.params["factor"]).sum(axis=1, keepdims=True)

        def backward(self, grad_out):
            self.grads["factor"][...] = (grad_out * self.x).sum(axis=0)
            return (grad_out * self.params["factor"]).reshape(-1, 1, 6, 6)

    x = make_data(dtype=np.float64)[0]
    y = x.sum(axis=(1, 2, 3))[:, None] * 3

    def job(rank):
        model = Own()
        optimizer = cnnx.SGD(0.01) if rank is None else DataParallel(cnnx.SGD(0.01), rank)
        cnnx.fit(model, x, y, epochs=2, batch_size=BATCH, shuffle=False, progress=False,
                 loss=cnnx.MSELoss(), optimizer=optimizer)  # fmt: skip
        return model.params["factor"]

    for size in RANKS:
        for factor in on_ranks(size, job):
            np.testing.assert_allclose(factor, job(None), rtol=1e-12)


# ---- checkpoints, interrupts and errors


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 2)])
def test_a_job_may_go_on_on_another_number_of_ranks(tmp_path, before, after):
    whole = on_ranks(1, lambda rank: trained(rank, epochs=3))[0]
    file = tmp_path / "checkpoint.npz"

    def interrupted(rank):
        def stop(step):
            if (step.epoch, step.batch) == (2, 3) and rank.rank == rank.size - 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match="epoch 2, after batch 4; saved to"):
            trained(rank, epochs=3, checkpoint=file, callback=stop)

    on_ranks(before, interrupted)
    for state, history in on_ranks(
        after, lambda rank: trained(rank, epochs=3, checkpoint=file, resume=True)
    ):
        assert (state, history) == whole


def test_a_rank_that_fails_ends_the_job_with_one_message(tmp_path, capsys):
    file = tmp_path / "checkpoint.npz"

    def job(rank):
        def fail(step):
            if (step.epoch, step.batch) == (2, 3) and rank.rank in (1, 2):
                raise OSError("the disk is gone")

        return trained(rank, epochs=3, checkpoint=file, callback=fail)

    team = Team(4)
    results = team.run(job)
    assert team.status == 1
    assert [type(result) for result in results] == [Aborted, SystemExit, SystemExit, Aborted]
    lines = capsys.readouterr().err.splitlines()
    ends = [line for line in lines if line.startswith("rank ")]
    assert ends[0] == (
        "rank 1 of 4 failed in epoch 2, after batch 3, and the job ends; "
        f"{file} holds the last state saved, to resume from"
    )
    assert "OSError: the disk is gone" in lines
    resumed = on_ranks(2, lambda rank: trained(rank, epochs=3, checkpoint=file, resume=True))
    assert resumed == on_ranks(2, lambda rank: trained(rank, epochs=3))


def test_there_is_a_checkpoint_from_the_start(tmp_path):
    file = tmp_path / "checkpoint.npz"

    def job(rank):
        def fail(step):
            raise OSError("at once")

        return trained(rank, checkpoint=file, callback=fail)

    Team(2).run(job)
    resumed = on_ranks(2, lambda rank: trained(rank, checkpoint=file, resume=True))
    assert resumed == on_ranks(2, trained)


def test_a_long_epoch_is_saved_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("cnnx.distributed._run._SAVE_SECONDS", 0.0)
    file = tmp_path / "checkpoint.npz"
    positions = []

    def job(rank):
        def look(step):
            if rank.rank == 0:
                position = read_tree(file)["position"]
                positions.append((position["epoch"], position["batch"]))

        trained(rank, epochs=1, checkpoint=file, callback=look)

    on_ranks(2, job)
    assert positions == [(1, batch) for batch in range(1, 7)]


def test_one_rank_raises_what_went_wrong():
    def stop(step):
        raise OSError("alone")

    with pytest.raises(OSError, match="alone"):
        on_ranks(1, lambda rank: trained(rank, callback=stop))


def test_a_damaged_checkpoint_is_the_same_error_on_every_rank(tmp_path):
    file = tmp_path / "checkpoint.npz"
    file.write_bytes(b"nothing")
    results = Team(2).run(lambda rank: trained(rank, checkpoint=file, resume=True))
    assert [type(result) for result in results] == [ValueError] * 2
    assert "not a whole checkpoint" in str(results[1])


def test_a_checkpoint_of_another_cut_is_refused(tmp_path):
    file = tmp_path / "checkpoint.npz"
    on_ranks(1, lambda rank: trained(rank, checkpoint=file))
    with pytest.raises(ValueError, match=r"its parallel was .*'shards': 4.* here .*'shards': 8"):
        on_ranks(2, lambda rank: trained(rank, checkpoint=file, resume=True, shards=8))


def test_ranks_that_differ_are_told_apart():
    def job(rank):
        return trained(rank, seed=rank.rank)

    results = Team(2).run(job)
    assert [str(result) for result in results] == [
        "rank 1 has another seed than rank 0: 1 and 0"
    ] * 2


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (1, {"shards": 3}, "shards is 3, expected a power of two"),
        (1, {"shards": 0}, "shards is 0, expected an integer"),
        (1, {"shards": 2**20}, "shards is 1048576, expected an integer from 1 to 65536"),
        (3, {}, "shards is 4 on 3 ranks, expected a power of two of ranks"),
        (2, {"shards": 1}, "shards is 1 on 2 ranks"),
        (2, {"shards": 4, "reduction": "fast"}, "expected the number of ranks, 2"),
        (1, {"reduction": "slow"}, "reduction is 'slow', expected one of 'deterministic', 'fast'"),
        (1, {"batch_size": 10}, "batch_size is 10, expected a multiple of the 4 shards"),
        (1, {"bucket_bytes": 0}, "bucket_bytes is 0"),
    ],
)
def test_what_cannot_be_is_said(size, options, message):
    for result in Team(size).run(lambda rank: trained(rank, **options)):
        assert isinstance(result, ValueError)
        assert message in str(result)


def test_wrong_types():
    rank = Team(1).ranks[0]
    with pytest.raises(TypeError, match="expected the optimizer inside it"):
        DataParallel(DataParallel(cnnx.SGD(1), rank), rank)
    with pytest.raises(TypeError, match="communicator is str, without exchange"):
        DataParallel(cnnx.SGD(1), "world")
    with pytest.raises(TypeError, match="optimizer"):
        DataParallel(cnnx.Dense(1, 1), rank)


X, Y = make_data()
SHARDS = [(X[n::4], Y[n::4]) for n in range(4)]


@pytest.mark.parametrize(
    ("batches", "images", "kind", "message"),
    [
        (SHARDS[:3], IMAGES, ValueError, "batches has 3 pairs, expected 4: one for each shard"),
        ([], IMAGES, ValueError, "batches has 0 pairs, expected 4"),
        (SHARDS * 2, IMAGES, ValueError, "batches has more pairs, expected 4: one for each shard"),
        (3, IMAGES, TypeError, "batches is 3 (int), expected a pair of arrays for each shard"),
        ((X, Y), IMAGES, TypeError, "batches[0] is a ndarray, expected a pair of arrays: inputs"),
        ([(X,)] * 4, IMAGES, TypeError, "batches[0] is a tuple, expected a pair"),
        ([(X, Y), (X, 5)], IMAGES, TypeError, "batches[1][1] is 5 (int), expected an array"),
        ([(X, Y[:3])], IMAGES, ValueError, "batches[0][0] has shape (45, 1, 6, 6) and batches[0]["),
        (SHARDS, 0, ValueError, "images is 0, expected an integer from 1"),
        (SHARDS, 1.5, TypeError, "images is 1.5 (float), expected an integer"),
        (SHARDS, 44, ValueError, "images is 44, but the shards of all ranks have 45 images"),
    ],
)
@pytest.mark.parametrize("sync_batch_norm", [False, True])
def test_gradients_names_what_is_wrong(batches, images, kind, message, sync_batch_norm):
    net, loss = make_net(), cnnx.SoftmaxCrossEntropy()
    parallel = DataParallel(cnnx.SGD(1), Team(1).ranks[0], sync_batch_norm=sync_batch_norm)
    with pytest.raises(kind) as caught:
        parallel.gradients(net, loss, batches, images)
    assert message in str(caught.value)
    assert parallel.gradients(net, loss, iter(SHARDS), IMAGES) > 0  # what failed leaves no trace


def test_gradients_of_what_is_none():
    parallel, loss = DataParallel(cnnx.SGD(1), Team(1).ranks[0]), cnnx.SoftmaxCrossEntropy()
    for model in (3, cnnx.Dense, object()):
        with pytest.raises(TypeError, match=r"model is .*, expected an object with forward"):
            parallel.gradients(model, loss, SHARDS, IMAGES)
    with pytest.raises(TypeError, match=r"loss is .*, expected an object with forward"):
        parallel.gradients(make_net(), object(), SHARDS, IMAGES)


@pytest.mark.parametrize("sync_batch_norm", [False, True])
def test_a_layer_may_be_replaced_between_steps(sync_batch_norm):
    net, loss = make_net(dropout=0), cnnx.SoftmaxCrossEntropy()
    parallel = DataParallel(cnnx.SGD(1), Team(1).ranks[0], sync_batch_norm=sync_batch_norm)
    parallel.gradients(net, loss, SHARDS, IMAGES)
    net.layers[-1] = cnnx.Dense(36, 3, rng=9)
    parallel.gradients(net, loss, SHARDS, IMAGES)
    found = {name: grad.copy() for name, grad in net.grads.items()}
    other = DataParallel(cnnx.SGD(1), Team(1).ranks[0], sync_batch_norm=sync_batch_norm)
    other.gradients(net, loss, SHARDS, IMAGES)
    for name, grad in net.grads.items():
        np.testing.assert_array_equal(found[name], grad)


def test_all_ranks_hear_of_images_that_are_missing():
    def job(rank):
        parallel = DataParallel(cnnx.SGD(1), rank)
        return parallel.gradients(
            make_net(), cnnx.SoftmaxCrossEntropy(), SHARDS[parallel.mine], 2 * IMAGES
        )

    for result in Team(2).run(job):
        assert isinstance(result, ValueError)
        assert "images is 90, but the shards of all ranks have 45 images" in str(result)


def test_a_missing_gradient_is_named():
    class Half(cnnx.Dense):
        def backward(self, grad_out):
            result = super().backward(grad_out)
            del self.grads["bias"]
            return result

    net = cnnx.Sequential(cnnx.Flatten(), Half(36, 3))
    with pytest.raises(ValueError, match=r"grads\['1.bias'\] is missing, expected shape \(3,\)"):
        on_ranks(1, lambda rank: trained(rank, net))


def test_schedules_and_states_reach_the_optimizer():
    inner = cnnx.SGD(0.5)
    optimizer = DataParallel(inner, Team(1).ranks[0])
    schedule = cnnx.StepLR(optimizer, 1, 0.5)
    schedule.step()
    assert inner.lr == optimizer.lr == 0.25
    other = DataParallel(cnnx.SGD(1), Team(1).ranks[0])
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0.25
    dense = cnnx.Dense(1, 1, bias=False, dtype="float64")
    dense.params["weight"][...] = 5
    dense.grads["weight"][...] = 4
    optimizer.step(dense)
    assert dense.params["weight"] == [[4.0]]


def test_mpi_is_imported_only_when_it_is_used(tmp_path):
    code = """
import sys
import cnnx, cnnx.cli, cnnx.distributed
assert "mpi4py" not in sys.modules
sys.modules["mpi4py"] = None  # as if it were not installed
cnnx.distributed.DataParallel(cnnx.SGD(1))
"""
    assert "ImportError: training over several processes needs mpi4py" in complaint(code, tmp_path)


def test_fewer_images_than_shards():
    data = tuple(array[:2] for array in make_data())
    expected = on_ranks(1, lambda rank: trained(rank, data=data))
    for size in RANKS:
        assert on_ranks(size, lambda rank: trained(rank, data=data)) == expected * size


def test_a_checkpoint_that_cannot_be_written_ends_the_job(tmp_path, capsys):
    team = Team(2)
    results = team.run(lambda rank: trained(rank, checkpoint=tmp_path / "nowhere" / "file.npz"))
    assert team.status == 1
    assert [type(result) for result in results] == [SystemExit, Aborted]
    assert "rank 0 of 2 failed in epoch 1, after batch 0" in capsys.readouterr().err
