"""Beside other libraries with threads of their own, imported before cnnx or after it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from conftest import needs_kernels
from fresh import printed

WORK = {
    "torch": "torch.mm(torch.ones(400, 400), torch.ones(400, 400))",
    "sklearn": "sklearn.cluster.KMeans(8, n_init=1, max_iter=5).fit(points)",
    "cv2": "cv2.GaussianBlur(points, (5, 5), 1)",
    "onnxruntime": "onnxruntime.get_device()",  # without a model there is nothing to run
}
CODE = """
import numpy as np
{imports}
rng = np.random.default_rng(0)
x = rng.standard_normal((8, 16, 40, 40), np.float32)
weight = rng.standard_normal((32, 16, 3, 3), np.float32)
points = rng.random((5000, 8), np.float32)
cnnx.set_num_threads(2)
for _ in range(5):
    {work}
    out = cnnx.conv2d(x, weight)
print(hash(out.tobytes()))
"""


@needs_kernels
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", WORK)
def test_same_bits_in_turns_with(name: str, first: bool, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    other = "sklearn.cluster" if name == "sklearn" else name
    imports = f"import {other}, cnnx" if first else f"import cnnx, {other}"
    together = printed(CODE.format(imports=imports, work=WORK[name]), tmp_path, PYTHONHASHSEED="0")
    alone = printed(CODE.format(imports="import cnnx", work="pass"), tmp_path, PYTHONHASHSEED="0")
    assert together == alone


@needs_kernels
@pytest.mark.parametrize("imports", ["import torch, cnnx", "import cnnx, torch"])
def test_threads_of_torch_are_its_own(imports: str, tmp_path: Path) -> None:
    """Built against the system's libgomp, cnnx has one OpenMP with it; a wheel has its own."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    code = f"""
{imports}
cnnx.set_num_threads(2)
torch.set_num_threads(1)
print(cnnx.get_num_threads(), cnnx._kernels.build_info()["openmp"] > 0)
cnnx.set_num_threads(3)
print(torch.get_num_threads())
"""
    ours, theirs = printed(code, tmp_path, OMP_NUM_THREADS="2").splitlines()
    assert ours in ("2 True", "1 False")
    assert theirs == "1"
