"""The compiled part: one Cython extension, and its C kernels once for each instruction set.

Everything else about the package is in pyproject.toml. Only the files isa_*.c get flags of their
own: the rest of the build uses the instructions that every CPU of the target has, so that one wheel
runs everywhere. By Python's limited API it serves every Python from 3.11 on. What the
target is, the compiler says: it need not be the machine that builds.
Without a compiler the install succeeds and cnnx runs on NumPy; ``CNNX_REQUIRE_EXTENSION=1`` makes
that an error, and ``CNNX_REQUIRE_EXTENSION=full`` (as the wheel builds have it) also what would
only make it slow: no OpenMP, or portable kernels alone. ``CNNX_NO_EXTENSION=1`` leaves the
extension out.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("cnnx") / "_csrc"
MSVC = sys.platform == "win32"
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
VECTORS = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11"]
OPTIMISE = ["/O2", "/std:c11"] if MSVC else VECTORS
# For OpenMP, to compile and to link: the first that works. Apple's clang knows it, but CPPFLAGS and
# LDFLAGS must say where LLVM's libomp lies.
OPENMP = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
if MSVC:
    OPENMP = [(["/openmp"], [])]
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
    "-ffunction-sections",
]
# The same function for float and double and in each instruction set, side by side: deflate looks
# back 32 KiB, and packs the module from 1,081 into 1,032 kB so.
BY_NAME = ["-Wl,--sort-section=name"]
# gcc 12 moves 8 bytes through an MMX register, which breaks the x87 unit: long double.
X86 = ["-mno-mmx"]
AVX2 = [*X86, "-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"]
# The instruction sets of each target, and their flags.
TARGETS: dict[str, dict[str, list[str]]] = {
    # Where there is something better, the baseline runs on no CPU of this decade: small is enough.
    "x86_64": {"baseline": [*X86, "-Os"], "avx2": AVX2, "avx512": AVX512},
    "aarch64": {"baseline": [], "neon": []},
}
# MSVC has no vector extensions: there clang makes the kernels. What starts threads stays MSVC's,
# for clang's OpenMP ends a process in which it meets another of its kind, as PyTorch's is.
CLANG = ["clang", "-fgnuc-version=12.2.0"]
TRIPLES = {"win-amd64": "x86_64-pc-windows-msvc", "win-arm64": "aarch64-pc-windows-msvc"}


def make_do(without: str) -> None:
    """Go on without what makes the kernels fast, unless it was demanded."""
    if os.environ.get("CNNX_REQUIRE_EXTENSION") == "full":
        raise RuntimeError(without)
    print(f"cnnx: {without}")


class BuildKernels(build_ext):
    """Compiles each instruction set with its flags, and finds out whether there is OpenMP."""

    def build_extensions(self) -> None:
        try:
            openmp, link = self.openmp()
            flags = " ".join(OPTIMISE + openmp)
            for extension in self.extensions:
                extension.define_macros.append(("CNNX_FLAGS", f'"{flags}"'))  # for cnnx info
                extension.extra_compile_args += openmp
                extension.extra_link_args += link
                self.add_kernels(extension)
            super().build_extensions()
        except Exception as error:  # whatever a missing or broken compiler may raise
            if os.environ.get("CNNX_REQUIRE_EXTENSION"):
                raise
            self.extensions.clear()
            print(f"cnnx: no compiled kernels ({error}); installing the NumPy fallback alone")

    def add_kernels(self, extension: Extension) -> None:
        """The kernels in every instruction set of the target, and what tells dispatch.c of them."""
        probe = "#ifndef __{0}__\n#error this is not {0}\n#endif"
        target = next((name for name in TARGETS if self.accepts([], probe.format(name))), None)
        if target is None:
            make_do("portable kernels alone: no instruction set is known for this target")
            extension.sources.append(str(CSRC / "isa_baseline.c"))
            return
        extension.define_macros.append((f"CNNX_{target.upper()}", None))
        small = KERNELS if self.accepts(KERNELS) else []
        if small and sys.platform == "linux":
            extension.extra_link_args += BY_NAME
        for isa, flags in TARGETS[target].items():
            source, flags = str(CSRC / f"isa_{isa}.c"), VECTORS + small + flags
            extension.extra_objects += self.compile(source, self.build_temp, flags)

    def compile(self, source: str, folder: str, flags: list[str]) -> list[str]:
        """One object, by the compiler of the kernels."""
        if not MSVC:
            headers = [str(path) for path in CSRC.glob("*.h")]
            return self.compiler.compile([source], folder, extra_postargs=flags, depends=headers)
        made = Path(folder) / Path(source).with_suffix(".obj").name
        made.parent.mkdir(parents=True, exist_ok=True)
        target = f"--target={TRIPLES[self.plat_name]}"
        subprocess.run([*CLANG, target, *flags, "-c", source, "-o", str(made)], check=True)
        return [str(made)]

    def accepts(self, flags: list[str], text: str = "") -> bool:
        """Whether the compiler of the kernels takes these flags and this text.

        clang refuses gcc's parameters. The target is known by the compilers' own macro, so two at
        once (universal2 on macOS) are neither.
        """
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(f"{text}\nint probe;\n")
            try:
                self.compile(str(source), folder, flags)
            except Exception:
                return False
        return True

    def openmp(self) -> tuple[list[str], list[str]]:
        """Flags for OpenMP, to compile and to link, or none where the compiler has not got it."""
        text = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        for flags, link in OPENMP:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "probe.c"
                source.write_text(text)
                try:
                    objects = self.compiler.compile([str(source)], folder, extra_postargs=flags)
                    self.compiler.link_executable(objects, f"{folder}/probe", extra_postargs=link)
                except Exception:
                    continue
            return flags, link
        make_do("this compiler has no OpenMP; building without threads")
        return [], []


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
