#!/usr/bin/env bash
# A mixed soak of the release build: clients that behave and clients that do not, over HTTP/1.1, HTTP/2 and TLS: chats,
# streams, gRPC, bodies of 8 MiB, upgrades, bad input, while workers are killed, the fleet is scaled, the config is
# read again and, twice in the first fifth, a new binary takes over. Prints what came of it; fails if memory grows, a
# counter does not come back to 0, or an answer is not what it must be.
#   usage: loadtest/soak.sh [DURATION]     (such as 10m; default: 1h)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FOREBAY_SOAK="${1:-1h}" cargo test --release --test soak -- --nocapture
