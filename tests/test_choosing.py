"""Every way to choose a backend or an instruction set: in the program or by the environment.

Each choice must show that it was followed, and `show_config` must tell it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ISAS, KERNELS, forced_isa, needs_kernels
from fresh import complaint, printed, python
from tolerances import assert_close

import cnnx
from cnnx import _fallback

KERNELS_MODULE: Any = KERNELS

WITHOUT_KERNELS = "import sys; sys.modules['cnnx._kernels'] = None; "


# ---------------------------------------------------------------------------- in the program


def active() -> str:
    return str(cnnx.config()["backend"])


@pytest.fixture
def as_before() -> Iterator[None]:
    """The backend of before, whatever the test chose."""
    before = active()
    yield
    cnnx.use_backend(before)  # type: ignore[arg-type]


def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which each backend adds its name when it computes a softmax."""
    calls: list[str] = []
    modules = {"numpy": _fallback, **({"compiled": KERNELS} if KERNELS else {})}
    for name, module in modules.items():
        real = vars(module)["softmax"]

        def softmax(*arguments: Any, name: str = name, real: Any = real) -> None:
            calls.append(name)
            real(*arguments)

        monkeypatch.setattr(module, "softmax", softmax)
    return calls


@needs_kernels
def test_the_chosen_one_answers(as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answers(monkeypatch)
    x = np.zeros((2, 3))
    for name in ("numpy", "compiled", "numpy"):
        cnnx.use_backend(name)
        assert active() == name
        cnnx.softmax(x)
    with cnnx.use_backend("compiled"):
        cnnx.softmax(x)
    cnnx.softmax(x)
    assert calls == ["numpy", "compiled", "numpy", "compiled", "numpy"]


@needs_kernels
def test_nested_blocks(as_before: None) -> None:
    cnnx.use_backend("compiled")
    with cnnx.use_backend("numpy"):
        with cnnx.use_backend("compiled"):
            assert active() == "compiled"
            with cnnx.use_backend("numpy"):
                assert active() == "numpy"
            assert active() == "compiled"
        assert active() == "numpy"
    assert active() == "compiled"


@needs_kernels
def test_a_block_that_raises(as_before: None) -> None:
    cnnx.use_backend("compiled")
    with pytest.raises(KeyError, match="mine"), cnnx.use_backend("numpy"):
        raise KeyError("mine")
    assert active() == "compiled"


@needs_kernels
def test_a_block_entered_later_and_again(as_before: None) -> None:
    block = cnnx.use_backend("numpy")  # a call: it holds from here
    assert active() == "numpy"
    for _ in range(2):
        cnnx.use_backend("compiled")
        with block:
            assert active() == "numpy"
    with cnnx.use_backend("compiled"), block:
        assert active() == "numpy"


@needs_kernels
def test_a_block_puts_back_what_it_found(as_before: None) -> None:
    block = cnnx.use_backend("numpy")
    cnnx.use_backend("compiled")
    with block:
        pass
    assert active() == "compiled"


@needs_kernels
def test_the_choice_holds_for_every_thread(as_before: None) -> None:
    seen: list[str] = []
    with cnnx.use_backend("numpy"):
        thread = threading.Thread(target=lambda: seen.append(active()))
        thread.start()
        thread.join()
    assert seen == ["numpy"]


@pytest.mark.parametrize("name", ["torch", "", "NumPy", None, 1])
def test_unknown_backend(name: Any, as_before: None) -> None:
    before = active()
    with pytest.raises(ValueError, match=f"backend is {name!r}, expected 'compiled' or 'numpy'"):
        cnnx.use_backend(name)
    assert active() == before


def test_layers_between_two_backends(as_before: None, rng: np.random.Generator) -> None:
    # A forward on one and its backward on the other: what is kept between them is plain arrays.
    net = cnnx.Sequential(
        cnnx.Conv2D(2, 3, 3, activation="relu", dtype="float64"),
        cnnx.MaxPool2D(),
        cnnx.BatchNorm2D(3, dtype="float64"),
        cnnx.Flatten(),
        cnnx.Dense(27, 4, dtype="float64"),
    )
    x, grad_out = rng.normal(size=(5, 2, 8, 8)), rng.normal(size=(5, 4))
    with cnnx.use_backend("numpy"):
        net(x)
        expected = net.backward(grad_out)
        net(x)
    actual = net.backward(grad_out)
    # Sums of some hundred products of numbers near 1.
    assert_close(actual, expected, roundings=200, scale=np.abs(expected).max())


# ---------------------------------------------------------------------------- at import

BACKEND = "import cnnx; print(cnnx.config()['backend'])"
ISA = "import cnnx; from cnnx import _kernels; print(_kernels.isa())"


@needs_kernels
@pytest.mark.parametrize(
    ("value", "backend"), [("numpy", "numpy"), ("compiled", "compiled"), ("", "compiled")]
)
def test_environment_names_the_backend(value: str, backend: str, tmp_path: Path) -> None:
    assert printed(BACKEND, tmp_path, CNNX_BACKEND=value) == backend


@pytest.mark.parametrize("value", ["torch", "NUMPY", "1"])
def test_environment_names_no_backend(value: str, tmp_path: Path) -> None:
    assert complaint(BACKEND, tmp_path, CNNX_BACKEND=value) == (
        f"ValueError: environment variable CNNX_BACKEND is {value!r}, "
        "expected 'compiled' or 'numpy'"
    )


@needs_kernels
@pytest.mark.parametrize("isa", ISAS or ["none"])
def test_environment_names_the_instruction_set(isa: str, tmp_path: Path) -> None:
    assert printed(ISA, tmp_path, CNNX_ISA=isa) == isa


@needs_kernels
def test_widest_instruction_set_by_itself(tmp_path: Path) -> None:
    assert printed(ISA, tmp_path, CNNX_ISA="") == ISAS[-1]
    assert ISAS[0] == "baseline"


@needs_kernels
@pytest.mark.parametrize("value", ["avx9000", "AVX2", "numpy"])
def test_environment_names_no_instruction_set(value: str, tmp_path: Path) -> None:
    # The fallback must not stand in for it either.
    text = complaint(ISA, tmp_path, CNNX_ISA=value)
    assert text.startswith(f"RuntimeError: environment variable CNNX_ISA is {value!r}, expected ")
    for isa in ISAS:
        assert repr(isa) in text


@needs_kernels
def test_instruction_set_chosen_later() -> None:
    before = KERNELS_MODULE.isa()
    for isa in ISAS:
        with forced_isa(isa):
            assert KERNELS_MODULE.isa() == isa
            assert cnnx.config()["instruction set"] == isa
    assert KERNELS_MODULE.isa() == before
    with pytest.raises(ValueError, match=r"instruction set is 'mmx', expected one of \['baseline'"):
        KERNELS_MODULE.use_isa("mmx")
    assert KERNELS_MODULE.isa() == before


def test_missing_kernels_are_told_once(tmp_path: Path) -> None:
    code = WITHOUT_KERNELS + (
        "import numpy as np, cnnx, cnnx.functional; from cnnx import layers; "
        "print(cnnx.relu(np.array([-1.0, 2.0])), cnnx.config()['backend'])"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0. 2.] numpy"
    assert done.stderr.count("RuntimeWarning") == 1
    for part in ("NumPy fallback", "slower", "C compiler", "pip install", "CNNX_BACKEND=numpy"):
        assert part in done.stderr


def test_missing_kernels_are_not_told_to_who_knows(tmp_path: Path) -> None:
    done = python(WITHOUT_KERNELS + BACKEND, tmp_path, CNNX_BACKEND="numpy")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "numpy", "")


@needs_kernels
def test_kernels_that_are_there_are_not_mentioned(tmp_path: Path) -> None:
    assert python(BACKEND, tmp_path).stderr == ""


def test_missing_kernels_forced(tmp_path: Path) -> None:
    text = complaint(WITHOUT_KERNELS + BACKEND, tmp_path, CNNX_BACKEND="compiled")
    assert text.startswith("ImportError: ")
    assert "compiled kernels are missing" in text and "pip install" in text
    code = WITHOUT_KERNELS + "import cnnx; cnnx.use_backend('compiled')"
    assert "compiled kernels are missing" in complaint(code, tmp_path, PYTHONWARNINGS="ignore")


# ---------------------------------------------------------------------------- show_config


def test_show_config(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    cnnx.show_config()
    lines = capsys.readouterr().out.splitlines()
    facts = cnnx.config()
    assert len(lines) == len(facts)
    for line, (name, value) in zip(lines, facts.items(), strict=True):
        assert line.startswith(name) and line.endswith(str(value))
    columns = {len(line) - len(line[max(map(len, facts)) :].lstrip()) for line in lines}
    assert len(columns) == 1  # the values stand in one column
    assert facts["cnnx"] == cnnx.__version__
    assert facts["numpy"].split()[0] == np.__version__
    assert facts["backend"] == backend
    assert facts["threads"].startswith(f"{cnnx.get_num_threads()} (")
    if KERNELS is not None:
        assert facts["instruction set"] in ISAS
        assert facts["instruction sets here"] == ", ".join(ISAS)
        assert facts["memory pool"].startswith("in_use ")
        assert facts["compiler"] != "unknown"
        assert facts["compiler flags"].startswith(("-", "/"))
        if facts["OpenMP"] in range(1, 10**9) and sys.platform == "linux":
            assert "omp" in facts["OpenMP runtimes loaded"]


def test_show_config_without_kernels(tmp_path: Path) -> None:
    text = printed(
        WITHOUT_KERNELS + "import cnnx; cnnx.show_config()", tmp_path, CNNX_BACKEND="numpy"
    )
    facts = dict(line.split("  ", 1) for line in text.splitlines())
    assert "pip install" in facts["compiled kernels"]
    assert facts["environment"].strip() == "CNNX_BACKEND=numpy"
    assert "instruction set" not in facts


def test_config_is_plain(backend: str) -> None:
    assert all(type(value) in (str, int) for value in cnnx.config().values())
