"""The same bits for any number of threads."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from calls import call_id
from conftest import needs_kernels, needs_tight_memory
from fresh import printed
from split import CONVOLUTIONS, SPLIT, bits, random

import cnnx
from cnnx import _threads

COUNTS = [2, 3, 5, 8]  # against 1


def test_every_function_is_split_here() -> None:
    names = {call.name for calls in SPLIT.values() for call in calls}
    # conv_backward is conv2d_backward and an activation's, and takes no arrays but dout.
    assert names == set(cnnx.functional.__all__) - {"conv_backward"}


@needs_kernels
@pytest.mark.parametrize("name", SPLIT)
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


ALL = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import cnnx
from split import SPLIT, random
cnnx.set_num_threads(2)
calls = [call for calls in SPLIT.values() for call in calls]
for dtype in (np.float32, np.float64):
    for call in calls:
        call(random(call, dtype))
print(len(calls))
"""


@needs_kernels
@needs_tight_memory
def test_a_small_stack_is_enough(tmp_path: Path, isa: str) -> None:
    # What musl gives a thread; glibc and macOS give megabytes.
    code = ALL.format(tests=str(Path(__file__).parent))
    calls = sum(map(len, SPLIT.values()))
    assert printed(code, tmp_path, OMP_STACKSIZE="128k", CNNX_ISA=isa) == str(calls)
