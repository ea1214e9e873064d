"""How a student's code is called, so that whatever it does ends in a sentence and not in a crash.

It gets copies of the arrays, its printing is caught, and whatever it raises is told with the line
of the student's file. Only a call that never returns cannot be helped: nothing here can stop it.
"""

from __future__ import annotations

import io
import linecache
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnx.grading.cases import BACKWARD, CONVOLUTIONS, POOLS, Arrays, Case
from cnnx.grading.comparison import Fault
from cnnx.grading.signatures import EXPECTED, fitted
from cnnx.grading.textbook import FUNCTIONS, STEP

_HERE = Path(__file__).parent
_BIAS_SHAPES: tuple[Callable[[int], tuple[int, ...]], ...] = (
    lambda f: (f,),
    lambda f: (f, 1),
    lambda f: (1, f),
    lambda f: (f, 1, 1),
)


@dataclass
class Observation:
    """What a call gave: results by name, or why there are none."""

    outputs: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    printed: str = ""
    seconds: float = 0.0


class Misuse(Exception):
    """A result that is not of the agreed form; the message is for the student."""


class Subject:
    """A student's function or class under its classroom name.

    Parameters
    ----------
    name : str
        "conv_forward", "conv_backward", "MaxPool2D", "AvgPool2D" or "numerical_gradient".
    code : callable
        The function or class; for "conv_backward" the pair of forward and backward.

    Raises
    ------
    SignatureError
        If it cannot be called with the classroom's arguments.
    """

    def __init__(self, name: str, code: Any) -> None:
        self.name = name
        self._pairs = False  # whether it wants stride, pad and pool_size as (h, w)
        self._bias = _BIAS_SHAPES[0]
        if name == BACKWARD:
            self._forward, self._backward = fitted(code[0], "conv_forward"), fitted(code[1], name)
        else:
            self._forward = fitted(code, name)
        if name in CONVOLUTIONS or name in POOLS:
            self._find_form()

    def takes(self, case: Case) -> bool:
        """Whether the student's parameters can express the case."""
        neutral = {"stride": case.options.get("pool_size", 1), "pad": 0, "activation": None}
        return all(case.options[name] == neutral[name] for name in self.missing)

    @property
    def missing(self) -> list[str]:
        """The options that it does not know."""
        options = {**dict.fromkeys(CONVOLUTIONS, ("stride", "pad", "activation")),
                   **dict.fromkeys(POOLS, ("stride",))}  # fmt: skip
        return [name for name in options.get(self.name, ()) if name not in self._forward.names]

    def adapted(self, case: Case) -> Case:
        """Return the case with the bias in the shape that the student's code takes."""
        if "b" not in case.arrays:
            return case
        b = case.arrays["b"]
        return Case({**case.arrays, "b": b.reshape(self._bias(b.size))}, case.options)

    def run(self, case: Case) -> Arrays:
        """Call the code as it is; whatever it raises passes."""
        arrays = case.arrays
        options = {k: self._form(v) for k, v in case.options.items() if k != "f"}
        if self.name in POOLS:
            return self._run_pool(arrays, options)
        if self.name not in CONVOLUTIONS:
            function = FUNCTIONS[case.options["f"]]
            return {"gradient": self._forward(f=function, x=arrays["x"], df=arrays["dout"], h=STEP)}
        inputs = {name: arrays[name] for name in "XWb"}
        result = self._forward(**inputs, **options)
        if not isinstance(result, tuple) or len(result) != 2:
            if self.name != BACKWARD and isinstance(result, np.ndarray):
                return {"out": result}
            raise Misuse(f"conv_forward returned {_kind(result)}, expected (out, cache)")
        if self.name != BACKWARD:
            return {"out": result[0]}
        gradients = self._backward(dout=arrays["dout"], cache=result[1])
        if not isinstance(gradients, tuple | list) or len(gradients) != 3:
            raise Misuse(f"conv_backward returned {_kind(gradients)}, expected (dX, dW, db)")
        return dict(zip(("dX", "dW", "db"), gradients, strict=True))

    def _run_pool(self, arrays: Arrays, options: dict[str, Any]) -> Arrays:
        layer = self._forward(**options)
        for method in ("forward", "backward"):
            if not callable(getattr(layer, method, None)):
                raise Misuse(f"{self.name} has no method {method}, expected forward and backward")
        found = {"out": layer.forward(arrays["X"])}
        if isinstance(found["out"], tuple):
            raise Misuse(f"{self.name}.forward returned {_kind(found['out'])}, expected one array")
        places: Any = getattr(layer, "max_indices", None) if self.name == "MaxPool2D" else None
        if (
            isinstance(places, np.ndarray) and places.ndim == 5
        ):  # another form is the student's own affair
            found["max_indices"] = places.copy()
        found["dX"] = layer.backward(arrays["dout"])
        return found

    def observe(self, case: Case) -> Observation:
        """Call the code under a glass; never raises for what the student's code does."""
        case = self.adapted(case)
        seen = Observation()
        given = Case({name: array.copy() for name, array in case.arrays.items()}, case.options)
        text = io.StringIO()
        started = time.perf_counter()
        try:
            with (
                redirect_stdout(text),
                redirect_stderr(text),
                warnings.catch_warnings(),
                np.errstate(all="ignore"),
            ):
                warnings.simplefilter("ignore")
                seen.outputs = dict(self.run(given))
        except Misuse as misuse:
            seen.faults.append(Fault("returned", "result", str(misuse)))
        except (Exception, SystemExit) as error:
            seen.faults.append(Fault("raises", type(error).__name__, _told(error, self.name)))
        seen.seconds = time.perf_counter() - started
        seen.printed = text.getvalue()
        for name, array in given.arrays.items():
            if not np.array_equal(array, case.arrays[name], equal_nan=True):
                said = f"{name} was changed in place; work on a copy, the caller still needs it"
                seen.faults.append(Fault("modified", name, said))
        return seen

    def reuses(self, case: Case) -> Fault | None:
        """Whether a second call changes the results of the first."""
        first = self.observe(case)
        before = deepcopy(first.outputs)
        other = {name: -array for name, array in case.arrays.items()}
        self.observe(Case(other, case.options))
        for name, value in first.outputs.items():
            if isinstance(value, np.ndarray) and not np.array_equal(before[name], value):
                said = (
                    f"{name} of the first call changed in the second: both return the same array; "
                    "make a new one in each call"
                )
                return Fault("reused", name, said)
        return None

    def _form(self, value: Any) -> Any:
        return (value, value) if self._pairs and isinstance(value, int) else value

    def _find_form(self) -> None:
        """Try by a small call whether numbers must be pairs, and the bias of another shape."""
        rng = np.random.default_rng(0)
        X, dout = rng.normal(size=(2, 2, 4, 4)), rng.normal(size=(2, 3, 2, 2))
        if self.name in POOLS:
            probe = Case({"X": X, "dout": dout[:, :2]}, {"pool_size": 2, "stride": 2})
        else:
            arrays = {"X": X, "W": rng.normal(size=(3, 2, 2, 2)), "b": np.zeros(3), "dout": dout}
            probe = Case(arrays, {"stride": 2, "pad": 0, "activation": "relu"})
        for self._bias in _BIAS_SHAPES if "b" in probe.arrays else _BIAS_SHAPES[:1]:
            for self._pairs in (False, True):
                if not any(fault.kind == "raises" for fault in self.observe(probe).faults):
                    return
        self._bias, self._pairs = _BIAS_SHAPES[0], False


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _told(error: BaseException, subject: str) -> str:
    """The exception, and the last line of the student's that led to it."""
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent != _HERE
    ]
    own = [f for f in frames if not _is_numpy(f.filename)]
    if not own:
        return f"raises {message}; expected {EXPECTED[subject]}"
    last = own[-1]
    code = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    place = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
    return f"raises {message}\n    {place}" + (f": {code}" if code else "")


def _is_numpy(file: str) -> bool:
    return file.startswith(("<__array", str(Path(np.__file__).parent)))
