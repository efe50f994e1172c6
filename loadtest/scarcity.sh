#!/usr/bin/env bash
# A fleet's whole story under scarcity, on real processes and under a constant streaming load: creation in
# a drought, fallback, the return to preferred capacity, a killed worker, scale-in with fallback first, to
# zero and back, a reload that changes the pools. Prints a log with times and fails if a request was lost
# that had not reached the killed worker. Takes about a minute.
#
#   loadtest/scarcity.sh                     builds the release binary first, or takes the one in FOREBAY
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ -z "${FOREBAY:-}" ]; then
    (cd "$ROOT" && cargo build --quiet --release)
    FOREBAY=$ROOT/target/release/forebay
fi
FOREBAY=$(realpath "$FOREBAY")
read -r PROXY ADMIN < <(ports 2)
python3 "$ROOT/loadtest/scarcity.py" "$FOREBAY" "$PROXY" "$ADMIN" "$WORK"
