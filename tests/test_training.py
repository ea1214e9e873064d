"""fit: what it computes, what it reports, and that an interrupted run ends in the same bits."""

import io
import signal
import threading

import numpy as np
import pytest

import cnnx
from cnnx import _progress
from cnnx._checkpoint import read_tree, write_tree
from cnnx.training import Step, evaluate, predict

IMAGES, BATCH = 22, 4  # the last batch of an epoch has two images
BATCHES = 6


def make_data(seed=0):
    """Three classes of 6x6 images, each with one bright row."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, IMAGES)
    x = rng.standard_normal((IMAGES, 1, 6, 6)).astype(np.float32)
    x[np.arange(IMAGES), 0, 2 * y] += 2
    return x, y


def make_net(seed=0):
    """Everything that has a state: weights, running statistics, random generators."""
    rng = np.random.default_rng(seed)
    body = cnnx.Sequential(cnnx.Conv2D(1, 4, 3, padding=1, rng=rng), cnnx.BatchNorm2D(4))
    return cnnx.Sequential(
        cnnx.Residual(body, cnnx.Conv2D(1, 4, 1, rng=rng)),
        cnnx.ReLU(),
        cnnx.Dropout(0.25, rng=rng),
        cnnx.MaxPool2D(2),
        cnnx.Flatten(),
        cnnx.Dropout(0.25, rng=7),
        cnnx.Dense(36, 3, rng=rng),
    )


def make_sgd():
    return cnnx.SGD(0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)


def state_bytes(net):
    return {name: array.tobytes() for name, array in net.state_dict().items()}


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


# ---- what it computes


def test_history_and_weights_are_those_of_a_plain_loop():
    x, y = make_data()
    net = make_net()
    options = {"epochs": 3, "batch_size": BATCH, "seed": 5, "progress": False}
    history = cnnx.fit(net, x, y, optimizer=make_sgd(), **options)

    plain, optimizer, loss = make_net(), make_sgd(), cnnx.SoftmaxCrossEntropy()
    for epoch in range(3):
        order = np.random.default_rng((5, epoch + 1)).permutation(IMAGES)
        total, hits = 0.0, 0
        for first in range(0, IMAGES, BATCH):
            chosen = order[first : first + BATCH]
            out = plain(x[chosen])
            total += loss(out, y[chosen]) * len(chosen)
            hits += sum(out[i].argmax() == y[chosen[i]] for i in range(len(chosen)))
            plain.backward(loss.backward())
            optimizer.step(plain)
        assert history.loss[epoch] == total / IMAGES
        assert history.accuracy[epoch] == hits / IMAGES
    assert state_bytes(net) == state_bytes(plain)
    assert history.lr == [0.05] * 3
    assert history.val_loss == history.val_accuracy == []
    assert len(history.seconds) == 3
    assert min(history.seconds) > 0


def test_it_learns_and_validates():
    x, y = make_data()
    net = make_net()
    held_out = make_data(seed=1)
    options = {"epochs": 30, "batch_size": BATCH, "optimizer": make_sgd(), "progress": False}
    history = cnnx.fit(net, x, y, validation=held_out, **options)
    assert history.loss[-1] < 0.3 < history.loss[0]
    loss, accuracy = evaluate(net, *held_out)
    assert (history.val_loss[-1], history.val_accuracy[-1]) == (loss, accuracy)
    assert accuracy > 0.7  # chance is a third


def test_order_without_shuffling():
    x, y = make_data()
    seen = []

    class Spy(cnnx.Flatten):
        def forward(self, x):
            seen.append(x.copy())
            return super().forward(x)

    net = cnnx.Sequential(Spy(), cnnx.Dense(36, 3))
    cnnx.fit(net, x, y, epochs=2, batch_size=BATCH, shuffle=False, progress=False)
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate([x, x]))
    seen.clear()
    cnnx.fit(net, x, y, epochs=2, batch_size=BATCH, progress=False)
    first, second = np.concatenate(seen)[:IMAGES], np.concatenate(seen)[IMAGES:]
    assert not np.array_equal(first, second)
    for epoch in (first, second):  # every image once
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, x))


def test_schedule_steps_after_every_batch():
    x, y = make_data()
    optimizer = make_sgd()
    schedule = cnnx.StepLR(optimizer, step_size=BATCHES, gamma=0.5)
    options = {"epochs": 3, "batch_size": BATCH, "progress": False}
    history = cnnx.fit(make_net(), x, y, optimizer=optimizer, schedule=schedule, **options)
    assert history.lr == [0.025, 0.0125, 0.00625]


def test_accuracy_where_there_are_classes():
    x, y = make_data()
    net, sgd = make_net(), cnnx.SGD(0.0)
    by_label = evaluate(net, x, y)
    by_row = evaluate(net, x, np.eye(3, dtype=np.float32)[y])
    assert by_label == by_row
    assert evaluate(net, x, np.zeros((IMAGES, 3)), loss=cnnx.MSELoss())[1] is None
    history = cnnx.fit(
        net, x, np.zeros((IMAGES, 3)), epochs=1, loss=cnnx.MSELoss(), optimizer=sgd,
        validation=(x, np.zeros((IMAGES, 3))), progress=False,
    )  # fmt: skip
    assert history.accuracy == history.val_accuracy == []
    assert len(history.loss) == len(history.val_loss) == 1


def test_any_object_with_forward_and_backward_is_a_model():
    class Scale:
        def __init__(self):
            self.params = {"factor": np.array([0.0])}
            self.grads = {}

        def forward(self, x):
            self.x = x
            return x * self.params["factor"]

        def backward(self, grad_out):
            self.grads = {"factor": np.array([(grad_out * self.x).sum()])}
            return grad_out * self.params["factor"]

    x = np.linspace(-1, 1, 16)[:, None]
    model = Scale()
    cnnx.fit(
        model, x, 3 * x, epochs=40, loss=cnnx.MSELoss(), optimizer=cnnx.SGD(0.5), progress=False
    )
    # each of 40 steps shrinks the error by a factor below 0.9: 3 * 0.9**40 = 0.04
    assert model.params["factor"][0] == pytest.approx(3, abs=0.04)


def test_predict_uses_eval_mode_and_batches():
    x, _ = make_data()
    net = make_net()
    out = predict(net, x, batch_size=5)
    assert not net.training
    np.testing.assert_allclose(out, net(x), rtol=1e-5, atol=1e-6)  # float32, another batch size
    assert predict(net, x[:0]).shape == (0, 3)
    assert predict(cnnx.Flatten(), x, batch_size=3).shape == (IMAGES, 36)


def test_model_is_left_in_eval_mode():
    x, y = make_data()
    net = make_net().freeze()
    cnnx.fit(net, x, y, epochs=1, progress=False)
    assert [layer.training for layer in net] == [False] * len(net)


# ---- same seed, same bits


def test_same_seed_same_bits_other_seed_other_bits():
    x, y = make_data()
    nets = [make_net() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        cnnx.fit(net, x, y, epochs=2, batch_size=BATCH, seed=seed, progress=False)
    assert state_bytes(nets[0]) == state_bytes(nets[1])
    assert state_bytes(nets[0]) != state_bytes(nets[2])


def test_same_bits_for_any_number_of_threads():
    x, y = make_data()
    before = cnnx.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            cnnx.set_num_threads(threads)
            net = make_net()
            cnnx.fit(net, x, y, epochs=2, batch_size=BATCH, progress=False)
            results.append(state_bytes(net))
    finally:
        cnnx.set_num_threads(before)
    assert results[0] == results[1] == results[2]


# ---- interrupted and resumed


def training(optimizer="sgd", net_seed=0, **changes):
    """A call of fit, ready to make: what is resumed must be called like this again."""
    x, y = make_data()
    opt = {"sgd": make_sgd, "adam": cnnx.Adam, "adamw": cnnx.AdamW}[optimizer]()
    options = {
        "epochs": 3,
        "batch_size": BATCH,
        "seed": 3,
        "optimizer": opt,
        "schedule": cnnx.CosineLR(opt, 3 * BATCHES, warmup=2),
        "validation": make_data(seed=1),
        "progress": False,
    }
    net = make_net(net_seed)
    options.update(changes)
    return net, lambda **more: cnnx.fit(net, x, y, **{**options, **more})


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


# ---- what it reports


def test_callback_gets_a_step_after_every_batch():
    x, y = make_data()
    steps = []
    history = cnnx.fit(
        make_net(), x, y, epochs=2, batch_size=BATCH, progress=False, callback=steps.append
    )
    places = [(epoch, batch) for epoch in (1, 2) for batch in range(1, BATCHES + 1)]
    assert [(s.epoch, s.batch) for s in steps] == places
    assert {(s.epochs, s.batches) for s in steps} == {(2, BATCHES)}
    assert [s.loss for s in steps if s.batch == BATCHES] == history.loss
    assert [s.accuracy for s in steps if s.batch == BATCHES] == history.accuracy
    assert all(s.images_per_second > 0 for s in steps)


def test_plain_lines(capsys):
    x, y = make_data()
    cnnx.fit(make_net(), x, y, epochs=2, validation=(x, y))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"epoch {number}/2  loss ")
        assert "accuracy" in line
        assert line.count("loss") == 2
        assert "images/s" in line


def test_silence(capsys):
    training()[1]()
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_rich_a_terminal_gets_plain_lines(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr("sys.stdout", Terminal())
    training()[1](progress=True, epochs=1)
    text = sys.stdout.getvalue()
    assert text.startswith("epoch 1/1  loss ")
    assert text.count("\n") == 1


def test_long_epoch_gets_lines_between(monkeypatch, capsys):
    monkeypatch.setattr(_progress, "_SILENCE", -1.0)  # every batch is late
    training()[1](progress=True, epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == BATCHES + 1
    assert lines[1].startswith(f"epoch 1/1  batch 2/{BATCHES}  loss ")


def test_bar_shows_every_batch():
    pytest.importorskip("rich")
    bar = _progress._Bar()
    shown = Terminal()
    bar._progress.console.file = shown
    step = Step(2, 10, 7, 50, loss=0.25, accuracy=0.5, images_per_second=12345.0)
    with bar:
        bar.batch(step)
        text = bar._progress.get_renderable()
        bar._progress.console.print(text)
        bar.epoch(step, 0.125, None)
    for part in ("epoch  2/10", "7/50", "loss 0.2500", "accuracy 50.00%", "12,345 images/s"):
        assert part in shown.getvalue()
    assert "held out: loss 0.1250" in shown.getvalue()


# ---- wrong calls


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs is 0, expected an integer from 1"),
        ({"batch_size": -1}, ValueError, "batch_size is -1, expected an integer from 1"),
        ({"batch_size": 2.5}, TypeError, r"batch_size is 2.5 \(float\), expected an integer"),
        ({"seed": -1}, ValueError, "seed is -1, expected an integer from 0"),
        ({"seed": None}, TypeError, "seed is None"),
        ({"resume": True}, ValueError, "resume is True but checkpoint is None"),
        (
            {"validation": (np.zeros((2, 1)), np.zeros(3))},
            ValueError,
            r"validation\[0\] has shape \(2, 1\)",
        ),
    ],
)
def test_wrong_options(options, error, message):
    x, y = make_data()
    with pytest.raises(error, match=message):
        cnnx.fit(make_net(), x, y, progress=False, **options)


def test_wrong_data():
    x, y = make_data()
    with pytest.raises(ValueError, match=r"x has shape \(22, 1, 6, 6\) and y has shape \(21,\)"):
        cnnx.fit(make_net(), x, y[1:])
    with pytest.raises(ValueError, match="first dimension, at least 1"):
        cnnx.fit(make_net(), x[:0], y[:0])
    with pytest.raises(TypeError, match="y is a list, expected an array"):
        cnnx.fit(make_net(), x, y.tolist())
    with pytest.raises(TypeError, match="astype"):
        cnnx.fit(make_net(), (x * 10).astype(np.uint8), y, progress=False)
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict(make_net(), x, batch_size=0)
    with pytest.raises(ValueError, match="same first dimension"):
        evaluate(make_net(), x, y[:5])
