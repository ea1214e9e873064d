"""fit: what it computes and what it reports. test_resume has interrupted runs."""

import io

import numpy as np
import pytest
from runs import BATCH, BATCHES, IMAGES, make_data, make_net, make_sgd, state_bytes, training

import cnnx
from cnnx import _progress
from cnnx.training import Step, evaluate, predict

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
