# shellcheck shell=bash
# Sourced by the scripts of this folder: a Python venv, free ports, a running quickstart, and an end to
# all that was started. Sets ROOT (the checkout) and WORK (a fresh folder, removed at the end).

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=$(mktemp -d)
PIDS=()

# Ends what was started, the last one first, each by its pid.
finish() {
    local status=$? index
    for ((index = ${#PIDS[@]} - 1; index >= 0; index--)); do
        kill "${PIDS[index]}" 2>/dev/null || true
        wait "${PIDS[index]}" 2>/dev/null || true
    done
    rm -rf "$WORK"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

fail() {
    echo "$*" >&2
    exit 1
}

# start LOG COMMAND…: runs it in the background until the script ends.
start() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 &
    PIDS+=($!)
}

# venv PACKAGE…: sees to it that $ROOT/.venv has them.
venv() {
    if [ ! -x "$ROOT/.venv/bin/pip" ]; then
        python3 -m venv "$ROOT/.venv" || fail "python3 cannot make a venv: install python3-venv"
    fi
    "$ROOT/.venv/bin/pip" install --quiet --disable-pip-version-check "$@"
}

# ports N: that many free ones, held open together while they are picked so that all differ; from below those
# that the kernel gives to outgoing connections, so that none of these takes one meanwhile.
ports() {
    python3 - "$1" <<'PY'
import random, socket, sys
held = []
for port in random.sample(range(15_000, 32_000), 2_000):
    if len(held) < int(sys.argv[1]):
        try:
            held.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            pass
print(*(s.getsockname()[1] for s in held))
PY
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds. Fails early if what was started has ended.
wait_for() {
    local limit=$1 what=$2 deadline
    shift 2
    deadline=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "not within ${limit}s: $what"
        kill -0 "${PIDS[-1]}" 2>/dev/null || fail "ended before $what"
        sleep 0.1
    done
}

# Whether every endpoint has as many instances in service as it should have.
in_service() {
    "$FOREBAY" status --json --admin "$ADMIN" | python3 -c '
import json, sys
variants = [v for e in json.load(sys.stdin)["endpoints"] for v in e["variants"]]
short = [v for v in variants
         if sum(i["state"] == "InService" for i in v["instances"]) < v["desired_instance_count"]]
sys.exit(not variants or bool(short))'
}

# Before quickstart: a listener for TLS at localhost:$TLS_PORT, whose certificate is its own root, $CHAIN.
with_tls() {
    command -v openssl >/dev/null || fail "openssl is not installed: apt-get install openssl"
    CHAIN=$WORK/chain.pem
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE \
        -keyout "$WORK/key.pem" -out "$CHAIN" 2>/dev/null
    read -r TLS_PORT < <(ports 1)
    MORE_CONFIG="[proxy.tls]
listen = \"127.0.0.1:$TLS_PORT\"
[[proxy.tls.certificate]]
chain = \"$CHAIN\"
key = \"$WORK/key.pem\""
}

# Starts the quickstart in $WORK, on free ports. Sets URL (for clients) and ADMIN. With URL in the
# environment nothing is started and that server is used; ADMIN may then be given, too.
# MORE_CONFIG is appended to the config. FOREBAY is the binary; without it the release build of this checkout is made and taken.
quickstart() {
    if [ -n "${URL:-}" ]; then
        return
    fi
    if [ -z "${FOREBAY:-}" ]; then
        (cd "$ROOT" && cargo build --quiet --release)
        FOREBAY=$ROOT/target/release/forebay
    fi
    local proxy admin
    read -r proxy admin < <(ports 2)
    URL=http://127.0.0.1:$proxy
    ADMIN=http://127.0.0.1:$admin
    sed -e "s/^listen = \"127.0.0.1:8080\"/listen = \"127.0.0.1:$proxy\"/" \
        -e "s/^listen = \"127.0.0.1:8081\"/listen = \"127.0.0.1:$admin\"/" \
        "$ROOT/config/quickstart.toml" >"$WORK/quickstart.toml"
    if [ "$(grep -c "127.0.0.1:\($proxy\|$admin\)\"" "$WORK/quickstart.toml")" != 2 ]; then
        fail "config/quickstart.toml does not listen on 127.0.0.1:8080 and 8081 any more: mend loadtest/lib.sh"
    fi
    printf '%s\n' "${MORE_CONFIG:-}" >>"$WORK/quickstart.toml"
    cd "$WORK" # The store's path is relative.
    start "$WORK/forebay.log" "$FOREBAY" serve --config quickstart.toml
    cd "$ROOT"
    (wait_for 60 "the fleet is in service" in_service) || {
        tail -20 "$WORK/forebay.log" >&2
        exit 1
    }
}
