#!/usr/bin/env bash
# What the suite covers: lines and branches of the Python, by coverage, and of the Cython and the C, by gcov.
#
#   tools/coverage.sh [arguments for pytest]      for example: tests/test_conv.py; without any, the whole suite
#   MORE=1 tools/coverage.sh [arguments]          adds to what the runs before it counted
#
# Works on an instrumented copy of the tree, which stays in $CNNX_COVERED (/tmp/cnnx-covered). tools/covered.py says
# what is counted in the Cython and the C. What is left uncovered, and why, is in CONTRIBUTING.md.
set -eu

copy=${CNNX_COVERED:-/tmp/cnnx-covered}
cd "$(dirname "$0")/.."
[ -n "${MORE:-}" ] || rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --preserve=timestamps -t "$copy"
cd "$copy"

if [ -z "${MORE:-}" ]; then
    # Nothing inlined, or each copy of a function would have branches of its own, and most of them only one way, by
    # its caller's constants. Tasks run on threads: the counters are atomic.
    sed -i 's/ inline __attribute__((always_inline))//' cnnx/_csrc/isa.inc.h
    printf '#!/bin/sh\nexec gcc "$@" -O1 -fno-inline -w --coverage -fprofile-update=atomic\n' >compiler
    chmod +x compiler
    CC="$PWD/compiler" CNNX_REQUIRE_EXTENSION=1 python setup.py --quiet build_ext --inplace
fi

status=0
python -m pytest -p no:cacheprovider --cov --cov-append --cov-report=term-missing:skip-covered \
    --cov-report=json:coverage.json "$@" || status=$?
python tools/covered.py build coverage.json
exit $status
