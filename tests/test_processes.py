"""Forks and other processes, the end of the interpreter, and signals."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from conftest import needs_kernels
from fresh import printed, python

import cnnx

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROBLEM = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
import numpy as np, cnnx
rng = np.random.default_rng(0)
x, weight = rng.normal(size=(4, 16, 40, 40)), rng.normal(size=(16, 16, 3, 3))
cnnx.set_num_threads(2)
"""

# A convolution of some seconds on two fast cores, whose tasks take milliseconds.
LONG = """
import signal, time
wide, images = rng.normal(size=(16, 16, 51, 51)), rng.normal(size=(2, 16, 600, 600))
def stopped_after(number, call=lambda: cnnx.conv2d(images, wide)):
    \"\"\"Seconds from a signal to KeyboardInterrupt, within a long call.\"\"\"
    signal.signal(number, signal.default_int_handler)
    sent = []
    def send():
        sent.append(time.perf_counter())
        signal.raise_signal(number)
    threading.Timer(0.3, send).start()
    try:
        call()
    except KeyboardInterrupt:
        return time.perf_counter() - sent[0]
    raise RuntimeError("nothing stopped it")
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


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_pool_of_processes(method: str, tmp_path: Path) -> None:
    # The parent has computed, with threads, before the processes start.
    code = (
        PROBLEM
        + f"""
import multiprocessing
work = [(x * i, weight) for i in range(6)]
expected = [cnnx.conv2d(*arrays) for arrays in work]
with multiprocessing.get_context({method!r}).Pool(2) as pool:
    actual = pool.starmap_async(cnnx.conv2d, work).get(timeout=100)
print([np.array_equal(a, e) for a, e in zip(actual, expected)] == [True] * 6)
"""
    )
    assert printed(code, tmp_path) == "True"


@needs_kernels
@needs_fork
def test_fork_inside_a_thread(tmp_path: Path) -> None:
    # The thread is the child's only one, and so its main one: it gets the signals as well.
    code = (
        PROBLEM
        + LONG
        + """
expected, statuses = cnnx.conv2d(x, weight), []
def fork():
    cnnx.conv2d(x, weight)
    child = os.fork()
    if not child:
        try:
            same = np.array_equal(cnnx.conv2d(x, weight), expected)
            signalled = stopped_after(signal.SIGINT) < 1
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(0 if same and signalled else 1)
    statuses.append(os.waitpid(child, 0)[1])
threads = [threading.Thread(target=fork) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(statuses, np.array_equal(cnnx.conv2d(x, weight), expected))
"""
    )
    assert printed(code, tmp_path) == "[0, 0] True"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method: str, tmp_path: Path) -> None:
    # The library that most people read data with: its workers are processes, and cnnx runs in them.
    pytest.importorskip("torch", reason="PyTorch is not installed")
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    (tmp_path / "blurred.py").write_text(
        """
import numpy as np, torch, cnnx
KERNEL = np.ones((1, 1, 31, 31), np.float32)
class Blurred(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return torch.from_numpy(cnnx.conv2d(np.full((1, 1, 90, 90), i, np.float32), KERNEL)[0])
"""
    )
    code = (
        PROBLEM
        + f"""
import torch
from blurred import Blurred
torch.set_num_threads(2)
torch.ones(300, 300) @ torch.ones(300, 300)
cnnx.conv2d(x, weight)
loader = torch.utils.data.DataLoader(
    Blurred(), batch_size=4, num_workers=2, multiprocessing_context={method!r}, timeout=100
)
print([batch.unique().tolist() for batch in loader])
"""
    )
    path = os.pathsep.join([str(tmp_path), str(Path(cnnx.__file__).parents[1])])
    expected = [[float(31 * 31 * i) for i in range(j, j + 4)] for j in (0, 4)]
    assert printed(code, tmp_path, PYTHONPATH=path) == str(expected)


# ---------------------------------------------------------------------------- the end


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


@pytest.mark.parametrize("count", [1, 2])
def test_exit_in_the_middle_of_work(count: int, tmp_path: Path) -> None:
    # Daemon threads compute, long calls and short ones, while the interpreter goes down under them.
    code = (
        PROBLEM
        + f"""
import time
cnnx.set_num_threads({count})
def work(x):
    while True: cnnx.conv2d_backward(cnnx.conv2d(x, weight), x, weight)
many = np.concatenate([x] * 40)
for each in (x, x[:1], many, many):
    threading.Thread(target=work, args=(each,), daemon=True).start()
time.sleep(0.4)
"""
    )
    for _ in range(3):
        done = python(code, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------------- signals


@needs_kernels
@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_ends_a_long_call(count: int, tmp_path: Path) -> None:
    code = (
        PROBLEM
        + LONG
        + f"""
cnnx.set_num_threads({count})
expected, before = cnnx.conv2d(x, weight), cnnx.memory_stats()["in_use"]
for _ in range(2):
    print(stopped_after(signal.SIGINT) < 1)
print(cnnx.memory_stats()["in_use"] == before, np.array_equal(cnnx.conv2d(x, weight), expected))
print(cnnx.get_num_threads())
"""
    )
    assert printed(code, tmp_path).split() == ["True"] * 4 + [str(count)]


# Calls of which one task, or a few, take seconds.
LONG_TASKS = {
    "one image pooled": "cnnx.max_pool2d(image, 3000, stride=60)",
    "windows one below the other": "cnnx.avg_pool2d(image, (3000, 6000), stride=6)",
    "weight gradient of one image": (
        "cnnx.conv2d_backward(image[..., 120:, 120:], image, kernel, need=(False, True, False))"
    ),
    "a large kernel": "cnnx.conv2d(image, kernel)",
    "a stride of many small phases": (
        "cnnx.conv_transpose2d(image[..., :1, :1], image[..., :1, :1], stride=4000, "
        "output_padding=3999)"
    ),
}


@needs_kernels
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", LONG_TASKS)
def test_ctrl_c_ends_a_long_task(name: str, count: int, tmp_path: Path) -> None:
    code = (
        PROBLEM
        + LONG
        + f"""
cnnx.set_num_threads({count})
image, kernel = np.ones((1, 1, 6000, 6000), np.float32), np.ones((1, 1, 121, 121), np.float32)
expected, before = cnnx.conv2d(x, weight), cnnx.memory_stats()["in_use"]
print(stopped_after(signal.SIGINT, lambda: {LONG_TASKS[name]}) < 1)
print(cnnx.memory_stats()["in_use"] == before, np.array_equal(cnnx.conv2d(x, weight), expected))
"""
    )
    assert printed(code, tmp_path).split() == ["True"] * 3


@needs_kernels
@pytest.mark.parametrize("count", [1, 2])
def test_a_handler_that_raises_nothing(count: int, tmp_path: Path) -> None:
    # It runs in the middle of the call, may itself compute, and changes no bit of either result.
    code = (
        PROBLEM
        + LONG
        + f"""
cnnx.set_num_threads({count})
part = images[..., :110]
small, large = cnnx.conv2d(x, weight), cnnx.conv2d(part, wide)
notes = []
signal.signal(signal.SIGINT, lambda *_: notes.append(time.perf_counter()) or notes.append(
    np.array_equal(cnnx.conv2d(x, weight), small)))
for _ in range(5):  # a busy machine may let the signal come late
    notes.clear()
    started = time.perf_counter()
    threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
    result = cnnx.conv2d(part, wide)
    ended = time.perf_counter()
    assert np.array_equal(result, large) and notes[1]
    if notes[0] < ended - (ended - started) / 5:
        print("within")
        break
"""
    )
    assert printed(code, tmp_path) == "within"


@needs_kernels
def test_ctrl_c_leaves_other_threads_alone(tmp_path: Path) -> None:
    code = (
        PROBLEM
        + LONG
        + """
part, results = images[..., :100], []
expected = cnnx.conv2d(part, wide)
def work(): results.append(cnnx.conv2d(part, wide))
thread = threading.Thread(target=work)
thread.start()
seconds = stopped_after(signal.SIGINT)
thread.join()
print(seconds < 1, np.array_equal(results[0], expected))
"""
    )
    assert printed(code, tmp_path) == "True True"
