"""Threads: how many, the same bits for any number, and life beside other threads and processes.

The numbers are random, not whole: an order of summation that depended on the threads would show.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from calls import Call, call_id
from conftest import KERNELS
from fresh import complaint, printed, python
from numpy.testing import assert_array_equal

import cnnx
from cnnx import _threads

needs_kernels = pytest.mark.skipif(KERNELS is None, reason="the compiled kernels are missing")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COUNTS = [2, 3, 5, 8]  # against 1


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_num_threads", _threads._num_threads)
    monkeypatch.setattr(_threads, "_reason", _threads._reason)


@pytest.fixture
def compiled() -> Iterator[ModuleType]:
    assert KERNELS is not None
    with cnnx.use_backend("compiled"):
        yield KERNELS


# ---------------------------------------------------------------------------- how many

THREADS = "import cnnx; print(cnnx.get_num_threads(), cnnx.config()['threads'])"


@pytest.mark.parametrize("n", [1, 3, 1024, np.int64(2)])
def test_set_and_get(n: Any) -> None:
    assert cnnx.set_num_threads(n) is None  # type: ignore[func-returns-value]
    assert cnnx.get_num_threads() == n
    assert type(cnnx.get_num_threads()) is int
    assert cnnx.config()["threads"] == f"{n} (set_num_threads)"


@pytest.mark.parametrize("n", [0, -1, -(2**40), 1025, 2**31, 10**30])
def test_wrong_numbers(n: int) -> None:
    before = cnnx.get_num_threads()
    with pytest.raises(ValueError, match=f"n is {n}, expected an integer from 1 to 1024"):
        cnnx.set_num_threads(n)
    assert cnnx.get_num_threads() == before


@pytest.mark.parametrize("n", [1.0, 2.5, "2", None, True, np.float64(2), [2], np.ones(2)], ids=repr)
def test_wrong_types(n: Any) -> None:
    before = cnnx.get_num_threads()
    with pytest.raises(TypeError, match=r"n is .*, expected an integer from 1 to 1024"):
        cnnx.set_num_threads(n)
    assert cnnx.get_num_threads() == before


def test_variable_of_cnnx_comes_first(tmp_path: Path) -> None:
    both = {"CNNX_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}
    assert printed(THREADS, tmp_path, **both) == "3 3 (CNNX_NUM_THREADS)"
    assert printed(THREADS, tmp_path, **both | {"CNNX_NUM_THREADS": ""}) == "5 5 (OMP_NUM_THREADS)"


def test_variable_of_openmp(tmp_path: Path) -> None:
    # A list gives the threads of each level of nesting; the first is meant.
    assert printed(THREADS, tmp_path, OMP_NUM_THREADS="4,2") == "4 4 (OMP_NUM_THREADS)"


def test_without_variables_the_usable_cpus(tmp_path: Path) -> None:
    usable = _threads.usable_cpus()
    assert printed(THREADS, tmp_path) == f"{usable} {usable} (CPUs this process may use)"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1025", "9" * 30, "²"])
def test_wrong_variable(text: str, tmp_path: Path) -> None:
    expected = (
        f"ValueError: environment variable CNNX_NUM_THREADS is {text!r}, "
        "expected an integer from 1 to 1024"
    )
    code = "import sys; sys.stderr.reconfigure(encoding='utf-8'); " + THREADS
    # Through ascii, for consoles differ.
    assert ascii(complaint(code, tmp_path, CNNX_NUM_THREADS=text)) in (
        ascii(expected),
        ascii(expected.encode().decode("latin-1")),
    )


@pytest.mark.parametrize("text", ["0", "-1", "many", "9" * 30, "²"])
def test_wrong_variable_of_another(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # OMP_NUM_THREADS is not ours to judge: OpenMP itself warns of it.
    monkeypatch.delenv("CNNX_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert _threads._initial() == (_threads.usable_cpus(), "CPUs this process may use")


def cpus(monkeypatch: pytest.MonkeyPatch, count: int, group: Path) -> int:
    """What usable_cpus says in a process of `count` CPUs in that control group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(count), raising=False)
    monkeypatch.setattr(_threads, "_CGROUP", group)
    return _threads.usable_cpus()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),  # two and a half: the third is there half of the time
        ("50000 100000\n", 1),
        ("3200000 100000\n", 8),
        ("nonsense\n", 8),
        ("", 8),
    ],
)
def test_control_group(
    text: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpus(monkeypatch, 8, tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("300000", "100000", 3), ("10000", "100000", 1), ("300000", "0", 8)],
)
def test_control_group_of_the_first_version(
    quota: str, period: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert cpus(monkeypatch, 8, tmp_path) == expected


def test_affinity_without_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cpus(monkeypatch, 5, tmp_path) == 5


def test_system_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(_threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert _threads.usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _threads.usable_cpus() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_read_at_import(tmp_path: Path) -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + THREADS
    assert printed(code, tmp_path) == "1 1 (CPUs this process may use)"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_spinning_is_the_users_to_set(name: str, tmp_path: Path) -> None:
    code = f"import os, cnnx; print(os.environ.get({name!r}), os.environ.get('GOMP_SPINCOUNT'))"
    assert printed(code, tmp_path) == "None None"
    assert printed(code, tmp_path, **{name: "7"}).split()[0] == "7"


def test_brief_waits_while_openmp_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with suppress(ImportError), _threads.brief_waits():
        assert int(os.environ["GOMP_SPINCOUNT"]) > 0
        raise ImportError("no kernels")
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with _threads.brief_waits():
        assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["GOMP_SPINCOUNT"] == "7"


# ---------------------------------------------------------------------------- the same bits

IMAGES = (3, 9, 41, 39)  # enough work for convolution and pooling to split,
BATCH = (20, 70, 12, 12)  # which batch normalisation cuts into pieces
MANY = (3, 12, 61, 61)  # and for what does one operation on each element
ROWS = (700, 150)


def conv(x: tuple[int, ...], weight: tuple[int, ...], **options: Any) -> list[Call]:
    """A convolution and its backward."""
    with cnnx.use_backend("numpy"):
        out = cnnx.conv2d(np.zeros(x, np.float32), np.zeros(weight, np.float32), **options).shape
    return [
        Call("conv2d", {"x": x, "weight": weight, "bias": weight[:1]}, options),
        Call("conv2d_backward", {"grad_out": out, "x": x, "weight": weight}, options),
    ]


# One or more calls of every function, of a size that is split among threads.
ELEMENTWISE = ("relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu")
POOL = {"pool_size": 3, "stride": 2, "padding": 1}
CONVOLUTIONS: dict[str, list[Call]] = {
    "winograd": conv((3, 16, 25, 23), (24, 16, 3, 3), padding=1),
    "winograd_one_image": conv((1, 32, 30, 30), (40, 32, 3, 3), padding=1),
    "winograd_small_images": conv((9, 64, 7, 7), (64, 64, 3, 3), padding=1),
    # Several blocks of tiles, so that it depends on the threads who transforms the weights.
    "winograd_by_parts": conv((4, 70, 40, 40), (64, 70, 5, 5), padding=2),
    "winograd_strided": conv((3, 200, 30, 31), (96, 200, 3, 3), padding=1, stride=2),
    "direct": conv((2, 3, 45, 47), (16, 3, 5, 5), stride=2, padding=2),
    "direct_one_image": conv((1, 1, 90, 90), (6, 1, 5, 5)),
    "direct_many_pixels": conv((4, 3, 150, 150), (8, 3, 3, 3), padding=1),
    "gemm": conv((2, 20, 21, 22), (30, 20, 5, 5), padding=2),
    "gemm_one_image": conv((1, 40, 19, 20), (72, 40, 1, 1)),
    "gemm_dilated": conv((2, 9, 40, 40), (10, 9, 3, 3), dilation=2, padding=2),
    "gemm_strided": conv((3, 12, 37, 31), (20, 12, 3, 3), stride=(2, 3)),
    "gemm_many_pixels": conv((3, 8, 130, 130), (12, 8, 2, 2)),
    "depthwise": conv((2, 40, 40, 40), (40, 1, 3, 3), padding=1, groups=40),
    "depthwise_strided": conv((3, 80, 43, 40), (80, 1, 5, 5), stride=2, padding=2, groups=80),
    "depthwise_large": conv((2, 3, 180, 150), (3, 1, 3, 3), padding=1, groups=3),
    "depthwise_small": conv((3, 200, 14, 14), (200, 1, 7, 7), padding=3, groups=200),
    "grouped": conv((2, 32, 24, 24), (48, 16, 3, 3), padding=1, groups=2),
    "grouped_few": conv((5, 24, 60, 37), (24, 4, 3, 3), padding=1, groups=6),
    "reflected": conv((2, 9, 30, 30), (8, 9, 3, 3), padding=1, padding_mode="reflect"),
    "fused": [
        Call(
            "conv2d",
            {"x": (2, 20, 21, 22), "weight": (30, 20, 5, 5), "bias": (30,)},
            {"activation": "sigmoid"},
        )
    ],
}
_TRANSPOSE = {"stride": 2, "padding": 1, "output_padding": 1}
SPLIT: dict[str, list[Call]] = {
    **CONVOLUTIONS,
    "conv_transpose2d": [
        Call("conv_transpose2d", {"x": (3, 16, 30, 31), "weight": (16, 12, 3, 3)}, _TRANSPOSE),
        Call(
            "conv_transpose2d_backward",
            {"grad_out": (3, 12, 60, 62), "x": (3, 16, 30, 31), "weight": (16, 12, 3, 3)},
            _TRANSPOSE,
        ),
    ],
    "max_pool2d": [
        Call("max_pool2d", {"x": IMAGES}, {**POOL, "return_indices": True}),
        Call(
            "max_pool2d_backward",
            {"grad_out": (3, 12, 41, 39)},
            {
                "indices": np.arange(3 * 12 * 41 * 39).reshape(3, 12, 41, 39) * 5 % (61 * 61),
                "input_shape": MANY,
            },
        ),
    ],
    "avg_pool2d": [
        Call("avg_pool2d", {"x": IMAGES}, POOL),
        Call("avg_pool2d_backward", {"grad_out": (3, 9, 21, 20)}, {"input_shape": IMAGES, **POOL}),
        Call(
            "avg_pool2d_backward",
            {"grad_out": (3, 9, 41, 39)},
            {"input_shape": IMAGES, **POOL, "stride": 1},
        ),
        Call(
            "avg_pool2d_backward",
            {"grad_out": (3, 12, 30, 30)},
            {"input_shape": (3, 12, 60, 60), "pool_size": 2},
        ),
    ],
    "global_avg_pool2d": [
        Call("global_avg_pool2d", {"x": MANY}),
        Call("global_avg_pool2d_backward", {"grad_out": MANY[:2]}, {"input_shape": MANY}),
    ],
    "linear": [
        Call("linear", {"x": ROWS, "weight": (150, 70), "bias": (70,)}, {"activation": "tanh"}),
        Call("linear_backward", {"grad_out": (700, 70), "x": ROWS, "weight": (150, 70)}),
        Call("linear", {"x": (1, 1800), "weight": (1800, 600), "bias": (600,)}),
        Call("linear_backward", {"grad_out": (1, 600), "x": (1, 1800), "weight": (1800, 600)}),
    ],
    **{
        name: [Call(name, {"x": MANY}), Call(f"{name}_backward", {"grad_out": MANY, "x": MANY})]
        for name in ELEMENTWISE
    },
    **{
        name: [Call(name, {"x": ROWS}), Call(f"{name}_backward", {"grad_out": ROWS, "x": ROWS})]
        for name in ("softmax", "log_softmax")
    },
    "batch_norm2d": [
        Call("batch_norm2d", {"x": MANY, "weight": (12,), "bias": (12,)}),
        Call("batch_norm2d_backward", {"grad_out": MANY, "x": MANY, "weight": (12,)}),
        Call("batch_norm2d", {"x": BATCH, "weight": (70,), "bias": (70,)}),
        Call("batch_norm2d_backward", {"grad_out": BATCH, "x": BATCH, "weight": (70,)}),
    ],
    "conv_forward": [Call("conv_forward", {"X": IMAGES, "W": (10, 9, 3, 3), "b": (10,)})],
}
each_split = pytest.mark.parametrize("name", SPLIT)


def random(call: Call, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(call.name))
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in call.shapes.items()}


def bits(results: list[Any]) -> list[bytes]:
    return [result.tobytes() for result in results]


def test_every_function_is_split_here() -> None:
    names = {call.name for calls in SPLIT.values() for call in calls}
    # conv_backward is conv2d_backward and an activation's, and takes no arrays but dout.
    assert names == set(cnnx.functional.__all__) - {"conv_backward"}


@needs_kernels
@each_split
def test_same_bits(
    name: str, dtype: Any, compiled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def threads() -> int:
        nonlocal asked
        asked += 1
        return count

    # The kernels ask only where there is enough work to split: this test must stand on that.
    monkeypatch.setattr(_threads, "get_num_threads", threads)
    for call in SPLIT[name]:
        arrays, count, asked = random(call, dtype), 1, 0
        one = bits(call(arrays))
        assert asked, f"{call_id(call)} is too small to be split"
        for count in COUNTS:
            for _ in range(2):  # which thread comes first is chance
                assert bits(call(arrays)) == one, f"{call_id(call)} with {count} threads"


@needs_kernels
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_same_bits_without_winograd(name: str, compiled: ModuleType) -> None:
    before = compiled.set_winograd(False)
    try:
        for call in CONVOLUTIONS[name]:
            arrays = random(call, np.float32)
            cnnx.set_num_threads(1)
            one = bits(call(arrays))
            for count in COUNTS:
                cnnx.set_num_threads(count)
                assert bits(call(arrays)) == one, f"{call_id(call)} with {count} threads"
    finally:
        compiled.set_winograd(before)


@needs_kernels
def test_small_calls_stay_on_one_thread(
    compiled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> int:
        raise AssertionError("a call of nine pixels asked for threads")

    monkeypatch.setattr(_threads, "get_num_threads", threads)
    x = np.ones((1, 1, 3, 3))
    assert_array_equal(cnnx.conv2d(x, x), [[[[9]]]])
    assert_array_equal(cnnx.relu(x), x)


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system has no /proc")
def test_threads_are_started(tmp_path: Path) -> None:
    # In a process of its own, where NumPy's threads are none: the only others are ours.
    code = """
import os, numpy as np, cnnx
from cnnx import _kernels
def running(): return len(os.listdir("/proc/self/task"))
x = np.ones((8, 8, 64, 64), np.float32)
before = running()
cnnx.set_num_threads(1); cnnx.relu(x)
alone = running() - before
cnnx.set_num_threads(4); cnnx.relu(x)
print(alone, running() - before, _kernels.build_info()["openmp"] > 0)
"""
    alone, started, openmp = printed(code, tmp_path, OPENBLAS_NUM_THREADS="1").split()
    assert alone == "0"
    assert started == ("3" if openmp == "True" else "0")


# ---------------------------------------------------------------------------- other threads


def in_threads(jobs: list[Any], workers: int) -> None:
    """Run jobs at once, from one signal on, and raise what they raise."""
    barrier = threading.Barrier(workers)

    def run(job: Any) -> None:
        barrier.wait(60)
        job()

    assert len(jobs) == workers
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(run, job) for job in jobs]:
            future.result(timeout=120)


@pytest.mark.parametrize("count", [1, 3])
def test_one_function_from_many_threads(count: int, backend: str) -> None:
    cnnx.set_num_threads(count)
    call = CONVOLUTIONS["winograd"][1]
    inputs = [
        {name: array * np.float32(2.0**i) for name, array in random(call, np.float32).items()}
        for i in range(6)
    ]
    expected = [bits(call(arrays)) for arrays in inputs]
    assert len(set(map(tuple, expected))) == 6  # one thread's results cannot pass for another's

    def job(i: int) -> None:
        for _ in range(5):
            assert bits(call(inputs[i])) == expected[i]

    in_threads([lambda i=i: job(i) for i in range(6)], 6)


@pytest.mark.parametrize("count", [1, 2])
def test_all_functions_from_many_threads(count: int, backend: str) -> None:
    cnnx.set_num_threads(count)
    calls = [call for calls in SPLIT.values() for call in calls]
    if backend == "numpy":  # slow, and it has no state to race on
        calls = [call for call in calls if not call.name.startswith("conv")]
    work = [(call, random(call, np.float32)) for call in calls]
    expected = [bits(call(arrays)) for call, arrays in work]

    def job(first: int) -> None:
        for i in range(len(work)):
            call, arrays = work[(first + i) % len(work)]
            assert bits(call(arrays)) == expected[(first + i) % len(work)], call_id(call)

    in_threads([lambda i=i: job(i * len(work) // 6) for i in range(6)], 6)


def test_a_net_for_each_thread(backend: str) -> None:
    def net(seed: int) -> cnnx.Sequential:
        return cnnx.Sequential(
            cnnx.Conv2D(3, 12, 3, padding=1, activation="relu", rng=seed),
            cnnx.MaxPool2D(3, 2),
            cnnx.Conv2D(12, 8, 3, padding=1, rng=seed),
            cnnx.BatchNorm2D(8),
            cnnx.ReLU(),
            cnnx.AvgPool2D(2),
            cnnx.Flatten(),
            cnnx.Dense(8 * 7 * 7, 10, rng=seed),
        )

    def train(seed: int) -> list[bytes]:
        rng, layer, loss = np.random.default_rng(seed), net(seed), cnnx.SoftmaxCrossEntropy()
        optimizer = cnnx.SGD(0.01, momentum=0.9)
        for _ in range(3):
            x = rng.normal(size=(4, 3, 30, 30)).astype(np.float32)
            loss.forward(layer(x), rng.integers(0, 10, 4))
            layer.backward(loss.backward())
            optimizer.step(layer)
        return [array.tobytes() for array in layer.state_dict().values()]

    cnnx.set_num_threads(2)
    expected = [train(seed) for seed in range(4)]
    actual: dict[int, list[bytes]] = {}
    in_threads([lambda s=s: actual.update({s: train(s)}) for s in range(4)], 4)
    assert [actual[seed] for seed in range(4)] == expected


@needs_kernels
def test_number_of_threads_changed_meanwhile(compiled: ModuleType) -> None:
    call = CONVOLUTIONS["gemm"][1]
    arrays = random(call, np.float32)
    expected, stop = bits(call(arrays)), threading.Event()

    def change() -> None:
        while not stop.wait(0.0005):
            cnnx.set_num_threads(1 + time.perf_counter_ns() % 4)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(40):
            assert bits(call(arrays)) == expected
    finally:
        stop.set()
        thread.join()


@needs_kernels
def test_the_interpreter_is_free_meanwhile(compiled: ModuleType) -> None:
    # Another thread notes the time every millisecond. With the interpreter locked it could do so
    # only before and after the convolution, never in its middle.
    notes: list[float] = []
    stop = threading.Event()

    def note() -> None:
        while not stop.wait(0.001):
            notes.append(time.perf_counter())

    cnnx.set_num_threads(1)
    x, weight = np.ones((2, 64, 96, 96)), np.ones((64, 64, 5, 5))
    thread = threading.Thread(target=note)
    thread.start()
    try:
        for _ in range(10):  # a busy machine may let the other thread sleep through one of them
            start = time.perf_counter()
            cnnx.conv2d(x, weight)
            end = time.perf_counter()
            margin = 0.2 * (end - start)
            within = [t for t in notes if start + margin < t < end - margin]
            if within:
                return
    finally:
        stop.set()
        thread.join()
    pytest.fail(f"no other thread ran within ten convolutions of {end - start:.2f} s")


# ---------------------------------------------------------------------------- other processes

PROBLEM = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
import numpy as np, cnnx
rng = np.random.default_rng(0)
x, weight = rng.normal(size=(4, 16, 40, 40)), rng.normal(size=(16, 16, 3, 3))
cnnx.set_num_threads(2)
"""


@needs_kernels
@needs_fork
def test_fork_after_use(tmp_path: Path) -> None:
    # OpenMP's threads are not in the child, which must not wait for them.
    code = (
        PROBLEM
        + """
expected = cnnx.conv2d(x, weight)
child = os.fork()
if not child:
    same = np.array_equal(cnnx.conv2d(x, weight), expected)
    cnnx.conv2d_backward(expected, x, weight)
    print("same" if same else "other", cnnx.config()["threads"], flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
print(status, np.array_equal(cnnx.conv2d(x, weight), expected), cnnx.get_num_threads())
"""
    )
    child, parent = printed(code, tmp_path).splitlines()
    assert child == "same 1 (forked child: OpenMP's threads do not survive a fork)"
    assert parent == "0 True 2"


@needs_kernels
@needs_fork
def test_more_threads_in_a_forked_child(tmp_path: Path) -> None:
    # They would hang it: it stays with one, and says so.
    code = (
        PROBLEM
        + """
expected = cnnx.conv2d(x, weight)
child = os.fork()
if not child:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cnnx.set_num_threads(1)
        cnnx.set_num_threads(2)
    print(len(caught), caught[0].category.__name__, caught[0].message)
    print(cnnx.get_num_threads(), np.array_equal(cnnx.conv2d(x, weight), expected), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    )
    warning, result = printed(code, tmp_path).splitlines()
    assert warning.startswith("1 RuntimeWarning n is 2, but a forked process computes with one")
    assert "spawn" in warning
    assert result == "1 True"


@needs_kernels
@needs_fork
def test_fork_while_others_compute(tmp_path: Path) -> None:
    # The memory pool's lock may be held by a thread that is not in the child.
    code = (
        PROBLEM
        + """
expected, stop = cnnx.relu(x), False
def compute():
    while not stop: cnnx.relu(x)
threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads: thread.start()
statuses = set()
for _ in range(30):
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(cnnx.relu(x), expected) else 1)
    statuses.add(os.waitpid(child, 0)[1])
stop = True
for thread in threads: thread.join()
print(statuses)
"""
    )
    assert printed(code, tmp_path) == "{0}"


def test_processes_that_are_spawned() -> None:
    rng = np.random.default_rng(0)
    work = [(rng.normal(size=(2, 8, 20, 20)), rng.normal(size=(8, 8, 3, 3))) for _ in range(3)]
    expected = [cnnx.conv2d(x, weight) for x, weight in work]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        actual = pool.starmap_async(cnnx.conv2d, work).get(timeout=120)
    for result, known in zip(actual, expected, strict=True):
        assert_array_equal(result, known)


# ---------------------------------------------------------------------------- recycled memory


def test_live_arrays_share_no_memory(backend: str) -> None:
    # Many results of few sizes; some die, and what takes their memory must be nobody else's.
    rng = np.random.default_rng(0)
    alive: list[tuple[Any, float]] = []
    for value in np.arange(400.0):
        shape = [(7,), (64, 3), (5, 5, 41)][rng.integers(3)]
        alive.append((cnnx.relu(np.full(shape, value)), value))
        if len(alive) > 30:
            del alive[int(rng.integers(len(alive)))]
    for array, value in alive:
        assert_array_equal(array, np.full(array.shape, value))


def test_views_keep_their_memory(backend: str) -> None:
    # Of each result only a view is kept: the memory must live as long as the last of them.
    views = []
    for value in range(60):
        result = cnnx.relu(np.full((4, 50, 3), float(value)))
        views.append([result[1:3, ::7], result.T, result.reshape(-1)[5:]][value % 3])
        del result
    for value, view in enumerate(views):
        assert_array_equal(view, np.full(view.shape, float(value)))


@needs_kernels
def test_memory_is_used_again(compiled: ModuleType) -> None:
    cnnx.empty_cache()
    x = np.ones((3, 5000))
    first = cnnx.relu(x)
    address, before = first.ctypes.data, cnnx.memory_stats()
    view = first[1:]
    del first
    other = cnnx.relu(x)
    assert other.ctypes.data != address  # the view still stands on it
    del view
    again = cnnx.relu(x)
    assert again.ctypes.data == address
    after = cnnx.memory_stats()
    assert after["hits"] == before["hits"] + 1
    assert after["in_use"] > before["in_use"]
    del other, again
    cnnx.empty_cache()
    assert cnnx.memory_stats()["cached"] == 0


@needs_kernels
def test_memory_from_many_threads(compiled: ModuleType) -> None:
    def job(seed: int) -> None:
        rng, alive = np.random.default_rng(seed), []
        for step in range(300):
            value = float(1000 * seed + step)
            alive.append((cnnx.relu(np.full((rng.integers(1, 4), 400), value)), value))
            if len(alive) > 10:
                del alive[int(rng.integers(10))]
        for array, value in alive:
            assert_array_equal(array, np.full(array.shape, value))

    before = cnnx.memory_stats()["in_use"]
    in_threads([lambda s=s: job(s) for s in range(6)], 6)
    gc.collect()
    assert cnnx.memory_stats()["in_use"] == before


@needs_kernels
def test_memory_dies_in_another_thread(compiled: ModuleType) -> None:
    arrays = [cnnx.relu(np.full(1000, float(i))) for i in range(50)]
    before = cnnx.memory_stats()["in_use"]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert cnnx.memory_stats()["in_use"] < before


@needs_kernels
def test_kept_memory_is_bounded(compiled: ModuleType) -> None:
    cnnx.empty_cache()
    limit = cnnx.memory_stats()["limit"]
    for part in (16, 5, 3, 2) * 2:  # never written to, so that no page of it is real
        compiled.empty((limit // part // 4,), "float32")
        assert 0 < cnnx.memory_stats()["cached"] <= limit
    compiled.empty((limit // 2,), "float32")  # of twice the limit
    assert cnnx.memory_stats()["cached"] <= limit
    assert cnnx.memory_stats()["peak"] >= 2 * limit
    cnnx.empty_cache()


@needs_kernels
def test_sizes_no_longer_used_make_room(compiled: ModuleType) -> None:
    cnnx.empty_cache()
    limit = cnnx.memory_stats()["limit"]
    old, new = limit // 4 // 4, limit // 5 // 4
    kept = [compiled.empty((old,), "float32") for _ in range(4)]
    del kept  # all four, or with their headers three of them
    assert cnnx.memory_stats()["cached"] > limit // 2
    for _ in range(10):
        pair = [compiled.empty((new,), "float32") for _ in range(2)]
        del pair
    before = cnnx.memory_stats()
    pair = [compiled.empty((new,), "float32") for _ in range(2)]
    assert cnnx.memory_stats()["misses"] == before["misses"]
    del pair
    cnnx.empty_cache()


def test_exit_with_live_arrays(tmp_path: Path) -> None:
    # At the end of the process arrays die in any order, after the modules too.
    code = (
        PROBLEM
        + """
class Keeper:
    pass
keeper = Keeper()
keeper.itself, keeper.arrays = keeper, [cnnx.conv2d(x, weight) for _ in range(5)]
sys.kept = cnnx.conv2d(x, weight)[0]
"""
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
