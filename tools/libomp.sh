#!/bin/sh
# LLVM's OpenMP runtime for a macOS wheel, which Apple's clang lacks: tools/libomp.sh FOLDER
#
# Homebrew's runs on no macOS older than the one it was made for, and a wheel that brings it along runs on none
# either. This is conda-forge's of 2021, for macOS 11; scikit-learn's wheels have the same.
set -eu

case $(uname -m) in
arm64)
    file=osx-arm64/llvm-openmp-11.1.0-hf3c4609_1.tar.bz2
    sum=29763e493e46801c416f2e75f20e9183719bde3b727d8983b1917a480b4076fe
    ;;
*)
    file=osx-64/llvm-openmp-11.1.0-hda6cdc1_1.tar.bz2
    sum=1ebfeee2af90bcedf6b39c7290244e2aec0bda01ecf81b0d8d78ed405480c21c
    ;;
esac
mkdir -p "$1"
cd "$1"
curl --fail --location --silent --show-error --output libomp.tar.bz2 \
    "https://anaconda.org/conda-forge/llvm-openmp/11.1.0/download/$file"
echo "$sum  libomp.tar.bz2" | shasum -a 256 --check
tar -xjf libomp.tar.bz2
