#!/usr/bin/env bash
# A real engine behind the proxy: builds llama.cpp's server once (minutes; see build.sh), makes a tiny model, and
# runs the tests in tests/engines/llama_cpp.rs, which launch it as `forebay serve` launches any worker and say
# what they measure. Without the build, those tests say that they are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

loadtest/engines/build.sh
python3 loadtest/engines/tiny_model.py target/llama.cpp/tiny.gguf
cargo test --test engines llama_cpp -- --nocapture "$@"
