"""fit interrupted and resumed: the end is the same bits; and the file that the state waits in."""

import re
import signal
import threading

import numpy as np
import pytest
from runs import BATCH, BATCHES, make_data, make_sgd, state_bytes, training

import cnnx
from cnnx._checkpoint import read_tree, write_tree


@pytest.fixture
def sigint():
    """Python's own handler, also where the tests run in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class StopAt:
    """A callback that interrupts after the given number of batches."""

    def __init__(self, batches, how):
        self.left, self.how = batches, how

    def __call__(self, step):
        self.left -= 1
        if self.left == 0:
            self.how()


def raise_interrupt():
    raise KeyboardInterrupt


def send_sigint():
    signal.raise_signal(signal.SIGINT)


# ---- interrupted and resumed


@pytest.mark.parametrize("how", [raise_interrupt, send_sigint])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("batches", [1, 4, BATCHES, BATCHES + 1, 3 * BATCHES])
def test_resumed_run_has_the_bits_of_a_whole_one(tmp_path, sigint, how, optimizer, batches):
    net, fit = training(optimizer)
    history = fit()

    file = tmp_path / "checkpoint.npz"
    _, fit = training(optimizer)
    with pytest.raises(KeyboardInterrupt, match=r"saved to .*checkpoint\.npz"):
        fit(checkpoint=file, callback=StopAt(batches, how))
    # other weights: what counts must come from the file
    resumed, fit = training(optimizer, net_seed=99)
    assert fit(checkpoint=file, resume=True) == history
    assert state_bytes(resumed) == state_bytes(net)


def test_interrupted_after_every_batch(tmp_path):
    net, fit = training()
    history = fit()
    file = tmp_path / "checkpoint.npz"
    for _ in range(3 * BATCHES):
        resumed, fit = training()
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=file, resume=True, callback=StopAt(1, raise_interrupt))
    resumed, fit = training()
    assert fit(checkpoint=file, resume=True) == history
    assert state_bytes(resumed) == state_bytes(net)


def test_killed_run_resumes_from_the_last_epoch(tmp_path):
    """The checkpoint after each epoch serves where nothing could be saved any more."""
    net, fit = training()
    history = fit()
    file = tmp_path / "checkpoint.npz"
    _, fit = training()

    def crash():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(checkpoint=file, callback=StopAt(BATCHES + 3, crash))
    assert read_tree(file)["position"]["epoch"] == 2
    resumed, fit = training()
    assert fit(checkpoint=file, resume=True) == history
    assert state_bytes(resumed) == state_bytes(net)


def test_resuming_a_finished_run_gives_its_result(tmp_path):
    file = tmp_path / "checkpoint.npz"
    net, fit = training()
    history = fit(checkpoint=file)
    again, fit = training()
    assert fit(checkpoint=file, resume=True) == history
    assert state_bytes(again) == state_bytes(net)


def test_resume_without_a_file_starts_from_the_beginning(tmp_path):
    net, fit = training()
    fit()
    other, fit = training()
    fit(checkpoint=tmp_path / "checkpoint.npz", resume=True)
    assert state_bytes(net) == state_bytes(other)


def test_resume_with_another_number_of_threads(tmp_path):
    net, fit = training()
    fit()
    file = tmp_path / "checkpoint.npz"
    before = cnnx.get_num_threads()
    try:
        cnnx.set_num_threads(1)
        _, fit = training()
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=file, callback=StopAt(5, raise_interrupt))
        cnnx.set_num_threads(3)
        resumed, fit = training()
        fit(checkpoint=file, resume=True)
    finally:
        cnnx.set_num_threads(before)
    assert state_bytes(resumed) == state_bytes(net)


class Signals(cnnx.Flatten):
    """Sends Ctrl-C in the midst of a forward: `times` of them, in one mode, in one batch."""

    def __init__(self, training, times, batch):
        super().__init__()
        self.mode, self.times, self.left = training, times, batch

    def forward(self, x):
        if self.training == self.mode:
            self.left -= 1
            if self.left == 0:
                for _ in range(self.times):
                    send_sigint()
        return super().forward(x)


def with_signals(tmp_path, **where):
    x, y = make_data()
    net = cnnx.Sequential(Signals(**where), cnnx.Dense(36, 3, rng=0))
    return net, lambda **more: cnnx.fit(
        net, x, y, epochs=2, batch_size=BATCH, validation=(x, y), progress=False,
        checkpoint=tmp_path / "checkpoint.npz", **more,
    )  # fmt: skip


def test_ctrl_c_finishes_the_batch(tmp_path, sigint):
    _, fit = with_signals(tmp_path, training=True, times=1, batch=3)
    with pytest.raises(KeyboardInterrupt, match="in epoch 1, after batch 3; saved"):
        fit()
    assert read_tree(tmp_path / "checkpoint.npz")["position"]["batch"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_stops_at_once_and_keeps_the_last_checkpoint(tmp_path, sigint):
    _, fit = with_signals(tmp_path, training=True, times=2, batch=BATCHES + 3)
    with pytest.raises(KeyboardInterrupt, match="in epoch 2, after batch 2 and inside the next"):
        fit()
    assert read_tree(tmp_path / "checkpoint.npz")["position"] == {
        "epoch": 2, "batch": 0, "loss_sum": 0.0, "hits": 0, "seconds": 0.0,
    }  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_validating(tmp_path, sigint):
    net, fit = with_signals(tmp_path, training=None, times=0, batch=0)
    history = fit()
    (tmp_path / "checkpoint.npz").unlink()
    _, fit = with_signals(tmp_path, training=False, times=1, batch=1)
    with pytest.raises(KeyboardInterrupt, match=f"in epoch 1, after batch {BATCHES}; saved"):
        fit()
    resumed, fit = with_signals(tmp_path, training=None, times=0, batch=0)
    assert fit(resume=True) == history
    assert state_bytes(resumed) == state_bytes(net)


def test_interrupt_without_checkpoint(sigint):
    _, fit = training()
    with pytest.raises(KeyboardInterrupt, match="after batch 2; nothing saved"):
        fit(callback=StopAt(2, send_sigint))


def test_a_handler_of_the_users_own_is_left_alone(sigint):
    caught = []
    signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    _, fit = training()
    history = fit(callback=StopAt(2, send_sigint))
    assert len(history.loss) == 3
    assert caught == [1]


def test_fit_in_another_thread():
    """Only the main thread may set signal handlers."""
    result = []
    _, fit = training()
    thread = threading.Thread(target=lambda: result.append(fit()))
    thread.start()
    thread.join()
    assert len(result[0].loss) == 3


# ---- the checkpoint file


def test_checkpoint_holds_no_pickle(tmp_path):
    file = tmp_path / "checkpoint.npz"
    _, fit = training()
    fit(checkpoint=file)
    with np.load(file, allow_pickle=False) as archive:
        kinds = {archive[name].dtype.kind for name in archive.files}
    assert kinds == {"f", "u"}


def test_a_place_that_takes_no_checkpoint_is_told_before_the_first_batch(tmp_path):
    def called(step):
        raise AssertionError("a batch was trained")

    _, fit = training()
    for file in (tmp_path, tmp_path / "missing" / "checkpoint.npz"):
        with pytest.raises(OSError, match=re.escape(str(file))):
            fit(checkpoint=file, callback=called)
    file = tmp_path / "checkpoint.npz"
    with pytest.raises(AssertionError):
        fit(checkpoint=file, callback=called)
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.npz"
    _, fit = training()
    fit(checkpoint=file, epochs=1)
    before = file.read_bytes()

    def full_disk(target, **arrays):
        target.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        fit(checkpoint=file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]  # no temporary left behind


def test_tree_comes_back_exactly(tmp_path):
    tree = {
        "a": {"b.c": np.arange(6, dtype=np.float32).reshape(2, 3), "none": None, "yes": True},
        "list": [1, 0.1, 1e-310, float("inf"), 2**127 + 1, "text", np.array(3, np.int8)],
        "numpy": np.float64(1 / 3),
    }
    write_tree(tmp_path / "tree.npz", tree)
    back = read_tree(tmp_path / "tree.npz")
    assert list(back) == list(tree)
    assert back["a"]["b.c"].dtype == np.float32
    np.testing.assert_array_equal(back["a"].pop("b.c"), tree["a"].pop("b.c"))
    assert back["a"] == tree["a"]
    assert back["list"][:6] == tree["list"][:6]
    assert back["list"][6] == 3
    assert back["list"][6].dtype == np.int8
    assert back["numpy"] == 1 / 3


def test_generators_of_other_kinds_are_saved_too(tmp_path):
    """A state with an array in it (Mersenne twister) and a layer that is no Layer."""

    class Noise:
        def __init__(self, seed):
            self.chance = np.random.Generator(np.random.MT19937(seed))

        def forward(self, x):
            return x + self.chance.standard_normal(x.shape).astype(x.dtype)

        def backward(self, grad_out):
            return grad_out

    x, y = make_data()

    def run(seed, **options):
        net = cnnx.Sequential(Noise(seed), cnnx.Flatten(), cnnx.Dense(36, 3, rng=0))
        return cnnx.fit(net, x, y, epochs=2, batch_size=BATCH, progress=False, **options)

    history = run(1)
    file = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        run(1, checkpoint=file, callback=StopAt(4, raise_interrupt))
    assert run(2, checkpoint=file, resume=True) == history
    assert run(2) != history


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "its seed was 3, and here it is 4"),
        ({"batch_size": 5}, "its batch_size was 4, and here it is 5"),
        ({"shuffle": False}, "its shuffle was True, and here it is False"),
        ({"schedule": None}, "was made with a schedule"),
        ({"optimizer": cnnx.Adam(), "schedule": None}, "was made with a schedule"),
    ],
)
def test_checkpoint_of_another_training(tmp_path, changes, message):
    file = tmp_path / "checkpoint.npz"
    training()[1](checkpoint=file, epochs=1)
    net, fit = training(net_seed=8)
    before = state_bytes(net)
    with pytest.raises(ValueError, match=message):
        fit(checkpoint=file, resume=True, **changes)
    assert state_bytes(net) == before


def test_checkpoint_of_another_optimizer(tmp_path):
    file = tmp_path / "checkpoint.npz"
    training("sgd")[1](checkpoint=file, epochs=1)
    with pytest.raises(ValueError, match="not the state of a Adam"):
        training("adam")[1](checkpoint=file, resume=True)


def test_checkpoint_of_other_data_or_another_model(tmp_path):
    file = tmp_path / "checkpoint.npz"
    net, fit = training()
    fit(checkpoint=file, epochs=1)
    x, y = make_data()
    x[3, 0, 2, 2] += 1
    options = {"batch_size": BATCH, "seed": 3, "progress": False}
    options |= {"checkpoint": file, "resume": True}
    with pytest.raises(ValueError, match="its data was"):
        cnnx.fit(net, x, y, **options)
    x, y = make_data()
    optimizer = make_sgd()
    options |= {"optimizer": optimizer, "schedule": cnnx.CosineLR(optimizer, 9)}
    rest = [layer for layer in net if not isinstance(layer, cnnx.Dropout)]
    without_dropout = cnnx.Sequential(*rest)
    with pytest.raises(ValueError, match="states for the random generators"):
        cnnx.fit(without_dropout, x, y, **options)
    wider = cnnx.Sequential(*net.layers[:6], cnnx.Dense(36, 4))
    with pytest.raises(ValueError, match=r"6\.weight"):
        cnnx.fit(wider, x, y, **options)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint(tmp_path, content):
    file = tmp_path / "checkpoint.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.npz is not a whole checkpoint"):
        training()[1](checkpoint=file, resume=True)


def test_checkpoint_that_is_another_file(tmp_path):
    file = tmp_path / "checkpoint.npz"
    np.savez(file, weight=np.zeros(3))
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        training()[1](checkpoint=file, resume=True)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        training()[1](checkpoint=tmp_path / "array.npy", resume=True)
    write_tree(file, {"something": "else"})
    with pytest.raises(ValueError, match="not one of this version's"):
        training()[1](checkpoint=file, resume=True)
