#!/usr/bin/env bash
# The static checks. Each one runs, and a finding of any fails the command.
#
#   tools/check.sh            all of them
#   tools/check.sh gcc clang  these alone
#
# The C that Cython writes is not ours and is left out. CC and CLANG name the compilers (gcc and clang): gcc needs
# optimisation to see what is unused or not set; clang's analyser takes a minute for each instruction set.
set -u -o pipefail
cd "$(dirname "$0")/.."

lint() { ruff check . && ruff format --check . && cython-lint cnnx; }
types() { mypy; }
security() { bandit --quiet --recursive cnnx; }

# Everything that setup.py compiles for this machine, a line each: the file, then its flags.
units() {
    CNNX_NO_EXTENSION=1 python - <<'END'
import platform
import runpy
import sys
import sysconfig

sys.argv = ["setup.py", "--quiet", "--name"]
sys.stdout, lines = sys.stderr, sys.stdout
build = runpy.run_path("setup.py")
folder, target = build["CSRC"], platform.machine()
common = ["-std=gnu11", "-fopenmp", f"-DCNNX_{target.upper()}"]
for isa, flags in build["TARGETS"][target].items():
    print(folder / f"isa_{isa}.c", *common, *flags, file=lines)
for name in ("dispatch.c", "pool.c"):
    print(folder / name, *common, file=lines)
# The one header that Cython's C includes; nobody calls its function here.
python = sysconfig.get_path("include")
print("-x c", folder / "watch.h", *common, f"-isystem {python} -Wno-unused", file=lines)
END
}

# Runs a command on each of them, on all CPUs.
each() { units | xargs --max-procs="$(nproc)" --replace=UNIT sh -c "$* UNIT"; }

gcc() { each "${CC:-gcc} -O2 -c -o /dev/null -Wall -Wextra -Wconversion -Wsign-conversion -Werror"; }
clang() {
    each "${CLANG:-clang} -fsyntax-only -Wall -Wextra -Wconversion -Wsign-conversion -Werror" &&
        each "${CLANG:-clang} --analyze --analyzer-output text -Xclang -analyzer-opt-analyze-headers -Xclang -analyzer-werror"
}

failed=""
for check in ${@:-lint types security gcc clang}; do
    echo "== $check"
    $check || failed="$failed $check"
done
[ -z "$failed" ] || { echo "findings of:$failed"; exit 1; }
