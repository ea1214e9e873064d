"""The compiled part: one Cython extension, and its C kernels once for each instruction set.

Everything else about the package is in pyproject.toml. Only the files isa_*.c get flags of their
own: the rest of the build uses the instructions that every CPU of the target has, so that one wheel
runs everywhere. By Python's limited API it also serves every Python from 3.11 on. Without a
compiler the install succeeds and cnnx runs on NumPy; set ``CNNX_REQUIRE_EXTENSION=1`` (as the wheel
builds do) to make that an error, ``CNNX_NO_EXTENSION=1`` to leave the extension out.
"""

import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("cnnx") / "_csrc"
MSVC = sys.platform == "win32"
MACHINE = platform.machine().lower()
# The limited API of 3.11 is the first with all that is used here. By it small calls are 0 to 8 %
# slower, 5 % on average. Builds without a GIL have none.
LIMITED = (
    sys.implementation.name == "cpython"
    and sys.version_info >= (3, 11)
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)

# Never -ffast-math: it breaks NaN, and linking with it makes the whole process flush denormals to
# zero.
# -g0 takes back Python's own -g, which would make the module five times as large.
# Nobody reads errno, and where it must be set a square root is no vector instruction.
OPTIMISE = ["/O2", "/std:c11"]
if not MSVC:
    OPTIMISE = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11"]
# For the kernels with gcc: -O2 and what of -O3 pays. All of -O3 is a fifth larger, compressed, and
# no faster: the mean of the layers' times over those at -O3 is 0.97 to 1.01 by AVX2 and 0.99 to
# 1.00 by AVX-512. At -O2 alone loops are not vectorised: Adam takes 9 times as long.
KERNELS = [
    "-O2",
    "-ftree-loop-vectorize",
    "-fvect-cost-model=dynamic",
    "-funswitch-loops",
    "-fversion-loops-for-strides",
    "-fpeel-loops",
    "--param=max-peel-times=0",
    "--param=max-completely-peel-times=8",
    "--param=max-completely-peeled-insns=100",
    "-fno-asynchronous-unwind-tables",
]
# Where there is something better, the baseline runs on no CPU of this decade: small is enough.
FLAGS: dict[str, list[str]] = {"baseline": []}
if MACHINE in ("x86_64", "amd64") and not MSVC:
    FLAGS["baseline"].append("-Os")
    FLAGS["avx2"] = ["-mavx2", "-mfma"]
    FLAGS["avx512"] = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"]
    for flags in FLAGS.values():
        # gcc 12 moves 8 bytes through an MMX register, which breaks the x87 unit: long double.
        flags.append("-mno-mmx")
    MACROS = [("CNNX_X86", None)]
elif MACHINE in ("aarch64", "arm64") and not MSVC:
    FLAGS["neon"] = []
    MACROS = [("CNNX_NEON", None)]
else:
    MACROS = []  # the portable kernels alone


class BuildKernels(build_ext):
    """Compiles each instruction set with its flags, and finds out whether there is OpenMP."""

    def build_extensions(self) -> None:
        try:
            openmp = self.openmp()
            flags = " ".join(OPTIMISE + openmp)
            for extension in self.extensions:
                extension.define_macros.append(("CNNX_FLAGS", f'"{flags}"'))  # for cnnx info
                extension.extra_compile_args += openmp
                extension.extra_link_args += [] if MSVC else openmp
                extension.extra_objects += self.kernels()
            super().build_extensions()
        except Exception as error:  # whatever a missing or broken compiler may raise
            if os.environ.get("CNNX_REQUIRE_EXTENSION"):
                raise
            self.extensions.clear()
            print(f"cnnx: no compiled kernels ({error}); installing the NumPy fallback alone")

    def kernels(self) -> list[str]:
        objects: list[str] = []
        small = KERNELS if not MSVC and self.accepts(KERNELS) else []
        for isa, flags in FLAGS.items():
            objects += self.compiler.compile(
                [str(CSRC / f"isa_{isa}.c")],
                output_dir=self.build_temp,
                extra_postargs=OPTIMISE + small + flags,
                depends=[str(path) for path in CSRC.glob("*.h")],
            )
        return objects

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler knows these flags: clang refuses gcc's parameters."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text("int probe;\n")
            try:
                self.compiler.compile([str(source)], folder, extra_postargs=flags)
            except Exception:
                return False
        return True

    def openmp(self) -> list[str]:
        """Flags for OpenMP, or none where the compiler has not got it (Apple clang)."""
        flag = "/openmp" if MSVC else "-fopenmp"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(
                "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
            )
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=[flag])
                self.compiler.link_executable(
                    objects, str(Path(folder) / "probe"), extra_postargs=[] if MSVC else [flag]
                )
            except Exception:
                print("cnnx: this compiler has no OpenMP; building without threads")
                return []
        return [flag]


def extensions() -> list[Extension]:
    if os.environ.get("CNNX_NO_EXTENSION"):
        print("cnnx: CNNX_NO_EXTENSION is set; installing the NumPy fallback alone")
        return []
    import numpy as np
    from Cython.Build import cythonize

    kernels = Extension(
        "cnnx._kernels",
        ["cnnx/_kernels.pyx", str(CSRC / "dispatch.c"), str(CSRC / "pool.c")],
        include_dirs=[np.get_include(), "cnnx"],
        define_macros=[
            *MACROS,
            ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
            *([("Py_LIMITED_API", "0x030b0000")] if LIMITED else []),
        ],
        py_limited_api=LIMITED,
        extra_compile_args=list(OPTIMISE),
        depends=[str(path) for path in CSRC.glob("*.h")],
    )
    return cythonize([kernels])


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
