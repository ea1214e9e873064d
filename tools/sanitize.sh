#!/usr/bin/env bash
# The suite under AddressSanitizer and UndefinedBehaviorSanitizer, with Cython's bounds checks on.
#
#   tools/sanitize.sh [arguments for pytest]      for example: tests/test_fuzz.py -x
#
# Works on an instrumented copy of the tree, which stays in $CNNX_SANITIZED (/tmp/cnnx-sanitized): with ccache
# installed a second run compiles nothing new.
#
#   VALGRIND=1 tools/sanitize.sh [arguments for pytest]
#
# runs a plain copy under valgrind instead, for addresses alone, since NumPy has false alarms about values; at
# most on AVX2, for valgrind knows no AVX-512. It is a hundred times slower: take a few tests.
#
#   THREADS=1 tools/sanitize.sh [arguments for pytest]      for example: tests/test_concurrency.py
#
# runs the tests under ThreadSanitizer, without OpenMP: its library is not instrumented, so each of its barriers would
# be a false alarm. What threads do to each other in our code remains: those of Python, frozen layers for example, and
# first those of a small program that knows no Python, whose lock hides most races.
set -eu

copy=${CNNX_SANITIZED:-/tmp/cnnx-sanitized${THREADS:+-threads}}
cd "$(dirname "$0")/.."
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$copy"
cd "$copy"

# At -O1 the kernels build in a fraction of the time; the loops and the addresses are the same.
flags="-O1 -g1 -fno-omit-frame-pointer"
without=
if [ -n "${THREADS:-}" ]; then
    flags="$flags -fsanitize=thread"
    without=-fopenmp
elif [ -z "${VALGRIND:-}" ]; then
    flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    sed -i '1s/boundscheck=False, wraparound=False/boundscheck=True, wraparound=False/' cnnx/_kernels.pyx
fi
# A compiler that puts these flags last, behind those of setup.py, and knows nothing of OpenMP where that is left out.
cat >compiler <<END
#!/bin/sh
for argument; do
    shift
    [ "\$argument" = "$without" ] || set -- "\$@" "\$argument"
done
exec $(command -v ccache || true) gcc "\$@" $flags
END
chmod +x compiler
CC="$PWD/compiler" CNNX_REQUIRE_EXTENSION=1 python setup.py --quiet build_ext --inplace

export PYTHONMALLOC=malloc # Python's own pools would hide what is done behind an array's end
if [ -n "${VALGRIND:-}" ]; then
    # glibc compares strings by whole vectors and words, beyond their ends.
    cat >glibc.supp <<END
{
   vectors
   Memcheck:Addr32
   fun:__wmemcmp_avx2_movbe
}
{
   words
   Memcheck:Addr8
   fun:strncmp
}
END
    exec valgrind --quiet --undef-value-errors=no --error-exitcode=1 --suppressions=glibc.supp python -m pytest -p no:cacheprovider "$@"
fi
if [ -n "${THREADS:-}" ]; then
    # At the same addresses each time, for the sanitizer knows no others; Python itself is not instrumented.
    export TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1
    gcc $flags tests/pool_threads.c cnnx/_csrc/pool.c -o pool_threads
    setarch -R ./pool_threads
    LD_PRELOAD="$(gcc -print-file-name=libtsan.so)" exec setarch -R python -m pytest -p no:cacheprovider "$@"
fi
# Leaks are held by test_leaks: Python itself never gives all back at exit.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)" \
    exec python -m pytest -p no:cacheprovider "$@"
