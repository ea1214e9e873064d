"""The commands, called as functions and, where signals and terminals matter, as processes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnnx
from cnnx import cli
from cnnx.models import classroom

# A shell may have started the tests with SIGINT ignored, which a child inherits.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from cnnx.cli import main; raise SystemExit(main())"
)


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=Path(cnnx.__file__).parents[1],
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.fixture
def tiny(tmp_path):
    """A file in the layout of Keras's mnist.npz: four classes of 12x12 images."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 120).astype(np.uint8)
    x = rng.integers(0, 60, (120, 12, 12)).astype(np.uint8)
    x[np.arange(120), 3 * y] += 150
    np.savez(tmp_path / "tiny.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    return tmp_path / "tiny.npz"


def saved_state(folder):
    (file,) = folder.glob("model.*")
    net = classroom((1, 12, 12), 4, rng=99)
    return {k: v.tobytes() for k, v in cnnx.load(file, net).state_dict().items()}


def train(*arguments):
    return cli.main(["train", *map(str, arguments)])


# ---- info, gradcheck


def test_info(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"cnnx {cnnx.__version__}".split() == text.splitlines()[0].split()
    assert "backend" in text


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cnnx"] == cnnx.__version__
    assert facts.keys() == cnnx.config().keys()


@pytest.mark.parametrize(("verdict", "status"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("options", [[], ["--quick"], ["--plain"]])
def test_gradcheck_status_is_the_verdict(monkeypatch, verdict, status, options):
    from cnnx import gradsuite

    calls = []
    monkeypatch.setattr(gradsuite, "run", lambda **given: calls.append(given) or verdict)
    assert cli.main(["gradcheck", *options]) == status
    assert calls == [{"quick": "--quick" in options, "plain": "--plain" in options}]


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "cnnx", "--version"],
        cwd=Path(cnnx.__file__).parents[1],
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout == f"cnnx {cnnx.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["train", "--epochs", "0"], ["train", "--lr", "nan"], ["train", "--lr", "0"],
     ["train", "--seed", "-1"], ["train", "--model", "vgg"], ["train", "--batch-size", "x"]],
)  # fmt: skip
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: cnnx" in capsys.readouterr().err


def test_ctrl_c_outside_training(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cnnx, "show_config", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


# ---- train


def test_default_training_meets_its_promise(tmp_path, monkeypatch, capsys):
    """On the digits of the package: at least 98% on the held-out fifth."""
    monkeypatch.chdir(tmp_path)
    assert train() == 0
    text = capsys.readouterr().out
    found = re.search(r"test accuracy (\S+)%: (\d+) of 359 images wrong", text)
    assert float(found[1]) >= 98
    assert float(found[1]) == pytest.approx(100 * (1 - int(found[2]) / 359), abs=0.005)
    assert "images/s" in text
    output = tmp_path / "cnnx-run"
    assert {file.suffix for file in output.glob("model.*")} <= {".safetensors", ".npz"}
    net = cnnx.load(next(output.glob("model.*")), classroom((1, 8, 8), 10))
    data = cnnx.data.digits()
    wrong = np.count_nonzero(cnnx.training.predict(net, data.x_test).argmax(1) != data.y_test)
    assert wrong == int(found[2])


@pytest.mark.parametrize("model", ["classroom", "lenet5", "resnet20"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_models_and_optimizers(tiny, tmp_path, capsys, model, optimizer):
    output = tmp_path / "run"
    options = ["--model", model, "--optimizer", optimizer, "--epochs", 2, "--batch-size", 32]
    assert train("--data", tiny, "--output", output, *options) == 0
    text = capsys.readouterr().out
    assert "tiny.npz: 90 images to train on, 30 to test, 1 x 12 x 12, 4 classes" in text
    assert re.search(r"test accuracy [\d.]+%: \d+ of 30 images wrong", text)


def test_picture(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 1) == 0
    picture = imread(output / "training.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 500
    assert picture.std() > 0.05  # not an empty sheet


def test_without_matplotlib(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 1) == 0
    text = capsys.readouterr().out
    assert 'no picture: drawing needs matplotlib: pip install "cnnx[demo]"' in text
    assert not (output / "training.png").exists()


def test_without_safetensors(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("cnnx.cli.train.has_safetensors", lambda: False)
    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 1) == 0
    assert [file.name for file in output.glob("model.*")] == ["model.npz"]


def test_wrong_gradient_is_status_1(tiny, tmp_path, monkeypatch):
    """A layer whose backward is wrong on purpose."""
    original = cnnx.Dense.backward
    monkeypatch.setattr(cnnx.Dense, "backward", lambda self, grad: 1.5 * original(self, grad))
    assert train("--data", tiny, "--output", tmp_path / "run", "--epochs", 1) == 1


def test_seed_and_threads(tiny, tmp_path):
    before = cnnx.get_num_threads()
    runs = {
        "a": ["--seed", 1, "--threads", 1],
        "b": ["--seed", 1, "--threads", 3],
        "c": ["--seed", 2],
    }
    try:
        for name, options in runs.items():
            assert train("--data", tiny, "--output", tmp_path / name, "--epochs", 2, *options) == 0
    finally:
        cnnx.set_num_threads(before)
    assert saved_state(tmp_path / "a") == saved_state(tmp_path / "b")
    assert saved_state(tmp_path / "a") != saved_state(tmp_path / "c")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "there is no file or folder"),
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "not a whole npz file"),
    ],
)
def test_damaged_data_is_one_line(tiny, tmp_path, capsys, damage, message):
    damage(tiny)
    assert train("--data", tiny, "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("cnnx train: ")
    assert message in error
    assert error.count("\n") == 1


def test_data_that_is_fetched(tiny, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setitem(
        cli.train._FETCHED, "mnist", lambda: calls.append("mnist") or cnnx.data.load(tiny)
    )
    monkeypatch.chdir(tmp_path)
    assert train("--data", "mnist", "--output", "run", "--epochs", 1) == 0
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["data"] == "mnist"
    assert train("--resume", "--output", "run") == 0
    assert calls == ["mnist"] * 2
    (tmp_path / "mnist").mkdir()  # what is there goes first
    assert train("--data", "mnist", "--output", "run") == 2
    assert "has no file train-images-idx3-ubyte" in capsys.readouterr().err
    assert calls == ["mnist"] * 2


def test_data_that_cannot_be_fetched_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.chdir(tmp_path)
    assert train("--data", "fashion-mnist") == 2
    error = capsys.readouterr().err
    assert error.startswith("cnnx train: fetching needs a package that is not installed: pip inst")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_pictures(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    options = ["--output", tmp_path / "run", "--epochs", 1]
    assert train("--data", tmp_path / "pets", *options) == 0
    text = capsys.readouterr().out
    assert "pets: 16 images to train on, 4 to test, 3 x 8 x 8, 2 classes" in text


# ---- Ctrl-C and --resume


def test_sigint_saves_and_resume_gives_the_same_bits(tiny, tmp_path):
    options = ["--data", tiny, "--epochs", 60, "--batch-size", 8, "--optimizer", "sgd", "--seed", 3]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(*options, "--output", whole) == 0

    process = start("train", *options, "--output", broken)
    for line in process.stdout:
        if line.startswith("epoch  2/60"):
            process.send_signal(signal.SIGINT)
            break
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"interrupted in epoch \d+, after batch \d+; to go on", error)
    assert f"cnnx train --resume --output {broken}" in error
    assert (broken / "checkpoint.npz").exists()
    assert not list(broken.glob("model.*"))

    assert train("--resume", "--output", broken) == 0
    assert saved_state(broken) == saved_state(whole)


def test_resume_takes_the_settings_of_the_interrupted_run(tiny, tmp_path, capsys):
    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 2, "--lr", "0.003") == 0
    settings = json.loads((output / "settings.json").read_text())
    assert settings == {
        "data": str(tiny), "model": "classroom", "epochs": 2, "batch_size": 64, "lr": 0.003,
        "optimizer": "adam", "seed": 0,
    }  # fmt: skip
    before = saved_state(output)
    same = ["--lr", "3e-3", "--data", os.path.relpath(tiny)]
    assert train("--resume", "--output", output, *same) == 0
    assert saved_state(output) == before
    capsys.readouterr()
    assert train("--resume", "--output", output, "--batch-size", 7) == 2
    assert "--batch-size is 7, but the training to resume has 64" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path, capsys):
    assert train("--resume", "--output", tmp_path / "empty") == 2
    assert "nothing to resume in" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text('{"model": "classroom"')
    assert train("--resume", "--output", tmp_path) == 2
    assert "settings.json is damaged" in capsys.readouterr().err


def test_resume_notices_other_data(tiny, tmp_path, capsys):
    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 1) == 0
    with np.load(tiny) as archive:
        arrays = dict(archive)
    arrays["x_train"] = arrays["x_train"][::-1]
    np.savez(tiny, **arrays)
    assert train("--resume", "--output", output) == 2
    assert "its data was" in capsys.readouterr().err


def test_new_run_in_the_folder_of_an_old_one(tiny, tmp_path):
    output = tmp_path / "run"
    for seed in (1, 2):
        assert train("--data", tiny, "--output", output, "--epochs", 1, "--seed", seed) == 0
    assert train("--data", tiny, "--output", tmp_path / "fresh", "--epochs", 1, "--seed", 2) == 0
    assert saved_state(output) == saved_state(tmp_path / "fresh")


def test_a_mistyped_command_touches_no_checkpoint(tiny, tmp_path):
    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 1) == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert train("--data", tmp_path / "typo", "--output", output) == 2
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_a_new_run_keeps_the_checkpoint_of_the_one_before(tiny, tmp_path):
    output = tmp_path / "run"
    assert train("--data", tiny, "--output", output, "--epochs", 1) == 0
    checkpoint = (output / "checkpoint.npz").read_bytes()
    assert train("--data", tiny, "--output", output, "--epochs", 1, "--seed", 1) == 0
    assert (output / "checkpoint-before.npz").read_bytes() == checkpoint


@pytest.mark.parametrize(
    ("name", "value"), [("model", "xyz"), ("epochs", "1"), ("optimizer", None)]
)
def test_damaged_settings_are_one_line(tiny, tmp_path, capsys, name, value):
    assert train("--data", tiny, "--output", tmp_path, "--epochs", 1) == 0
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    capsys.readouterr()
    assert train("--resume", "--output", tmp_path) == 2
    assert "settings.json is damaged" in capsys.readouterr().err


# ---- in a terminal


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are Unix's")
def test_progress_bar_in_a_terminal(tiny, tmp_path):
    pytest.importorskip("rich")
    import pty

    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = start(
        "train", "--data", tiny, "--epochs", 30, "--batch-size", 4, "--output", tmp_path / "run",
        stdout=terminal, stderr=terminal, env=environment,
    )  # fmt: skip
    os.close(terminal)
    text = b""
    try:
        while chunk := os.read(controller, 65536):
            text += chunk
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(controller)
    assert process.wait(timeout=60) == 0
    shown = text.decode()
    assert "━" in shown  # the bar
    assert re.search(r"\d+/23", shown)  # batches of the epoch under way
    for word in ("loss", "accuracy", "images/s", "held out", "test accuracy"):
        assert word in shown
