"""Checks repaired wheels: ``python tools/check_wheel.py dist/*.whl``.

Each holds one compiled module, by the limited API where its Python has one, and is small. On Linux
the OpenMP runtime lies beside the module, and every glibc from 2.28 on will do. Needs
``pip install abi3audit auditwheel``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

LARGEST = 1_500_000  # bytes; most are kernels, once for each instruction set
GLIBC = 28  # of 2.28, in manylinux_2_28: Debian 10, RHEL 8, Ubuntu 20.04
BINARY = re.compile(r"\.(pyd|dll|dylib|so)(\.[0-9.]+)?$")


def answer(tool: str, *arguments: str) -> tuple[bool, str]:
    """Whether a tool that is installed beside this Python was content, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode == 0, done.stdout + done.stderr


def faults(wheel: Path) -> Iterator[str]:
    """What is wrong with a wheel; prints what it is."""
    python, abi, platform = wheel.stem.split("-")[-3:]
    with zipfile.ZipFile(wheel) as archive:
        files = sorted(archive.infolist(), key=lambda file: -file.compress_size)
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes")
    for file in files[:4]:
        print(f"  {file.compress_size:9,} of {file.file_size:9,}  {file.filename}")
    if size > LARGEST:
        yield f"{size - LARGEST:,} bytes more than {LARGEST:,}"

    names = [file.filename for file in files]
    binaries = [name for name in names if BINARY.search(name)]
    modules = [name for name in binaries if name.startswith("cnnx/")]
    if len(modules) != 1 or not modules[0].startswith("cnnx/_kernels."):
        yield f"the modules are {modules}, expected cnnx/_kernels alone"
    if any(name.endswith((".c", ".h", ".pyx", ".pxd", ".pxi")) for name in names):
        yield "it holds sources of the module"
    if python != "cp310" and not abi.endswith("t") and (python, abi) != ("cp311", "abi3"):
        yield f"it is for {python}-{abi}, expected cp311-abi3"
    if abi == "abi3":
        good, text = answer("abi3audit", "--strict", "--verbose", str(wheel))
        if not good:
            yield f"abi3audit: {text}"
    if "linux" in platform and not any("libgomp" in name for name in binaries):
        yield f"no OpenMP runtime in {binaries}"
    if "musllinux" not in platform and "linux" in platform:
        text = answer("auditwheel", "show", str(wheel))[1]
        policy = re.search(r'following platform tag:\s+"manylinux_2_(\d+)_\w+"', text)
        print(f"  manylinux_2_{policy[1]}" if policy else text)
        if not policy or int(policy[1]) > GLIBC or "manylinux" not in platform:
            yield f"it is not good for manylinux_2_{GLIBC}, or not marked so"


def main() -> int:
    wrong = 0
    for wheel in map(Path, sys.argv[1:]):
        for fault in faults(wheel):
            print(f"  FAULT: {fault}")
            wrong += 1
    print(f"{len(sys.argv) - 1} wheels, {wrong} faults")
    return bool(wrong or not sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
