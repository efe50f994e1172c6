#!/usr/bin/env bash
# Fuzzes whatever parses untrusted bytes by hand: fuzz/run.sh [SECONDS each, 60] [TARGET...]
#
# Needs a nightly compiler and a C++ compiler (libFuzzer); installs cargo-fuzz where it is missing. What it
# finds is in fuzz/artifacts; a finding ends it with an error.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
for target in "${targets[@]}"; do
  echo "== $target, $seconds s"
  seeds=fuzz/seeds/$target
  mkdir -p "fuzz/corpus/$target"
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" ${seeds:+$([ -d "$seeds" ] && echo "$seeds")} -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 2>&1 |
    { grep -E 'stat::number_of_executed_units|stat::new_units|SUMMARY|panicked|Test unit written|^error' || true; }
done
