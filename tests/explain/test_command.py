"""``cnnx explain``: what it prints and writes, its errors, and its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

import cnnx
from cnnx import cli, explain

SUBJECTS = ("max-pool", "avg-pool", "conv", "dense", "relu", "sigmoid", "tanh", "net")
COMMAND = "from cnnx.cli import main; raise SystemExit(main())"


def command(*arguments):
    return cli.main(["explain", *map(str, arguments)])


def test_default_is_the_homework(capsys):
    assert command() == 0
    text = capsys.readouterr().out
    assert text.startswith("Max pooling, window 2x2")
    assert "Z[0, 1] = max(2, 1, 0, 5) = 5" in text
    assert "∂L/∂Z^{l-1}[1, 3] = 1 · 1.2 = 1.2" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("what", SUBJECTS)
def test_every_subject(capsys, what):
    assert command(what) == 0
    short = capsys.readouterr().out
    assert "numerical" in short
    assert command(what, "--all") == 0
    assert len(capsys.readouterr().out) > len(short)


@pytest.mark.parametrize(
    "options",
    [
        ("max-pool", "--size", 5, "--pool-size", 3, "--stride", 2, "--padding", 1),
        ("conv", "--kernel-size", 3, "--padding", 1, "--activation", "relu", "--seed", 4),
        ("net", "--size", 6, "--padding", 1, "--activation", "tanh"),
        ("dense", "--size", 5, "--activation", "sigmoid"),
    ],
)
def test_options(capsys, options):
    assert command(*options) == 0
    assert capsys.readouterr().out


def test_seed_chooses_the_numbers(capsys):
    texts = []
    for seed in (1, 1, 2):
        command("conv", "--seed", seed)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_saves_several_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    names = ["a.html", "b.png", "c.svg", "d.txt", "e.PDF"]
    options = [text for name in names for text in ("--save", tmp_path / name)]
    assert command("relu", *options) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert capsys.readouterr().out.splitlines() == [f"wrote {tmp_path / name}" for name in names]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("max-pool", "--padding", 2), "padding is 2"),
        (("dense", "--stride", 2), "--stride means nothing for dense"),
        (("relu", "--activation", "relu"), "--activation means nothing for relu"),
        (("max-pool", "--save", "a.doc"), "--save is 'a.doc'"),
        (("max-pool", "--save", "nowhere/at/all.png"), "there is no folder"),
        (("net", "--size", 2), "the output has no pixel"),
        (("conv", "--padding", 9), "the padded x"),
    ],
)
def test_errors(capsys, options, message):
    assert command(*options) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("cnnx explain: ")
    assert output.out == ""


@pytest.mark.parametrize("options", [("--size", 99), ("--size", 0), ("nothing",), ("--seed", "x")])
def test_wrong_options(options):
    with pytest.raises(SystemExit) as status:
        command(*options)
    assert status.value.code == 2


def test_status_is_the_verdict(monkeypatch, capsys):
    from dataclasses import replace

    honest = explain.max_pool2d
    monkeypatch.setattr(explain, "max_pool2d", lambda *args: replace(honest(*args), agrees=False))
    assert command() == 1


def test_reader_that_has_seen_enough():
    run = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "explain", "net", "--all"],
        cwd=Path(cnnx.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert b"A net" in run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b""
    run.stderr.close()
    assert run.wait(timeout=60) == 128 + 13


def test_terminal_without_the_signs():
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "explain"],
        cwd=Path(cnnx.__file__).parents[1],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        check=True,
    )
    assert b"max(2, 1, 0, 5) = 5" in done.stdout
